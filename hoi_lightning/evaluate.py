"""`python -m hoi_lightning evaluate`: every figure of two checkpoints on one split, with a report."""

import argparse
import json
import math
import platform
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hoi_lightning import __version__
from hoi_lightning.errors import InputError
from hoi_lightning.generate import make_folder, write_png, write_text
from hoi_lightning.metrics.bootstrap import bootstrap_interval
from hoi_lightning.opening import (
    SAMPLING,
    add_checkpoint_arguments,
    check_weights,
    enough_memory,
    open_pipeline,
    whole_number,
)
from hoi_lightning.provenance import git_commit

if TYPE_CHECKING:
    from hoi_lightning.data.reader import ShardIndex
    from hoi_lightning.data.sample import Field, HOISample, SampleInfo
    from hoi_lightning.hand_proxy import Layout
    from hoi_lightning.metrics.image import ImageMetrics
    from hoi_lightning.pipeline import HOIOutput, HOIPipeline

FIELDS: tuple["Field", ...] = ("hoi", "obj", "hand", "object")
GRID_ROWS = 10
GRID_SAMPLES = 4

# name: (group, better, unit, meaning); {lpips} and {fd} become the names of the networks that are there
_MASKNET, _FUSIONNET, _BOTH = (
    "MaskNet: sampled layouts",
    "FusionNet: painted at the recorded layout",
    "MaskNet and FusionNet together",
)
FIGURES: dict[str, tuple[str, Literal["lower", "higher", ""], str, str]] = {
    "contact_rate": (_MASKNET, "higher", "", "share of sampled palms that touch the object"),
    "contact_rate_recorded": (
        _MASKNET,
        "",
        "",
        "the same for the recorded layouts: what a perfect sampler would reach",
    ),
    "centre_error": (_MASKNET, "lower", "side", "distance from the recorded centre; one of several right places"),
    "centre_error_best": (_MASKNET, "lower", "side", "the same for the nearest draw of each picture"),
    "size_error": (_MASKNET, "lower", "", "relative error of the size a"),
    "angle_error": (_MASKNET, "lower", "°", "angle between sampled and recorded forearm"),
    "angle_error_best": (_MASKNET, "lower", "°", "the same for the nearest draw of each picture"),
    "splat_iou": (_MASKNET, "higher", "", "overlap of sampled and recorded hand proxy"),
    "centre_spread": (_MASKNET, "", "side", "how far one picture's draws lie apart; 0 = always the same place"),
    "resultant_length": (_MASKNET, "", "", "agreement of one picture's draws in direction; 1 = always the same"),
    "hole_recall": (_FUSIONNET, "higher", "", "share of the recorded hand that the recorded layout's hole covers"),
    "paint_{lpips}": (_FUSIONNET, "lower", "", "perceptual distance to the recorded picture, full frame"),
    "paint_{lpips}_hole": (_FUSIONNET, "lower", "", "the same in the square around the hole"),
    "paint_psnr_hole": (_FUSIONNET, "higher", "dB", "pixel agreement with the recorded picture inside the hole"),
    "{fd}": (_BOTH, "lower", "", "Fréchet distance of all samples from the recorded pictures; falls with N"),
    "{lpips}": (_BOTH, "lower", "", "perceptual distance to the recorded picture, mean of the draws"),
    "{lpips}_best": (_BOTH, "lower", "", "the same for the nearest draw of each picture"),
    "outside_max_diff": (_BOTH, "lower", "of 255", "largest change of any pixel outside the holes; the contract is 0"),
}

WITH_CHANCE = ("contact_rate", "centre_error", "size_error", "angle_error", "splat_iou")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument("--shards", type=Path, required=True, help="folder of HO3Pairs shards")
    add_checkpoint_arguments(parser)
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="part of the shards")
    parser.add_argument("--num-images", type=whole_number(1), default=4, help="samples per picture")
    parser.add_argument("--max-samples", type=whole_number(1), default=48, help="pictures of the split")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], metavar="DIR", help="training runs to report on")


def run(args: argparse.Namespace) -> None:
    """Sample, measure, and leave `metrics.json`, `grid.png` and `report.html` in `--out`.

    Raises:
        InputError: checkpoints, shards or run folders are missing or damaged, the folder cannot be written, or a GPU's
            memory is exhausted.
    """
    from hoi_lightning.report import check_runs

    check_weights(args)
    check_runs(args.runs)
    make_folder(args.out)
    from hoi_lightning.data.reader import ShardIndex

    index = ShardIndex(args.shards, args.split)
    with enough_memory(args.device, f"lower --num-images (now {args.num_images})"):
        evaluate(open_pipeline(args), index, args)


def evaluate(pipeline: "HOIPipeline", index: "ShardIndex", args: argparse.Namespace) -> None:
    """Measure a pipeline on a split, and write the results."""
    from tqdm import tqdm

    from hoi_lightning.grid import draw_grid
    from hoi_lightning.metrics.image import image_metrics
    from hoi_lightning.report import CELL, write_report

    infos = [index.info(i) for i in range(len(index))]
    chosen = spread(infos, args.max_samples)
    if len(chosen) < 2:
        raise InputError(f"--shards {args.shards}: {len(chosen)} {args.split} samples; a distance needs at least 2")
    metrics = image_metrics(pipeline.device)
    samples: list[dict[str, Any]] = []
    rows: list[list[np.ndarray]] = []
    for turn, i in enumerate(tqdm(chosen, unit="picture", desc="evaluate")):
        trial = sample_trial(pipeline, index.sample(i, FIELDS), args)
        samples.append(score(trial, metrics, infos[chosen[turn - 1]].layout))
        if len(rows) < GRID_ROWS:
            rows.append(grid_row(trial))
    figures = summarise(samples, metrics, args.seed)
    result = {
        "provenance": provenance(pipeline, index, samples, args),
        "figures": figures,
        "samples": samples,
    }
    shown = min(args.num_images, GRID_SAMPLES)
    headers = ["object", "sampled layouts", *(f"sample {k}" for k in range(shown)), "recorded layout", "recorded"]
    columns = dict(zip(headers, zip(*rows, strict=True), strict=True))
    write_text(args.out / "metrics.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_png(args.out / "grid.png", draw_grid(columns, CELL))
    write_report(args.out / "report.html", result, args.out / "grid.png", args.runs)
    for figure in figures:
        print(format_figure(figure))
    print(f"report: {args.out / 'report.html'}")


def spread(infos: Sequence["SampleInfo"], count: int) -> list[int]:
    """Choose samples that repeat an object as late as possible; the same ones every time.

    Instances take turns in shard order; an instance gives a sample of each of its sequences before a second one of
    any. So the first `count` cover as many (category, instance) and then as many sequences as they can.

    Args:
        infos: records of the split, in shard order.
        count: how many to choose; fewer come back from a smaller split.
    """
    instances: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    seen: Counter[str] = Counter()
    for i, info in enumerate(infos):
        instances[info.category, info.instance].append((seen[info.sequence], i))
        seen[info.sequence] += 1
    turns = sorted((turn, i) for samples in instances.values() for turn, (_, i) in enumerate(sorted(samples)))
    return [i for _, i in turns[:count]]


@dataclass(frozen=True)
class Trial:
    """One test pair with everything sampled for it.

    Attributes:
        info: the pair's record.
        hoi: recorded picture, uint8 (S, S, 3).
        obj: its object picture, uint8 (S, S, 3).
        hand: recorded hand and forearm, bool (S, S).
        object: the touched object, bool (S, S).
        sampled: layouts by MaskNet, pictures by FusionNet.
        given: one picture painted at the recorded layout.
    """

    info: "SampleInfo"
    hoi: np.ndarray
    obj: np.ndarray
    hand: np.ndarray
    object: np.ndarray
    sampled: "HOIOutput"
    given: "HOIOutput"


def sample_trial(pipeline: "HOIPipeline", pair: "HOISample", args: argparse.Namespace) -> Trial:
    """Sample for one test pair; its noise comes from (seed, key), not from its place in the split."""
    from PIL import Image

    from hoi_lightning.diffusion.ddpm import sample_seeds

    hoi, obj, hand, thing = (getattr(pair, field) for field in FIELDS)
    (seed,) = sample_seeds(args.seed, [zlib.crc32(pair.info.key.encode())])
    sampled = pipeline(Image.fromarray(obj), args.num_images, seed)
    given = pipeline(Image.fromarray(obj), 1, seed, layouts=[pair.info.layout])
    return Trial(pair.info, hoi, obj, hand, thing, sampled, given)


def score(trial: Trial, metrics: "ImageMetrics", other: "Layout") -> dict[str, Any]:
    """Figures of one test picture; its samples are added to the Fréchet distance's stream.

    Args:
        trial: the picture.
        metrics: the stream.
        other: the recorded layout of another picture, which makes the figures of chance.
    """
    import torch

    from hoi_lightning.metrics.image import as_batch, outside_max_diff, paint_scores
    from hoi_lightning.metrics.layout import contact_rate, hole_recall, layout_scores

    info, hoi, given = trial.info, trial.hoi, trial.given
    sampled = torch.stack([layout.to_tensor() for layout in trial.sampled.layouts])  # (K, 5)
    true, object_mask = info.layout.to_tensor(), torch.from_numpy(trial.object)[None]  # (5,), (1, S, S)
    pictures = [np.asarray(image) for image in trial.sampled.images]
    lpips = metrics.update(as_batch(pictures), as_batch([hoi] * len(pictures)))
    painted = paint_scores(metrics, np.asarray(given.images[0]), hoi, given.hole_masks[0])
    figures = {
        **layout_scores(sampled, true, object_mask),
        "contact_rate_recorded": contact_rate(true, object_mask),
        "hole_recall": hole_recall(given.hole_masks[0], trial.hand),
        **{f"paint_{name}": value for name, value in painted.items()},
        metrics.lpips_name: lpips.mean().item(),
        f"{metrics.lpips_name}_best": lpips.min().item(),
        "outside_max_diff": max(
            outside_max_diff(np.asarray(image), trial.obj, hole)
            for output in (trial.sampled, given)
            for image, hole in zip(output.images, output.hole_masks, strict=True)
        ),
    }
    chance = layout_scores(other.to_tensor()[None], true, object_mask)
    return {
        "key": info.key,
        "category": info.category,
        "instance": info.instance,
        "layout": list(asdict(info.layout).values()),
        "sampled_layouts": [list(asdict(layout).values()) for layout in trial.sampled.layouts],
        "figures": {name: value if math.isfinite(value) else None for name, value in figures.items()},
        "chance": {name: chance[name] for name in WITH_CHANCE},
    }


def summarise(samples: Sequence[dict[str, Any]], metrics: "ImageMetrics", seed: int) -> list[dict[str, Any]]:
    """One record per figure, in the order of `FIGURES`: value, N, 95 % interval, chance and meaning."""
    names = {"fd": metrics.fd_name, "lpips": metrics.lpips_name}
    stream = metrics.compute()
    groups = np.array([f"{sample['category']}/{sample['instance']}" for sample in samples])
    records = []
    for template, (group, better, unit, meaning) in FIGURES.items():
        name = template.format(**names)
        value: float | None = None
        low = high = chance = None
        if name == metrics.fd_name:
            value, n = stream[name], metrics.num_pictures
        else:
            values = np.array([sample["figures"][name] for sample in samples], dtype=float)  # None becomes NaN
            known = ~np.isnan(values)
            n = int(known.sum())
            if name == "outside_max_diff":
                value = float(values.max())
            elif n:
                value = float(values[known].mean())
                low, high = bootstrap_interval(values[known], groups[known], seed)
            if name in WITH_CHANCE:
                chance = float(np.mean([sample["chance"][name] for sample in samples]))
        record = {"name": name, "group": group, "value": value, "n": n}
        record |= {"low": low, "high": high, "chance": chance, "better": better, "unit": unit, "meaning": meaning}
        records.append(record)
    return records


def provenance(
    pipeline: "HOIPipeline", index: "ShardIndex", samples: Sequence[dict[str, Any]], args: argparse.Namespace
) -> dict[str, Any]:
    """What makes the figures reproducible."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "split": args.split,
        "num_samples": len(samples),
        "num_instances": len({(sample["category"], sample["instance"]) for sample in samples}),
        "num_images": args.num_images,
        "selection": "instances take turns in shard order, each giving every sequence once before any twice",
        "seed": args.seed,
        "git_commit": git_commit(),
        "masknet_sha256": pipeline.masknet.checkpoint_hash,
        "fusionnet_sha256": pipeline.fusionnet.checkpoint_hash,
        **({"prompt": args.prompt} if args.painter else {}),
        **{name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None},
        "manifest_sha256": index.manifest_hash,
        "image_size": pipeline.fusionnet.image_size,
        "device": str(pipeline.device),
        "versions": {
            "hoi_lightning": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "numpy", "pillow")},
        },
    }


def grid_row(trial: Trial) -> list[np.ndarray]:
    """Cells of one test picture: object, sampled layouts, samples, painted at the recorded layout, recorded."""
    from PIL import Image

    from hoi_lightning.report import layout_cell, square_cell

    obj = Image.fromarray(trial.obj)
    return [
        square_cell(obj),
        layout_cell(obj, trial.sampled.layouts),
        *(square_cell(image) for image in trial.sampled.images[:GRID_SAMPLES]),
        square_cell(trial.given.images[0]),
        square_cell(Image.fromarray(trial.hoi)),
    ]


def format_figure(figure: dict[str, Any]) -> str:
    """One line for the terminal."""
    value = "-" if figure["value"] is None else f"{figure['value']:.4g}"
    interval = "" if figure["low"] is None else f" [{figure['low']:.4g}, {figure['high']:.4g}]"
    return f"{figure['name']:>24}  {value}{interval}  N={figure['n']}"
