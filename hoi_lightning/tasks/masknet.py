"""MaskNet: a diffusion model over the hand layout l = (a, x, y, b1, b2), conditioned on the object picture."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_lightning.diffusion.ddpm import Denoiser, SampleNoise
from hoi_lightning.diffusion.guided import guide, mix
from hoi_lightning.diffusion.samplers import Sampler, sample
from hoi_lightning.diffusion.schedule import NoiseSchedule, PredictionType, ScheduleKind
from hoi_lightning.errors import InputError
from hoi_lightning.guidance import Guidance
from hoi_lightning.hand_proxy import splat
from hoi_lightning.metrics.layout_stream import LayoutFigures
from hoi_lightning.metrics.loss_buckets import LossBuckets
from hoi_lightning.networks.init_from import MEANING, InitReport, init_from, init_from_masknet
from hoi_lightning.networks.layout_denoiser import ImageFeatures, LayoutDenoiser
from hoi_lightning.networks.unet_encoder import DownBlockType
from hoi_lightning.tasks.base import Optimizer, check_choices, check_ranges, read_config
from hoi_lightning.tasks.layout_task import LayoutTask
from hoi_lightning.weights import shipped

SPLAT_SIZE = 64  # side of the splats that L_mask compares, in pixels
X0_LIMIT = 10.0  # standard deviations; ε-prediction divides by √ᾱ, which is 5e-5 at t = T
# a checkpoint does not decide these
OF_THE_COMMAND = ("sampler", "sample_steps", "guidance_scale", "metric_draws", "compile_splat")


class MaskNet(LayoutTask):
    """Sample where a hand would go (paper, section 1.2).

    Layouts are standardised with the mean and standard deviation of the training shards, which the checkpoint keeps.

    Args:
        channels: see `UNetEncoder`.
        layers_per_block: see `UNetEncoder`.
        down_block_types: see `UNetEncoder`.
        heads_dim: see `UNetEncoder`.
        norm_groups: see `UNetEncoder`.
        head_layers: see `LayoutDenoiser`.
        stem_stride: see `UNetEncoder`.
        image_features: see `LayoutDenoiser`.
        init_from: what a new run starts from as far as names and shapes agree: a diffusers U-Net, hub id or folder,
            whose encoder is taken, or `mini` or another folder that `export` wrote, whose MaskNet is taken whole.
            A resumed run and a checkpoint have no need of it.
        image_size: side in pixels of the object picture that the network sees.
        image_dropout: share of training pictures that are hidden, for classifier-free guidance.
        prediction_type: what the network predicts; `sample` is eq. 5 as printed.
        noise_schedule: of the layout diffusion.
        num_train_timesteps: T.
        noise_draws: timesteps and noises drawn per picture and training step; with image_features `once` the encoder
            runs once for all of them, so more cost little.
        mask_loss: eq. 7 is `l2`, the squared distance summed over pixels; `l1` sums the absolute one.
        mask_scale: factor of L_mask; 0 trains on L_para alone.
        mask_weight: weight of L_mask at timestep t: 1, or ᾱ_t, which mutes it where the estimate of l0 is a mere mean.
        lambda_para: λ of eq. 8, L_mask + λ·L_para.
        max_snr_weight: L_para at timestep t is weighed by the signal-to-noise ratio held between 1 and this, so low
            noise, where samples get their precision, counts more. 1 is eq. 6. With `prediction_type: sample` alone, for
            errors of the other types count low noise more by themselves.
        sampler: of `sample`; None = `ddim`, and `repaint` under guidance. This and what follows up to `metric_draws` is
            no part of a checkpoint.
        sample_steps: network calls of one sample.
        guidance_scale: of classifier-free guidance; 1 = none.
        metric_draws: layouts per picture in validation and test, ≥ 2.
        compile_splat: `torch.compile` the drawing of splats in training: a minute at the start, then up to half of a
            step's time less on a CPU. Like the sampler it is no part of a checkpoint.
        learning_rate: see `HoiTask`.
        weight_decay: see `HoiTask`.
        warmup_steps: see `HoiTask`.
        lr_schedule: see `HoiTask`.
        optimizer: see `HoiTask`.
        seed: see `HoiTask`.
    """

    of_the_weights = MEANING

    buckets: LossBuckets
    layout_mean: Tensor
    layout_std: Tensor

    def __init__(
        self,
        channels: tuple[int, ...] = (128, 256, 384, 512),
        layers_per_block: int = 2,
        down_block_types: tuple[DownBlockType, ...] = (
            "DownBlock2D",
            "DownBlock2D",
            "AttnDownBlock2D",
            "AttnDownBlock2D",
        ),
        heads_dim: int = 64,
        norm_groups: int = 32,
        head_layers: int = 2,
        stem_stride: int = 1,
        image_features: ImageFeatures = "once",
        init_from: str | None = None,
        image_size: int = 64,
        image_dropout: float = 0.0,
        prediction_type: PredictionType = "sample",
        noise_schedule: ScheduleKind = "squaredcos_cap_v2",
        num_train_timesteps: int = 1000,
        noise_draws: int = 1,
        mask_loss: Literal["l2", "l1"] = "l2",
        mask_scale: float = 1.0,
        mask_weight: Literal["constant", "alpha_bar"] = "constant",
        lambda_para: float = 1000.0,
        max_snr_weight: float = 1.0,
        sampler: Sampler | None = None,
        sample_steps: int = 25,
        guidance_scale: float = 1.0,
        metric_draws: int = 8,
        compile_splat: bool = False,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-2,
        warmup_steps: int = 0,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        optimizer: Optimizer = "adamw",
        seed: int | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, warmup_steps, lr_schedule, seed, optimizer)
        self.save_hyperparameters(ignore=OF_THE_COMMAND)
        check_ranges(image_dropout=(image_dropout, 0, 1), num_train_timesteps=(num_train_timesteps, 2, None))
        check_ranges(noise_draws=(noise_draws, 1, None), metric_draws=(metric_draws, 2, None))
        check_ranges(mask_scale=(mask_scale, 0, None), lambda_para=(lambda_para, 0, None))
        for name in ("layers_per_block", "heads_dim", "norm_groups", "head_layers", "stem_stride", "image_size"):
            check_ranges(**{name: (self.hparams[name], 1, None)})
        check_choices(
            prediction_type=(prediction_type, get_args(PredictionType)),
            noise_schedule=(noise_schedule, get_args(ScheduleKind)),
            image_features=(image_features, get_args(ImageFeatures)),
            mask_loss=(mask_loss, ("l2", "l1")),
            mask_weight=(mask_weight, ("constant", "alpha_bar")),
        )
        if mask_scale == lambda_para == 0:
            raise InputError("--model.mask_scale 0 and --model.lambda_para 0: leave nothing to train on; raise one")
        check_ranges(max_snr_weight=(max_snr_weight, 1, None))
        if max_snr_weight > 1 and prediction_type != "sample":
            raise InputError(
                f"--model.max_snr_weight {max_snr_weight:g}: {prediction_type} weighs low noise more by itself; "
                "leave it at 1"
            )
        self.net = LayoutDenoiser(
            channels, layers_per_block, down_block_types, heads_dim, norm_groups, head_layers, stem_stride,
            image_features,
        )  # fmt: skip
        if image_size % self.net.encoder.shrinks:
            raise InputError(f"--model.image_size {image_size}: must be a multiple of {self.net.encoder.shrinks}")
        self.schedule = NoiseSchedule(noise_schedule, num_train_timesteps)
        self.prediction_type, self.image_size, self.image_dropout = prediction_type, image_size, image_dropout
        self.mask_loss, self.mask_scale, self.mask_weight = mask_loss, mask_scale, mask_weight
        self.lambda_para, self.max_snr_weight = lambda_para, max_snr_weight
        self.init_from, self.noise_draws = init_from, noise_draws
        self.sampler, self.sample_steps, self.guidance_scale = sampler, sample_steps, guidance_scale
        self.metric_draws = metric_draws
        self._compiled_splat = torch.compile(splat, dynamic=False) if compile_splat else splat
        self.register_buffer("layout_mean", torch.zeros(5))
        self.register_buffer("layout_std", torch.ones(5))
        self.buckets = LossBuckets(num_train_timesteps, ("loss_mask", "loss_para"))
        self.slopes = LossBuckets(num_train_timesteps, ("mask", "para"))
        self.layout_figures = LayoutFigures()
        self._truth = None
        self._initialised: InitReport | InputError | None = None

    def setup(self, stage: str) -> None:
        """Take the layout statistics of the training shards and pretrained weights; a checkpoint brings its own.

        Raises:
            InputError: the sampler of validation and test cannot be followed.
        """
        super().setup(stage)
        self.check_sampler()
        if stage == "fit":
            mean, std = self.trainer.datamodule.layout_statistics()  # type: ignore[attr-defined]
            self.layout_mean.copy_(mean)
            self.layout_std.copy_(std.clamp(min=1e-3))
            if self.init_from is not None:
                try:
                    self._initialised = self._initialise(self.init_from)
                except InputError as error:
                    self._initialised = error

    def on_train_start(self) -> None:
        """Tell where a new run starts from; only now is it known whether a checkpoint is resumed.

        Raises:
            InputError: there is nothing at `init_from`.
        """
        super().on_train_start()
        if self.global_step == 0 and isinstance(self._initialised, InputError):
            raise self._initialised
        if self.global_step == 0 and self._initialised is not None and self.trainer.is_global_zero:
            print(self._initialised)

    def _initialise(self, source: str) -> InitReport:
        for folder in (shipped(source) / "masknet", Path(source)):
            if (folder / "model.safetensors").is_file():
                return init_from_masknet(self.net, folder, read_config(folder), dict(self.hparams))
        return init_from(self.net.encoder, source)

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """L_mask + λ·L_para (eqs. 5-8) at a uniformly drawn timestep."""
        obj = self._resize(batch["obj"])
        layout = batch["layout"].repeat_interleave(self.noise_draws, dim=0)
        x0 = (layout - self.layout_mean) / self.layout_std
        t = torch.randint(len(self.schedule.alpha_bar), (len(x0),), generator=generator, device=x0.device)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device)
        if self.training and self.image_dropout > 0:
            shown = torch.rand(len(obj), generator=generator, device=x0.device) >= self.image_dropout
            obj = obj * shown[:, None, None, None]
        x_t = self.schedule.q_sample(x0, t, eps)
        seen = self.net.see(obj).repeat_interleave(self.noise_draws, dim=0)
        output = self._predict(seen, x_t, t).float()
        error = output - self.schedule.target(x0, eps, t, self.prediction_type)
        para = error.square().mean(dim=1)  # eq. 6
        drawn = self._splat(self._destandardise(self._to_x0(output, x_t, t)), SPLAT_SIZE)
        true = splat(batch["layout"], SPLAT_SIZE).repeat_interleave(self.noise_draws, dim=0)
        difference = true - drawn  # eq. 7
        distance = difference.square() if self.mask_loss == "l2" else difference.abs()
        weight = self.schedule.alpha_bar.to(x0)[t] if self.mask_weight == "alpha_bar" else torch.ones_like(x0[:, 0])
        mask = self.mask_scale * weight * distance.sum(dim=(1, 2, 3))
        self.buckets.update(t, mask, para)
        para_weight = self.schedule.snr(t).clamp(1, self.max_snr_weight)
        if mask.requires_grad and self.logs_step:  # it takes a backward pass through the splats of its own
            self.slopes.update(t, *self._slopes(mask, para_weight[:, None] * error, output))
        loss = mask.mean() + self.lambda_para * (para_weight * para).mean()  # eq. 8
        return {"loss": loss, "loss_mask": mask.mean(), "loss_para": para.mean()}

    def check_sampler(self) -> None:
        """Refuse settings that this network cannot be sampled with.

        Raises:
            InputError: no steps or more than the schedule has, or guidance away from an answer that it never learnt.
        """
        most = len(self.schedule.alpha_bar)
        if not 1 <= self.sample_steps <= most:
            raise InputError(
                f"sample_steps {self.sample_steps} (--model.sample_steps, of `generate` --layout-steps): this MaskNet "
                f"has {most} noise levels; give 1 to {most}"
            )
        if self.guidance_scale != 1 and self.image_dropout == 0:
            raise InputError(
                f"guidance_scale {self.guidance_scale:g} (--model.guidance_scale, of `generate` --layout-guidance): "
                "this MaskNet has --model.image_dropout 0, so it has no answer without a picture; leave it at 1, or "
                "fit with --model.image_dropout 0.1"
            )

    @torch.no_grad()
    def sample(
        self,
        obj: Tensor,
        seeds: Sequence[int],
        num_steps: int | None = None,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Sample layouts, the same number for each picture.

        Args:
            obj: object pictures (B, 3, H, W) in [-1, 1], square, of any size.
            seeds: B·K, the K of the first picture first; a layout depends on its own seed and picture only.
            num_steps: network calls, `sample_steps` when None.
            sampler: another than the task's.
            guidance: wishes; what has a batch dimension in them has B·K rows.
            guidance_scale: another than the task's; 1 = no classifier-free guidance.

        Returns:
            Layouts (B·K, 5) with unit b and a > 0.

        Raises:
            InputError: classifier-free guidance of a network that never trained without its picture, pictures that are
                not square, or seeds that are not as many for each.
        """
        if obj.shape[-1] != obj.shape[-2]:
            raise InputError(f"pictures of {obj.shape[-1]}x{obj.shape[-2]}: MaskNet sees squares; cut one out of each")
        if not seeds or len(seeds) % len(obj):
            raise InputError(f"seeds: {len(seeds)} for {len(obj)} pictures; give as many for each")
        noise, per_picture = SampleNoise(seeds), len(seeds) // len(obj)
        picture, scale = self._resize(obj), self.guidance_scale if guidance_scale is None else guidance_scale
        denoise = self._denoiser(picture, per_picture)
        if scale != 1:
            if self.image_dropout == 0:
                raise InputError(f"guidance_scale {scale:g}: this MaskNet was trained with --model.image_dropout 0")
            denoise = mix(denoise, self._denoiser(torch.zeros_like(picture), per_picture), scale)
        x_T = noise(torch.empty(len(seeds), 5, device=obj.device))
        fixed, known, keep_mask = None, None, None
        if guidance is not None and guidance.fixed is not None:
            fixed = guidance.fixed.to(x_T).expand_as(x_T)
            keep_mask = (~fixed.isnan()).to(x_T)
            known = ((fixed - self.layout_mean) / self.layout_std).nan_to_num()
        if guidance is not None and guidance.energies:
            denoise = guide(denoise, self.schedule, partial(self._energy, guidance, fixed))
        steps = self.sample_steps if num_steps is None else num_steps
        # without resampling the free numbers hardly learn of the fixed ones
        sampler = sampler or self.sampler or ("ddim" if guidance is None else "repaint")
        x0 = sample(denoise, x_T, self.schedule, steps, noise, sampler, known, keep_mask)
        layouts = self._destandardise(x0)
        direction = F.normalize(layouts[:, 3:], eps=1e-6)
        layouts = torch.cat([layouts[:, :1].abs().clamp(min=1e-3), layouts[:, 1:3], direction], dim=1)
        return layouts if fixed is None else torch.where(fixed.isnan(), layouts, fixed)

    def _energy(self, guidance: Guidance, fixed: Tensor | None, x0: Tensor) -> Tensor:
        """Energies (B,) of standardised layouts; what is fixed stays, so that the free numbers alone give way."""
        layouts = self._destandardise(x0)
        return guidance.energy(layouts if fixed is None else torch.where(fixed.isnan(), layouts, fixed))

    def _slopes(self, mask: Tensor, error: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """|∂L_mask/∂output| and |∂λL_para/∂output| (B,); their ratio is the one with respect to l̂0."""
        (gradient,) = torch.autograd.grad(mask.sum(), output, retain_graph=True)
        return gradient.norm(dim=1), self.lambda_para * 2 / 5 * error.norm(dim=1)

    def _log_buckets(self, prefix: str) -> None:
        """The ratio of both terms' gradients with respect to l̂0, too, where there are gradients."""
        super()._log_buckets(prefix)
        slopes = self.slopes.compute()
        for name, slope in slopes.items():
            term, bucket = name.split("/")
            if term == "mask" and slopes[f"para/{bucket}"] > 0:
                self.log(f"{prefix}/gradient_ratio/{bucket}", slope / slopes[f"para/{bucket}"])
        self.slopes.reset()

    def _denoiser(self, picture: Tensor, per_picture: int) -> Denoiser:
        seen = self.net.see(picture).repeat_interleave(per_picture, dim=0)
        return lambda x_t, t: self._to_x0(self._predict(seen, x_t, t).float(), x_t, t)

    def _to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return self.schedule.to_x0(output, x_t, t, self.prediction_type).clamp(-X0_LIMIT, X0_LIMIT)

    def _resize(self, obj: Tensor) -> Tensor:
        if obj.shape[-1] == self.image_size:
            return obj
        return F.interpolate(obj, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)

    def _predict(self, seen: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            noisy_splat = self._splat(self._destandardise(x_t), self.image_size)  # M(l_t)
        return self.net(seen, noisy_splat, x_t, t)

    def _splat(self, layouts: Tensor, size: int) -> Tensor:
        """`splat`; compiled in training alone, where batches are of one size and it is compiled but once."""
        return self._compiled_splat(layouts, size) if self.training else splat(layouts, size)

    def _destandardise(self, x: Tensor) -> Tensor:
        return x * self.layout_std + self.layout_mean
