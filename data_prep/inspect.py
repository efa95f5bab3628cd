"""Look at finished shards: one HTML page with a contact sheet, what was dropped and why, and distributions.

The page is one file that needs nothing else. Shards are shuffled, so the first of each split show what is in all.
"""

import argparse
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from hoi_lightning.data.sample import HOISample, SampleInfo

LIMIT = 10_000  # samples behind the distributions
SIDE = 160  # of a picture on the page, in pixels
EXAMPLES = 4  # of each reason and category
HAND_TINT, OBJECT_TINT = (255, 190, 0), (40, 120, 255)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder that `build` wrote")
    parser.add_argument("--samples", type=int, default=96, metavar="N", help="pairs on the contact sheet")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the page; OUT/inspect.html where it is not given")


@dataclass(frozen=True)
class Row:
    """One sample of the survey.

    Attributes:
        shard: manifest entry of its shard.
        info: its record.
        area: share of the crop that hands cover, in [0, 1].
    """

    shard: dict[str, Any]
    info: "SampleInfo"
    area: float


@dataclass
class Drops:
    """The ledger in brief.

    Attributes:
        counts: (reason, category) → number of frames or clips.
        examples: some of each, as `dropped.jsonl` has them, from different clips where there are some.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))


def run(args: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        InputError: no shards in the folder, one is damaged, or the page cannot be written.
    """
    from data_prep.inspect_page import write_page
    from data_prep.read_shards import read_manifest

    if args.samples < 0:
        raise InputError(f"--samples {args.samples}: give a number of pairs, 0 or more")
    manifest = read_manifest(args.out, "OUT")
    path = args.html or args.out / "inspect.html"
    rows = survey(args.out, manifest["shards"])
    chosen = choose(rows, args.samples)
    pictures = read_pictures(args.out, chosen)
    drops = read_drops(args.out / "dropped.jsonl")
    try:
        write_page(
            path, args.out.resolve().name, manifest, rows, [(row, pictures[row.info.key]) for row in chosen], drops
        )
    except OSError as error:
        raise InputError(f"--html {path}: cannot be written ({error.strerror}); choose another place") from None
    print(f"{path}: {len(chosen)} pairs, {sum(drops.counts.values())} drops; distributions of {len(rows)} samples")


def survey(folder: Path, shards: Sequence[dict[str, Any]], limit: int = LIMIT) -> list[Row]:
    """Records and hand areas of up to `limit` samples, whole shards of each split in turn.

    Args:
        folder: of the shards.
        shards: their manifest entries.
        limit: least number of samples at which no further shard is opened.
    """
    from tqdm import tqdm

    from data_prep.read_shards import iter_records
    from hoi_lightning.data.sample import MEMBERS, Field, decode

    by_split: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for shard in shards:
        by_split[shard["split"]].append(shard)
    fields: tuple[Field, ...] = ("hand",)
    rows: list[Row] = []
    total = min(limit, sum(shard["count"] for shard in shards))
    with tqdm(total=total, unit="sample", desc="records") as bar:
        for shard in filter(None, chain.from_iterable(zip_longest(*by_split.values()))):
            if len(rows) >= limit:
                break
            for record in iter_records(folder / shard["name"], [*MEMBERS.values(), "json"]):
                members = {name: record.read(name) for name in ("json", MEMBERS["hand"]) if name in record.members}
                sample = decode(members, fields)
                assert sample.hand is not None
                rows.append(Row(shard, sample.info, float(sample.hand.mean())))
                bar.update()
    return rows


def choose(rows: Sequence[Row], number: int) -> list[Row]:
    """Take samples from every category and split in turn, there from every instance in turn; sorted by them."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.info.category, row.shard["split"]].append(row)
    in_turn = filter(None, chain.from_iterable(zip_longest(*(_by_turns(groups[name]) for name in sorted(groups)))))
    chosen = list(islice(in_turn, number))
    return sorted(chosen, key=lambda row: (row.info.category, row.shard["split"], row.info.key))


def _by_turns(rows: Sequence[Row]) -> list[Row]:
    """Every instance once, then every instance a second time, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        turns.append(seen[row.info.instance])
        seen[row.info.instance] += 1
    return [row for _, row in sorted(zip(turns, rows, strict=True), key=lambda pair: pair[0])]


def read_pictures(folder: Path, rows: Sequence[Row]) -> dict[str, dict[str, bytes]]:
    """Small JPEGs of the chosen samples: key → `hoi`, `obj`, `sdedit` where there is one, `overlay`."""
    from tqdm import tqdm

    from data_prep.read_shards import iter_records
    from hoi_lightning.data.sample import MEMBERS, decode

    wanted: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        wanted[row.shard["name"]].add(row.info.key)
    pictures: dict[str, dict[str, bytes]] = {}
    with tqdm(total=len(rows), unit="pair", desc="pictures") as bar:
        for name, keys in wanted.items():
            for record in iter_records(folder / name, [*MEMBERS.values(), "json"]):
                if record.key in keys:
                    pictures[record.key] = dict(_thumbnails(decode(record.read_all())))
                    bar.update()
    return pictures


def read_drops(path: Path) -> Drops:
    """Count the ledger and keep examples of each reason in each category; empty where there is none.

    Raises:
        InputError: a line is no drop.
    """
    drops = Drops()
    if not path.is_file():
        return drops
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                drop = json.loads(line)
                group = drop["reason"], _category(drop["sequence"])
                examples = drops.examples[group]
                if len(examples) < EXAMPLES and drop["sequence"] not in {known["sequence"] for known in examples}:
                    examples.append({name: drop[name] for name in ("sequence", "frame", "path", "detail")})
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} line {number}: not a drop ({error!r}); build the shards again") from None
            drops.counts[group] += 1
    return drops


def _category(sequence: str) -> str:
    """Category name in a HOI4D sequence, `other` elsewhere."""
    from data_prep.hoi4d.classes import CATEGORIES

    return next((CATEGORIES[part] for part in sequence.split("/") if part in CATEGORIES), "other")


def _thumbnails(sample: "HOISample") -> Iterator[tuple[str, bytes]]:
    import numpy as np
    from PIL import Image

    from hoi_lightning.hand_proxy import draw_layouts

    for name in ("hoi", "obj", "sdedit"):
        pixels = getattr(sample, name)
        if pixels is not None:
            yield name, _jpeg(_small(pixels))
    assert sample.hoi is not None
    assert sample.hand is not None
    assert sample.object is not None
    overlay: np.ndarray = np.asarray(_small(sample.hoi), float)
    for pixels, tint in ((sample.object, OBJECT_TINT), (sample.hand, HAND_TINT)):
        alpha = np.asarray(_small(pixels.astype(np.uint8) * 255), float)[..., None] / 255 * 0.5
        overlay = overlay * (1 - alpha) + np.array(tint) * alpha
    drawn = draw_layouts(overlay.round().astype(np.uint8), [sample.info.layout])
    yield "overlay", _jpeg(Image.fromarray(drawn))


def _small(pixels: "np.ndarray") -> "Image":
    from PIL import Image

    shrinks = len(pixels) > SIDE
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)


def _jpeg(image: "Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
