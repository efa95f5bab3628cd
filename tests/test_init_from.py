"""Initialisation from diffusers U-Nets: every key accounted for, and the same features where everything fits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

from hoi_lightning.errors import InputError
from hoi_lightning.networks.init_from import init_from
from hoi_lightning.networks.layout_denoiser import LayoutDenoiser
from hoi_lightning.networks.unet_encoder import UNetEncoder
from hoi_lightning.tasks import MaskNet


def plain(folder: Path, **more: Any) -> UNet2DModel:
    torch.manual_seed(0)
    settings = {
        "in_channels": 3, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
        "attention_head_dim": 16, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    unet = UNet2DModel(**(settings | more))
    for parameter in unet.parameters():
        parameter.data += 0.01  # no parameter starts alike in two networks
    unet.save_pretrained(folder)
    return unet.eval()


def encoder(in_channels: int, **more: Any) -> UNetEncoder:
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "channels": (16, 32), "layers_per_block": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "heads_dim": 16, "norm_groups": 8, "stem_stride": 1,
    }  # fmt: skip
    return UNetEncoder(in_channels, **(settings | more)).eval()


def bottleneck(unet: Any, picture: torch.Tensor, t: torch.Tensor, **more: Any) -> torch.Tensor:
    """What the source's own forward pass has after its middle block."""
    seen = []
    handle = unet.mid_block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    unet(picture, t, **more)
    handle.remove()
    return seen[0]


def test_a_fitting_encoder_computes_what_the_source_computes(tmp_path: Path) -> None:
    source, ours = plain(tmp_path), encoder(7)
    report = init_from(ours, str(tmp_path))
    assert not report.left
    assert not report.differs
    assert list(report.resized) == ["conv_in.weight"]
    picture, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 700])
    extra = torch.randn(2, 4, 16, 16)  # weights of the further channels are zero
    with torch.no_grad():
        found = ours(torch.cat([picture, extra], dim=1), ours.embed(t))
        torch.testing.assert_close(found, bottleneck(source, picture, t), atol=1e-5, rtol=1e-4)


def test_a_stable_diffusion_unet_gives_all_but_its_text(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = UNet2DConditionModel(
        in_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=2,
        cross_attention_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), use_linear_projection=True,
    ).eval()  # fmt: skip
    source.save_pretrained(tmp_path / "unet")
    ours = encoder(4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"))
    report = init_from(ours, str(tmp_path))
    assert not report.left
    assert not report.differs
    assert all("proj_" in name for name in report.resized), "linear layers become 1x1 convolutions"
    assert report.resized
    assert any("attn2" in name for name in report.unused)
    for name, module in source.named_modules():
        if name.endswith("attn2"):
            torch.nn.init.zeros_(module.to_out[0].weight)
            torch.nn.init.zeros_(module.to_out[0].bias)
    picture, t = torch.randn(1, 4, 16, 16), torch.tensor([30])
    with torch.no_grad():
        expected = bottleneck(source, picture, t, encoder_hidden_states=torch.zeros(1, 1, 8))
        torch.testing.assert_close(ours(picture, ours.embed(t)), expected, atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_left_and_told(tmp_path: Path) -> None:
    plain(tmp_path, block_out_channels=(16, 64), norm_num_groups=16)
    ours = encoder(7)
    before = {name: p.clone() for name, p in ours.named_parameters()}
    report = init_from(ours, str(tmp_path))
    names = {name for name, _ in ours.named_parameters()}
    assert names == {*report.taken, *report.resized, *report.left}
    assert report.taken
    assert report.left
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in report.left), name
    assert "num_groups 16 there, 8 here" in report.differs.values()
    text = str(report)
    assert all(f" {name} " in text for name in report.taken | report.left)
    assert f"{len(report.taken)} parameters taken, 1 resized, {len(report.left)} left" in text


def test_a_source_that_is_no_unet_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"init_from .*absent.*hf download") as caught:
        init_from(encoder(7), str(tmp_path / "absent"))
    assert "\n" not in str(caught.value)
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match="AutoencoderKL"):
        init_from(encoder(7), str(tmp_path / "vae"))
    (tmp_path / "words").mkdir()
    (tmp_path / "words/config.json").write_text(json.dumps({"model_type": "none"}))
    with pytest.raises(InputError, match="no diffusers U-Net there"):
        init_from(encoder(7), str(tmp_path / "words"))
    plain(tmp_path / "other", block_out_channels=(24, 48), attention_head_dim=24)
    with pytest.raises(InputError, match="no parameter fits"):
        init_from(encoder(7), str(tmp_path / "other"))


@pytest.mark.parametrize("image_features", ["every_step", "once"])
def test_how_often_the_encoder_runs(image_features: str) -> None:
    net = LayoutDenoiser((8, 16), 1, ("DownBlock2D", "AttnDownBlock2D"), 8, 8, 1, 1, image_features)
    calls = []
    net.encoder.register_forward_hook(lambda *_: calls.append(1))
    seen = net.see(torch.randn(2, 3, 16, 16))
    splats = [torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16)]
    outputs = [net(seen, splat, torch.zeros(2, 5), torch.tensor([3, 3])) for splat in splats]
    assert len(calls) == (2 if image_features == "every_step" else 1)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4, "the splat reaches the answer in both forms"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"down_block_types": ("DownBlock2D",)}, "1 for 2 --model.channels"),
        ({"norm_groups": 3}, "no multiple of --model.norm_groups 3"),
        ({"heads_dim": 12}, "no multiple of --model.heads_dim 12"),
    ],
)
def test_widths_that_do_not_fit_are_named(wrong: dict, reason: str) -> None:
    settings: dict[str, Any] = {
        "channels": (8, 16), "layers_per_block": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "heads_dim": 8, "norm_groups": 8, "head_layers": 1, "stem_stride": 1, "image_features": "once",
    }  # fmt: skip
    with pytest.raises(InputError, match=reason):
        LayoutDenoiser(**(settings | wrong))


def test_a_released_masknet_is_taken_whole(tmp_path: Path) -> None:
    small: dict[str, Any] = {
        "channels": (8, 16), "layers_per_block": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "heads_dim": 8, "norm_groups": 8, "head_layers": 1, "image_size": 32,
    }  # fmt: skip
    source = MaskNet(**small)
    source.save_pretrained(tmp_path / "masknet", torch.float32)
    for place in (tmp_path, tmp_path / "masknet"):
        task = MaskNet(**small)
        report = task._initialise(str(place))
        assert not report.left
        assert not report.resized
        assert not report.unused
        assert not report.differs
        assert all(torch.equal(a, b) for a, b in zip(source.net.parameters(), task.net.parameters(), strict=True))
    deeper = MaskNet(**(small | {"head_layers": 2}))._initialise(str(tmp_path))
    assert deeper.taken
    assert all("head" in name or "layers" in name for name in deeper.left)
    other = {"prediction_type": "epsilon", "num_train_timesteps": 100}
    assert MaskNet(**small, **other)._initialise(str(tmp_path)).differs == {
        "prediction_type": "sample there, epsilon here",
        "num_train_timesteps": "1000 there, 100 here",
    }
    (tmp_path / "masknet/model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"model.safetensors does not open"):
        MaskNet(**small)._initialise(str(tmp_path))
