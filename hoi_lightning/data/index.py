"""The offset index of one split's tars: built once, kept in a file, and mapped into memory by every process.

The file is one line of JSON (which tars it is of, their sizes and times, what is damaged) and an array of records,
about 120 bytes a sample. It lies beside the tars as `.SPLIT.index`, or in the user's cache folder where nothing may be
written there, is replaced in one step, and is built anew when the manifest's list of tars, a tar or a bit of the file
itself has changed.
"""

import hashlib
import json
import os
import re
import uuid
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi_lightning.data.shard import BLOCK, MAX_BYTES, Fault, Found, scan
from hoi_lightning.errors import InputError

VERSION = 1
_KEY_BYTES = 100  # a ustar name has no more
_MAX_HEADER = 1 << 26
_FORBIDDEN = np.array([0 < byte < 128 and not re.match(r"[\w-]", chr(byte)) for byte in range(256)])  # in keys


@dataclass(frozen=True)
class Index:
    """The sound samples of some tars, in order.

    Attributes:
        records: structured array: `shard` (number of the tar), `block` (members' offsets in tar blocks), `size` (0 =
            absent), `key`, and where the tars hold records `layout` and `category` (number of the name).
        categories: names.
        faults: what is damaged.
    """

    records: np.ndarray
    categories: tuple[str, ...]
    faults: tuple[Fault, ...]


def open_index(folder: Path, name: str, entries: Sequence[dict[str, Any]], wanted: Sequence[str]) -> Index:
    """Map the index of some tars, or build it. Processes that build it at once write the same.

    Args:
        folder: of the tars.
        name: of the index.
        entries: what the manifest says of the tars: name, count, sha256.
        wanted: extensions, see `scan`.

    Raises:
        InputError: a tar cannot be opened, or holds what no HO3Pairs tar may hold.
    """
    fingerprint = hashlib.sha256(json.dumps([VERSION, *entries], sort_keys=True).encode()).hexdigest()
    here = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    places = [folder / f".{name}.index", cache_folder() / f"{name}-{here}.index"]
    try:
        state = [_state(folder / entry["name"]) for entry in entries]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be opened ({error.strerror}); copy the shard again") from None
    for place in places:
        try:
            return load(place, fingerprint, state, wanted)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue  # there is none, or a stale or broken one
    index = build(folder, entries, wanted)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            save(index, place, fingerprint, state)
            return load(place, fingerprint, state, wanted)
        except OSError:
            continue  # it may not be written there
    return index


def build(folder: Path, entries: Sequence[dict[str, Any]], wanted: Sequence[str]) -> Index:
    """Read all tars through, several at a time.

    Raises:
        InputError: as `open_index`.
    """
    from tqdm import tqdm

    tables: list[np.ndarray] = []
    faults: list[Fault] = []
    categories: dict[str, int] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter lock
        scans = pool.map(lambda entry: scan(folder / entry["name"], entry, wanted), entries)
        for number, (found, wrong) in enumerate(tqdm(scans, desc="index", total=len(entries), unit="tar", delay=2)):
            tables.append(tabulate(found, number, wanted, categories))
            faults += wrong
    records = np.concatenate([np.empty(0, record_type(wanted, _KEY_BYTES)), *tables])
    order = np.argsort(records["key"], kind="stable")
    twice = np.flatnonzero(records["key"][order][1:] == records["key"][order][:-1])
    if len(twice):
        first, second = (records[order[twice[0] + i]] for i in (0, 1))
        names = [entries[int(record["shard"])]["name"] for record in (first, second)]
        raise InputError(
            f"{folder}: sample {first['key'].decode()} is in {names[0]} and {names[1]}; rebuild the shards"
        )
    width = int(np.char.str_len(records["key"]).max(initial=1))
    return Index(records.astype(record_type(wanted, width)), tuple(categories), tuple(faults))


def tabulate(found: Sequence[Found], shard: int, wanted: Sequence[str], categories: dict[str, int]) -> np.ndarray:
    """Records of one tar's samples; `categories` takes up new names."""
    records = np.zeros(len(found), record_type(wanted, _KEY_BYTES))
    records["shard"] = shard
    for record, sample in zip(records, found, strict=True):
        record["key"] = sample.key.encode()
        for column, name in enumerate(wanted):
            if name in sample.members:
                offset, record["size"][column] = sample.members[name]
                record["block"][column] = offset // BLOCK
        if sample.info is not None:
            record["layout"] = astuple(sample.info.layout)
            record["category"] = categories.setdefault(sample.info.category, len(categories))
    return records


def save(index: Index, place: Path, fingerprint: str, state: list[list[Any]]) -> None:
    """Write an index file; it appears when it is complete."""
    header = {
        "fingerprint": fingerprint,
        "tars": state,
        "count": len(index.records),
        "key_bytes": index.records.dtype["key"].itemsize,
        "categories": index.categories,
        "faults": [astuple(fault) for fault in index.faults],
        "crc32": zlib.crc32(index.records.tobytes()),
    }
    temporary = place.with_name(f"{place.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(index.records.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def load(place: Path, fingerprint: str, state: list[list[Any]], wanted: Sequence[str]) -> Index:
    """Map an index file.

    Args:
        place: the file.
        fingerprint: of the manifest's entries.
        state: name, size and time of each tar as they are now.
        wanted: extensions that it lists.

    Raises:
        OSError: there is none.
        ValueError, KeyError, TypeError, IndexError: it is of other tars, or broken.
    """
    with place.open("rb") as file:
        line = file.readline(_MAX_HEADER)
        header = json.loads(line)
        dtype = record_type(wanted, min(int(header["key_bytes"]), _KEY_BYTES))
        size = os.fstat(file.fileno()).st_size
    count = header["count"]
    if header["fingerprint"] != fingerprint or header["tars"] != state:
        raise ValueError("of other tars")
    if size != len(line) + count * dtype.itemsize:
        raise ValueError("cut off")
    records: np.ndarray = np.memmap(place, dtype, "r", len(line), (count,)) if count else np.empty(0, dtype)
    content = records.view(np.uint8)
    keys = np.ascontiguousarray(records["key"]).view(np.uint8)
    ends = records["block"].astype(np.int64) * BLOCK + records["size"]
    sizes = np.array([row[1] for row in state])
    categories = tuple(str(name) for name in header["categories"])
    if (
        zlib.crc32(content.data) != header["crc32"]
        or _FORBIDDEN[keys].any()
        or (ends > sizes[records["shard"]][:, None]).any()
        or records["size"].max(initial=0) > MAX_BYTES
        or ("json" in wanted and records["category"].max(initial=0) >= max(len(categories), 1))
    ):
        raise ValueError("broken")
    return Index(records, categories, tuple(Fault(*fault) for fault in header["faults"]))


def record_type(wanted: Sequence[str], key_bytes: int) -> np.dtype:
    """Type of the records of tars that hold these extensions."""
    columns: list[Any] = [("shard", "<u4"), ("block", "<u4", len(wanted)), ("size", "<u4", len(wanted))]
    if "json" in wanted:
        columns += [("layout", "<f4", 5), ("category", "<u2")]
    return np.dtype([*columns, ("key", f"S{key_bytes}")])


def cache_folder() -> Path:
    """Where this project keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "hoi_lightning"


def _state(path: Path) -> list[Any]:
    about = path.stat()
    return [path.name, about.st_size, about.st_mtime_ns]
