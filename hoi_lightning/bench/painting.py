"""`python -m hoi_lightning bench painting`: does RePaint's resampling help, and what does each sampler cost?

FusionNet paints the same pictures at their recorded layouts with every sampler; beside it stand the object picture as
it is and a training hand pasted at the same place. Intervals are 95 % bootstraps over (category, instance). A stopped
run goes on where it was; pictures of other weights, shards, seeds or samplers in the same folder are painted anew.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning.errors import InputError
from hoi_lightning.generate import make_folder, write_text
from hoi_lightning.opening import named_path, whole_number
from hoi_lightning.provenance import git_commit

if TYPE_CHECKING:
    from hoi_lightning.diffusion.repaint import RePaintSampler

MANY_CALLS = 1000  # of the network, from which a sampler is slow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the measurement's flags."""
    parser.add_argument("--fusionnet", type=Path, required=True, help="checkpoint of a FusionNet run, or its folder")
    parser.add_argument("--shards", type=Path, required=True, help="folder of HO3Pairs shards")
    parser.add_argument("--train-shards", type=Path, help="where the pasted hands come from; default: --shards")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="part of the shards")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if absent")
    parser.add_argument("--pictures", type=whole_number(2), default=256, help="pictures of the split")
    parser.add_argument(
        "--slow-pictures",
        type=whole_number(2),
        default=64,
        help=f"of them, with samplers of more than {MANY_CALLS} network calls, such as the paper's preset",
    )
    parser.add_argument("--steps", type=whole_number(1), nargs="+", default=[10, 50], help="of the samplers")
    parser.add_argument("--samplers", nargs="+", metavar="NAME", help="paint with these rows of the table alone")
    parser.add_argument(
        "--others",
        type=named_path,
        nargs="+",
        default=[],
        metavar="NAME=CKPT",
        help="other FusionNets, painted with the preset fast and compared with it picture by picture",
    )
    parser.add_argument("--batch-size", type=whole_number(1), default=8, help="pictures painted at once")
    parser.add_argument(
        "--precision", choices=["32", "bf16"], default="32", help="of the network; bf16 is faster where the CPU has AMX"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of all noise")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")


def samplers(steps: Sequence[int]) -> dict[str, "RePaintSampler"]:
    """The samplers that are compared, by name: composition, r, steps; and presets (`balanced` is repaint-r2-50)."""
    from hoi_lightning.diffusion.repaint import PRESETS, RePaintSampler

    arms: dict[str, RePaintSampler] = {}
    for count in steps:
        jump = min(5, count)
        arms |= {
            f"off-{count}": RePaintSampler(count, "off"),
            f"replace-{count}": RePaintSampler(count, "replace"),
            f"repaint-r2-{count}": RePaintSampler(count, "repaint", jump, 2),
            f"repaint-r10-{count}": RePaintSampler(count, "repaint", jump, 10),
        }
    return arms | {name: PRESETS[name] for name in ("fast", "paper")}


def run(args: argparse.Namespace) -> None:
    """Paint, measure, and leave `painting.json`, `painting.md` and `painting.png` in `--out`.

    Raises:
        InputError: checkpoint or shards are missing or damaged, the folder cannot be written, or a GPU's memory is
            exhausted.
    """
    import torch

    try:
        _paint_all(args)
    except torch.OutOfMemoryError:
        raise InputError(
            f"--device {args.device}: the GPU's memory is exhausted (finished pictures are kept); lower "
            f"--batch-size (now {args.batch_size}), give --device cpu or another GPU, or --fusionnet of a smaller "
            "image_size with its --shards"
        ) from None


def _paint_all(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from hoi_lightning.bench.painting_table import REFERENCES, collect_rows, draw_sheet, table
    from hoi_lightning.bench.painting_trials import load_pair, measure, painter, paster, stem_of
    from hoi_lightning.data.reader import ShardIndex
    from hoi_lightning.diffusion.repaint import PRESETS
    from hoi_lightning.evaluate import spread
    from hoi_lightning.metrics.image import image_metrics
    from hoi_lightning.pipeline import find_device, released_or_checkpoint
    from hoi_lightning.tasks import FusionNet

    index, training = ShardIndex(args.shards, args.split), ShardIndex(args.train_shards or args.shards, "train")
    chosen = spread([index.info(i) for i in range(len(index))], args.pictures)
    if len(chosen) < 2:
        raise InputError(f"--shards {args.shards}: {len(chosen)} {args.split} samples; a distance needs at least 2")
    device = find_device(args.device)

    def opened(path: Path) -> FusionNet:
        fusionnet = released_or_checkpoint(FusionNet, path, device)
        if index.manifest.size != fusionnet.image_size:
            raise InputError(
                f"--shards {args.shards}: pictures of {index.manifest.size} pixels, but {path} paints "
                f"{fusionnet.image_size}; build shards with --size {fusionnet.image_size}"
            )
        return fusionnet

    fusionnet = opened(args.fusionnet)
    arms = _chosen(samplers(args.steps), args.samplers)
    networks = dict.fromkeys(arms, fusionnet)
    for name, path in args.others:
        if name in (*arms, *REFERENCES):
            raise InputError(f"--others {name}=…: the table has a row of that name; take another")
        networks[name], arms[name] = opened(path), PRESETS["fast"]
    make_folder(args.out)
    paints = {
        "object": lambda pairs, _: [pair.obj for pair in pairs],
        "pasted": paster(training, args.seed),
        **{name: painter(networks[name], sampler, args.precision) for name, sampler in arms.items()},
    }
    metrics = image_metrics(device)
    slow = {name for name, sampler in arms.items() if sampler.network_calls > MANY_CALLS}
    jobs = [(name, i) for name in paints for i in chosen[: args.slow_pictures if name in slow else len(chosen)]]
    common = {"seed": args.seed, "precision": args.precision, "manifest": index.manifest_hash}
    with tqdm(total=len(jobs), unit="picture", desc="painting") as bar:
        for name, paint in paints.items():
            network = networks.get(name, fusionnet)
            made_by = common | {"fusionnet": network.checkpoint_hash}
            made_by["sampler"] = asdict(arms[name]) if name in arms else name
            if name == "pasted":
                made_by["train_manifest"] = training.manifest_hash
            own = [i for arm, i in jobs if arm == name]
            left = [i for i in own if _made_by(stem_of(args.out, name, i)) != made_by]
            bar.update(len(own) - len(left))
            for start in range(0, len(left), args.batch_size):
                some = left[start : start + args.batch_size]
                stems, pairs = [stem_of(args.out, name, i) for i in some], [load_pair(index, i) for i in some]
                for stem, record in zip(stems, measure(stems, pairs, paint, network, metrics, args.seed), strict=True):
                    write_text(stem.with_suffix(".json"), json.dumps({"made_by": made_by, **record}) + "\n")
                bar.update(len(some))
    result = {
        "provenance": {
            "num_pictures": len(chosen),
            "seed": args.seed,
            "split": args.split,
            "git_commit": git_commit(),
            "fusionnet_sha256": fusionnet.checkpoint_hash,
            "manifest_sha256": index.manifest_hash,
            "train_manifest_sha256": training.manifest_hash,
            "lpips": metrics.lpips_name,
            "precision": args.precision,
            **{f"{name}_sha256": net.checkpoint_hash for name, net in networks.items() if net is not fusionnet},
        },
        "rows": collect_rows(args.out, jobs, arms, index, metrics, args.seed),
    }
    write_text(args.out / "painting.json", json.dumps(result, indent=2) + "\n")
    write_text(args.out / "painting.md", table(result))
    draw_sheet(args.out, list(paints), chosen, index)
    print(table(result), end="")


def _chosen(arms: dict[str, "RePaintSampler"], names: list[str] | None) -> dict[str, "RePaintSampler"]:
    if unknown := sorted(set(names or ()) - set(arms)):
        raise InputError(f"--samplers {unknown[0]}: no row of that name; there are {', '.join(arms)}")
    return {name: arm for name, arm in arms.items() if names is None or name in names}


def _made_by(stem: Path) -> dict[str, Any] | None:
    """What decided a finished picture."""
    from hoi_lightning.bench.painting_trials import record_of

    try:
        return record_of(stem)["made_by"]
    except (OSError, ValueError, KeyError):
        return None
