"""Weights that cannot be opened, memory that does not suffice: one line and status 2, by `fit` and by `generate`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hoi_lightning.__main__ import main
from hoi_lightning.errors import InputError
from hoi_lightning.tasks import FusionNet, MaskNet
from tests.test_cli import QUIET, fit
from tests.test_pipeline import picture
from tests.tiny import save_sd_folder

SMALL = {"channels": (8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "heads_dim": 8, "norm_groups": 8}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released folder of random networks; its `fusionnet/` is a folder to fine-tune from, too."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    sd = save_sd_folder(root / "sd")
    MaskNet(**SMALL, image_size=32).save_pretrained(root / "model/masknet", torch.float32)
    FusionNet(str(sd), image_size=64, sampler="fast").save_pretrained(root / "model/fusionnet", torch.float32)
    (root / "model/model_index.json").write_text("{}")
    return root / "model"


@pytest.fixture
def folder(released: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(released, tmp_path / "model"))


Verb = Callable[..., str]


@pytest.fixture(params=["fit", "generate"])
def verb(request: pytest.FixtureRequest, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Verb:
    """Runs a verb on a released folder; returns the one line that it says."""
    picture().save(tmp_path / "cup.png")

    def run(folder: Path, *more: str) -> str:
        if request.param == "fit":
            words = ["--model.pretrained", str(folder / "fusionnet"), "--trainer.max_steps=3", *QUIET, *more]
            status = fit(shards, tmp_path / "runs", *words, config="fusionnet")
        else:
            places = ["--images", str(tmp_path / "cup.png"), "--out", str(tmp_path / "out"), "--num-images", "1"]
            status = main(["generate", *places, "--weights", str(folder), "--device", "cpu"])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
        assert status == 2
        assert len(lines) == 1
        assert not list(tmp_path.glob("out/*.png"))
        return lines[0]

    run.verb = request.param  # type: ignore[attr-defined]
    return run


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "part"),
    [
        (lambda fusionnet: cut(fusionnet / "unet/diffusion_pytorch_model.safetensors"), "its unet"),
        (lambda fusionnet: cut(fusionnet / "vae/diffusion_pytorch_model.safetensors"), "its vae"),
        (lambda fusionnet: cut(fusionnet / "prompt_embeds.safetensors"), "its prompt_embeds.safetensors"),
        (lambda fusionnet: (fusionnet / "unet/config.json").write_text("{"), "its unet"),
        (lambda fusionnet: shutil.rmtree(fusionnet / "vae"), "its vae"),
        (lambda fusionnet: shutil.rmtree(fusionnet / "scheduler"), "its scheduler"),
    ],
)
def test_a_damaged_part_is_named(verb: Verb, folder: Path, harm: Callable[[Path], object], part: str) -> None:
    harm(folder / "fusionnet")
    line = verb(folder)
    assert str(folder / "fusionnet") in line
    assert part in line
    assert ("fetch it again" if verb.verb == "fit" else "export it again") in line  # type: ignore[attr-defined]


def rewrite(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"trained_betas": [0.1] * 1000}, "trained_betas"),
        ({"prediction_type": "flow"}, "prediction_type 'flow'"),
        ({"beta_schedule": "exp"}, "exp is not implemented"),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr with prediction_type"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_named(
    verb: Verb, folder: Path, entries: dict[str, object], reason: str
) -> None:
    rewrite(folder / "fusionnet/scheduler/scheduler_config.json", **entries)
    assert reason in verb(folder)


@pytest.mark.parametrize("text", ["[]", '{"_class_name": "UNet2DConditionModel"}'])
def test_an_autoencoder_that_is_none_is_named(verb: Verb, folder: Path, text: str) -> None:
    (folder / "fusionnet/vae/config.json").write_text(text)
    assert "its vae" in verb(folder)


@pytest.mark.parametrize("entries", [{"sampler": "best"}, {"object_context": "half"}])
def test_a_released_word_that_is_no_choice_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, entries: dict[str, object]
) -> None:
    rewrite(folder / "fusionnet/config.json", **entries)
    picture().save(tmp_path / "cup.png")
    places = ["--images", str(tmp_path / "cup.png"), "--out", str(tmp_path / "out")]
    assert main(["generate", *places, "--weights", str(folder), "--device", "cpu"]) == 2
    (name, value), line = next(iter(entries.items())), capsys.readouterr().err
    assert f"fusionnet: holds no FusionNet (--model.{name} {value!r}: give one of" in line
    (folder / "fusionnet/config.json").write_text("[]")
    assert main(["generate", *places, "--weights", str(folder), "--device", "cpu"]) == 2
    assert "config.json: cannot be read (no JSON object)" in capsys.readouterr().err


def test_a_released_folder_s_hash_is_of_all_that_decides_its_pictures(folder: Path) -> None:
    before = FusionNet.from_pretrained(folder / "fusionnet").checkpoint_hash
    assert FusionNet.from_pretrained(folder / "fusionnet").checkpoint_hash == before
    rewrite(folder / "fusionnet/config.json", sampler="balanced")
    assert FusionNet.from_pretrained(folder / "fusionnet").checkpoint_hash != before


def test_a_path_and_a_released_folder_have_their_own_remedies(released: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--model.pretrained /.*/gone: no such folder; give a hub id, or "):
        FusionNet(str(tmp_path / "gone"), image_size=64)
    with pytest.raises(InputError, match=r"is a released folder; its painter is .*/model/fusionnet$"):
        FusionNet(str(released), image_size=64)


def test_a_folder_that_is_no_diffusers_model_is_named(verb: Verb, folder: Path) -> None:
    shutil.rmtree(folder / "fusionnet")
    (folder / "fusionnet").mkdir()
    (folder / "fusionnet/notes.txt").write_text("no model")
    line = verb(folder)
    assert str(folder / "fusionnet") in line
    assert ("a folder that diffusers saved" if verb.verb == "fit" else "export the model again") in line  # type: ignore[attr-defined]


def test_a_text_to_image_unet_is_named(verb: Verb, folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = dict(UNet2DConditionModel.load_config(folder / "fusionnet/unet"))
    UNet2DConditionModel.from_config(config | {"in_channels": 4}).save_pretrained(folder / "fusionnet/unet")
    line = verb(folder)
    assert f"{folder / 'fusionnet'}: " in line
    assert "its unet has 4 input channels, an inpainting U-Net has 9" in line
    assert ("--model.widen_conv_in true" in line) == (verb.verb == "fit")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
            "addition_embed_type text_time",
        ),
        ({"class_embed_type": "timestep"}, "class_embed_type timestep"),
    ],
)
def test_a_unet_that_asks_for_more_is_named(verb: Verb, folder: Path, more: dict[str, object], named: str) -> None:
    from diffusers import UNet2DConditionModel

    config = dict(UNet2DConditionModel.load_config(folder / "fusionnet/unet"))
    UNet2DConditionModel.from_config(config | more).save_pretrained(folder / "fusionnet/unet")
    line = verb(folder)
    assert f"{folder / 'fusionnet'}: " in line
    assert named in line
    if verb.verb == "fit":  # type: ignore[attr-defined]
        assert "1.x or 2.x inpainting checkpoint" in line
        assert "--painter" in line


def test_an_embedding_of_another_unet_is_named(verb: Verb, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"prompt_embeds": torch.zeros(1, 3, 24)}, folder / "fusionnet/prompt_embeds.safetensors")
    assert "its prompt embedding is 24 wide, its unet takes 16" in verb(folder)


def test_a_vae_of_another_unet_is_named(verb: Verb, folder: Path) -> None:
    from diffusers import AutoencoderKL

    config = dict(AutoencoderKL.load_config(folder / "fusionnet/vae"))
    AutoencoderKL.from_config(config | {"latent_channels": 8}).save_pretrained(folder / "fusionnet/vae")
    assert "its unet paints latents of 4 channels, its vae makes 8" in verb(folder)


def test_a_masknet_cut_short_is_named(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(released, tmp_path / "model")
    cut(tmp_path / "model/masknet/model.safetensors")
    picture().save(tmp_path / "cup.png")
    words = [
        "--images",
        str(tmp_path / "cup.png"),
        "--out",
        str(tmp_path / "out"),
        "--weights",
        str(tmp_path / "model"),
    ]
    assert main(["generate", *words]) == 2
    assert "masknet: holds no MaskNet" in capsys.readouterr().err


def test_a_text_encoder_cut_short_is_named(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from tests.tiny_pipelines import sd

    pipe, fusionnet = sd(), folder / "fusionnet"
    for part in ("text_encoder", "tokenizer"):
        getattr(pipe, part).save_pretrained(fusionnet / part)
    (fusionnet / "prompt_embeds.safetensors").unlink()
    cut(fusionnet / "text_encoder/model.safetensors")
    assert fit(shards, tmp_path, *QUIET, "--model.pretrained", str(fusionnet), config="fusionnet") == 2
    assert f"--model.pretrained {fusionnet}: its text_encoder does not open" in capsys.readouterr().err


def test_a_tokenizer_that_was_not_fetched_is_named(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from tests.tiny_pipelines import sd

    fusionnet = folder / "fusionnet"
    sd().text_encoder.save_pretrained(fusionnet / "text_encoder")
    (fusionnet / "prompt_embeds.safetensors").unlink()
    assert fit(shards, tmp_path, *QUIET, "--model.pretrained", str(fusionnet), config="fusionnet") == 2
    assert f"--model.pretrained {fusionnet}: its tokenizer does not open" in capsys.readouterr().err


def test_a_text_encoder_that_was_not_fetched_is_named(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A folder that declares one is not trained on an empty prompt."""
    fusionnet = folder / "fusionnet"
    (fusionnet / "prompt_embeds.safetensors").unlink()
    index = json.loads((fusionnet / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "CLIPTextModel"]
    (fusionnet / "model_index.json").write_text(json.dumps(index))
    assert fit(shards, tmp_path, *QUIET, "--model.pretrained", str(fusionnet), config="fusionnet") == 2
    assert f"--model.pretrained {fusionnet}: its text_encoder does not open" in capsys.readouterr().err


def test_a_side_that_cannot_be_encoded_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"60x60: FusionNet \(--model.image_size\) .*multiples of 8; resize to 64x64"):
        FusionNet(str(folder / "fusionnet"), image_size=60)


class Exhausted:
    """A forward pass whose memory does not suffice from the n-th call on."""

    def __init__(self, forward: Callable[..., object], calls: int) -> None:
        self.forward, self.left = forward, calls

    def __call__(self, *args: object, **kwargs: object) -> object:
        if not self.left:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has 24 GiB")
        self.left -= 1
        return self.forward(*args, **kwargs)


def test_exhausted_memory_names_three_settings(verb: Verb, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = FusionNet._predict
    exhausted = Exhausted(predict, 0)
    monkeypatch.setattr(FusionNet, "_predict", lambda self, *args: exhausted(self, *args))
    line = verb(folder)
    assert "memory is exhausted" in line
    settings = {
        "fit": ("--data.batch_size", "--trainer.accumulate_grad_batches", "gradient_checkpointing", "rtx4090", "lora"),
        "generate": ("--batch-size (now 8", "--device cpu", "image_size"),
    }
    for setting in settings[verb.verb]:  # type: ignore[attr-defined]
        assert setting in line


def test_memory_exhausted_in_the_midst_of_a_run_loses_no_step(
    released: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = FusionNet._predict
    exhausted = Exhausted(predict, 2)
    monkeypatch.setattr(FusionNet, "_predict", lambda self, *args: exhausted(self, *args))
    words = [*QUIET, "--model.pretrained", str(released / "fusionnet"), "--data.batch_size=2"]
    words += ["--trainer.accumulate_grad_batches=1", "--trainer.limit_val_batches=0"]
    assert fit(shards, tmp_path, *words, "--trainer.max_steps=4", config="fusionnet") == 2
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_exhausted_memory_keeps_finished_pictures(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        picture().save(tmp_path / f"in/{name}.png")
    words = ["generate", "--images", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--num-images", "1"]
    words += ["--weights", str(released), "--device", "cpu"]
    paint = FusionNet.sample_holes
    exhausted = Exhausted(paint, 1)
    monkeypatch.setattr(FusionNet, "sample_holes", lambda self, *args: exhausted(self, *args))
    assert main(words) == 2
    assert "finished pictures are kept" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a_0.png"]
    exhausted.left = -1
    assert main([*words, "--batch-size", "1"]) == 0
    assert "1 of them kept" in capsys.readouterr().out
