"""Autoencoder: the small first stage that stands in for Stable Diffusion's where its weights are not at hand."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_lightning.networks.autoencoder import Latents, tiny_autoencoder
from hoi_lightning.tasks.base import HoiTask


class Autoencoder(HoiTask):
    """Fit a small `AutoencoderTiny` on crops of object and HOI pictures.

    When the fit ends, `<run>/base` holds it as a diffusers folder (`vae/`, `scheduler/`) for FusionNet's `pretrained`.

    Args:
        channels: width of all levels.
        levels: resolutions; the down-sampling factor is 2^(levels - 1).
        latent_channels: of the code.
        crop: side in pixels of the random crops to train on.
        latent_noise: standard deviation of the noise added to the code while training: a smooth latent space.
        chroma_weight: weight of the error in local mean chroma.
        anchor_steps: over the first so many steps three latent channels are pulled, ever less, to local mean colours;
            without it saturated colours stay grey for long.
        learning_rate: see `HoiTask`.
        weight_decay: see `HoiTask`.
        warmup_steps: see `HoiTask`.
        lr_schedule: see `HoiTask`.
        seed: see `HoiTask`.
    """

    vae: Any

    def __init__(
        self,
        channels: int = 32,
        levels: int = 3,
        latent_channels: int = 4,
        crop: int = 64,
        latent_noise: float = 0.08,
        chroma_weight: float = 2.0,
        anchor_steps: int = 900,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        seed: int = 0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, warmup_steps, lr_schedule, seed)
        self.save_hyperparameters()
        # a third faster on CPUs and on tensor cores
        self.vae = tiny_autoencoder(channels, levels, latent_channels).to(memory_format=torch.channels_last)
        self.crop, self.latent_noise = crop, latent_noise
        self.chroma_weight, self.anchor_steps = chroma_weight, anchor_steps

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """L1 of pixels, edges and chroma, squared error, and a pull of each latent channel to mean 0, deviation 1."""
        picture = torch.cat([batch["hoi"], batch["obj"][: len(batch["key"]) // 2]])
        x = self._crop(picture, generator) if self.training else picture
        z = self.vae.encode(x).latents
        noise = torch.randn(z.shape, generator=generator, device=z.device)
        y = self.vae.decode(z + self.latent_noise * noise).sample.float()
        edges = sum((y.diff(dim=axis) - x.diff(dim=axis)).abs().mean() for axis in (2, 3))
        chroma = F.avg_pool2d(_chroma(y) - _chroma(x), 4).abs().mean()
        anchor = (z[:, :3] - 2 * F.avg_pool2d(x, x.shape[-1] // z.shape[-1])).square().mean()
        pull = 2 * max(0.0, 1 - self.global_step / self.anchor_steps)
        squared = F.mse_loss(y, x)
        std, mean = torch.std_mean(z.float(), dim=(0, 2, 3))
        unit = (mean.square() + (std - 1).square()).mean()
        loss = (y - x).abs().mean() + 0.5 * edges + self.chroma_weight * chroma + 0.5 * squared + 0.01 * unit
        loss = loss + pull * anchor
        psnr = 10 * torch.log10(4 / squared.detach())  # the range -1..1 is 2 wide
        return {"loss": loss, "psnr": psnr}

    def panels(self, batch: dict[str, Any], seed: int) -> dict[str, list[np.ndarray]]:
        """Columns of a sample grid: HOI picture, its reconstruction."""
        latents = Latents(self.vae)
        columns = {"hoi": batch["hoi"], "reconstruction": latents.decode(latents.encode(batch["hoi"]))}
        return {
            name: list(((pictures.float() + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
            for name, pictures in columns.items()
        }

    def on_fit_end(self) -> None:
        """Save the diffusers folder."""
        if self.trainer.is_global_zero:
            self.export(Path(self.trainer.default_root_dir, "base"))

    def export(self, folder: Path) -> None:
        """Write `vae/` and `scheduler/`: v-prediction on a schedule that ends in pure noise, to train from scratch."""
        from diffusers import DDIMScheduler

        self.vae.save_pretrained(folder / "vae")
        DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
            set_alpha_to_one=True,
        ).save_pretrained(folder / "scheduler")

    def _crop(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        room = pictures.shape[-1] - self.crop + 1
        corners = torch.randint(room, (len(pictures), 2), generator=generator, device=pictures.device).tolist()
        return torch.stack(
            [p[:, y : y + self.crop, x : x + self.crop] for p, (y, x) in zip(pictures, corners, strict=True)]
        )


def _chroma(pictures: Tensor) -> Tensor:
    return pictures - pictures.mean(dim=1, keepdim=True)
