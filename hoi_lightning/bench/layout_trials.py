"""Sampling for `bench layouts`: every row of its table for each picture, and guidance tried on some."""

import argparse
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.data.truth import TruthIndex
from hoi_lightning.diffusion.ddpm import sample_seeds
from hoi_lightning.errors import InputError
from hoi_lightning.guidance import Guidance, fix, follow_heat_map, keep_out, touch
from hoi_lightning.hand_proxy import splat
from hoi_lightning.metrics.layout import contact_rate, energy_distance
from hoi_lightning.metrics.rules import rule_shares
from hoi_lightning.tasks.masknet import MaskNet

CHUNK = 1024  # layouts sampled at once
GUIDED_DRAWS = 16
REGION = 0.25  # NDC radius of the regions of heat maps and keep-out
MAP_SIZE = 64


@dataclass(eq=False)
class Trial:
    """One picture with what was sampled for it.

    Attributes:
        category: of the object.
        instance: (category, instance) as one word.
        clean: the picture without any hand, uint8 (S, S, 3).
        object_mask: bool (1, S, S).
        true: draws of the true distribution, (N, 5).
        rules: the rule of each.
        seeds: K, of the draws.
        sampled: MaskNet's draws on the clean picture, (K, 5).
        distances: energy distance of each row of the table.
        shares: of the rules: `true`, of a `second` true sample, and of `masknet`.
        contact: rates of `truth` and `masknet`.
    """

    category: str
    instance: str
    clean: np.ndarray
    object_mask: Tensor
    true: Tensor
    rules: list[str]
    seeds: list[int]
    sampled: Tensor
    distances: dict[str, float] = field(default_factory=dict)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    contact: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def measure(
    masknet: MaskNet,
    index: ShardIndex,
    truth: TruthIndex,
    chosen: Sequence[int],
    marginal: Tensor,
    args: argparse.Namespace,
) -> tuple[list[Trial], dict[str, Any]]:
    """Sample for the chosen pictures; noise belongs to (seed, key, draw), and all rows share it.

    Args:
        masknet: with the sampler of the main row.
        index: the shards.
        truth: their truth.
        chosen: indices of the pictures.
        marginal: training layouts, (M, 5).
        args: of the command line.
    """
    from tqdm import tqdm

    trials: list[Trial] = []
    for i in tqdm(chosen, unit="picture", desc="bench layouts"):
        pair = index.sample(i, ["obj", "object"])
        known = truth.truth(pair.info.key)
        if args.draws > len(known.layouts) // 2:
            raise InputError(
                f"--draws {args.draws}: the truth is {len(known.layouts)} layouts a picture, of which a second sample "
                f"takes as many; give at most {len(known.layouts) // 2}"
            )
        seeds = sample_seeds(sample_seeds(args.seed, [zlib.crc32(pair.info.key.encode())])[0], range(args.draws))
        clean, removed = (_as_input(picture, masknet) for picture in (known.clean, pair.obj))
        assert pair.object is not None
        trial = Trial(
            pair.info.category, f"{pair.info.category}/{pair.info.instance}", known.clean,
            torch.from_numpy(np.array(pair.object))[None], torch.from_numpy(known.layouts), known.rules,
            seeds, _sample(masknet, clean, seeds),
        )  # fmt: skip
        rows = {
            "masknet": trial.sampled,
            "removed": _sample(masknet, removed, seeds),
            "few_steps": _sample(masknet, clean, seeds, num_steps=10, sampler="ddim"),
            "many_steps": _sample(masknet, clean, seeds, num_steps=100, sampler="ddim"),
            "constant": _constant(marginal).expand(args.draws, 5),
            "marginal": _some(marginal, args.draws, seeds[0]),
        }
        _fill(trial, rows, args.draws, list(known.shares))
        trials.append(trial)
    for trial, other in zip(trials, _strangers(trials), strict=True):
        trial.distances["shuffled"] = energy_distance(other.sampled, trial.true).item()
    return trials, _try_guidance(masknet, trials[: args.guided])


@torch.no_grad()
def compare(other: MaskNet, trials: Sequence[Trial]) -> dict[str, np.ndarray]:
    """Another MaskNet on the same pictures with the same noise: `distance`, `contact` and `seconds`, (N,) each."""
    rows = []
    for trial in trials:
        picture, start = _as_input(trial.clean, other), time.perf_counter()
        layouts = _sample(other, picture, trial.seeds)  # on the CPU: a GPU has finished
        seconds = time.perf_counter() - start
        distance = energy_distance(layouts, trial.true).item()
        rows.append((distance, contact_rate(layouts, trial.object_mask), seconds))
    return dict(zip(("distance", "contact", "seconds"), np.array(rows).T, strict=True))


def _fill(trial: Trial, rows: dict[str, Tensor], draws: int, names: list[str]) -> None:
    for row, layouts in rows.items():
        trial.distances[row] = energy_distance(layouts, trial.true).item()
    second, rest = trial.true[:draws], trial.true[draws:]
    trial.distances["second"] = energy_distance(second, rest, trial.true.std(dim=0)).item()
    trial.shares = {
        "true": {name: trial.rules.count(name) / len(trial.rules) for name in names},
        "second": rule_shares(second, rest, trial.rules[draws:], names),
        "masknet": rule_shares(trial.sampled, trial.true, trial.rules, names),
    }
    trial.contact = {
        name: contact_rate(layouts, trial.object_mask)
        for name, layouts in (("truth", trial.true), ("masknet", trial.sampled))
    }


def _try_guidance(masknet: MaskNet, trials: Sequence[Trial]) -> dict[str, Any]:
    """Largest deviations from fixed numbers, and how often wishes come true with and without them; by RePaint."""
    fixed = {
        "position": fix(position=(0.15, -0.1)),
        "size": fix(size=0.7),
        "direction": fix(direction=1.0),
        "position and direction": fix(position=(0.0, 0.2), direction=2.0),
        "all": fix((0.1, 0.1), 0.6, 1.5),
    }
    deviations = dict.fromkeys(fixed, 0.0)
    wishes: dict[str, list[list[float]]] = {"heat_map": [], "keep_out": [], "touch": []}
    for trial in trials:
        picture, some = _as_input(trial.clean, masknet), trial.seeds[:GUIDED_DRAWS]
        free = _sample(masknet, picture, some)
        for name, wish in fixed.items():
            drawn = _sample(masknet, picture, some, sampler="repaint", guidance=Guidance(fixed=wish))
            deviations[name] = max(deviations[name], float((drawn - wish)[:, ~wish.isnan()].abs().max()))
        centre = trial.true[some[0] % len(trial.true), 1:3]
        region = _disc(centre)
        mask = torch.nn.functional.adaptive_avg_pool2d(trial.object_mask.float()[None], MAP_SIZE)
        tried = {
            "heat_map": (follow_heat_map(region), lambda x, c=centre: ((x[:, 1:3] - c).norm(dim=1) <= REGION).float()),
            "keep_out": (keep_out(region), lambda x, r=region: 1 - _share_inside(x, r)),
            "touch": (touch(mask), lambda x, t=trial: torch.tensor([contact_rate(row, t.object_mask) for row in x])),
        }
        for name, (energy, score) in tried.items():
            guided = _sample(masknet, picture, some, sampler="repaint", guidance=Guidance(energies=(energy,)))
            wishes[name].append([float(score(layouts).mean()) for layouts in (free, guided)])
    what = {
        "heat_map": f"centres within {REGION} of a true centre",
        "keep_out": "share of the hand outside such a region",
        "touch": "palms that touch the object",
    }
    means = {name: np.mean(pairs, axis=0).tolist() for name, pairs in wishes.items()}
    return {"fixed": deviations} | {
        name: {"what": what[name], "free": free, "guided": guided} for name, (free, guided) in means.items()
    }


def _sample(masknet: MaskNet, picture: Tensor, seeds: Sequence[int], **options: Any) -> Tensor:
    parts = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    return torch.cat([masknet.sample(picture, part, **options) for part in parts]).cpu()


def _as_input(picture: np.ndarray | None, masknet: MaskNet) -> Tensor:
    assert picture is not None
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    return pixels.to(masknet.device)


def _constant(marginal: Tensor) -> Tensor:
    mean = marginal.mean(dim=0)
    return torch.cat([mean[:3], torch.nn.functional.normalize(mean[3:], dim=0)])


def _some(layouts: Tensor, count: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return layouts[torch.from_numpy(rng.choice(len(layouts), count, replace=len(layouts) < count))]


def _strangers(trials: Sequence[Trial]) -> list[Trial]:
    """For each picture the next one of another object."""
    count = len(trials)
    return [
        next(other for k in range(1, count) if (other := trials[(i + k) % count]).instance != trial.instance)
        for i, trial in enumerate(trials)
    ]


def _disc(centre: Tensor) -> Tensor:
    along = (2 * torch.arange(MAP_SIZE) + 1) / MAP_SIZE - 1
    inside = (along - centre[0]) ** 2 + (along[:, None] - centre[1]) ** 2 <= REGION**2
    return inside.float()[None, None]


def _share_inside(layouts: Tensor, region: Tensor) -> Tensor:
    hand = (splat(layouts, MAP_SIZE) > 0.5).float()
    return (hand * region).sum(dim=(1, 2, 3)) / hand.sum(dim=(1, 2, 3)).clamp(min=1)
