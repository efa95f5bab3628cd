"""What `manifest.json` says of a folder of shards; it may be a stranger's."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hoi_lightning.data.decode import MAX_SIDE
from hoi_lightning.errors import InputError

Split = Literal["train", "val", "test"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\.tar")  # a file beside the manifest, never a path or a URL
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """The parts that reading needs.

    Attributes:
        sha256: of the file.
        size: side of the pictures in pixels.
        shards: entries (`name`, `split`, `count`, `sha256`) of the image shards.
        latents: entries of the shards of latents by name; those of an image shard that was rebuilt since are left out.
        latents_vae: the autoencoder behind the latents (`id`, `revision`, `sha256`, `scaling_factor`, …), or None.
    """

    sha256: str
    size: int
    shards: list[dict[str, Any]]
    latents: dict[str, dict[str, Any]]
    latents_vae: dict[str, Any] | None

    def of(self, split: Split, where: str) -> list[dict[str, Any]]:
        """Entries of one split.

        Raises:
            InputError: there are none.
        """
        entries = [entry for entry in self.shards if entry["split"] == split]
        if not entries:
            raise InputError(
                f"{where}: the manifest lists no {split} shard; build with more instances or another split"
            )
        return entries


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Read a manifest.

    Args:
        text: the file's.
        where: its name, for messages.

    Raises:
        InputError: it is none, or names what lies elsewhere.
    """
    try:
        record = json.loads(text)
        size, shards = record["size"], [_entry(entry) for entry in record["shards"]]
        if type(size) is not int or not 0 < size <= MAX_SIDE:
            raise ValueError(f"size {size!r:.100}")
        latents = record.get("latents", {"vae": None, "shards": []})
        hashes = {f"latents-{entry['name']}": entry["sha256"] for entry in shards}
        entries = {entry["name"]: _entry(entry) for entry in latents["shards"]}
        fresh = {name: entry for name, entry in entries.items() if entry["of"] == hashes.get(name)}
        vae = latents["vae"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}: not an HO3Pairs manifest ({error!r}); rebuild with `make shards`") from None
    names = [entry["name"] for entry in shards]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{where}: lists {min(twice)} twice; rebuild with `make shards`")
    return Manifest(hashlib.sha256(text).hexdigest(), size, shards, fresh, vae)


def _entry(entry: Any) -> dict[str, Any]:
    if not _NAME.fullmatch(entry["name"]):
        raise ValueError(f"{entry['name']!r:.200} is no name of a shard")
    if entry["split"] not in get_args(Split):
        raise ValueError(f"{entry['name']} is of split {entry['split']!r:.100}")
    if type(entry["count"]) is not int or not 0 <= entry["count"] < 1 << 31:
        raise ValueError(f"{entry['name']} has {entry['count']!r:.100} samples")
    if not _SHA256.fullmatch(entry["sha256"]):
        raise ValueError(f"{entry['name']} has no sha256")
    return entry
