"""The networks that a command line names, and the numbers on it."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    from hoi_lightning.pipeline import HOIPipeline, Painter

DEFAULT = "mini"
SAMPLING = (
    "layout_sampler", "layout_steps", "layout_guidance", "preset", "painter_scheduler", "painter_steps",
    "painter_guidance", "painter_attention",
)  # fmt: skip


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of every verb that samples with both networks."""
    parser.add_argument("--weights", help="released folder or hub id; default: mini, which comes with the package")
    parser.add_argument("--masknet", type=Path, help="another MaskNet: checkpoint or released folder")
    parser.add_argument("--fusionnet", type=Path, help="another FusionNet: the same")
    parser.add_argument("--painter", metavar="FOLDER_OR_ID", help="diffusers inpainting pipeline, instead of FusionNet")
    parser.add_argument("--prompt", metavar="TEXT", help="what --painter paints; default: a hand holding the object")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if absent")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of all noise")
    parser.add_argument(
        "--layout-sampler", choices=["ddpm", "ddim", "dpm-solver++", "unipc", "repaint"],
        help="MaskNet's; default: ddim, and repaint where something is wished",
    )  # fmt: skip
    parser.add_argument("--layout-steps", type=whole_number(1), help="steps of MaskNet's sampler; default: 25")
    parser.add_argument(
        "--layout-guidance", type=positive, help="classifier-free scale, of a MaskNet fitted with image_dropout"
    )
    parser.add_argument(
        "--preset", choices=["paper", "balanced", "fast"], help="FusionNet's sampler; default: that of its weights"
    )
    parser.add_argument(
        "--painter-scheduler", choices=["ddim", "dpm-solver++", "unipc"], help="what the preset's steps are"
    )
    parser.add_argument("--painter-steps", type=whole_number(1), metavar="N", help="kept timesteps, not the preset's")
    parser.add_argument(
        "--painter-guidance", type=positive, metavar="W", help="classifier-free scale by the object picture; 1 = none"
    )
    parser.add_argument(
        "--painter-attention", type=not_negative, metavar="S", help="scale of perturbed-attention guidance; 0 = none"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")


def check_weights(args: argparse.Namespace) -> None:
    """Say which weights are missing, before anything slow starts, and fill in the defaults.

    Raises:
        InputError: a file does not exist, or flags contradict each other.
    """
    from hoi_lightning.painters import find_index
    from hoi_lightning.weights import check_checkpoints, find_weights

    where = next((name for name in ("layout", "interpolate", "hole") if getattr(args, name, None)), None)
    idle = [name for name in SAMPLING[:3] if getattr(args, name) is not None]
    if where and idle:
        raise InputError(f"--{idle[0].replace('_', '-')}: --{where} says where hands go; leave one of them out")
    args.layout_steps, args.layout_guidance = args.layout_steps or 25, args.layout_guidance or 1.0
    if args.painter and args.fusionnet:
        raise InputError("--painter paints instead of FusionNet; leave out --fusionnet")
    if args.painter:
        for name in SAMPLING[3:]:
            if getattr(args, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} is FusionNet's; leave it out, or --painter")
    if args.prompt is not None and not args.painter:
        raise InputError("--prompt: FusionNet has its own; give it with --painter, or leave it out")
    if args.painter:
        find_index(args.painter)
    check_checkpoints(args.masknet, args.fusionnet)
    if args.masknet is None or (args.fusionnet is None and not args.painter):
        find_weights(args.weights or DEFAULT)
    elif args.weights is not None:
        painter = "--painter" if args.painter else "--fusionnet"
        raise InputError(f"--weights: --masknet and {painter} leave nothing of it; leave one of them out")


def open_pipeline(args: argparse.Namespace) -> "HOIPipeline":
    """The networks that the flags name.

    Raises:
        InputError: they cannot be opened.
    """
    from hoi_lightning.pipeline import HOIPipeline

    if args.painter:
        pipeline = _open_painter(args)
    else:
        pipeline = HOIPipeline.from_checkpoints(args.masknet, args.fusionnet, args.device, args.weights or DEFAULT)
        _set_painting(pipeline.fusionnet, args)
    pipeline.masknet.sampler = args.layout_sampler
    pipeline.masknet.sample_steps = args.layout_steps
    pipeline.masknet.guidance_scale = args.layout_guidance
    pipeline.masknet.check_sampler()
    return pipeline


@contextlib.contextmanager
def enough_memory(device: str, smaller: str) -> Iterator[None]:
    """Say what to change where a GPU's memory does not hold the networks and what they paint.

    Args:
        device: the `--device` asked for.
        smaller: what makes the batch smaller.

    Raises:
        InputError: the memory is exhausted.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(
            f"--device {device}: the GPU's memory is exhausted; {smaller}, give --device cpu or another GPU, or "
            "--weights or --fusionnet of a smaller image_size"
        ) from None


def whole_number(minimum: int) -> Callable[[str], int]:
    """Reader of a command line's whole numbers of at least `minimum`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {minimum}, got {text!r}")
        return int(text)

    return read


def named_path(text: str) -> tuple[str, Path]:
    """Reader of a command line's NAME=PATH."""
    name, _, path = text.partition("=")
    if not (name and path):
        raise argparse.ArgumentTypeError(f"write NAME=PATH, got {text!r}")
    return name, Path(path)


def _real_number(wanted: str, allows: Callable[[float], bool]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (allows(value) and value < float("inf")):
            raise argparse.ArgumentTypeError(f"must be a number {wanted}, got {text!r}")
        return value

    return read


positive = _real_number("above 0", lambda value: value > 0)
"""Reader of a command line's numbers above 0."""
not_negative = _real_number("of at least 0", lambda value: value >= 0)
"""Reader of a command line's numbers of at least 0."""


def _set_painting(fusionnet: "Painter", args: argparse.Namespace) -> None:
    from hoi_lightning.diffusion.repaint import PRESETS
    from hoi_lightning.tasks.fusionnet import FusionNet

    asked = {
        "num_steps": args.painter_steps,
        "guidance_scale": args.painter_guidance,
        "attention_guidance": args.painter_attention,
        "scheduler": args.painter_scheduler,
    }
    changes = {name: value for name, value in asked.items() if value is not None}
    if args.preset is None and not changes:
        return
    assert isinstance(fusionnet, FusionNet)
    fusionnet.sampler = replace(PRESETS[args.preset] if args.preset else fusionnet.sampler, **changes)
    fusionnet.check_sampler(fusionnet.sampler)


def _open_painter(args: argparse.Namespace) -> "HOIPipeline":
    from hoi_lightning.painters import PROMPT, DiffusersPainter
    from hoi_lightning.pipeline import HOIPipeline, find_device, released_or_checkpoint
    from hoi_lightning.tasks.masknet import MaskNet
    from hoi_lightning.weights import find_weights

    device = find_device(args.device)
    masknet = released_or_checkpoint(MaskNet, args.masknet or find_weights(args.weights or DEFAULT), device)
    prompt = PROMPT if args.prompt is None else args.prompt
    return HOIPipeline(masknet, DiffusersPainter.from_pretrained(args.painter, prompt, device=device), device)
