"""Diffusers inpainting pipelines as painters: tiny random ones of each class, saved to a folder and opened from it."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hoi_lightning import generate as verb
from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import Layout, hole_mask
from hoi_lightning.holes import feather
from hoi_lightning.painters import PROMPT, DiffusersPainter, find_index, folder_hash
from hoi_lightning.pipeline import HOIPipeline
from tests.test_pipeline import FakeMaskNet, picture
from tests.tiny_pipelines import SIZE, flux_fill, qwen, sd, sdxl

STEPS = 3  # a class's own strength of 0.6 would leave out the first
LAYOUTS = torch.stack([Layout(0.8, 0.1, -0.2, 0.0, 1.0).to_tensor(), Layout(0.7, -0.2, 0.1, 1.0, 0.0).to_tensor()])
HOLES = hole_mask(LAYOUTS, SIZE)


@pytest.fixture(autouse=True)
def _one_thread(_plain_process):
    torch.set_num_threads(1)


KINDS = {"StableDiffusion": sd, "StableDiffusionXL": sdxl, "FluxFill": flux_fill, "QwenImage": qwen}
SETTINGS = {  # what full repainting is in each class's own words
    "StableDiffusion": {"strength": 1.0, "guidance_scale": 7.5},
    "StableDiffusionXL": {"strength": 0.9999, "guidance_scale": 7.5},
    "FluxFill": {"strength": 1.0, "guidance_scale": 30.0},
    "QwenImage": {"strength": 1.0, "true_cfg_scale": 4.0, "negative_prompt": " "},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """One folder per class, made when it is asked for."""
    root = tmp_path_factory.mktemp("painters")

    class Folders(dict):
        def __missing__(self, kind):
            torch.manual_seed(0)
            KINDS[kind]().save_pretrained(root / kind)
            self[kind] = root / kind
            return self[kind]

    return Folders()


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


def open_painter(folder, **settings) -> DiffusersPainter:
    return DiffusersPainter.from_pretrained(folder, **{"image_size": SIZE, "num_inference_steps": STEPS} | settings)


@pytest.fixture
def painter(folders, kind):
    return open_painter(folders[kind])


def objects(count: int = 2, size: int = SIZE):
    pixels = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(1))
    return pixels / 127.5 - 1


def test_a_painter_changes_the_hole_and_nothing_else(painter, kind):
    assert type(painter.pipe).__name__ == f"{kind}{'' if kind == 'FluxFill' else 'Inpaint'}Pipeline"
    obj = objects()
    painted = painter.sample_holes(obj, HOLES, [3, 4])
    assert painted.shape == obj.shape
    assert painted.dtype == torch.float32
    assert painted.abs().max() <= 1
    hole = HOLES.expand_as(obj) == 1
    assert 0 < hole.sum() < hole.numel()
    assert torch.equal(painted[~hole], obj[~hole])
    assert (painted[hole] != obj[hole]).float().mean() > 0.9


def test_a_picture_depends_on_its_own_seed_only(painter):
    obj = objects()
    both = painter.sample_holes(obj, HOLES, [3, 4])
    alone = [painter.sample_holes(obj[k : k + 1], HOLES[k : k + 1], [3 + k]) for k in (1, 0)]
    assert torch.equal(both, torch.cat(alone[::-1]))
    other = painter.sample_holes(obj, HOLES, [3, 5])
    assert torch.equal(other[0], both[0])
    assert not torch.equal(other[1], both[1])


def test_in_the_hole_the_picture_is_what_the_pipeline_gives_by_itself(painter, kind):
    obj, hole = objects(1), HOLES[:1]
    pixels = ((obj[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    (alone,) = painter.pipe(
        prompt=PROMPT,
        image=Image.fromarray(pixels),
        mask_image=Image.fromarray((hole[0, 0] * 255).byte().numpy()),
        height=SIZE,
        width=SIZE,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
        **SETTINGS[kind],
    ).images
    painted = painter.sample_holes(obj, HOLES[:1], [7])[0].permute(1, 2, 0).numpy() / 2 + 0.5
    inside = feather(hole)[0, 0].numpy() == 1
    assert inside.any()
    np.testing.assert_allclose(painted[inside], alone[inside], atol=1e-4)


def test_the_prompt_reaches_every_text_encoder_and_the_picture(folders, kind):
    words = "mug"
    painter, heard = open_painter(folders[kind], prompt=words), {}
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(painter.pipe, name, None)
        if encoder is not None:
            tokens = getattr(painter.pipe, name.replace("text_encoder", "tokenizer"))

            def hear(module, args, kwargs, name=name, tokens=tokens):
                ids = args[0] if args else kwargs["input_ids"]
                heard.setdefault(name, []).append(tokens.decode(ids[0]))

            encoder.register_forward_pre_hook(hear, with_kwargs=True)
    painted = painter.sample_holes(objects(1), HOLES[:1], [0])
    assert set(heard) == {name for name in painter.pipe.components if name.startswith("text_encoder")}
    for name, texts in heard.items():
        assert any(words in text.replace(" ", "") for text in texts), (name, texts)
    other = open_painter(folders[kind]).sample_holes(objects(1), HOLES[:1], [0])
    assert not torch.equal(painted, other)


def test_guidance_is_the_class_s_own_unless_another_is_given(folders, kind):
    own = next(value for name, value in SETTINGS[kind].items() if name in ("guidance_scale", "true_cfg_scale"))
    default, same, other = (
        open_painter(folders[kind], guidance_scale=scale).sample_holes(objects(1), HOLES[:1], [0])
        for scale in (None, own, own / 2)
    )
    assert torch.equal(default, same)
    assert not torch.equal(default, other)


def test_the_pipeline_s_own_size_is_taken(folders, kind):
    own = 32 if kind.startswith("Stable") else 256  # 128 cells, whatever the weights
    assert open_painter(folders[kind], image_size=None).image_size == own


def test_sides_must_fit_the_autoencoder(folders, painter, kind):
    multiple = 2 if kind.startswith("Stable") else 4
    with pytest.raises(InputError, match=rf"33x33.*{kind}.*multiples of {multiple}; resize to 32x32"):
        open_painter(folders[kind], image_size=33)
    with pytest.raises(InputError, match="34x33" if multiple == 2 else "34x33.*multiples of 4"):
        painter.sample_holes(torch.zeros(1, 3, 33, 34), torch.ones(1, 1, 33, 34), [0])
    painted = painter.sample_holes(objects(1, 48), torch.ones(1, 1, 48, 48), [0])  # another size that fits
    assert painted.shape == (1, 3, 48, 48)
    assert painted.isfinite().all()


@pytest.mark.parametrize("setting", ["num_inference_steps", "image_size"])
def test_numbers_below_one_are_refused(folders, setting):
    with pytest.raises(InputError, match=f"^{setting} 0: give 1 or more"):
        open_painter(folders["StableDiffusion"], **{setting: 0})


@pytest.fixture(scope="module")
def sd_painter(folders):
    return open_painter(folders["StableDiffusion"])


def test_holes_are_checked_and_an_empty_one_costs_nothing(sd_painter, monkeypatch):
    obj = objects()
    for hole, reason in (
        (torch.ones(2, 1, 16, 16), "of their size"),
        (torch.ones(1, 1, SIZE, SIZE), "of their size"),
        (torch.full((2, 1, SIZE, SIZE), 0.5), "other than 0 and 1"),
    ):
        with pytest.raises(InputError, match=f"^holes.*{reason}"):
            sd_painter.sample_holes(obj, hole, [0, 1])
    monkeypatch.setattr(sd_painter, "_paint", None)  # not to be called
    assert torch.equal(sd_painter.sample_holes(obj, torch.zeros(2, 1, SIZE, SIZE), [0, 1]), obj)


def rewrite(folder: Path, **entries) -> Path:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | entries))
    return folder


@pytest.mark.parametrize("kind", ["StableDiffusion", "StableDiffusionXL", "QwenImage"], indirect=True)
def test_text_to_image_folders_open_as_what_inpaints_with_them(folders, kind, tmp_path):
    shutil.copytree(folders[kind], tmp_path / "copy")
    painter = open_painter(rewrite(tmp_path / "copy", _class_name=f"{kind}Pipeline"))
    assert type(painter.pipe).__name__ == f"{kind}InpaintPipeline"
    same = open_painter(folders[kind]).sample_holes(objects(1), HOLES[:1], [0])
    assert torch.equal(painter.sample_holes(objects(1), HOLES[:1], [0]), same)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "no model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "no inpainting pipeline opens"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "no inpainting pipeline opens"),
        (lambda folder: rewrite(folder, _class_name="DDPMPipeline"), "DDPMPipeline"),
        (lambda folder: rewrite(folder, _class_name="HOIPipeline"), "HOIPipeline"),
        (lambda folder: rewrite(folder, _class_name=["mine", "InpaintPipeline"]), "no inpainting pipeline opens"),
        (lambda folder: rewrite(folder, _class_name="InpaintPipelineOfMine"), "InpaintPipelineOfMine"),
        (lambda folder: rewrite(folder, text_encoder=[None, None]), "has no text_encoder"),
        (lambda folder: cut(folder / "unet/diffusion_pytorch_model.safetensors"), "unet|incomplete|Unable to load"),
        (lambda folder: cut(folder / "text_encoder/model.safetensors"), "no inpainting pipeline opens"),
        (lambda folder: (folder / "vae/diffusion_pytorch_model.safetensors").unlink(), "diffusion_pytorch_model"),
        (lambda folder: (folder / "unet/config.json").write_text("{"), "no inpainting pipeline opens"),
    ],
)
def test_what_is_no_painter_gets_one_line(folders, tmp_path, harm, reason):
    folder = tmp_path / "copy"
    shutil.copytree(folders["StableDiffusion"], folder)
    harm(folder)
    with pytest.raises(InputError, match=reason) as caught:
        open_painter(folder)
    line = str(caught.value)
    assert line.startswith(f"--painter {folder}: ")
    assert "give the folder or hub id" in line
    assert "\n" not in line


def test_pipelines_that_want_more_than_a_prompt_are_refused():
    class Controlled:
        def __call__(self, prompt, image, mask_image, control_image, height, width, generator, **more): ...

    class Blind:
        def __call__(self, prompt, height, width, num_inference_steps, generator, output_type): ...

    for pipe in (Controlled(), Blind()):
        with pytest.raises(InputError, match=rf"--painter: a {type(pipe).__name__} does not paint holes"):
            DiffusersPainter(pipe)


@pytest.mark.parametrize("name", ["nobody/nothing", "/nowhere/at/all", "two words"])
def test_a_name_that_is_nothing_is_refused(name):
    with pytest.raises(InputError, match=rf"--painter {name}: neither a folder nor a hub id.*give"):
        find_index(name)


def test_a_folder_s_hash_is_its_index_and_its_weights_names_and_sizes(folders, sd_painter, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(folders["StableDiffusion"], folder)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    assert sd_painter.checkpoint_hash == folder_hash(folder)
    (folder / "notes.txt").write_text("no weights")
    hashes = [folder_hash(folder)]
    assert hashes == [sd_painter.checkpoint_hash]
    weights.write_bytes(weights.read_bytes() + b" ")
    hashes.append(folder_hash(folder))
    weights.rename(folder / "unet/other.safetensors")
    hashes.append(folder_hash(folder))
    hashes.append(folder_hash(rewrite(folder, _class_name="StableDiffusionPipeline")))
    assert len(set(hashes)) == 4


def test_a_hub_id_is_filed_under_its_commit(folders, sd_painter, tmp_path, monkeypatch):
    commit, home = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--owner--tiny"
    shutil.copytree(folders["StableDiffusion"], home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs/v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    painter = open_painter("owner/tiny", revision="v1")
    assert painter.checkpoint_hash == f"owner/tiny@{commit}"
    same = sd_painter.sample_holes(objects(1), HOLES[:1], [0])
    assert torch.equal(painter.sample_holes(objects(1), HOLES[:1], [0]), same)
    with pytest.raises(InputError, match="--painter owner/tiny"):
        open_painter("owner/tiny", revision="v2")


def test_the_pipeline_paints_with_it_to_the_byte_outside_the_hole(sd_painter):
    image = picture(70, 50)
    output = HOIPipeline(FakeMaskNet(), sd_painter)(image, num_images=2, seed=1)
    for result, hole in zip(output.images, output.hole_masks, strict=True):
        assert (np.asarray(result)[~hole] == np.asarray(image)[~hole]).all()
        assert (np.asarray(result)[hole] != np.asarray(image)[hole]).any()


@pytest.fixture
def generate(folders, tmp_path, monkeypatch):
    """Runs the verb with a MaskNet that is a plain function of its seeds, from a folder or from a checkpoint."""
    from hoi_lightning.tasks.masknet import MaskNet

    monkeypatch.setattr(MaskNet, "from_pretrained", lambda *_: FakeMaskNet())
    monkeypatch.setattr(MaskNet, "load", lambda *_: FakeMaskNet())
    picture().save(tmp_path / "cup.png")
    (tmp_path / "released").mkdir()
    (tmp_path / "released/model_index.json").write_text("{}")
    (tmp_path / "mask.ckpt").touch()

    def run(*words, masknet=("--weights", "{tmp}/released")):
        parser = argparse.ArgumentParser()
        verb.add_arguments(parser)
        places = ["--images", "{tmp}/cup.png", "--out", "{tmp}/out", "--num-images", "1", "--device", "cpu"]
        words = [word.format(tmp=tmp_path, sd=folders["StableDiffusion"]) for word in (*places, *masknet, *words)]
        verb.run(parser.parse_args(words))
        return json.loads((tmp_path / "out/cup_0.json").read_text()), (tmp_path / "out/cup_0.png").read_bytes()

    return run


def test_generate_paints_with_a_painter(generate, sd_painter):
    record, first = generate("--painter", "{sd}")
    assert record["fusionnet_sha256"] == sd_painter.checkpoint_hash
    assert record["masknet_sha256"] == FakeMaskNet.checkpoint_hash
    assert record["asked"]["prompt"] is None
    same, again = generate("--painter", "{sd}", masknet=("--masknet", "{tmp}/mask.ckpt"))
    assert (same, again) == (record, first)
    record, other = generate("--painter", "{sd}", "--prompt", "a glove")
    assert record["asked"]["prompt"] == "a glove"
    assert other != first


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--painter", "{sd}", "--masknet", "{tmp}/mask.ckpt", "--fusionnet", "{tmp}/mask.ckpt"), "leave out --fusion"),
        (("--prompt", "a glove"), "--prompt.*with --painter"),
        (("--painter", "{tmp}"), "no model_index.json"),
        (("--painter", "{sd}", "--masknet", "{tmp}/absent.ckpt"), "--masknet .*absent.ckpt: no such checkpoint"),
        (("--painter", "{sd}", "--masknet", "{tmp}/mask.ckpt", "--weights", "mini"), "--weights: .*--painter leave"),
    ],
)
def test_generate_says_what_is_wrong_with_the_painter_before_it_paints(generate, tmp_path, words, reason):
    with pytest.raises(InputError, match=reason):
        generate(*words)
    assert not (tmp_path / "out").exists()
