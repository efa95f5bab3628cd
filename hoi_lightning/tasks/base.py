"""What every task shares: optimisation, reproducible noise, opening a checkpoint."""

import hashlib
import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from hoi_lightning.data.order import since_last_step
from hoi_lightning.diffusion.ddpm import sample_seeds
from hoi_lightning.errors import InputError, NonFiniteLoss
from hoi_lightning.metrics.loss_buckets import LossBuckets
from hoi_lightning.weights import shipped

Optimizer = Literal["adamw", "adamw8bit", "muon"]


class HoiTask(LightningModule):
    """Base of all tasks; a subclass adds `loss(batch, generator)`.

    Args:
        learning_rate: the optimizer's peak rate.
        weight_decay: the optimizer's, decoupled.
        warmup_steps: linear warm-up, in optimizer steps.
        lr_schedule: after the warm-up; `cosine` reaches 0 at the run's last step.
        seed: noise and timesteps of training step k on rank r belong to (seed, k, r), so a resumed run draws the same;
            None = that of `--seed_everything`, in Python 0.
        optimizer: `adamw8bit` keeps AdamW's moments in a quarter of the memory (bitsandbytes); `muon` orthogonalises
            the updates of matrices and filters (Jordan 2024), scaled to the size of AdamW's (Liu et al. 2502.16982),
            which takes the rest: one moment for AdamW's two.

    Attributes:
        of_the_command: arguments that, when a checkpoint is tested, are the command line's and not the checkpoint's.
        of_training: arguments that only a fit has a use for; `load` leaves them at their defaults.
        of_the_weights: arguments that change what weights mean and none of their shapes; a resumed run keeps them.
        frozen: SHA-256 of the pretrained parts that training leaves as they are and no checkpoint holds, by name.
        buckets: loss terms by timestep, for `loss` to feed; None where there are no timesteps.
        logs_step: whether the metrics of the training step in hand are logged.
    """

    of_the_command: tuple[str, ...] = ()
    of_training: tuple[str, ...] = ()
    of_the_weights: tuple[str, ...] = ()
    checkpoint_hash: str = ""
    pretrained: str = ""
    buckets: LossBuckets | None

    def __init__(
        self,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-2,
        warmup_steps: int = 0,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        seed: int | None = None,
        optimizer: Optimizer = "adamw",
    ) -> None:
        super().__init__()
        check_ranges(learning_rate=(learning_rate, 0, None), weight_decay=(weight_decay, 0, None))
        check_ranges(warmup_steps=(warmup_steps, 0, None))
        self.learning_rate, self.weight_decay, self.seed = learning_rate, weight_decay, seed or 0
        self.optimizer = optimizer
        self.warmup_steps, self.lr_schedule = warmup_steps, lr_schedule
        self.frozen: dict[str, str] = {}
        self.buckets, self.logs_step = None, True

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Scalar terms of one batch; the entry `loss` is minimised, all are logged."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Refuse what only some tasks can.

        Raises:
            InputError: the weights are to be shared out over GPUs.
        """
        if self.device_mesh is not None:
            raise InputError(
                f"--trainer.strategy ModelParallelStrategy: {type(self).__name__} is too small to be shared out; "
                "give ddp"
            )

    def on_train_start(self) -> None:
        """Begin the next epoch where the resumed run stopped at the very end of one."""
        # Lightning 2.6 would count one batch of the new epoch as the old one's last and then start a third
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        if progress.current.ready >= self.trainer.num_training_batches:
            progress.reset_on_run()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step with its own noise.

        Raises:
            NonFiniteLoss: naming the step and the samples.
        """
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        step = batches.total.processed  # unlike batch_idx it survives a resumption
        ready, accumulated = batches.current.ready, self.trainer.accumulate_grad_batches
        ends_step = ready % accumulated == 0 or ready == self.trainer.num_training_batches
        self.logs_step = ends_step and (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        terms = self.loss(batch, self._generator(step, self.global_rank))
        if not torch.isfinite(terms["loss"]):
            raise NonFiniteLoss(
                f"loss is {terms['loss'].item()} at step {self.global_step}, samples {', '.join(batch['key'][:4])}, …; "
                "lower --model.learning_rate or train in 32-true"
            )
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        self.log("loss", terms["loss"], prog_bar=True, logger=False)
        if self.logs_step:
            self._log_buckets("train")
        return terms["loss"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same loss with noise that belongs to the batch, so that values compare across steps."""
        self.evaluate_batch(batch, batch_idx, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The same on the test split."""
        self.evaluate_batch(batch, batch_idx, "test")

    def on_validation_epoch_start(self) -> None:
        """Begin the figures anew."""
        self.reset_figures()

    def on_test_epoch_start(self) -> None:
        """Begin the figures anew."""
        self.reset_figures()

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.log_figures("val")

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self.log_figures("test")

    def evaluate_batch(self, batch: dict[str, Any], batch_idx: int, prefix: str) -> None:
        """Score one batch of validation or test and log under the prefix."""
        terms = self.loss(batch, self._generator(batch_idx, self.global_rank, stream=1))
        values = {f"{prefix}/{name}": value for name, value in terms.items()}
        self.log_dict(values, batch_size=len(batch["key"]), sync_dist=True)

    def reset_figures(self) -> None:
        """Forget what was gathered."""
        if self.buckets is not None:
            self.buckets.reset()

    def log_figures(self, prefix: str) -> None:
        """Log what was gathered, here the loss terms by timestep."""
        self._log_buckets(prefix)

    def _log_buckets(self, prefix: str) -> None:
        if self.buckets is not None:
            figures = {f"{prefix}/{name}": value for name, value in self.buckets.compute().items()}
            self.log_dict(figures, sync_dist=prefix != "train")
            self.buckets.reset()

    def key_seeds(self, keys: Sequence[str]) -> list[int]:
        """A seed per sample key, whatever batch the sample is in."""
        return sample_seeds(self.seed, [zlib.crc32(key.encode()) for key in keys])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer of what is trained, with the learning-rate schedule per step."""
        from diffusers.optimization import get_scheduler

        parameters = [p for p in self.parameters() if p.requires_grad]
        if self.optimizer == "adamw":
            # Lightning clips no gradients of a fused optimizer in mixed precision; None: on a GPU many tensors at once
            fused = None if isinstance(self.trainer.precision_plugin, MixedPrecision) else True
            optimizer = torch.optim.AdamW(
                parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused
            )
        elif self.optimizer == "muon":
            from pytorch_optimizer import Muon

            rates: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
            matrices = {"params": [p for p in parameters if p.ndim > 1], "use_muon": True, "use_adjusted_lr": True}
            rest = {"params": [p for p in parameters if p.ndim <= 1], "use_muon": False, "betas": (0.9, 0.999)}
            optimizer = Muon([matrices | rates, rest | rates])
        else:
            try:
                from bitsandbytes.optim import AdamW8bit
            except ImportError:
                raise InputError(
                    "--model.optimizer adamw8bit: bitsandbytes is absent; `pip install bitsandbytes`, or use adamw"
                ) from None
            optimizer = AdamW8bit(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        max_steps = self.trainer.max_steps
        total = max_steps if max_steps > 0 else int(self.trainer.estimated_stepping_batches)
        name = "cosine" if self.lr_schedule == "cosine" else "constant_with_warmup"
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=self.warmup_steps, num_training_steps=total)
        return OptimizerLRSchedulerConfig(
            optimizer=optimizer, lr_scheduler={"scheduler": scheduler, "interval": "step"}
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the task, so that the wrong one is refused with a sentence; go back to the last optimizer step.

        Where the frozen parts lie is written so that the checkpoint opens from another working folder, too; what comes
        with the package keeps its name: it is found wherever the package is.
        Batches whose gradients were not applied yet are trained on again after a resumption.
        """
        checkpoint["task"] = type(self).__name__
        checkpoint["frozen"] = self.frozen
        if self.pretrained and Path(self.pretrained).is_dir():
            name = self.hparams["pretrained"]
            if shipped(name) == Path(name):
                checkpoint["hyper_parameters"]["pretrained"] = str(Path(self.pretrained).resolve())
        trainer: Any = self.trainer
        processed = trainer.fit_loop.epoch_loop.batch_progress.current.processed
        undone = since_last_step(processed, trainer.num_training_batches, trainer.accumulate_grad_batches)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            for name in counts:
                counts[name] -= undone

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another optimizer's state, or with weights that `check_weights` refuses.

        Raises:
            InputError: naming the first argument that says so.
        """
        fitted_by = checkpoint["hyper_parameters"].get("optimizer", self.optimizer)
        if self.trainer.state.fn == "fit" and fitted_by != self.optimizer:
            raise InputError(
                f"--model.optimizer {self.optimizer}: the checkpoint holds the state of {fitted_by}; give the same, or "
                "begin a new --run"
            )
        self.check_weights(checkpoint)

    def check_weights(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that mean something else here, or that were fitted on other frozen parts.

        Raises:
            InputError: naming the argument that says so.
        """
        for name in self.of_the_weights:
            ours, theirs = self.hparams[name], checkpoint["hyper_parameters"].get(name, self.hparams[name])
            if ours != theirs:
                raise InputError(
                    f"--model.{name} {ours}: the checkpoint was fitted with {theirs}, and its weights mean that; give "
                    "the same, or begin a new --run"
                )
        for part, digest in checkpoint.get("frozen", {}).items():
            if self.frozen.get(part, digest) != digest:
                raise InputError(
                    f"--model.pretrained {self.pretrained}: its {part} is not the one that the checkpoint was fitted "
                    "on; give or put back that run's, or begin anew"
                )

    @classmethod
    def load(cls, path: Path | str, device: str | torch.device = "cpu") -> Self:
        """Open a checkpoint for inference: averaged weights where it has them, eval mode.

        Args:
            path: `.ckpt` file that `fit` wrote.
            device: where to put it.

        Raises:
            InputError: no such file, not a readable checkpoint, one of another task or version, or one whose pretrained
                folder is gone.
        """
        checkpoint = read_checkpoint(path, cls.__name__)
        check_pretrained(path, checkpoint)
        arguments = checkpoint["hyper_parameters"]
        weights = checkpoint["state_dict"] | checkpoint.get("ema_state_dict", {})
        try:
            kept = {name for name in arguments if not name.startswith("_")} - set(cls.of_training)
            task = cls(**{name: arguments[name] for name in kept})
            task.check_weights(checkpoint)
            task.load_state_dict(weights, strict=task.strict_loading)
        except (TypeError, RuntimeError, InputError) as error:
            if str(error).startswith("--model.pretrained "):
                raise
            raise InputError(
                f"{path}: {cls.__name__} has other arguments or weights by now ({_first_line(error)}); fit it again"
            ) from None
        check_finite(path, weights)
        task.checkpoint_hash = file_hash(Path(path))
        return task.eval().requires_grad_(False).to(device)

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write `config.json`, the constructor's arguments, and `model.safetensors` into a new folder."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        save_file(
            {name: _cast(value, dtype) for name, value in self.state_dict().items()}, folder / "model.safetensors"
        )
        write_config(folder, self._arguments())

    @classmethod
    def from_pretrained(cls, folder: Path, device: str | torch.device = "cpu") -> Self:
        """Open what `save_pretrained` wrote, for inference.

        Raises:
            InputError: a file is missing, damaged or of another model.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        weights = folder / "model.safetensors"
        try:
            task = cls(**read_config(folder))
            task.load_state_dict(load_file(weights))
        except (OSError, SafetensorError, RuntimeError, TypeError, InputError) as error:
            raise InputError(f"{folder}: holds no {cls.__name__} ({_first_line(error)}); export it again") from None
        check_finite(folder, task.state_dict())
        task.checkpoint_hash = file_hash(weights)
        return task.eval().requires_grad_(False).to(device)

    def _arguments(self) -> dict[str, Any]:
        return {name: value for name, value in self.hparams.items() if not name.startswith("_")}

    def _generator(self, step: int, rank: int, stream: int = 0) -> torch.Generator:
        state = np.random.SeedSequence([self.seed, stream, rank, step]).generate_state(2, np.uint32)
        return torch.Generator(self.device).manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def check_ranges(**settings: tuple[float, float, float | None]) -> None:
    """Refuse settings outside their range: name → (value, least, most or None).

    Raises:
        InputError: naming the first that is.
    """
    for name, (value, least, most) in settings.items():
        if not (least <= value and (most is None or value <= most)):
            wanted = f"{least:g} or more" if most is None else f"{least:g} to {most:g}"
            raise InputError(f"--model.{name} {value:g}: give {wanted}")


def check_choices(**settings: tuple[str, Sequence[str]]) -> None:
    """Refuse words that are no choice, which a released `config.json` may hold: name → (value, choices).

    Raises:
        InputError: naming the first that is none.
    """
    for name, (value, choices) in settings.items():
        if value not in choices:
            raise InputError(f"--model.{name} {value!r}: give one of {', '.join(choices)}")


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_config(folder: Path, arguments: dict[str, Any]) -> None:
    """Write `config.json`."""
    (folder / "config.json").write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        InputError: it is not there, or not JSON.
    """
    path = folder / "config.json"
    try:
        arguments = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(arguments, dict):
            raise ValueError("no JSON object")
        return arguments
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({_first_line(error)}); export the model again") from None


def check_finite(path: Path | str, weights: dict[str, Tensor]) -> None:
    """Refuse weights of a fit that diverged.

    Raises:
        InputError: naming the first that are not finite.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{path}: {name} is not finite, as after a fit that diverged; give an earlier checkpoint")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        lines = lines[1:]  # the heading names no key
    reason = lines[0].strip()
    return reason.partition("; ")[0] if isinstance(error, InputError) else reason[:200]


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype if value.is_floating_point() else value.dtype).contiguous()


def read_checkpoint(path: Path | str, task: str) -> dict[str, Any]:
    """Open a checkpoint of the named task, without running code from it.

    Raises:
        InputError: no such file, not a readable checkpoint, or one of another task.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint; `fit` leaves one in <run>/checkpoints/last.ckpt")
    damaged = f"{path}: not a checkpoint of this project, or a damaged one; fit it again"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        found = checkpoint["task"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
        raise InputError(damaged) from None
    if found != task:
        raise InputError(f"{path}: this is a {found} checkpoint, a {task} checkpoint is wanted")
    if not all(isinstance(checkpoint.get(name), Mapping) for name in ("hyper_parameters", "state_dict")):
        raise InputError(damaged)
    return checkpoint


def check_pretrained(path: Path | str, checkpoint: dict[str, Any]) -> None:
    """Say that the folder is gone whose frozen parts a checkpoint needs; it holds the trained ones only.

    Raises:
        InputError: it is.
    """
    folder = Path(checkpoint["hyper_parameters"].get("pretrained") or "")
    if folder.is_absolute() and not folder.is_dir():
        raise InputError(
            f"{path}: was fitted on {folder}, which is gone; put that folder back, or a link in its place to "
            "where it is"
        )
