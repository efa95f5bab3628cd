"""The mini feature network: where Inception and AlexNet are absent, `fd_mini` and `lpips_mini` are measured with it.

It is trained on the mini world (`configs/mini/metrics.yaml`) to tell where the hand is, what it holds and how much a
picture was blurred, disturbed or recoloured, so its features keep what such changes change. It is neither Inception nor
AlexNet: its figures compare with one another, never with FID or LPIPS.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hoi_lightning.errors import InputError

WEIGHTS = Path(__file__).parent.parent / "weights" / "mini-metrics"
MODEL_FILE = "model.safetensors"

SIDE = 128  # pictures are brought to this many pixels a side


class MiniFeatures(nn.Module):
    """A small convolutional network with batch normalisation, whose activations and pooled features measure pictures.

    The feature vector holds the spatial means of the second stage (texture, colour) and a projection of the last stage
    averaged over a 2 x 2 grid (what is where), each feature with mean 0 and variance 1 over the training pictures.
    """

    WIDTHS = (32, 48, 96, 128, 160)  # of the stages, at 1/2, 1/4, … 1/32 of the side
    GRID, GRID_WIDTH = 2, 32

    def __init__(self) -> None:
        super().__init__()
        fan_ins = (3, *self.WIDTHS)
        self.trunk = nn.ModuleList(
            nn.Sequential(_convolution(fan_in, width, stride=2), _convolution(width, width) if stage else nn.Identity())
            for stage, (fan_in, width) in enumerate(zip(fan_ins, self.WIDTHS, strict=False))
        )
        self.project = nn.Conv2d(self.WIDTHS[-1], self.GRID_WIDTH, 1)
        self.standardise = nn.BatchNorm1d(self.num_features, affine=False)

    @property
    def num_features(self) -> int:
        """Length of the feature vector; torchmetrics reads it by this name."""
        return self.WIDTHS[1] + self.GRID**2 * self.GRID_WIDTH

    @classmethod
    def from_folder(cls, folder: Path = WEIGHTS) -> "MiniFeatures":
        """Open trained weights, frozen and in eval mode.

        Raises:
            InputError: there are none, or they are of another network.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / MODEL_FILE
        if not path.is_file():
            raise InputError(
                f"{path}: the mini feature network is absent; reinstall the package, or train it with "
                "`fit -c configs/mini/metrics.yaml` and copy <run>/mini-metrics there"
            )
        with torch.device("meta"):  # no random number is drawn, so a resumed run stays exact
            network = cls()
        try:
            weights = load_file(path)
            weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
            network.load_state_dict(weights, assign=True)
        except (SafetensorError, RuntimeError) as error:
            raise InputError(f"{path}: not this version's mini feature network ({error})") from None
        return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def stages(self, pictures: Tensor) -> list[Tensor]:
        """Activations of each stage, [(B, width, side, side)], for uint8 pictures (B, 3, H, W) of any size ≥ 64."""
        x = pictures.float() / 127.5 - 1
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        return self.activations(x)

    def activations(self, x: Tensor) -> list[Tensor]:
        """As `stages`, for float pictures (B, 3, SIDE, SIDE) in [-1, 1]."""
        x = x.contiguous(memory_format=torch.channels_last)
        stages = []
        for stage in self.trunk:
            x = stage(x)
            stages.append(x)
        return stages

    def pool(self, stages: list[Tensor]) -> Tensor:
        """Feature vectors (B, num_features) of the stages' activations."""
        where = F.adaptive_avg_pool2d(self.project(stages[-1]), self.GRID).flatten(1)
        return self.standardise(torch.cat([stages[1].mean(dim=(2, 3)), where], dim=1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Feature vectors (B, num_features) of uint8 pictures (B, 3, H, W)."""
        return self.pool(self.stages(pictures))

    def distance(self, fake: Tensor, real: Tensor) -> Tensor:
        """Squared distance of the unit-normalised activations, averaged over places and stages: (B,), in [0, 2].

        Args:
            fake: uint8 (B, 3, H, W).
            real: of the same shape.
        """
        return stage_distance(self.stages(fake), self.stages(real))

    def half_state(self) -> dict[str, Tensor]:
        """What is saved: weights in float16, the features' mean and variance in float32."""
        return {
            name: value.half() if value.is_floating_point() and not name.startswith("standardise") else value
            for name, value in ((name, value.cpu().contiguous()) for name, value in self.state_dict().items())
        }


def stage_distance(fake: list[Tensor], real: list[Tensor]) -> Tensor:
    """`MiniFeatures.distance` from the activations of both."""
    distances = [
        (F.normalize(f, dim=1) - F.normalize(r, dim=1)).square().sum(dim=1).mean(dim=(1, 2))  # (B,)
        for f, r in zip(fake, real, strict=True)
    ]
    return torch.stack(distances).mean(dim=0)


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convolution(fan_in: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(fan_in, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )
