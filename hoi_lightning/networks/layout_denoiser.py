"""MaskNet's network: a U-Net encoder over the picture and a layout token that attends to its bottleneck."""

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from hoi_lightning.errors import InputError
from hoi_lightning.networks.unet_encoder import DownBlockType, UNetEncoder

ImageFeatures = Literal["every_step", "once"]


class LayoutDenoiser(nn.Module):
    """Predict a denoised layout from the object picture, the noisy layout's splat and the noisy layout (paper, 1.2).

    `every_step` is the paper's form: the splat M(l_t) is among the encoder's seven input channels, so the encoder runs
    at each step. `once` encodes the object picture alone; each step then adds the splat to the bottleneck's cells and
    runs nothing but the head.

    Args:
        channels: see `UNetEncoder`.
        layers_per_block: see `UNetEncoder`.
        down_block_types: see `UNetEncoder`.
        heads_dim: see `UNetEncoder`; divides the last level's width.
        norm_groups: see `UNetEncoder`.
        head_layers: transformer blocks of the layout token.
        stem_stride: see `UNetEncoder`.
        image_features: how often the encoder runs while one layout is sampled.

    Raises:
        InputError: the widths do not fit each other.
    """

    def __init__(
        self,
        channels: Sequence[int],
        layers_per_block: int,
        down_block_types: Sequence[DownBlockType],
        heads_dim: int,
        norm_groups: int,
        head_layers: int,
        stem_stride: int,
        image_features: ImageFeatures,
    ) -> None:
        super().__init__()
        _check_widths(channels, down_block_types, heads_dim, norm_groups)
        self.image_features = image_features
        self.encoder = UNetEncoder(
            7 if image_features == "every_step" else 3,
            channels, layers_per_block, down_block_types, heads_dim, norm_groups, stem_stride,
        )  # fmt: skip
        width, time_width = channels[-1], self.encoder.time_width
        self.place = nn.Linear(2, width)
        if image_features == "once":
            self.splat_in = nn.Conv2d(1, width, self.encoder.shrinks, self.encoder.shrinks)
            self.cells = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.layout_in = nn.Linear(5, width)
        self.time_in = nn.Linear(time_width, width)
        self.head = nn.ModuleList(
            BasicTransformerBlock(
                width, width // heads_dim, heads_dim, cross_attention_dim=width, only_cross_attention=True
            )
            for _ in range(head_layers)
        )
        self.layout_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 5))
        # what share of the noisy layout is the answer depends on t alone; attention takes thousands of steps to find it
        self.keep = nn.Linear(time_width, 5)

    def see(self, obj: Tensor) -> Tensor:
        """What no step changes: the picture (B, 3, S, S) itself, or with `once` its bottleneck (B, C, h, w)."""
        if self.image_features == "every_step":
            return obj
        return self.encoder(obj, self.encoder.embed(torch.zeros(len(obj), dtype=torch.int64, device=obj.device)))

    def forward(self, seen: Tensor, splat: Tensor, layout: Tensor, t: Tensor) -> Tensor:
        """Predict the standardised layout's diffusion target.

        Args:
            seen: what `see` returned for the object pictures (B, 3, S, S), which are in [-1, 1].
            splat: M(l_t), (B, 1, S, S) in [0, 1].
            layout: noisy standardised layout (B, 5).
            t: timesteps (B,), int64.

        Returns:
            (B, 5).
        """
        embedding = self.encoder.embed(t)
        if self.image_features == "every_step":
            blend = seen * (1 - splat) + splat  # the hand region is painted white
            h = self.encoder(torch.cat([seen, splat, blend], dim=1), embedding)  # (B, 7, S, S), paper 1.2
        else:
            h = seen + self.splat_in(splat)
        tokens = h.flatten(2).transpose(1, 2) + self.place(_positions(h))  # (B, h·w, C)
        if self.image_features == "once":
            tokens = tokens + self.cells(tokens)
        token = (self.layout_in(layout) + self.time_in(embedding))[:, None]  # (B, 1, C)
        for block in self.head:
            token = block(token, encoder_hidden_states=tokens)
        return self.layout_out(token[:, 0]) + self.keep(embedding) * layout


def _check_widths(
    channels: Sequence[int], down_block_types: Sequence[DownBlockType], heads_dim: int, norm_groups: int
) -> None:
    if not channels:
        raise InputError("--model.channels []: give the width of each level")
    if len(down_block_types) != len(channels):
        raise InputError(
            f"--model.down_block_types: {len(down_block_types)} for {len(channels)} --model.channels; give one each"
        )
    for width in channels:
        if width % norm_groups:
            raise InputError(f"--model.channels: {width} is no multiple of --model.norm_groups {norm_groups}")
    if channels[-1] % heads_dim:
        raise InputError(f"--model.channels: {channels[-1]} is no multiple of --model.heads_dim {heads_dim}")
    for width, kind in zip(channels, down_block_types, strict=True):
        heads = channels[-1] // heads_dim
        if (kind == "AttnDownBlock2D" and width % heads_dim) or (kind == "CrossAttnDownBlock2D" and width % heads):
            raise InputError(f"--model.channels: {width} cannot be split into heads by --model.heads_dim {heads_dim}")


def _positions(h: Tensor) -> Tensor:
    """NDC (x, y) of each bottleneck cell, (h·w, 2)."""
    rows, columns = h.shape[-2:]
    y = (2 * torch.arange(rows, device=h.device, dtype=h.dtype) + 1) / rows - 1
    x = (2 * torch.arange(columns, device=h.device, dtype=h.dtype) + 1) / columns - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
