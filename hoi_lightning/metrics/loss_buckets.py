"""Loss terms by how noisy the sample was."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

NUM_BUCKETS = 4


class LossBuckets(Metric):
    """Means of loss terms over equal ranges of the timestep.

    Args:
        num_train_timesteps: T.
        names: of the terms.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, num_train_timesteps: int, names: Sequence[str]) -> None:
        super().__init__()
        self.num_train_timesteps, self.names = num_train_timesteps, tuple(names)
        self.add_state("sums", torch.zeros(NUM_BUCKETS, len(names)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(NUM_BUCKETS), dist_reduce_fx="sum")

    def update(self, t: Tensor, *terms: Tensor) -> None:
        """Add samples: their timesteps (B,), int64, and a value (B,) for each name."""
        bucket = t * NUM_BUCKETS // self.num_train_timesteps
        self.sums.index_add_(0, bucket, torch.stack(terms, dim=1).detach().to(self.sums))
        self.counts.index_add_(0, bucket, torch.ones_like(t).to(self.counts))

    def compute(self) -> dict[str, Tensor]:
        """`loss_mask/t000-249` and so on, for the ranges that hold samples."""
        figures: dict[str, Tensor] = {}
        for k in range(NUM_BUCKETS):
            if self.counts[k] > 0:
                first, end = (self.num_train_timesteps * bound // NUM_BUCKETS for bound in (k, k + 1))
                means = zip(self.names, self.sums[k] / self.counts[k], strict=True)
                figures |= {f"{name}/t{first:03d}-{end - 1:03d}": mean for name, mean in means}
        return figures
