"""`python -m hoi_lightning bench layouts`: does MaskNet sample the true distribution, on the mini world?

Each test picture comes with draws of its true conditional distribution. Every row is the unbiased squared energy
distance from them, numbers in units of their standard deviation, averaged over pictures; intervals are 95 % bootstraps
over (category, instance). Status 1 where a target is missed.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_lightning.errors import InputError
from hoi_lightning.generate import make_folder, write_png, write_text
from hoi_lightning.metrics.bootstrap import bootstrap_interval
from hoi_lightning.opening import named_path, whole_number
from hoi_lightning.provenance import git_commit

if TYPE_CHECKING:
    from hoi_lightning.bench.layout_trials import Trial

ROWS = {
    "second": "a second true sample",
    "constant": "the constant layout (mean of the training layouts)",
    "marginal": "the training marginal",
    "shuffled": "MaskNet, its pictures shuffled",
    "masknet": "MaskNet",
    "removed": "MaskNet on hand-removed pictures",
    "few_steps": "MaskNet, DDIM 10 steps",
    "many_steps": "MaskNet, DDIM 100 steps",
}
DRAWN_ROWS = 6  # pictures on the sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the measurement's flags."""
    parser.add_argument("--masknet", type=Path, required=True, help="checkpoint of a MaskNet run, or a released folder")
    parser.add_argument("--shards", type=Path, required=True, help="mini-world shards with truth")
    parser.add_argument(
        "--train-shards", type=Path, help="shards it was trained on, for the marginal; default: --shards"
    )
    parser.add_argument(
        "--others",
        type=named_path,
        nargs="+",
        default=[],
        metavar="NAME=CKPT",
        help="other MaskNets, compared with it picture by picture",
    )
    parser.add_argument("--split", choices=["val", "test"], default="test", help="part of the shards")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if absent")
    parser.add_argument("--pictures", type=whole_number(2), default=64, help="pictures of the split")
    parser.add_argument("--draws", type=whole_number(16), default=256, help="layouts per picture")
    parser.add_argument(
        "--layout-sampler",
        choices=["ddpm", "ddim", "dpm-solver++", "unipc", "repaint"],
        default="ddim",
        help="of MaskNet",
    )
    parser.add_argument("--layout-steps", type=whole_number(1), default=25, help="steps of the sampler")
    parser.add_argument("--guided", type=whole_number(1), default=8, help="pictures on which guidance is tried")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of all noise")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")


def run(args: argparse.Namespace) -> int:
    """Measure, and leave `layouts.json`, `layouts.md` and `layouts.png` in `--out`; 1 where a target is missed.

    Raises:
        InputError: checkpoint, shards or truth are missing or damaged, the folder cannot be written, or a GPU's memory
            is exhausted.
    """
    import torch

    try:
        return _sample_all(args)
    except torch.OutOfMemoryError:
        raise InputError(
            f"--device {args.device}: the GPU's memory is exhausted; lower --draws (now {args.draws}), give --device "
            "cpu or another GPU, or --masknet of a smaller image_size"
        ) from None


def _sample_all(args: argparse.Namespace) -> int:
    import torch

    from hoi_lightning.bench.layout_trials import compare, measure
    from hoi_lightning.data.reader import ShardIndex
    from hoi_lightning.data.truth import TruthIndex
    from hoi_lightning.evaluate import spread
    from hoi_lightning.pipeline import find_device, released_or_checkpoint
    from hoi_lightning.tasks.masknet import MaskNet

    index, truth = ShardIndex(args.shards, args.split), TruthIndex(args.shards, args.split)
    training = ShardIndex(args.train_shards or args.shards, "train")
    marginal = torch.from_numpy(training.layouts())
    chosen = spread([index.info(i) for i in range(len(index))], args.pictures)
    if len({(index.info(i).category, index.info(i).instance) for i in chosen}) < 2:
        raise InputError(f"--shards {args.shards}: its {args.split} split shows one object; intervals need at least 2")
    device = find_device(args.device)

    def opened(path: Path) -> MaskNet:
        masknet = released_or_checkpoint(MaskNet, path, device)
        masknet.sampler, masknet.sample_steps = args.layout_sampler, args.layout_steps
        return masknet

    masknet = opened(args.masknet)
    others = {name: opened(path) for name, path in args.others}
    make_folder(args.out)
    trials, guidance = measure(masknet, index, truth, chosen, marginal, args)
    rivals = {name: compare(other, trials) for name, other in {"MaskNet": masknet, **others}.items()} if others else {}
    result = {
        "provenance": {
            "num_pictures": len(trials),
            "num_instances": len({trial.instance for trial in trials}),
            "num_draws": args.draws,
            "sampler": f"{args.layout_sampler}, {args.layout_steps} steps",
            "seed": args.seed,
            "split": args.split,
            "git_commit": git_commit(),
            "masknet_sha256": masknet.checkpoint_hash,
            "manifest_sha256": index.manifest_hash,
            "train_manifest_sha256": training.manifest_hash,
            **{f"{name}_sha256": other.checkpoint_hash for name, other in others.items()},
        },
        **summarise(trials, args.seed),
        "guidance": guidance,
        "others": _others(rivals, trials, args),
    }
    result["targets"] = judge(result)
    write_text(args.out / "layouts.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_text(args.out / "layouts.md", table(result))
    draw(trials, args.out / "layouts.png")
    print((args.out / "layouts.md").read_text())
    return 0 if all(target["met"] for target in result["targets"]) else 1


def summarise(trials: Sequence["Trial"], seed: int) -> dict[str, Any]:
    """Rows, ratios, differences and rules over all pictures."""
    groups = np.array([trial.instance for trial in trials])
    distances = {row: np.array([trial.distances[row] for trial in trials]) for row in ROWS}

    def figure(values: np.ndarray) -> dict[str, Any]:
        return _figure(values, groups, seed)

    def ratio(above: np.ndarray, below: np.ndarray) -> dict[str, Any]:
        low, high = _ratio_interval(above, below, groups, seed)
        return {"value": float(above.mean() / below.mean()), "low": low, "high": high}

    masknet, marginal = distances["masknet"], distances["marginal"]
    contact = {name: np.array([trial.contact[name] for trial in trials]) for name in ("truth", "masknet")}
    return {
        "distances": {row: figure(values) for row, values in distances.items()},
        "ratios": {
            "masknet / marginal": ratio(masknet, marginal),
            "masknet / shuffled": ratio(masknet, distances["shuffled"]),
            "leak gap: (removed - clean) / clean": ratio(distances["removed"] - masknet, masknet),
            "steps: (DDIM 10 - DDIM 100) / marginal": ratio(distances["few_steps"] - distances["many_steps"], marginal),
        },
        "contact": {name: figure(values) for name, values in contact.items()}
        | {"masknet - truth": figure(contact["masknet"] - contact["truth"])},
        "rules": _rules(trials),
    }


def _figure(values: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, Any]:
    low, high = bootstrap_interval(values, groups, seed)
    return {"value": float(values.mean()), "low": low, "high": high}


def _others(rivals: dict[str, dict[str, np.ndarray]], trials: Sequence["Trial"], args: argparse.Namespace) -> Any:
    """Distances of the other MaskNets, less that of the first, picture by picture."""
    groups = np.array([trial.instance for trial in trials])
    return {
        name: {
            "distance": float(row["distance"].mean()),
            "difference": _figure(row["distance"] - rivals["MaskNet"]["distance"], groups, args.seed),
            "contact": float(row["contact"].mean()),
            "ms_per_layout": 1e3 * float(np.median(row["seconds"])) / args.draws,
        }
        for name, row in rivals.items()
    }


def judge(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target with the figure it is about, and whether it is met."""
    ratios, guidance = result["ratios"], result["guidance"]
    steps, leak = ratios["steps: (DDIM 10 - DDIM 100) / marginal"], ratios["leak gap: (removed - clean) / clean"]
    rules = [rule for rule in result["rules"] if rule["true"] >= 0.05]
    worst_error = max(abs(rule["masknet"] - rule["true"]) for rule in result["rules"])
    coverage = min(rule["masknet"] / rule["true"] for rule in rules)
    exact = max(guidance["fixed"].values())
    targets: list[tuple[str, float, Callable[[float], bool]]] = [
        ("distance / marginal's ≤ 10 %", ratios["masknet / marginal"]["value"], lambda v: v <= 0.1),
        ("distance / shuffled's ≤ 25 %", ratios["masknet / shuffled"]["value"], lambda v: v <= 0.25),
        ("least sampled / true share of a rule of ≥ 5 %: ≥ 50 %", coverage, lambda v: v >= 0.5),
        ("largest error of a rule's share ≤ 5 points", worst_error, lambda v: v <= 0.05),
        ("contact ≥ truth - 3 points", result["contact"]["masknet - truth"]["value"], lambda v: v >= -0.03),
        ("leak gap within ± 10 %", leak["value"], lambda v: abs(v) <= 0.1),
        ("interval of DDIM 10 - 100 inside ± 10 % of the marginal's", max(abs(steps["low"]), abs(steps["high"])),
         lambda v: v <= 0.1),
        ("fixed numbers met exactly: largest deviation", exact, lambda v: v == 0),
        ("heat map: centres inside ≥ 90 %", guidance["heat_map"]["guided"], lambda v: v >= 0.9),
    ]  # fmt: skip
    return [{"target": name, "value": value, "met": bool(met(value))} for name, value, met in targets]


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown page."""

    def cells(figure: dict[str, Any]) -> str:
        return f"{figure['value']:.4f} | {figure['low']:.4f} to {figure['high']:.4f}"

    lines = ["# MaskNet against the true distribution", ""]
    lines += [", ".join(f"{name} {value}" for name, value in result["provenance"].items()), ""]
    lines += ["| layouts | energy distance | 95 % interval |", "|---|---:|---|"]
    lines += [f"| {ROWS[row]} | {cells(figure)} |" for row, figure in result["distances"].items()]
    lines += ["", "| ratio | value | 95 % interval |", "|---|---:|---|"]
    lines += [f"| {name} | {cells(figure)} |" for name, figure in result["ratios"].items()]
    lines += ["", "| contact rate | value | 95 % interval |", "|---|---:|---|"]
    lines += [f"| {name} | {cells(figure)} |" for name, figure in result["contact"].items()]
    lines += ["", "| category | rule | true share | a second true sample | MaskNet | pictures |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for rule in result["rules"]:
        shares = " | ".join(f"{rule[name]:.3f}" for name in ("true", "second", "masknet"))
        lines.append(f"| {rule['category']} | {rule['rule']} | {shares} | {rule['pictures']} |")
    lines += ["", "| guidance | figure |", "|---|---:|"]
    lines += [f"| fixed {name}: largest deviation | {value:g} |" for name, value in result["guidance"]["fixed"].items()]
    for wish in ("heat_map", "keep_out", "touch"):
        free, guided = (result["guidance"][wish][key] for key in ("free", "guided"))
        lines.append(f"| {wish.replace('_', ' ')}: {result['guidance'][wish]['what']} | {free:.3f} → {guided:.3f} |")
    if result["others"]:
        lines += ["", "| MaskNets | energy distance | less the first's | 95 % interval | contact | ms a layout |"]
        lines += ["|---|---:|---:|---|---:|---:|"]
    for name, row in result["others"].items():
        figures = f"{row['distance']:.4f} | {cells(row['difference'])} | {row['contact']:.4f}"
        lines.append(f"| {name} | {figures} | {row['ms_per_layout']:.2f} |")
    lines += ["", "| target | value | met |", "|---|---:|---|"]
    lines += [f"| {t['target']} | {t['value']:.4g} | {'yes' if t['met'] else '**no**'} |" for t in result["targets"]]
    return "\n".join(lines) + "\n"


def draw(trials: Sequence["Trial"], path: Path) -> None:
    """A sheet: object, density of true and of sampled palms, eight layouts of each."""
    import torch

    from hoi_lightning.grid import draw_grid
    from hoi_lightning.hand_proxy import Layout, draw_layouts
    from hoi_lightning.metrics.layout_plots import draw_density

    first = {trial.category: trial for trial in reversed(trials)}
    shown = [*first.values(), *(trial for trial in trials if trial not in first.values())][:DRAWN_ROWS]

    def eight(trial: "Trial", layouts: torch.Tensor) -> np.ndarray:
        return draw_layouts(trial.clean, [Layout.from_tensor(row) for row in layouts[:8]])

    columns = {
        "object": [trial.clean for trial in shown],
        "true": [draw_density(trial.clean, trial.true) for trial in shown],
        "MaskNet": [draw_density(trial.clean, trial.sampled) for trial in shown],
        "eight true": [eight(trial, trial.true) for trial in shown],
        "eight of MaskNet": [eight(trial, trial.sampled) for trial in shown],
    }
    write_png(path, draw_grid(columns, 192))


def _rules(trials: Sequence["Trial"]) -> list[dict[str, Any]]:
    """Shares of each category's rules, means over its pictures."""
    rows = []
    for category in sorted({trial.category for trial in trials}):
        group = [trial for trial in trials if trial.category == category]
        for rule in group[0].shares["true"]:
            shares = {
                name: float(np.mean([t.shares[name][rule] for t in group])) for name in ("true", "second", "masknet")
            }
            rows.append({"category": category, "rule": rule, **shares, "pictures": len(group)})
    return rows


def _ratio_interval(above: np.ndarray, below: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval of mean(above) / mean(below); whole groups are drawn, numerator and denominator together."""
    labels, member = np.unique(groups, return_inverse=True)
    sums = np.stack([np.bincount(member, values) for values in (above, below)])
    picks = np.random.default_rng(seed).integers(len(labels), size=(2000, len(labels)))
    top, bottom = sums[:, picks].sum(axis=2)
    low, high = np.percentile(top / bottom, [2.5, 97.5])
    return float(low), float(high)
