"""Where weights lie; `mini-base`, `mini` and `mini-metrics`, for the mini world, come with the package."""

import contextlib
import re
from pathlib import Path

from hoi_lightning.errors import InputError


def shipped(name: Path | str) -> Path:
    """The folder of shipped weights; any other name is a path already."""
    folder = Path(__file__).parent / name
    return folder if str(name) in ("mini", "mini-base", "mini-metrics") else Path(name)


def find_weights(folder: Path | str) -> Path:
    """Where a released folder lies: `mini` in the package, a hub id in the hub's cache, downloaded if need be.

    Raises:
        InputError: it is none of them.
    """
    root = shipped(folder)
    if not root.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        with contextlib.suppress(HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
            root = Path(snapshot_download(str(folder)))
    if not (root / "model_index.json").is_file():
        raise InputError(
            f"--weights {folder}: neither `mini`, a folder that `python -m hoi_lightning export` wrote, nor a hub id "
            "that can be had"
        )
    return root


def check_checkpoints(masknet: Path | str | None, fusionnet: Path | str | None) -> None:
    """Say which of the networks named is missing, before anything slow starts.

    Raises:
        InputError: there is neither such a file nor such a folder.
    """
    for flag, path in (("--masknet", masknet), ("--fusionnet", fusionnet)):
        if path is not None and not Path(path).exists():
            raise InputError(
                f"{flag} {path}: no such checkpoint; give a last.ckpt that `fit` left, or a folder `export` wrote"
            )
