"""What a user wants of the hands in a picture, in the picture's own pixels, and what it means for a layout."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hoi_lightning.errors import InputError
from hoi_lightning.guidance import Guidance, LayoutEnergy, cover_points, fix, follow_heat_map, keep_out, touch
from hoi_lightning.hand_proxy import Layout, crop_layout
from hoi_lightning.window import Box

MAP_SIZE = 64  # pixels of the maps that energies see
_ASPECT = 0.02  # relative difference of aspect ratios that rounding explains
_FAINT = 0.05  # of a map's brightest value: no hand is wished there
_LARGEST = 2.0  # a, whose half square is the radius in NDC: that of `fix_size` at most
_LAYOUT_FIELDS = ("a", "x", "y", "b1", "b2")


@dataclass(frozen=True)
class Wishes:
    """Wishes for every hand in a picture; lengths are pixels of the picture.

    Attributes:
        position: centre of the hand, met exactly.
        size: radius of the hand, met exactly.
        direction: of the forearm in degrees, 0 = right, 90 = down, met exactly.
        heat_map: grey picture of the input's aspect ratio, bright where hands should be.
        keep_out: the same, white where neither hand nor forearm should be.
        touch: the same, white on the object to be touched.
        points: places that the hand should cover.
        strength: of the last four.
    """

    position: tuple[float, float] | None = None
    size: float | None = None
    direction: float | None = None
    heat_map: Image.Image | None = None
    keep_out: Image.Image | None = None
    touch: Image.Image | None = None
    points: tuple[tuple[float, float], ...] = ()
    strength: float = 10.0

    def check(self, name: str, width: int, height: int) -> None:
        """Refuse what cannot be meant for a picture of this size.

        Raises:
            InputError: a place outside the picture, a map of another shape, empty, or in contradiction to the position.
        """
        for flag, points in (("--fix-position", [self.position]), ("--key-point", self.points)):
            for point in points:
                if point is not None and not (0 <= point[0] <= width and 0 <= point[1] <= height):
                    raise InputError(f"{flag} {point[0]:g} {point[1]:g}: outside {name}, which is {width}x{height}")
        if self.size is not None and not 1 <= self.size <= max(width, height):
            raise InputError(f"--fix-size {self.size:g}: the hand's radius must be 1 to {max(width, height)} pixels")
        if self.direction is not None and not math.isfinite(self.direction):
            raise InputError(f"--fix-direction {self.direction:g}: must be degrees, 0 = right, 90 = down")
        for flag, picture in self._maps().items():
            if abs(picture.width * height / (picture.height * width) - 1) > _ASPECT:
                raise InputError(
                    f"{flag}: {picture.width}x{picture.height}, but {name} is {width}x{height}; "
                    "give a map of the same aspect ratio"
                )
            low, high = picture.getextrema()
            if high == 0 or (flag == "--keep-out" and low == 255):
                raise InputError(f"{flag}: is all {'black' if high == 0 else 'white'}; nothing would be left to choose")
            if low == high:
                raise InputError(f"{flag}: is {low} everywhere, which says nothing; darken where no hand should be")
        self._check_contradictions(width, height)

    def _check_contradictions(self, width: int, height: int) -> None:
        self._check_reach(width, height)
        if self.heat_map is not None and self.position is not None:
            here = _at(self.heat_map, self.position, width, height)
            if here < _FAINT * np.asarray(self.heat_map).max():
                raise InputError("--fix-position contradicts --heat-map; give one of them")
        if self.keep_out is None:
            return
        for flag, points in (("--fix-position", [self.position]), ("--key-point", self.points)):
            for point in points:
                if point is not None and _at(self.keep_out, point, width, height) > 127:
                    raise InputError(f"{flag} {point[0]:g} {point[1]:g}: contradicts --keep-out; give one of them")
        kept_out = np.asarray(self.keep_out) > 127
        for flag, picture in (("--heat-map", self.heat_map), ("--touch", self.touch)):
            if picture is not None:
                wanted = np.asarray(picture.resize(self.keep_out.size, Image.Resampling.NEAREST))
                if not (wanted[~kept_out] >= _FAINT * wanted.max()).any():
                    raise InputError(f"{flag}: lies in --keep-out, all of it; give one of them")

    def _check_reach(self, width: int, height: int) -> None:
        """A hand of the fixed size covers the points, and from the fixed position it reaches what it should touch."""
        if self.size is None:
            return
        if self.position is not None:
            for point in self.points:
                if math.dist(point, self.position) > self.size:
                    raise InputError(
                        f"--key-point {point[0]:g} {point[1]:g}: a hand of --fix-size {self.size:g} at --fix-position "
                        "does not cover it; leave one of them out"
                    )
            if self.touch is not None:
                rows, columns = np.nonzero(np.asarray(self.touch) > 127)
                x, y = ((at + 0.5) / of for at, of in ((columns, self.touch.width), (rows, self.touch.height)))
                away = np.hypot(x * width - self.position[0], y * height - self.position[1])
                if not (away <= self.size + max(width / self.touch.width, height / self.touch.height)).any():
                    raise InputError(
                        f"--touch: a hand of --fix-size {self.size:g} at --fix-position does not reach it; leave one "
                        "of them out"
                    )
        for one, other in itertools.combinations(self.points, 2):
            if math.dist(one, other) > 2 * self.size:
                raise InputError(
                    f"--key-point {other[0]:g} {other[1]:g}: a hand of --fix-size {self.size:g} does not cover it and "
                    f"{one[0]:g} {one[1]:g}; leave one of them out"
                )

    def guidance(self, size_of_picture: tuple[int, int], window: Box) -> Guidance | None:
        """The same in NDC of a square of the picture (width, height); None where nothing is wished.

        Raises:
            InputError: the position or a point lies outside the square, or a map leaves nothing to choose in it.
        """
        position = None if self.position is None else _to_ndc("--fix-position", self.position, window)
        side = window[2] - window[0]
        size = None if self.size is None else 2 * math.sqrt(self.size / side)  # r = a²/2 is 2·size/side in NDC
        direction = None if self.direction is None else math.radians(self.direction)
        energies: list[LayoutEnergy] = []
        kinds = {"--heat-map": follow_heat_map, "--keep-out": keep_out, "--touch": touch}
        for flag, picture in self._maps().items():
            part = _cut(picture, size_of_picture, window)
            if part.max() == 0 or (flag == "--keep-out" and part.min() == 1):
                raise InputError(
                    f"{flag}: is all {'black' if part.max() == 0 else 'white'} in the square {list(window)} that the "
                    "networks see; give the object's --box so that it holds the place"
                )
            energies.append(kinds[flag](part))
        if self.points:
            energies.append(cover_points(torch.tensor([_to_ndc("--key-point", p, window) for p in self.points])))
        fixed = None if position is size is direction is None else fix(position, size, direction)
        if fixed is None and not energies:
            return None
        return Guidance(fixed, tuple(energies), self.strength)

    def _maps(self) -> dict[str, Image.Image]:
        maps = {"--heat-map": self.heat_map, "--keep-out": self.keep_out, "--touch": self.touch}
        return {flag: picture for flag, picture in maps.items() if picture is not None}


def read_layout(path: Path, window: Box | None = None) -> Layout:
    """Read a layout from JSON: a record that `generate` left, or a bare {"a": …, "x": …, "y": …, "b1": …, "b2": …}.

    Args:
        path: the file.
        window: the square in whose NDC the layout is wanted; a record says in which it was made.

    Raises:
        InputError: no such file, not a layout, or fields that are missing, not finite or impossible.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None
    fields = record.get("layout", record) if isinstance(record, dict) else None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: holds no layout; give the JSON that `generate` leaves beside a picture")
    values = []
    for name in _LAYOUT_FIELDS:
        value = fields.get(name)
        if not _is_number(value):
            found = "is missing" if name not in fields else f"is {value!r:.40}, not a number"
            raise InputError(f"{path}: field {name} of the layout {found}; a layout has {', '.join(_LAYOUT_FIELDS)}")
        values.append(float(value))
    if values[0] <= 0 or math.hypot(*values[3:]) == 0:
        raise InputError(f"{path}: a layout has a > 0 and a direction (b1, b2) other than 0")
    if values[0] > _LARGEST:
        raise InputError(f"{path}: a = {values[0]:g}, a hand larger than the picture; {_LARGEST:g} at most")
    layout = torch.tensor(values, dtype=torch.float64)
    if window is not None and "window" in record:
        made_in = record["window"]
        numbers = isinstance(made_in, list) and len(made_in) == 4 and all(_is_number(value) for value in made_in)
        if not numbers or made_in[2] <= made_in[0] or made_in[3] - made_in[1] != made_in[2] - made_in[0]:
            raise InputError(f"{path}: window {made_in!r:.60} is no square [x0, y0, x1, y1]")
        layout = rewindowed(layout, made_in, window)
    return Layout.from_tensor(layout)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # not NaN


def rewindowed(layout: Tensor, old: Box, new: Box) -> Tensor:
    """Layouts (..., 5) in NDC of one square of a picture, in NDC of another."""
    half = (old[2] - old[0]) / 2
    box = [(value - old[axis % 2]) / half - 1 for axis, value in enumerate(new)]
    return crop_layout(layout, layout.new_tensor(box))


def _at(picture: Image.Image, point: tuple[float, float], width: int, height: int) -> int:
    column, row = int(point[0] * picture.width / width), int(point[1] * picture.height / height)
    return int(np.asarray(picture)[min(row, picture.height - 1), min(column, picture.width - 1)])


def _to_ndc(flag: str, point: tuple[float, float], window: Box) -> tuple[float, float]:
    half = (window[2] - window[0]) / 2
    x, y = ((value - low) / half - 1 for value, low in zip(point, window[:2], strict=True))
    if max(abs(x), abs(y)) > 1:
        raise InputError(
            f"{flag} {point[0]:g} {point[1]:g}: outside the square {list(window)} that the networks see; "
            "give the object's --box so that it holds the place"
        )
    return x, y


def _cut(picture: Image.Image, of: tuple[int, int], window: Box) -> Tensor:
    """The window's part of a map of the whole picture, (1, 1, MAP_SIZE, MAP_SIZE) in [0, 1]."""
    wide, high = picture.width / of[0], picture.height / of[1]
    box = window[0] * wide, window[1] * high, window[2] * wide, window[3] * high
    part = picture.resize((MAP_SIZE, MAP_SIZE), Image.Resampling.BOX, box=box)
    return torch.from_numpy(np.asarray(part, np.float32) / 255)[None, None]
