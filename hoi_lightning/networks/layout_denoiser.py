"""MaskNet's network: a U-Net encoder over the picture and a layout token that attends to its bottleneck."""

from collections.abc import Sequence

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from torch import Tensor, nn


class LayoutDenoiser(nn.Module):
    """Predict a denoised layout from the object picture, the noisy layout's splat and the noisy layout (paper, 1.2).

    The decoder half of the U-Net is not built: nothing reads it.

    Args:
        channels: width of each level; the resolution halves between levels.
        layers_per_block: residual blocks per level.
        attention_levels: how many of the last levels have self-attention.
        heads_dim: width of one attention head; divides the last level's width.
        head_layers: transformer blocks of the layout token.
        stem_stride: stride of the first convolution; 2 quarters the cost of the first level.
    """

    def __init__(
        self,
        channels: Sequence[int] = (128, 256, 384, 512),
        layers_per_block: int = 2,
        attention_levels: int = 2,
        heads_dim: int = 64,
        head_layers: int = 2,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        width, time_width = channels[-1], 4 * channels[0]
        self.time = nn.ModuleList([Timesteps(channels[0], True, 0), TimestepEmbedding(channels[0], time_width)])
        self.conv_in = nn.Conv2d(7, channels[0], 3, stem_stride, padding=1)
        self.down_blocks = nn.ModuleList(
            get_down_block(
                "AttnDownBlock2D" if level >= len(channels) - attention_levels else "DownBlock2D",
                num_layers=layers_per_block,
                in_channels=channels[max(level - 1, 0)],
                out_channels=channels[level],
                temb_channels=time_width,
                add_downsample=level < len(channels) - 1,
                downsample_padding=1,
                resnet_eps=1e-5,
                resnet_act_fn="silu",
                resnet_groups=8,
                attention_head_dim=heads_dim,
                downsample_type="conv",
            )
            for level in range(len(channels))
        )
        self.mid_block = UNetMidBlock2D(
            width, temb_channels=time_width, attention_head_dim=heads_dim, resnet_groups=8, resnet_eps=1e-5
        )
        self.place = nn.Linear(2, width)
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

    def forward(self, obj: Tensor, splat: Tensor, layout: Tensor, t: Tensor) -> Tensor:
        """Predict the standardised layout's diffusion target.

        Args:
            obj: object picture (B, 3, S, S) in [-1, 1].
            splat: M(l_t), (B, 1, S, S) in [0, 1].
            layout: noisy standardised layout (B, 5).
            t: timesteps (B,), int64.

        Returns:
            (B, 5).
        """
        blend = obj * (1 - splat) + splat  # the hand region is painted white
        h = self.conv_in(torch.cat([obj, splat, blend], dim=1))  # (B, 7, S, S), paper 1.2
        embedding = self.time[1](self.time[0](t).to(h.dtype))
        for block in self.down_blocks:
            h, _ = block(h, embedding)
        h = self.mid_block(h, embedding)
        tokens = h.flatten(2).transpose(1, 2) + self.place(_positions(h))  # (B, h·w, C)
        token = (self.layout_in(layout) + self.time_in(embedding))[:, None]  # (B, 1, C)
        for block in self.head:
            token = block(token, encoder_hidden_states=tokens)
        return self.layout_out(token[:, 0]) + self.keep(embedding) * layout


def _positions(h: Tensor) -> Tensor:
    """NDC (x, y) of each bottleneck cell, (h·w, 2)."""
    rows, columns = h.shape[-2:]
    y = (2 * torch.arange(rows, device=h.device, dtype=h.dtype) + 1) / rows - 1
    x = (2 * torch.arange(columns, device=h.device, dtype=h.dtype) + 1) / columns - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
