"""Square windows of latents."""

import torch
from torch import Tensor


def windows(x: Tensor, corners: Tensor, side: int) -> Tensor:
    """One square window of each picture (B, C, h, w); `corners` are int64 (B, 2), x and y."""
    steps = torch.arange(side, device=x.device)
    rows, columns = corners[:, 1, None] + steps, corners[:, 0, None] + steps
    index = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def hand_corners(layouts: Tensor, cells: int, side: int, generator: torch.Generator) -> Tensor:
    """Top left cells (B, 2), x and y, of random windows about hands: most on the palm, some along the forearm.

    Args:
        layouts: (B, 5).
        cells: side of the whole picture.
        side: of the windows, at most `cells`.
        generator: decides where; it is on the layouts' device.
    """
    u = torch.rand(len(layouts), 1, generator=generator, device=layouts.device)
    centres = layouts[:, 1:3] + u**4 * layouts[:, 3:5]
    jitter = torch.rand(centres.shape, generator=generator, device=centres.device) - 0.5
    corner = (centres + 1) / 2 * cells + jitter * side / 2 - side / 2
    return corner.round().long().clamp(0, cells - side)


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
