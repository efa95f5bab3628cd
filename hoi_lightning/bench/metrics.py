"""`python -m hoi_lightning bench metrics`: fd_mini and lpips_mini over distortions of growing strength.

`--pictures` holds `reference/`, `clean/` and one folder `KIND-LEVEL/` per distortion, with the same file names in each;
what shares a name shares its object. `python -m data_prep demo OUT --distortions` draws them in `OUT/distortions`. The
Fréchet distance is that from the reference set, the perceptual one that from the clean picture of the same name. Status
1 where a curve does not rise.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_lightning.errors import InputError
from hoi_lightning.generate import make_folder, write_png, write_text
from hoi_lightning.provenance import git_commit

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 25  # pictures measured at once
DRAWS = 30  # bootstrap replicates
FIGURES = {"fd_mini": "Fréchet distance from the reference set", "lpips_mini": "distance from the clean picture"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the measurement's flags."""
    parser.add_argument("--pictures", type=Path, required=True, help="folder with reference, clean and KIND-LEVEL")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if absent")


@dataclass(frozen=True)
class Curve:
    """One figure over the levels of one kind of distortion.

    Attributes:
        kind: of distortion.
        figure: `fd_mini` or `lpips_mini`.
        levels: 0 (clean) and up.
        values: one per level.
        low: lower ends of 95 % bootstrap bands; names are drawn, in the reference and the other set alike.
        high: upper ends.
    """

    kind: str
    figure: str
    levels: list[int]
    values: list[float]
    low: list[float]
    high: list[float]

    @property
    def rises(self) -> bool:
        """Whether each level's value is above the one before."""
        return all(a < b for a, b in zip(self.values, self.values[1:], strict=False))


def run(args: argparse.Namespace) -> int:
    """Measure, and leave `metrics.json`, `metrics.md` and `metrics.png` in `--out`; 1 where a curve does not rise.

    Raises:
        InputError: pictures are missing or do not belong together, or the folder cannot be written.
    """
    from hoi_lightning.metrics.mini import MODEL_FILE, WEIGHTS, file_sha256

    kinds = find_kinds(args.pictures)
    names = file_names(args.pictures, [f"{kind}-{level}" for kind, levels in kinds.items() for level in levels])
    make_folder(args.out)
    features, distances = measure(args.pictures, kinds, names)
    curves = draw_curves(kinds, features, distances)
    provenance = {
        "num_pictures": len(names),
        "network_sha256": file_sha256(WEIGHTS / MODEL_FILE),
        "git_commit": git_commit(),
        "bootstrap": f"{DRAWS} draws of names, seed 0, value ± 1.96 standard errors",
    }
    records = [asdict(curve) | {"rises": curve.rises} for curve in curves]
    result = {"provenance": provenance, "curves": records}
    write_text(args.out / "metrics.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_text(args.out / "metrics.md", table(curves, provenance))
    plot(curves, args.out / "metrics.png")
    flat = [f"{curve.figure} over {curve.kind}" for curve in curves if not curve.rises]
    for name in flat:
        print(f"does not rise: {name}")
    print(f"{len(curves) - len(flat)} of {len(curves)} curves rise; {args.out / 'metrics.png'}")
    return 1 if flat else 0


def find_kinds(pictures: Path) -> dict[str, list[int]]:
    """Kinds of distortion in a folder, each with its levels, sorted.

    Raises:
        InputError: the folder holds no `KIND-LEVEL`.
    """
    kinds: dict[str, list[int]] = defaultdict(list)
    for folder in sorted(pictures.iterdir()) if pictures.is_dir() else []:
        if (match := re.fullmatch(r"(\w+)-(\d+)", folder.name)) and folder.is_dir():
            kinds[match[1]].append(int(match[2]))
    if not kinds:
        raise InputError(
            f"--pictures {pictures}: no folder KIND-LEVEL there; "
            "`python -m data_prep demo OUT --distortions` draws them in OUT/distortions"
        )
    return {kind: sorted(levels) for kind, levels in kinds.items()}


def file_names(pictures: Path, folders: Iterable[str]) -> list[str]:
    """Names of the clean pictures, which the reference and every distorted set repeat.

    Raises:
        InputError: a set is missing, holds other names, or fewer than two.
    """
    names = sorted(path.name for path in (pictures / "clean").glob("*.png"))
    if len(names) < 2:
        raise InputError(f"--pictures: {pictures / 'clean'} must hold at least 2 PNG files; draw the set again")
    for folder in ["reference", *folders]:
        if sorted(path.name for path in (pictures / folder).glob("*.png")) != names:
            raise InputError(f"--pictures: {pictures / folder} does not hold the files of clean; draw the set again")
    return names


def measure(
    pictures: Path, kinds: dict[str, list[int]], names: Sequence[str]
) -> tuple[dict[str, "Tensor"], dict[str, np.ndarray]]:
    """Features (N, d) of every set, and the distance (N,) of every distorted set from the clean one, by folder."""
    import torch
    from tqdm import tqdm

    from hoi_lightning.metrics.mini import MiniFeatures, stage_distance

    network = MiniFeatures.from_folder()
    folders = [f"{kind}-{level}" for kind, levels in kinds.items() for level in levels]
    features: dict[str, list[Tensor]] = defaultdict(list)
    distances: dict[str, list[Tensor]] = defaultdict(list)
    total = len(names) * (2 + len(folders))
    with tqdm(total=total, unit="picture", desc="bench metrics") as bar, torch.inference_mode():
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            features["reference"].append(network(_read(pictures / "reference", chunk)))
            clean = network.stages(_read(pictures / "clean", chunk))
            features["clean"].append(network.pool(clean))
            bar.update(2 * len(chunk))
            for folder in folders:
                stages = network.stages(_read(pictures / folder, chunk))
                features[folder].append(network.pool(stages))
                distances[folder].append(stage_distance(stages, clean))
                bar.update(len(chunk))
    return (
        {folder: torch.cat(parts).double() for folder, parts in features.items()},
        {folder: torch.cat(parts).double().numpy() for folder, parts in distances.items()},
    )


def draw_curves(
    kinds: dict[str, list[int]], features: dict[str, "Tensor"], distances: dict[str, np.ndarray]
) -> list[Curve]:
    """Every figure over every kind, with its bands."""
    from tqdm import tqdm

    count = len(features["clean"])
    picks = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    fd = {}
    for folder in tqdm([name for name in features if name != "reference"], unit="set", desc="bootstrap"):
        draws = [_frechet(features[folder][pick], features["reference"][pick]) for pick in picks]
        fd[folder] = _frechet(features[folder], features["reference"]), float(np.std(draws, ddof=1))
    lpips = {folder: (float(v.mean()), float(v[picks].mean(axis=1).std(ddof=1))) for folder, v in distances.items()}
    lpips["clean"] = 0.0, 0.0
    curves = []
    for kind, levels in kinds.items():
        for figure, found in zip(FIGURES, (fd, lpips), strict=True):
            points = [found["clean"], *(found[f"{kind}-{level}"] for level in levels)]
            values = [value for value, _ in points]
            low, high = ([max(value + sign * 1.96 * error, 0.0) for value, error in points] for sign in (-1, 1))
            curves.append(Curve(kind, figure, [0, *levels], values, low, high))
    return curves


def table(curves: Sequence[Curve], provenance: dict[str, Any]) -> str:
    """The curves as a Markdown page."""
    levels = sorted({level for curve in curves for level in curve.levels})
    lines = [
        "# fd_mini and lpips_mini over distortions",
        "",
        ", ".join(f"{name} {value}" for name, value in provenance.items()),
        "",
        f"| distortion | figure | {' | '.join(map(str, levels))} | rises |",
        f"|---|---|{'---:|' * len(levels)}---|",
    ]
    for curve in curves:
        cells = {level: f"{value:.4g}" for level, value in zip(curve.levels, curve.values, strict=True)}
        row = " | ".join(cells.get(level, "") for level in levels)
        lines.append(f"| {curve.kind} | {curve.figure} | {row} | {'yes' if curve.rises else '**no**'} |")
    return "\n".join(lines) + "\n"


def plot(curves: Sequence[Curve], path: Path) -> None:
    """One small panel per curve: kinds from left to right, figures from top to bottom."""
    import io

    from matplotlib.figure import Figure
    from PIL import Image

    kinds = list(dict.fromkeys(curve.kind for curve in curves))
    figure = Figure(figsize=(2.1 * len(kinds) + 0.6, 4.6), dpi=120, layout="constrained")
    panels = figure.subplots(len(FIGURES), len(kinds), squeeze=False)
    for curve in curves:
        row, column = list(FIGURES).index(curve.figure), kinds.index(curve.kind)
        axes = panels[row, column]
        colour = "#1f6f8b" if curve.rises else "#c0392b"
        axes.fill_between(curve.levels, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(curve.levels, curve.values, color=colour, marker="o", markersize=3.5, linewidth=1.5)
        axes.set_xticks(curve.levels)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if row == 0:
            axes.set_title(curve.kind.replace("_", " "), fontsize=10)
        if column == 0:
            axes.set_ylabel(curve.figure, fontsize=10)
        if not curve.rises:
            axes.text(0.04, 0.93, "does not rise", color=colour, fontsize=8, transform=axes.transAxes)
    figure.supxlabel("level of distortion (0 = clean; band: 95 % of the bootstrap over pictures)", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_png(path, Image.open(buffer))


def _frechet(features: "Tensor", reference: "Tensor") -> float:
    from hoi_lightning.metrics.image import frechet_distance

    return frechet_distance(features.mean(0), features.T.cov(), reference.mean(0), reference.T.cov())


def _read(folder: Path, names: Sequence[str]) -> "Tensor":
    import torch
    from PIL import Image

    pictures = []
    for name in names:
        try:
            with Image.open(folder / name) as image:
                pictures.append(np.asarray(image.convert("RGB")))
        except OSError as error:
            raise InputError(f"{folder / name}: cannot be read ({error})") from None
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
