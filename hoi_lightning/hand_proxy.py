"""The articulation-free hand: a disc for the whole hand and a half-band for the forearm.

NDC of a square picture: x and y in [-1, 1], +y down; pixel i of S has its centre at (2i + 1)/S - 1. Layout tensors hold
(a, x, y, b1, b2) in the last dimension, the paper's order. Everything that draws or compares a proxy goes through one
distance function, so ground truth, prediction and hole can never disagree.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

SOFTNESS = 0.35  # distance, in radii, at which M has fallen from 1/2 to 1/8
HOLE_DILATION = 0.2  # in radii
CONTACT_DILATION = 0.02  # of the picture's side

_B_EPS = 1e-6  # below |b| = 1e-3 the forearm fades and the proxy becomes its disc
_P_EPS = 1e-12  # keeps the distance from the centre differentiable at the centre
_A_EPS = 1e-8  # keeps r > 0
_SUPERSAMPLING = 4  # of drawn outlines
_MIN_RADIUS = 0.02  # NDC, of a fitted proxy
# In widths of the palm: how far the wrist is sought behind where the palm ends, and the flesh about a keypoint.
_WRIST_REACH, _FLESH = 0.3, 0.05
_PROXY_LIKE = 0.9  # IoU that a drawn proxy reaches and a hand with fingers does not


@dataclass(frozen=True)
class Layout:
    """Where a hand is and from where it comes (paper, section 1.2).

    Attributes:
        a: size; the hand's radius is a²/2 in NDC.
        x: centre of the hand's keypoint box, NDC, +x right.
        y: the same, +y down.
        b1: cos θ of the unit vector from the centre to the forearm.
        b2: sin θ of it; the hand approaches along -b.
    """

    a: float
    x: float
    y: float
    b1: float
    b2: float

    @property
    def r(self) -> float:
        """Radius of the disc in NDC."""
        return self.a**2 / 2

    @property
    def theta(self) -> float:
        """Direction of the forearm in radians, 0 = right, growing clockwise on the screen."""
        return math.atan2(self.b2, self.b1)

    def to_tensor(self) -> Tensor:
        """Return (a, x, y, b1, b2) as float32 (5,)."""
        return torch.tensor(astuple(self), dtype=torch.float32)

    @classmethod
    def from_tensor(cls, layout: Tensor) -> "Layout":
        """Read a (5,) tensor such as a network's output: a becomes |a|, b a unit vector, b = 0 the vector (0, 1)."""
        a, x, y, b1, b2 = layout.tolist()
        norm = math.hypot(b1, b2)
        b1, b2 = (b1 / norm, b2 / norm) if norm > 0 else (0.0, 1.0)
        return cls(abs(a), x, y, b1, b2)


def splat(layout: Tensor, size: int) -> Tensor:
    """Draw M(l), the soft hand proxy; {M > 0.5} is the proxy itself (paper, figures 3 and 4).

    M falls with the distance from the outline in radii, like 1/distance² far away: a hand that misses its target, or
    the picture, still feels where it should go.

    Args:
        layout: (..., 5); a ≤ 0 and b = 0 have finite values and gradients.
        size: side of the picture in pixels.

    Returns:
        (..., 1, size, size) in [0, 1], 1 = hand, in the layout's dtype.
    """
    distance, r = _signed_distance(layout, size)
    s = distance / r
    outside = s > 0
    # The slope is 1/τ on either side of the outline: C1, and no cancellation in the tail.
    tail = (1 + torch.where(outside, s, -s) / SOFTNESS).pow(-2) / 2
    return torch.where(outside, tail, 1 - tail).to(layout.dtype)


def hole_mask(layout: Tensor, size: int, dilation: float = HOLE_DILATION) -> Tensor:
    """Draw the hole to be painted: all points within dilation·r of the proxy.

    Args:
        layout: (..., 5).
        size: side of the picture in pixels.
        dilation: in radii; 0 gives the proxy.

    Returns:
        (..., 1, size, size) of {0, 1}, 1 = to be painted, in the layout's dtype.
    """
    distance, r = _signed_distance(layout, size)
    return (distance <= dilation * r).to(layout.dtype)


def flip_layout(layout: Tensor) -> Tensor:
    """Mirror left and right; the splat of the result (..., 5) is the mirrored splat."""
    return layout * layout.new_tensor([1, -1, 1, -1, 1])


def crop_layout(layout: Tensor, box: Tensor) -> Tensor:
    """Express layouts in a square window of their picture.

    Args:
        layout: (..., 5).
        box: (..., 4) window x0, y0, x1, y1 in NDC of the old picture, square; it may reach beyond the picture.

    Returns:
        (..., 5) in NDC of the window.
    """
    a, x, y, b1, b2 = layout.unbind(-1)
    x0, y0, x1, y1 = box.unbind(-1)
    half = (x1 - x0) / 2
    x, y = (x - (x0 + x1) / 2) / half, (y - (y0 + y1) / 2) / half
    return torch.stack(torch.broadcast_tensors(a / half.sqrt(), x, y, b1, b2), dim=-1)


def scale_layout(layout: Tensor, factor: float | Tensor) -> Tensor:
    """Zoom about the picture's centre; factor > 1 enlarges. A tensor factor has the shape of the leading dimensions."""
    a, x, y, b1, b2 = layout.unbind(-1)
    return torch.stack([a * factor**0.5, x * factor, y * factor, b1, b2], dim=-1)


def interpolate_layouts(one: Layout, other: Layout, share: float) -> Layout:
    """The layout at a share of the way, 0 = one, 1 = other; its forearm turns along the shorter angle."""
    turn = math.remainder(other.theta - one.theta, 2 * math.pi)
    theta = one.theta + share * turn
    a, x, y = (start + share * (end - start) for start, end in zip(astuple(one)[:3], astuple(other)[:3], strict=True))
    return Layout(a, x, y, math.cos(theta), math.sin(theta))


def proxy_iou(layout: Layout, hand: np.ndarray) -> float:
    """Intersection over union of the proxy and a hand mask, bool (S, S); 0 when both are empty."""
    size = hand.shape[0]
    columns = np.arange(size, dtype=np.int16)
    (left, right), (first, last) = rows = _proxy_rows(layout, size)
    overlap = np.minimum(right, last) - np.maximum(left, first)
    area = (rows[:, 1] - rows[:, 0]).clip(0).sum() - overlap.clip(0).sum()
    held = hand.any(1)
    (left, right), (first, last) = rows[:, :, held]
    both = np.count_nonzero(
        ((columns >= left) & (columns < right) | (columns >= first) & (columns < last)) & hand[held]
    )
    return float(both / max(area + np.count_nonzero(hand) - both, 1))


def contact(layout: Tensor, object_mask: Tensor) -> Tensor:
    """Tell whether the proxy's disc overlaps the object mask dilated by 2 % of the side.

    Args:
        layout: (..., 5).
        object_mask: bool (..., 1, S, S).

    Returns:
        bool (...), the leading dimensions broadcast.
    """
    size = object_mask.shape[-1]
    reach = max(1, round(CONTACT_DILATION * size))
    flat = object_mask.reshape(-1, 1, size, size).float()
    near = F.max_pool2d(flat, 2 * reach + 1, stride=1, padding=reach).bool().reshape(object_mask.shape)
    a, x, y, _, _ = (value[..., None, None, None] for value in layout.unbind(-1))
    centres = _pixel_centres(size, layout)
    # Distance to the nearest point of each pixel's square, so that a disc smaller than a pixel overlaps too.
    dx = ((centres - x).abs() - 1 / size).clamp_min(0)
    dy = ((centres[:, None] - y).abs() - 1 / size).clamp_min(0)
    return (near & (dx**2 + dy**2 <= (a**2 / 2) ** 2)).flatten(-3).any(-1)


def fit_layout(hand: np.ndarray, keypoints: np.ndarray | None = None, centroid: np.ndarray | None = None) -> Layout:
    """Find the layout of one hand.

    With keypoints: their box gives centre and radius, the mask's centroid the direction. Without: the same box is
    estimated from the mask's part beyond the wrist, on the end away from where the forearm leaves the picture; where
    the mask is itself a proxy, that proxy is found again.

    Args:
        hand: bool (S, S), hand and forearm.
        keypoints: (21, 2) continuous pixel coordinates, pixel i covering [i, i + 1); None = estimate from the mask.
        centroid: (2,) in the same coordinates, of the whole hand where `hand` shows a part of it; None = of `hand`.

    Raises:
        ValueError: the mask is empty or not square.
    """
    if hand.ndim != 2 or hand.shape[0] != hand.shape[1]:
        raise ValueError(f"hand mask must be square, got {hand.shape}")
    if not hand.any():
        raise ValueError("hand mask is empty")
    size = hand.shape[0]
    if keypoints is not None and centroid is not None:
        return _layout_of_box(keypoints, centroid, size)
    rows, columns = np.divmod(np.flatnonzero(hand), size)  # much sooner than argwhere
    points = np.stack([columns, rows]).T + 0.5  # a column after the other: so they are reduced sooner
    if keypoints is not None:
        return _layout_of_box(keypoints, points.mean(0), size)
    towards = points.mean(0) if centroid is None else centroid
    # Small enough that torch starts no threads for it: data preparation runs one process per core.
    small, tiny = _resize(hand, min(size, 128)) > 0.5, _resize(hand, 64)

    def iou(layout: Layout) -> float:
        return proxy_iou(layout, small)

    runs = [[_beyond_wrist(points, leave, towards, size) for leave in exits] for exits in _forearm_exits(hand, points)]
    anatomical = max(runs[0], key=iou)
    drawn = _refine(max((start for starts in runs for start in starts), key=iou), tiny)
    # A real hand's best cover is not its box: it leaves out spread fingers and follows the sleeve.
    return drawn if iou(drawn) > max(_PROXY_LIKE, iou(anatomical)) else anatomical


def draw_layouts(picture: np.ndarray, layouts: Sequence[Layout], scale: int = 1) -> np.ndarray:
    """Overlay layouts on a picture: circle, edges of the forearm and an arrow along the approach, a colour each.

    Args:
        picture: uint8 (S, S, 3).
        layouts: any number.
        scale: enlargement of the result.

    Returns:
        uint8 (S·scale, S·scale, 3).
    """
    side = picture.shape[0] * scale
    fine = side * _SUPERSAMPLING
    overlay = Image.new("RGBA", (fine, fine), (255, 255, 255, 0))
    draw = ImageDraw.Draw(overlay)
    width = max(1.2, side / 180) * _SUPERSAMPLING
    for index, layout in enumerate(layouts):
        hue = (0.03 + index * 0.381966) % 1  # golden angle: any number of colours, neighbours far apart
        red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.9, 0.95))
        _draw_layout(draw, layout, fine, (255, 255, 255, 255), width * 2)
        _draw_layout(draw, layout, fine, (red, green, blue, 255), width)
    base = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC).convert("RGBA")
    overlay = overlay.resize((side, side), Image.Resampling.BOX)
    return np.array(Image.alpha_composite(base, overlay).convert("RGB"))


def _pixel_centres(size: int, like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)  # half precision cannot tell neighbouring pixels apart
    return (2 * torch.arange(size, dtype=dtype, device=like.device) + 1) / size - 1


def _signed_distance(layout: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Distance of each pixel centre from the proxy (exact outside, negative inside) and its radius, both NDC."""
    centres = _pixel_centres(size, layout)
    a, x, y, b1, b2 = (value[..., None, None, None] for value in layout.to(centres.dtype).unbind(-1))
    px, py = centres - x, centres[:, None] - y
    b_squared = b1**2 + b2**2 + _B_EPS
    u = (px * b1 + py * b2) * b_squared.rsqrt()
    p_squared = px**2 + py**2 + _P_EPS
    # At b = 0 v becomes |p|, so that the band lies inside the disc.
    v_squared = ((py * b1 - px * b2) ** 2 + p_squared * _B_EPS) / b_squared
    r = (a**2 + _A_EPS) / 2
    disc = _root(p_squared) - r
    # At u = 0 the disc is nearer than the band: no step there.
    return torch.where(u > 0, torch.minimum(disc, _root(v_squared) - r / 2), disc), r


def _proxy_rows(layout: Layout, size: int) -> np.ndarray:
    """First column and the one after the last of disc and forearm in each row, int16 (2, 2, size, 1).

    Where `_signed_distance` is not positive: along a row the disc is an interval and so is the forearm, whose |v| ≤ r/2
    is a quadratic inequality in x.
    """
    y = (2 * np.arange(size) + 1) / size - 1 - layout.y
    r, b1, b2 = (layout.a**2 + _A_EPS) / 2, layout.b1, layout.b2
    b_squared = b1**2 + b2**2 + _B_EPS
    square, mixed = b2**2 + _B_EPS, b1 * b2 * y
    constant = (b1**2 + _B_EPS) * y**2 - b_squared * r**2 / 4
    discriminants = np.stack([r**2 - y**2, mixed**2 - square * constant])
    half = np.sqrt(discriminants.clip(0)) / [[1], [square]]
    middle = np.stack([np.zeros(size), mixed / square])
    edges = np.where(discriminants >= 0, [middle - half, middle + half], [[[np.inf]], [[-np.inf]]])  # start, stop
    ahead = -y * b2 / (b1 or _P_EPS)  # u > 0 is x > ahead, or less where the forearm points left
    side = 0 if b1 >= 0 else 1
    edges[side, 1] = (np.minimum if side else np.maximum)(edges[side, 1], ahead)
    # A pixel belongs to what holds its centre.
    columns = np.ceil((edges + layout.x + 1) * size / 2 - 0.5).clip(0, size)
    return columns.astype(np.int16).swapaxes(0, 1)[..., None]


def _root(x: Tensor) -> Tensor:
    # Not x.sqrt(): on a CPU that starts threads from 2048 elements on, which crawls where every core has a process.
    return x * x.rsqrt()


def _layout_of_box(points: np.ndarray, towards: np.ndarray, size: int) -> Layout:
    """Layout of the box of some points (N, 2) with the forearm towards a point, all in pixels."""
    low, high = points.min(0), points.max(0)
    centre = (low + high) / 2
    b = towards - centre
    values = [math.sqrt(2 * (high - low).max() / size), *(2 * centre / size - 1), *b]
    return Layout.from_tensor(torch.tensor(values, dtype=torch.float64))


def _forearm_exits(hand: np.ndarray, points: np.ndarray) -> list[list[np.ndarray]]:
    """Points in pixels where the forearm may leave the picture, grouped by run of the border, likeliest first."""
    size = hand.shape[0]
    low, last = np.zeros(size - 1, int), np.full(size - 1, size - 1)
    along = np.arange(size - 1)  # the top from left to right, and on clockwise
    border = np.concatenate([[along, low], [last, along], [last - along, last], [low, last - along]], axis=1).T
    touches = hand[border[:, 1], border[:, 0]]
    if not touches.any():
        return [_axis_ends(points)]
    if touches.all():
        return [[border[np.argmax(touches)] + 0.5]]
    gap = int(np.argmin(touches))
    border, touches = np.roll(border, -gap, axis=0), np.roll(touches, -gap)
    edges = np.flatnonzero(np.diff(np.concatenate([touches, [False]]).astype(int)))
    runs = [border[first + 1 : last + 1] + 0.5 for first, last in zip(edges[::2], edges[1::2], strict=True)]
    # Fingertips may touch the border as well, but a sleeve is wider. Palm and forearm can leave through one run: then
    # the forearm's share is at either end of it.
    runs.sort(key=lambda run: np.linalg.norm(run[-1] - run[0]), reverse=True)
    return [[run[round(share * (len(run) - 1))] for share in (0.02, 0.5, 0.98)] for run in runs[:3]]


def _axis_ends(points: np.ndarray) -> list[np.ndarray]:
    centre = points.mean(0)
    offsets = points - centre
    axis = np.linalg.eigh(offsets.T @ offsets)[1][:, 1]
    along = offsets @ axis
    return [centre + along.min() * axis, centre + along.max() * axis]


def _beyond_wrist(points: np.ndarray, leave: np.ndarray, towards: np.ndarray, size: int) -> Layout:
    """Layout of the hand end of a mask whose forearm ends at `leave`, pointing towards the hand's centroid."""
    forearm = leave - points.mean(0)
    forearm = forearm / max(np.linalg.norm(forearm), 1e-9)
    depth = points @ forearm
    depth = depth - depth.min()  # from the tip of the hand towards the forearm
    width = np.bincount(depth.astype(int)).astype(float)
    smooth = max(1, len(width) // 24)
    width = np.convolve(np.pad(width, smooth, mode="edge"), np.ones(2 * smooth + 1) / (2 * smooth + 1), mode="valid")
    wrist, palm = _find_wrist(width)
    beyond = points.T.take(np.flatnonzero(depth <= min(wrist, 1.8 * width.max())), 1)
    low, high = beyond.min(1) - 0.5, beyond.max(1) + 0.5
    flesh = np.minimum(_FLESH * palm, (high - low) / 4)
    return _layout_of_box(np.stack([low + flesh, high - flesh]), towards, size)


def _find_wrist(width: np.ndarray) -> tuple[int, float]:
    """Find where the narrowest place behind the palm begins, in widths (N,) from the fingertips on.

    Returns:
        Index of the wrist, N where nothing narrows, and the palm's width.
    """
    fallen = np.flatnonzero(width < 0.75 * np.maximum.accumulate(width))
    if not fallen.size:
        return len(width), float(width.max())
    first = int(fallen[0])
    palm = float(width[:first].max())
    near = width[first : first + 1 + int(_WRIST_REACH * palm)]
    wider = np.flatnonzero(near > 1.1 * np.minimum.accumulate(near))  # a sleeve, or the forearm itself
    near = near[: wider[0]] if wider.size else near
    return first + int(np.argmax(near <= 1.1 * near.min())), palm


def _resize(hand: np.ndarray, size: int) -> np.ndarray:
    """Share of each pixel of (size, size) that a mask covers, float32."""
    return F.adaptive_avg_pool2d(torch.from_numpy(np.array(hand, np.float32, order="C"))[None], size)[0].numpy()


def _refine(start: Layout, target: np.ndarray) -> Layout:
    """Levenberg-Marquardt on the squared difference of an antialiased proxy and a mask (S, S), over (x, y, r, θ)."""
    size, damping = target.shape[0], 1e-2
    state = np.array([start.x, start.y, max(start.r, _MIN_RADIUS), start.theta])
    for blur in (3.0, 1.0):  # pixels
        drawn, jacobian = _antialiased(state, size, blur)
        for _ in range(5):
            residual = drawn - target.ravel()
            curvature = jacobian @ jacobian.T
            ridge = np.diag(curvature.diagonal() * damping + 1e-3)
            moved = state - np.linalg.solve(curvature + ridge, jacobian @ residual)
            moved[2] = moved[2].clip(_MIN_RADIUS, 2)
            there, slopes = _antialiased(moved, size, blur)
            if np.square(there - target.ravel()).sum() < np.square(residual).sum():
                state, drawn, jacobian, damping = moved, there, slopes, damping / 4
            else:
                damping *= 8
    x, y, r, theta = state.tolist()
    return Layout(math.sqrt(2 * r), x, y, math.cos(theta), math.sin(theta))


def _antialiased(state: np.ndarray, size: int, blur: float) -> tuple[np.ndarray, np.ndarray]:
    """Proxy of (x, y, r, θ) with an outline `blur` pixels soft, (S·S,), and its slope over each of them, (4, S·S)."""
    x, y, r, theta = state
    b1, b2 = math.cos(theta), math.sin(theta)
    centres = (2 * np.arange(size) + 1) / size - 1
    px, py = centres - x, (centres - y)[:, None]
    u, v, p = px * b1 + py * b2, py * b1 - px * b2, np.sqrt(px**2 + py**2 + _P_EPS)
    disc, band, side = p - r, np.abs(v) - r / 2, np.sign(v)
    forearm = (u > 0) & (band < disc)
    proxy = 1 / (1 + np.exp(np.where(forearm, band, disc) * size / blur))
    slopes = [
        np.where(forearm, side * b2, -px / p),
        np.where(forearm, side * -b1, -py / p),
        np.where(forearm, -0.5, -1.0),
        np.where(forearm, side * -u, 0.0),
    ]
    return proxy.ravel(), (np.array(slopes) * (proxy * (proxy - 1) * size / blur)).reshape(4, -1)


def _draw_layout(draw: ImageDraw.ImageDraw, layout: Layout, side: int, colour: tuple[int, ...], width: float) -> None:
    def at(u: float, v: float) -> tuple[float, float]:
        x = layout.x + u * layout.b1 - v * layout.b2
        y = layout.y + u * layout.b2 + v * layout.b1
        return (x + 1) * side / 2, (y + 1) * side / 2

    r = layout.r
    (x, y), radius = at(0, 0), r * side / 2 + width / 2
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=round(width))
    for v in (-r / 2, r / 2):
        draw.line([at(math.sqrt(3) / 2 * r, v), at(r + 4, v)], fill=colour, width=round(width))
    head = 0.3 * r
    draw.line([at(0.75 * r, 0), at(-0.5 * r, 0)], fill=colour, width=round(width))
    draw.line([at(head - 0.5 * r, head), at(-0.5 * r, 0), at(head - 0.5 * r, -head)], fill=colour, width=round(width))
