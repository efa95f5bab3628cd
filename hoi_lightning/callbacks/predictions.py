"""What `predict` leaves: a layout, and a picture where the task paints one, for each sample of the test split."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from hoi_lightning.hand_proxy import Layout


class Predictions(BasePredictionWriter):
    """Write `<run>/predictions/KEY.json` with the layout and the seed, and `KEY.png`."""

    def __init__(self) -> None:
        super().__init__("batch")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: dict[str, Any],
        batch_indices: Sequence[int] | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch: `layout` (B, 5), `seed`, and `image` (B, 3, S, S) in [-1, 1] if the task paints."""
        folder = Path(trainer.default_root_dir, "predictions")
        folder.mkdir(parents=True, exist_ok=True)
        for i, key in enumerate(batch["key"]):
            layout = asdict(Layout.from_tensor(prediction["layout"][i].float().cpu()))
            record = {"key": key, "layout": layout, "seed": prediction["seed"][i]}
            (folder / f"{key}.json").write_text(json.dumps(record, indent=2) + "\n")
            if "image" in prediction:
                pixels = ((prediction["image"][i].float() + 1) * 127.5).round().byte().permute(1, 2, 0)
                Image.fromarray(pixels.cpu().numpy()).save(folder / f"{key}.png")
