"""What must hold of one sample in a shard, of its truth and of its latents; each check yields what is wrong, in words.

The bytes may come from strangers: sizes are read and limited before anything is decoded, and nothing is unpickled.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from hoi_lightning.data.sample import MAX_SIDE, MEMBERS, OPTIONAL, SampleInfo, decode_info
from hoi_lightning.errors import InputError

EXTENSIONS = (*(MEMBERS[name] for name in MEMBERS if name != "latents"), "json")
REQUIRED = {MEMBERS[name] for name in MEMBERS if name not in OPTIONAL} | {"json"}
TRUTH_EXTENSIONS = ("clean.png", "layouts.npy", "rules.json")
LATENTS_EXTENSIONS = (MEMBERS["latents"],)

MAX_A = 4  # a radius of eight half pictures
MAX_CENTRE = 8  # half pictures
UNIT = 1e-3  # tolerance of |b| = 1
_MAX_NUMBER = 1e9
_MAX_LAYOUTS = 1 << 20


def read_info(key: str, data: bytes) -> SampleInfo | str:
    """Read a sample's JSON record; a string says why it cannot be read."""
    try:
        return decode_info({"json": data})
    except InputError as error:
        return f"json: {error}".replace("\n", " ")


def info_faults(info: SampleInfo, key: str, size: int) -> Iterator[str]:
    """Check a JSON record.

    Args:
        info: the record; its values may be of any type.
        key: of the sample's members.
        size: side of the crops in pixels.
    """
    if info.key != key:
        yield f"json says key {info.key!r}"
    for name in ("sequence", "category", "instance", "remover"):
        if not isinstance(getattr(info, name), str) or not getattr(info, name):
            yield f"{name} {getattr(info, name)!r} is no name"
    for name in ("task", "event"):
        if not isinstance(getattr(info, name), str):
            yield f"{name} {getattr(info, name)!r} is no text"
    if not isinstance(info.frame, int) or isinstance(info.frame, bool) or info.frame < 0:
        yield f"frame {info.frame!r} is no frame index"
    if not isinstance(info.contact, bool):
        yield f"contact {info.contact!r} is neither true nor false"
    if info.hand_side not in ("right", "left"):
        yield f"hand_side {info.hand_side!r} is neither right nor left"
    layout = info.layout
    yield from layout_faults(np.array([[layout.a, layout.x, layout.y, layout.b1, layout.b2]], dtype=object))
    if not _numbers([info.layout_iou]) or not 0 <= info.layout_iou <= 1:
        yield f"layout_iou {info.layout_iou!r} is not in [0, 1]"
    if not _numbers([info.blur]) or info.blur < 0:
        yield f"blur {info.blur!r} is no variance"
    if info.sdedit_level is not None and not (_numbers([info.sdedit_level]) and 0 < info.sdedit_level <= 1):
        yield f"sdedit_level {info.sdedit_level!r} is not in (0, 1]"
    if not _is_box(info.object_box) or min(info.object_box) < 0 or max(info.object_box) > size:
        yield f"object_box {info.object_box!r} is no box in the crop"
    crop = info.crop
    if not _is_box(crop) or abs((crop[2] - crop[0]) - (crop[3] - crop[1])) > 1e-6:
        yield f"crop {crop!r} is no square window"
    if info.keypoints is not None and not (
        len(info.keypoints) == 21 and all(len(point) == 2 and _numbers(point) for point in info.keypoints)
    ):
        yield "keypoints are not 21 pairs of numbers"


def layout_faults(layouts: np.ndarray) -> Iterator[str]:
    """Check the ranges of layouts (N, 5) in the paper's order; the first wrong one is named."""
    if layouts.dtype == object:
        if not _numbers(layouts.ravel()):
            yield f"layout {layouts[0].tolist()} is not five finite numbers"
            return
        layouts = layouts.astype(float)
    a, x, y, b1, b2 = layouts.astype(float).T
    in_range = (a > 0) & (a <= MAX_A) & (np.abs(x) <= MAX_CENTRE) & (np.abs(y) <= MAX_CENTRE)
    unit = np.abs(np.hypot(b1, b2) - 1) <= UNIT
    for wrong, rule in (
        (~in_range, f"0 < a ≤ {MAX_A} and |x|, |y| ≤ {MAX_CENTRE} do not hold"),
        (~unit, "(b1, b2) is no unit vector"),
    ):
        if wrong.any():  # a NaN is in no range
            yield f"layout {np.round(layouts[wrong.argmax()], 4).tolist()}: {rule}"


def picture_faults(data: bytes, name: str, size: int, mode: str | None = None) -> Iterator[str]:
    """Decode a picture.

    Args:
        data: the file.
        name: of the member; PNGs are masks unless `mode` says otherwise.
        size: side in pixels it must have.
        mode: Pillow's; None = 1-bit for PNG, RGB for JPEG.
    """
    is_png = name.endswith(".png")
    mode = mode or ("1" if is_png else "RGB")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG" if is_png else "JPEG"]) as image:
            if image.size != (size, size):
                yield f"{name} is {image.size[0]}x{image.size[1]}, not {size}x{size}"
                if max(image.size) > MAX_SIDE:
                    return
            if image.mode != mode:
                yield f"{name} has mode {image.mode}, not {mode}"
            image.load()
            if name == MEMBERS["hand"] and not image.getbbox():
                yield f"{name} is empty"
    except Exception as error:  # whatever a decoder makes of a stranger's bytes is that file's fault
        yield f"{name} cannot be decoded ({error})".replace("\n", " ")


def sample_faults(members: Mapping[str, bytes], info: SampleInfo, size: int) -> Iterator[str]:
    """Check that a sample is complete and that all its pictures decode."""
    absent = sorted(REQUIRED - set(members))
    if absent:
        yield f"{', '.join(absent)} missing"
    if (MEMBERS["sdedit"] in members) != (info.sdedit_level is not None):
        there = "there" if MEMBERS["sdedit"] in members else "missing"
        yield f"{MEMBERS['sdedit']} is {there}, but sdedit_level is {info.sdedit_level}"
    for name, data in members.items():
        if name != "json":
            yield from picture_faults(data, name, size)


def truth_faults(members: Mapping[str, bytes], size: int) -> Iterator[str]:
    """Check a sample's truth: the clean picture, the layouts (N, 5), float32, and the rule of each of them."""
    absent = [name for name in TRUTH_EXTENSIONS if name not in members]
    if absent:
        yield f"{', '.join(absent)} missing"
        return
    yield from picture_faults(members["clean.png"], "clean.png", size, mode="RGB")
    layouts = _read_layouts(members["layouts.npy"])
    if isinstance(layouts, str):
        yield f"layouts.npy: {layouts}"
        return
    yield from (f"layouts.npy: {fault}" for fault in layout_faults(layouts))
    try:
        rules = json.loads(members["rules.json"])
        shares, drawn = rules["rules"], rules["rule"]
        if not _numbers(shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
            yield "rules.json: the rules' shares do not sum to 1"
        if len(drawn) != len(layouts) or not set(drawn) <= set(shares):
            yield f"rules.json: {len(drawn)} draws of rules, {len(layouts)} layouts"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield f"rules.json cannot be read ({error!r})"


def latents_faults(members: Mapping[str, bytes]) -> Iterator[str]:
    """Check a sample's latents: float16 (C, h, w), finite, one shape."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    name = MEMBERS["latents"]
    try:
        tensors = load(members[name])
    except (KeyError, ValueError, SafetensorError) as error:
        yield f"{name} cannot be read ({error})"
        return
    if not {"hoi", "obj"} <= set(tensors) <= {"hoi", "obj", "sdedit"}:
        yield f"{name} holds {', '.join(sorted(tensors)) or 'nothing'}, not hoi, obj and perhaps sdedit"
        return
    kinds = {(array.dtype.name, array.shape) for array in tensors.values()}
    (dtype, shape), *others = kinds
    if others or dtype != "float16" or len(shape) != 3:
        yield f"{name}: {sorted(kinds)}, not float16 (C, h, w) alike"
    elif not all(np.isfinite(array).all() for array in tensors.values()):
        yield f"{name} is not finite"


def _read_layouts(data: bytes) -> np.ndarray | str:
    """Layouts float32 (N, 5) of an .npy file, or what is wrong; its header is believed only as far as it may be."""
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            return "not version 1.0 of the format"
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        return f"cannot be read ({error})".replace("\n", " ")
    if dtype != np.dtype("<f4") or fortran or len(shape) != 2 or shape[1] != 5 or not 0 < shape[0] <= _MAX_LAYOUTS:
        return f"{dtype.name} {shape}, not float32 (N, 5)"
    if len(data) - file.tell() != shape[0] * 20:
        return f"{len(data) - file.tell()} bytes for {shape[0]} layouts"
    return np.frombuffer(data, "<f4", offset=file.tell()).reshape(shape)


def _is_box(values: Any) -> bool:
    return len(values) == 4 and _numbers(values) and values[0] < values[2] and values[1] < values[3]


def _numbers(values: Iterable[Any]) -> bool:
    """Whether all are finite numbers that a float holds."""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and -_MAX_NUMBER < value < _MAX_NUMBER
        for value in values
    )
