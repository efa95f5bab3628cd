"""Cells of picture grids, and the report of an evaluation as one self-contained HTML file."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import Layout, draw_layouts
from hoi_lightning.run_log import Curves, read_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 160  # side of a grid's cell in pixels
PAPER_TABLE = (  # FID, LPIPS, UPR; table 1 of the paper
    ("LDM", "64.7", "0.510", "44.8"),
    ("Pix2Pix", "49.1", "0.361", "64.2"),
    ("MaskNet & FusionNet", "44.6", "0.200", "70.3"),
)


def square_cell(image: Image.Image) -> np.ndarray:
    """The largest centred square of a picture, uint8 (CELL, CELL, 3)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    window = (left, top, left + side, top + side)
    return np.asarray(image.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS, box=window))


def layout_cell(image: Image.Image, layouts: Sequence[Layout]) -> np.ndarray:
    """The same square with layouts drawn on it at cell resolution."""
    return draw_layouts(square_cell(image), layouts)


def hole_cell(image: Image.Image, hole: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """A picture's window with a hole, bool (H, W) of the whole picture, whitened."""
    part = Image.fromarray(hole).crop(window).convert("L").resize((CELL, CELL), Image.Resampling.BOX)
    weight = 0.6 * np.asarray(part, np.float32)[..., None] / 255
    return (square_cell(image) * (1 - weight) + 255 * weight).round().astype(np.uint8)


def write_report(path: Path, metrics: dict[str, Any], grid: Path, runs: Sequence[Path]) -> None:
    """Write `report.html`: no script, no font, no picture from elsewhere.

    Args:
        path: of the file.
        metrics: what `evaluate` writes to metrics.json.
        grid: the sheet of pictures.
        runs: folders of training runs, for their settings and loss curves.
    """
    about = metrics["provenance"]
    sections = [
        _section("Results", _metric_table(metrics["figures"]) + _paper_table()),
        _section("Samples", _picture(grid.read_bytes(), "objects, sampled layouts, samples and recorded pictures")),
        _section("Where hands go", _plot(_scatter(metrics["samples"]), "sampled against recorded layouts")),
        _section("Training", "".join(_run(run) for run in runs)) if runs else "",
        _section("Provenance", _definitions(about)),
    ]
    lead = (
        f"{about['num_samples']} pictures of {about['num_instances']} objects of the {about['split']} split, "
        f"{about['num_images']} samples each, seed {about['seed']}."
    )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(_PAGE.format(css=_CSS, lead=escape(lead), body="".join(sections)), encoding="utf-8")
    partial.replace(path)


def check_runs(runs: Iterable[Path]) -> None:
    """Say which run folder is missing, before anything slow starts.

    Raises:
        InputError: a folder does not exist.
    """
    for run in runs:
        if not run.is_dir():
            raise InputError(f"--runs {run}: no such folder; give <default_root_dir>/<run> of a training run")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _metric_table(figures: Sequence[dict[str, Any]]) -> str:
    rows, group = [], None
    for figure in figures:
        if figure["group"] != group:
            group = figure["group"]
            rows.append(f'<tr class="group"><th colspan="6">{escape(group)}</th></tr>')
        interval = "" if figure["low"] is None else f"{_number(figure['low'])} to {_number(figure['high'])}"
        arrow = {"lower": "↓", "higher": "↑"}.get(figure["better"], "")
        rows.append(
            f"<tr><td><code>{escape(figure['name'])}</code></td>"
            f'<td class="number"><b>{_number(figure["value"])}</b>&nbsp;{escape(figure["unit"])}&nbsp;{arrow}</td>'
            f'<td class="number">{interval}</td><td class="number">{_number(figure["chance"])}</td>'
            f'<td class="number">{figure["n"]}</td><td>{escape(figure["meaning"])}</td></tr>'
        )
    head = "".join(f"<th>{text}</th>" for text in ("figure", "value", "95 % interval", "chance", "N", "meaning"))
    note = (
        "↓ lower is better, ↑ higher is better. Intervals: bootstrap over (category, instance), as pictures of one "
        "object are not independent. Chance: the recorded layout of another picture in place of a sampled one."
    )
    if any("_mini" in figure["name"] for figure in figures):
        note += (
            " fd_mini and lpips_mini: features of a small network trained on the mini world, as Inception or AlexNet "
            "was absent. They rank runs measured with the same network, and are neither FID nor LPIPS."
        )
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div><p class="note">{escape(note)}</p>'


def _paper_table() -> str:
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in PAPER_TABLE)
    note = (
        "The paper states neither the number of pictures nor the split nor the implementation behind these values, and "
        "a Fréchet distance changes with all three: they are printed for orientation and are not comparable with ours."
    )
    return (
        "<h3>paper (N, split not stated)</h3>"
        '<div class="wide"><table class="narrow"><tr><th>method</th><th>FID ↓</th><th>LPIPS ↓</th><th>UPR ↑</th></tr>'
        f'{rows}</table></div><p class="note">{escape(note)}</p>'
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _definitions(entries: dict[str, Any]) -> str:
    rows = []
    for name, value in entries.items():
        text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
        rows.append(f"<tr><th>{escape(name)}</th><td><code>{escape(text)}</code></td></tr>")
    return f'<div class="wide"><table class="facts">{"".join(rows)}</table></div>'


def _run(run: Path) -> str:
    curves = {name: curve for name, curve in read_curves(run).items() if "loss" in name and curve[0]}
    name = run.resolve().name
    body = _plot(_loss_plot(curves), f"loss curves of {name}") if curves else "<p>No loss curves found.</p>"
    configs = sorted(run.rglob("config.yaml"), key=lambda file: (file.stat().st_mtime, str(file)))
    if configs:
        text = escape(configs[-1].read_text(encoding="utf-8"))
        body += f"<details><summary>settings (config.yaml)</summary><pre>{text}</pre></details>"
    return f"<h3>{escape(name)}</h3>{body}"


def _loss_plot(curves: Curves) -> "Figure":
    figure = _figure(6.4, 3.0)
    axes = figure.add_subplot()
    for name, (steps, values) in sorted(curves.items(), key=lambda item: (len(item[0]), item[0]))[:6]:
        window = max(1, len(values) // 50)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        (line,) = axes.plot(
            steps[window - 1 :], smooth, label=name, linewidth=1.6, marker="." if len(steps) < 20 else ""
        )
        if window > 1:
            axes.plot(steps, values, color=line.get_color(), alpha=0.2, linewidth=0.6)
    if min(min(values) for _, values in curves.values()) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _scatter(samples: Sequence[dict[str, Any]]) -> "Figure":
    recorded = np.array([sample["layout"] for sample in samples])  # (N, 5)
    sampled = np.array([sample["sampled_layouts"] for sample in samples])  # (N, K, 5)
    figure = _figure(8.4, 4.0)
    places, angles = figure.subplots(1, 2)
    places.scatter(*sampled[..., 1:3].reshape(-1, 2).T, s=10, alpha=0.6, label="sampled", linewidths=0)
    places.scatter(*recorded[:, 1:3].T, s=26, facecolors="none", edgecolors="black", label="recorded", linewidths=1)
    places.set(xlim=(-1, 1), ylim=(1, -1), aspect="equal", xlabel="x (NDC)", ylabel="y (NDC, down)")
    places.set_title("centres", fontsize=10)
    places.legend(frameon=False, fontsize=8, loc="upper left")
    degrees = np.rad2deg(np.arctan2(sampled[..., 4], sampled[..., 3]))
    truth = np.rad2deg(np.arctan2(recorded[:, 4], recorded[:, 3]))
    angles.plot([-180, 180], [-180, 180], color="gray", linewidth=0.8)
    angles.scatter(np.repeat(truth, degrees.shape[1]), degrees.ravel(), s=10, alpha=0.6, linewidths=0)
    angles.set(xlim=(-180, 180), ylim=(-180, 180), aspect="equal", xlabel="recorded θ (°)", ylabel="sampled θ (°)")
    angles.set(xticks=range(-180, 181, 90), yticks=range(-180, 181, 90))
    angles.set_title("forearm directions", fontsize=10)
    for axes in (places, angles):
        axes.grid(alpha=0.25)
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    return Figure(figsize=(width, height), dpi=192, layout="constrained")


def _picture(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<div class="wide"><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'


def _plot(figure: "Figure", alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    width = round(figure.get_figwidth() * 96)  # in CSS pixels; the picture holds twice as many for sharp screens
    return _picture(buffer.getvalue(), alt).replace("<img", f'<img width="{width}"')


_CSS = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #fff; --line: #d9dce1; --soft: #f4f5f7; --dim: #5c636d }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e7e9; --back: #17191c; --line: #363a40; --soft: #202327; --dim: #a0a6b0 }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem }
p { margin: .4rem 0; max-width: 75ch } .note { color: var(--dim); font-size: .875rem }
.wide { overflow-x: auto } img { max-width: 100%; background: #fff; border-radius: 6px }
table { border-collapse: collapse; width: 100%; font-size: .875rem } .narrow { width: auto }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line) }
th { font-weight: 600; color: var(--dim); white-space: nowrap } .group th { padding-top: 16px; color: var(--text) }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums } td:last-child { min-width: 24em }
.narrow td:last-child { min-width: 0 } .facts code { overflow-wrap: anywhere }
pre { background: var(--soft); padding: 12px; overflow-x: auto; border-radius: 6px; font-size: .8rem; line-height: 1.4 }
summary { cursor: pointer; color: var(--dim); margin: .4rem 0 }
@media (max-width: 640px) { body { font-size: 15px } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>hoi_lightning: evaluation</title>
<style>{css}</style>
<h1>hoi_lightning: evaluation</h1>
<p>{lead}</p>
{body}
</html>
"""
