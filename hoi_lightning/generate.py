"""`python -m hoi_lightning generate`: pictures of hands for a picture or a folder of pictures.

Places and lengths are pixels of the picture. What is fixed is met exactly; maps and points are wishes. A map is a grey
picture with the aspect ratio of the input.
"""

import argparse
import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning import __version__, order
from hoi_lightning.errors import InputError
from hoi_lightning.opening import (
    add_checkpoint_arguments,
    check_weights,
    enough_memory,
    open_pipeline,
    whole_number,
)
from hoi_lightning.order import Order

if TYPE_CHECKING:
    from PIL import Image

    from hoi_lightning.pipeline import HOIPipeline

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
GRID_ROWS = 64  # a sheet with more rows than this opens nowhere


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument("--images", type=Path, required=True, help="a picture, or a folder of pictures")
    add_checkpoint_arguments(parser)
    parser.add_argument("--num-images", type=whole_number(1), default=4, help="samples per picture")
    parser.add_argument("--batch-size", type=whole_number(1), default=8, help="samples painted at once")
    order.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Paint every readable picture and leave PNG, JSON and one sheet in `--out`.

    Raises:
        InputError: a checkpoint is missing, the folder cannot be written, a GPU's memory is exhausted, or, once all
            others are painted, a picture is not readable.
    """
    check_weights(args)
    make_folder(args.out)
    pictures, faults = find_pictures(args.images, args.out)
    orders = [(source, order.read_order(source.path, args)) for source in pictures]
    with enough_memory(args.device, f"lower --batch-size (now {args.batch_size}; finished pictures are kept)"):
        generate(open_pipeline(args), orders, args)
    if faults:
        raise InputError(f"{len(pictures)} pictures are painted, {len(faults)} could not be read: {_some(faults)}")


def make_folder(path: Path) -> None:
    """Make the result folder.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror}); choose another folder") from None


@dataclass(frozen=True)
class Source:
    """A readable picture and what its results are called.

    Attributes:
        path: the file.
        name: head of the output names, the file's stem where no other picture shares it.
    """

    path: Path
    name: str


def find_pictures(images: Path, out: Path) -> tuple[list[Source], list[str]]:
    """List the readable pictures by name, and what is wrong with the others.

    Args:
        images: a picture or a folder; folders inside it are not entered.
        out: the result folder, which must be another one.

    Raises:
        InputError: nothing there is readable, or two results would have one name.
    """
    from hoi_lightning.pipeline import load_picture

    if images.is_dir():
        if images.resolve() == out.resolve():
            raise InputError(f"--out {out}: is the folder of --images; choose another, or results become inputs")
        paths = sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        if not paths:
            raise InputError(f"--images {images}: no picture there; give JPEG, PNG, WebP, BMP, GIF or TIFF files")
    else:
        paths = [images]
    readable, faults = [], []
    for path in paths:  # decoded once before anything is painted: what fails is known now, not in an hour
        try:
            load_picture(path)
            readable.append(path)
        except InputError as error:
            faults.append(str(error))
    if not readable:
        raise InputError(_some(faults))
    return _name(readable), faults


def _some(faults: list[str]) -> str:
    return "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")


def _name(paths: list[Path]) -> list[Source]:
    stems = Counter(path.stem for path in paths)
    sources = [Source(p, p.stem if stems[p.stem] == 1 else f"{p.stem}-{p.suffix[1:]}") for p in paths]
    name, count = Counter(source.name for source in sources).most_common(1)[0]
    if count > 1:
        raise InputError(f"--images: {count} pictures would have results named {name}; rename one")
    return sources


def generate(pipeline: "HOIPipeline", orders: list[tuple[Source, Order]], args: argparse.Namespace) -> None:
    """Paint the orders; results that an earlier run with the same settings finished are kept."""
    from tqdm import tqdm

    todo = [(source, asked, _records(pipeline, source, asked, args)) for source, asked in orders]
    kept = 0
    with tqdm(total=len(todo) * args.num_images, unit="picture", desc="generate") as bar:
        for source, asked, records in todo:
            if all(_is_finished(args.out / f"{source.name}_{k}.png", record) for k, record in enumerate(records)):
                kept += len(records)
            else:
                _paint(pipeline, source, asked, records, args)
            bar.update(len(records))
    _write_sheet(orders[:GRID_ROWS], args)
    rest = f", {kept} of them kept from an earlier run" if kept else ""
    shown = f" (its first {GRID_ROWS} pictures)" if len(orders) > GRID_ROWS else ""
    print(f"{len(orders) * args.num_images} pictures in {args.out}{rest}; overview: {args.out / 'grid.png'}{shown}")


def _records(pipeline: "HOIPipeline", source: Source, asked: Order, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What decides each sample of a source, before it is painted."""
    from hoi_lightning.diffusion.ddpm import sample_seeds

    common = {
        "source": source.path.name,
        "source_sha256": hashlib.sha256(source.path.read_bytes()).hexdigest(),
        "masknet_sha256": pipeline.masknet.checkpoint_hash,
        "fusionnet_sha256": pipeline.fusionnet.checkpoint_hash,
        "version": __version__,
        "seed": args.seed,
        **asked.asked,
    }
    seeds = sample_seeds(args.seed, [0] * args.num_images if args.interpolate else range(args.num_images))
    given = [asdict(layout) for layout in asked.layouts] if asked.layouts else [None] * args.num_images
    return [
        common | {"index": k, "sample_seed": seed} | ({"layout": layout} if layout else {})
        for k, (seed, layout) in enumerate(zip(seeds, given, strict=True))
    ]


def _is_finished(png: Path, record: dict[str, Any]) -> bool:
    try:
        written = json.loads(png.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return False
    return png.is_file() and isinstance(written, dict) and record.items() <= written.items()


def _paint(
    pipeline: "HOIPipeline", source: Source, asked: Order, records: list[dict[str, Any]], args: argparse.Namespace
) -> None:
    from hoi_lightning.pipeline import load_picture

    output = pipeline(
        load_picture(source.path), len(records), args.seed, asked.layouts, args.batch_size, asked.window, asked.wishes,
        shared_noise=args.interpolate is not None, hole=asked.hole, zoom=args.zoom,
    )  # fmt: skip
    for k, (image, hole, view) in enumerate(zip(output.images, output.hole_masks, output.views, strict=True)):
        png = args.out / f"{source.name}_{k}.png"
        layout = asdict(output.layouts[k]) if output.layouts else None
        record = records[k] | {"layout": layout, "view": list(view), "hole_area": round(float(hole.mean()), 6)}
        write_png(png, image)
        # the JSON comes last: where it is, the picture is whole
        write_text(png.with_suffix(".json"), json.dumps(record, indent=2, sort_keys=True) + "\n")


def write_png(path: Path, image: "Image.Image") -> None:
    """Write a PNG that is either whole or absent."""
    partial = path.with_name(f".{path.name}.partial")
    image.save(partial, "PNG")
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file that is either whole or absent."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _write_sheet(orders: list[tuple[Source, Order]], args: argparse.Namespace) -> None:
    from PIL import Image

    from hoi_lightning.grid import draw_grid
    from hoi_lightning.hand_proxy import Layout
    from hoi_lightning.pipeline import load_picture
    from hoi_lightning.report import CELL, hole_cell, layout_cell, square_cell

    rows = []
    for source, asked in orders:
        obj = load_picture(source.path).crop(asked.window)
        layouts, samples = [], []
        for k in range(args.num_images):
            png = args.out / f"{source.name}_{k}.png"
            if asked.hole is None:
                layouts.append(Layout(**json.loads(png.with_suffix(".json").read_text())["layout"]))
            with Image.open(png) as sample:
                samples.append(square_cell(sample.crop(asked.window)))
        where = layout_cell(obj, layouts) if asked.hole is None else hole_cell(obj, asked.hole, asked.window)
        rows.append([square_cell(obj), where, *samples])
    headers = ["object", "hole" if args.hole else "sampled layouts", *(f"sample {k}" for k in range(args.num_images))]
    columns = dict(zip(headers, zip(*rows, strict=True), strict=True))
    write_png(args.out / "grid.png", draw_grid(columns, CELL))
