"""Tiny stand-ins with the real shape: HO3Pairs shards and a Stable Diffusion inpainting folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import webdataset as wds

from hoi_lightning.data.sample import HOISample, SampleInfo, encode
from hoi_lightning.hand_proxy import Layout, hole_mask


def sample(index: int, size: int = 64) -> HOISample:
    """A red square on a grey table, and a skin-coloured proxy for a hand."""
    rng = np.random.default_rng(index)
    layout = Layout(float(rng.uniform(0.6, 0.9)), *(float(v) for v in rng.uniform(-0.3, 0.3, 2)), 0.6, 0.8)
    hand = hole_mask(layout.to_tensor(), size, 0)[0].bool().numpy()
    square = np.zeros((size, size), bool)
    square[size // 3 : 2 * size // 3, size // 3 : 2 * size // 3] = True
    obj = np.full((size, size, 3), rng.integers(80, 180), np.uint8)
    obj[square] = (200, 40, 40)
    hoi = obj.copy()
    hoi[hand] = (220, 170, 140)
    sequence = f"ZY20210800001/H1/C2/N{index:02d}/S1/s01/T1"
    info = SampleInfo(
        key=f"{sequence.replace('/', '_')}_f{index:05d}",
        sequence=sequence,
        frame=index,
        category="Mug",
        instance=f"N{index:02d}",
        task="T1",
        event="Pickup",
        contact=True,
        layout=layout,
        layout_iou=1.0,
        hand_side="right",
        object_box=(size / 3, size / 3, 2 * size / 3, 2 * size / 3),
        crop=(100.0, 100.0, 100.0 + size, 100.0 + size),
        keypoints=None,
        blur=100.0,
        remover="none",
        sdedit_level=None,
    )
    return HOISample(info, hoi, obj, None, hand, square & ~hand)


def write_shards(
    folder: Path, counts: dict[str, int], size: int = 64, per_shard: int = 10, categories: Sequence[str] = ("Mug",)
) -> Path:
    """Write splits of the given sizes, with a manifest, as the builder does; categories take turns."""
    folder.mkdir(parents=True)
    shards, index = [], 0
    for split, count in counts.items():
        for number, start in enumerate(range(0, count, per_shard)):
            path = folder / f"{split}-{number:06d}.tar"
            here = min(per_shard, count - start)
            with wds.TarWriter(str(path), encoder=False, mtime=0) as tar:
                for _ in range(here):
                    drawn = sample(index, size)
                    info = replace(drawn.info, category=categories[index % len(categories)])
                    tar.write(encode(replace(drawn, info=info)))
                    index += 1
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            shards.append({"name": path.name, "split": split, "count": here, "bytes": len(data), "sha256": digest})
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "size": size, "shards": shards}))
    return folder


def save_sd_folder(folder: Path) -> Path:
    """Save a Stable Diffusion 1.5 inpainting folder of the right shape with small random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    UNet2DConditionModel(
        sample_size=8,
        in_channels=9,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(folder / "vae")
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    ).save_pretrained(folder / "scheduler")
    return folder


def batch_of_hands(count: int = 4) -> dict:
    """Of drawn samples, as tasks get it."""
    samples = [sample(i) for i in range(count)]

    def pictures(name: str) -> torch.Tensor:
        stacked = torch.stack([torch.from_numpy(getattr(s, name)) for s in samples])
        return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1 if stacked.ndim == 4 else stacked[:, None].float()

    return {
        "key": [s.info.key for s in samples],
        "layout": torch.stack([s.info.layout.to_tensor() for s in samples]),
        **{name: pictures(name) for name in ("obj", "hoi", "hand", "object")},
    }
