"""Autoencoder: the small first stage that stands in for Stable Diffusion's where its weights are not at hand."""

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from hoi_lightning.errors import InputError
from hoi_lightning.holes import check_sides
from hoi_lightning.networks.autoencoder import Latents, deepen_decoder, load_vae, tiny_autoencoder
from hoi_lightning.networks.inpaint_unet import load_scheduler
from hoi_lightning.networks.latent_windows import hand_corners, windows
from hoi_lightning.networks.patch_discriminator import patch_discriminator
from hoi_lightning.tasks.base import HoiTask, check_ranges
from hoi_lightning.weights import shipped


class Autoencoder(HoiTask):
    """Fit a small `AutoencoderTiny` on crops of object and HOI pictures, or sharpen one that there is.

    When the fit ends, `<run>/base` holds it as a diffusers folder (`vae/`, `scheduler/`) for FusionNet's `pretrained`.

    Args:
        channels: width of all levels.
        levels: resolutions; the down-sampling factor is 2^(levels - 1).
        latent_channels: of the code.
        pretrained: diffusers folder, hub id, or `mini-base`, whose `vae/` to go on from; the three above say nothing.
        latent_pull: weight of the squared distance of latents from those of the pretrained encoder, so that they keep
            their meaning, and the networks that paint them their use.
        decoder_blocks: residual blocks of each level of a pretrained `AutoencoderTiny`'s decoder, the coarsest first;
            those beyond its own begin as the identity. None = its own.
        adversarial_weight: weight of a patch discriminator's opinion (Rombach et al. 2022, section 3.1), which asks for
            sharp edges where the code leaves their place open; 0 = none.
        crop: side in pixels of the random crops to train on, in HOI pictures about the hand.
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
        pretrained: str | None = None,
        latent_pull: float = 0.1,
        decoder_blocks: tuple[int, ...] | None = None,
        adversarial_weight: float = 0.0,
        crop: int = 64,
        latent_noise: float = 0.08,
        chroma_weight: float = 2.0,
        anchor_steps: int = 900,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        seed: int | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, warmup_steps, lr_schedule, seed)
        self.save_hyperparameters()
        check_ranges(adversarial_weight=(adversarial_weight, 0, None), latent_pull=(latent_pull, 0, None))
        check_ranges(latent_noise=(latent_noise, 0, None))
        if pretrained is None:
            if decoder_blocks is not None:
                raise InputError("--model.decoder_blocks: is for a decoder that there is; give --model.pretrained, too")
            self.vae = tiny_autoencoder(channels, levels, latent_channels)
        else:
            self.pretrained = str(shipped(pretrained)) if shipped(pretrained).is_dir() else pretrained
            self.first, self.scheduler = load_vae(self.pretrained), load_scheduler(self.pretrained)
            self.frozen = {"vae": self.first.fingerprint()}
            vae = self.first.vae
            self.vae = copy.deepcopy(vae) if decoder_blocks is None else deepen_decoder(vae, decoder_blocks)
            self.vae.requires_grad_(True).train()
        self.vae.to(memory_format=torch.channels_last)  # a third faster on CPUs and on tensor cores
        self.critic = patch_discriminator() if adversarial_weight else None
        self.latents = Latents(self.vae)
        check_sides("Autoencoder (--model.crop)", crop, crop, self.latents.factor)
        self.crop, self.latent_noise, self.adversarial_weight = crop, latent_noise, adversarial_weight
        self.chroma_weight, self.anchor_steps, self.latent_pull = chroma_weight, anchor_steps, latent_pull

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """L1 of pixels, edges and chroma, and squared error; a pull of the latents; the adversary's part.

        The pull is to the pretrained encoder's, or to mean 0 and deviation 1. The adversary learns in the same step, by
        the hinge loss.
        """
        hoi, obj = batch["hoi"], batch["obj"][: len(batch["key"]) // 2]
        side = hoi.shape[-1]
        if self.training and side > self.crop:
            hoi = windows(hoi, hand_corners(batch["layout"], side, self.crop, generator), self.crop)
            corners = torch.randint(side - self.crop + 1, (len(obj), 2), generator=generator, device=obj.device)
            obj = windows(obj, corners, self.crop)
        x = torch.cat([hoi, obj])
        z = self.latents.code(x)
        noise = torch.randn(z.shape, generator=generator, device=z.device)
        y = self.latents.reconstruct(z + self.latent_noise * noise)
        edges = sum((y.diff(dim=axis) - x.diff(dim=axis)).abs().mean() for axis in (2, 3))
        chroma = F.avg_pool2d(_chroma(y) - _chroma(x), 4).abs().mean()
        squared = F.mse_loss(y, x)
        loss = (y - x).abs().mean() + 0.5 * edges + self.chroma_weight * chroma + 0.5 * squared
        terms = {"psnr": 10 * torch.log10(4 / squared.detach())}  # the range -1..1 is 2 wide
        if self.pretrained:
            moved = F.mse_loss(z, self.first.encode(x))
            loss, terms = loss + self.latent_pull * moved, terms | {"latents_moved": moved.detach().sqrt()}
        else:
            anchor = (z[:, :3] - 2 * F.avg_pool2d(x, x.shape[-1] // z.shape[-1])).square().mean()
            std, mean = torch.std_mean(z, dim=(0, 2, 3))
            unit = (mean.square() + (std - 1).square()).mean()
            loss = loss + 0.01 * unit + 2 * max(0.0, 1 - self.global_step / self.anchor_steps) * anchor
        if self.critic is not None:
            # what the decoder is told passes through the critic's weights without moving them
            weights = {name: value.detach() for name, value in self.critic.state_dict().items()}
            opinion = functional_call(self.critic, weights, (y,)).mean()
            real, made = self.critic(torch.cat([x, y.detach()])).chunk(2)
            hinge = F.relu(1 - real).mean() + F.relu(1 + made).mean()
            terms |= {"hinge": hinge.detach()}
            loss = loss - self.adversarial_weight * opinion + hinge
        return {"loss": loss, **terms}

    def panels(self, batch: dict[str, Any], seed: int) -> dict[str, list[np.ndarray]]:
        """Columns of a sample grid: HOI picture, its reconstruction."""
        reconstruction = self.latents.decode(self.latents.encode(batch["hoi"]))
        columns = {"hoi": batch["hoi"], "reconstruction": reconstruction}
        return {
            name: list(((pictures.float() + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
            for name, pictures in columns.items()
        }

    def on_fit_end(self) -> None:
        """Save the diffusers folder."""
        if self.trainer.is_global_zero:
            self.export(Path(self.trainer.default_root_dir, "base"))

    def export(self, folder: Path) -> None:
        """Write `vae/` and `scheduler/`: the pretrained one's, or v-prediction that starts from pure noise."""
        from diffusers import DDIMScheduler

        self.vae.save_pretrained(folder / "vae")
        if self.pretrained:
            self.scheduler.save_pretrained(folder / "scheduler")
            return
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


def _chroma(pictures: Tensor) -> Tensor:
    return pictures - pictures.mean(dim=1, keepdim=True)
