"""EMA, the last checkpoint, and how a run ends."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from hoi_lightning.callbacks.ema import EMA
from hoi_lightning.callbacks.last_checkpoint import LastCheckpoint
from hoi_lightning.callbacks.sample_grid import SampleGrid
from hoi_lightning.errors import NonFiniteLoss
from hoi_lightning.tasks import HoiTask


class Line(HoiTask):
    """y = w·x towards y = 2x; `frozen` must stay out of everything."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.1)
        self.w = torch.nn.Parameter(torch.zeros(1))
        self.frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"loss": ((self.w - 2) * batch["x"]).square().mean()}


class At(Callback):
    """Do something at a step."""

    def __init__(self, step: int, action: Any, hook: str) -> None:
        self.step, self.action = step, action
        setattr(self, hook, self._run)

    def _run(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step >= self.step:
            self.action()


def _fit(folder: Path, *callbacks: Callback, task: HoiTask | None = None, steps: int = 10) -> Trainer:
    data = [{"x": torch.ones(1), "key": "a"} for _ in range(8)]
    trainer = Trainer(
        max_steps=steps, callbacks=[*callbacks, LastCheckpoint(100)], default_root_dir=folder, logger=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, val_check_interval=4,
        num_sanity_val_steps=0,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    trainer.fit(task or Line(), loader, loader)
    return trainer


def _last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def test_the_average_is_the_recursion(tmp_path: Path) -> None:
    seen: list[float] = []

    class Record(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            seen.append(pl_module.w.item())

    _fit(tmp_path, EMA(decay=0.9, power=0.75), Record())
    average = 0.0
    for step, weight in enumerate(seen, start=1):
        decay = min(0.9, max(0.0, 1 - step**-0.75)) if step > 1 else 0.0
        average = decay * average + (1 - decay) * weight
    checkpoint = _last(tmp_path)
    assert set(checkpoint["ema_state_dict"]) == {"w"}
    torch.testing.assert_close(checkpoint["ema_state_dict"]["w"].item(), average, atol=1e-5, rtol=1e-4)
    assert checkpoint["state_dict"]["w"].item() == pytest.approx(seen[-1])


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_start"])
def test_a_failure_leaves_raw_weights_and_its_average(tmp_path: Path, hook: str) -> None:
    def fail() -> None:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        _fit(tmp_path, EMA(), At(4, fail, hook))
    checkpoint = _last(tmp_path)
    assert checkpoint["global_step"] == 4
    assert checkpoint["state_dict"]["w"] != checkpoint["ema_state_dict"]["w"]
    first = checkpoint["optimizer_states"][0]["state"][0]
    assert checkpoint["state_dict"]["w"].abs() > 0.3, "Adam moves by about its rate per step"
    assert first["step"] == 4


def test_sigterm_leaves_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        _fit(tmp_path, At(3, lambda: os.kill(os.getpid(), signal.SIGTERM), "on_train_batch_end"))
    assert 3 <= _last(tmp_path)["global_step"] < 10


def test_nan_never_reaches_the_checkpoint(tmp_path: Path) -> None:
    class Breaks(Line):
        def loss(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
            factor = torch.nan if self.global_step == 6 else 1.0
            return {"loss": super().loss(batch, generator)["loss"] * factor}

    _fit(tmp_path, steps=5)
    with pytest.raises(NonFiniteLoss, match=r"nan at step 6, samples a"):
        _fit(tmp_path, task=Breaks())
    assert _last(tmp_path)["global_step"] == 5


class Draws(Line):
    """Remembers what its panels and figures are asked for, and whether under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, bool]] = []

    def panels(self, batch: dict[str, Any], seed: int) -> dict[str, list[np.ndarray]]:
        self.asked.append((len(batch["key"]), torch.is_autocast_enabled("cpu")))
        return {"sample": [np.zeros((8, 8, 3), np.uint8)] * len(batch["key"])}

    def figures(self, batch: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
        return {"figure": self.panels(batch, seed)["sample"][0]}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("verb", ["validate", "test"])
def test_samples_are_drawn_in_the_run_s_precision(tmp_path: Path, verb: str, precision: Any) -> None:
    trainer = Trainer(
        callbacks=[SampleGrid(rows=1)], default_root_dir=tmp_path, logger=False, accelerator="cpu", precision=precision,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    task, data = Draws(), [{"x": torch.ones(1), "key": "a"} for _ in range(4)]
    getattr(trainer, verb)(task, torch.utils.data.DataLoader(data, batch_size=2), verbose=False)
    assert task.asked == [(1, precision == "bf16-mixed")] * 2
    prefix = "test-" if verb == "test" else ""
    drawn = {path.name for path in (tmp_path / "samples").iterdir()}
    assert drawn == {f"{prefix}{name}-0000000.png" for name in ("step", "figure")}
