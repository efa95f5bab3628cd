"""What the processes of `test_ranks.py` do; a module of its own, so that they start with it loaded."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from hoi_lightning.__main__ import main
from hoi_lightning.data.datamodule import HoiDataModule


class Reads(LightningModule):
    """Learns nothing and remembers what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[list[str]] = []
        self.scored: list[str] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.batches.append(batch["key"])
        return self.weight * batch["obj"].mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.scored += batch["key"]
        self.log("val/mean", batch["obj"].mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def run(rank: int, world_size: int, port: int, shards: str, out: str, resume: str | None) -> None:
    """Train one epoch, or the rest of it, validate, and write what this rank was shown."""
    _be_rank(rank, world_size, port)
    task = Reads()
    trainer = Trainer(
        accelerator="cpu", devices=world_size, strategy="ddp", max_epochs=1, default_root_dir=out, logger=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(out, "{step}", every_n_train_steps=2, save_top_k=-1)],
    )  # fmt: skip
    assert trainer.world_size == world_size
    data = HoiDataModule(shards, batch_size=4, num_workers=6, fields=("obj",), image_size=16)
    trainer.fit(task, data, ckpt_path=resume, weights_only=True)
    Path(out, f"rank-{rank}.json").write_text(json.dumps([task.batches, task.scored]))


class Recorder(Callback):
    """Writes down what each step reads, and may kill its own process in the middle of one."""

    def __init__(self, path: str, kill_at: int | None = None) -> None:
        self.path, self.kill_at = Path(path), kill_at
        self.steps = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        with self.path.open("a") as file:
            file.write(json.dumps(batch["key"]) + "\n")
        if self.steps == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(args: list[str]) -> int:
    """The command line."""
    torch.set_num_threads(1)
    return main(args)


def fit_rank(rank: int, world_size: int, port: int, args: list[str]) -> None:
    """The command line in one of several processes; what it returns is the exit status."""
    _be_rank(rank, world_size, port)
    sys.exit(main(args))


def _be_rank(rank: int, world_size: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0",
        "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
