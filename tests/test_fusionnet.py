"""FusionNet's holes, windows, weights and guidance; InpaintBase."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from hoi_lightning.__main__ import main
from hoi_lightning.diffusion.repaint import RePaintSampler
from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import hole_mask
from hoi_lightning.networks.inpaint_unet import perturbed_attention
from hoi_lightning.networks.latent_windows import hand_corners, windows
from hoi_lightning.tasks import FusionNet, InpaintBase
from hoi_lightning.tasks.inpaint_base import random_strokes
from hoi_lightning.weights import shipped
from tests.test_cli import CONFIGS
from tests.tiny import save_sd_folder

SIZE = 64
SAMPLER = RePaintSampler(4, jump_length=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return str(save_sd_folder(tmp_path_factory.mktemp("sd") / "sd"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 8, size: int = SIZE) -> dict[str, Tensor | list[str]]:
    g = generator(1)
    layout = torch.rand(count, 5, generator=g) * 0.4 + torch.tensor([0.5, -0.2, -0.2, 0.6, 0.6])
    hand = hole_mask(layout, size, 0)
    obj = torch.rand(count, 3, size, size, generator=g) * 2 - 1
    return {"obj": obj, "hoi": torch.where(hand > 0, obj + 0.5, obj), "hand": hand, "layout": layout, "key": ["k"]}


def test_training_holes_come_in_the_asked_shares(folder: str) -> None:
    fusionnet, data = FusionNet(folder, image_size=SIZE, hand_hole=0.3, full_hole=0.25), batch(2000, 16)
    fusionnet.image_size = 16
    holes = fusionnet.training_holes(data, generator())
    full = (holes == 1).all(dim=(1, 2, 3)).float().mean()
    hand = (holes == data["hand"]).all(dim=(1, 2, 3)).float().mean()
    layout = (holes == fusionnet.hole_mask(data["layout"])).all(dim=(1, 2, 3)).float().mean()
    assert full == pytest.approx(0.25, abs=0.04)
    assert hand == pytest.approx(0.3, abs=0.04)
    assert layout == pytest.approx(0.45, abs=0.04)


def test_the_loss_by_timestep_averages_to_the_loss(folder: str) -> None:
    fusionnet, data = FusionNet(folder, image_size=SIZE, full_hole=1.0), batch(16)
    terms = fusionnet.loss(data, generator())
    means, counts = fusionnet.buckets.compute(), fusionnet.buckets.counts
    assert all(name.startswith("loss_hole/t") for name in means)
    weighted = torch.stack(list(means.values())) * counts[counts > 0]
    torch.testing.assert_close(weighted.sum() / counts.sum(), terms["loss_hole"].detach())
    assert counts.sum() == 16


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_clips_the_weight_of_x0_at_gamma(folder: str, prediction_type: str) -> None:
    """Every prediction type's squared error is a multiple of x0's: SNR, SNR + 1 and 1 times."""
    fusionnet = FusionNet(folder, image_size=SIZE, min_snr_gamma=5.0)
    fusionnet.prediction_type = prediction_type
    t = torch.arange(0, 1000, 37)
    snr = fusionnet.schedule.snr(t)
    share = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[prediction_type]
    assert torch.allclose(fusionnet._snr_weight(t) * share, snr.clamp(max=5.0), rtol=1e-5)


def test_windows_are_slices() -> None:
    x = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    cut = windows(x, torch.tensor([[1, 2], [4, 0]]), 4)
    assert torch.equal(cut[0], x[0, :, 2:6, 1:5])
    assert torch.equal(cut[1], x[1, :, 0:4, 4:8])


def test_training_windows_lie_on_the_hand() -> None:
    data, cells = batch(400), SIZE // 4
    corners = hand_corners(data["layout"], cells, 4, generator())
    assert corners.min() >= 0
    assert corners.max() <= cells - 4
    centre = (data["layout"][:, 1:3] + 1) / 2 * cells
    on_palm = ((centre >= corners) & (centre <= corners + 4)).all(dim=1).float().mean()
    assert on_palm > 0.6


class Recorder:
    """A U-Net that answers with its context and remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.config = SimpleNamespace(cross_attention_dim=16)

    def __call__(self, x: Tensor, t: Tensor, prompt: Tensor) -> SimpleNamespace:
        self.seen.append(x)
        return SimpleNamespace(sample=x[:, 5:])


def test_dropped_contexts_are_empty(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fusionnet, recorder = FusionNet(folder, image_size=SIZE, context_dropout=0.5), Recorder()
    monkeypatch.setattr(fusionnet, "_modules", fusionnet._modules | {"unet": recorder})
    fusionnet.loss(batch(200), generator())
    empty = (recorder.seen[0][:, 5:] == 0).all(dim=(1, 2, 3)).float().mean()
    assert empty == pytest.approx(0.5, abs=0.1)


def test_guidance_leads_away_from_the_blind_answer(folder: str) -> None:
    fusionnet, data = FusionNet(folder, image_size=SIZE, context_dropout=0.1).eval(), batch(2)
    holes = fusionnet.hole_mask(data["layout"])

    def paint(scale: float) -> Tensor:
        return fusionnet.sample_holes(data["obj"], holes, [1, 2], RePaintSampler(4, "off", guidance_scale=scale))

    blind, plain, twice = paint(0.0), paint(1.0), paint(2.0)
    assert not torch.equal(plain, twice)
    masked = fusionnet.sample_holes(torch.zeros_like(data["obj"]), holes, [1, 2], RePaintSampler(4, "off"))
    assert blind.shape == masked.shape
    assert not torch.equal(blind, plain)
    never_blind = FusionNet(folder, image_size=SIZE).eval()
    with pytest.raises(InputError, match=r"guidance_scale 2 .*painter-guidance.*context_dropout 0"):
        never_blind.sample_holes(data["obj"], holes, [1, 2], RePaintSampler(4, guidance_scale=2))


def test_attention_guidance_leads_away_from_the_inattentive_answer(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step is linear in the scale; afterwards the network attends as before."""
    fusionnet, data = FusionNet(folder, image_size=SIZE).eval(), batch(2)
    hole, context = fusionnet._to_latent(fusionnet.hole_mask(data["layout"])), fusionnet.latents.encode(data["obj"])
    calls = []
    predict = fusionnet._predict
    monkeypatch.setattr(fusionnet, "_predict", lambda *args: calls.append(1) or predict(*args))

    def paint(scale: float) -> Tensor:
        sampler = RePaintSampler(1, "off", eta=0.0, attention_guidance=scale)
        calls.clear()
        z0 = fusionnet._sample_latents(context, context, hole, [1, 2], sampler, None)
        assert len(calls) == sampler.network_calls
        return z0

    before = fusionnet.unet.attn_processors
    plain, once, twice = paint(0.0), paint(1.0), paint(2.0)
    assert not torch.allclose(plain, once, atol=1e-4)
    assert torch.allclose(twice - plain, 2 * (once - plain), atol=1e-3)
    assert fusionnet.unet.attn_processors == before
    assert torch.equal(paint(0.0), plain)


def test_only_the_coarsest_self_attention_is_perturbed(folder: str) -> None:
    unet = FusionNet(folder, image_size=SIZE).unet
    own = unet.attn_processors
    with perturbed_attention(unet):
        changed = {name for name, processor in unet.attn_processors.items() if processor is not own[name]}
    assert changed
    assert all(name.endswith("attn1.processor") for name in changed)
    downs = [k for k, block in enumerate(unet.down_blocks) if hasattr(block, "attentions")]
    ups = [k for k, block in enumerate(unet.up_blocks) if hasattr(block, "attentions")]
    places = {".".join(name.split(".")[:2]) if not name.startswith("mid") else "mid_block" for name in changed}
    assert places == {f"down_blocks.{downs[-1]}", "mid_block", f"up_blocks.{ups[0]}"}


@pytest.mark.parametrize("neighbourhood", [False, True])
def test_nothing_outside_the_hole_changes_and_batches_do_not_matter(folder: str, neighbourhood: bool) -> None:
    size = 128
    fusionnet = FusionNet(folder, image_size=size, neighbourhood=neighbourhood).eval()
    obj = torch.rand(3, 3, size, size, generator=generator()) * 2 - 1
    holes = torch.zeros(3, 1, size, size)
    holes[0, :, 8:20, 8:20] = 1  # a window of 16 cells
    holes[1, :, 4:120, 40:50] = 1  # all of them
    holes[2, :, 100:128, 100:128] = 1  # at the border
    together = fusionnet.sample_holes(obj, holes, [5, 6, 7], SAMPLER)
    alone = torch.cat([fusionnet.sample_holes(obj[k : k + 1], holes[k : k + 1], [5 + k], SAMPLER) for k in range(3)])
    assert (together - alone).abs().max() < 2 / 255
    assert torch.equal(together * (1 - holes), obj * (1 - holes))
    assert all((together - obj)[k].abs().max() > 0.05 for k in range(3))


def test_an_empty_hole_leaves_the_picture(folder: str) -> None:
    fusionnet = FusionNet(folder, image_size=SIZE, neighbourhood=True).eval()
    obj = batch(1)["obj"]
    assert torch.equal(fusionnet.sample_holes(obj, torch.zeros(1, 1, SIZE, SIZE), [0], SAMPLER), obj)


def test_strokes_cover_a_part_and_belong_to_their_generator() -> None:
    masks = random_strokes(200, 32, generator())
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    share = masks.mean(dim=(1, 2, 3))
    assert share.min() > 0.02
    assert share.max() < 0.9
    assert torch.equal(masks, random_strokes(200, 32, generator()))
    fine = random_strokes(200, 64, generator()).mean(dim=(1, 2, 3))  # the same strokes, finer pixels
    assert (fine - share).abs().max() < 0.05


def test_a_base_never_sees_a_hand(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, data = InpaintBase(folder, unet_channels=(16, 16, 32), image_size=SIZE, object_context="masked"), batch()
    first = base.loss(data, generator())["loss"]
    assert torch.equal(first, base.loss(data | {"hoi": data["hoi"] * 0}, generator())["loss"])
    base.crop = 4
    windowed = base.train().loss(data, generator())["loss"]
    assert not torch.equal(first, windowed)


@pytest.mark.parametrize("neighbourhood", [False, True])
def test_the_denoising_strip_ends_with_the_sample(folder: str, neighbourhood: bool) -> None:
    settings: dict[str, Any] = {"image_size": 192, "sampler": "fast", "neighbourhood": neighbourhood}
    fusionnet, data = FusionNet(folder, **settings).eval(), batch(2, 192)
    strip = fusionnet.figures(data, seed=5)["denoising"]
    assert strip.dtype == np.uint8
    assert strip.shape[0] > 2 * 128
    assert strip.shape[1] > 8 * 128
    estimates: list[Tensor] = []
    obj, hole = data["obj"], fusionnet.hole_mask(data["layout"])
    z0 = fusionnet._paint_latents(obj, hole, [1, 2], fusionnet.sampler, estimates)
    assert torch.equal(z0, fusionnet._paint_latents(obj, hole, [1, 2], fusionnet.sampler))
    assert len(estimates) == 10
    assert torch.allclose(estimates[-1], z0, atol=1e-5)
    assert not torch.allclose(estimates[0], z0, atol=1e-2)


def test_lora_trains_and_keeps_adapters_only(folder: str, tmp_path: Path) -> None:
    """The checkpoint opens on the same pretrained folder, and a released folder holds the merged weights."""
    torch.manual_seed(0)
    fusionnet = FusionNet(folder, image_size=SIZE, lora_rank=4)
    learnt = {name: p for name, p in fusionnet.named_parameters() if p.requires_grad}
    assert learnt
    assert all("lora" in name for name in learnt)
    with torch.no_grad():
        for p in learnt.values():
            p.normal_(std=0.1)
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(fusionnet)
    fusionnet.trainer = trainer
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert set(torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]) == set(learnt)
    opened = FusionNet.load(tmp_path / "last.ckpt")
    moved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    moved["hyper_parameters"]["pretrained"] = str(tmp_path / "gone")
    torch.save(moved, tmp_path / "moved.ckpt")
    with pytest.raises(InputError, match=r"moved.ckpt: was fitted on .*gone, which is gone; put that folder back"):
        FusionNet.load(tmp_path / "moved.ckpt")
    opened.save_pretrained(tmp_path / "released", torch.float32)
    released, data = FusionNet.from_pretrained(tmp_path / "released"), batch(1)
    x = torch.randn(1, 9, SIZE // 8, SIZE // 8, generator=generator())
    t = torch.tensor([500])
    plain = FusionNet(folder, image_size=SIZE).eval()
    answers = [one._predict(x[:, :4], t, x[:, 4:5], x[:, 5:]) for one in (fusionnet.eval(), opened, released, plain)]
    assert torch.equal(answers[0], answers[1])
    assert torch.allclose(answers[0], answers[2], atol=1e-4)
    assert not torch.allclose(answers[0], answers[3], atol=1e-2)
    assert (tmp_path / "released" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert released.hole_mask(data["layout"]).shape == (1, 1, SIZE, SIZE)


@pytest.mark.parametrize(
    ("part", "lora_rank"), [("unet", 4), ("vae", 4), ("vae", None), ("scheduler", None), ("unet", None)]
)
def test_a_checkpoint_on_other_frozen_parts_is_refused(
    folder: str, tmp_path: Path, part: str, lora_rank: int | None
) -> None:
    """What is trained itself may differ: the checkpoint holds it."""
    shutil.copytree(folder, tmp_path / "sd")
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    fusionnet = FusionNet(str(tmp_path / "sd"), image_size=SIZE, lora_rank=lora_rank)
    trainer.strategy.connect(fusionnet)
    fusionnet.trainer = trainer
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    FusionNet.load(tmp_path / "last.ckpt")
    if part == "scheduler":
        config = tmp_path / "sd/scheduler/scheduler_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_end": 0.03}))
    else:
        weights = tmp_path / "sd" / part / "diffusion_pytorch_model.safetensors"
        save_file({name: value + 1e-3 for name, value in load_file(weights).items()}, weights)
    if part == "unet" and lora_rank is None:
        FusionNet.load(tmp_path / "last.ckpt")
        return
    with pytest.raises(InputError, match=rf"sd: its {part} is not the one that the checkpoint was fitted on; "):
        FusionNet.load(tmp_path / "last.ckpt")


def test_shares_of_holes_add_up_to_one_at_most(folder: str) -> None:
    with pytest.raises(InputError, match=r"--model.hand_hole 0.8 and --model.full_hole 0.3: .*at most 1"):
        FusionNet(folder, image_size=SIZE, hand_hole=0.8, full_hole=0.3)


@pytest.mark.parametrize("channels", [(), (15, 32)])
def test_widths_of_a_small_unet_are_checked(folder: str, channels: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"--model.unet_channels \[.*: give one or more multiples of 8"):
        FusionNet(folder, image_size=SIZE, unet_channels=channels)


def test_a_small_unet_takes_the_prompt_of_its_folder(folder: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "sd")
    save_file({"prompt_embeds": torch.ones(1, 3, 24)}, tmp_path / "sd/prompt_embeds.safetensors")
    for where, width in ((tmp_path / "sd", 24), (folder, 32)):
        fusionnet = FusionNet(str(where), image_size=SIZE, unet_channels=(8, 16))
        assert fusionnet.unet.config.cross_attention_dim == fusionnet.prompt_embeds.shape[-1] == width


def test_a_picture_has_one_seed(folder: str) -> None:
    fusionnet, data = FusionNet(folder, image_size=SIZE).eval(), batch(2)
    with pytest.raises(InputError, match="seeds: 1 for 2 pictures"):
        fusionnet.sample(data["obj"], data["layout"], [1])


@pytest.mark.parametrize("other", [{"unet_channels": (8, 16)}, {"widen_conv_in": True}])
def test_adapters_on_a_network_that_is_itself_new_are_refused(folder: str, other: dict[str, Any]) -> None:
    """Their checkpoint would hold the adapters without the random weights they belong to."""
    with pytest.raises(InputError, match=rf"--model.lora_rank 4: .*--model.{next(iter(other))}"):
        FusionNet(folder, image_size=SIZE, lora_rank=4, **other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hand_hole", 3), ("full_hole", -0.1), ("context_dropout", -1), ("outside_weight", -1), ("hole_dilation", -3),
        ("timestep_power", -1), ("min_snr_gamma", -2), ("crop", 0), ("learning_rate", -1), ("weight_decay", -1),
        ("lora_rank", 0), ("min_snr_gamma", 0),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_one_line(folder: str, name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^--model.{name} {value}: give .+"):
        FusionNet(folder, image_size=SIZE, **{name: value})


def test_a_compiled_fit_opens_uncompiled(folder: str, tmp_path: Path) -> None:
    fitted = FusionNet(folder, image_size=SIZE, compile_unet=True, gradient_checkpointing=True)
    assert fitted.unet._compiled_call_impl is not None
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(fitted)
    fitted.trainer = trainer
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    opened = FusionNet.load(tmp_path / "last.ckpt")
    assert opened.unet._compiled_call_impl is None
    assert not opened.unet.is_gradient_checkpointing


def test_hole_recall_is_the_median_of_all_pictures(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are cut into batches."""
    fusionnet = FusionNet(folder, image_size=SIZE).eval()
    logged: dict[str, float] = {}
    monkeypatch.setattr(fusionnet, "log", lambda name, value, **_: logged.update({name: float(value)}))
    monkeypatch.setattr(fusionnet, "log_dict", lambda *_, **__: None)
    data, found = batch(5), {}
    hole = fusionnet.hole_mask(data["layout"])
    data["hand"] = (torch.rand(hole.shape, generator=generator()) < 0.5).float()
    for size in (1, 2, 5):
        fusionnet.reset_figures()
        for number, start in enumerate(range(0, 5, size)):
            part = {name: value[start : start + size] for name, value in data.items()}
            fusionnet.evaluate_batch(part, number, "val")
        fusionnet.log_figures("val")
        found[size] = logged["val/hole_recall"]
    recall = (hole * data["hand"]).sum(dim=(1, 2, 3)) / data["hand"].sum(dim=(1, 2, 3))
    assert recall.min() < recall.max()
    assert list(found.values()) == pytest.approx([sorted(recall.tolist())[2]] * 3)


def test_a_widened_text_to_image_unet_starts_as_itself(folder: str, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    shutil.copytree(folder, tmp_path / "sd")
    inpaint = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    plain = UNet2DConditionModel.from_config(dict(inpaint.config) | {"in_channels": 4})
    plain.save_pretrained(tmp_path / "sd" / "unet")
    with pytest.raises(InputError, match="widen_conv_in"):
        FusionNet(str(tmp_path / "sd"), image_size=SIZE)
    fusionnet = FusionNet(str(tmp_path / "sd"), image_size=SIZE, widen_conv_in=True).eval()
    x, t = torch.randn(1, 9, 8, 8, generator=generator()), torch.tensor([300])
    theirs = plain.eval()(x[:, :4], t, fusionnet.prompt_embeds).sample
    assert torch.allclose(fusionnet._predict(x[:, :4], t, x[:, 4:5], x[:, 5:]), theirs, atol=1e-5)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_weights_cut_short_are_one_line(part: str, folder: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "sd")
    weights = tmp_path / "sd" / part / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(InputError, match=f"its {part}"):
        FusionNet(str(tmp_path / "sd"), image_size=SIZE)


def test_eight_bit_moments_need_bitsandbytes(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        FusionNet(folder, image_size=SIZE, optimizer="adamw8bit").configure_optimizers()


def test_a_hub_id_s_revision_reaches_every_part(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two revisions of one id: a folder as `export` writes it, with a small autoencoder; one of Stable Diffusion's."""
    home, folders = tmp_path / "models--owner--hands", {}
    (home / "refs").mkdir(parents=True)
    for digit, branch, source in (("0", "main", str(shipped("mini") / "fusionnet")), ("1", "v1", folder)):
        shutil.copytree(source, home / "snapshots" / (digit * 40))
        (home / "refs" / branch).write_text(digit * 40)
        folders[branch] = source
    save_file({"prompt_embeds": torch.ones(1, 2, 16)}, home / "snapshots" / ("1" * 40) / "prompt_embeds.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    exported, same = FusionNet("owner/hands", image_size=SIZE), FusionNet(folders["main"], image_size=SIZE)
    assert exported.latents.fingerprint() == same.latents.fingerprint()
    assert exported.state_dict().keys() == same.state_dict().keys()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in exported.state_dict().items())
    first, plain = FusionNet("owner/hands", revision="v1", image_size=SIZE), FusionNet(folder, image_size=SIZE)
    assert torch.equal(first.prompt_embeds, torch.ones(1, 2, 16))
    assert first.latents.fingerprint() == plain.latents.fingerprint() != same.latents.fingerprint()
    assert all(torch.equal(value, first.unet.state_dict()[name]) for name, value in plain.unet.state_dict().items())
    assert (first.schedule.alpha_bar == plain.schedule.alpha_bar).all()


def test_cached_latents_are_no_base_s_data(
    folder: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "-c", str(CONFIGS / "mini/base.yaml"), "--data.shards", str(shards), "--data.latents=true"]
    words += ["--model.pretrained", folder, "--model.image_size=64"]
    assert main([*words, "--trainer.default_root_dir", str(tmp_path)]) == 2
    assert "--data.latents: InpaintBase trains on pictures" in capsys.readouterr().err
