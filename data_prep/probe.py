"""A small network that tells from a picture without a hand where the hand was, as far as that can be told."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 64  # pixels of the pictures it sees
BATCH = 64
SHIFT = 4  # pixels that training pictures are moved by at most
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05


class Probe(nn.Module):
    """Four strided convolutions and a head; 0.23 M parameters. It sees where it looks: two channels hold coordinates.

    Pictures (B, 3, 64, 64) in [0, 1] to centres (B, 2), x and y in NDC.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (5, 16, 32, 64, 128)
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        self.head = nn.Sequential(nn.Linear(128 * (SIDE // 16) ** 2, 64), nn.SiLU(), nn.Linear(64, 2))
        line = torch.linspace(-1, 1, SIDE)
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="xy")), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Predict the centres."""
        grid = self.get_buffer("grid").expand(len(pictures), -1, -1, -1)
        return self.head(self.features(torch.cat([(pictures - 0.5) * 4, grid], 1)))


def train_probe(
    pictures: np.ndarray, centres: np.ndarray, *, steps: int, seed: int, on_step: Callable[[], object] = lambda: None
) -> Probe:
    """Train a probe; the same seed gives the same start, the same batches and the same augmentation.

    Args:
        pictures: uint8 (N, 64, 64, 3).
        centres: (N, 2), x and y in NDC, [-1, 1] inside the picture.
        steps: of AdamW, 64 pictures each.
        seed: of everything random.
        on_step: called after each step.
    """
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    y = torch.from_numpy(centres).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe().train()
        optimizer = torch.optim.AdamW(probe.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(len(x), (BATCH,))
            seen, wanted = _augment(x[chosen].float() / 255, y[chosen])
            optimizer.zero_grad()
            distance(probe(seen), wanted).mean().backward()
            optimizer.step()
            schedule.step()
            on_step()
    return probe.eval()


@torch.inference_mode()
def probe_errors(probe: Probe, pictures: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Distance of each prediction from the truth, (N,) in units of the picture's side; arguments as in training."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    predicted = torch.cat([probe(part.float() / 255) for part in x.split(BATCH)])
    return (distance(predicted, torch.from_numpy(centres).float()) / 2).double().numpy()


def best_constant(centres: np.ndarray, rounds: int = 100) -> np.ndarray:
    """The point (2,) with the least mean distance from centres (N, 2): their geometric median, after Weiszfeld."""
    point = centres.mean(0)
    for _ in range(rounds):
        weight = 1 / np.linalg.norm(centres - point, axis=1).clip(1e-6)
        point = (centres * weight[:, None]).sum(0) / weight.sum()
    return point


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance (B,) of points (B, 2), smooth at 0."""
    return ((a - b).square().sum(1) + 1e-8).sqrt()


def _augment(pictures: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Move each picture by whole pixels, its border repeated, and change its contrast, brightness and tint a little."""
    count = len(pictures)
    shift = torch.randint(-SHIFT, SHIFT + 1, (count, 2))
    move = torch.eye(2, 3).repeat(count, 1, 1)
    move[:, :, 2] = -shift * (2 / SIDE)
    grid = functional.affine_grid(move, list(pictures.shape), align_corners=False)
    moved = functional.grid_sample(pictures, grid, mode="nearest", padding_mode="border", align_corners=False)
    gain = 1 + 0.2 * (torch.rand(count, 1, 1, 1) - 0.5)
    tint = 0.1 * (torch.rand(count, 3, 1, 1) - 0.5)
    return (moved - 0.5) * gain + 0.5 + tint, centres + shift * (2 / SIDE)
