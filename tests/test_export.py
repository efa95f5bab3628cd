"""Checkpoints to released folders and back."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hoi_lightning.__main__ import main
from hoi_lightning.diffusion.repaint import RePaintSampler
from hoi_lightning.errors import InputError
from hoi_lightning.export import _text_encoder_folder, diffusers_recipe
from hoi_lightning.holes import feather
from hoi_lightning.pipeline import HOIPipeline
from hoi_lightning.run_log import log_text
from hoi_lightning.tasks import FusionNet, InpaintBase, MaskNet
from hoi_lightning.tasks.base import HoiTask
from hoi_lightning.weights import shipped
from tests import tiny
from tests.tiny import save_sd_folder

SIZE = 64


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd_folder(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def checkpoints(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What `fit` leaves, of untrained networks whose averaged weights differ from the raw ones."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    small = {
        "channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "heads_dim": 8,
        "norm_groups": 8,
    }
    tasks: dict[str, HoiTask] = {
        "masknet": MaskNet(**small),
        "fusionnet": FusionNet(str(sd_folder), image_size=SIZE, neighbourhood=True, sampler="fast"),
        "masked": FusionNet(str(sd_folder), image_size=SIZE, object_context="masked", sampler="fast"),
        "base": InpaintBase(str(sd_folder), unet_channels=(16, 16, 32), image_size=SIZE),
    }
    for name, task in tasks.items():
        average = {key: value + 0.01 for key, value in task.named_parameters() if value.requires_grad}
        checkpoint = {
            "task": type(task).__name__,
            "hyper_parameters": dict(task.hparams),
            "state_dict": task.state_dict(),
            "ema_state_dict": average,
            "global_step": 7,
            "cli_config": "seed: 0\n",
        }
        torch.save(checkpoint, folder / f"{name}.ckpt")
    return {name: folder / f"{name}.ckpt" for name in tasks}


def arguments(checkpoints: dict[str, Path], *names: str) -> list[str]:
    return [word for name in names for word in (f"--{name}", str(checkpoints[name]))]


def diffusers_code(document: Path) -> list[str]:
    """The Python code in a Markdown file that paints with diffusers."""
    found = re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
    return [code for code in found if "StableDiffusionInpaintPipeline" in code]


@pytest.fixture(scope="module")
def released(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("released") / "model"
    words = arguments(checkpoints, "masknet", "fusionnet")
    assert main(["export", *words, "--out", str(out), "--dtype", "float32"]) == 0
    return out


@pytest.mark.parametrize(("name", "task"), [("masknet", MaskNet), ("fusionnet", FusionNet)])
def test_import_after_export_leaves_all_tensors_equal(
    name: str, task: type[HoiTask], released: Path, checkpoints: dict[str, Path]
) -> None:
    before, after = task.load(checkpoints[name]), task.from_pretrained(released / name)
    assert before.state_dict().keys() == after.state_dict().keys()
    for key, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[key]), key
    same = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in before.hparams.items()
        if key not in ("pretrained", "unet_channels")
    }
    assert {key: after.hparams[key] for key in same} == same
    if isinstance(before, FusionNet):
        assert before.latents.fingerprint() == after.latents.fingerprint()
        assert torch.equal(before.schedule.alpha_bar, after.schedule.alpha_bar)


@pytest.mark.parametrize("other", ["argument", "weight"])
def test_a_checkpoint_of_another_version_is_one_line(other: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = torch.load(checkpoints["masknet"], weights_only=True)
    if other == "argument":
        checkpoint["hyper_parameters"]["gone"] = 1
    else:
        checkpoint["state_dict"]["gone"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(InputError, match=r"old\.ckpt: MaskNet has other.*gone.*fit it again") as caught:
        MaskNet.load(tmp_path / "old.ckpt")
    assert "\n" not in str(caught.value)


def test_the_folder_says_what_it_is(released: Path, checkpoints: dict[str, Path]) -> None:
    index = json.loads((released / "model_index.json").read_text())
    assert index["masknet"] == ["hoi_lightning.tasks.masknet", "MaskNet"]
    assert index["fusionnet"] == ["hoi_lightning.tasks.fusionnet", "FusionNet"]
    card = json.loads((released / "card.json").read_text())
    assert card["parts"]["fusionnet"]["checkpoint_sha256"] == FusionNet.load(checkpoints["fusionnet"]).checkpoint_hash
    assert (released / "README.md").read_text().startswith("---")
    parts = json.loads((released / "fusionnet" / "model_index.json").read_text())
    assert parts["text_encoder"] == [None, None]
    assert parts["unet"][1] == "UNet2DConditionModel"


def test_a_released_part_goes_with_a_new_one(released: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (released / "masknet.log.csv").write_text("step\n")
    out = tmp_path / "next"
    words = ["--masknet", str(released), "--fusionnet", str(checkpoints["masked"]), "--dtype", "float32"]
    assert main(["export", *words, "--out", str(out)]) == 0
    for name in ("masknet/model.safetensors", "masknet.config.yaml", "masknet.log.csv"):
        assert (out / name).read_bytes() == (released / name).read_bytes()
    parts, before = (json.loads((folder / "card.json").read_text())["parts"] for folder in (out, released))
    assert parts["masknet"] == before["masknet"]
    assert parts["fusionnet"]["checkpoint_sha256"] == FusionNet.load(checkpoints["masked"]).checkpoint_hash


def test_the_whole_log_of_the_run_goes_with_its_weights(
    checkpoints: dict[str, Path], training_run: Path, tmp_path: Path
) -> None:
    (training_run / "checkpoints").mkdir()
    shutil.copy(checkpoints["masknet"], training_run / "checkpoints/last.ckpt")
    out = tmp_path / "logged"
    assert main(["export", "--masknet", str(training_run / "checkpoints/last.ckpt"), "--out", str(out)]) == 0
    assert (out / "masknet.log.csv").read_text() == log_text(training_run)
    assert (out / "masknet.config.yaml").read_text() == "seed: 0\n"


def test_a_released_part_without_its_card_is_one_line(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(released / "masknet", tmp_path / "masknet")
    assert main(["export", "--masknet", str(tmp_path), "--out", str(tmp_path / "next")]) == 2
    assert re.search(r"^error: --masknet .*card\.json.*give a checkpoint", capsys.readouterr().err, re.MULTILINE)
    assert not (tmp_path / "next").exists()


def differences(recipes: list[str], model: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Run pieces of Python code beside the exported folder: how far each picture is from FusionNet's, of 255.

    The largest ones of the 8-bit pictures, within the soft edge of a layout's hole, which no latent cells make up.
    """
    fusionnet = FusionNet.from_pretrained(model / "fusionnet")
    fusionnet.neighbourhood = False
    size, factor = fusionnet.image_size, fusionnet.latents.factor
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)
    hole = fusionnet.hole_mask(tiny.sample(0).info.layout.to_tensor()[None])
    cells = F.max_pool2d(hole, factor)
    assert not torch.equal(F.interpolate(cells, scale_factor=factor), hole)
    assert not torch.equal(F.interpolate(hole, size=cells.shape[-2:]), cells)
    sampler = RePaintSampler(fusionnet.sampler.num_steps, composition="off", eta=0.0)
    obj = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
    ours = ((fusionnet.sample_holes(obj, hole, [0], sampler) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    outside, core = hole[0, 0].numpy() == 0, feather(hole)[0, 0].numpy() == 1
    assert np.abs(ours - picture)[core].max() > 25

    (work / model.name).symlink_to(model)
    Image.fromarray(picture).save(work / "object.png")
    Image.fromarray((hole[0, 0] * 255).byte().numpy()).save(work / "hole.png")
    monkeypatch.chdir(work)
    found = []
    for recipe in recipes:
        exec(recipe, {})
        theirs = np.asarray(Image.open("hand.png"))
        assert (theirs == picture)[outside].all()
        found.append(float(np.abs(theirs - ours)[core].max()))
    return found


@pytest.mark.parametrize("context", ["full", "masked"])
def test_diffusers_paints_the_same_picture(
    context: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the code that the model card gives, to the rounding of 8 bits."""
    fusionnet = checkpoints["fusionnet" if context == "full" else "masked"]
    model, work = tmp_path / "model", tmp_path / "work"
    work.mkdir()
    assert main(["export", "--fusionnet", str(fusionnet), "--out", str(model), "--dtype", "float32"]) == 0
    (recipe,) = diffusers_code(model / "README.md")
    assert f"object_context {context}" in recipe
    assert differences([recipe], model, work, monkeypatch)[0] <= 1


def test_the_shipped_card_s_code_paints_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it hands to diffusers beside picture and hole is needed."""
    model = shipped("mini")
    (recipe,) = diffusers_code(model / "README.md")
    assert recipe == diffusers_recipe(FusionNet.from_pretrained(model / "fusionnet"), "mini/fusionnet")
    no_context = re.sub(r"(masked_image_latents)=.*", r"\1=None,", recipe)
    plain_hole = re.sub(r"(mask_image)=.*", r"\1=hole,", recipe)
    right, *wrong = differences([recipe, no_context, plain_hole], model, tmp_path, monkeypatch)
    assert right <= 1
    assert min(wrong) > 10


def test_the_docs_give_the_card_s_code(sd_folder: Path) -> None:
    docs = Path(__file__).parent.parent / "docs" / "fusionnet.md"
    assert diffusers_code(docs)[0] == diffusers_recipe(FusionNet(str(sd_folder)), "model/fusionnet")


def test_adapters_open_on_what_they_were_trained_on(sd_folder: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    fusionnet = FusionNet(str(sd_folder), image_size=SIZE, lora_rank=4)
    before = UNet2DConditionModel.from_pretrained(sd_folder, subfolder="unet")
    with torch.no_grad():
        for p in fusionnet.parameters():
            if p.requires_grad:
                p.normal_(std=0.1)
    fusionnet.save_pretrained(tmp_path / "fusionnet", torch.float32)
    opened = UNet2DConditionModel.from_pretrained(sd_folder, subfolder="unet")
    opened.load_lora_adapter(tmp_path / "fusionnet" / "lora", prefix=None, use_safetensors=True)
    merged = UNet2DConditionModel.from_pretrained(tmp_path / "fusionnet", subfolder="unet")
    x, t = torch.randn(1, 9, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    answers = [unet.eval()(x, t, fusionnet.prompt_embeds).sample for unet in (before, opened, merged)]
    assert torch.allclose(answers[1], answers[2], atol=1e-4)
    assert not torch.allclose(answers[0], answers[2], atol=1e-2)


def test_a_base_is_what_fusionnet_starts_from(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "base"
    assert main(["export", *arguments(checkpoints, "base"), "--out", str(out), "--dtype", "float32"]) == 0
    base, fusionnet = InpaintBase.load(checkpoints["base"]), FusionNet(str(out), image_size=SIZE)
    for key, value in base.unet.state_dict().items():
        assert torch.equal(value, fusionnet.unet.state_dict()[key]), key


def test_fusionnet_alone_is_what_another_starts_from(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "hands"
    assert main(["export", *arguments(checkpoints, "fusionnet"), "--out", str(out), "--dtype", "float32"]) == 0
    assert not (out / "model_index.json").exists()
    start = FusionNet(str(out / "fusionnet"), image_size=64).unet.state_dict()
    trained = FusionNet.load(checkpoints["fusionnet"]).unet.state_dict()
    for name, value in trained.items():
        assert torch.equal(start[name], value)


def test_masknet_alone_takes_the_place_of_the_weights_own(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "layouts"
    assert main(["export", *arguments(checkpoints, "masknet"), "--out", str(out), "--dtype", "float32"]) == 0
    assert not (out / "model_index.json").exists()
    assert "--masknet" in (out / "README.md").read_text()
    trained = MaskNet.load(checkpoints["masknet"]).state_dict()
    opened = HOIPipeline.from_checkpoints(masknet=out, device="cpu").masknet.state_dict()
    assert all(torch.equal(opened[name], value) for name, value in trained.items())


def test_half_precision_halves_the_folder(released: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "half"
    assert main(["export", *arguments(checkpoints, "masknet", "fusionnet"), "--out", str(out)]) == 0
    sizes = [(f / "fusionnet" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size for f in (released, out)]
    assert sizes[1] < 0.6 * sizes[0]
    assert FusionNet.from_pretrained(out / "fusionnet").unet.dtype == torch.float32


@pytest.mark.parametrize(
    ("names", "says"),
    [([], "--base alone"), (["masknet", "fusionnet", "base"], "--base alone")],
)
def test_which_checkpoints_belong_together(
    names: list[str], says: str, checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments(checkpoints, *names), "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


def test_a_folder_that_exists_is_not_touched(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments(checkpoints, "base"), "--out", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["export", *arguments(checkpoints, "base"), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_damaged_folder_is_named(damage: str, released: Path, tmp_path: Path) -> None:

    from hoi_lightning.errors import InputError

    folder = tmp_path / "masknet"
    shutil.copytree(released / "masknet", folder)
    (folder / damage).write_bytes((folder / damage).read_bytes()[:40])
    with pytest.raises(InputError, match=str(folder)):
        MaskNet.from_pretrained(folder)


def test_the_text_encoder_comes_along_on_request(sd_folder: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Then diffusers opens the folder without further arguments, and takes any prompt."""
    from diffusers import StableDiffusionInpaintPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    sd = tmp_path / "sd"
    shutil.copytree(sd_folder, sd)
    words = ["<|startoftext|>", "<|endoftext|>", "h", "a", "n", "d</w>"]
    CLIPTokenizer({word: index for index, word in enumerate(words)}, [], model_max_length=8).save_pretrained(
        sd / "tokenizer"
    )
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=8, eos_token_id=1, bos_token_id=0,
        )
    ).save_pretrained(sd / "text_encoder")  # fmt: skip
    index = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    (sd / "model_index.json").write_text(json.dumps(index))
    fusionnet = FusionNet(str(sd), image_size=SIZE)
    checkpoint = {
        "task": "FusionNet",
        "hyper_parameters": dict(fusionnet.hparams) | {"pretrained": str(sd)},
        "state_dict": fusionnet.state_dict(),
        "global_step": 0,
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    words = arguments(checkpoints | {"fusionnet": tmp_path / "last.ckpt"}, "masknet", "fusionnet")
    assert main(["export", *words, "--text-encoder", "--out", str(tmp_path / "out")]) == 0
    pipe = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "out" / "fusionnet")
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("hand", image=torch.zeros(1, 3, 64, 64), mask_image=torch.ones(1, 1, 64, 64), num_inference_steps=1)
    assert picture.images[0].size == (64, 64)


def test_the_text_encoder_of_a_hub_id_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    for name in ("text_encoder", "tokenizer"):
        (tmp_path / "hub" / name).mkdir(parents=True)
    painter = SimpleNamespace(pretrained="someone/inpainting", revision="main")
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **more: asked.append((name, more)) or str(tmp_path / "hub")
    )
    with pytest.raises(InputError, match=r"--text-encoder: .*has no model_index\.json that can be had"):
        _text_encoder_folder(painter)
    (tmp_path / "hub" / "model_index.json").write_text("{}")
    asked.clear()
    assert _text_encoder_folder(painter) == tmp_path / "hub"
    assert asked == [
        ("someone/inpainting",
         {"revision": "main", "allow_patterns": ["model_index.json", "text_encoder/*", "tokenizer/*"]})
    ]  # fmt: skip


def test_a_text_encoder_that_is_not_there_is_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*arguments(checkpoints, "masknet", "fusionnet"), "--text-encoder", "--out", str(tmp_path / "out")]
    assert main(["export", *words]) == 2
    assert "--text-encoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
