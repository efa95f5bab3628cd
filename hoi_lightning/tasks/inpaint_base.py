"""InpaintBase: the small inpainting model without hands that FusionNet is fine-tuned from."""

from typing import Any

import torch
from torch import Tensor

from hoi_lightning.errors import InputError
from hoi_lightning.networks.latent_windows import windows
from hoi_lightning.tasks.fusionnet import FusionNet


class InpaintBase(FusionNet):
    """Fill random holes in pictures without hands: where Stable Diffusion cannot be had, what stands in for it.

    A `FusionNet` whose holes are random strokes and whose target is the object picture itself; like Stable Diffusion's
    own, its context is the masked picture. `export` makes a folder for FusionNet's `pretrained` of its checkpoint.
    Arguments are FusionNet's.
    """

    trained_on = ("obj",)

    def setup(self, stage: str) -> None:
        """Refuse cached latents.

        Raises:
            InputError: they were asked for.
        """
        super().setup(stage)
        if stage == "fit" and self.trainer.datamodule.latents:  # type: ignore[attr-defined]
            raise InputError("--data.latents: InpaintBase trains on pictures; leave it out")

    def training_holes(self, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        """Random strokes, or in a quarter of the pictures everything, as Stable Diffusion inpainting was trained."""
        obj = batch["obj"]
        holes = random_strokes(len(obj), obj.shape[-1], generator)
        everything = torch.rand(len(obj), 1, 1, 1, generator=generator, device=obj.device) < 0.25
        return torch.where(everything, torch.ones_like(holes), holes)

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """FusionNet's, of pictures that have no hand, or while training of random windows of them."""
        obj, side = batch["obj"], (self.crop or 0) * self.latents.factor
        if self.training and 0 < side < obj.shape[-1]:  # before they are encoded: that costs as much as the U-Net
            corners = torch.randint(obj.shape[-1] - side + 1, (len(obj), 2), generator=generator, device=obj.device)
            obj = windows(obj, corners, side)
        return super().loss(batch | {"obj": obj, "hoi": obj}, generator)


def random_strokes(count: int, size: int, generator: torch.Generator, strokes: int = 2) -> Tensor:
    """Unions of thick straight strokes, (count, 1, size, size) of {0, 1}.

    Args:
        count: number of masks.
        size: side in pixels.
        generator: decides ends, anywhere in the picture, and half widths, 5 to 25 % of the side.
        strokes: per mask.
    """
    device = generator.device
    a, b = torch.rand(2, count, strokes, 1, 1, 2, generator=generator, device=device)
    radius = 0.05 + 0.2 * torch.rand(count, strokes, 1, 1, generator=generator, device=device)
    axis = (torch.arange(size, device=device) + 0.5) / size
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    along = b - a
    share = (((pixels - a) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-9)).clamp(0, 1)
    distance = (pixels - a - share[..., None] * along).norm(dim=-1)
    return (distance < radius).any(dim=1, keepdim=True).float()
