"""Weights that come with the package, for the mini world: `mini-base`, `mini`, `mini-metrics`."""

from pathlib import Path


def shipped(name: Path | str) -> Path:
    """The folder of shipped weights; any other name is a path already."""
    folder = Path(__file__).parent / name
    return folder if str(name) in ("mini", "mini-base", "mini-metrics") else Path(name)
