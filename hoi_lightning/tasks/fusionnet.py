"""FusionNet: a latent inpainting model that paints the hand into the hole a layout leaves (paper, section 1.3)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torchmetrics import CatMetric

from hoi_lightning.data.sample import Field
from hoi_lightning.diffusion.ddpm import SampleNoise
from hoi_lightning.diffusion.repaint import PRESETS, Preset, RePaintSampler, sample_repaint
from hoi_lightning.diffusion.steps import sample_steps
from hoi_lightning.errors import InputError
from hoi_lightning.grid import draw_grid
from hoi_lightning.hand_proxy import HOLE_DILATION, hole_mask
from hoi_lightning.holes import check_holes, check_sides, feather
from hoi_lightning.metrics.loss_buckets import LossBuckets
from hoi_lightning.networks.autoencoder import load_vae, weights_hash
from hoi_lightning.networks.inpaint_unet import (
    add_lora,
    load_schedule,
    load_scheduler,
    load_unet,
    perturbed_attention,
    prompt_embedding,
    save_inpaint_folder,
    small_unet,
)
from hoi_lightning.networks.latent_windows import hand_corners, neighbourhood, windows
from hoi_lightning.tasks.base import (
    HoiTask,
    Optimizer,
    check_choices,
    check_finite,
    check_ranges,
    file_hash,
    read_config,
    write_config,
)
from hoi_lightning.weights import shipped

STRIP = 8  # pictures of one denoising
PROMPT = "a hand interacting with an object"
# arguments that a released folder answers itself
_OF_TRAINING = {"pretrained", "revision", "widen_conv_in", "lora_rank", "unet_channels", "compile_unet", "optimizer"}


class FusionNet(HoiTask):
    """Paint a hand into the object picture where the layout says, and nothing else.

    The U-Net's nine channels are Stable Diffusion's: noisy latents (4), hole (1), latents of the object picture (4).
    The autoencoder, and the text encoder of which one constant embedding is used, stay frozen and in no checkpoint.

    Args:
        pretrained: diffusers folder, hub id, or `mini-base`, which comes with the package, with `vae/`, `scheduler/`,
            `unet/` (and `text_encoder/`, `tokenizer/`).
        revision: branch, tag or commit of a hub id.
        widen_conv_in: take a text-to-image U-Net, too, whose filters of hole and context start at zero.
        lora_rank: train adapters of this rank on the attention layers (Hu et al. 2106.09685) instead of all weights;
            checkpoints hold the adapters alone.
        unet_channels: widths of a small U-Net to train from scratch; None = fine-tune `<pretrained>/unet`.
        image_size: side of the pictures in pixels.
        object_context: what the network sees of the object picture: all of it, also under the future hand, or, as
            Stable Diffusion is used to, only what is outside the hole.
        hole_dilation: the hole is the proxy dilated by this many radii.
        hand_hole: share of training holes that are the true hand mask, so that arbitrary masks are served, too.
        full_hole: share of training holes that are the whole picture, as in Stable Diffusion inpainting's training.
        context_dropout: share of training samples that see no object picture; `RePaintSampler.guidance_scale` needs it.
        min_snr_gamma: γ of the loss weight min(SNR, γ) / SNR for `epsilon`, / (SNR + 1) for `v_prediction`, min(SNR, γ)
            for `sample` (Hang et al. 2303.09556); None = 1.
        outside_weight: weight of the loss outside the hole.
        timestep_power: t = T·u^p for uniform u; below 1 favours noisy timesteps.
        crop: side of random latent windows on hand and forearm to train on; None = whole pictures. A small-machine
            speed-up; smaller ones than `neighbourhood` samples in cost quality.
        neighbourhood: sample the latents of the hole's neighbourhood only, a square about it whose side is a multiple
            of 16 cells; another small-machine speed-up.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a fifth slower.
        compile_unet: `torch.compile` the U-Net: minutes at the start, faster steps on a GPU.
        optimizer: see `HoiTask`.
        sampler: preset of `sample`.
        learning_rate: see `HoiTask`.
        weight_decay: see `HoiTask`.
        warmup_steps: see `HoiTask`.
        lr_schedule: see `HoiTask`.
        seed: see `HoiTask`.
    """

    of_the_command = ("sampler", "compile_unet", "gradient_checkpointing")
    of_training = ("compile_unet", "gradient_checkpointing")
    of_the_weights = ("object_context",)
    trained_on: tuple[Field, ...] = ("hoi", "obj")
    prompt_embeds: Tensor
    unet: Any

    buckets: LossBuckets

    def __init__(
        self,
        pretrained: str = "stable-diffusion-v1-5/stable-diffusion-inpainting",
        revision: str | None = None,
        widen_conv_in: bool = False,
        lora_rank: int | None = None,
        unet_channels: tuple[int, ...] | None = None,
        image_size: int = 512,
        object_context: Literal["full", "masked"] = "full",
        hole_dilation: float = HOLE_DILATION,
        hand_hole: float = 0.0,
        full_hole: float = 0.0,
        context_dropout: float = 0.0,
        min_snr_gamma: float | None = None,
        outside_weight: float = 0.1,
        timestep_power: float = 1.0,
        crop: int | None = None,
        neighbourhood: bool = False,
        gradient_checkpointing: bool = False,
        compile_unet: bool = False,
        optimizer: Optimizer = "adamw",
        sampler: Preset = "fast",
        learning_rate: float = 1e-5,
        weight_decay: float = 1e-2,
        warmup_steps: int = 0,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        seed: int | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, warmup_steps, lr_schedule, seed, optimizer)
        self.save_hyperparameters()
        for name in ("hand_hole", "full_hole", "context_dropout", "outside_weight"):
            check_ranges(**{name: (self.hparams[name], 0, 1)})
        check_ranges(hole_dilation=(hole_dilation, 0, None), timestep_power=(timestep_power, 0.01, None))
        if lora_rank is not None:
            check_ranges(lora_rank=(lora_rank, 1, None))
            if unet_channels is not None or widen_conv_in:
                other = "unet_channels" if unet_channels is not None else "widen_conv_in"
                raise InputError(
                    f"--model.lora_rank {lora_rank}: adapters leave the U-Net as it is, and with --model.{other} it is "
                    "new; leave one of them out"
                )
        if hand_hole + full_hole > 1:
            raise InputError(
                f"--model.hand_hole {hand_hole:g} and --model.full_hole {full_hole:g}: are shares of the training "
                "holes; give two whose sum is at most 1"
            )
        check_choices(object_context=(object_context, ("full", "masked")), sampler=(sampler, tuple(PRESETS)))
        if min_snr_gamma is not None:
            check_ranges(min_snr_gamma=(min_snr_gamma, 0.01, None))
        if crop is not None:
            check_ranges(crop=(crop, 1, None))
        if shipped(pretrained).is_dir():
            pretrained = str(shipped(pretrained))
        self.pretrained = pretrained
        self.latents = load_vae(pretrained, revision)
        check_sides("FusionNet (--model.image_size)", image_size, image_size, self.latents.factor)
        self.schedule, self.prediction_type = load_schedule(pretrained, revision)
        if unet_channels is None:
            self.unet = load_unet(pretrained, revision, widen_conv_in)
            prompt = prompt_embedding(pretrained, PROMPT, self.unet.config.cross_attention_dim, revision)
            if self.unet.config.out_channels != self.latents.channels:
                raise InputError(
                    f"--model.pretrained {pretrained}: its unet paints latents of {self.unet.config.out_channels} "
                    f"channels, its vae makes {self.latents.channels}; both must be of one checkpoint"
                )
        else:
            prompt = prompt_embedding(pretrained, PROMPT, None, revision)
            cells = image_size // self.latents.factor
            self.unet = small_unet(unet_channels, self.latents.channels, cells, prompt.shape[-1])
        self.frozen = self._frozen_parts(lora_rank is not None)
        self.unet.to(memory_format=torch.channels_last)
        if lora_rank is not None:
            add_lora(self.unet, lora_rank)
            self.strict_loading = False
        if compile_unet:
            self.unet.compile()
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.register_buffer("prompt_embeds", prompt)
        self.image_size, self.object_context, self.hole_dilation = image_size, object_context, hole_dilation
        self.hand_hole, self.full_hole, self.context_dropout = hand_hole, full_hole, context_dropout
        self.min_snr_gamma, self.outside_weight = min_snr_gamma, outside_weight
        self.timestep_power, self.crop, self.neighbourhood = timestep_power, crop, neighbourhood
        self.sampler, self.revision = PRESETS[sampler], revision
        self.buckets = LossBuckets(len(self.schedule.alpha_bar), ("loss_hole",))
        self.recalls = CatMetric()

    def setup(self, stage: str) -> None:
        """Refuse data that cannot be trained on: members not decoded, or latents that another autoencoder made.

        Raises:
            InputError: it is so.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit":
            return
        needed = [] if data.latents else list(self.trained_on)
        needed += ["hand"] if self.hand_hole else []
        if lacking := [name for name in needed if name not in data.fields]:
            raise InputError(
                f"--data.fields {list(data.fields)}: FusionNet trains on {', '.join(lacking)}, too; add it"
            )
        if not data.latents:
            return
        made_by = data.index("train").latents_vae
        if made_by is not None and made_by["sha256"] != self.latents.fingerprint():
            raise InputError(
                f"--data.latents: {data.shards} holds latents of {made_by['id']}, whose weights are not those of "
                f"--model.pretrained {self.pretrained}; run `python -m data_prep latents {data.shards} --vae "
                f"{self.pretrained} --overwrite`"
            )

    def configure_model(self) -> None:
        """Under `ModelParallelStrategy` share every block of the U-Net out over the GPUs of a machine (FSDP2).

        Raises:
            InputError: `neighbourhood`, with which processes would call the network differently often, or `adamw8bit`.
        """
        mesh = self.device_mesh
        if mesh is None or isinstance(next(self.unet.parameters()), DTensor):
            return
        if self.neighbourhood:
            raise InputError("--model.neighbourhood true: not with --trainer.strategy ModelParallelStrategy; give ddp")
        if self.optimizer == "adamw8bit":
            raise InputError(
                "--model.optimizer adamw8bit: bitsandbytes does not take shared-out weights; with "
                "--trainer.strategy ModelParallelStrategy use adamw"
            )
        self.unet.to(memory_format=torch.contiguous_format)  # shares are of rows
        for part in (*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks, self.unet):
            # the mesh is machines by GPUs: shared out within a machine, repeated on each
            fully_shard(part, mesh=mesh, reshard_after_forward=True)  # EMA wants shares after validation

    def hole_mask(self, layouts: Tensor) -> Tensor:
        """The hole of each layout (B, 5): (B, 1, S, S) of {0, 1} at `image_size`."""
        return hole_mask(layouts, self.image_size, self.hole_dilation)

    def training_holes(self, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        """The holes to train on, (B, 1, S, S) of {0, 1}: the layout's, now and then the hand's own, or everything.

        Raises:
            InputError: pictures or cached latents have another size than the task's.
        """
        self._check_side(batch)
        hole = self.hole_mask(batch["layout"])
        u = torch.rand(len(hole), 1, 1, 1, generator=generator, device=hole.device)
        if self.hand_hole:
            hole = torch.where(u < self.hand_hole, batch["hand"], hole)
        return torch.where(u > 1 - self.full_hole, torch.ones_like(hole), hole)

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted squared error of the diffusion target at one timestep per sample."""
        hole = self.training_holes(batch, generator)
        hole_z = self._to_latent(hole)
        if "hoi_latents" in batch:
            if self.object_context == "masked":
                raise InputError("--data.latents: cached are whole object pictures; use --model.object_context full")
            context = batch["obj_latents"]
            z0 = torch.lerp(context, batch["hoi_latents"], hole_z)
        else:
            context = self._encode_context(batch["obj"], hole)
            # nothing is asked for outside the hole: there the target is the object picture
            z0 = self.latents.encode(torch.lerp(batch["obj"], batch["hoi"], hole))
        if self.crop is not None and self.training and z0.shape[-1] > self.crop:
            corners = hand_corners(batch["layout"], z0.shape[-1], self.crop, generator)
            z0, context, hole_z = (windows(x, corners, self.crop) for x in (z0, context, hole_z))
        seen = torch.rand(len(z0), 1, 1, 1, generator=generator, device=z0.device) >= self.context_dropout
        context = context * seen
        num_timesteps = len(self.schedule.alpha_bar)
        u = torch.rand(len(z0), generator=generator, device=z0.device)
        t = (num_timesteps * u**self.timestep_power).long().clamp(max=num_timesteps - 1)
        eps = torch.randn(z0.shape, generator=generator, device=z0.device)
        output = self._predict(self.schedule.q_sample(z0, t, eps), t, hole_z, context)
        error = (output - self.schedule.target(z0, eps, t, self.prediction_type)).square()
        error = error * self._snr_weight(t)[:, None, None, None]
        # no weight may depend on the target, where the hand is: it would tilt the samples towards more hand
        weight = self.outside_weight + (1 - self.outside_weight) * hole_z
        in_hole = (hole_z * error).sum(dim=(1, 2, 3)) / (hole_z.sum(dim=(1, 2, 3)) * error.shape[1]).clamp(min=1)
        self.buckets.update(t, in_hole)
        return {
            "loss": (weight * error).sum() / (weight.sum() * error.shape[1]),
            "loss_hole": (hole_z * error).sum() / (hole_z.sum() * error.shape[1]).clamp(min=1),
        }

    @torch.no_grad()
    def sample(
        self, obj: Tensor, layouts: Tensor, seeds: Sequence[int], sampler: RePaintSampler | None = None
    ) -> Tensor:
        """Paint one hand per picture.

        Args:
            obj: object pictures (B, 3, S, S) in [-1, 1] at `image_size`.
            layouts: (B, 5).
            seeds: one per picture; a picture depends on its own seed only, not on its batch.
            sampler: another than the task's preset.

        Returns:
            (B, 3, S, S) in [-1, 1]; outside the hole equal to `obj`.
        """
        return self.sample_holes(obj, self.hole_mask(layouts), seeds, sampler)

    @torch.no_grad()
    def sample_holes(
        self, obj: Tensor, hole: Tensor, seeds: Sequence[int], sampler: RePaintSampler | None = None
    ) -> Tensor:
        """As `sample`, for holes of any shape (B, 1, S, S) of {0, 1}, in pictures of any side that can be encoded.

        Raises:
            InputError: pictures are not square or their side is no multiple of the autoencoder's factor, or holes have
                another size or other values; or the sampler is none for this network.
        """
        height, width = obj.shape[-2:]
        if height != width:
            raise InputError(f"pictures of {width}x{height}: FusionNet paints squares; cut one out of each")
        check_holes("FusionNet", obj, hole, self.latents.factor)
        if len(seeds) != len(obj):
            raise InputError(f"seeds: {len(seeds)} for {len(obj)} pictures; give one each")
        sampler = sampler or self.sampler
        self.check_sampler(sampler)
        z0 = self._paint_latents(obj, hole, seeds, sampler)
        return torch.lerp(obj, self.latents.decode(z0), feather(hole))

    def _paint_latents(
        self,
        obj: Tensor,
        hole: Tensor,
        seeds: Sequence[int],
        sampler: RePaintSampler,
        estimates: list[Tensor] | None = None,
    ) -> Tensor:
        """Latents of `obj` with painted holes; every call's estimate of them is added to `estimates`."""
        hole_z, context, known = self._to_latent(hole), self._encode_context(obj, hole), self.latents.encode(obj)
        z0 = known.clone()
        boxes = [neighbourhood(one) if self.neighbourhood else (0, 0, one.shape[-1]) for one in hole_z[:, 0]]
        for side in sorted({box[2] for box in boxes}):
            rows = [row for row, box in enumerate(boxes) if box[2] == side]
            corners = torch.tensor([boxes[row][:2] for row in rows], device=obj.device)
            known_w, context_w, hole_w = (windows(x[rows], corners, side) for x in (known, context, hole_z))
            own: list[Tensor] | None = None if estimates is None else []
            painted = self._sample_latents(known_w, context_w, hole_w, [seeds[row] for row in rows], sampler, own)
            if estimates is not None and own is not None:
                estimates.extend(known.clone() for _ in own[len(estimates) :])
                for whole, part in zip(estimates, own, strict=True):
                    _put(whole, part, rows, boxes)
            _put(z0, painted, rows, boxes)
        return z0

    def check_sampler(self, sampler: RePaintSampler) -> None:
        """Refuse what this network cannot be sampled with.

        Raises:
            InputError: guidance away from an answer that it never learnt, or more steps than the schedule has.
        """
        if sampler.guidance_scale != 1 and self.context_dropout == 0:
            raise InputError(
                f"guidance_scale {sampler.guidance_scale:g} (--painter-guidance): this FusionNet was fitted with "
                "--model.context_dropout 0, so it has no answer without the object picture; leave it at 1, or fit with "
                "--model.context_dropout 0.1"
            )
        most = len(self.schedule.alpha_bar)
        if not 1 <= sampler.num_steps <= most:
            raise InputError(f"num_steps {sampler.num_steps} (--painter-steps): this FusionNet has {most} noise levels")

    def _sample_latents(
        self,
        known: Tensor,
        context: Tensor,
        hole_z: Tensor,
        seeds: Sequence[int],
        sampler: RePaintSampler,
        estimates: list[Tensor] | None,
    ) -> Tensor:
        """Latents like `known`, painted in the hole; every call's estimate of them is added to `estimates`."""
        noise = SampleNoise(seeds)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            plain = output = self._predict(x_t, t, hole_z, context)
            if sampler.guidance_scale != 1:
                blind = self._predict(x_t, t, hole_z, torch.zeros_like(context))
                output = output + (sampler.guidance_scale - 1) * (plain - blind)
            if sampler.attention_guidance != 0:
                with perturbed_attention(self.unet):
                    inattentive = self._predict(x_t, t, hole_z, context)
                output = output + sampler.attention_guidance * (plain - inattentive)
            z0 = self.schedule.to_x0(output, x_t, t, self.prediction_type)
            if estimates is not None:  # hundreds of calls' would fill the memory
                estimates.append(torch.lerp(known, z0, hole_z))
            return z0

        x_T, timesteps = noise(known), self.schedule.timesteps(sampler.num_steps)
        step = sampler.step(self.schedule, noise)
        if sampler.composition == "off":
            return sample_steps(denoise, x_T, timesteps, step)
        return sample_repaint(
            denoise, x_T, self.schedule, timesteps, noise, known, 1 - hole_z,
            sampler.jump_length, sampler.visits, sampler.start_resampling, step,
        )  # fmt: skip

    def panels(self, batch: dict[str, Any], seed: int) -> dict[str, list[np.ndarray]]:
        """Columns of a sample grid: object, hole, three samples, truth; uint8 (S, S, 3) each."""
        obj, layouts, count = batch["obj"], batch["layout"], len(batch["key"])
        draws = [self.sample(obj, layouts, [seed + k] * count) for k in range(3)]
        hole = torch.lerp(obj, torch.ones_like(obj), 0.6 * self.hole_mask(layouts))
        columns = {
            "object": obj,
            "hole": hole,
            **{f"sample {k}": draw for k, draw in enumerate(draws)},
            "truth": batch["hoi"],
        }
        return {name: _to_uint8(pictures) for name, pictures in columns.items()}

    def figures(self, batch: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
        """`denoising`: what the network takes the finished picture for, from the first call to the last, four rows."""
        obj, hole = batch["obj"][:4], self.hole_mask(batch["layout"][:4])
        estimates: list[Tensor] = []
        self._paint_latents(obj, hole, [seed] * len(obj), self.sampler, estimates)
        calls = np.linspace(0, len(estimates) - 1, min(STRIP, len(estimates))).astype(int)
        columns = {f"call {call + 1}": self.latents.decode(estimates[call]) for call in calls}
        return {"denoising": np.asarray(draw_grid({name: _to_uint8(column) for name, column in columns.items()}))}

    def sample_images(self, batch: dict[str, Any], seeds: Sequence[int]) -> Tensor:
        """Samples for the recorded layouts of a batch, (B, 3, S, S) in [-1, 1]; image metrics see them."""
        return self.sample(batch["obj"], batch["layout"], seeds)

    def evaluate_batch(self, batch: dict[str, Any], batch_idx: int, prefix: str) -> None:
        """The loss, and the share of the hand's pixels that the hole covers."""
        super().evaluate_batch(batch, batch_idx, prefix)
        hole = self.hole_mask(batch["layout"])
        recall = (hole * batch["hand"]).sum(dim=(1, 2, 3)) / batch["hand"].sum(dim=(1, 2, 3)).clamp(min=1)
        self.recalls.update(recall)

    def reset_figures(self) -> None:
        """Forget what was gathered."""
        super().reset_figures()
        self.recalls.reset()

    def log_figures(self, prefix: str) -> None:
        """Log the median recall of the whole split, too."""
        super().log_figures(prefix)
        self.log(f"{prefix}/hole_recall", self.recalls.compute().quantile(0.5), sync_dist=True)  # equal on all ranks

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave a frozen U-Net out."""
        super().on_save_checkpoint(checkpoint)
        if not self.strict_loading:  # it is the pretrained one
            learnt = {name for name, p in self.named_parameters() if p.requires_grad}
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in learnt}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """One picture per sample, painted at its recorded layout."""
        seeds = self.key_seeds(batch["key"])
        return {"image": self.sample_images(batch, seeds), "layout": batch["layout"], "seed": seeds}

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write a Stable Diffusion inpainting folder that diffusers opens, too, and `config.json` beside its parts.

        `prompt_embeds.safetensors` holds the one prompt's embedding in place of a text encoder. Adapters are merged
        into `unet/` and lie by themselves in `lora/`, for `load_lora_adapter`.
        """
        scheduler = load_scheduler(self.pretrained, self.revision)
        save_inpaint_folder(folder, self.unet, self.latents.vae, scheduler, self.prompt_embeds, dtype)
        write_config(folder, {k: v for k, v in self._arguments().items() if k not in _OF_TRAINING})

    @classmethod
    def from_pretrained(cls, folder: Path, device: str | torch.device = "cpu") -> Self:
        """Open what `save_pretrained` wrote, for inference.

        Raises:
            InputError: a file is missing, damaged or of another model.
        """
        arguments = read_config(folder) | {"pretrained": str(folder)}
        try:
            task = cls(**arguments)
        except (InputError, TypeError) as error:  # the remedies that follow the reason are of `fit`
            reason = str(error).removeprefix(f"--model.pretrained {folder}: ").partition("; ")[0]
            raise InputError(f"{folder}: holds no {cls.__name__} ({reason}); export it again") from None
        files = sorted(file for file in folder.rglob("*") if file.suffix in (".json", ".safetensors"))
        check_finite(folder, task.state_dict())
        task.checkpoint_hash = hashlib.sha256("".join(map(file_hash, files)).encode()).hexdigest()
        return task.eval().requires_grad_(False).to(device)

    def _frozen_parts(self, unet_too: bool) -> dict[str, str]:
        """SHA-256 of what training leaves as it is and no checkpoint holds."""
        schedule = self.schedule.alpha_bar.numpy().tobytes() + self.prediction_type.encode()
        parts = {"vae": self.latents.fingerprint(), "scheduler": hashlib.sha256(schedule).hexdigest()}
        return parts | ({"unet": weights_hash(self.unet)} if unet_too else {})

    def _check_side(self, batch: dict[str, Any]) -> None:
        if "hoi_latents" in batch:
            side, remedy = batch["hoi_latents"].shape[-1] * self.latents.factor, "give --model.image_size {}"
        else:
            side, remedy = batch["obj"].shape[-1], "give one of --data.image_size and --model.image_size the other's"
        if side != self.image_size:
            what = "cached latents are of pictures" if "hoi_latents" in batch else "the data's pictures are"
            raise InputError(f"--model.image_size {self.image_size}: {what} of {side}x{side}; {remedy.format(side)}")

    def _predict(self, x_t: Tensor, t: Tensor, hole_z: Tensor, context: Tensor) -> Tensor:
        prompt = self.prompt_embeds.expand(len(x_t), -1, -1)
        return self.unet(torch.cat([x_t, hole_z, context], dim=1), t, prompt).sample.float()

    def _encode_context(self, obj: Tensor, hole: Tensor) -> Tensor:
        return self.latents.encode(obj if self.object_context == "full" else obj * (1 - hole))

    def _to_latent(self, pixels: Tensor) -> Tensor:
        """A latent cell is in the hole as soon as one of its pixels is."""
        return F.max_pool2d(pixels, self.latents.factor)

    def _snr_weight(self, t: Tensor) -> Tensor:
        if self.min_snr_gamma is None:
            return torch.ones_like(t, dtype=torch.float32)
        snr = self.schedule.snr(t)
        clamped = snr.clamp(max=self.min_snr_gamma)
        share = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}  # a unit error of x0 in it
        return clamped / share[self.prediction_type]


def _put(whole: Tensor, parts: Tensor, rows: list[int], boxes: list[tuple[int, int, int]]) -> None:
    """Put windows of `rows` (x, y, side) into `whole` (B, C, h, w), in place."""
    for row, part in zip(rows, parts, strict=True):
        left, top, side = boxes[row]
        whole[row, :, top : top + side, left : left + side] = part


def _to_uint8(pictures: Tensor) -> list[np.ndarray]:
    return list(((pictures.float() + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
