"""Local HO3Pairs shards as a sequence of samples with random access."""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from hoi_lightning.data.sample import MEMBERS, Field, HOISample, SampleInfo, decode, decode_info
from hoi_lightning.errors import InputError

Split = Literal["train", "val", "test"]

# a member is KEY.EXTENSION with an extension of the closed table, in no folder
_MEMBER = re.compile(r"([^/.]+)\.(" + "|".join(map(re.escape, [*MEMBERS.values(), "json"])) + ")")

_Members = dict[str, tuple[int, int]]  # extension → offset and size in the tar


class ShardIndex:
    """Random access to one split of an HO3Pairs folder: member offsets are read once, bytes on demand.

    Args:
        root: folder with `manifest.json` and `<split>-*.tar`.
        split: which shards.

    Attributes:
        keys: of the samples, in order.
        manifest_hash: sha256 of `manifest.json`.
        latents_vae: what the manifest says of the autoencoder behind the cached latents (`id`, `revision`, `sha256`,
            `scaling_factor`, …), or None.

    Raises:
        InputError: the folder holds no shards of the split, a shard is damaged, holds a member outside the closed
            table, or disagrees with the manifest.
    """

    def __init__(self, root: Path | str, split: Split) -> None:
        self.root, self.split = Path(root), split
        manifest = self.root / "manifest.json"
        if not manifest.is_file():
            raise InputError(
                f"{self.root}: no HO3Pairs shards there (manifest.json is missing); "
                "make them with `make shards HOI4D=/data/HOI4D OUT=/data/ho3pairs` and pass --data.shards"
            )
        text = manifest.read_bytes()
        self.manifest_hash = hashlib.sha256(text).hexdigest()
        try:
            record = json.loads(text)
            shards = [shard for shard in record["shards"] if shard["split"] == split]
            latents = record.get("latents", {"vae": None, "shards": []})
            self.latents_vae: dict[str, Any] | None = latents["vae"]
            # those of a shard that has been rebuilt since are none
            hashes = {f"latents-{shard['name']}": shard.get("sha256") for shard in shards}
            self._latents_shards: dict[str, int] = {
                entry["name"]: entry["count"] for entry in latents["shards"] if entry["of"] == hashes.get(entry["name"])
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{manifest}: not an HO3Pairs manifest ({error!r}); rebuild with `make shards`") from None
        if not shards:
            raise InputError(
                f"{self.root}: the manifest lists no {split} shard; build with more instances or another split"
            )
        self._files: dict[str, int] = {}
        self._members: list[tuple[Path, _Members]] = []
        self._latents: list[tuple[Path, _Members]] = []
        self.keys: list[str] = []
        for shard in shards:
            path = self.root / shard["name"]
            samples = _open(path, shard["count"])
            self.keys += samples
            self._members += [(path, members) for members in samples.values()]

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}  # file descriptors stay in the process that opened them

    def info(self, index: int) -> SampleInfo:
        """JSON record of one sample."""
        return decode_info(self._read(self._members[index], ["json"]))

    def sample(self, index: int, fields: Collection[Field]) -> HOISample:
        """One sample with the pictures in `fields` decoded."""
        names = [*(MEMBERS[field] for field in fields), "json"]
        return decode(self._read(self._members[index], names), fields)

    def open_latents(self) -> None:
        """Find the cached latents of all samples; `latents` does so itself when it is first called.

        Raises:
            InputError: there are none, or not those of every sample.
        """
        if self._latents:
            return
        remedy = f"make them with `python -m data_prep latents {self.root} --vae DIR`"
        paths = dict.fromkeys(path for path, _ in self._members)
        missing = [path.name for path in paths if f"latents-{path.name}" not in self._latents_shards]
        if missing:
            which = "" if len(missing) == len(paths) else f" for {missing[0]}"
            raise InputError(f"{self.root}: no cached latents{which}; {remedy}")
        found: list[tuple[Path, _Members]] = []
        keys: list[str] = []
        for path in paths:
            beside = path.with_name(f"latents-{path.name}")
            samples = _open(beside, self._latents_shards[beside.name])
            keys += samples
            found += [(beside, members) for members in samples.values()]
        if keys != self.keys or not all(MEMBERS["latents"] in members for _, members in found):
            raise InputError(f"{self.root}: its latents are of other samples; {remedy} --overwrite")
        self._latents = found

    def latents(self, index: int) -> dict[str, Tensor]:
        """Cached latents of one sample: `hoi`, `obj` and, where it has one, `sdedit`; float16 (C, h, w).

        Raises:
            InputError: as `open_latents`.
        """
        from safetensors.torch import load

        self.open_latents()
        name = MEMBERS["latents"]
        return load(self._read(self._latents[index], [name])[name])

    def layouts(self, limit: int = 20_000) -> np.ndarray:
        """Layouts (N, 5) in the paper's order of up to `limit` samples, evenly spread over the split."""
        indices = np.linspace(0, len(self) - 1, min(len(self), limit)).astype(int)
        return np.stack([self.info(int(i)).layout.to_tensor().numpy() for i in indices])

    def _read(self, sample: tuple[Path, _Members], names: list[str]) -> dict[str, bytes]:
        path, members = sample
        file = self._files.get(path.name)
        if file is None:
            file = self._files[path.name] = os.open(path, os.O_RDONLY)
        return {
            name: os.pread(file, size, offset) for name in names if name in members for offset, size in [members[name]]
        }


def _open(path: Path, count: int) -> dict[str, _Members]:
    """Key → members of a tar, in its order."""
    samples: dict[str, _Members] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                if not match or not member.isfile():
                    raise InputError(f"{path}: member {member.name!r} is not part of an HO3Pairs sample; rebuild it")
                samples.setdefault(match[1], {})[match[2]] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path}: cannot be read as a shard ({error}); rebuild it with `make shards`") from None
    if len(samples) != count:
        raise InputError(f"{path}: holds {len(samples)} samples, manifest.json says {count}; rebuild it")
    return samples
