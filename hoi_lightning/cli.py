"""LightningCLI for HOI tasks: `fit`, `validate`, `test`, `predict`."""

import inspect
import logging
import netrc
import os
import sys
import time
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import hoi_lightning
from hoi_lightning import tasks
from hoi_lightning.callbacks.last_checkpoint import LastCheckpoint
from hoi_lightning.config_error import one_line
from hoi_lightning.data.datamodule import HoiDataModule
from hoi_lightning.errors import InputError
from hoi_lightning.tasks import HoiTask
from hoi_lightning.tasks.base import check_pretrained, read_checkpoint

VERBS = ("fit", "validate", "test", "predict")
_SMALLER = "lower --data.batch_size, give --trainer.precision bf16-mixed or --trainer.accelerator cpu"
_SMALLER_FIT = (
    "lower --data.batch_size and raise --trainer.accumulate_grad_batches as much, or, of FusionNet, add "
    "-c configs/overlays/rtx4090.yaml, set --model.gradient_checkpointing true or begin anew with "
    "-c configs/overlays/lora.yaml; "
    "--run NAME --ckpt_path last goes on where it stopped"
)
_OTHER_WEIGHTS = ("Error(s) in loading state_dict", "loaded state dict")  # torch's words for modules and optimizers
_RUN = "HOI_LIGHTNING_RUN"
RUN_FOLDER_LOGGERS = {"CSVLogger": "csv", "TensorBoardLogger": "tensorboard"}


class KeepConfig(SaveConfigCallback):
    """Keep the config as given with the run: `<run>/config.yaml`, every logger, and inside each checkpoint."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it once per start of the run."""
        text = self._dump()
        Path(trainer.default_root_dir, "config.yaml").write_text(text)
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": yaml.safe_load(text)})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Survive a run folder that was taken apart."""
        checkpoint["cli_config"] = self._dump()

    def _dump(self) -> str:
        return self.parser.dump(self.config, skip_none=False)


class HoiCLI(LightningCLI):
    """LightningCLI in which every run has a folder of its own, `<trainer.default_root_dir>/<run>`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """`--run` and the checkpoint that is always kept."""
        parser.add_argument(
            "--run", type=str | None, default=None, help="Name of the run's folder; default: task and time."
        )
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.set_defaults({"trainer.use_distributed_sampler": False, "trainer.default_root_dir": "runs"})

    def _parse_ckpt_path(self) -> None:
        # Upstream lets the checkpoint's arguments win over the command line, without a word. That is wanted when a
        # checkpoint is tested, not when a run is resumed with, say, another number of steps.
        verb = self.config.get("subcommand")
        config = self.config.get(verb)
        if config is None or not config.get("ckpt_path"):
            return
        if config.ckpt_path == "last":
            if verb == "fit":
                return  # nothing to go on from is a new run, not a mistake
            config.ckpt_path = str(_last_checkpoint(config, config.run or "RUN"))
        checkpoint = read_checkpoint(config.ckpt_path, _task_name(config))
        if verb == "fit":
            return
        check_pretrained(config.ckpt_path, checkpoint)
        decided = getattr(tasks, _task_name(config)).of_the_command
        arguments = {
            name: value
            for name, value in checkpoint["hyper_parameters"].items()
            if name not in decided and not name.startswith("_")
        }
        model = {"class_path": config.model.class_path, "init_args": arguments}
        self.config = self.parser.parse_object({verb: {"model": model}}, self.config)

    def before_instantiate_classes(self) -> None:
        """Give the run its folder and point loggers and checkpoints there.

        Raises:
            InputError: the folder holds another run's checkpoint, a network without weights is to be judged, or several
                processes have no common name.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config
        self._given = self.config.clone()
        run = config.run or _timed_name(_task_name(config).lower())
        folder = Path(config.trainer.default_root_dir, run)
        last = _last_checkpoint(config, run)
        if config.get("ckpt_path") == "last":
            config.ckpt_path = str(last) if last.is_file() else None
            if config.ckpt_path:
                read_checkpoint(last, _task_name(config))
        elif self.subcommand == "fit" and config.get("ckpt_path") is None and last.is_file():
            raise InputError(f"--run {config.run}: {last} exists; go on with --ckpt_path last or choose another --run")
        elif self.subcommand != "fit" and not config.get("ckpt_path") and "pretrained" not in config.model.init_args:
            raise InputError(
                f"--ckpt_path: which weights? give a checkpoint, or --run NAME --ckpt_path last, to {self.subcommand}"
            )
        for part in (config.model.init_args, config.data):
            if part.get("seed", 0) is None:  # noise and order are not of torch's global generator
                part.seed = int(config.seed_everything or 0)
        config.trainer.default_root_dir = str(folder)
        goes_on = self.subcommand == "fit" and config.get("ckpt_path") == str(last)
        _place_loggers(config.trainer.logger, folder, goes_on)

    def after_instantiate_classes(self) -> None:
        """Open the shards and make the run's folder, before a logger starts.

        Raises:
            InputError: no shards, or the folder cannot be made.
        """
        if self.subcommand:
            self.datamodule.setup(self.subcommand)
        folder = Path(self.trainer.default_root_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--trainer.default_root_dir: {folder} cannot be made ({error.strerror}); choose another"
            ) from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; what is saved as the run's config is what was given.

        Raises:
            InputError: this machine lacks the accelerator or cannot run the strategy.
        """
        self.config = self._given
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, ImportError, RuntimeError) as error:
            given = self._given[self.subcommand] if self.subcommand else self._given
            line = _refused(error)
            if given.trainer.accelerator not in ("auto", "cpu"):
                line += "; --trainer.accelerator auto takes what this machine has"
            raise InputError(line) from None


def main(args: ArgsType = None, **kwargs: Any) -> HoiCLI:
    """Run the command line; `args` is for tests and notebooks."""
    torch.set_float32_matmul_precision("high")
    _quiet()
    strict = {"exit_on_error": False, "allow_abbrev": False}
    return HoiCLI(
        HoiTask,
        HoiDataModule,
        subclass_mode_model=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_callback=KeepConfig,
        save_config_kwargs={"save_to_log_dir": False},
        parser_kwargs={
            "prog": "hoi_lightning",
            "version": hoi_lightning.__version__,
            **strict,
            **dict.fromkeys(VERBS, strict),
        },
        args=args,
        **kwargs,
    )


def run(args: list[str]) -> int:
    """Run the command line as a program.

    Raises:
        InputError: the user's mistake in one line.
    """
    try:
        main(None if args == sys.argv[1:] else args)
    except (ArgumentError, TypeError, ValueError) as error:
        # jsonargparse wraps what a constructor raises in a report of every type it tried
        if cause := _input_error(error):
            raise cause from None
        if isinstance(error, ArgumentError):
            raise InputError(one_line(str(error), _known_keys())) from None
        if str(error).startswith(_OTHER_WEIGHTS):
            raise InputError(_other_settings(error)) from None
        raise
    except MisconfigurationException as error:
        raise InputError(_refused(error)) from None
    except torch.OutOfMemoryError:
        raise InputError(f"the GPU's memory is exhausted: {_SMALLER_FIT if args[0] == 'fit' else _SMALLER}") from None
    except RuntimeError as error:
        if str(error).startswith(_OTHER_WEIGHTS):
            raise InputError(_other_settings(error)) from None
        raise
    except SIGTERMException:
        sys.exit(143)  # upstream's own status is 0, as if the run had finished
    return 0


def _other_settings(error: Exception) -> str:
    reason = (str(error).strip().splitlines()[1:] or [str(error)])[0].strip()
    return (
        f"--ckpt_path: the checkpoint is of a network with other settings ({reason:.160}); give those in its run's "
        "config.yaml, or begin a new --run without --ckpt_path"
    )


def _refused(error: Exception) -> str:
    """What Lightning says of a setting that it checks itself, on one line."""
    return f"--trainer: {' '.join(str(error).split()).rstrip('.!')}"


def _input_error(error: BaseException | None) -> InputError | None:
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def _last_checkpoint(config: Namespace, run: str) -> Path:
    return Path(config.trainer.default_root_dir, run, "checkpoints", "last.ckpt")


def _timed_name(task: str) -> str:
    """The same for all processes of a run: those that Lightning starts inherit the first one's."""
    if all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        os.environ[_RUN] = f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
    elif _RUN not in os.environ:
        raise InputError("--run: torchrun and srun start every process by itself; give the name that all of them use")
    return os.environ[_RUN]


def _task_name(config: Namespace) -> str:
    return config.model.class_path.rsplit(".", 1)[-1]


def _quiet() -> None:
    """Drop lines that ask nothing of the user."""
    for message in (
        ".*does not have many workers.*",  # num_workers is a setting
        ".*smaller than the logging interval.*",  # max_steps, not epochs, ends a run
        ".*your dataloader is not resumable.*",  # HoiDataModule keeps the position itself
        ".*Precision .* is not supported by the model summary.*",
        ".*Couldn't infer the batch indices.*",  # predictions are named by their keys
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6.6 on torch 2.15
        ".*The ``compute`` method of metric.*",
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)


def _place_loggers(loggers: Any, folder: Path, goes_on: bool) -> None:
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not isinstance(logger, Namespace):
            continue
        kind = logger.class_path.rsplit(".", 1)[-1]
        logger.init_args.save_dir = str(folder)
        if kind in RUN_FOLDER_LOGGERS:
            logger.init_args.name = RUN_FOLDER_LOGGERS[kind]
        elif kind == "WandbLogger":
            logger.init_args.name = logger.init_args.name or folder.name
            earlier = sorted(
                folder.glob("wandb/*run-*/run-*.wandb"), key=lambda file: file.parent.name.split("run-")[1]
            )
            if goes_on and earlier:
                logger.init_args.id = logger.init_args.id or earlier[-1].stem.removeprefix("run-")
            # artifacts are staged in the home folder otherwise, and a run that is moved loses them
            os.environ.setdefault("WANDB_DATA_DIR", str(folder.resolve()))
            if not _has_wandb_account() and "WANDB_MODE" not in os.environ:
                os.environ["WANDB_MODE"] = "offline"


def _has_wandb_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool({"api.wandb.ai", os.environ.get("WANDB_BASE_URL", "")} & set(netrc.netrc().hosts))
    except (OSError, netrc.NetrcParseError):
        return False


def _known_keys() -> list[str]:
    keys = [f"trainer.{name}" for name in inspect.signature(Trainer).parameters]
    keys += [f"data.{name}" for name in inspect.signature(HoiDataModule).parameters]
    for task in (getattr(tasks, name) for name in tasks.__all__):
        keys += [f"model.{name}" for name in inspect.signature(task).parameters]
        keys += [f"model.init_args.{name}" for name in inspect.signature(task).parameters]
    return [*keys, "run", "seed_everything", "ckpt_path", "last_checkpoint.every_n_steps"]
