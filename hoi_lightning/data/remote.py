"""Shards behind a URL: fetched one by one, checked against the manifest, and kept on this machine.

What is fetched is read as local shards are: the same closed table, the same samples. An epoch is every sample once here
too, and a run goes on exactly; only the order is less free: a group of `GROUP` tars is read at a time, in the samples'
random order, while the next group is fetched. `make shards` shuffles samples over tars, so that mixes as well.
"""

import bisect
import fcntl
import functools
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from hoi_lightning.data.index import tabulate
from hoi_lightning.data.manifest import Split, parse_manifest
from hoi_lightning.data.order import Order, Permutation
from hoi_lightning.data.reader import REMEDY, OnError, ShardIndex, Shards
from hoi_lightning.data.shard import IMAGE_MEMBERS, LATENTS_MEMBERS, scan
from hoi_lightning.errors import InputError

SCHEMES = ("https", "http", "s3", "gs", "gcs", "az", "abfs", "hf", "file", "memory")
GROUP = 4  # tars that are mixed
TRIES = 3
_OPEN_TARS = 6 * GROUP  # a few groups' pictures and latents; what is open stays readable when it is thrown out


def open_shards(where: str | Path, split: Split, on_error: OnError, cache_dir: Path, cache_gb: float) -> Shards:
    """Open one split of a folder or a URL.

    Raises:
        InputError: there are no shards, or they cannot be trusted.
    """
    if "://" in str(where):
        return RemoteShards(str(where), split, on_error, cache_dir, cache_gb)
    return ShardIndex(where, split, on_error)


class RemoteShards(Shards):
    """Shards of a URL that fsspec opens; its directory holds `manifest.json` and the tars.

    Args:
        root: URL of the directory.
        split: which shards.
        on_error: `raise`, or leave damaged samples out.
        cache_dir: where fetched tars are kept, each named by its sha256.
        cache_gb: room for them, one or two that are just being fetched apart; the one that was not used for longest
            goes first. Two groups must fit in.

    Raises:
        InputError: the URL cannot be read, or its manifest lists no shard of the split.
    """

    def __init__(self, root: str, split: Split, on_error: OnError, cache_dir: Path, cache_gb: float) -> None:
        super().__init__()
        self.root, self.split = root.rstrip("/"), split
        self._on_error, self._cache, self._room = on_error, cache_dir, cache_gb * 1e9
        self._files, self._path = _open_url(self.root)
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            text = self._files.cat_file(f"{self._path}/manifest.json")
        except Exception as error:  # each protocol has its own
            raise InputError(
                f"{root}: manifest.json cannot be read ({error!r:.200}); is that the URL of the shards' directory?"
            ) from None
        self.manifest = parse_manifest(text, f"{root}/manifest.json")
        self._entries = self.manifest.of(split, root)
        self._starts = [0, *accumulate(entry["count"] for entry in self._entries)]
        self._locks = [Lock() for _ in self._entries]
        self._failed: dict[tuple[int, bool], str] = {}
        self._open = functools.lru_cache(_OPEN_TARS)(self._fetch_and_scan)
        self._open_file = functools.lru_cache(2 * _OPEN_TARS)(self._open_file.__wrapped__)
        self._ahead = ThreadPoolExecutor(1, "fetch")

    def __len__(self) -> int:
        return self._starts[-1]

    def tar(self, index: int) -> str:
        """Name of the tar that a sample is in."""
        return self._entries[self._shard(index)]["name"]

    def find(self, index: int) -> tuple[Path, Any, str]:
        """Tar, index record and category of a sample; the tar is fetched if it is not here."""
        shard = self._shard(index)
        path, records, rows, categories = self._opened(shard, latents=False)
        record = records[_row(rows, index - self._starts[shard])]
        return path, record, categories[record["category"]]

    def find_latents(self, index: int) -> tuple[Path, Any]:
        """Tar and index record of a sample's latents; the tar is fetched if it is not here."""
        key = self.find(index)[1]["key"]
        path, records, _, _ = self._opened(self._shard(index), latents=True)
        found = np.flatnonzero(records["key"] == key)
        if not len(found):
            raise ValueError("its latents are missing")
        return path, records[found[0]]

    def open_latents(self) -> None:
        """Look whether the manifest lists latents of all shards.

        Raises:
            InputError: it does not.
        """
        missing = [entry for entry in self._entries if f"latents-{entry['name']}" not in self.manifest.latents]
        if missing:
            raise InputError(f"{self.root}: no cached latents for {missing[0]['name']}; make them where the shards are")

    def layouts(self, limit: int = 20_000) -> np.ndarray:
        """Layouts float32 (N, 5) in the paper's order of the first `GROUP` tars' samples, at most `limit`."""
        tables = [self._opened(shard, latents=False)[1]["layout"] for shard in range(min(GROUP, len(self._entries)))]
        return np.concatenate(tables)[:limit]

    def order(self, seed: int, epoch: int) -> Order:
        """Training order of one epoch: tars in random groups, the samples of a group in random order."""
        return _GroupedOrder(self, seed, epoch)

    def fetch_ahead(self, shards: list[int]) -> None:
        """Fetch tars behind the reader's back; what goes wrong is found when they are read."""
        for shard in shards:
            self._ahead.submit(self._try_to_open, shard)

    def _try_to_open(self, shard: int) -> None:
        with suppress(ValueError, OSError, InputError):
            self._opened(shard, latents=False)

    def _shard(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1

    def _opened(self, shard: int, latents: bool) -> tuple[Path, np.ndarray, np.ndarray, tuple[str, ...]]:
        with self._locks[shard]:
            if (shard, latents) in self._failed:
                raise ValueError(self._failed[shard, latents])
            try:
                return self._open(shard, latents)
            except ValueError as error:
                self._failed[shard, latents] = str(error)  # not tried again for each of its samples
                raise

    def _fetch_and_scan(self, shard: int, latents: bool) -> tuple[Path, np.ndarray, np.ndarray, tuple[str, ...]]:
        entry, wanted = self._entries[shard], IMAGE_MEMBERS
        if latents:
            entry, wanted = self.manifest.latents[f"latents-{entry['name']}"], LATENTS_MEMBERS
        path = self._cache / f"{entry['sha256']}.tar"
        with _locked(path):
            fetched = not path.exists()
            if fetched:
                self._download(entry, path)
            os.utime(path)
            found, faults = scan(path, entry, wanted)
            if faults and not fetched:  # a machine that went down may have left less of it than was written
                path.unlink()
                self._download(entry, path)
                found, faults = scan(path, entry, wanted)
            self._open_file(path)  # it may be thrown out while it is read
        if fetched:
            self._make_room()
        if faults and self._on_error == "raise":
            raise InputError(f"{self.root}/{entry['name']}{str(faults[0]).removeprefix(path.name)}; {REMEDY}")
        categories: dict[str, int] = {}
        records = tabulate(found, shard, wanted, categories)
        return path, records, np.array([sample.row for sample in found]), tuple(categories)

    def _download(self, entry: dict[str, Any], path: Path) -> None:
        for trial in range(TRIES):
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
            try:
                # not open(): of a server without ranges that reads small files only
                self._files.get_file(f"{self._path}/{entry['name']}", str(temporary))
                with temporary.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                        raise ValueError("its sha256 is not the manifest's")
                os.replace(temporary, path)
                return
            except Exception as error:  # each protocol has its own
                if trial < TRIES - 1 and not isinstance(error, FileNotFoundError):
                    time.sleep(2**trial)
                    continue
                if self._on_error == "raise":
                    raise InputError(
                        f"{self.root}/{entry['name']}: cannot be fetched ({error!r:.200}); {REMEDY}"
                    ) from None
                raise ValueError(f"cannot be fetched ({error!r:.200})") from None
            finally:
                temporary.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Throw out tars that were not used for longest; who reads one still has it open."""
        with _locked(self._cache / "room"):
            tars = sorted(self._cache.glob("*.tar"), key=lambda path: path.stat().st_mtime)
            taken = sum(path.stat().st_size for path in tars)
            for path in tars:
                if taken <= self._room:
                    return
                # one that is locked was just fetched; who did that makes room after this
                with suppress(BlockingIOError), _locked(path, fcntl.LOCK_NB):
                    taken -= path.stat().st_size
                    path.unlink()


class _GroupedOrder:
    """Order of one epoch in which a group of tars is read at a time."""

    def __init__(self, shards: RemoteShards, seed: int, epoch: int) -> None:
        self.shards, self.seed, self.epoch = shards, seed, epoch
        order = Permutation(len(shards._entries), seed, epoch)
        tars = [order[k] for k in range(len(order))]
        self.groups = [tars[k : k + GROUP] for k in range(0, len(tars), GROUP)]
        self.members = [
            np.concatenate([np.arange(shards._starts[tar], shards._starts[tar + 1]) for tar in group])
            for group in self.groups
        ]
        self.starts = np.array([0, *accumulate(len(members) for members in self.members)])
        self._fetching = -1

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Samples at positions (M,), int64."""
        group_of = np.searchsorted(self.starts, positions, side="right") - 1
        indices = np.empty(len(positions), np.int64)
        for group in np.unique(group_of):
            members, here = self.members[group], group_of == group
            # a group's own stream of permutations: groups of one epoch must not share one
            order = Permutation(len(members), self.seed + 1 + int(group), self.epoch)
            indices[here] = members[order.take(positions[here] - self.starts[group])]
        latest = int(group_of.max(initial=0))
        if latest > self._fetching:
            self._fetching = latest
            self.shards.fetch_ahead([tar for group in self.groups[latest : latest + 2] for tar in group])
        return indices


def _open_url(url: str) -> tuple[Any, str]:
    import fsspec

    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or "::" in url:
        raise InputError(f"--data.shards {url}: give a folder or a URL of one of {', '.join(SCHEMES)}")
    try:
        files, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"--data.shards {url}: {error}") from None
    return files, path.rstrip("/")


def _row(rows: np.ndarray, row: int) -> int:
    place = int(np.searchsorted(rows, row))
    if place == len(rows) or rows[place] != row:
        raise ValueError("is damaged")
    return place


@contextmanager
def _locked(path: Path, flag: int = 0) -> Iterator[None]:
    """Let one thread of one process of this machine at a time fetch, open or throw out a tar."""
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | flag)
        yield
