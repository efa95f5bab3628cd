"""One HO3Pairs sample and its members in a shard: the treaty between `data_prep` and training.

A shard is a plain WebDataset tar. The decoder table is closed: the members named here are read, nothing else is, and
nothing is ever unpickled.
"""

import io
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from hoi_lightning.data.decode import MAX_SIDE, decode_mask, encode_mask
from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import Layout

SCHEMA = 1

Field = Literal["hoi", "obj", "sdedit", "hand", "object", "latents"]
MEMBERS: dict[Field, str] = {
    "hoi": "hoi.jpg",
    "obj": "obj.jpg",
    "sdedit": "sdedit.jpg",
    "hand": "hand.png",
    "object": "object.png",
    "latents": "latents.safetensors",
}
OPTIONAL: frozenset[Field] = frozenset({"sdedit", "latents"})


@dataclass(frozen=True)
class SampleInfo:
    """What `KEY.json` holds.

    Attributes:
        key: sample key, e.g. `ZY20210800001_H1_C2_N04_S12_s03_T1_f00123`; never a dot in it.
        sequence: HOI4D sequence, `ZY20210800001/H1/C2/N04/S12/s03/T1`.
        frame: 0-based frame index in the video.
        category: clean category name, e.g. `Mug`.
        instance: object instance inside the category, e.g. `N04`.
        task: HOI4D task id, e.g. `T1`.
        event: action event covering the frame, as stored by HOI4D; empty when unknown.
        contact: whether the hand mask touches an object mask in this frame.
        layout: the hand layout of the crop.
        layout_iou: IoU of the layout's proxy with the hand mask, in [0, 1].
        hand_side: `right` or `left`.
        object_box: x0, y0, x1, y1 of the object in crop pixels.
        crop: x0, y0, x1, y1 of the square crop in source pixels.
        keypoints: 21 (x, y) in crop pixels, wrist first, or None.
        blur: variance of the Laplacian of the HOI crop's grey values at 256 px; small = blurred.
        remover: what removed the hand, e.g. `opencv:telea`.
        sdedit_level: noise level of the SDEdit copy as a fraction of the schedule, or None.
        schema: version of this record.
    """

    key: str
    sequence: str
    frame: int
    category: str
    instance: str
    task: str
    event: str
    contact: bool
    layout: Layout
    layout_iou: float
    hand_side: Literal["right", "left"]
    object_box: tuple[float, float, float, float]
    crop: tuple[float, float, float, float]
    keypoints: tuple[tuple[float, float], ...] | None
    blur: float
    remover: str
    sdedit_level: float | None
    schema: int = SCHEMA


@dataclass(frozen=True)
class HOISample:
    """A decoded pair; members that were not asked for are None.

    Attributes:
        info: the JSON record.
        hoi: HOI picture, uint8 (S, S, 3).
        obj: the same crop without any hand, uint8 (S, S, 3).
        sdedit: SDEdit copy of `obj`, uint8 (S, S, 3).
        hand: any hand or forearm, bool (S, S).
        object: the touched object's visible pixels, bool (S, S).
    """

    info: SampleInfo
    hoi: np.ndarray | None = None
    obj: np.ndarray | None = None
    sdedit: np.ndarray | None = None
    hand: np.ndarray | None = None
    object: np.ndarray | None = None


def encode_jpeg(picture: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) at quality 95 with 4:2:0 chroma."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    return buffer.getvalue()


def encode(
    sample: HOISample,
    jpeg: Callable[[np.ndarray], bytes] = encode_jpeg,
    png: Callable[[np.ndarray], bytes] = encode_mask,
) -> dict[str, Any]:
    """Turn a sample into a WebDataset record: `__key__` and one bytes member per picture.

    Same sample, same bytes. JPEG at quality 95 with 4:2:0 chroma, masks as 1-bit PNG, JSON with sorted keys.

    Args:
        sample: all but its `sdedit` must be there.
        jpeg: encodes a picture.
        png: encodes a mask, with unfiltered rows.

    Raises:
        ValueError: the key holds a dot or a slash, which WebDataset would split.
    """
    if "." in sample.info.key or "/" in sample.info.key:
        raise ValueError(f"sample key {sample.info.key!r} must hold neither '.' nor '/'")
    record: dict[str, Any] = {"__key__": sample.info.key}
    photographs: tuple[Field, ...] = ("hoi", "obj", "sdedit")
    for field in photographs:
        pixels = getattr(sample, field)
        if pixels is not None:
            record[MEMBERS[field]] = jpeg(pixels)
    masks: tuple[Field, ...] = ("hand", "object")
    for field in masks:
        record[MEMBERS[field]] = png(getattr(sample, field))
    info = vars(sample.info) | {"layout": vars(sample.info.layout)}  # not `asdict`, which copies every number
    record["json"] = json.dumps(info, sort_keys=True).encode()
    return record


def decode(members: Mapping[str, bytes], fields: Collection[Field] = get_args(Field)) -> HOISample:
    """Read one record's members by extension (`hoi.jpg`, …, `json`).

    Args:
        members: extension → bytes, as WebDataset groups them.
        fields: which pictures to decode; others stay None. Members a record may lack (`sdedit`) stay None too.

    Raises:
        InputError: a member is missing, malformed or larger than `MAX_SIDE`, or the schema is another one.
    """
    info = decode_info(members)
    pictures: dict[str, np.ndarray] = {}
    for field in fields:
        name = MEMBERS[field]
        if field == "latents" or (name not in members and field in OPTIONAL):
            continue
        if name not in members:
            raise InputError(f"sample {info.key}: member {name} is missing; rebuild the shard with `make shards`")
        pictures[field] = _decode_picture(members[name], name, info.key)
    return HOISample(info, **pictures)


def decode_info(members: Mapping[str, bytes]) -> SampleInfo:
    """Read the JSON record alone.

    Raises:
        InputError: as `decode`.
    """
    try:
        record = json.loads(members["json"])
    except KeyError:
        raise InputError(f"a sample has no json member, only {sorted(members)}; is this an HO3Pairs shard?") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"a sample's json is no sample record ({error}); rebuild the shard with `make shards`"
        ) from None
    if not isinstance(record, dict):
        raise InputError("a sample's json is no sample record; rebuild the shard with `make shards`")
    if record.get("schema") != SCHEMA:
        raise InputError(
            f"sample {record.get('key')}: schema {record.get('schema')}, this version reads {SCHEMA}; "
            "rebuild the shards with `make shards`"
        )
    try:
        record["layout"] = Layout(**record["layout"])
        record |= {name: tuple(record[name]) for name in ("object_box", "crop")}
        if record["keypoints"] is not None:
            record["keypoints"] = tuple(tuple(point) for point in record["keypoints"])
        return SampleInfo(**record)
    except (KeyError, TypeError) as error:
        raise InputError(f"sample {record.get('key')}: json does not fit schema {SCHEMA} ({error})") from None


def _decode_picture(data: bytes, name: str, key: str) -> np.ndarray:
    try:
        if name.endswith(".png"):
            return decode_mask(data)
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if max(image.size) > MAX_SIDE:
                raise ValueError(f"is {image.size[0]}x{image.size[1]}, over {MAX_SIDE} pixels a side")
            return np.array(image.convert("RGB"))
    except Exception as error:  # whatever a decoder makes of a stranger's bytes is that file's fault
        raise InputError(f"sample {key}: {name} cannot be decoded ({error})") from None
