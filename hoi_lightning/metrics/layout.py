"""How good sampled layouts are: contact, errors against the recorded layout, diversity, hole recall.

Layouts are tensors (..., 5) in the order (a, x, y, b1, b2); leading dimensions broadcast. Lengths are fractions of the
picture's side, so that they mean the same at every resolution.
"""

import numpy as np
import torch
from torch import Tensor

from hoi_lightning.hand_proxy import contact, splat


def contact_rate(layouts: Tensor, object_mask: Tensor) -> float:
    """Share of layouts whose palm touches the object.

    Args:
        layouts: (..., 5).
        object_mask: bool (..., 1, S, S), broadcasting with the layouts.

    Returns:
        A share in [0, 1]; higher is better, the recorded layouts' own rate is the ceiling.
    """
    return contact(layouts, object_mask).double().mean().item()


def centre_error(sampled: Tensor, true: Tensor) -> Tensor:
    """Distance between the centres as a fraction of the side, (...)."""
    return (sampled[..., 1:3] - true[..., 1:3]).norm(dim=-1) / 2  # 2 NDC units are one side


def size_ratio(sampled: Tensor, true: Tensor) -> Tensor:
    """Sampled radius over true radius, (...); 1 is perfect. r = a²/2, so this is the squared ratio of the a."""
    return (sampled[..., 0] / true[..., 0]).square()


def size_error(sampled: Tensor, true: Tensor) -> Tensor:
    """Relative error |Δa| / a of the size parameter, (...)."""
    return (sampled[..., 0] - true[..., 0]).abs() / true[..., 0].abs()


def angle_error(sampled: Tensor, true: Tensor) -> Tensor:
    """Angle between the forearms in degrees, (...), in [0, 180]; the lengths of b do not matter."""
    (b1, b2), (c1, c2) = sampled[..., 3:].unbind(-1), true[..., 3:].unbind(-1)
    return torch.atan2(b1 * c2 - b2 * c1, b1 * c1 + b2 * c2).abs().rad2deg()


def best_of(errors: Tensor) -> Tensor:
    """Smallest error among a picture's draws: (K, ...) to (...). It falls with K, so print K beside it."""
    return errors.amin(dim=0)


def resultant_length(layouts: Tensor) -> Tensor:
    """Length of the mean forearm direction over a picture's draws, (K, ..., 5) to (...).

    1 means that all draws point one way, 0 that they cancel: the lower, the more diverse.
    """
    return torch.nn.functional.normalize(layouts[..., 3:], dim=-1).mean(dim=0).norm(dim=-1)


def centre_spread(layouts: Tensor) -> Tensor:
    """Root mean square distance of a picture's draws from their mean centre, in sides: (K, ..., 5) to (...)."""
    centres = layouts[..., 1:3]
    return (centres - centres.mean(dim=0)).square().sum(dim=-1).mean(dim=0).sqrt() / 2


def splat_iou(sampled: Tensor, true: Tensor, size: int = 64) -> Tensor:
    """Intersection over union of the two hand proxies {M > 0.5} on a size x size grid, (...)."""
    one, other = (splat(layout, size).squeeze(-3) > 0.5 for layout in (sampled, true))
    union = (one | other).flatten(-2).sum(-1)
    return (one & other).flatten(-2).sum(-1) / union.clamp(min=1)


def energy_distance(sampled: Tensor, true: Tensor, scale: Tensor | None = None) -> Tensor:
    """Squared energy distance 2·E|X - Y| - E|X - X'| - E|Y - Y'| of two samples (Székely & Rizzo 2013), a scalar.

    Unbiased: no layout is paired with itself, so two samples of one distribution give 0 on average, and half of the
    time less. 0 in the limit only for equal distributions: unlike an error it punishes a model that says the mean.

    Args:
        sampled: (K, 5), K ≥ 2.
        true: (N, 5), N ≥ 2.
        scale: (5,), the unit of each number; None = the standard deviation of `true`.
    """
    scale = (true.std(dim=0) if scale is None else scale).clamp(min=1e-6)
    x, y = sampled / scale, true / scale
    return 2 * _distances(x, y).mean() - _mean_within(x) - _mean_within(y)


def _mean_within(x: Tensor) -> Tensor:
    return _distances(x, x).sum() / (len(x) * (len(x) - 1))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # the fast way loses small distances


def hole_recall(hole: np.ndarray, hand: np.ndarray) -> float:
    """Share of the hand's pixels that lie inside the hole; NaN for a picture without a hand.

    Args:
        hole: bool (H, W), True = to be painted.
        hand: bool (H, W), True = hand or forearm.
    """
    return float((hole & hand).sum() / hand.sum()) if hand.any() else float("nan")


def layout_scores(sampled: Tensor, true: Tensor, object_mask: Tensor) -> dict[str, float]:
    """Every figure of one picture's draws.

    Args:
        sampled: (K, 5).
        true: the recorded layout, (5,).
        object_mask: bool (1, S, S).
    """
    centre, angle = centre_error(sampled, true), angle_error(sampled, true)
    return {
        "contact_rate": contact_rate(sampled, object_mask),
        "centre_error": centre.mean().item(),
        "centre_error_best": best_of(centre).item(),
        "size_error": size_error(sampled, true).mean().item(),
        "angle_error": angle.mean().item(),
        "angle_error_best": best_of(angle).item(),
        "splat_iou": splat_iou(sampled, true).mean().item(),
        "centre_spread": centre_spread(sampled).item(),
        "resultant_length": resultant_length(sampled).item(),
    }
