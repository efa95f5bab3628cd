"""Small charts of the inspection page as inline SVG and HTML; every label is escaped."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 272, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 6, 6, 8, 20


def histogram(
    title: str, values: Sequence[float] | np.ndarray, low: float, high: float, bins: int = 40, log: bool = False
) -> str:
    """Bars over [low, high] with the median marked; values beyond are counted in the outermost bars.

    Args:
        title: above the chart.
        values: finite numbers.
        low: left end; above 0 where `log`.
        high: right end.
        bins: number of bars.
        log: logarithmic axis.
    """
    values = np.asarray(values, float)
    edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    counts, _ = np.histogram(values.clip(low, high), edges)
    median = float(np.median(values)) if len(values) else math.nan

    def at(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return _LEFT + min(max(share, 0), 1) * (WIDTH - _LEFT - _RIGHT)

    floor, room = HEIGHT - _BOTTOM, HEIGHT - _BOTTOM - _TOP
    shapes = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            height = max(1.0, room * count / counts.max())
            shapes.append(
                f'<rect class="bar" x="{at(left):.1f}" y="{floor - height:.1f}" '
                f'width="{max(at(right) - at(left) - 1, 0.5):.1f}" height="{height:.1f}">'
                f"<title>{left:.3g} to {right:.3g}: {count}</title></rect>"
            )
    if len(values):
        shapes.append(f'<line class="median" x1="{at(median):.1f}" x2="{at(median):.1f}" y1="{_TOP}" y2="{floor}"/>')
    ticks = _log_ticks(low, high) if log else np.linspace(low, high, 5).tolist()
    for tick in ticks:
        anchor = "start" if tick == ticks[0] else "end" if tick == ticks[-1] else "middle"
        shapes.append(f'<text x="{at(tick):.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}">{tick:.3g}</text>')
    shapes.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    note = f"median {median:.3g}, {values.min():.3g} to {values.max():.3g}" if len(values) else "none"
    return _chart(title, note, "".join(shapes), WIDTH, HEIGHT)


def centre_map(title: str, x: np.ndarray, y: np.ndarray, reach: float = 1.2, cells: int = 30) -> str:
    """Where centres lie, NDC with +y down; the picture's border is drawn."""
    side = HEIGHT
    counts, _, _ = np.histogram2d(y.clip(-reach, reach), x.clip(-reach, reach), cells, [[-reach, reach]] * 2)
    cell, most = side / cells, max(counts.max(), 1)
    shapes = [
        f'<rect class="bar" x="{column * cell:.2f}" y="{row * cell:.2f}" width="{cell:.2f}" height="{cell:.2f}" '
        f'fill-opacity="{0.12 + 0.88 * math.sqrt(counts[row, column] / most):.2f}">'
        f"<title>{int(counts[row, column])}</title></rect>"
        for row, column in np.argwhere(counts)
    ]
    border, crop = (1 - 1 / reach) * side / 2, side / reach
    shapes.append(f'<rect class="frame" x="{border:.1f}" y="{border:.1f}" width="{crop:.1f}" height="{crop:.1f}"/>')
    return _chart(title, "the frame is the crop's border", "".join(shapes), side, side)


def rose(title: str, angles: np.ndarray, bins: int = 36) -> str:
    """Directions in radians, 0 = right, growing clockwise, as a rose whose areas are the shares."""
    side = HEIGHT
    counts, edges = np.histogram(np.mod(angles, 2 * math.pi), bins, (0, 2 * math.pi))
    centre, reach = side / 2, side / 2 - 6
    shapes = [f'<circle class="frame" cx="{centre}" cy="{centre}" r="{reach}"/>']
    for count, first, last in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            radius = reach * math.sqrt(count / counts.max())
            ends = " ".join(
                f"{centre + radius * math.cos(angle):.1f},{centre + radius * math.sin(angle):.1f}"
                for angle in np.linspace(first, last, 4)
            )
            degrees = f"{math.degrees(first):.0f}° to {math.degrees(last):.0f}°"
            shapes.append(
                f'<polygon class="bar" points="{centre},{centre} {ends}"><title>{degrees}: {count}</title></polygon>'
            )
    return _chart(title, "from the palm to the forearm, as on the screen", "".join(shapes), side, side)


def bars(title: str, counts: Mapping[str, int]) -> str:
    """Horizontal bars, the largest first."""
    most, total = max(counts.values(), default=1), sum(counts.values())
    rows = "".join(
        f"<tr><th>{escape(name) or '(none)'}</th>"
        f'<td><span class="bar" style="width:{100 * count / most:.1f}%"></span></td>'
        f'<td class="number">{count:,}</td><td class="number dim">{count / total:.1%}</td></tr>'
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    return f'<figure class="chart"><h3>{escape(title)}</h3><table class="bars">{rows}</table></figure>'


def stacked_bars(title: str, counts: Mapping[str, Mapping[str, int]]) -> str:
    """Categories (rows) by split (colours).

    Args:
        title: above the chart.
        counts: split → category → number.
    """
    splits = [split for split in counts if counts[split]]
    totals = {name: sum(counts[split].get(name, 0) for split in splits) for split in splits for name in counts[split]}
    most = max(totals.values(), default=1)
    rows = []
    for name in sorted(totals):
        parts = "".join(
            f'<span class="{escape(split)}" style="width:{100 * counts[split].get(name, 0) / most:.2f}%" '
            f'title="{escape(split)} {counts[split].get(name, 0)}"></span>'
            for split in splits
        )
        numbers = "".join(f'<td class="number">{counts[split].get(name, 0):,}</td>' for split in splits)
        rows.append(f'<tr><th>{escape(name)}</th><td class="stack">{parts}</td>{numbers}</tr>')
    head = "".join(f'<th class="number"><i class="{escape(split)}"></i>{escape(split)}</th>' for split in splits)
    return (
        f'<figure class="chart wide"><h3>{escape(title)}</h3><table class="bars"><tr><th></th><th></th>{head}</tr>'
        f"{''.join(rows)}</table></figure>"
    )


def _chart(title: str, note: str, shapes: str, width: int, height: int) -> str:
    return (
        f'<figure class="chart"><h3>{escape(title)}</h3>'
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}">'
        f"{shapes}</svg><figcaption>{escape(note)}</figcaption></figure>"
    )


def _log_ticks(low: float, high: float) -> list[float]:
    inner = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    return sorted({low, *(tick for tick in inner if low * 1.5 < tick < high / 1.5), high})
