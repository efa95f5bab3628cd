"""What `generate`'s command line asks of a picture: which square the networks see, and where the hands go."""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning.errors import InputError
from hoi_lightning.opening import SAMPLING, positive

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from hoi_lightning.hand_proxy import Layout
    from hoi_lightning.window import Box
    from hoi_lightning.wishes import Wishes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    place = parser.add_argument_group("which square the networks see (without: about a small or off-centre object)")
    either = place.add_mutually_exclusive_group()
    corners = ("X0", "Y0", "X1", "Y1")
    either.add_argument("--box", type=int, nargs=4, metavar=corners, help="the object's box")
    either.add_argument("--centre", action="store_true", help="the largest centred square")
    place.add_argument(
        "--zoom", action="store_true", help="what paints sees the hole's neighbourhood only: for small hands"
    )
    wishes = parser.add_argument_group("where the hands go")
    wishes.add_argument("--fix-position", type=float, nargs=2, metavar=("X", "Y"), help="centre of the hand")
    wishes.add_argument("--fix-size", type=float, metavar="R", help="radius of the hand")
    wishes.add_argument("--fix-direction", type=float, metavar="DEG", help="of the forearm: 0 right, 90 down")
    wishes.add_argument("--heat-map", type=Path, metavar="PNG", help="bright where hands should be")
    wishes.add_argument("--keep-out", type=Path, metavar="PNG", help="white where no hand or forearm should be")
    wishes.add_argument("--touch", type=Path, metavar="PNG", help="white on the object that hands should touch")
    wishes.add_argument(
        "--key-point", type=float, nargs=2, action="append", default=[], metavar=("X", "Y"),
        help="a place that the hand should cover; may be repeated",
    )  # fmt: skip
    wishes.add_argument("--strength", type=positive, help="of the last four; default: 10")
    given = wishes.add_mutually_exclusive_group()
    given.add_argument("--layout", type=Path, metavar="JSON", help="this layout; MaskNet is not asked")
    given.add_argument(
        "--hole", type=Path, metavar="PNG", help="white is painted; same size as the picture; MaskNet is not asked"
    )
    given.add_argument(
        "--interpolate", type=Path, nargs=2, metavar="JSON", help="the way between two layouts, with one noise"
    )


@dataclass(frozen=True)
class Order:
    """What is asked of one picture.

    Attributes:
        window: the square that the networks see.
        wishes: of the layouts.
        layouts: given ones, one per sample; None = MaskNet is asked, unless there is a hole.
        hole: bool (H, W), painted instead of a layout's.
        asked: what of the command line decides the result, as JSON holds it.
    """

    window: "Box"
    wishes: "Wishes"
    layouts: "list[Layout] | None"
    hole: "np.ndarray | None"
    asked: dict[str, Any]


def read_order(path: Path, args: argparse.Namespace) -> Order:
    """Read maps and layouts, and check them against the picture, before anything slow starts.

    Raises:
        InputError: one of them cannot be read, does not fit the picture, or contradicts another.
    """
    from hoi_lightning.hand_proxy import interpolate_layouts
    from hoi_lightning.holes import square_of
    from hoi_lightning.pipeline import MIN_SIDE, load_picture
    from hoi_lightning.window import centred_square, choose_square, square_about
    from hoi_lightning.wishes import Wishes, read_layout

    image = load_picture(path)
    wished = ("fix_position", "fix_size", "fix_direction", "heat_map", "keep_out", "touch", "key_point")
    named = [name for name in ("layout", "interpolate", "hole") if getattr(args, name)]
    if named and (others := [name for name in wished if getattr(args, name) not in (None, [])]):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise InputError(f"--{named[0]} says where hands go; leave out {flags}")
    hole = read_hole(args.hole, path.name, image) if args.hole else None
    if args.box:
        x0, y0, x1, y1 = args.box
        if not (0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height):
            raise InputError(f"--box {x0} {y0} {x1} {y1}: no box in {path.name}, {image.width}x{image.height}")
        window = square_about((x0, y0, x1, y1), *image.size)
        if (side := window[2] - window[0]) < MIN_SIDE:
            raise InputError(f"--box {x0} {y0} {x1} {y1}: its square is {side} pixels wide; {MIN_SIDE} at least")
    elif args.centre:
        window = centred_square(*image.size)
    else:
        window = choose_square(image) if hole is None else square_of(f"--hole {args.hole}", hole)
    if hole is not None:
        square_of(f"--hole {args.hole}", hole, window)
    if args.strength is not None and not any(getattr(args, name) for name in wished[3:]):
        raise InputError(
            "--strength: of which wish? give --heat-map, --keep-out, --touch or --key-point, or leave it out"
        )
    maps = {name: _load_opaque(name, file).convert("L") for name in wished[3:6] if (file := getattr(args, name))}
    wishes = Wishes(
        args.fix_position and (args.fix_position[0], args.fix_position[1]), args.fix_size, args.fix_direction,
        points=tuple((x, y) for x, y in args.key_point), strength=args.strength or Wishes.strength, **maps,
    )  # fmt: skip
    wishes.check(path.name, *image.size)
    wishes.guidance(image.size, window)
    layouts = None
    if args.layout:
        layouts = [read_layout(args.layout, window)] * args.num_images
    elif args.interpolate:
        start, end = (read_layout(path, window) for path in args.interpolate)
        steps = max(args.num_images - 1, 1)
        layouts = [interpolate_layouts(start, end, k / steps) for k in range(args.num_images)]
    asked = {name: getattr(args, name) for name in (*SAMPLING, "strength", "prompt", "zoom")}
    for name in (*wished, "layout", "interpolate", "hole"):
        value = getattr(args, name)
        files = [value] if isinstance(value, Path) else value if name == "interpolate" and value else []
        asked[name] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] if files else value
    return Order(window, wishes, layouts, hole, {"window": list(window), "asked": asked})


def read_hole(path: Path, name: str, image: "Image.Image") -> "np.ndarray":
    """Read a hole, bool (H, W), white = to be painted.

    Args:
        path: a black and white picture.
        name: of the picture that it is a hole in.
        image: that picture.

    Raises:
        InputError: it cannot be read, is grey, coloured or transparent, empty or full, or has another size.
    """
    import numpy as np

    from hoi_lightning.holes import check_hole

    pixels = np.asarray(_load_opaque("hole", path))
    odd = pixels[((pixels != 0) & (pixels != 255)).any(axis=2) | (pixels != pixels[..., :1]).any(axis=2)]
    if len(odd):
        raise InputError(
            f"--hole {path}: {len(odd)} pixels are neither black nor white, such as RGB {tuple(map(int, odd[0]))}; "
            "threshold it and save it as PNG"
        )
    hole = pixels[..., 0] == 255
    check_hole(f"--hole {path}", hole, name, *image.size)
    return hole


def _load_opaque(name: str, path: Path) -> "Image.Image":
    """A map or a hole; where it is transparent nobody can tell what is meant."""
    import numpy as np
    from PIL import Image

    from hoi_lightning.pipeline import load_picture

    picture = load_picture(path)
    with Image.open(path) as file:
        if file.has_transparency_data and np.asarray(file.convert("RGBA"))[..., 3].min() < 255:
            raise InputError(
                f"--{name.replace('_', '-')} {path}: is transparent in places; save it on black, white where it counts"
            )
    return picture
