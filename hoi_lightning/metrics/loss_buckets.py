"""Loss terms by how noisy the layout was."""

import torch
from torch import Tensor
from torchmetrics import Metric

NUM_BUCKETS = 4


class LossBuckets(Metric):
    """Means of L_mask and L_para, and the ratio of their gradients, over equal ranges of the timestep.

    Args:
        num_train_timesteps: T.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, num_train_timesteps: int) -> None:
        super().__init__()
        self.num_train_timesteps = num_train_timesteps
        # L_mask, L_para, |∂L_mask/∂l̂0|, |∂λL_para/∂l̂0|
        self.add_state("sums", torch.zeros(NUM_BUCKETS, 4), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(NUM_BUCKETS), dist_reduce_fx="sum")

    def update(self, t: Tensor, mask: Tensor, para: Tensor, mask_slope: Tensor, para_slope: Tensor) -> None:
        """Add samples, each argument (B,); slopes of 0 where no gradient is known."""
        bucket = t * NUM_BUCKETS // self.num_train_timesteps
        rows = torch.stack([mask, para, mask_slope, para_slope], dim=1).detach().to(self.sums)
        self.sums.index_add_(0, bucket, rows)
        self.counts.index_add_(0, bucket, torch.ones_like(t).to(self.counts))

    def compute(self) -> dict[str, Tensor]:
        """`loss_mask/t000-249` and so on, for the buckets that hold samples."""
        figures: dict[str, Tensor] = {}
        for k in range(NUM_BUCKETS):
            if self.counts[k] == 0:
                continue
            first, end = (self.num_train_timesteps * bound // NUM_BUCKETS for bound in (k, k + 1))
            mask, para, mask_slope, para_slope = self.sums[k] / self.counts[k]
            name = f"t{first:03d}-{end - 1:03d}"
            figures |= {f"loss_mask/{name}": mask, f"loss_para/{name}": para}
            if para_slope > 0:
                figures[f"gradient_ratio/{name}"] = mask_slope / para_slope
        return figures
