"""Distances between sets of pictures (Fréchet) and between two pictures (perceptual, PSNR).

Two networks are known by name: Inception-v3 makes `fid`, AlexNet with the calibrated heads makes `lpips`. Their weights
are never downloaded. Where a file is absent, the mini feature network (`metrics.mini`) takes its place, and the figure
is called `fd_mini` or `lpips_mini`: same mathematics, other features, comparable only where that network is the same.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hoi_lightning.errors import InputError
from hoi_lightning.metrics.mini import MiniFeatures

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
ALEXNET = "alexnet-owt-7be5be79.pth"
SOURCES = {  # where torchmetrics and torchvision fetch them
    INCEPTION: "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/",
    ALEXNET: "https://download.pytorch.org/models/",
}
CROP_SIDE = 64  # LPIPS was calibrated on patches of 64 pixels

logger = logging.getLogger(__name__)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared Fréchet distance between two Gaussians (Dowson & Landau 1982; FID is this on Inception features).

    The trace of (C1 C2)^1/2 is computed as the nuclear norm of C1^1/2 C2^1/2, which stays real and accurate for the
    singular covariances of fewer pictures than features.

    Args:
        mean1: (d,).
        cov1: symmetric, positive semi-definite, (d, d).
        mean2: (d,).
        cov2: as cov1.
    """
    mean1, cov1, mean2, cov2 = (tensor.double() for tensor in (mean1, cov1, mean2, cov2))
    cross = torch.linalg.matrix_norm(_sqrt(cov1) @ _sqrt(cov2), "nuc")
    return ((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross).item()


def _sqrt(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


class FeatureStatistics:
    """Mean and covariance of a stream of feature vectors, in float64 on the CPU.

    Merging centred moments (Chan, Golub & LeVeque 1983) avoids the cancellation of sum(x xᵀ) - n μ μᵀ.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add a batch of features (B, d)."""
        batch = FeatureStatistics()
        features = features.detach().cpu().double()
        batch.count, batch.mean = len(features), features.mean(dim=0)
        batch._scatter = (features - batch.mean).mT @ (features - batch.mean)
        self.merge(batch)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add what another stream has seen."""
        if other.count == 0:
            return
        if self.count == 0:
            self.count, self.mean, self._scatter = other.count, other.mean, other._scatter
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self._scatter = self._scatter + other._scatter + delta.outer(delta) * (self.count * other.count / total)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance (d, d).

        Raises:
            ValueError: fewer than two pictures were seen.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {self.count}")
        return self._scatter / (self.count - 1)


Network = Callable[..., Tensor]


class ImageMetrics:
    """A Fréchet distance and a perceptual distance over a stream of (sampled, real) pictures.

    Attributes:
        fd_name: `fid`, or `fd_mini` without the Inception weights.
        lpips_name: `lpips`, or `lpips_mini` without the AlexNet weights.
    """

    def __init__(
        self, features: Network, distance: Network, fd_name: str, lpips_name: str, device: torch.device
    ) -> None:
        self._features, self._distance, self._device = features, distance, device
        self.fd_name, self.lpips_name = fd_name, lpips_name
        self.reset()

    def reset(self) -> None:
        """Forget all pictures; the networks stay."""
        self.fake, self.real = FeatureStatistics(), FeatureStatistics()
        self._distances, self._pairs = 0.0, 0

    @torch.no_grad()
    def update(self, fake: Tensor, real: Tensor) -> Tensor:
        """Add a batch of pictures, and return its perceptual distances (B,).

        Args:
            fake: sampled pictures, uint8 (B, 3, H, W), rounded, not truncated.
            real: the pictures they should look like, of the same shape.
        """
        distances = self.perceptual(fake, real)
        with torch.autocast(self._device.type, enabled=False):  # features in bf16 shift the distance
            self.fake.update(self._features(fake.to(self._device)))
            self.real.update(self._features(real.to(self._device)))
        self._distances += distances.sum().item()
        self._pairs += len(distances)
        return distances

    @torch.no_grad()
    def perceptual(self, fake: Tensor, real: Tensor) -> Tensor:
        """Perceptual distance of each pair, float64 (B,), without adding the pictures to the stream."""
        if fake.dtype != torch.uint8 or real.dtype != torch.uint8:
            raise ValueError(f"pictures must be uint8, got {fake.dtype} and {real.dtype}")
        with torch.autocast(self._device.type, enabled=False):
            return self._distance(fake.to(self._device), real.to(self._device)).cpu().double()

    @property
    def num_pictures(self) -> int:
        """Pairs seen so far."""
        return self._pairs

    def state(self) -> tuple[FeatureStatistics, FeatureStatistics, float, int]:
        """What this process has seen, for `merge` in another."""
        return self.fake, self.real, self._distances, self._pairs

    def merge(self, state: tuple[FeatureStatistics, FeatureStatistics, float, int]) -> None:
        """Add what another process has seen, so that a result does not depend on the number of ranks."""
        fake, real, distances, pairs = state
        self.fake.merge(fake)
        self.real.merge(real)
        self._distances += distances
        self._pairs += pairs

    def compute(self) -> dict[str, float]:
        """The two figures and `num_pictures`, the number of pairs behind them.

        Raises:
            ValueError: fewer than two pictures were seen.
        """
        distance = frechet_distance(self.fake.mean, self.fake.cov, self.real.mean, self.real.cov)
        return {
            self.fd_name: max(distance, 0.0),
            self.lpips_name: self._distances / self._pairs,
            "num_pictures": float(self._pairs),
        }


def image_metrics(device: torch.device | str = "cpu") -> ImageMetrics:
    """Build the metrics with the trained networks that are on this machine, and name the figures after them.

    The trained networks are read from `torch.hub.get_dir()/checkpoints` and nothing is downloaded; one line of
    warning says which is absent. The global random state is left alone, so that a resumed run stays exact.

    Raises:
        InputError: a weight file is there, but its content is not what its name says; or the mini network is absent.
    """
    device = torch.device(device)
    inception, alexnet = _weights(INCEPTION, "fid", "fd_mini"), _weights(ALEXNET, "lpips", "lpips_mini")
    if inception is None or alexnet is None:
        mini = MiniFeatures.from_folder().to(device)
    with torch.random.fork_rng(devices=[]):
        features = mini if inception is None else _inception(inception, device)
        distance = mini.distance if alexnet is None else _lpips(device)
    return ImageMetrics(
        features,
        distance,
        fd_name="fd_mini" if inception is None else "fid",
        lpips_name="lpips_mini" if alexnet is None else "lpips",
        device=device,
    )


def _inception(path: Path, device: torch.device) -> Network:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    network = network.eval().requires_grad_(False).to(device)
    return lambda pictures: network(pictures)[0]


def _lpips(device: torch.device) -> Network:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).net
    network = network.eval().requires_grad_(False).to(device)
    return lambda fake, real: network(fake.float() / 255, real.float() / 255, normalize=True).flatten()


def _weights(name: str, figure: str, stand_in: str) -> Path | None:
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        _say_once(
            f"{figure} needs {path}, which is absent ({SOURCES[name]}{name}): reporting {stand_in} instead, by a "
            "network that has seen the mini world only"
        )
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = path.stem.rsplit("-", 1)[1]
    if not digest.startswith(expected):  # a hub file's name ends with the head of its hash; the reader unpickles it
        raise InputError(f"{path}: sha256 starts with {digest[:8]}, not {expected}; replace the file")
    return path


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


def psnr(fake: np.ndarray, real: np.ndarray, where: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over the pixels of `where`; NaN where there are none.

    The squared error counts as at least 1/12, that of rounding to 8 bits: equal pictures give 58.9 dB, not infinity.

    Args:
        fake: uint8 (H, W, 3).
        real: uint8 (H, W, 3).
        where: bool (H, W).
    """
    if not where.any():
        return float("nan")
    error = np.mean((fake[where].astype(np.float64) - real[where]) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1 / 12)))


def outside_max_diff(fake: np.ndarray, obj: np.ndarray, hole: np.ndarray) -> int:
    """Largest difference in [0, 255] between the sampled and the object picture outside the hole; 0 is the contract.

    Args:
        fake: uint8 (H, W, 3).
        obj: uint8 (H, W, 3).
        hole: bool (H, W), True = painted.
    """
    return int(np.abs(fake[~hole].astype(int) - obj[~hole]).max(initial=0))


def hole_box(hole: np.ndarray) -> tuple[int, int, int, int] | None:
    """Smallest square around the hole's pixels that fits the picture, as x0, y0, x1, y1; None for an empty hole."""
    rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
    if not len(rows):
        return None
    side = min(max(np.ptp(rows), np.ptp(columns)) + 1, *hole.shape)
    y0, x0 = (
        int(np.clip((indices[0] + indices[-1] + 1 - side) // 2, 0, limit - side))
        for indices, limit in ((rows, hole.shape[0]), (columns, hole.shape[1]))
    )
    return x0, y0, x0 + int(side), y0 + int(side)


def hole_crop(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The square around the hole, resized to `CROP_SIDE`: full frames are dominated by the copied background.

    Args:
        picture: uint8 (H, W, 3).
        hole: bool (H, W), not empty.

    Returns:
        uint8 (CROP_SIDE, CROP_SIDE, 3).
    """
    crop = Image.fromarray(picture).crop(hole_box(hole))
    return np.asarray(crop.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BICUBIC))


def as_batch(pictures: Sequence[np.ndarray]) -> Tensor:
    """Stack uint8 (H, W, 3) pictures to (B, 3, H, W)."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def paint_scores(metrics: ImageMetrics, painted: np.ndarray, real: np.ndarray, hole: np.ndarray) -> dict[str, float]:
    """Perceptual distance in the full frame and around the hole, and PSNR inside it; NaN for an empty hole.

    Args:
        metrics: gives the distance and its name; its stream stays as it is.
        painted: uint8 (H, W, 3), sampled at the recorded layout.
        real: the recorded picture, of the same shape.
        hole: bool (H, W), True = painted.
    """
    around = float("nan")
    if hole.any():
        around = metrics.perceptual(as_batch([hole_crop(painted, hole)]), as_batch([hole_crop(real, hole)])).item()
    return {
        metrics.lpips_name: metrics.perceptual(as_batch([painted]), as_batch([real])).item(),
        f"{metrics.lpips_name}_hole": around,
        "psnr_hole": psnr(painted, real, hole),
    }
