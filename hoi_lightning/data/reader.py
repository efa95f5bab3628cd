"""HO3Pairs shards as a sequence of samples with random access."""

import functools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from hoi_lightning.data.index import Index, open_index
from hoi_lightning.data.manifest import Manifest, Split, parse_manifest
from hoi_lightning.data.order import Order, Permutation
from hoi_lightning.data.sample import MEMBERS, Field, HOISample, SampleInfo, decode, decode_info
from hoi_lightning.data.shard import BLOCK, IMAGE_MEMBERS, LATENTS_MEMBERS, Fault
from hoi_lightning.errors import InputError

OnError = Literal["raise", "skip"]
REMEDY = "copy the shard again, rebuild it with `make shards`, or leave damaged samples out with --data.on_error skip"

_MAX_OPEN = 256  # files; a process may have 1024 in many places


class Shards:
    """Random access to one split of HO3Pairs; subclasses say where a sample lies.

    Attributes:
        root: folder or URL, for messages.
        split: which shards.
        manifest: of the folder.
        faults: what is damaged as far as it is known; with `on_error: skip` its samples are left out.
    """

    root: str
    split: Split
    manifest: Manifest
    faults: tuple[Fault, ...] = ()

    def __init__(self) -> None:
        self._open_file = functools.lru_cache(_MAX_OPEN)(_File)

    @property
    def manifest_hash(self) -> str:
        """Sha256 of `manifest.json`."""
        return self.manifest.sha256

    @property
    def latents_vae(self) -> dict[str, Any] | None:
        """What the manifest says of the autoencoder behind the cached latents, or None."""
        return self.manifest.latents_vae

    def __len__(self) -> int:
        raise NotImplementedError

    def tar(self, index: int) -> str:
        """Name of the tar that a sample is in."""
        raise NotImplementedError

    def find(self, index: int) -> tuple[Path, Any, str]:
        """Tar, index record and category of a sample.

        Raises:
            ValueError: it is damaged.
        """
        raise NotImplementedError

    def find_latents(self, index: int) -> tuple[Path, Any]:
        """Tar and index record of a sample's latents.

        Raises:
            ValueError: they are damaged.
        """
        raise NotImplementedError

    def open_latents(self) -> None:
        """Find the cached latents of all samples.

        Raises:
            InputError: there are none, or not those of every sample.
        """
        raise NotImplementedError

    def layouts(self, limit: int = 20_000) -> np.ndarray:
        """Layouts float32 (N, 5) in the paper's order of up to `limit` samples, evenly spread."""
        raise NotImplementedError

    def order(self, seed: int, epoch: int) -> Order:
        """Training order of one epoch."""
        raise NotImplementedError

    def require(self, names: Collection[str]) -> None:
        """Look whether every sample has these members, as far as that is known without reading it.

        Raises:
            InputError: one lacks one.
        """

    def key(self, index: int) -> str:
        """Key of one sample."""
        return self.find(index)[1]["key"].decode()

    def read(self, index: int, names: Sequence[str]) -> dict[str, memoryview]:
        """Members of one sample by extension; those it lacks are left out.

        Raises:
            ValueError: the tar is shorter than it was.
        """
        path, record, _ = self.find(index)
        return self.members(path, record, IMAGE_MEMBERS, names, Space())

    def members(
        self, path: Path, record: Any, columns: Sequence[str], names: Sequence[str], space: "Space"
    ) -> dict[str, memoryview]:
        """Members of a sample that was found, as views into `space`.

        Args:
            path: of its tar.
            record: of the index.
            columns: extensions that the index lists.
            names: those that are wanted.
            space: to read into; the views hold until it is used again.

        Raises:
            ValueError: the tar is shorter than it was.
        """
        blocks, sizes = record["block"].tolist(), record["size"].tolist()
        there = [
            (blocks[i], sizes[i], name) for i, name in zip(map(columns.index, names), names, strict=True) if sizes[i]
        ]
        if not there:
            return {}
        low, (block, size, _) = min(there)[0] * BLOCK, max(there)  # a sample's members are neighbours: one read
        high = block * BLOCK + size
        view = space.view(high - low)
        file = self._open_file(path)
        if os.preadv(file.descriptor, [view], low) != len(view):
            raise ValueError("the tar is shorter than it was")
        return {name: view[block * BLOCK - low : block * BLOCK - low + size] for block, size, name in there}

    def read_latents(self, index: int, space: "Space") -> memoryview:
        """The safetensors file of one sample's cached latents; `space` as in `members`."""
        path, record = self.find_latents(index)
        return self.members(path, record, LATENTS_MEMBERS, LATENTS_MEMBERS, space)[LATENTS_MEMBERS[0]]

    def info(self, index: int) -> SampleInfo:
        """JSON record of one sample."""
        return decode_info({"json": bytes(self.read(index, ["json"])["json"])})

    def sample(self, index: int, fields: Collection[Field]) -> HOISample:
        """One sample with the pictures in `fields` decoded.

        Raises:
            InputError: it lacks one of them, or one is damaged.
        """
        members = self.read(index, [*(MEMBERS[field] for field in fields), "json"])
        return decode({name: bytes(data) for name, data in members.items()}, fields)

    def latents(self, index: int) -> dict[str, Tensor]:
        """Cached latents of one sample: `hoi`, `obj` and, where it has one, `sdedit`; float16 (C, h, w).

        Raises:
            InputError: as `open_latents`, or they cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        self.open_latents()
        try:
            return load(bytes(self.read_latents(index, Space())))
        except (SafetensorError, ValueError) as error:
            raise InputError(
                f"{self.root}: latents of sample {self.key(index)} cannot be read ({error}); make them anew with "
                "`python -m data_prep latents --overwrite`"
            ) from None


class ShardIndex(Shards):
    """A folder on this machine: member offsets are in an index, bytes are read on demand.

    Args:
        root: folder with `manifest.json` and `<split>-*.tar`.
        split: which shards.
        on_error: `raise`, or leave damaged samples out.

    Raises:
        InputError: the folder holds no shards of the split, a shard holds what no HO3Pairs shard may hold, or something
            is damaged and `on_error` is `raise`.
    """

    def __init__(self, root: Path | str, split: Split, on_error: OnError = "raise") -> None:
        super().__init__()
        self.root, self.split, self._folder, self._on_error = str(root), split, Path(root), on_error
        manifest = self._folder / "manifest.json"
        try:
            text = manifest.read_bytes()
        except OSError:
            raise InputError(
                f"{root}: no HO3Pairs shards there (manifest.json is missing); "
                "make them with `make shards HOI4D=/data/HOI4D OUT=/data/ho3pairs` and pass --data.shards"
            ) from None
        self.manifest = parse_manifest(text, str(manifest))
        self._entries = self.manifest.of(split, str(manifest))
        self._index = self._open(split, self._entries, IMAGE_MEMBERS)
        self.faults = self._index.faults
        self._records = self._index.records.view(np.ndarray)  # a memmap's own indexing is ten times slower
        self._paths = [self._folder / entry["name"] for entry in self._entries]
        self._latents: tuple[np.ndarray, np.ndarray] | None = None  # records, and the row of each sample

    def __len__(self) -> int:
        return len(self._records)

    @functools.cached_property
    def keys(self) -> list[str]:
        """Keys of all samples, in order."""
        return [key.decode() for key in self._records["key"].tolist()]

    def tar(self, index: int) -> str:
        """Name of the tar that a sample is in."""
        return self._paths[self._records[index]["shard"]].name

    def find(self, index: int) -> tuple[Path, Any, str]:
        """Tar, index record and category of a sample."""
        record = self._records[index]
        return self._paths[record["shard"]], record, self._index.categories[record["category"]]

    def find_latents(self, index: int) -> tuple[Path, Any]:
        """Tar and index record of a sample's latents.

        Raises:
            ValueError: they are damaged.
        """
        assert self._latents is not None
        records, rows = self._latents
        if rows[index] < 0:
            raise ValueError("its latents are damaged")
        record = records[rows[index]]
        path = self._paths[record["shard"]]
        return path.with_name(f"latents-{path.name}"), record

    def require(self, names: Collection[str]) -> None:
        """Look whether every sample has these members; with `on_error: skip` reading finds those that do not.

        Raises:
            InputError: one lacks one.
        """
        if self._on_error == "skip":
            return
        for name in names:
            absent = np.flatnonzero(self._records["size"][:, IMAGE_MEMBERS.index(name)] == 0)
            if len(absent):
                path = self.find(int(absent[0]))[0]
                raise InputError(f"{path}, sample {self.key(int(absent[0]))}: member {name} is missing; {REMEDY}")

    def open_latents(self) -> None:
        """Find the cached latents of all samples; `latents` does so itself when it is first called.

        Raises:
            InputError: there are none, or not those of every sample.
        """
        if self._latents is not None:
            return
        remedy = f"make them with `python -m data_prep latents {self.root} --vae DIR`"
        missing = [entry for entry in self._entries if f"latents-{entry['name']}" not in self.manifest.latents]
        if missing:
            which = "" if len(missing) == len(self._entries) else f" for {missing[0]['name']}"
            raise InputError(f"{self.root}: no cached latents{which}; {remedy}")
        entries = [self.manifest.latents[f"latents-{entry['name']}"] for entry in self._entries]
        index = self._open(f"latents-{self.split}", entries, LATENTS_MEMBERS)
        records, keys = index.records.view(np.ndarray), self._records["key"]
        rows = np.arange(len(keys))
        if self.faults or index.faults:  # some are left out
            row_of = {key: row for row, key in enumerate(records["key"].tolist())}
            rows = np.array([row_of.get(key, -1) for key in keys.tolist()], np.int64)
        elif len(records) != len(keys) or (records["key"] != keys).any():
            raise InputError(f"{self.root}: its latents are of other samples; {remedy} --overwrite")
        self._latents = records, rows

    def layouts(self, limit: int = 20_000) -> np.ndarray:
        """Layouts float32 (N, 5) in the paper's order of up to `limit` samples, evenly spread over the split."""
        return self._records["layout"][np.linspace(0, len(self) - 1, min(len(self), limit)).astype(int)]

    def order(self, seed: int, epoch: int) -> Order:
        """Training order of one epoch: any sample may come at any position."""
        return Permutation(len(self), seed, epoch)

    def _open(self, name: str, entries: Sequence[dict[str, Any]], wanted: Sequence[str]) -> Index:
        index = open_index(self._folder, name, entries, wanted)
        if index.faults and self._on_error == "raise":
            raise InputError(f"{self._folder / str(index.faults[0])}; {REMEDY}")
        return index


class Space:
    """Memory that is read into over and over: fresh memory for each sample costs page faults and cache lines."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def view(self, size: int) -> memoryview:
        """Its first `size` bytes."""
        if len(self._bytes) < size:
            self._bytes = bytearray(size)
        return memoryview(self._bytes)[:size]


class _File:
    """A file that stays open as long as somebody reads it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
