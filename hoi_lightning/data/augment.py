"""Augmentation of a batch on its device: pictures, masks and layouts move together.

Random numbers belong to (seed, epoch, sample), not to the process that happens to load the sample.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import crop_layout, flip_layout

PICTURES = ("hoi", "obj", "hand", "object")
MAX_BLUR = 1 / 128  # of the side: 2 pixels of 256
_DRAWS = 16


@dataclass(frozen=True)
class Augment:
    """What happens to a training batch.

    Attributes:
        crop_area: smallest share of the picture's area that a random square crop keeps, in (0, 1]; 1 = no crop.
        flip: probability of a mirror image. Off: HOI4D's hands are 99 % right hands, a mirrored one is a left hand.
        sdedit: probability that the object picture is replaced by its SDEdit copy, where the shards have one.
        blur: probability that the object picture is blurred, σ up to 1/128 of its side.
        noise: probability of Gaussian noise (σ = 0.05 of the value range 0..1) on the object picture.
        colour: brightness, contrast and saturation of both pictures change by up to this share, alike in both, and the
            hue by up to this share of a quarter turn.
        jitter: the layout's centre moves by up to this many radii along x and y, and its radius changes by up to this
            share of itself.
        jitter_degrees: the forearm turns by up to so many degrees.
    """

    crop_area: float = 0.8
    flip: float = 0.0
    sdedit: float = 0.5
    blur: float = 0.0
    noise: float = 0.5
    colour: float = 0.0
    jitter: float = 0.0
    jitter_degrees: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no batch can be augmented with.

        Raises:
            InputError: it is outside its range.
        """
        if not 0 < self.crop_area <= 1:
            raise InputError(f"--data.crop_area {self.crop_area:g}: give a share of the picture above 0, at most 1")
        for name in ("flip", "sdedit", "blur", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--data.{name} {getattr(self, name):g}: is a probability; give 0 to 1")
        for name in ("colour", "jitter", "jitter_degrees"):
            if not getattr(self, name) >= 0:
                raise InputError(f"--data.{name} {getattr(self, name):g}: give 0 or more")


def augment(batch: dict[str, Any], settings: Augment, seed: int) -> dict[str, Any]:
    """Augment a float batch.

    Args:
        batch: any of pictures (B, C, S, S) in [-1, 1], masks in {0, 1}, latents and `keypoints` (B, 21, 2); `layout`
            (B, 5), `epoch` and `index` (B,). Latents are replaced by those of the SDEdit copy, but not cropped.
        settings: probabilities and ranges.
        seed: of the experiment.

    Returns:
        A new batch; `sdedit` is gone from it.
    """
    batch = dict(batch)
    numbers, seeds = _draw(seed, batch["epoch"], batch["index"])
    draws = numbers.to(batch["layout"])
    for kind in ("", "_latents"):
        sdedit = batch.pop(f"sdedit{kind}", None)
        if sdedit is not None and f"obj{kind}" in batch:
            obj = batch[f"obj{kind}"]
            batch[f"obj{kind}"] = torch.where(_as_pictures(draws[:, 0] < settings.sdedit), sdedit, obj)
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
    if settings.jitter > 0 or settings.jitter_degrees > 0:
        batch["layout"] = jitter_layout(batch["layout"], 2 * draws[:, 8:12] - 1, settings)
    if settings.colour > 0:
        matrix, offset = colour_map(settings.colour * (2 * draws[:, 12:16] - 1))
        for name in ("hoi", "obj"):
            if name in batch:
                batch[name] = recolour(batch[name], matrix, offset)
    if "obj" in batch and settings.blur > 0:
        sigma = MAX_BLUR * batch["obj"].shape[-1] * draws[:, 7] * (draws[:, 6] < settings.blur)
        batch["obj"] = blur(batch["obj"], sigma)
    if "obj" in batch and settings.noise > 0:
        batch["obj"] = batch["obj"].clone()
        for i in (draws[:, 5] < settings.noise).nonzero()[:, 0].tolist():
            generator = torch.Generator(batch["obj"].device).manual_seed(seeds[i])
            shape, device = batch["obj"][i].shape, batch["obj"].device
            noise = torch.randn(shape, generator=generator, device=device)
            batch["obj"][i] = (batch["obj"][i] + 0.1 * noise).clamp(-1, 1)  # 0.05 of the range 0..1
    return batch


def jitter_layout(layout: Tensor, draws: Tensor, settings: Augment) -> Tensor:
    """Disturb layouts (B, 5) by draws (B, 4) in [-1, 1]: of x and y in radii, of the radius, of the angle."""
    a, x, y, b1, b2 = layout.unbind(1)
    reach = settings.jitter * a.square() / 2
    angle = torch.deg2rad(settings.jitter_degrees * draws[:, 3])
    cos, sin = angle.cos(), angle.sin()
    a = a * (1 + settings.jitter * draws[:, 2]).clamp(min=0).sqrt()
    x, y = x + reach * draws[:, 0], y + reach * draws[:, 1]
    return torch.stack([a, x, y, cos * b1 - sin * b2, sin * b1 + cos * b2], dim=1)


def colour_map(change: Tensor) -> tuple[Tensor, Tensor]:
    """RGB in [-1, 1] → matrix·RGB + offset, for changes (B, 4) of brightness, contrast, saturation and hue.

    The grey axis keeps its direction; saturation scales what is across it, the hue turns that.

    Returns:
        Matrices (B, 3, 3) and offsets (B,).
    """
    brightness, contrast, saturation, hue = change.unbind(1)
    grey = torch.full((3, 3), 1 / 3, device=change.device, dtype=change.dtype)
    across = torch.eye(3, device=change.device, dtype=change.dtype) - grey
    turn = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=change.device, dtype=change.dtype) / 3**0.5
    angle = (torch.pi / 2 * hue)[:, None, None]
    turned = angle.cos() * across + angle.sin() * turn  # Rodrigues, about (1, 1, 1)/√3
    return (1 + contrast)[:, None, None] * (grey + (1 + saturation)[:, None, None] * turned), brightness


def recolour(pictures: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Map the colours of pictures (B, 3, S, S) by `colour_map`'s matrices and offsets, cut off at [-1, 1]."""
    mapped = torch.einsum("bij,bjhw->bihw", matrix, pictures) + offset[:, None, None, None]
    return mapped.clamp(-1, 1)


def blur(pictures: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of pictures (B, C, S, S), each with its standard deviation (B,) in pixels; 0 leaves it as it is."""
    reach = max(1, round(3 * MAX_BLUR * pictures.shape[-1]))
    steps = torch.arange(-reach, reach + 1, device=sigma.device)
    kernel = torch.softmax(-0.5 * (steps / sigma.clamp(min=1e-3)[:, None]).square(), dim=1)
    kernel = kernel.repeat_interleave(pictures.shape[1], dim=0)[:, None, None]  # (B·C, 1, 1, 2·reach + 1)
    flat = F.pad(pictures.flatten(0, 1)[None], [reach] * 4, mode="replicate")
    flat = F.conv2d(flat, kernel, groups=len(kernel))
    return F.conv2d(flat, kernel.mT, groups=len(kernel)).reshape(pictures.shape)


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


def _draw(seed: int, epochs: Tensor, indices: Tensor) -> tuple[Tensor, list[int]]:
    """Uniform numbers (B, _DRAWS) of (seed, epoch, sample), and the seed of each sample's noise."""
    rows, seeds = [], []
    for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True):
        generator = np.random.Generator(np.random.Philox(key=[seed, (epoch << 40) + index]))
        rows.append(generator.random(_DRAWS))
        seeds.append(int(generator.integers(1 << 63)))
    return torch.from_numpy(np.stack(rows)), seeds


def _as_pictures(values: Tensor) -> Tensor:
    return values[:, None, None, None]
