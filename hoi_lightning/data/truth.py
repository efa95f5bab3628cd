"""The mini world's truth beside val and test shards: clean pictures, and layouts from the true distribution.

`truth-*.tar` holds `KEY.clean.png`, `KEY.layouts.npy` and `KEY.rules.json` per sample. Training never reads it.
"""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hoi_lightning.errors import InputError

MEMBERS = ("clean.png", "layouts.npy", "rules.json")


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of one sample's true distribution.

    Attributes:
        layouts: independent draws, float32 (N, 5), in the NDC of the sample's crop.
        rules: the rule of each draw.
        shares: each rule's probability.
        clean: the crop as it was without any hand, uint8 (S, S, 3).
    """

    layouts: np.ndarray
    rules: list[str]
    shares: dict[str, float]
    clean: np.ndarray


class TruthIndex:
    """Random access to the truth of one split.

    Args:
        root: folder with `manifest.json` and `truth-<split>-*.tar`.
        split: `val` or `test`.

    Raises:
        InputError: the manifest lists none for the split, or a tar is damaged.
    """

    def __init__(self, root: Path | str, split: str) -> None:
        self.root = Path(root)
        self._members: dict[str, tuple[Path, dict[str, tuple[int, int]]]] = {}
        names = _names(self.root, split)
        if not names:
            raise InputError(
                f"{self.root}: no truth of the {split} split there; only the mini world has it: "
                "`python -m data_prep demo`, then `python -m data_prep build`"
            )
        for name in names:
            path = self.root / name
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        key, _, extension = member.name.partition(".")
                        offset = member.offset_data, member.size
                        self._members.setdefault(key, (path, {}))[1][extension] = offset
            except (OSError, tarfile.TarError) as error:
                raise InputError(f"{path}: cannot be read ({error}); rebuild it with `make shards`") from None

    @classmethod
    def find(cls, root: Path | str, split: str) -> "TruthIndex | None":
        """The truth of a split, or None where the shards have none."""
        return cls(root, split) if _names(Path(root), split) else None

    def layouts(self, key: str) -> np.ndarray:
        """Draws of one sample's true distribution, float32 (N, 5)."""
        return np.load(io.BytesIO(self._read(key, "layouts.npy")), allow_pickle=False)

    def truth(self, key: str) -> Truth:
        """All that is known of one sample."""
        record = json.loads(self._read(key, "rules.json"))
        with Image.open(io.BytesIO(self._read(key, "clean.png")), formats=["PNG"]) as image:
            clean = np.array(image.convert("RGB"))
        return Truth(self.layouts(key), record["rule"], record["rules"], clean)

    def _read(self, key: str, extension: str) -> bytes:
        try:
            path, members = self._members[key]
            offset, size = members[extension]
        except KeyError:
            raise InputError(f"{self.root}: sample {key} has no {extension} in its truth; rebuild the shards") from None
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def _names(root: Path, split: str) -> list[str]:
    try:
        manifest = json.loads((root / "manifest.json").read_bytes())
        return [entry["name"] for entry in manifest.get("truth", []) if entry["split"] == split]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{root / 'manifest.json'}: not an HO3Pairs manifest ({error!r}); rebuild it") from None
