"""MaskNet: a diffusion model over the hand layout l = (a, x, y, b1, b2), conditioned on the object picture."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_lightning.diffusion.ddpm import SampleNoise, sample_ddim
from hoi_lightning.diffusion.schedule import NoiseSchedule, PredictionType
from hoi_lightning.hand_proxy import Layout, contact, draw_layouts, splat
from hoi_lightning.networks.layout_denoiser import LayoutDenoiser
from hoi_lightning.tasks.base import HoiTask

SPLAT_SIZE = 64  # side of the splats that L_mask compares, in pixels


class MaskNet(HoiTask):
    """Sample where a hand would go (paper, section 1.2).

    Layouts are standardised with the mean and standard deviation of the training shards, which the checkpoint keeps.

    Args:
        channels: see `LayoutDenoiser`.
        layers_per_block: see `LayoutDenoiser`.
        attention_levels: see `LayoutDenoiser`.
        heads_dim: see `LayoutDenoiser`.
        head_layers: see `LayoutDenoiser`.
        stem_stride: see `LayoutDenoiser`.
        image_size: side in pixels of the object picture that the network sees.
        prediction_type: what the network predicts; `sample` is eq. 5 as printed.
        noise_schedule: of the layout diffusion.
        num_train_timesteps: T.
        mask_loss: eq. 7 is `l2`, the squared distance summed over pixels; `l1` sums the absolute one.
        mask_weight: weight of L_mask at timestep t: 1, or ᾱ_t, which mutes it where the estimate of l0 is a mere mean.
        lambda_para: λ of eq. 8, L_mask + λ·L_para.
        sample_steps: DDIM steps of `sample`.
        learning_rate: see `HoiTask`.
        weight_decay: see `HoiTask`.
        warmup_steps: see `HoiTask`.
        lr_schedule: see `HoiTask`.
        seed: see `HoiTask`.
    """

    layout_mean: Tensor
    layout_std: Tensor

    def __init__(
        self,
        channels: tuple[int, ...] = (128, 256, 384, 512),
        layers_per_block: int = 2,
        attention_levels: int = 2,
        heads_dim: int = 64,
        head_layers: int = 2,
        stem_stride: int = 1,
        image_size: int = 64,
        prediction_type: PredictionType = "sample",
        noise_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2",
        num_train_timesteps: int = 1000,
        mask_loss: Literal["l2", "l1"] = "l2",
        mask_weight: Literal["constant", "alpha_bar"] = "constant",
        lambda_para: float = 100.0,
        sample_steps: int = 25,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-2,
        warmup_steps: int = 0,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        seed: int = 0,
    ) -> None:
        super().__init__(learning_rate, weight_decay, warmup_steps, lr_schedule, seed)
        self.save_hyperparameters()
        self.net = LayoutDenoiser(channels, layers_per_block, attention_levels, heads_dim, head_layers, stem_stride)
        self.schedule = NoiseSchedule(noise_schedule, num_train_timesteps)
        self.prediction_type, self.image_size, self.sample_steps = prediction_type, image_size, sample_steps
        self.mask_loss, self.mask_weight, self.lambda_para = mask_loss, mask_weight, lambda_para
        self.register_buffer("layout_mean", torch.zeros(5))
        self.register_buffer("layout_std", torch.ones(5))

    def setup(self, stage: str) -> None:
        """Take the layout statistics of the training shards; a resumed checkpoint brings its own."""
        if stage == "fit":
            mean, std = self.trainer.datamodule.layout_statistics()  # type: ignore[attr-defined]
            self.layout_mean.copy_(mean)
            self.layout_std.copy_(std.clamp(min=1e-3))

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """L_mask + λ·L_para (eqs. 5-8) at a uniformly drawn timestep."""
        layout = batch["layout"]
        x0 = (layout - self.layout_mean) / self.layout_std
        t = torch.randint(len(self.schedule.alpha_bar), (len(x0),), generator=generator, device=x0.device)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device)
        x_t = self.schedule.q_sample(x0, t, eps)
        output = self._predict(self._see(batch["obj"]), x_t, t).float()
        para = F.mse_loss(output, self.schedule.target(x0, eps, t, self.prediction_type))  # eq. 6
        x0_hat = self.schedule.to_x0(output, x_t, t, self.prediction_type)
        difference = splat(layout, SPLAT_SIZE) - splat(self._destandardise(x0_hat), SPLAT_SIZE)  # eq. 7
        distance = difference.square() if self.mask_loss == "l2" else difference.abs()
        weight = self.schedule.alpha_bar.to(x0)[t] if self.mask_weight == "alpha_bar" else torch.ones_like(x0[:, 0])
        mask = (weight * distance.sum(dim=(1, 2, 3))).mean()
        return {"loss": mask + self.lambda_para * para, "loss_mask": mask, "loss_para": para}  # eq. 8

    @torch.no_grad()
    def sample(self, obj: Tensor, seeds: Sequence[int], num_steps: int | None = None) -> Tensor:
        """Sample one layout per picture.

        Args:
            obj: object pictures (B, 3, H, W) in [-1, 1], square, of any size.
            seeds: one per picture; a layout depends on its own seed and picture only.
            num_steps: DDIM steps, `sample_steps` when None.

        Returns:
            Layouts (B, 5) with unit b and a > 0.
        """
        picture, noise = self._see(obj), SampleNoise(seeds)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return self.schedule.to_x0(self._predict(picture, x_t, t).float(), x_t, t, self.prediction_type)

        x_T = noise(torch.empty(len(obj), 5, device=obj.device))
        timesteps = self.schedule.timesteps(num_steps or self.sample_steps)
        layout = self._destandardise(sample_ddim(denoise, x_T, self.schedule, timesteps, noise))
        direction = F.normalize(layout[:, 3:], eps=1e-6)
        return torch.cat([layout[:, :1].abs().clamp(min=1e-3), layout[:, 1:3], direction], dim=1)

    def panels(self, batch: dict[str, Any], seed: int) -> dict[str, list[np.ndarray]]:
        """Columns of a sample grid: object, eight sampled layouts, the true one; uint8 (S, S, 3) each."""
        sampled = self._draws(batch, seed)
        pictures = ((batch["obj"].float() + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return {
            "object": list(pictures),
            "sampled layouts": [
                draw_layouts(picture, [Layout.from_tensor(draw[i]) for draw in sampled])
                for i, picture in enumerate(pictures)
            ],
            "truth": [
                draw_layouts(picture, [Layout.from_tensor(layout)])
                for picture, layout in zip(pictures, batch["layout"].cpu(), strict=True)
            ],
        }

    def figures(self, batch: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
        """Scatter plots of sampled and recorded layouts, uint8 (H, W, 3)."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.2), layout="constrained")
        canvas, axes = FigureCanvasAgg(figure), figure.subplots(1, 2)
        for name, layouts in (("sampled", torch.cat(self._draws(batch, seed))), ("recorded", batch["layout"].cpu())):
            a, x, y, b1, b2 = layouts.unbind(1)
            axes[0].scatter(x, y, s=14, label=name)
            axes[1].scatter(torch.atan2(b2, b1).rad2deg(), a**2 / 2, s=14, label=name)
        axes[0].set(xlim=(-1.2, 1.2), ylim=(1.2, -1.2), aspect="equal", xlabel="x", ylabel="y", title="centre, NDC")
        axes[1].set(xlim=(-180, 180), xlabel="forearm angle, degrees", ylabel="radius, NDC", title="direction and size")
        axes[0].legend()
        canvas.draw()
        return {"layout_scatter": np.asarray(canvas.buffer_rgba())[..., :3].copy()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss, and how often a sampled hand touches the object."""
        super().validation_step(batch, batch_idx)
        sampled = self.sample(batch["obj"], [self.seed] * len(batch["key"]))
        touching = contact(sampled, batch["object"] > 0.5).float().mean()
        self.log("val/contact", touching, batch_size=len(batch["key"]), sync_dist=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """One layout per object picture."""
        seeds = self.key_seeds(batch["key"])
        return {"layout": self.sample(batch["obj"], seeds), "seed": seeds}

    def _draws(self, batch: dict[str, Any], seed: int) -> list[Tensor]:
        return [self.sample(batch["obj"], [seed + k] * len(batch["key"])).cpu() for k in range(8)]

    def _see(self, obj: Tensor) -> Tensor:
        if obj.shape[-1] == self.image_size:
            return obj
        return F.interpolate(obj, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)

    def _predict(self, picture: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            noisy_splat = splat(self._destandardise(x_t), self.image_size)  # M(l_t)
        return self.net(picture, noisy_splat, x_t, t)

    def _destandardise(self, x: Tensor) -> Tensor:
        return x * self.layout_std + self.layout_mean
