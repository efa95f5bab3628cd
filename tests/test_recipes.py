"""What the recipes' weights, gradients, moments and averages take on a GPU, by arithmetic."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel

from hoi_lightning.tasks import MaskNet

CONFIGS = Path(__file__).parent.parent / "configs"
GIB = 2**30
# https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-inpainting: unet/config.json
SD15_INPAINTING = {
    "sample_size": 64,
    "in_channels": 9,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}


def static_gib(*overlays: str, **more: object) -> float:
    """fp32 weights, gradients, AdamW's two moments and EMA of what is trained, and a bf16 copy of all weights."""
    arguments = yaml.safe_load((CONFIGS / "fusionnet.yaml").read_text())["model"]["init_args"]
    for name in overlays:
        overlay = yaml.safe_load((CONFIGS / f"overlays/{name}.yaml").read_text())
        arguments |= overlay.get("model", {}).get("init_args", {})
    arguments |= more
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_INPAINTING)
        if arguments.get("lora_rank"):
            from hoi_lightning.networks.inpaint_unet import add_lora

            add_lora(unet, arguments["lora_rank"])
    everything = sum(p.numel() for p in unet.parameters())
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    moments = 2 * (1 if arguments.get("optimizer") == "adamw8bit" else 4)
    return (4 * everything + 2 * everything + trained * (4 + moments + 4)) / GIB


def test_the_unet_is_stable_diffusion_s() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_INPAINTING)
    assert sum(p.numel() for p in unet.parameters()) == 859_535_364


def test_a_4090_holds_its_recipe() -> None:
    assert static_gib("rtx4090") < 24 - 6  # the rest is for activations, recomputed, and the autoencoder
    assert static_gib("rtx4090", optimizer="adamw8bit") < 24 - 11


def test_adapters_take_a_third() -> None:
    assert static_gib("lora") < static_gib() / 3


@pytest.mark.parametrize(
    ("overlay", "told"),
    [("rtx4090", r"([\d.]+) GiB before"), ("ddp", r"([\d.]+) GiB before"), ("lora", r"GPU ([\d.]+) GiB")],
)
def test_the_headers_tell_the_sum(overlay: str, told: str) -> None:
    match = re.search(told, (CONFIGS / f"overlays/{overlay}.yaml").read_text())
    assert match is not None
    assert float(match[1]) == round(static_gib(overlay), 1)


@pytest.mark.parametrize("path", sorted((CONFIGS / "overlays").glob("*.yaml")), ids=lambda path: path.stem)
def test_accumulation_leaves_validations_as_often(path: Path) -> None:
    """Lightning counts batches between validations, not the optimizer's steps."""
    own, plain = (yaml.safe_load(p.read_text()) for p in (path, CONFIGS / "parts/trainer.yaml"))
    trainer = own.get("trainer", {})
    if batches := trainer.get("accumulate_grad_batches"):
        assert trainer["val_check_interval"] == batches * plain["val_check_interval"]


def test_masknet_s_header_tells_its_sum() -> None:
    text = (CONFIGS / "masknet.yaml").read_text()
    with torch.device("meta"):
        count = sum(p.numel() for p in MaskNet(**yaml.safe_load(text)["model"]["init_args"]).parameters())
    match = re.search(r"arithmetic: ([\d.]+) of weights, gradients, moments and average", text)
    assert match is not None
    assert float(match[1]) == round(count * (4 + 4 + 8 + 4 + 2) / GIB, 1)
