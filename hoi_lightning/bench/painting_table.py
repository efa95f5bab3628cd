"""The table, the paired differences and the sheet of `bench painting`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hoi_lightning.bench.painting_trials import load_pair, record_of, stem_of
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.diffusion.repaint import RePaintSampler
from hoi_lightning.generate import write_png
from hoi_lightning.grid import draw_grid
from hoi_lightning.metrics.bootstrap import bootstrap_interval
from hoi_lightning.metrics.detail import fine_detail
from hoi_lightning.metrics.image import ImageMetrics, as_batch, hole_crop

REFERENCES = ("object", "pasted")
DRAWN = 32  # pictures on the sheet
SHEET_COLUMNS = 13  # side by side at most, where there are no more painters than that


def collect_rows(
    out: Path,
    jobs: list[tuple[str, int]],
    arms: dict[str, RePaintSampler],
    index: ShardIndex,
    metrics: ImageMetrics,
    seed: int,
) -> dict[str, Any]:
    """Rows of the table by painter: means, intervals, and paired differences from the others.

    Args:
        out: folder of the pictures and their records.
        jobs: (painter, sample) of each picture.
        arms: samplers of the painters that have one.
        index: of the samples.
        metrics: of whole pictures.
        seed: of the bootstraps.
    """
    rows = {}
    for name in dict.fromkeys(name for name, _ in jobs):
        chosen = [i for arm, i in jobs if arm == name]
        infos = [index.info(i) for i in chosen]
        groups = np.array([f"{info.category}/{info.instance}" for info in infos])
        records = [record_of(stem_of(out, name, i)) for i in chosen]
        pictures, pairs = [_picture(out, name, i) for i in chosen], [load_pair(index, i) for i in chosen]
        detail = [fine_detail(picture, pair.hand) for picture, pair in zip(pictures, pairs, strict=True)]
        recorded_detail = [fine_detail(pair.hoi, pair.hand) for pair in pairs]
        values = {key: np.array([record[key] for record in records]) for key in records[0] if key != "made_by"}
        rows[name] = {
            "num_pictures": len(chosen),
            "network_calls": arms[name].network_calls if name in arms else 0,
            "cpu_seconds": float(values["cpu_seconds"].mean()),
            metrics.fd_name: _distance(metrics, pictures, [pair.hoi for pair in pairs]),
            f"{metrics.fd_name}_hand": _distance(
                metrics,
                [hole_crop(picture, pair.hand) for picture, pair in zip(pictures, pairs, strict=True)],
                [hole_crop(pair.hoi, pair.hand) for pair in pairs],
            ),
            "lpips_hand": float(values["lpips_hand"].mean()),
            "lpips_hand_interval": bootstrap_interval(values["lpips_hand"], groups, seed),
            "detail": float(np.nanmean(detail) / np.nanmean(recorded_detail)),
            "seam": float(np.nanmean(values["jump"]) / np.nanmean(values["jump_recorded"])),
            "hole_recall": float(np.median(values["hole_recall"])),
            "outside_max_diff": int(values["outside_max_diff"].max()) if name in arms else None,
            "worse_than": _worse_than(out, name, jobs, arms, groups, seed) if name in arms else None,
        }
    return rows


def _picture(out: Path, name: str, i: int) -> np.ndarray:
    with Image.open(stem_of(out, name, i).with_suffix(".png")) as painted:
        return np.asarray(painted.convert("RGB"))


def _distance(metrics: ImageMetrics, painted: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> float:
    """Fréchet distance of two lists of pictures, uint8 (H, W, 3)."""
    metrics.reset()
    for ours, theirs in zip(painted, real, strict=True):
        metrics.update(as_batch([ours]), as_batch([theirs]))
    return metrics.compute()[metrics.fd_name]


def _worse_than(
    out: Path,
    name: str,
    jobs: list[tuple[str, int]],
    arms: dict[str, RePaintSampler],
    groups: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Paired differences of `lpips_hand` from the references, plain sampling in as many steps, and the presets.

    They are over the pictures that both have.
    """
    differences, chosen, known = {}, [i for arm, i in jobs if arm == name], set(jobs)
    for other in (*REFERENCES, f"off-{arms[name].num_steps}", "fast", "paper"):
        both = [k for k, i in enumerate(chosen) if (other, i) in known]
        if other == name or len(both) < 2:
            continue
        ours, theirs = (
            np.array([record_of(stem_of(out, arm, chosen[k]))["lpips_hand"] for k in both]) for arm in (name, other)
        )
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
        f"{about['lpips']} and the second {fd_name} in the hand's square, detail within the hand.",
        "",
        f"| sampler | N | network calls | CPU s | {fd_name} | {fd_name}, hand | {about['lpips']}, hand | detail "
        "| seam | hole recall | outside |",
        "|---|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for name, row in result["rows"].items():
        low, high = row["lpips_hand_interval"]
        interval = "" if low is None else f" [{low:.4f}, {high:.4f}]"
        outside = "" if row["outside_max_diff"] is None else row["outside_max_diff"]
        recall = "" if row["outside_max_diff"] is None else f"{row['hole_recall']:.3f}"
        lines.append(
            f"| {name} | {row['num_pictures']} | {row['network_calls']} | {row['cpu_seconds']:.2f} | "
            f"{row[fd_name]:.2f} | {row[f'{fd_name}_hand']:.2f} | {row['lpips_hand']:.4f}{interval} | "
            f"{row['detail']:.2f} | {row['seam']:.3f} | {recall} | {outside} |"
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


def draw_sheet(out: Path, names: list[str], chosen: list[int], index: ShardIndex) -> None:
    """The first pictures by every painter that has them, beside the recorded ones, as `painting.png`.

    With few painters the rows go on in further blocks to the right.
    """
    shown = chosen[:DRAWN]
    columns: dict[str, list[np.ndarray]] = {}
    for name in names:
        if all(stem_of(out, name, i).with_suffix(".png").is_file() for i in shown):
            columns[name] = [_picture(out, name, i) for i in shown]
    columns["recorded"] = [load_pair(index, i).hoi for i in shown]
    rows = -(-len(shown) // max(1, SHEET_COLUMNS // len(columns)))
    blocks = [
        draw_grid({name: pictures[start : start + rows] for name, pictures in columns.items()})
        for start in range(0, len(shown), rows)
    ]
    sheet = Image.new("RGB", (blocks[0].width * len(blocks), blocks[0].height), "white")
    for number, block in enumerate(blocks):
        sheet.paste(block, (blocks[0].width * number, 0))
    write_png(out / "painting.png", sheet)
