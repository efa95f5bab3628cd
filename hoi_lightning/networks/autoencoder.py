"""The frozen first stage: any diffusers autoencoder, and the small one that the mini world trains."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hoi_lightning.errors import InputError


class Latents:
    """An autoencoder behind two verbs; being no module, it is in no checkpoint of the task that holds it.

    Args:
        vae: diffusers `AutoencoderKL`, `AutoencoderTiny` or another with the same interface.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.channels: int = vae.config.latent_channels
        self.factor: int = 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to scaled latents (B, C, H/f, W/f): the mode, never a random draw.

        Both verbs answer in float32 under autocast, too: noise and blending need its digits.
        """
        return self.code(pictures)

    def code(self, pictures: Tensor) -> Tensor:
        """As `encode`, with gradients: to train the encoder by."""
        code = self._on(pictures.device).encode(pictures)
        z = code.latent_dist.mode() if hasattr(code, "latent_dist") else code.latents
        return (z.float() - self._shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Inverse of `encode`, clamped to [-1, 1]."""
        return self.reconstruct(latents).clamp(-1, 1)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """As `decode`, with gradients and without the clamp: to train the decoder by."""
        code = latents / self.vae.config.scaling_factor + self._shift
        return self._on(latents.device).decode(code).sample.float()

    def fingerprint(self) -> str:
        """What cached latents are filed under."""
        return weights_hash(self.vae)

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    def _on(self, device: torch.device) -> Any:
        return self.vae.to(device)


def weights_hash(network: torch.nn.Module) -> str:
    """SHA-256 over the sorted weights, each key followed by its values."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def load_vae(folder: str, revision: str | None = None) -> Latents:
    """Open `<folder>/vae` as diffusers saved it, frozen.

    Raises:
        InputError: no autoencoder there.
    """
    import diffusers

    # AutoencoderTiny saves a key that its own constructor does not take, and diffusers warns about it
    noisy = logging.getLogger("diffusers.configuration_utils")
    noisy.addFilter(lambda record: "block_out_channels" not in record.getMessage())
    config = pretrained_file(folder, "vae/config.json", revision)
    try:
        name = json.loads(config.read_text())["_class_name"] if config else "AutoencoderKL"
        vae = getattr(diffusers, name).from_pretrained(folder, subfolder="vae", revision=revision)
        if not {"latent_channels", "scaling_factor", "block_out_channels"} <= vae.config.keys():
            raise ValueError(f"a {name} is no autoencoder of pictures")
    except (OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(missing_pretrained(folder, "vae", error)) from None
    return Latents(vae.eval().requires_grad_(False))


def pretrained_file(folder: str, name: str, revision: str | None = None) -> Path | None:
    """A small file of a diffusers folder or hub id; None where it is not there, or cannot be had."""
    if Path(folder).is_dir():
        path = Path(folder, name)
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(folder, name, revision=revision))
    except (OSError, ValueError):
        return None


def missing_pretrained(folder: str, part: str, error: Exception) -> str:
    """One line for a checkpoint part that can be neither opened nor downloaded."""
    reason = " ".join(str(error).replace(f"{folder}/", "").split())[:160] or type(error).__name__
    if Path(folder, "fusionnet").is_dir():
        return f"--model.pretrained {folder}: is a released folder; its painter is {folder}/fusionnet"
    if folder.startswith(("/", "./", "../", "~")) and not Path(folder).is_dir():
        return (
            f"--model.pretrained {folder}: no such folder; give a hub id, or a folder that diffusers saved or "
            "`hf download OWNER/NAME --local-dir DIR` made"
        )
    if Path(folder).is_dir():
        return (
            f"--model.pretrained {folder}: its {part} does not open ({reason}); give a folder that diffusers saved, or "
            f"fetch it again with `hf download OWNER/NAME --local-dir {folder}`"
        )
    return (
        f"--model.pretrained {folder}: its {part} is neither a local diffusers folder nor downloadable ({reason}); "
        f"get it with `hf download {folder} --local-dir DIR` where there is a network and pass --model.pretrained DIR"
    )


def tiny_autoencoder(channels: int = 32, levels: int = 3, latent_channels: int = 4) -> Any:
    """A small `AutoencoderTiny` of down-sampling factor 2^(levels - 1), randomly initialised."""
    from diffusers import AutoencoderTiny

    widths: Sequence[int] = (channels,) * levels
    vae = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=tuple(range(levels)),  # none at full resolution: three times as fast, and fine strokes stay
        num_decoder_blocks=(2,) * (levels - 1) + (1,),
        latent_channels=latent_channels,
        upsampling_scaling_factor=2,
    )
    with torch.no_grad():  # photographs vary in brightness most; unaided, colour is seen only after thousands of steps
        filters = vae.encoder.layers[0].weight
        filters += 4 * (filters - filters.mean(dim=1, keepdim=True))
    return vae


def deepen_decoder(vae: Any, num_blocks: Sequence[int]) -> Any:
    """The same `AutoencoderTiny` with more residual blocks in its decoder, which begin as the identity.

    Args:
        vae: what to begin from; it is not changed.
        num_blocks: of each level, the coarsest first; at least its own.

    Raises:
        InputError: another kind of autoencoder, other levels, or fewer blocks.
    """
    from diffusers import AutoencoderTiny
    from diffusers.models.autoencoders.vae import AutoencoderTinyBlock

    own = vae.config.get("num_decoder_blocks", ())
    fewer = len(own) != len(num_blocks) or any(new < old for new, old in zip(num_blocks, own, strict=True))
    if not isinstance(vae, AutoencoderTiny) or fewer:
        raise InputError(
            f"--model.decoder_blocks {list(num_blocks)}: the pretrained decoder is a {type(vae).__name__}'s with "
            f"{list(own)}; give at least as many for each level of an AutoencoderTiny"
        )
    deeper = AutoencoderTiny.from_config({**vae.config, "num_decoder_blocks": tuple(num_blocks)})
    deeper.encoder.load_state_dict(vae.encoder.state_dict())
    left = list(vae.decoder.layers)
    for layer in deeper.decoder.layers:
        if isinstance(layer, AutoencoderTinyBlock) and not isinstance(left[0], AutoencoderTinyBlock):
            nn.init.zeros_(layer.conv[-1].weight)  # relu(x + 0) = x after a relu
            nn.init.zeros_(layer.conv[-1].bias)
        else:
            layer.load_state_dict(left.pop(0).state_dict())
    return deeper
