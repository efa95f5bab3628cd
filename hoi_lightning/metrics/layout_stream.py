"""The figures of sampled layouts as torchmetrics: fed batch by batch, merged over ranks, with intervals over instances.

Every class keeps one row of figures per picture; its value is the mean over pictures. Draws are (B, K, 5): K layouts
for each of B pictures. Instances are integers; pictures of one object are not independent, so whole objects are drawn.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from hoi_lightning.metrics import layout as figures
from hoi_lightning.metrics.bootstrap import bootstrap_interval


def instances_of(keys: Sequence[str]) -> Tensor:
    """A number for the (category, instance) in each sample key, int64 (B,)."""
    return torch.tensor([zlib.crc32("_".join(key.split("_")[2:4]).encode()) for key in keys])


class PictureFigures(Metric):
    """Figures per picture; a subclass says which in `names` and calls `_add`."""

    full_state_update = False
    names: tuple[str, ...] = ()
    rows: list[Tensor]
    instances: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("instances", [], dist_reduce_fx="cat")

    def compute(self) -> dict[str, Tensor]:
        """Mean of each figure over the pictures."""
        means = dim_zero_cat(self.rows).mean(dim=0)
        return dict(zip(self.names, means, strict=True))

    def values(self) -> dict[str, Tensor]:
        """Each figure of every picture, (N,)."""
        return dict(zip(self.names, dim_zero_cat(self.rows).unbind(dim=1), strict=True))

    def intervals(self, seed: int = 0) -> dict[str, tuple[float, float] | tuple[None, None]]:
        """95 % bootstrap interval of each mean over instances."""
        groups = dim_zero_cat(self.instances).cpu().numpy()
        values = self.values()
        return {name: bootstrap_interval(values[name].cpu().double().numpy(), groups, seed) for name in self.names}

    def _add(self, instances: Tensor, *columns: Tensor) -> None:
        self.rows.append(torch.stack(columns, dim=1).float())
        self.instances.append(instances.to(columns[0].device))


class ContactRate(PictureFigures):
    """Share of the draws whose disc touches the object."""

    names = ("contact",)

    def update(self, draws: Tensor, object_mask: Tensor, instances: Tensor) -> None:
        """Add pictures.

        Args:
            draws: (B, K, 5).
            object_mask: bool (B, 1, S, S).
            instances: (B,).
        """
        self._add(instances, figures.contact(draws, object_mask[:, None]).float().mean(dim=1))


class BestOfDraws(PictureFigures):
    """Each figure of that draw which is best by it: three errors from the recorded layout, and the overlap of proxies.

    They rest on K.
    """

    names = ("centre_error_best", "size_error_best", "angle_error_best", "proxy_iou_best")

    def update(self, draws: Tensor, recorded: Tensor, instances: Tensor) -> None:
        """Add pictures.

        Args:
            draws: (B, K, 5).
            recorded: (B, 5).
            instances: (B,).
        """
        pairs = draws.transpose(0, 1), recorded[None]  # (K, B, 5), (1, B, 5)
        errors = [figures.best_of(error(*pairs)) for error in _ERRORS]
        self._add(instances, *errors, figures.splat_iou(*pairs).amax(dim=0))


class Diversity(PictureFigures):
    """How far one picture's draws lie apart, and how much their directions agree."""

    names = ("centre_spread", "resultant_length")

    def update(self, draws: Tensor, instances: Tensor) -> None:
        """Add pictures: draws (B, K, 5), instances (B,)."""
        by_draw = draws.transpose(0, 1)
        self._add(instances, figures.centre_spread(by_draw), figures.resultant_length(by_draw))


class EnergyDistance(PictureFigures):
    """Squared energy distance of the draws from the true conditional distribution; see `figures.energy_distance`."""

    names = ("energy_distance",)

    def update(self, draws: Tensor, truth: Tensor, instances: Tensor) -> None:
        """Add pictures.

        Args:
            draws: (B, K, 5).
            truth: draws of the true distribution, (B, N, 5).
            instances: (B,).
        """
        pairs = zip(draws, truth, strict=True)
        self._add(instances, torch.stack([figures.energy_distance(ours, true) for ours, true in pairs]))


_ERRORS = (figures.centre_error, figures.size_error, figures.angle_error)


class LayoutFigures(nn.Module):
    """All of them, for a task to feed and to log."""

    def __init__(self) -> None:
        super().__init__()
        self.contact, self.best = ContactRate(), BestOfDraws()
        self.diversity, self.energy = Diversity(), EnergyDistance()

    def update(self, draws: Tensor, batch: dict[str, Any], truth: Tensor | None) -> None:
        """Add a batch; `truth` (B, N, 5) where the true distribution is known."""
        instances = instances_of(batch["key"])
        self.contact.update(draws, batch["object"] > 0.5, instances)
        self.best.update(draws, batch["layout"], instances)
        self.diversity.update(draws, instances)
        if truth is not None:
            self.energy.update(draws, truth.to(draws), instances)

    def compute(self) -> dict[str, Tensor]:
        """Mean of every figure that was fed, over the pictures of all ranks."""
        fed = [metric for metric in self._metrics() if metric.update_called]
        return {name: value for metric in fed for name, value in metric.compute().items()}

    def reset(self) -> None:
        """Forget."""
        for metric in self._metrics():
            metric.reset()

    def _metrics(self) -> tuple[PictureFigures, ...]:
        return self.contact, self.best, self.diversity, self.energy
