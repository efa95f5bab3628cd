"""Parts: the finished clips of an unfinished build.

A clip's part is a tar of its samples and, written last, a JSON record of where they lie and of what was dropped: the
clip is finished when the record is there. Both are the same bytes whoever makes them.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from data_prep.encode import encode
from data_prep.output import Replacing, write_text
from data_prep.pairing import KeypointState, PairSettings, make_pairs, plan_clip
from data_prep.remove_hand import HandRemover
from data_prep.sources import Clip, Drop, Fault


@dataclass(frozen=True, eq=False)
class Part:
    """A finished clip, without its pictures: a few numbers per sample, so that thousands of clips fit into memory.

    Attributes:
        path: the tar.
        instance: `Category/instance`.
        samples: int64 (N, 3): frame, first byte and the byte after the last of each sample in the tar, by frame.
        num_seen: frames looked at.
        dropped: number of drops by reason.
        keypoints: number of samples by state of their keypoints.
    """

    path: Path
    instance: str
    samples: np.ndarray
    num_seen: int
    dropped: Counter[str]
    keypoints: Counter[str]


def part_path(folder: Path, clip: Clip) -> Path:
    """Where a clip's tar lies; its record lies beside it."""
    return folder / f"{clip.name.replace('/', '_')}.tar"


def is_finished(path: Path) -> bool:
    """Whether the part of this tar is complete."""
    return path.with_suffix(".json").is_file()


def write_part(clip: Clip, settings: PairSettings, remover: HandRemover, path: Path) -> None:
    """Make a clip's pairs and write them, and then its record."""
    drops: list[Drop] = []
    keypoints: Counter[KeypointState] = Counter()
    samples: list[tuple[int, int, int]] = []
    num_seen = 0
    with Replacing(path) as file, wds.TarWriter(file, encoder=False, mtime=0) as tar:
        try:
            plan = plan_clip(clip, settings)
            num_seen, drops = plan.num_seen, plan.drops
            for outcome in make_pairs(clip, plan.pairs, settings, remover):
                if isinstance(outcome, Drop):
                    drops.append(outcome)
                    continue
                sample, state = outcome
                keypoints[state] += 1
                start = tar.tarstream.offset
                tar.write(encode(sample))
                samples.append((sample.info.frame, start, tar.tarstream.offset))
        except Fault as fault:
            drops = [Drop.of(clip, None, fault)]
    record = {
        "instance": f"{clip.category}/{clip.instance}",
        "samples": sorted(samples),
        "num_seen": num_seen,
        "keypoints": keypoints,
        "drops": [asdict(drop) for drop in sorted(drops, key=lambda drop: drop.frame or 0)],
    }
    write_text(path.with_suffix(".json"), json.dumps(record))


def read_part(path: Path) -> tuple[Part, list[dict[str, Any]]]:
    """Read a part's record.

    Returns:
        The part, and its drops as `Drop`'s dictionaries.
    """
    record = json.loads(path.with_suffix(".json").read_bytes())
    return (
        Part(
            path=path,
            instance=record["instance"],
            samples=np.array(record["samples"], np.int64).reshape(-1, 3),
            num_seen=record["num_seen"],
            dropped=Counter(drop["reason"] for drop in record["drops"]),
            keypoints=Counter(record["keypoints"]),
        ),
        record["drops"],
    )
