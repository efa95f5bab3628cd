"""Cache an autoencoder's latents of `hoi`, `obj` and `sdedit` in the training shards, as `KEY.latents.safetensors`.

FusionNet then trains without decoding or encoding a picture. The cache belongs to one autoencoder: its hash is in the
manifest, another one makes the cache anew.
"""

import argparse
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    from hoi_lightning.data.sample import Field

PICTURES: tuple["Field", ...] = ("hoi", "obj", "sdedit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--shards", type=Path, required=True, help="folder that `build` wrote")
    parser.add_argument("--vae", required=True, help="diffusers folder or hub id with an autoencoder in vae/")
    parser.add_argument("--batch-size", type=int, default=16, help="samples encoded at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")


def run(args: argparse.Namespace) -> None:
    """Encode shard by shard; finished shards are kept when stopped and run again.

    Raises:
        InputError: no shards or no autoencoder where the arguments say.
    """
    import torch
    from tqdm import tqdm

    path = args.shards / "manifest.json"
    if not path.is_file():
        raise InputError(
            f"--shards {args.shards}: no manifest.json there; make shards with `python -m data_prep build`"
        )
    manifest = json.loads(path.read_text())
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)
    vae, fingerprint = _open_vae(args.vae)
    vae.to(device, memory_format=torch.channels_last)
    shards = [s for s in manifest["shards"] if s["split"] == "train" and s.get("latents") != fingerprint]
    with tqdm(total=sum(s["count"] for s in shards), unit="sample", desc="latents") as bar:
        for shard in shards:
            _rewrite(args.shards / shard["name"], vae, args.batch_size, bar)
            data = (args.shards / shard["name"]).read_bytes()
            shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "latents": fingerprint}
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(manifest, indent=1))
            os.replace(fresh, path)


def _open_vae(folder: str) -> tuple[Any, str]:
    import diffusers

    config = Path(folder, "vae", "config.json")
    name = json.loads(config.read_text())["_class_name"] if config.is_file() else "AutoencoderKL"
    try:
        vae = getattr(diffusers, name).from_pretrained(folder, subfolder="vae").eval().requires_grad_(False)
    except (OSError, ValueError, AttributeError):
        raise InputError(f"--vae {folder}: neither a local diffusers folder with vae/ nor downloadable") from None
    digest = hashlib.sha256()
    for key, value in sorted(vae.state_dict().items()):
        digest.update(key.encode() + value.numpy().tobytes())
    return vae, digest.hexdigest()


def _rewrite(path: Path, vae: Any, batch_size: int, bar: Any) -> None:
    import webdataset

    from hoi_lightning.data.sample import MEMBERS

    fresh = path.with_suffix(".new")
    with webdataset.TarWriter(str(fresh), mtime=0) as writer:
        stream = _records(path)
        while records := list(islice(stream, batch_size)):
            for record, latents in zip(records, _encode(vae, records), strict=True):
                writer.write(record | {MEMBERS["latents"]: latents})
            bar.update(len(records))
    os.replace(fresh, path)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    record: dict[str, Any] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if record and record["__key__"] != key:
                yield record
                record = {}
            file = tar.extractfile(member)
            assert file is not None
            record |= {"__key__": key, extension: file.read()}
    if record:
        yield record


def _encode(vae: Any, records: list[dict[str, Any]]) -> list[bytes]:
    import torch
    from safetensors.torch import save

    from hoi_lightning.data.sample import decode

    samples = [decode(record, PICTURES) for record in records]
    latents: list[dict[str, torch.Tensor]] = [{} for _ in samples]
    for name in PICTURES:
        pictures = [getattr(sample, name) for sample in samples]
        if any(picture is None for picture in pictures):
            continue
        x = torch.stack([torch.from_numpy(picture) for picture in pictures]).permute(0, 3, 1, 2)
        with torch.no_grad():
            code = vae.encode(x.to(vae.device).float() / 127.5 - 1)
            z = code.latent_dist.mode() if hasattr(code, "latent_dist") else code.latents
            z = (z - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor
        for entry, row in zip(latents, z.half().cpu(), strict=True):
            entry[name] = row.contiguous()
    return [save(entry) for entry in latents]
