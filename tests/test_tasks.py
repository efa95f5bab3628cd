"""MaskNet, FusionNet and the mini autoencoder: laws of loss and sample."""

from pathlib import Path

import pytest
import torch

from hoi_lightning.diffusion.repaint import PRESETS, RePaintSampler
from hoi_lightning.errors import InputError
from hoi_lightning.guidance import Guidance, fix
from hoi_lightning.hand_proxy import Layout, hole_mask
from hoi_lightning.holes import feather
from hoi_lightning.networks.autoencoder import load_vae
from hoi_lightning.networks.inpaint_unet import load_schedule, load_unet
from hoi_lightning.tasks import Autoencoder, FusionNet, MaskNet
from tests.tiny import batch_of_hands

SMALL = {
    "channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "heads_dim": 8,
    "norm_groups": 8,
    "head_layers": 1,
}


@pytest.fixture(scope="module")
def masknet() -> MaskNet:
    torch.manual_seed(0)
    return MaskNet(**SMALL, image_size=32, sample_steps=4).eval()


@pytest.fixture(scope="module")
def fusionnet(sd_folder: Path) -> FusionNet:
    return FusionNet(str(sd_folder), image_size=64).eval()


def test_an_energy_sees_the_fixed_numbers_as_they_are(masknet: MaskNet) -> None:
    """Else it would move what is put back, instead of what is free."""
    seen: list[torch.Tensor] = []

    def energy(layouts: torch.Tensor) -> torch.Tensor:
        seen.append(layouts.detach())
        return (layouts[:, 1] - 9).square() + (layouts[:, 3] - 9).square()

    masknet.sample(batch_of_hands(1)["obj"], [1, 2], guidance=Guidance(fix(position=(0.25, -0.5)), (energy,)))
    assert len(seen) > 4
    for layouts in seen:
        torch.testing.assert_close(layouts[:, 1:3], torch.tensor([[0.25, -0.5]] * 2))
    assert len({round(float(layouts[0, 3]), 4) for layouts in seen}) > 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_draws", 0), ("num_train_timesteps", 0), ("image_dropout", 1.5), ("lambda_para", -5), ("mask_scale", -1),
        ("metric_draws", 1), ("learning_rate", -1), ("warmup_steps", -1), ("heads_dim", 0), ("stem_stride", 0),
        ("norm_groups", 0), ("layers_per_block", 0), ("head_layers", 0), ("image_size", -64),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_one_line(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^--model.{name} {value}: give .+"):
        MaskNet(**{**SMALL, "image_size": 32, name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_schedule": "foo"}, {"prediction_type": "eps"}, {"mask_loss": "l3"}, {"mask_weight": "snr"},
        {"image_features": "twice"},
    ],
)  # fmt: skip
def test_words_that_are_no_choice_are_one_line(wrong: dict[str, str]) -> None:
    """`config.json` of a released folder may hold them."""
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=rf"^--model.{name} '{value}': give one of "):
        MaskNet(**SMALL, image_size=32, **wrong)


def test_a_network_without_levels_or_loss_is_refused() -> None:
    with pytest.raises(InputError, match=r"--model.channels \[\]: give"):
        MaskNet(channels=(), down_block_types=(), image_size=32)
    with pytest.raises(InputError, match=r"--model.mask_scale 0 and --model.lambda_para 0: "):
        MaskNet(**SMALL, image_size=32, mask_scale=0, lambda_para=0)


def test_masknet_samples_are_layouts_and_belong_to_their_seed(masknet: MaskNet) -> None:
    obj = batch_of_hands()["obj"]
    together = masknet.sample(obj, [3, 4, 5, 6])
    alone = torch.cat([masknet.sample(obj[i : i + 1], [3 + i]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[:, 3:].norm(dim=1), torch.ones(4))
    assert (together[:, 0] > 0).all()
    assert not torch.allclose(together, masknet.sample(obj, [7, 8, 9, 10]))


def test_a_perfect_masknet_has_no_loss(masknet: MaskNet, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of_hands()
    monkeypatch.setattr(masknet, "_predict", lambda picture, x_t, t: batch["layout"])
    terms = masknet.loss(batch, torch.Generator().manual_seed(0))
    assert terms["loss_para"] == 0
    assert terms["loss_mask"] < 1e-8


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_both_terms_reach_the_network(prediction_type: str) -> None:
    task = MaskNet(**SMALL, image_size=32, prediction_type=prediction_type)
    for name in ("loss_mask", "loss_para"):
        task.zero_grad()
        task.loss(batch_of_hands(), torch.Generator().manual_seed(0))[name].backward()
        assert task.net.encoder.conv_in.weight.grad.abs().sum() > 0


def test_nothing_changes_outside_the_hole(fusionnet: FusionNet) -> None:
    batch = batch_of_hands(2)
    for composition in ("off", "replace", "repaint"):
        sampler = RePaintSampler(3, composition, jump_length=1)
        painted = fusionnet.sample(batch["obj"], batch["layout"], [0, 1], sampler)
        hole = fusionnet.hole_mask(batch["layout"])
        assert torch.equal(painted * (1 - hole), batch["obj"] * (1 - hole))
        assert ((painted - batch["obj"]).abs() * hole).max() > 0.05


def test_a_picture_belongs_to_its_seed_not_to_its_batch(fusionnet: FusionNet) -> None:
    batch, sampler = batch_of_hands(4), RePaintSampler(4, jump_length=2)
    together = fusionnet.sample(batch["obj"], batch["layout"], [5, 6, 7, 8], sampler)
    alone = fusionnet.sample(batch["obj"][2:3], batch["layout"][2:3], [7], sampler)
    assert (together[2:3] - alone).abs().max() * 127.5 <= 2


def test_feather_lies_inside_the_hole() -> None:
    disc = hole_mask(Layout(0.9, 0, 0, 0, 1).to_tensor()[None], 256)
    weights = feather(disc)
    assert (weights[disc == 0] == 0).all()
    assert weights.max() == 1
    assert ((weights > 0) & (weights < 1)).any()


@pytest.mark.parametrize("width", [1, 2, 5, 10, 40])
def test_a_narrow_hole_is_painted_in_its_middle(width: int) -> None:
    strip = torch.zeros(1, 1, 256, 256)
    strip[..., 50 : 50 + width, 40:200] = 1
    weights = feather(strip)
    assert (weights[strip == 0] == 0).all()
    assert (weights[strip == 1] > 0).all()
    assert weights[..., 50 + width // 2, 120] == 1
    assert torch.equal(weights, feather(strip.transpose(2, 3)).transpose(2, 3))


def test_the_feather_of_a_wide_hole_is_as_wide_as_asked() -> None:
    half = torch.zeros(1, 1, 200, 200)
    half[..., 100:] = 1
    rows = feather(half, 0.02)[0, 0, 100]
    torch.testing.assert_close(rows[98:106], torch.tensor([0, 0, 0.15625, 0.5, 0.84375, 1, 1, 1]))


@pytest.mark.parametrize("slope", [1 / 7, 1 / 5, 1 / 3, 0.7])
def test_the_feather_of_a_slanted_hole_has_no_teeth(slope: float) -> None:
    """Its level lines are straight, where the hole's own outline goes in steps of a pixel, to a quarter of those."""
    rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    weights = feather((columns - 128 > slope * (rows - 128)).float()[None, None])[0, 0]
    for level in (0.2, 0.5, 0.8):
        lines = []
        for row in range(60, 200):
            k = int((weights[row] >= level).nonzero()[0])
            before, after = weights[row, k - 1], weights[row, k]
            lines.append(float(k - 1 + (level - before) / (after - before)) - slope * row)
        assert max(lines) - min(lines) < 0.25


def test_frozen_parts_are_in_no_state_dict(fusionnet: FusionNet) -> None:
    assert {name.split(".")[0] for name in fusionnet.state_dict()} == {"unet", "prompt_embeds"}
    assert not any(p.requires_grad for p in fusionnet.latents.vae.parameters())
    assert all(p.requires_grad for p in fusionnet.parameters())


def test_the_checkpoint_keeps_its_own_schedule(sd_folder: Path) -> None:
    from diffusers import DDIMScheduler

    schedule, prediction_type = load_schedule(str(sd_folder))
    expected = DDIMScheduler.from_pretrained(sd_folder, subfolder="scheduler").alphas_cumprod
    torch.testing.assert_close(schedule.alpha_bar.float(), expected)
    assert prediction_type == "epsilon"


def test_a_four_channel_unet_is_refused(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    with pytest.raises(InputError, match="4 input channels, an inpainting U-Net has 9"):
        load_unet(str(tmp_path))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--model.pretrained .*nowhere: no such folder"):
        FusionNet(str(tmp_path / "nowhere"))


def test_autoencoder_exports_what_fusionnet_opens(tmp_path: Path) -> None:
    task = Autoencoder(channels=8, crop=32)
    terms = task.loss(batch_of_hands(), torch.Generator().manual_seed(0))
    terms["loss"].backward()
    task.export(tmp_path)
    pictures = batch_of_hands()["hoi"]
    latents = load_vae(str(tmp_path))
    code = latents.encode(pictures)
    assert code.shape == (4, 4, 16, 16)
    torch.testing.assert_close(
        latents.decode(code), task.vae.decode(task.vae.encode(pictures).latents).sample.clamp(-1, 1)
    )
    fusionnet = FusionNet(str(tmp_path), unet_channels=(16, 16, 32), image_size=64, crop=12)
    fusionnet.loss(batch_of_hands(), torch.Generator().manual_seed(0))["loss"].backward()
    assert fusionnet.schedule.alpha_bar[-1] == 0
    assert all(p.grad is not None for name, p in fusionnet.unet.named_parameters() if "attn2.to_q" not in name)


def test_presets_cost_what_they_say() -> None:
    calls = {name: preset.network_calls for name, preset in PRESETS.items()}
    assert calls == {"paper": 2410, "balanced": 95, "fast": 20}
