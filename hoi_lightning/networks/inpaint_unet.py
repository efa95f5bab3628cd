"""FusionNet's network: a nine-channel Stable Diffusion inpainting U-Net, from a diffusers folder or built small."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hoi_lightning.diffusion.schedule import NoiseSchedule, PredictionType
from hoi_lightning.errors import InputError
from hoi_lightning.networks.autoencoder import missing_pretrained


def load_unet(folder: str) -> Any:
    """Open `<folder>/unet`; a hub id works too.

    Raises:
        InputError: no nine-channel inpainting U-Net there.
    """
    from diffusers import UNet2DConditionModel

    try:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    except (OSError, ValueError) as error:
        raise InputError(missing_pretrained(folder, "unet", error)) from None
    if unet.config.in_channels != 2 * unet.config.out_channels + 1:
        raise InputError(
            f"--model.pretrained {folder}: its unet has {unet.config.in_channels} input channels, an inpainting U-Net "
            f"has {2 * unet.config.out_channels + 1}; pass an inpainting checkpoint"
        )
    return unet.train()


def small_unet(channels: Sequence[int], latent_channels: int, sample_size: int) -> Any:
    """A `UNet2DConditionModel` of the same interface, randomly initialised, attention on its last level only."""
    from diffusers import UNet2DConditionModel

    plain = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=2 * latent_channels + 1,
        out_channels=latent_channels,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def load_scheduler(folder: str) -> Any:
    """Open `<folder>/scheduler` as a `DDIMScheduler`.

    Raises:
        InputError: no scheduler config there.
    """
    from diffusers import DDIMScheduler

    try:
        return DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    except (OSError, ValueError) as error:
        raise InputError(missing_pretrained(folder, "scheduler", error)) from None


def load_schedule(folder: str) -> tuple[NoiseSchedule, PredictionType]:
    """The noise schedule and the prediction type that the checkpoint was trained with.

    Raises:
        InputError: no scheduler config there, or one of a kind that is not implemented.
    """
    config = load_scheduler(folder).config
    kind, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    if kind not in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        raise InputError(f"--model.pretrained {folder}: beta_schedule {kind!r} is not implemented")
    schedule = NoiseSchedule(
        kind,
        config.get("num_train_timesteps", 1000),
        config.get("beta_start", 1e-4),
        config.get("beta_end", 0.02),
        zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
    )
    return schedule, prediction


def prompt_embedding(folder: str, prompt: str, width: int) -> Tensor:
    """Embedding (1, tokens, width) of the one constant prompt; the text encoder is dropped again at once.

    Read from `<folder>/prompt_embeds.safetensors` when it is there, else computed by the folder's text encoder. A
    folder that declares neither (small ones trained from scratch) gets one zero token.
    """
    stored = Path(folder, "prompt_embeds.safetensors")
    if stored.is_file():
        from safetensors.torch import load_file

        return load_file(stored)["prompt_embeds"].float()
    if Path(folder).is_dir() and not Path(folder, "text_encoder").is_dir():
        return torch.zeros(1, 1, width)
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    except (OSError, ValueError) as error:
        raise InputError(missing_pretrained(folder, "text_encoder", error)) from None
    tokens = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids)[0].float()
