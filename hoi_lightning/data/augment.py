"""Augmentation of a batch on its device: pictures, masks and layouts move together.

Random numbers belong to (seed, epoch, sample), not to the process that happens to load the sample.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_lightning.hand_proxy import crop_layout, flip_layout

PICTURES = ("hoi", "obj", "hand", "object")


@dataclass(frozen=True)
class Augment:
    """What happens to a training batch.

    Attributes:
        crop_area: smallest share of the picture's area that a random square crop keeps, in (0, 1]; 1 = no crop.
        flip: probability of a mirror image. Off: HOI4D's hands are 99 % right hands, a mirrored one is a left hand.
        sdedit: probability that the object picture is replaced by its SDEdit copy, where the shards have one.
        noise: probability of Gaussian noise (σ = 0.05 of the value range 0..1) on the object picture.
    """

    crop_area: float = 0.8
    flip: float = 0.0
    sdedit: float = 0.5
    noise: float = 0.5


def augment(batch: dict[str, Any], settings: Augment, seed: int) -> dict[str, Any]:
    """Augment a float batch.

    Args:
        batch: pictures (B, C, S, S) in [-1, 1], masks in {0, 1}, `layout` (B, 5), `keypoints` (B, 21, 2),
            `epoch` and `index` (B,).
        settings: probabilities and ranges.
        seed: of the experiment.

    Returns:
        A new batch; `sdedit` is gone from it.
    """
    batch = dict(batch)
    draws = _uniform(seed, batch["epoch"], batch["index"], 6).to(batch["layout"])
    sdedit = batch.pop("sdedit", None)
    if sdedit is not None:
        batch["obj"] = torch.where(_as_pictures(draws[:, 0] < settings.sdedit), sdedit, batch["obj"])
    if settings.crop_area < 1 or settings.flip > 0:
        box = crop_boxes(settings.crop_area, draws[:, 1:4])
        flip = draws[:, 4] < settings.flip
        batch["layout"] = crop_layout(batch["layout"], box)
        batch["layout"] = torch.where(flip[:, None], flip_layout(batch["layout"]), batch["layout"])
        if "keypoints" in batch:
            batch["keypoints"] = crop_points(batch["keypoints"], box, flip)
        for name in PICTURES:
            if name in batch:
                batch[name] = warp(batch[name], box, flip, nearest=name in ("hand", "object"))
    if settings.noise > 0:
        sigma = 0.1 * (draws[:, 5] < settings.noise)  # 0.05 of the range 0..1 is 0.1 of -1..1
        generator = torch.Generator().manual_seed(int(draws[0, 5] * 2**24))
        noise = torch.randn(batch["obj"].shape, generator=generator).to(batch["obj"])
        batch["obj"] = (batch["obj"] + _as_pictures(sigma) * noise).clamp(-1, 1)
    return batch


def crop_boxes(area: float, draws: Tensor) -> Tensor:
    """Square windows in NDC, (B, 4) as x0, y0, x1, y1, from uniform draws (B, 3); area share in [`area`, 1]."""
    half = (area + (1 - area) * draws[:, 0]).sqrt()
    centre = (2 * draws[:, 1:3] - 1) * (1 - half)[:, None]
    return torch.cat([centre - half[:, None], centre + half[:, None]], dim=1)


def crop_points(points: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """Express points (B, N, 2) in the NDC of windows `box` (B, 4), then mirror where `flip` (B,)."""
    low, high = box[:, None, :2], box[:, None, 2:]
    points = (2 * points - low - high) / (high - low)
    return torch.where(flip[:, None, None], points * points.new_tensor([-1, 1]), points)


def warp(pictures: Tensor, box: Tensor, flip: Tensor, nearest: bool) -> Tensor:
    """Cut the NDC windows `box` (B, 4) out of pictures (B, C, S, S) at the same size, then mirror where `flip`."""
    half = (box[:, 2] - box[:, 0]) / 2
    zero = torch.zeros_like(half)
    mirror = torch.where(flip, -half, half)
    centre = (box[:, :2] + box[:, 2:]) / 2
    theta = torch.stack([mirror, zero, centre[:, 0], zero, half, centre[:, 1]], dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(pictures, grid, mode=mode, padding_mode="border", align_corners=False)


def _uniform(seed: int, epochs: Tensor, indices: Tensor, count: int) -> Tensor:
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, (int(epoch) << 40) + int(index)])).random(count)
        for epoch, index in zip(epochs, indices, strict=True)
    ]
    return torch.from_numpy(np.stack(rows))


def _as_pictures(values: Tensor) -> Tensor:
    return values[:, None, None, None]
