"""Where sampled hands go, as pictures for loggers and reports."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hoi_lightning.hand_proxy import hole_mask

_CHUNK = 64  # layouts drawn at once
_STRENGTH = 0.85  # of the colour at its densest


def palm_density(layouts: Tensor, size: int) -> Tensor:
    """Share of layouts (K, 5) whose disc covers each pixel, (size, size)."""
    discs = torch.cat([layouts[:, :3], torch.zeros_like(layouts[:, 3:])], dim=1)  # at b = 0 the proxy is its disc
    covered = sum(hole_mask(part, size, 0).sum(dim=(0, 1)) for part in discs.split(_CHUNK))
    return torch.as_tensor(covered) / len(layouts)


def draw_density(picture: np.ndarray, layouts: Tensor) -> np.ndarray:
    """Lay the density of palms over a picture; the densest place is yellow, none is the picture in grey.

    Args:
        picture: uint8 (S, S, 3).
        layouts: (K, 5).

    Returns:
        uint8 (S, S, 3).
    """
    from matplotlib import colormaps

    density = palm_density(layouts.cpu(), len(picture)).numpy()
    share = density / max(density.max(), 1e-9)
    colours = colormaps["inferno"](share)[..., :3] * 255
    grey = picture.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    weight = _STRENGTH * share[..., None] ** 0.5
    return (grey + weight * (colours - grey)).round().astype(np.uint8)


def scatter_layouts(layouts: Mapping[str, Tensor]) -> np.ndarray:
    """Centres, and size over direction, of named sets of layouts (K, 5); uint8 (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots(1, 2)
    for name, rows in layouts.items():
        a, x, y, b1, b2 = rows.cpu().unbind(1)
        axes[0].scatter(x, y, s=14, label=name)
        axes[1].scatter(torch.atan2(b2, b1).rad2deg(), a**2 / 2, s=14, label=name)
    axes[0].set(xlim=(-1.2, 1.2), ylim=(1.2, -1.2), aspect="equal", xlabel="x", ylabel="y", title="centre, NDC")
    axes[1].set(xlim=(-180, 180), xlabel="forearm angle, degrees", ylabel="radius, NDC", title="direction and size")
    axes[0].legend()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
