"""The outline of an arm, drawn coarsely: what statistics of thousands of hands need, without painting them."""

import itertools

import cv2
import numpy as np

from data_prep.mini.affordance import Grasp, mirrored
from data_prep.mini.arm import DIGITS, PALM, Skin, build_body
from data_prep.mini.limbs import Tube
from data_prep.mini.view import SIZE

_FINE = 4  # bits below the pixel in OpenCV's drawing coordinates
_PEN = 0.42  # OpenCV also fills the pixels that an outline touches
_ARC = np.linspace(np.pi / 2, 3 * np.pi / 2, 8)
_ARC = np.stack([_ARC, _ARC + np.pi])
_COS, _SIN = np.cos(_ARC)[..., None], np.sin(_ARC)[..., None]
_OWNERS = [-1] * PALM.stop + [digit for digit, bones in enumerate(DIGITS) for _ in range(bones.start, bones.stop)]


def silhouette(grasp: Grasp, skin: Skin, shrink: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Where an arm is seen.

    Args:
        grasp: the hand.
        skin: whose arm it is.
        shrink: pixels of the picture per pixel of the result.

    Returns:
        Two bool arrays (1080 / shrink, 1920 / shrink): palm, forearm, sleeve and the digits before the object; and the
        digits that pass behind it, as far as none of the former covers them.
    """
    if grasp.side == "left":
        front, under = silhouette(mirrored(grasp), skin, shrink)
        return front[:, ::-1], under[:, ::-1]
    body = build_body(grasp, skin, shrink)
    layers = [np.zeros((SIZE[1] // shrink, SIZE[0] // shrink), np.uint8) for _ in range(2)]
    behind = [int(owner in grasp.under) for owner in _OWNERS]
    outlines = [*_outlines(body.ends[..., :2], body.radii), *_trapezia(body.tubes)]
    for layer, outline in zip(behind + [0] * len(outlines), outlines, strict=False):
        cv2.fillConvexPoly(layers[layer], outline, 1, cv2.LINE_8, _FINE)
    front = layers[0].view(bool)
    return front, layers[1].view(bool) & ~front


def _outlines(ends: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Convex hulls (K, 16, 2) of capsules (K, 2, 2) with radii (K, 2), in OpenCV's fixed point."""
    way = ends[:, 1] - ends[:, 0]
    way /= np.sqrt(np.square(way).sum(axis=1, keepdims=True)) + 1e-9
    rim = _COS * way[:, None, None] + _SIN * (way[:, ::-1] * [-1, 1])[:, None, None]
    hulls = ends[:, :, None] + (radii - _PEN)[..., None, None] * rim
    return _fixed(hulls.reshape(len(ends), -1, 2))


def _trapezia(tubes: list[Tube]) -> np.ndarray:
    """Outlines (K, 4, 2) of tubes: up to their elbow, and from there past the picture's border."""
    quads = []
    for tube in tubes:
        (x, y, _), (ax, ay) = tube.start.tolist(), tube.axis.tolist()
        first, at_elbow, growth = tube.radii
        near = min(tube.elbow, tube.length)
        stops = [(0.0, first), (near, first + (at_elbow - first) * near / tube.elbow)]
        if tube.length > near:
            far = near + 1600 * tube.unit
            stops.append((far, at_elbow + growth * (far - tube.elbow)))
        for (u, r), (v, q) in itertools.pairwise(stops):
            r, q = r - _PEN, q - _PEN
            xu, yu, xv, yv = x + u * ax, y + u * ay, x + v * ax, y + v * ay
            quads.append(
                [
                    (xu + r * ay, yu - r * ax),
                    (xu - r * ay, yu + r * ax),
                    (xv - q * ay, yv + q * ax),
                    (xv + q * ay, yv - q * ax),
                ]
            )
    return _fixed(np.array(quads))


def _fixed(points: np.ndarray) -> np.ndarray:
    return ((points - 0.5) * (1 << _FINE)).astype(np.int32)
