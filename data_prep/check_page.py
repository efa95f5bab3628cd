"""The page of `python -m data_prep check`: tables and bars in one HTML file that fetches nothing."""

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_MAX_LISTED = 200  # clips with something missing; check.json has them all

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1100px; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .25rem .6rem; text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } tr { border-bottom: 1px solid #e4e4e4; }
.bar { background: #eceff3; height: .6rem; width: 7rem; display: inline-block; border-radius: 3px; }
.bar i { background: #3b7ea1; height: 100%; display: block; border-radius: 3px; }
.problem { background: #fdecea; border-left: 4px solid #b3261e; padding: .6rem 1rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; } .figures div { background: #f4f6f8; padding: .6rem 1rem;
border-radius: 6px; } .figures b { display: block; font-size: 1.3rem; } .note { color: #666; } code { font-size: .9em; }
"""


def render(report: dict[str, Any]) -> str:
    """Turn the content of check.json into a page; all text of the data set is escaped."""
    title = f"{report['dataset']}: {report['root']}"
    body = [f"<h1>What is in {escape(str(report['root']))}</h1>"]
    if report["problem"]:
        body.append(f"<p class=problem>Nothing to build: {escape(report['problem'])}</p>")
    body.append(_figures(report))
    body.append("<h2>By category and camera</h2>" + _coverage(report["coverage"]))
    body.append("<h2>Missing</h2>" + _missing(report))
    body.append("<h2>Clips tried</h2>" + _trials(report["sample"]))
    shown = {**report["formats"], **report["versions"], "command": report["command"]}
    body.append("<h2>Formats and versions</h2>" + _table(("", ""), [(_text(k), _text(v)) for k, v in shown.items()]))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _figures(report: dict[str, Any]) -> str:
    figures = [(f"{report['usable']} of {report['clips']}", "clips usable")]
    note = "No clip was tried, so there is no estimate."
    estimate = report["estimate"]
    if estimate:
        low, high = estimate["keep_rate_range"]
        figures.append((f"about {estimate['pairs']:,}", "pairs"))
        figures += [
            (f"{gigabytes:,.2f} GB", f"at {size} px, {estimate['sdedit_gigabytes'][size]:,.2f} more with SDEdit copies")
            for size, gigabytes in estimate["gigabytes"].items()
        ]
        figures.append(
            (f"{estimate['core_hours']:,.2f} h", f"on one core, {estimate['hours']:,.2f} h on {estimate['cores']}")
        )
        note = (
            f"Estimated: {estimate['contact_frames']:,} frames may be pairs by their events; of those in "
            f"{len(report['sample'])} clips tried {estimate['keep_rate']:.0%} became pairs ({low:.0%} to {high:.0%} by "
            "clip). Time and disk are those clips' too, with masks, decoding, cropping, layouts and encoding but "
            "without removing hands; obj.jpg is taken for as large as hoi.jpg."
        )
    boxes = "".join(f"<div><b>{escape(value)}</b>{escape(label)}</div>" for value, label in figures)
    return f"<div class=figures>{boxes}</div><p class=note>{escape(note)}</p>"


def _coverage(rows: Sequence[dict[str, Any]]) -> str:
    heads = (
        "category",
        "camera or folder",
        "usable",
        "",
        "#frames",
        "#masks",
        "#contact frames",
        "#hand poses",
        "missing",
    )
    lines = [
        (
            _text(row["category"]),
            _text(row["group"]),
            f"{row['usable']} of {row['clips']}",
            _bar(row["usable"] / row["clips"]),
            *(f"{row[name]:,}" for name in ("frames", "masks", "contact", "poses")),
            _text(_counts(row["missing"])),
        )
        for row in rows
    ]
    return _table(heads, lines)


def _missing(report: dict[str, Any]) -> str:
    by_reason = Counter(reason for entry in report["missing"] for reason in entry["missing"])
    parts = []
    if by_reason:
        total = max(report["clips"], 1)
        lines = [(_text(reason), f"{count:,}", _bar(count / total)) for reason, count in by_reason.most_common()]
        parts.append(_table(("what", "#clips", "share of clips"), lines))
        listed = [(_text(e["clip"]), _text(", ".join(e["missing"]))) for e in report["missing"][:_MAX_LISTED]]
        summary = f"{len(report['missing'])} clips lack something; {len(listed)} are listed here, all in check.json"
        parts.append(f"<details><summary>{escape(summary)}</summary>{_table(('clip', 'missing'), listed)}</details>")
    if report["left_out"]:
        parts.append(f"<p>Left out: {escape(_counts(report['left_out']))}.</p>")
    return "".join(parts) or "<p>Nothing.</p>"


def _trials(trials: Sequence[dict[str, Any]]) -> str:
    lines = [
        (
            _text(trial["clip"]),
            *(f"{trial[name]:,}" for name in ("frames", "contact", "pairs")),
            _bar(trial["pairs"] / max(trial["contact"], 1)),
            f"{trial['seconds']:.1f}",
            _text(_counts(trial["dropped"])),
        )
        for trial in trials
    ]
    return _table(
        ("clip", "#frames", "#contact frames", "#pairs", "kept", "#CPU seconds", "contact frames dropped"), lines
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())


def _text(value: object) -> str:
    return escape(str(value))


def _bar(share: float) -> str:
    return f"<span class=bar title='{share:.0%}'><i style='width:{100 * share:.1f}%'></i></span>"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; a head with # marks a column of numbers."""
    kinds = [" class=n" if head.startswith("#") else "" for head in heads]
    top = "".join(f"<th{kind}>{escape(head.lstrip('#'))}</th>" for head, kind in zip(heads, kinds, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(line, kinds, strict=True)) + "</tr>"
        for line in lines
    )
    return f"<table><tr>{top}</tr>{rows}</table>" if rows else "<p>None.</p>"
