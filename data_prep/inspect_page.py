"""The page of `inspect`: one HTML file with its style, its few lines of script and its pictures in it."""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.inspect_charts import bars, centre_map, histogram, rose, stacked_bars
from data_prep.inspect_template import CSS, PAGE, SCRIPT
from data_prep.output import write_text

if TYPE_CHECKING:
    from data_prep.inspect import Drops, Row

CAPTIONS = {"hoi": "HOI", "obj": "object", "sdedit": "SDEdit", "overlay": "hand, object, layout"}
MEANINGS = {
    "no-contact-event": "outside every event in which a hand touches the object",
    "unknown-event": "in an event whose name is not on the list",
    "no-hand": "no hand in the mask",
    "no-touch": "a hand that touches no object",
    "no-mask": "the frame has no mask",
    "bad-mask": "the mask cannot be read, or holds colours of no label",
    "hand-too-small": "the hand covers less of the crop than asked",
    "hand-too-large": "the hole leaves too little of the crop",
    "short-video": "the video ends before the frame",
    "undecodable-video": "the video cannot be decoded",
    "bad-picture": "the picture cannot be read",
    "no-video": "the clip has no video",
    "no-actions": "the clip has no list of events",
    "no-mask-folder": "the clip has no masks",
    "not-listed": "the clip is not in the list of released ones",
}


def write_page(
    path: Path,
    name: str,
    manifest: Mapping[str, Any],
    rows: Sequence["Row"],
    pairs: Sequence[tuple["Row", Mapping[str, bytes]]],
    drops: "Drops",
) -> None:
    """Write the page.

    Args:
        path: of the file.
        name: of the shard folder, for the title.
        manifest: of the folder.
        rows: samples behind the distributions.
        pairs: samples of the contact sheet with their JPEGs by name.
        drops: the ledger.
    """
    total = sum(shard["count"] for shard in manifest["shards"])
    size = sum(shard["bytes"] for shard in manifest["shards"])
    lead = (
        f"{total:,} pairs of {manifest.get('size', '?')} px in {len(manifest['shards'])} shards, {size / 1e9:.2f} GB; "
        f"{sum(drops.counts.values()):,} drops."
    )
    body = "".join(
        f'<section id="{anchor}"><h2>{title}</h2>{content}</section>'
        for anchor, title, content in (
            ("pairs", "Pairs", _sheet(pairs)),
            ("drops", "What was dropped", _drops(drops)),
            ("distributions", "Distributions", _distributions(rows, manifest, total)),
            ("facts", "Facts", _facts(manifest)),
        )
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    write_text(path, PAGE.format(title=escape(name), digest=digest, css=CSS, lead=lead, body=body, script=SCRIPT))


def _sheet(pairs: Sequence[tuple["Row", Mapping[str, bytes]]]) -> str:
    fields = {
        "category": Counter(row.info.category for row, _ in pairs),
        "split": Counter(row.shard["split"] for row, _ in pairs),
        "event": Counter(row.info.event for row, _ in pairs),
        "remover": Counter(row.info.remover for row, _ in pairs),
    }
    orders = {
        "": "category",
        "iou": "lowest layout IoU",
        "area": "smallest hand",
        "-area": "largest hand",
        "blur": "most blurred",
    }
    options = "".join(f'<option value="{value}">{label}</option>' for value, label in orders.items())
    order = f'<label>order <select data-order="1">{options}</select></label>'
    cards = "".join(_card(row, pictures) for row, pictures in pairs)
    key = (
        '<p class="note"><i class="hand"></i> any hand or forearm, <i class="object"></i> what is visible of the '
        "touched object; the circle is the layout's disc, its band the forearm, the arrow the approach.</p>"
    )
    return f'<div class="list">{_filters(fields, order)}{key}<div class="cards items">{cards}</div></div>'


def _card(row: "Row", pictures: Mapping[str, bytes]) -> str:
    info = row.info
    images = "".join(
        f'<div><img alt="{CAPTIONS[name]}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
        f"<span>{CAPTIONS[name]}</span></div>"
        for name, data in pictures.items()
    )
    data = {
        "category": info.category,
        "split": row.shard["split"],
        "event": info.event,
        "remover": info.remover,
        "iou": f"{info.layout_iou:.4f}",
        "area": f"{row.area:.5f}",
        "blur": f"{info.blur:.2f}",
    }
    attributes = " ".join(f'data-{name}="{escape(str(value))}"' for name, value in data.items())
    facts = [
        f"{info.hand_side} hand, {row.area:.1%}",
        f"IoU {info.layout_iou:.2f}",
        f"blur {info.blur:.0f}",
        "keypoints" if info.keypoints is not None else "no keypoints",
        info.event,
        info.remover,
    ]
    return (
        f'<figure class="card item" {attributes}><div class="strip">{images}</div><figcaption>'
        f"<b>{escape(info.category)} {escape(info.instance)}</b> "
        f'<i class="tag {escape(row.shard["split"])}">{escape(row.shard["split"])}</i> '
        f"{escape(' · '.join(fact for fact in facts if fact))}"
        f"<code>{escape(row.shard['name'])} {escape(info.key)}</code></figcaption></figure>"
    )


def _drops(drops: "Drops") -> str:
    if not drops.counts:
        return "<p>Nothing, or the folder has no dropped.jsonl.</p>"
    reasons, categories = Counter[str](), Counter[str]()
    for (reason, category), count in drops.counts.items():
        reasons[reason] += count
        categories[category] += count
    most = max(drops.counts.values())
    names = [name for name, _ in categories.most_common()]
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    lines = []
    for reason, total in reasons.most_common():
        cells = "".join(_heat(drops.counts[reason, name], most) for name in names)
        lines.append(
            f'<tr><th><code>{escape(reason)}</code><span class="dim">{escape(MEANINGS.get(reason, ""))}</span></th>'
            f'<td class="number"><b>{total:,}</b></td>{cells}</tr>'
        )
    foot = "".join(f'<td class="number">{categories[name]:,}</td>' for name in names)
    matrix = (
        f'<div class="scroll"><table class="matrix"><tr><th>reason</th><th class="number">all</th>{head}</tr>'
        f'{"".join(lines)}<tr class="sum"><th>all</th><td class="number">{sum(reasons.values()):,}</td>{foot}</tr>'
        "</table></div>"
    )
    items = "".join(
        f'<tr class="item" data-reason="{escape(reason)}" data-category="{escape(category)}"><td><code>{escape(reason)}'
        f"</code></td><td>{escape(category)}</td><td><code>{escape(str(drop['sequence']))}</code></td>"
        f'<td class="number">{"clip" if drop["frame"] is None else escape(str(drop["frame"]))}</td>'
        f"<td><code>{escape(str(drop['path']))}</code> {escape(str(drop['detail']))}</td></tr>"
        for (reason, category), examples in sorted(drops.examples.items())
        for drop in examples
    )
    table = (
        '<table class="examples"><thead><tr><th>reason</th><th>category</th><th>sequence</th><th>frame</th>'
        f'<th>path and detail</th></tr></thead><tbody class="items">{items}</tbody></table>'
    )
    filters = _filters({"reason": reasons, "category": categories})
    return f'{matrix}<h3>Examples</h3><div class="list">{filters}{table}</div>'


def _heat(count: int, most: int) -> str:
    if not count:
        return '<td class="number dim">·</td>'
    alpha = 0.08 + 0.4 * (count / most) ** 0.5
    return f'<td class="number" style="background:rgb(214 69 65 / {alpha:.2f})">{count:,}</td>'


def _distributions(rows: Sequence["Row"], manifest: Mapping[str, Any], total: int) -> str:
    if not rows:
        return "<p>No samples.</p>"
    infos = [row.info for row in rows]
    a, x, y, b1, b2 = np.array(
        [(info.layout.a, info.layout.x, info.layout.y, info.layout.b1, info.layout.b2) for info in infos], float
    ).T
    area = np.array([row.area for row in rows])
    blur = np.array([max(info.blur, 1.0) for info in infos])
    angle = np.arctan2(b2, b1)
    reach = max(1.2, float(np.quantile(np.abs([x, y]), 0.999)))
    charts = [
        histogram("a (radius a²/2)", a, 0, max(1.5, float(a.max()))),
        histogram("x", x, -reach, reach),
        histogram("y (down)", y, -reach, reach),
        histogram("θ, degrees (0 right, 90 down)", np.degrees(angle), -180, 180, bins=36),
        centre_map("centres (x, y)", x, y, reach),
        rose("directions θ", angle),
        histogram("hand area, share of the crop", area, 0, max(0.3, float(area.max()))),
        histogram("layout IoU", [info.layout_iou for info in infos], 0, 1),
        histogram("blur (small = blurred)", blur, float(blur.min()), float(max(blur.max(), 2 * blur.min())), log=True),
        bars("event", Counter(info.event for info in infos)),
        bars("remover", Counter(info.remover for info in infos)),
        bars(
            "hand and keypoints",
            Counter(f"{info.hand_side}, {'no ' * (info.keypoints is None)}keypoints" for info in infos),
        ),
    ]
    note = f"Over {len(rows):,} of {total:,} samples" if len(rows) < total else f"Over all {total:,} samples"
    note = f'<p class="note">{note}; categories over all. The dashed line is the median.</p>'
    categories = stacked_bars("categories by split", _category_counts(rows, manifest))
    return f'{note}<div class="charts">{"".join(charts)}</div>{categories}'


def _category_counts(rows: Sequence["Row"], manifest: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    if "counts" in manifest:
        return manifest["counts"]
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        split = counts.setdefault(row.shard["split"], {})
        split[row.info.category] = split.get(row.info.category, 0) + 1
    return counts


def _facts(manifest: Mapping[str, Any]) -> str:
    shown: dict[str, Any] = {
        name: value
        for name, value in manifest.items()
        if name not in ("shards", "truth", "latents", "counts", "dropped", "run")
    }
    shown |= {f"run: {name}": value for name, value in manifest.get("run", {}).items()}
    if "latents" in manifest:
        shown["latents"] = manifest["latents"]["vae"]
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td><code>{escape(_plain(value))}</code></td></tr>"
        for name, value in shown.items()
    )
    shards = "".join(
        f'<tr><td><code>{escape(shard["name"])}</code></td><td class="number">{shard["count"]:,}</td>'
        f'<td class="number">{shard["bytes"] / 1e6:.1f} MB</td><td><code>{escape(shard["sha256"])}</code></td></tr>'
        for shard in manifest["shards"]
    )
    return (
        f'<table class="facts">{lines}</table><details><summary>{len(manifest["shards"])} shards</summary>'
        f'<table class="examples">{shards}</table></details>'
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _filters(fields: Mapping[str, Mapping[str, int]], more: str = "") -> str:
    selects = "".join(f"<label>{name} {_select(name, counts)}</label>" for name, counts in fields.items())
    return f'<form class="filters">{selects}{more}<output></output></form>'


def _select(name: str, counts: Mapping[str, int]) -> str:
    options: Iterable[str] = (
        f'<option value="{escape(value)}">{escape(value) or "(none)"} ({count:,})</option>'
        for value, count in sorted(counts.items())
    )
    return f'<select data-field="{name}"><option value="*">all</option>{"".join(options)}</select>'
