"""The mini world's truth in tars beside the val and test shards; HOI4D itself has none, training never sees any.

A tree holds it as `truth/KEY.{clean.png, layouts.npy, rules.json}`, KEY being the clip's sequence with underscores.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset as wds

from data_prep.hoi4d import Box
from data_prep.pairing import resize_window
from data_prep.shards import Replacing, shard_record
from hoi_lightning.data.sample import SampleInfo, decode_info
from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import crop_layout

MEMBERS = ("clean.png", "layouts.npy", "rules.json")


def write_truth(out: Path, shards: list[dict[str, Any]], root: Path, size: int) -> list[dict[str, Any]]:
    """Write a truth tar for each val and test shard, its samples in the shard's order.

    Args:
        out: folder of the shards.
        shards: their manifest entries.
        root: the HOI4D tree.
        size: side of the crops in pixels.

    Returns:
        The manifest's entries of the truth tars; none where the tree has no truth.

    Raises:
        InputError: the tree's truth lacks a clip, or cannot be read.
    """
    folder = root / "truth"
    if not folder.is_dir():
        return []
    records = []
    for shard in shards:
        if shard["split"] == "train":
            continue
        path = out / f"truth-{shard['name']}"
        with Replacing(path) as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
            for info in _infos(out / shard["name"]):
                tar.write(_members(folder, info, size))
        records.append(shard_record(path, shard["split"], shard["count"]))
    return records


def _infos(shard: Path) -> Iterator[SampleInfo]:
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            if member.name.endswith(".json"):
                file = tar.extractfile(member)
                assert file is not None
                yield decode_info({"json": file.read()})


def _members(folder: Path, info: SampleInfo, size: int) -> dict[str, Any]:
    """One sample's record: the clip's truth, moved into the sample's crop."""
    clean, layouts, rules, home = _read_clip(folder, info.sequence.replace("/", "_"))
    crop = _crop_of(info)
    if crop != home:
        layouts = _moved(layouts, home, crop)
    png = cv2.imencode(".png", cv2.cvtColor(_clean_crop(clean, home, crop, size), cv2.COLOR_RGB2BGR))[1]
    array = io.BytesIO()
    np.save(array, layouts)
    contents = (png.tobytes(), array.getvalue(), rules)
    return {"__key__": info.key, **dict(zip(MEMBERS, contents, strict=True))}


def clean_picture(folder: Path, info: SampleInfo, size: int) -> np.ndarray:
    """A sample's crop of its clip's picture without any hand, uint8 (size, size, 3).

    Args:
        folder: the tree's truth.
        info: the sample's record.
        size: side of the crop in pixels.

    Raises:
        InputError: the clip's truth cannot be read.
    """
    clean, _, _, home = _read_clip(folder, info.sequence.replace("/", "_"))
    return _clean_crop(clean, home, _crop_of(info), size)


def _crop_of(info: SampleInfo) -> Box:
    x0, y0, x1, y1 = (round(value) for value in info.crop)
    return x0, y0, x1, y1


@lru_cache(maxsize=256)  # a shard's samples are shuffled over the clips
def _read_clip(folder: Path, key: str) -> tuple[np.ndarray, np.ndarray, bytes, Box]:
    """A clip's clean picture, uint8 (S, S, 3), layouts, float32 (N, 5), rules and crop in source pixels."""
    paths = [folder / f"{key}.{name}" for name in MEMBERS]
    try:
        clean = cv2.imread(str(paths[0]), cv2.IMREAD_COLOR_RGB)
        layouts = np.load(paths[1])
        rules = paths[2].read_bytes()
        x0, y0, x1, y1 = json.loads(rules)["crop"]
        if clean is None:
            raise ValueError(f"{paths[0].name} is no picture")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{paths[0].with_suffix('')}*: cannot be read ({error}); draw the demo again") from None
    return clean, layouts, rules, (x0, y0, x1, y1)


def _moved(layouts: np.ndarray, home: Box, crop: Box) -> np.ndarray:
    """Layouts (N, 5) of one window of a frame in another's NDC."""
    half = (home[2] - home[0]) / 2
    window = (np.array(crop, float).reshape(2, 2) - home[:2]) / half - 1
    return crop_layout(torch.from_numpy(layouts).double(), torch.from_numpy(window.ravel())).float().numpy()


def _clean_crop(clean: np.ndarray, home: Box, crop: Box, size: int) -> np.ndarray:
    """The crop of a clean picture of the window `home`, uint8 (size, size, 3); beyond it, its border repeated."""
    x0, y0, x1, y1 = (value - home[axis % 2] for axis, value in enumerate(crop))
    over = max(-x0, -y0, x1 - clean.shape[1], y1 - clean.shape[0], 0)
    if over:
        clean = cv2.copyMakeBorder(clean, over, over, over, over, cv2.BORDER_REPLICATE)
    return resize_window(clean, (x0 + over, y0 + over, x1 + over, y1 + over), size)
