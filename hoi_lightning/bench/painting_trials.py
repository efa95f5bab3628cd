"""What `bench painting` compares: painters of a recorded pair, and what is measured of their pictures."""

import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.data.sample import SampleInfo
from hoi_lightning.diffusion.ddpm import sample_seeds
from hoi_lightning.diffusion.repaint import RePaintSampler
from hoi_lightning.generate import write_png
from hoi_lightning.metrics.image import ImageMetrics, as_batch, hole_crop, outside_max_diff
from hoi_lightning.metrics.layout import hole_recall
from hoi_lightning.metrics.seam import border_jump
from hoi_lightning.tasks import FusionNet


@dataclass(frozen=True)
class Pair:
    """A recorded pair.

    Attributes:
        info: its record.
        hoi: uint8 (S, S, 3).
        obj: uint8 (S, S, 3).
        hand: bool (S, S).
    """

    info: SampleInfo
    hoi: np.ndarray
    obj: np.ndarray
    hand: np.ndarray


Paint = Callable[[Sequence[Pair], Sequence[int]], list[np.ndarray]]


def stem_of(out: Path, name: str, i: int) -> Path:
    """Of the files of one picture by one painter."""
    return out / "pictures" / name / f"{i:06d}"


def record_of(stem: Path) -> dict[str, Any]:
    """What was measured of a finished picture, and `made_by`, what decided it."""
    return json.loads(stem.with_suffix(".json").read_text())


def load_pair(index: ShardIndex, i: int) -> Pair:
    """Sample i of the shards."""
    sample = index.sample(i, ("hoi", "obj", "hand"))
    assert sample.hoi is not None
    assert sample.obj is not None
    assert sample.hand is not None
    return Pair(sample.info, sample.hoi, sample.obj, sample.hand)


def painter(fusionnet: FusionNet, sampler: RePaintSampler, precision: str) -> Paint:
    """Paints at the recorded layouts; `precision` is `32` or `bf16`."""

    def paint(pairs: Sequence[Pair], seeds: Sequence[int]) -> list[np.ndarray]:
        obj = torch.from_numpy(np.stack([pair.obj for pair in pairs])).permute(0, 3, 1, 2).to(fusionnet.device)
        layouts = torch.stack([pair.info.layout.to_tensor() for pair in pairs]).to(fusionnet.device)
        with torch.autocast(fusionnet.device.type, torch.bfloat16, enabled=precision == "bf16"):
            painted = fusionnet.sample(obj.float() / 127.5 - 1, layouts, seeds, sampler).float()
        return list(((painted + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())

    return paint


def paster(training: ShardIndex, seed: int) -> Paint:
    """Pastes a random training hand, turned and scaled so that its layout is the recorded one."""

    def frame(layout: Any) -> Any:
        """Affine map (2, 3) from the layout's own frame, in radii and along the forearm, to NDC."""
        a, x, y, b1, b2 = layout.to_tensor().tolist()
        r, norm = a * a / 2, (b1 * b1 + b2 * b2) ** 0.5
        return np.array([[r * b1 / norm, -r * b2 / norm, x], [r * b2 / norm, r * b1 / norm, y]])

    def paste(pair: Pair, sample_seed: int) -> np.ndarray:
        draw = np.random.default_rng([seed, sample_seed])
        other = load_pair(training, int(draw.integers(len(training))))
        here, there = frame(pair.info.layout), frame(other.info.layout)
        turn = there[:, :2] @ np.linalg.inv(here[:, :2])
        theta = np.concatenate([turn, (there[:, 2] - turn @ here[:, 2])[:, None]], axis=1)
        source = np.concatenate([other.hoi, 255 * other.hand[..., None]], axis=2).astype(np.float32)
        picture = torch.from_numpy(source).permute(2, 0, 1)[None]
        grid = F.affine_grid(torch.from_numpy(theta).float()[None], list(picture.shape), align_corners=False)
        moved = F.grid_sample(picture, grid, align_corners=False)[0].permute(1, 2, 0).numpy()
        inside = moved[..., 3] > 127
        return np.where(inside[..., None], moved[..., :3].round().clip(0, 255).astype(np.uint8), pair.obj)

    return lambda pairs, seeds: [paste(pair, sample_seed) for pair, sample_seed in zip(pairs, seeds, strict=True)]


def measure(
    stems: Sequence[Path],
    pairs: Sequence[Pair],
    paint: Paint,
    fusionnet: FusionNet,
    metrics: ImageMetrics,
    seed: int,
) -> list[dict[str, float]]:
    """Paint pairs, leave their PNGs, and measure each."""
    own = sample_seeds(seed, [zlib.crc32(pair.info.key.encode()) for pair in pairs])
    start = time.process_time()
    pictures = paint(pairs, own)
    seconds = (time.process_time() - start) / len(pairs)
    records = []
    for stem, pair, painted in zip(stems, pairs, pictures, strict=True):
        hole = fusionnet.hole_mask(pair.info.layout.to_tensor()[None])[0, 0].bool().cpu().numpy()
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_png(stem.with_suffix(".png"), Image.fromarray(painted))
        hand = (as_batch([hole_crop(picture, pair.hand)]) for picture in (painted, pair.hoi))
        records.append(
            {
                "lpips_hand": metrics.perceptual(*hand).item(),
                "lpips": metrics.perceptual(as_batch([painted]), as_batch([pair.hoi])).item(),
                "jump": border_jump(painted, hole),
                "jump_recorded": border_jump(pair.hoi, hole),
                "hole_recall": hole_recall(hole, pair.hand),
                "outside_max_diff": outside_max_diff(painted, pair.obj, hole),
                "cpu_seconds": seconds,
            }
        )
    return records
