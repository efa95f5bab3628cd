"""Exponential moving average of the trained weights."""

from typing import Any

import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


class EMA(Callback):
    """Average what is trained, validate and test with the average, and store it beside the raw weights.

    Lightning's own `EMAWeightAveraging` averages frozen parts too and swaps the weights inside a checkpoint that is
    written during validation; this one touches trainable parameters only and a checkpoint always holds `state_dict` raw
    and `ema_state_dict` averaged.

    Args:
        decay: largest decay; early on it is 1 - (1 + step)^-power.
        power: of the warm-up; 3/4 suits runs below a million steps.
    """

    def __init__(self, decay: float = 0.9999, power: float = 0.75) -> None:
        self.decay, self.power = decay, power
        self._ema: EMAModel | None = None
        self._restored: dict[str, Any] | None = None
        self._last_step = 0
        self._swapped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the present weights or the restored average, which sharding strategies restore late."""
        self._start(pl_module)
        self._restored = None  # only now: a sanity check of validation starts one, too
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Average once per optimizer step."""
        if self._ema is not None and trainer.global_step > self._last_step:
            self._ema.step(_trained(pl_module).values())
            self._last_step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take it out again."""
        self._swap_out(pl_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the average out, so that a checkpoint written now holds raw weights."""
        self._swap_out(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average by parameter name."""
        if self._ema is not None:
            # copied to the CPU: this may be the checkpoint of a run that has just run out of the GPU's memory
            average = [_whole(p.detach()).to("cpu", copy=True) for p in self._ema.shadow_params]
            checkpoint["ema_state_dict"] = dict(zip(_trained(pl_module), average, strict=True))
            checkpoint["ema_step"] = self._ema.optimization_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the stored average until the parameters are on their device."""
        if "ema_state_dict" in checkpoint:
            self._restored = {"average": checkpoint["ema_state_dict"], "step": checkpoint["ema_step"]}

    def _start(self, pl_module: LightningModule) -> None:
        trained = _trained(pl_module)
        whole = not any(isinstance(p, DTensor) for p in trained.values())  # torch copies no list of shares
        self._ema = EMAModel(
            list(trained.values()), decay=self.decay, use_ema_warmup=True, power=self.power, foreach=whole
        )
        if self._restored is not None:
            for shadow, name in zip(self._ema.shadow_params, trained, strict=True):
                shadow.copy_(_like(shadow, self._restored["average"][name]))
            self._ema.optimization_step = self._restored["step"]

    def _swap_in(self, pl_module: LightningModule) -> None:
        if self._ema is None and self._restored is not None:  # `test` of a checkpoint
            self._start(pl_module)
        if self._ema is not None and not self._swapped:
            self._ema.store(_trained(pl_module).values())
            self._ema.copy_to(_trained(pl_module).values())
            self._swapped = True

    def _swap_out(self, pl_module: LightningModule) -> None:
        if self._ema is not None and self._swapped:
            self._ema.restore(_trained(pl_module).values())
            self._swapped = False


def _whole(value: Tensor) -> Tensor:
    """A tensor of which every rank may hold a share; all ranks must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(other: Tensor, value: Tensor) -> Tensor:
    """Shared out as the other one is."""
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)


def _trained(module: LightningModule) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
