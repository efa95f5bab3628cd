"""What an earlier build left in the output folder, and whether this one may go on with it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.output import locked, write_text
from hoi_lightning.errors import InputError

PARTS = ".parts"
LOCK = ".lock"


@contextmanager
def alone(out: Path, share: tuple[int, int] | None) -> Iterator[None]:
    """One build per folder, or one of each share beside the other shares.

    Args:
        out: folder of the shards.
        share: I and N of `--shard-range`, or None for a whole build.

    Raises:
        InputError: another process is building there.
    """
    with locked(out, out / LOCK, shared=share is not None):
        if share is None:
            yield
            return
        with locked(out, out / f"{LOCK}-{share[0]}-of-{share[1]}"):
            yield


def is_built(out: Path, settings: dict[str, Any]) -> bool:
    """Whether the shards of these settings are there already; the parts of a finished build are removed.

    Args:
        out: folder of the shards.
        settings: what must agree with its manifest.

    Raises:
        InputError: the folder holds other shards, or not all of these.
    """
    path = out / "manifest.json"
    if not path.is_file():
        if any(out.glob("*.tar")) and not (out / PARTS).is_dir():
            raise InputError(
                f"--out {out}: holds tars that are not from an unfinished build; choose another folder, or give "
                f"them up with `rm -r {out}`"
            )
        return False
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError:
        manifest = {}
    differing = [name for name, value in settings.items() if manifest.get(name) != value]
    if differing:
        raise InputError(f"--out {out}: holds shards with another {', '.join(differing)}; choose another folder")
    for entry in [*manifest.get("shards", []), *manifest.get("truth", [])]:
        tar = out / entry["name"]
        if not tar.is_file() or tar.stat().st_size != entry["bytes"]:
            raise InputError(
                f"--out {out}: {tar.name} is not as it was built; copy it again, or remove all with `rm -r {out}` and "
                "build anew"
            )
    shutil.rmtree(out / PARTS, ignore_errors=True)  # there if the build was killed at its very end
    return True


def open_parts(out: Path, settings: dict[str, Any]) -> Path:
    """The folder of the parts.

    Args:
        out: folder of the shards.
        settings: what the parts' bytes depend on.

    Raises:
        InputError: it holds parts of other settings, which may have cost days.
    """
    folder = out / PARTS
    folder.mkdir(exist_ok=True)
    path = folder / "settings.json"
    if not path.is_file():
        write_text(path, json.dumps(settings, indent=1))
        return folder
    known = json.loads(path.read_bytes())
    differing = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
    if differing:
        raise InputError(
            f"--out {out}: holds an unfinished build with another {', '.join(differing)}; finish it, choose another "
            f"folder, or give its clips up with `rm -r {folder}`"
        )
    return folder


def remove_leftovers(out: Path) -> None:
    """Remove what killed builds left: half-written files, locks, and shards, which may be of an older seed."""
    names = [f"{kind}-*.tar" for kind in ("train", "val", "test", "truth", "latents")]
    for pattern in (*names, ".*.tmp", f"{PARTS}/.*.tmp", f"{LOCK}-*"):
        for leftover in out.glob(pattern):
            leftover.unlink()
