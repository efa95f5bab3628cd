"""Cache an autoencoder's latents of `hoi`, `obj` and `sdedit` in additional shards, `latents-train-000000.tar` and on.

One lies beside each training shard, with the same keys in the same order; the shards themselves stay as they are.
FusionNet then trains without decoding or encoding a picture. A folder holds one autoencoder's latents, never two's.
"""

import argparse
import hashlib
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    from hoi_lightning.data.sample import Field

PICTURES: tuple["Field", ...] = ("hoi", "obj", "sdedit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("out", nargs="?", type=Path, metavar="OUT", help="folder that `build` wrote")
    where.add_argument("--shards", type=Path, metavar="OUT", help="the same")
    parser.add_argument("--vae", required=True, help="diffusers folder or hub id with an autoencoder in vae/")
    parser.add_argument("--revision", help="branch, tag or commit of the hub id")
    parser.add_argument("--batch-size", type=int, default=16, help="samples encoded at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--overwrite", action="store_true", help="give up the latents of another autoencoder")


@dataclass(frozen=True)
class _Encoder:
    """A frozen autoencoder and what the manifest says of it."""

    vae: Any
    facts: dict[str, Any]


def run(args: argparse.Namespace) -> None:
    """Encode shard by shard; finished ones are kept when stopped and run again.

    Raises:
        InputError: no shards or no autoencoder where the arguments say, or the folder holds another one's latents.
    """
    import torch
    from tqdm import tqdm

    from data_prep.output import named_errors
    from data_prep.read_shards import read_manifest
    from data_prep.shards import shard_record

    folder, flag = (args.shards, "--shards") if args.shards else (args.out, "OUT")
    manifest = read_manifest(folder, flag)
    if args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}: give a number of samples, 1 or more")
    device = _device(args.device)
    encoder = _open_vae(args.vae, args.revision)
    encoder.vae.to(device, memory_format=torch.channels_last)
    done = _kept(folder, manifest, encoder.facts, args.overwrite)
    shards = [shard for shard in manifest["shards"] if shard["split"] == "train"]
    entries = [done[shard["name"]] for shard in shards if shard["name"] in done]
    manifest["latents"] = {"vae": encoder.facts, "shards": entries}
    todo = [shard for shard in shards if shard["name"] not in done]
    total = sum(shard["count"] for shard in todo)
    with named_errors(folder), tqdm(total=total, unit="sample", desc="latents", disable=not todo) as bar:
        if todo:
            # Before any tar is written: one that belongs to nothing is better than one that belongs to another VAE.
            _write_manifest(folder, manifest)
        for shard in todo:
            path = folder / f"latents-{shard['name']}"
            try:
                _write(folder / shard["name"], path, encoder.vae, args.batch_size, bar)
            except torch.OutOfMemoryError:
                raise InputError(
                    f"--batch-size {args.batch_size}: the GPU's memory does not hold it; give a smaller one, or "
                    "--device cpu; what is finished is kept"
                ) from None
            entry = shard_record(path, shard["split"], shard["count"]) | {"of": shard["sha256"]}
            entries.append(entry)
            entries.sort(key=lambda entry: entry["name"])
            _write_manifest(folder, manifest)
    print(f"{folder}: latents of {sum(entry['count'] for entry in entries)} samples by {encoder.facts['id']}")


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(f"--device {name}: not usable here ({reason}); give cpu") from None
    return device


def _open_vae(name: str, revision: str | None) -> _Encoder:
    """Open the autoencoder of a folder or hub id, float32, with its id, revision (of a hub id), hash and scaling."""
    import diffusers
    from safetensors import SafetensorError

    try:
        # Any model class reads any model's config.
        config, commit = diffusers.AutoencoderKL.load_config(
            name, subfolder="vae", revision=revision, return_commit_hash=True
        )
        kind = getattr(diffusers, config["_class_name"])
        vae = kind.from_pretrained(name, subfolder="vae", revision=revision).eval().requires_grad_(False)
    except (OSError, ValueError, AttributeError, KeyError, SafetensorError) as error:
        at = f" at {revision}" if revision else ""
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        what = "its vae/ does not open" if Path(name, "vae").is_dir() else "no local diffusers folder, nor downloadable"
        raise InputError(f"--vae {name}{at}: {what} ({reason})") from None
    digest = hashlib.sha256()
    for key, value in sorted(vae.state_dict().items()):
        digest.update(key.encode() + value.numpy().tobytes())
    facts = {
        "id": name,
        "revision": commit,
        "sha256": digest.hexdigest(),
        "class": config["_class_name"],
        "scaling_factor": vae.config.scaling_factor,
        "shift_factor": _shift(vae),
        "dtype": "float16",
    }
    return _Encoder(vae, facts)


def _kept(folder: Path, manifest: dict[str, Any], facts: dict[str, Any], overwrite: bool) -> dict[str, dict[str, Any]]:
    """Entries of the latents that need not be made again, by the name of the shard they belong to."""
    known = manifest.get("latents", {"vae": facts, "shards": []})
    if known["vae"]["sha256"] != facts["sha256"]:
        if overwrite:
            return {}
        raise InputError(
            f"--vae {facts['id']}: {folder} holds latents of {known['vae']['id']}, whose weights differ; "
            "pass --overwrite to make them anew"
        )
    hashes = {shard["name"]: shard["sha256"] for shard in manifest["shards"]}
    entries = {entry["name"].removeprefix("latents-"): entry for entry in known["shards"]}
    return {
        name: entry
        for name, entry in entries.items()
        if entry["of"] == hashes.get(name) and (folder / entry["name"]).is_file()
    }


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    from data_prep.output import write_text

    write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _write(shard: Path, path: Path, vae: Any, batch_size: int, bar: Any) -> None:
    import webdataset as wds

    from data_prep.output import Replacing
    from data_prep.read_shards import iter_records
    from hoi_lightning.data.sample import MEMBERS

    records = iter_records(shard, [*MEMBERS.values(), "json"])
    with Replacing(path) as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
        while batch := [(record.key, record.read_all()) for record in islice(records, batch_size)]:
            encoded = _encode(vae, [members for _, members in batch])
            for (key, _), latents in zip(batch, encoded, strict=True):
                tar.write({"__key__": key, MEMBERS["latents"]: latents})
            bar.update(len(batch))


def _encode(vae: Any, records: list[dict[str, bytes]]) -> list[bytes]:
    """Latents of some samples, a safetensors file each: one tensor (C, h, w) per picture that the sample has."""
    import torch
    from safetensors.torch import save

    from hoi_lightning.data.sample import decode

    samples = [decode(record, PICTURES) for record in records]
    latents: list[dict[str, torch.Tensor]] = [{} for _ in samples]
    for name in PICTURES:
        pictures = {i: getattr(sample, name) for i, sample in enumerate(samples)}
        pictures = {i: torch.from_numpy(picture) for i, picture in pictures.items() if picture is not None}
        if not pictures:
            continue
        x = torch.stack(list(pictures.values())).permute(0, 3, 1, 2)
        with torch.no_grad():
            code = vae.encode(x.to(vae.device).float() / 127.5 - 1)
            z = code.latent_dist.mode() if hasattr(code, "latent_dist") else code.latents
            z = (z - _shift(vae)) * vae.config.scaling_factor
        for i, row in zip(pictures, z.half().cpu(), strict=True):
            latents[i][name] = row.contiguous()
    return [save(entry) for entry in latents]


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0
