"""Square windows of latents, and the seam where what was painted in them meets the picture."""

import torch
import torch.nn.functional as F
from torch import Tensor


def windows(x: Tensor, corners: Tensor, side: int) -> Tensor:
    """One square window of each picture (B, C, h, w); `corners` are int64 (B, 2), x and y."""
    steps = torch.arange(side, device=x.device)
    rows, columns = corners[:, 1, None] + steps, corners[:, 0, None] + steps
    index = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def neighbourhood(hole_z: Tensor, margin: int = 4, multiple: int = 16) -> tuple[int, int, int]:
    """Left, top and side, in cells, of a square window about the hole (h, h) that lies inside the picture."""
    cells = hole_z.shape[-1]
    places = hole_z.nonzero()
    if not len(places):
        return 0, 0, min(multiple, cells)
    first, last = (
        (places.min(dim=0).values - margin).clamp(min=0),
        (places.max(dim=0).values + 1 + margin).clamp(max=cells),
    )
    side = min(-(-int((last - first).max()) // multiple) * multiple, cells)
    top, left = ((first + last - side) // 2).clamp(0, cells - side).tolist()
    return left, top, side


def feather(hole: Tensor, width: float = 0.02) -> Tensor:
    """Weights of the painted picture: 0 outside the hole, rising to 1 over `width` of the side inside it.

    Where a hole is narrow they rise sooner: over a quarter of its width at most.

    Args:
        hole: (B, 1, S, S) of {0, 1}; at the picture's border it goes on.
        width: share of the side.
    """
    reach = max(1, round(width * hole.shape[-1]))
    depth, eroded = hole, hole  # pixels from the outline, up to 2·reach
    for _ in range(2 * reach - 1):
        eroded = 1 - F.max_pool2d(1 - eroded, 3, stride=1, padding=1)
        depth = depth + eroded
    half_width = F.max_pool2d(depth, 4 * reach + 1, stride=1, padding=2 * reach)
    ramp = (depth / (half_width / 2).clamp(min=1)).clamp(max=1)
    return ramp * ramp * (3 - 2 * ramp)  # level at both ends: no step for the eye at the outline
