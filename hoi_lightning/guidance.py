"""What a user may ask of a sampled layout: parts of it fixed exactly, and soft wishes as energies on its splat M(l).

Maps are (B or 1, 1, S, S) in [0, 1] on the object picture's square, at any resolution. The wishes offered here move and
turn a hand and never resize it: the smallest hand would fulfil most of them best.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import splat

LayoutEnergy = Callable[[Tensor], Tensor]
"""Layouts (B, 5) → energies (B,), differentiable; exp(-energy) is how welcome a layout is."""

_FLOOR = 1e-8  # of a share whose logarithm is taken


@dataclass(frozen=True)
class Guidance:
    """Wishes for a batch of layouts.

    Attributes:
        fixed: (5,) or (B, 5), NaN = free, see `fix`; met exactly.
        energies: soft wishes, summed.
        strength: factor of the energies.
    """

    fixed: Tensor | None = None
    energies: tuple[LayoutEnergy, ...] = ()
    strength: float = 10.0

    def __post_init__(self) -> None:
        """Refuse fixed numbers that no layout has.

        Raises:
            InputError: naming what is wrong with them.
        """
        if not math.isfinite(self.strength):
            raise InputError(f"strength {self.strength}: give a finite number")
        if self.fixed is None:
            return
        size, direction = self.fixed[..., 0], self.fixed[..., 3:]
        if bool((size <= 0).any()) or bool(self.fixed.isinf().any()):
            raise InputError("fixed: numbers must be finite, or NaN for free ones, and a above 0")
        given = ~direction.isnan()
        if bool((given[..., 0] != given[..., 1]).any()):
            raise InputError("fixed: b1 and b2 are one direction; fix both or none, as `fix` does")
        if bool((direction.norm(dim=-1).nan_to_num(1.0) - 1).abs().max() > 1e-3):
            raise InputError("fixed: (b1, b2) must have length 1, as `fix` makes it")

    def energy(self, layouts: Tensor) -> Tensor:
        """Sum of the energies of layouts (B, 5), (B,)."""
        total = torch.stack([energy(layouts) for energy in self.energies]).sum(dim=0)
        return self.strength * total


def fix(
    position: tuple[float, float] | None = None, size: float | None = None, direction: float | None = None
) -> Tensor:
    """A layout (5,) that says nothing (NaN) but what is given.

    Args:
        position: (x, y), NDC.
        size: a.
        direction: θ of the forearm in radians, 0 = right, growing clockwise on the screen.
    """
    layout = torch.full((5,), torch.nan)
    if size is not None:
        layout[0] = size
    if position is not None:
        layout[1:3] = torch.tensor(position)
    if direction is not None:
        layout[3:] = torch.tensor([math.cos(direction), math.sin(direction)])
    return layout


def follow_heat_map(heat: Tensor) -> LayoutEnergy:
    """The hand's disc lies where the map is high, and in the picture: -log of the map's mean over the disc's area."""

    def energy(layouts: Tensor) -> Tensor:
        disc = splat(_disc(layouts), heat.shape[-1]).square()  # the square leaves little of the tail
        area = math.pi * layouts[:, 0].detach() ** 4 / 4 * (heat.shape[-1] / 2) ** 2  # πr², in pixels
        return -((disc * heat.to(disc)).sum(dim=(1, 2, 3)) / area.clamp(min=1) + _FLOOR).log()

    return energy


def keep_out(region: Tensor) -> LayoutEnergy:
    """Neither hand nor forearm lies in the region: -log of the share of the proxy outside it."""

    def energy(layouts: Tensor) -> Tensor:
        hand = splat(_of_its_size(layouts), region.shape[-1]).pow(4)
        inside = (hand * region.to(hand)).sum(dim=(1, 2, 3)) / hand.sum(dim=(1, 2, 3)).clamp(min=1e-9)
        return -(1 - inside + _FLOOR).log()

    return energy


def cover_points(points: Tensor, size: int = 64) -> LayoutEnergy:
    """The hand's disc covers each point of (N, 2), NDC; nothing is gained beyond covering it."""

    def energy(layouts: Tensor) -> Tensor:
        disc = splat(_disc(layouts), size)
        grid = points.to(disc).expand(len(disc), 1, -1, -1)
        there = F.grid_sample(disc, grid, padding_mode="border", align_corners=False)[:, 0, 0]  # (B, N)
        return -(2 * there).clamp(_FLOOR, 1).log().sum(dim=1)

    return energy


def touch(object_mask: Tensor) -> LayoutEnergy:
    """The hand's disc reaches the object: -log of twice the largest M on it, 0 once they overlap."""

    def energy(layouts: Tensor) -> Tensor:
        disc = splat(_disc(layouts), object_mask.shape[-1])
        return -(2 * (disc * object_mask.to(disc)).amax(dim=(1, 2, 3))).clamp(_FLOOR, 1).log()

    return energy


def _of_its_size(layouts: Tensor) -> Tensor:
    return torch.cat([layouts[:, :1].detach(), layouts[:, 1:]], dim=1)


def _disc(layouts: Tensor) -> Tensor:
    """The layouts without their forearms: at b = 0 the proxy is its disc."""
    return torch.cat([layouts[:, :1].detach(), layouts[:, 1:3], torch.zeros_like(layouts[:, 3:])], dim=1)
