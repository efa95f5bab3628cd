"""The encoder half and the bottleneck of a diffusion U-Net, built from diffusers' blocks under diffusers' names."""

from collections.abc import Sequence
from typing import Any, Literal

from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets import unet_2d_blocks as blocks
from torch import Tensor, nn

DownBlockType = Literal["DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D"]


class UNetEncoder(nn.Module):
    """What a `UNet2DModel` or `UNet2DConditionModel` does before its decoder; parameters have the same names as there.

    Args:
        in_channels: of the picture.
        channels: width of each level; the resolution halves between levels.
        layers_per_block: residual blocks per level.
        down_block_types: diffusers' class of each level. `CrossAttnDownBlock2D` has Stable Diffusion's transformer
            blocks without their cross-attention: there is no text.
        heads_dim: width of one attention head; with `CrossAttnDownBlock2D` that of the last level, and the others have
            as many heads, as in Stable Diffusion 1.
        norm_groups: groups of every normalisation.
        stem_stride: stride of the first convolution; 2 quarters the cost of the first level.

    Attributes:
        time_width: width of the timestep's embedding.
        shrinks: picture pixels to a side of a bottleneck cell.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        layers_per_block: int,
        down_block_types: Sequence[DownBlockType],
        heads_dim: int,
        norm_groups: int,
        stem_stride: int,
    ) -> None:
        super().__init__()
        self.time_width = 4 * channels[0]
        self.shrinks = stem_stride * 2 ** (len(channels) - 1)
        self.time_proj = Timesteps(channels[0], True, 0)
        self.time_embedding = TimestepEmbedding(channels[0], self.time_width)
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, stem_stride, padding=1)
        common = {"temb_channels": self.time_width, "resnet_eps": 1e-5, "resnet_groups": norm_groups}
        self.down_blocks = nn.ModuleList()
        for level, (width, kind) in enumerate(zip(channels, down_block_types, strict=True)):
            last = level == len(channels) - 1
            settings: dict[str, Any] = {"num_layers": layers_per_block, **common}
            if kind == "AttnDownBlock2D":
                settings |= {"attention_head_dim": heads_dim, "downsample_type": None if last else "conv"}
            else:
                settings["add_downsample"] = not last
            if kind == "CrossAttnDownBlock2D":
                settings |= {"num_attention_heads": channels[-1] // heads_dim, "cross_attention_dim": None}
            self.down_blocks.append(getattr(blocks, kind)(channels[max(level - 1, 0)], width, **settings))
        width = channels[-1]
        if "CrossAttnDownBlock2D" in down_block_types:
            heads = {"num_attention_heads": width // heads_dim, "cross_attention_dim": None}
            self.mid_block = blocks.UNetMidBlock2DCrossAttn(width, **heads, **common)
        else:
            self.mid_block = blocks.UNetMidBlock2D(width, attention_head_dim=heads_dim, **common)

    def embed(self, t: Tensor) -> Tensor:
        """Embed timesteps (B,): (B, time_width)."""
        return self.time_embedding(self.time_proj(t).to(self.conv_in.weight.dtype))

    def forward(self, picture: Tensor, embedding: Tensor) -> Tensor:
        """Bottleneck features (B, C, h, w) of a picture (B, in_channels, S, S) at an embedded timestep."""
        h = self.conv_in(picture)
        for block in self.down_blocks:
            h, _ = block(h, embedding)
        return self.mid_block(h, embedding)
