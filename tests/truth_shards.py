"""HO3Pairs shards with truth: each picture's brightness decides where hands go, by two rules."""

import io
import json
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor

from tests.tiny import sample, write_shards

RULES = {"near": 0.3, "far": 0.7}


def draw(brightness: float, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Layouts (N, 5) for a picture of mean `brightness` in [-1, 1], and their rules."""
    rng = np.random.default_rng(seed)
    near = rng.random(count) < RULES["near"]
    a = 0.7 + 0.02 * rng.normal(size=count)
    x = 2 * brightness + 0.05 * rng.normal(size=count)
    y = np.where(near, 0.3, -0.3) + 0.05 * rng.normal(size=count)
    theta = 1.5 + 0.2 * rng.normal(size=count)
    layouts = np.stack([a, x, y, np.cos(theta), np.sin(theta)], axis=1).astype(np.float32)
    return torch.from_numpy(layouts), ["near" if is_near else "far" for is_near in near]


def brightness_of(picture: Tensor) -> float:
    """What decides, for a picture (3, S, S) in [-1, 1]."""
    return picture[:, :8, :8].mean().item()


def write_truth_shards(folder: Path, counts: dict[str, int], draws: int = 256) -> Path:
    """As `write_shards`, with truth beside val and test."""
    write_shards(folder, counts)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["truth"] = []
    index = 0
    for entry in manifest["shards"]:
        pairs = [sample(index + k) for k in range(entry["count"])]
        index += entry["count"]
        if entry["split"] == "train":
            continue
        with wds.TarWriter(str(folder / f"truth-{entry['name']}"), encoder=False, mtime=0) as tar:
            for pair in pairs:
                assert pair.obj is not None
                png, array = io.BytesIO(), io.BytesIO()
                Image.fromarray(pair.obj).save(png, "PNG")
                pixels = torch.from_numpy(pair.obj).permute(2, 0, 1) / 127.5 - 1
                layouts, rules = draw(brightness_of(pixels), draws, pair.info.frame)
                np.save(array, layouts.numpy())
                tar.write({
                    "__key__": pair.info.key, "clean.png": png.getvalue(), "layouts.npy": array.getvalue(),
                    "rules.json": json.dumps({"rule": rules, "rules": RULES}).encode(),
                })  # fmt: skip
        manifest["truth"].append({"name": f"truth-{entry['name']}", "split": entry["split"], "count": entry["count"]})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
