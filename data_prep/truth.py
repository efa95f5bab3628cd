"""The mini world's truth in tars beside the val and test shards; HOI4D itself has none, training never sees any.

A tree holds it as `truth/KEY.{clean.png, layouts.npy, rules.json}`, KEY being the clip's sequence with underscores.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import webdataset as wds

from data_prep.hoi4d import Box
from data_prep.resize import resize_window
from data_prep.shards import join_tars
from hoi_lightning.data.sample import SampleInfo, decode_info
from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import crop_layout

MEMBERS = ("clean.png", "layouts.npy", "rules.json")


class _Clip(NamedTuple):
    """A clip's truth.

    Attributes:
        clean: its window without any hand, uint8 (S, S, 3).
        layouts: float32 (N, 5) in the window's NDC.
        rules: JSON.
        crop: the window in source pixels.
    """

    clean: np.ndarray
    layouts: np.ndarray
    rules: bytes
    crop: Box


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
    held_out = [shard for shard in shards if shard["split"] != "train"]
    wanted = [[(info.key, info.sequence, _crop_of(info)) for info in _infos(out / shard["name"])] for shard in held_out]
    # A shard's samples are shuffled over the clips, each of which is read once.
    scratch = out / ".truth.tmp"
    try:
        spans = _write_clips(scratch, folder, sorted(sample for samples in wanted for sample in samples), size)
        records = []
        for shard, samples in zip(held_out, wanted, strict=True):
            name = f"truth-{shard['name']}"
            digest, size_of_tar = join_tars(out / name, [(scratch, *spans[key]) for key, _, _ in samples])
            entry = {"name": name, "split": shard["split"], "count": shard["count"]}
            records.append(entry | {"bytes": size_of_tar, "sha256": digest})
    finally:
        scratch.unlink(missing_ok=True)
    return records


def _infos(shard: Path) -> Iterator[SampleInfo]:
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            if member.name.endswith(".json"):
                file = tar.extractfile(member)
                assert file is not None
                yield decode_info({"json": file.read()})


def _write_clips(
    scratch: Path, folder: Path, samples: Sequence[tuple[str, str, Box]], size: int
) -> dict[str, tuple[int, int]]:
    """Write the records of samples (key, sequence, crop) in their order; returns where in the tar each of them lies."""
    spans = {}
    with scratch.open("wb") as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
        for sequence, group in groupby(samples, key=itemgetter(1)):
            clip = _read_clip(folder, sequence)
            for key, _, crop in group:
                start = tar.tarstream.offset
                tar.write({"__key__": key} | _members(clip, crop, size))
                spans[key] = start, tar.tarstream.offset
    return spans


def _members(clip: _Clip, crop: Box, size: int) -> dict[str, bytes]:
    """A sample's truth: the clip's, moved into the sample's crop."""
    layouts = clip.layouts if crop == clip.crop else _moved(clip.layouts, clip.crop, crop)
    png = cv2.imencode(".png", cv2.cvtColor(_clean_crop(clip, crop, size), cv2.COLOR_RGB2BGR))[1]
    array = io.BytesIO()
    np.save(array, layouts)
    return dict(zip(MEMBERS, (png.tobytes(), array.getvalue(), clip.rules), strict=True))


def clean_picture(folder: Path, info: SampleInfo, size: int) -> np.ndarray:
    """A sample's crop of its clip's picture without any hand, uint8 (size, size, 3).

    Args:
        folder: the tree's truth.
        info: the sample's record.
        size: side of the crop in pixels.

    Raises:
        InputError: the clip's truth cannot be read.
    """
    return _clean_crop(_read_clip(folder, info.sequence), _crop_of(info), size)


def _crop_of(info: SampleInfo) -> Box:
    x0, y0, x1, y1 = (round(value) for value in info.crop)
    return x0, y0, x1, y1


def _read_clip(folder: Path, sequence: str) -> _Clip:
    paths = [folder / f"{sequence.replace('/', '_')}.{name}" for name in MEMBERS]
    try:
        clean = cv2.imread(str(paths[0]), cv2.IMREAD_COLOR_RGB)
        layouts = np.load(paths[1])
        rules = paths[2].read_bytes()
        x0, y0, x1, y1 = json.loads(rules)["crop"]
        if clean is None:
            raise ValueError(f"{paths[0].name} is no picture")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{paths[0].with_suffix('')}*: cannot be read ({error}); draw the demo again") from None
    return _Clip(clean, layouts, rules, (x0, y0, x1, y1))


def _moved(layouts: np.ndarray, home: Box, crop: Box) -> np.ndarray:
    """Layouts (N, 5) of one window of a frame in another's NDC."""
    half = (home[2] - home[0]) / 2
    window = (np.array(crop, float).reshape(2, 2) - home[:2]) / half - 1
    return crop_layout(torch.from_numpy(layouts).double(), torch.from_numpy(window.ravel())).float().numpy()


def _clean_crop(clip: _Clip, crop: Box, size: int) -> np.ndarray:
    """A crop of the clip's clean picture, uint8 (size, size, 3); beyond it, its border is repeated."""
    clean = clip.clean
    x0, y0, x1, y1 = (value - clip.crop[axis % 2] for axis, value in enumerate(crop))
    over = max(-x0, -y0, x1 - clean.shape[1], y1 - clean.shape[0], 0)
    if over:
        clean = cv2.copyMakeBorder(clean, over, over, over, over, cv2.BORDER_REPLICATE)
    return resize_window(clean, (x0 + over, y0 + over, x1 + over, y1 + over), size)
