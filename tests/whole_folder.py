"""A small finished HO3Pairs folder with all its files, and ways to spoil it."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image

from hoi_lightning.data.sample import HOISample, encode
from tests.tiny import sample

SIZE = 48
LAYOUT = (
    ("train", ("Mug", "Mug", "Bottle", "Bottle", "Mug")),
    ("train", ("Bottle", "Mug", "Mug", "Bottle", "Mug")),
    ("val", ("Mug", "Bottle", "Mug")),
    ("test", ("Bottle", "Mug")),
)
DROPS = (("no-touch", 3), ("no-mask", 2))

Record = dict[str, Any]


def drawn(index: int, category: str, sdedit: bool = False) -> HOISample:
    """Sample of an instance of its own; every other one has keypoints."""
    plain = sample(index, SIZE)
    keypoints = tuple((float(i), float(i + 1)) for i in range(21)) if index % 2 else None
    level = 0.05 if sdedit else None
    info = replace(plain.info, category=category, keypoints=keypoints, sdedit_level=level)
    return replace(plain, info=info, sdedit=plain.obj if sdedit else None)


def write_folder(folder: Path, sdedit: bool = False) -> Path:
    """Write shards, truth, splits, ledger and manifest."""
    folder.mkdir(parents=True)
    manifest: dict[str, Any] = {"schema": 1, "size": SIZE, "remover": "none", "shards": [], "truth": []}
    counts: dict[str, Counter] = {split: Counter() for split in ("train", "val", "test")}
    splits, numbers, index = {}, Counter(), 0
    for split, categories in LAYOUT:
        samples = [drawn(index + i, category, sdedit) for i, category in enumerate(categories)]
        index += len(samples)
        name = f"{split}-{numbers[split]:06d}.tar"
        numbers[split] += 1
        manifest["shards"].append(write_tar(folder / name, split, [encode(s) for s in samples]))
        if split != "train":
            records = [truth(s.info.key) for s in samples]
            manifest["truth"].append(write_tar(folder / f"truth-{name}", split, records))
        for s in samples:
            splits[f"{s.info.category}/{s.info.instance}"] = split
            counts[split][s.info.category] += 1
    drops = [
        {"sequence": "ZY20210800001/H1/C5/N40/S1/s01/T1", "frame": 10 * i + n, "reason": r, "path": "a/b", "detail": ""}
        for i, (r, number) in enumerate(DROPS)
        for n in range(number)
    ]
    drops.append(drops[0] | {"sequence": "ZY20210800001/H1/C2/N41/S1/s01/T1", "frame": None, "reason": "no-actions"})
    (folder / "dropped.jsonl").write_text("".join(json.dumps(drop) + "\n" for drop in drops))
    (folder / "splits.json").write_text(json.dumps(dict(sorted(splits.items()))))
    manifest |= {
        "counts": counts,
        "dropped": Counter(drop["reason"] for drop in drops),
        "frames": {"seen": index + len(drops) - 1, "kept": index},
        "keypoints": {"valid": index // 2, "missing": index - index // 2, "broken": 0},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def truth(key: str) -> Record:
    """A sample's truth with eight layouts."""
    png, npy = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (90, 120, 90)).save(png, "PNG")
    np.save(npy, np.tile(np.float32([0.7, 0, 0.1, 0, 1]), (8, 1)))
    rules = {"rules": {"side": 0.5, "rim": 0.5}, "rule": ["side", "rim"] * 4}
    members = {"clean.png": png.getvalue(), "layouts.npy": npy.getvalue(), "rules.json": json.dumps(rules).encode()}
    return {"__key__": key, **members}


def write_tar(path: Path, split: str, records: list[Record]) -> dict[str, Any]:
    """Write a tar; returns the manifest's entry."""
    with wds.TarWriter(str(path), encoder=False, mtime=0) as tar:
        for record in records:
            tar.write(record)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return {"name": path.name, "split": split, "count": len(records), "bytes": len(data), "sha256": digest}


def read_tar(path: Path) -> list[Record]:
    """Records of a tar in order."""
    records: list[Record] = []
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if not records or records[-1]["__key__"] != key:
                records.append({"__key__": key})
            file = tar.extractfile(member)
            assert file is not None
            records[-1][extension] = file.read()
    return records


def spoil(folder: Path, name: str, change: Callable[[list[Record]], object]) -> None:
    """Change a tar's records and let the manifest agree with the outcome."""
    records = read_tar(folder / name)
    change(records)
    manifest = json.loads((folder / "manifest.json").read_text())
    listed = [*manifest["shards"], *manifest["truth"], *manifest.get("latents", {}).get("shards", [])]
    entry = next(entry for entry in listed if entry["name"] == name)
    entry |= write_tar(folder / name, entry["split"], records) | {"count": entry["count"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def spoil_json(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    """Change a JSON file."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
