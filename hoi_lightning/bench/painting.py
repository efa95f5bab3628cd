"""`python -m hoi_lightning bench painting`: does RePaint's resampling help, and what does each sampler cost?

FusionNet paints the same pictures at their recorded layouts with every sampler; beside it stand the object picture as
it is and a training hand pasted at the same place. Intervals are 95 % bootstraps over (category, instance). A stopped
run goes on where it was; pictures of other weights, shards, seeds or samplers in the same folder are painted anew.
"""

import argparse
import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_lightning.errors import InputError
from hoi_lightning.generate import make_folder, write_png, write_text
from hoi_lightning.metrics.bootstrap import bootstrap_interval
from hoi_lightning.opening import whole_number
from hoi_lightning.provenance import git_commit

if TYPE_CHECKING:
    from hoi_lightning.data.reader import ShardIndex
    from hoi_lightning.data.sample import SampleInfo
    from hoi_lightning.diffusion.repaint import RePaintSampler
    from hoi_lightning.metrics.image import ImageMetrics
    from hoi_lightning.tasks import FusionNet

REFERENCES = ("object", "pasted")
DRAWN = 8  # pictures on the sheet
MANY_CALLS = 200  # of the network, from which a sampler is slow


@dataclass(frozen=True)
class Pair:
    """A recorded pair.

    Attributes:
        info: its record.
        hoi: uint8 (S, S, 3).
        obj: uint8 (S, S, 3).
        hand: bool (S, S).
    """

    info: "SampleInfo"
    hoi: np.ndarray
    obj: np.ndarray
    hand: np.ndarray


Paint = Callable[[Sequence[Pair], Sequence[int]], list[np.ndarray]]


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
    parser.add_argument("--batch-size", type=whole_number(1), default=8, help="pictures painted at once")
    parser.add_argument(
        "--precision", choices=["32", "bf16"], default="32", help="of the network; bf16 is faster where the CPU has AMX"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of all noise")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")


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

    from hoi_lightning.data.reader import ShardIndex
    from hoi_lightning.evaluate import spread
    from hoi_lightning.metrics.image import image_metrics
    from hoi_lightning.pipeline import find_device, released_or_checkpoint
    from hoi_lightning.tasks import FusionNet

    index, training = ShardIndex(args.shards, args.split), ShardIndex(args.train_shards or args.shards, "train")
    chosen = spread([index.info(i) for i in range(len(index))], args.pictures)
    if len(chosen) < 2:
        raise InputError(f"--shards {args.shards}: {len(chosen)} {args.split} samples; a distance needs at least 2")
    device = find_device(args.device)
    fusionnet = released_or_checkpoint(FusionNet, args.fusionnet, device)
    if index.manifest.size != fusionnet.image_size:
        raise InputError(
            f"--shards {args.shards}: pictures of {index.manifest.size} pixels, but this FusionNet paints "
            f"{fusionnet.image_size}; build shards with --size {fusionnet.image_size}"
        )
    make_folder(args.out)
    arms = samplers(args.steps)
    paints: dict[str, Paint] = {
        "object": lambda pairs, _: [pair.obj for pair in pairs],
        "pasted": _paster(training, args.seed),
    }
    paints |= {name: _painter(fusionnet, sampler, args.precision) for name, sampler in arms.items()}
    metrics = image_metrics(device)
    slow = {name for name, sampler in arms.items() if sampler.network_calls > MANY_CALLS}
    jobs = [(name, i) for name in paints for i in chosen[: args.slow_pictures if name in slow else len(chosen)]]
    common = {
        "seed": args.seed,
        "precision": args.precision,
        "manifest": index.manifest_hash,
        "fusionnet": fusionnet.checkpoint_hash,
    }
    with tqdm(total=len(jobs), unit="picture", desc="painting") as bar:
        for name, paint in paints.items():
            made_by = common | {"sampler": asdict(arms[name]) if name in arms else name}
            if name == "pasted":
                made_by["train_manifest"] = training.manifest_hash
            own = [i for arm, i in jobs if arm == name]
            left = [i for i in own if _made_by(_stem(args.out, name, i)) != made_by]
            bar.update(len(own) - len(left))
            for start in range(0, len(left), args.batch_size):
                some = left[start : start + args.batch_size]
                pairs = [_pair(index, i) for i in some]
                records = _measure(
                    [_stem(args.out, name, i) for i in some], pairs, paint, fusionnet, metrics, args.seed
                )
                for i, record in zip(some, records, strict=True):
                    line = json.dumps({"made_by": made_by, **record}) + "\n"
                    write_text(_stem(args.out, name, i).with_suffix(".json"), line)
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
        },
        "rows": _rows(args.out, jobs, arms, index, metrics, args.seed),
    }
    write_text(args.out / "painting.json", json.dumps(result, indent=2) + "\n")
    write_text(args.out / "painting.md", table(result))
    _draw(args.out, list(paints), chosen, index)
    print(table(result), end="")


def _stem(out: Path, name: str, i: int) -> Path:
    """Of the files of one picture by one sampler."""
    return out / "pictures" / name / f"{i:06d}"


def _made_by(stem: Path) -> dict[str, Any] | None:
    """What decided a finished picture."""
    try:
        return json.loads(stem.with_suffix(".json").read_text())["made_by"]
    except (OSError, ValueError, KeyError):
        return None


def _pair(index: "ShardIndex", i: int) -> Pair:
    sample = index.sample(i, ("hoi", "obj", "hand"))
    assert sample.hoi is not None
    assert sample.obj is not None
    assert sample.hand is not None
    return Pair(sample.info, sample.hoi, sample.obj, sample.hand)


def _painter(fusionnet: "FusionNet", sampler: "RePaintSampler", precision: str) -> Paint:
    import torch

    def paint(pairs: Sequence[Pair], seeds: Sequence[int]) -> list[np.ndarray]:
        obj = torch.from_numpy(np.stack([pair.obj for pair in pairs])).permute(0, 3, 1, 2).to(fusionnet.device)
        layouts = torch.stack([pair.info.layout.to_tensor() for pair in pairs]).to(fusionnet.device)
        with torch.autocast(fusionnet.device.type, torch.bfloat16, enabled=precision == "bf16"):
            painted = fusionnet.sample(obj.float() / 127.5 - 1, layouts, seeds, sampler).float()
        return list(((painted + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())

    return paint


def _paster(training: "ShardIndex", seed: int) -> Paint:
    """Pastes a random training hand, turned and scaled so that its layout is the recorded one."""
    import torch
    import torch.nn.functional as F

    def frame(layout: Any) -> Any:
        """Affine map (2, 3) from the layout's own frame, in radii and along the forearm, to NDC."""
        a, x, y, b1, b2 = layout.to_tensor().tolist()
        r, norm = a * a / 2, (b1 * b1 + b2 * b2) ** 0.5
        return np.array([[r * b1 / norm, -r * b2 / norm, x], [r * b2 / norm, r * b1 / norm, y]])

    def paste(pair: Pair, sample_seed: int) -> np.ndarray:
        draw = np.random.default_rng([seed, sample_seed])
        other = _pair(training, int(draw.integers(len(training))))
        here, there = frame(pair.info.layout), frame(other.info.layout)
        turn = there[:, :2] @ np.linalg.inv(here[:, :2])
        theta = np.concatenate([turn, (there[:, 2] - turn @ here[:, 2])[:, None]], axis=1)
        source = np.concatenate([other.hoi, 255 * other.hand[..., None]], axis=2).astype(np.float32)
        picture = torch.from_numpy(source).permute(2, 0, 1)[None]
        grid = F.affine_grid(torch.from_numpy(theta).float()[None], list(picture.shape), align_corners=False)
        moved = F.grid_sample(picture, grid, align_corners=False)[0].permute(1, 2, 0).numpy()
        inside = moved[..., 3] > 127
        return np.where(inside[..., None], moved[..., :3].round().clip(0, 255).astype(np.uint8), pair.obj)

    return lambda pairs, seeds: [paste(pair, sample_seed) for pair, sample_seed in zip(pairs, seeds, strict=True)]


def _measure(
    stems: Sequence[Path],
    pairs: Sequence[Pair],
    paint: Paint,
    fusionnet: "FusionNet",
    metrics: "ImageMetrics",
    seed: int,
) -> list[dict[str, float]]:
    """Paint pairs, leave their PNGs, and measure each."""
    from PIL import Image

    from hoi_lightning.diffusion.ddpm import sample_seeds
    from hoi_lightning.metrics.image import as_batch, hole_crop, outside_max_diff
    from hoi_lightning.metrics.layout import hole_recall
    from hoi_lightning.metrics.seam import border_jump

    own = sample_seeds(seed, [zlib.crc32(pair.info.key.encode()) for pair in pairs])
    start = time.process_time()
    pictures = paint(pairs, own)
    seconds = (time.process_time() - start) / len(pairs)
    records = []
    for stem, pair, painted in zip(stems, pairs, pictures, strict=True):
        hole = fusionnet.hole_mask(pair.info.layout.to_tensor()[None])[0, 0].bool().cpu().numpy()
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_png(stem.with_suffix(".png"), Image.fromarray(painted))
        hand = (as_batch([hole_crop(picture, pair.hand)]) for picture in (painted, pair.hoi))
        records.append(
            {
                "lpips_hand": metrics.perceptual(*hand).item(),
                "lpips": metrics.perceptual(as_batch([painted]), as_batch([pair.hoi])).item(),
                "jump": border_jump(painted, hole),
                "jump_recorded": border_jump(pair.hoi, hole),
                "hole_recall": hole_recall(hole, pair.hand),
                "outside_max_diff": outside_max_diff(painted, pair.obj, hole),
                "cpu_seconds": seconds,
            }
        )
    return records


def _rows(
    out: Path,
    jobs: list[tuple[str, int]],
    arms: dict[str, "RePaintSampler"],
    index: "ShardIndex",
    metrics: "ImageMetrics",
    seed: int,
) -> dict[str, Any]:
    from PIL import Image

    from hoi_lightning.metrics.image import as_batch

    rows = {}
    for name in dict.fromkeys(name for name, _ in jobs):
        chosen = [i for arm, i in jobs if arm == name]
        infos = [index.info(i) for i in chosen]
        groups = np.array([f"{info.category}/{info.instance}" for info in infos])
        records = [_record(out, name, i) for i in chosen]
        metrics.reset()
        for i in chosen:
            with Image.open(_stem(out, name, i).with_suffix(".png")) as painted:
                metrics.update(as_batch([np.asarray(painted)]), as_batch([_pair(index, i).hoi]))
        values = {key: np.array([record[key] for record in records]) for key in records[0] if key != "made_by"}
        rows[name] = {
            "num_pictures": len(chosen),
            "network_calls": arms[name].network_calls if name in arms else 0,
            "cpu_seconds": float(values["cpu_seconds"].mean()),
            metrics.fd_name: metrics.compute()[metrics.fd_name],
            "lpips_hand": float(values["lpips_hand"].mean()),
            "lpips_hand_interval": bootstrap_interval(values["lpips_hand"], groups, seed),
            "seam": float(np.nanmean(values["jump"]) / np.nanmean(values["jump_recorded"])),
            "hole_recall": float(np.median(values["hole_recall"])),
            "outside_max_diff": int(values["outside_max_diff"].max()) if name in arms else None,
            "worse_than": _worse_than(out, name, jobs, groups, seed) if name in arms else None,
        }
    return rows


def _record(out: Path, name: str, i: int) -> dict[str, Any]:
    return json.loads(_stem(out, name, i).with_suffix(".json").read_text())


def _worse_than(out: Path, name: str, jobs: list[tuple[str, int]], groups: np.ndarray, seed: int) -> dict[str, Any]:
    """Paired differences of `lpips_hand` from the references, plain sampling in as many steps, and the paper's preset.

    They are over the pictures that both have.
    """
    differences, chosen, known = {}, [i for arm, i in jobs if arm == name], set(jobs)
    plain = f"off-{name.rsplit('-', 1)[-1]}"
    for other in (*REFERENCES, plain, "paper"):
        both = [k for k, i in enumerate(chosen) if (other, i) in known]
        if other == name or len(both) < 2:
            continue
        ours, theirs = (np.array([_record(out, arm, chosen[k])["lpips_hand"] for k in both]) for arm in (name, other))
        low, high = bootstrap_interval(ours - theirs, groups[both], seed)
        _, at_most = bootstrap_interval(ours - theirs, groups[both], seed, coverage=0.9)
        differences[other] = {
            "difference": float((ours - theirs).mean()),
            "interval": [low, high],
            "at_most": at_most,
            "of": float(theirs.mean()),
        }
    return differences


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    about = result["provenance"]
    (fd_name,) = [key for key in next(iter(result["rows"].values())) if key in ("fid", "fd_mini")]
    lines = [
        f"{about['num_pictures']} pictures of the {about['split']} split, seed {about['seed']}, commit "
        f"{(about['git_commit'] or 'none')[:7]}, checkpoint {about['fusionnet_sha256'][:12]}, shards "
        f"{about['manifest_sha256'][:12]}, {'fp32' if about['precision'] == '32' else about['precision']}; "
        f"{about['lpips']} in the hand's square.",
        "",
        f"| sampler | N | network calls | CPU s | {fd_name} | {about['lpips']}, hand | seam | hole recall | outside |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for name, row in result["rows"].items():
        low, high = row["lpips_hand_interval"]
        interval = "" if low is None else f" [{low:.4f}, {high:.4f}]"
        outside = "" if row["outside_max_diff"] is None else row["outside_max_diff"]
        recall = "" if row["outside_max_diff"] is None else f"{row['hole_recall']:.3f}"
        lines.append(
            f"| {name} | {row['num_pictures']} | {row['network_calls']} | {row['cpu_seconds']:.2f} | "
            f"{row[fd_name]:.2f} | {row['lpips_hand']:.4f}{interval} | {row['seam']:.3f} | {recall} | {outside} |"
        )
    lines += ["", "Difference of the hand's figure, paired:", ""]
    for name, row in result["rows"].items():
        for other, gap in (row["worse_than"] or {}).items():
            low, high = gap["interval"]
            if low is not None:
                line = f"- {name} − {other}: {gap['difference']:+.4f} [{low:+.4f}, {high:+.4f}] of {gap['of']:.4f}"
                if other == "paper":
                    line += f", at most {gap['at_most'] / gap['of']:+.1%} (one-sided 95 %)"
                lines.append(line)
    return "\n".join(lines) + "\n"


def _draw(out: Path, names: list[str], chosen: list[int], index: "ShardIndex") -> None:
    from PIL import Image

    from hoi_lightning.grid import draw_grid

    shown = chosen[:DRAWN]
    columns: dict[str, list[np.ndarray]] = {}
    for name in names:
        files = [_stem(out, name, i).with_suffix(".png") for i in shown]
        if all(file.is_file() for file in files):
            columns[name] = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    columns["recorded"] = [_pair(index, i).hoi for i in shown]
    write_png(out / "painting.png", draw_grid(columns, 160))
