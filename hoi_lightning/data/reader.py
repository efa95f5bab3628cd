"""Local HO3Pairs shards as a sequence of samples with random access."""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from hoi_lightning.data.sample import MEMBERS, Field, HOISample, SampleInfo, decode, decode_info
from hoi_lightning.errors import InputError

Split = Literal["train", "val", "test"]

# a member is KEY.EXTENSION with an extension of the closed table, in no folder
_MEMBER = re.compile(r"([^/.]+)\.(" + "|".join(map(re.escape, [*MEMBERS.values(), "json"])) + ")")


class ShardIndex:
    """Random access to one split of an HO3Pairs folder: member offsets are read once, bytes on demand.

    Args:
        root: folder with `manifest.json` and `<split>-*.tar`.
        split: which shards.

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
            shards = [shard for shard in json.loads(text)["shards"] if shard["split"] == split]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{manifest}: not an HO3Pairs manifest ({error!r}); rebuild with `make shards`") from None
        if not shards:
            raise InputError(
                f"{self.root}: the manifest lists no {split} shard; build with more instances or another split"
            )
        self._files: dict[str, int] = {}
        self._members: list[tuple[Path, dict[str, tuple[int, int]]]] = []
        self.keys: list[str] = []
        for shard in shards:
            self._add(self.root / shard["name"], shard["count"])

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}  # file descriptors stay in the process that opened them

    def info(self, index: int) -> SampleInfo:
        """JSON record of one sample."""
        return decode_info(self._read(index, ["json"]))

    def sample(self, index: int, fields: Collection[Field]) -> HOISample:
        """One sample with the pictures in `fields` decoded."""
        return decode(self._read(index, [*(MEMBERS[field] for field in fields), "json"]), fields)

    def latents(self, index: int) -> dict[str, Tensor]:
        """Cached latents of one sample: `hoi` and `obj`, float16 (4, h, w).

        Raises:
            InputError: the shards hold none.
        """
        from safetensors.torch import load

        data = self._read(index, [MEMBERS["latents"]])
        if not data:
            raise InputError(f"{self.root}: no cached latents; make them with `python -m data_prep latents`")
        return load(data[MEMBERS["latents"]])

    def layouts(self, limit: int = 20_000) -> np.ndarray:
        """Layouts (N, 5) in the paper's order of up to `limit` samples, evenly spread over the split."""
        indices = np.linspace(0, len(self) - 1, min(len(self), limit)).astype(int)
        return np.stack([self.info(int(i)).layout.to_tensor().numpy() for i in indices])

    def _add(self, path: Path, count: int) -> None:
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    match = _MEMBER.fullmatch(member.name)
                    if not match or not member.isfile():
                        raise InputError(
                            f"{path}: member {member.name!r} is not part of an HO3Pairs sample; rebuild it"
                        )
                    samples.setdefault(match[1], {})[match[2]] = (member.offset_data, member.size)
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"{path}: cannot be read as a shard ({error}); rebuild it with `make shards`") from None
        if len(samples) != count:
            raise InputError(f"{path}: holds {len(samples)} samples, manifest.json says {count}; rebuild it")
        self.keys += samples
        self._members += [(path, members) for members in samples.values()]

    def _read(self, index: int, names: list[str]) -> dict[str, bytes]:
        path, members = self._members[index]
        file = self._files.get(path.name)
        if file is None:
            file = self._files[path.name] = os.open(path, os.O_RDONLY)
        return {
            name: os.pread(file, size, offset) for name in names if name in members for offset, size in [members[name]]
        }
