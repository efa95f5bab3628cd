"""MiniMetrics: trains the small feature network that stands in for Inception and AlexNet in the mini world."""

import hashlib
import json
import shlex
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoi_lightning.hand_proxy import splat
from hoi_lightning.metrics.mini import MODEL_FILE, SIDE, MiniFeatures
from hoi_lightning.provenance import git_commit
from hoi_lightning.tasks.base import HoiTask

MAX_BLUR = 2.5  # pixels, standard deviation
MAX_NOISE = 0.3  # of the value range -1..1
MAX_HUE = 1.5  # radians about the grey axis
DENSE_SIDE = SIDE // 4
KEYPOINTS = 21
KEYPOINT_WIDTH = 0.07  # NDC, standard deviation of a keypoint's bump

# parts of the answer that is read off the feature vector, with their lengths
SCALARS = {"layout": 5, "keypoints": 2 * KEYPOINTS, "share": 1, "colours": 12, "contrast": 1, "damage": 5}


class MiniMetrics(HoiTask):
    """Fit `MiniFeatures` to what a picture of a hand and an object tells, and to what was done to the picture.

    Read off the activations at a quarter of the side: masks of hand and object, the keypoints. Read off the feature
    vector: layout, keypoints, the share of the hand that is there, category, colours, contrast, and the degrees of
    blur, noise, hue shift and saturation that were applied. A part of the hand, or all of it, is replaced by the object
    picture in some samples. When the fit ends, `<run>/mini-metrics` holds the network with its card.

    Args:
        categories: object categories to tell apart; those of other pictures are not asked for.
        learning_rate: see `HoiTask`.
        weight_decay: see `HoiTask`.
        warmup_steps: see `HoiTask`.
        lr_schedule: see `HoiTask`.
        seed: see `HoiTask`.
    """

    def __init__(
        self,
        categories: Sequence[str] = (),
        learning_rate: float = 2e-3,
        weight_decay: float = 1e-3,
        warmup_steps: int = 0,
        lr_schedule: Literal["constant", "cosine"] = "cosine",
        seed: int | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, warmup_steps, lr_schedule, seed)
        self.save_hyperparameters()
        self.categories = list(categories)
        self.features = MiniFeatures()
        self.laterals = nn.ModuleList(nn.Conv2d(width, 48, 1) for width in MiniFeatures.WIDTHS[1:])
        self.dense = nn.Sequential(nn.ReLU(), nn.Conv2d(48, 2 + KEYPOINTS, 3, padding=1))
        answers = sum(SCALARS.values()) + len(self.categories)
        self.read = nn.Sequential(nn.Linear(self.features.num_features, 128), nn.GELU(), nn.Linear(128, answers))
        self.to(memory_format=torch.channels_last)
        self._recent: deque[dict[str, Tensor]] = deque(maxlen=100)

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted sum of all answers' errors; each term is logged."""
        batch = _at_side(batch)
        gone = _erasure(batch, generator)
        picture = batch["hoi"] + gone * (batch["obj"] - batch["hoi"])
        picture, damage = _damage(picture, generator)
        stages = self.features.activations(picture)
        terms = self._dense_terms(stages, batch, gone) | self._scalar_terms(stages, picture, batch, gone, damage)
        terms["loss"] = torch.stack(list(terms.values())).sum()
        if self.training:
            self._recent.append({name: value.detach() for name, value in terms.items()})
        return terms

    def on_fit_end(self) -> None:
        """Save the trunk and its card."""
        if self.trainer.is_global_zero:
            self.export(Path(self.trainer.default_root_dir, "mini-metrics"))

    def export(self, folder: Path) -> None:
        """Write `model.safetensors` (float16) and `card.json`, which says how it was made."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        data = save(self.features.half_state())
        (folder / MODEL_FILE).write_bytes(data)
        config = Path(self.trainer.default_root_dir, "config.yaml")
        shards: Any = getattr(self.trainer, "datamodule", None)
        card = {
            "what": "feature network of fd_mini and lpips_mini; neither Inception nor AlexNet",
            "command": shlex.join(["python", "-m", "hoi_lightning", *sys.argv[1:]]),
            "config_sha256": hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else None,
            "manifest_sha256": shards.index("train").manifest_hash if shards else None,
            "git_commit": git_commit(),
            "seed": self.seed,
            "steps": self.global_step,
            "parameters": sum(p.numel() for p in self.features.parameters()),
            "final_losses": _means(self._recent),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    def panels(self, batch: dict[str, Any], seed: int) -> dict[str, list[np.ndarray]]:
        """Columns of a sample grid: HOI picture, hand and object as the network sees them."""
        batch = _at_side(batch)
        masks = self._dense(self.features.activations(batch["hoi"]))[:, :2].sigmoid()
        seen = F.interpolate(masks, size=(SIDE, SIDE), mode="bilinear")
        columns = {"hoi": (batch["hoi"] + 1) / 2, "hand": seen[:, :1], "object": seen[:, 1:]}
        return {
            name: list((pictures.expand(-1, 3, -1, -1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
            for name, pictures in columns.items()
        }

    def _dense(self, stages: list[Tensor]) -> Tensor:
        """Logits (B, 2 + 21, DENSE_SIDE, DENSE_SIDE): hand, object, keypoints."""
        laterals = [lateral(stage) for lateral, stage in zip(self.laterals, stages[1:], strict=True)]
        x = laterals.pop()
        for lateral in reversed(laterals):
            x = lateral + F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.dense(x)

    def _dense_terms(self, stages: list[Tensor], batch: dict[str, Any], gone: Tensor) -> dict[str, Tensor]:
        logits = self._dense(stages)
        hand, thing = (F.avg_pool2d(mask, 4) for mask in (batch["hand"] * (1 - gone), batch["object"]))
        # what the object looks like under an erased hand is in no mask
        known = 1 - F.max_pool2d(batch["hand"] * gone, 4)
        object_error = F.binary_cross_entropy_with_logits(logits[:, 1:2], thing, reduction="none")
        bumps, seen = _keypoint_maps(batch["keypoints"], gone)
        error = (logits[:, 2:].sigmoid() - bumps).square() * (1 + 20 * bumps)
        return {
            "hand": F.binary_cross_entropy_with_logits(logits[:, :1], hand),
            "object": (object_error * known).mean(),
            "keypoint_maps": 10 * (error.mean(dim=(1, 2, 3)) * seen).mean(),
        }

    def _scalar_terms(
        self, stages: list[Tensor], picture: Tensor, batch: dict[str, Any], gone: Tensor, damage: Tensor
    ) -> dict[str, Tensor]:
        answers = self.read(self.features.pool(stages))
        *parts, category = answers.split([*SCALARS.values(), len(self.categories)], dim=1)
        said = dict(zip(SCALARS, parts, strict=True))
        share = (batch["hand"] * (1 - gone)).sum(dim=(1, 2, 3)) / batch["hand"].sum(dim=(1, 2, 3)).clamp(min=1)
        there = (share > 0.5).float()[:, None]  # a layout is asked for where most of the hand is
        points = batch["keypoints"].flatten(1)
        known = there * points.isfinite().all(dim=1, keepdim=True)
        truth = torch.tensor(
            [self.categories.index(name) if name in self.categories else -1 for name in batch["category"]],
            device=picture.device,
        )
        terms = {
            "layout": (F.smooth_l1_loss(said["layout"], batch["layout"], reduction="none") * there).mean(),
            "keypoints": 2
            * (F.smooth_l1_loss(said["keypoints"], points.nan_to_num(), reduction="none") * known).mean(),
            "share": (said["share"][:, 0] - share).square().mean(),
            "colours": (said["colours"] - F.adaptive_avg_pool2d(picture, 2).flatten(1)).square().mean(),
            "contrast": (said["contrast"][:, 0] - 2 * picture.std(dim=(1, 2, 3))).square().mean(),
            "damage": (said["damage"] - damage).square().mean(),
        }
        if (truth >= 0).any():
            terms["category"] = 0.3 * F.cross_entropy(category, truth, ignore_index=-1)
        return terms


def _means(rows: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    return {name: round(float(np.mean([float(row[name]) for row in rows if name in row])), 5) for name in rows[-1]}


def _at_side(batch: dict[str, Any]) -> dict[str, Any]:
    if batch["hoi"].shape[-1] == SIDE:
        return batch
    size = (SIDE, SIDE)
    pictures = {name: F.interpolate(batch[name], size=size, mode="bilinear", antialias=True) for name in ("hoi", "obj")}
    masks = {name: F.interpolate(batch[name], size=size, mode="nearest-exact") for name in ("hand", "object")}
    return batch | pictures | masks


def _erasure(batch: dict[str, Any], generator: torch.Generator) -> Tensor:
    """Where the object picture takes the HOI picture's place, (B, 1, SIDE, SIDE) of {0, 1}.

    Nowhere in two fifths of the samples, in a disc about one keypoint (the layout's centre where there is none) in as
    many, everywhere in the others.
    """
    layout = batch["layout"]
    draws = torch.rand((len(layout), 3), generator=generator, device=layout.device)
    chosen = (draws[:, 1] * KEYPOINTS).long()
    centre = batch["keypoints"][torch.arange(len(layout), device=layout.device), chosen]
    centre = torch.where(centre.isfinite(), centre, layout[:, 1:3])
    a = (2 * (0.08 + 0.25 * draws[:, 2])).sqrt()
    discs = torch.cat([a[:, None], centre, torch.zeros_like(centre)], dim=1)  # a proxy without a forearm
    disc = (splat(discs, SIDE) > 0.5).float()
    fate = draws[:, 0, None, None, None]
    return torch.where(fate < 0.4, disc, (fate > 0.8).float())


def _damage(pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blur, recolour and disturb pictures (B, 3, S, S), each with an even chance; the degrees (B, 5) are about 0..1."""
    count, device = len(pictures), pictures.device
    draws = torch.rand((count, 4), generator=generator, device=device)
    applied = torch.rand((count, 4), generator=generator, device=device) < 0.5
    blur, noise, hue, saturation = (draws * applied).unbind(1)
    hue = (hue - 0.5) * applied[:, 2] * 2 * MAX_HUE
    saturation = torch.where(applied[:, 3], 1.6 * saturation + 0.2, 1.0)
    pictures = _recolour(_blur(pictures, MAX_BLUR * blur), hue, saturation)
    disturbance = torch.randn(pictures.shape, generator=generator, device=device)
    pictures = (pictures + (MAX_NOISE * noise)[:, None, None, None] * disturbance).clamp(-1, 1)
    return pictures, torch.stack([blur, noise, hue.sin(), hue.cos(), saturation], dim=1)


def _blur(pictures: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation (B,) in pixels of its own for each picture (B, 3, S, S)."""
    reach = round(2.5 * MAX_BLUR)
    steps = torch.arange(-reach, reach + 1, device=sigma.device)
    kernel = torch.softmax(-0.5 * (steps / sigma.clamp(min=0.1)[:, None]).square(), dim=1)
    kernel = kernel.repeat_interleave(3, dim=0)[:, None, None]  # (3B, 1, 1, 2·reach + 1)
    flat = F.pad(pictures.flatten(0, 1)[None], [reach] * 4, mode="replicate")
    flat = F.conv2d(flat, kernel, groups=len(kernel))
    return F.conv2d(flat, kernel.mT, groups=len(kernel)).reshape(pictures.shape)


def _recolour(pictures: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """Turn colours by `hue` (B,) radians about the grey axis and scale their distance from it by `saturation` (B,)."""
    grey = pictures.new_full((3, 3), 1 / 3)
    turn = pictures.new_tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    along = (saturation * hue.cos())[:, None, None] * (torch.eye(3, device=hue.device) - grey)
    matrix = grey + along + (saturation * hue.sin())[:, None, None] * turn
    return torch.einsum("bij,bjhw->bihw", matrix, pictures)


def _keypoint_maps(keypoints: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """Bumps (B, 21, DENSE_SIDE, DENSE_SIDE) at the keypoints (B, 21, 2) that are there; (B,) 1 = known."""
    centres = (2 * torch.arange(DENSE_SIDE, device=gone.device) + 1) / DENSE_SIDE - 1
    points = keypoints.nan_to_num()
    x, y = (torch.exp(-0.5 * ((centres - points[..., k, None]) / KEYPOINT_WIDTH).square()) for k in (0, 1))
    erased = F.grid_sample(gone, points[:, None], mode="nearest", padding_mode="border", align_corners=False)[:, 0, 0]
    bumps = y[..., None] * x[..., None, :] * (1 - erased)[..., None, None]
    return bumps, keypoints.isfinite().all(dim=(1, 2)).float()
