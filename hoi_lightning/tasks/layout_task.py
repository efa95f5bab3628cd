"""What a task that samples layouts shows and measures while it learns and when it is tested."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoi_lightning.data.truth import TruthIndex
from hoi_lightning.diffusion.ddpm import sample_seeds
from hoi_lightning.grid import draw_grid
from hoi_lightning.hand_proxy import Layout, draw_layouts
from hoi_lightning.metrics.layout_plots import draw_density, scatter_layouts
from hoi_lightning.metrics.layout_stream import LayoutFigures
from hoi_lightning.tasks.base import HoiTask


class LayoutTask(HoiTask):
    """Base of a task whose `sample(obj, seeds)` gives layouts (B·K, 5) for pictures (B, 3, H, W).

    Attributes:
        metric_draws: layouts per picture in validation and test.
        layout_figures: figures of the sampled layouts.
    """

    metric_draws: int
    layout_figures: LayoutFigures
    _truth: TruthIndex | None

    def sample(self, obj: Tensor, seeds: Sequence[int]) -> Tensor:
        """Sample layouts."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Open the truth beside the shards, if there is any."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self._truth = TruthIndex.find(data.shards, "test" if stage == "test" else "val")

    def panels(self, batch: dict[str, Any], seed: int) -> dict[str, list[np.ndarray]]:
        """Columns of a sample grid: object, eight sampled layouts, the true one; uint8 (S, S, 3) each."""
        pictures = _to_uint8(batch["obj"])
        drawn = zip(pictures, self._draws(batch, seed, 8), strict=True)
        recorded = zip(pictures, batch["layout"].cpu(), strict=True)
        return {
            "object": list(pictures),
            "sampled layouts": [draw_layouts(p, [Layout.from_tensor(row) for row in rows]) for p, rows in drawn],
            "truth": [draw_layouts(picture, [Layout.from_tensor(layout)]) for picture, layout in recorded],
        }

    def figures(self, batch: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
        """Scatter plot of sampled and recorded layouts and density of palms over the pictures, uint8 (H, W, 3)."""
        draws, pictures = self._draws(batch, seed, 32), _to_uint8(batch["obj"])
        columns = {
            "object": list(pictures),
            "sampled": [draw_density(picture, rows) for picture, rows in zip(pictures, draws, strict=True)],
        }
        if (truth := self._true_layouts(batch["key"])) is not None:
            columns["true"] = [draw_density(picture, rows) for picture, rows in zip(pictures, truth, strict=True)]
        return {
            "layout_scatter": scatter_layouts({"sampled": draws[:, :8].flatten(0, 1), "recorded": batch["layout"]}),
            "layout_density": np.asarray(draw_grid(columns)),
        }

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """One layout per object picture."""
        seeds = self.key_seeds(batch["key"])
        return {"layout": self.sample(batch["obj"], seeds), "seed": seeds}

    def evaluate_batch(self, batch: dict[str, Any], batch_idx: int, prefix: str) -> None:
        """The loss, and the figures of some layouts per picture."""
        super().evaluate_batch(batch, batch_idx, prefix)
        # noise of each picture's own: with one for all, its chance would not average out over pictures
        seeds = [seed for own in self.key_seeds(batch["key"]) for seed in sample_seeds(own, range(self.metric_draws))]
        draws = self.sample(batch["obj"], seeds).reshape(-1, self.metric_draws, 5)
        self.layout_figures.update(draws, batch, self._true_layouts(batch["key"]))

    def reset_figures(self) -> None:
        """Forget what was gathered."""
        super().reset_figures()
        self.layout_figures.reset()

    def log_figures(self, prefix: str) -> None:
        """Merge the ranks and log."""
        figures = {f"{prefix}/{name}": value for name, value in self.layout_figures.compute().items()}
        self.log_dict(figures, sync_dist=True)  # equal on all ranks by now; sync_dist only says so
        super().log_figures(prefix)

    def _true_layouts(self, keys: Sequence[str]) -> Tensor | None:
        if self._truth is None:
            return None
        return torch.stack([torch.from_numpy(self._truth.layouts(key)) for key in keys])

    def _draws(self, batch: dict[str, Any], seed: int, count: int) -> Tensor:
        """Layouts (B, count, 5); draw k of every picture has the noise of seed + k."""
        seeds = [seed + k for k in range(count)] * len(batch["key"])
        return self.sample(batch["obj"], seeds).reshape(-1, count, 5)


def _to_uint8(pictures: Tensor) -> np.ndarray:
    return ((pictures.float() + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
