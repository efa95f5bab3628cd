"""The table: its top in perspective, its edge with the room beyond, mats and papers on it, light and falloff."""

import cv2
import numpy as np

from data_prep.mini import textures
from data_prep.mini.view import SIZE, View

_HALF = (960, 540)  # drawn at half the size: the frames are soft anyway
_FAR = (480, 270)  # and what lies beyond the table at a quarter of it
_WHOLE = np.s_[0 : _HALF[1], 0 : _HALF[0]]
_EDGE_SHARE = 0.45
_MAT_SHARE = 0.35


def draw_table(view: View, rng: np.random.Generator) -> np.ndarray:
    """Draw a table top and the room beyond its edge.

    Args:
        view: camera and light.
        rng: the clip's generator.

    Returns:
        uint8 (1080, 1920, 3) RGB, before anything lies on it.
    """
    turn = rng.uniform(-0.35, 0.35) + np.pi / 2 * rng.integers(2)
    texture, scale = textures.pick(textures.TABLES, rng)
    scene = _warp(texture, _flat(scale, view, turn, rng))
    if rng.random() < _MAT_SHARE:
        for _ in range(1 if rng.random() < 0.65 else int(rng.integers(2, 4))):
            _add_mat(scene, view, rng)
    if rng.random() < _EDGE_SHARE:
        _add_room(scene, view, rng)
    x = np.linspace(-1, 1, _HALF[0] // 8, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, _HALF[1] // 8, dtype=np.float32)[:, None]
    slope = rng.uniform(0.05, 0.17)
    light = 1 + slope * (float(view.light[0]) * x + float(view.light[1]) * y) - 0.07 * (x * x + y * y)
    if rng.random() < 0.4:  # a lamp's or window's soft reflection
        spot_x, spot_y = rng.uniform(-0.9, 0.9), rng.uniform(-0.9, 0.4)
        light = light + rng.uniform(0.04, 0.14) * np.exp(
            -np.square((x - spot_x) / 0.35) - np.square((y - spot_y) / 0.3)
        )
    scene *= cv2.resize(cv2.merge([light * part for part in view.tint]), _HALF, interpolation=cv2.INTER_LINEAR)
    return cv2.resize(cv2.convertScaleAbs(scene), SIZE, interpolation=cv2.INTER_LINEAR)


def _plane(view: View, turn: float, scale: float, centre: tuple[float, float]) -> np.ndarray:
    """Matrix (3, 3) from table coordinates (texels round the middle) to the half-size picture.

    Args:
        view: the camera.
        turn: rotation on the table, radians.
        scale: picture pixels per texel at the middle row.
        centre: where the texture's middle lies, half-size pixels.
    """
    cos, sin = np.cos(turn) * scale, np.sin(turn) * scale
    flat = np.array([[cos, -sin, centre[0]], [sin * view.squash, cos * view.squash, centre[1]], [0, 0, 1.0]])
    half_x, half_y = _HALF[0] / 2, _HALF[1] / 2
    near = view.nearness / (1 + view.nearness) * 0.9
    to_middle = np.array([[1, 0, -half_x], [0, 1, -half_y], [0, 0, 1.0]])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [0, -near / half_y, 1.0]])  # larger towards the lower border
    return np.linalg.inv(to_middle) @ tilt @ to_middle @ flat


def _warp(texture: np.ndarray, matrix: np.ndarray, window: tuple[slice, slice] = _WHOLE) -> np.ndarray:
    """Lay a texture into a window, rows and columns, of the half-size picture."""
    rows, columns = window
    to_window = np.array([[1, 0, -columns.start], [0, 1, -rows.start], [0, 0, 1.0]])
    size = columns.stop - columns.start, rows.stop - rows.start
    border = cv2.BORDER_REFLECT_101
    laid = cv2.warpPerspective(texture, to_window @ matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)
    return laid.astype(np.float32)


def _flat(scale: float, view: View, turn: float, rng: np.random.Generator) -> np.ndarray:
    """Matrix (3, 3) from a texture that covers table or floor to the half-size picture."""
    middle = np.array(
        [[1, 0, -textures.SIDE * rng.uniform(0.4, 0.6)], [0, 1, -textures.SIDE * rng.uniform(0.4, 0.6)], [0, 0, 1.0]]
    )
    return _plane(view, turn, scale, (_HALF[0] / 2, _HALF[1] / 2)) @ middle


def _polygon(corners: np.ndarray, soft: float = 0.0, size: tuple[int, int] = _HALF) -> np.ndarray:
    """Cover (H, W) of one polygon (N, 2) or several (M, N, 2), half-size pixels, edges blurred by `soft` pixels."""
    cover = np.zeros((size[1], size[0]), np.uint8)
    polygons = np.round(corners.reshape(-1, *corners.shape[-2:]) * (16 * size[0] / _HALF[0])).astype(np.int32)
    cv2.fillPoly(cover, list(polygons), 255, cv2.LINE_AA, 4)
    if soft:
        quarter = cv2.resize(cover, (_HALF[0] // 4, _HALF[1] // 4), interpolation=cv2.INTER_AREA)
        cover = cv2.resize(cv2.GaussianBlur(quarter, (0, 0), soft / 4), size, interpolation=cv2.INTER_LINEAR)
    return cover.astype(np.float32) * np.float32(1 / 255)


def _window(cover: np.ndarray) -> tuple[slice, slice]:
    x, y, width, height = cv2.boundingRect((cover != 0).view(np.uint8))
    return slice(y, y + height), slice(x, x + width)


def _put(scene: np.ndarray, cover: np.ndarray, what: np.ndarray) -> None:
    """Lay `what` (H, W, 3) or (3,) over the scene where `cover` (H, W) is 1."""
    if not cover.any():
        return
    window = _window(cover)
    three = cv2.merge([cover[window]] * 3)
    scene[window] += three * ((what if what.ndim == 1 else what[window]) - scene[window])


def _darken(scene: np.ndarray, cover: np.ndarray, share: float) -> None:
    """Take `share` of the light away where `cover` (H, W) is 1; a negative share brightens."""
    if not cover.any():
        return
    window = _window(cover)
    scene[window] *= cv2.merge([1 - np.float32(share) * cover[window]] * 3)


def _add_mat(scene: np.ndarray, view: View, rng: np.random.Generator) -> None:
    """A placemat, sheet of paper, tray or towel under or beside the objects."""
    kind = ["placemat", "paper", "tray", "towel"][rng.choice(4, p=[0.35, 0.35, 0.12, 0.18])]
    half = np.array({"placemat": (150, 105), "paper": (115, 82), "tray": (160, 115), "towel": (130, 80)}[kind])
    half = half * rng.uniform(0.9, 1.25)
    centre = (rng.uniform(260, 700), rng.uniform(150, 400))
    matrix = _plane(view, rng.uniform(0, np.pi), 1.0, centre)
    if kind == "placemat" and rng.random() < 0.3:
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        flat = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * half[1] * 1.15
    else:
        flat = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half

    def seen(points: np.ndarray) -> np.ndarray:
        projected: np.ndarray = cv2.perspectiveTransform(points[None].astype(np.float64), matrix)[0]
        return projected

    high = 8.0 if kind == "tray" else 2.5
    _darken(scene, _polygon(seen(flat * 1.01) - view.light[:2] * high, 5), 0.35)
    if kind == "paper":
        tones = [(240, 238, 232), (232, 226, 240), (236, 208, 140), (214, 226, 236), (240, 214, 214)]
        sheet: np.ndarray = np.array(tones[rng.choice(5, p=[0.45, 0.2, 0.12, 0.13, 0.1])], np.float32)
        _put(scene, _polygon(seen(flat)), sheet)
        if rng.random() < 0.5:  # lines of writing
            rows = np.linspace(-0.75, 0.75, int(rng.integers(6, 14)))
            lines = [
                [(-0.85, row - 0.012), (end, row - 0.012), (end, row + 0.012), (-0.85, row + 0.012)]
                for row, end in zip(rows, rng.uniform(0.1, 0.85, len(rows)), strict=True)
            ]
            _darken(scene, _polygon(seen((np.array(lines) * half).reshape(-1, 2)).reshape(-1, 4, 2)), 0.3)
        return
    kinds = [textures.checks, textures.linen, textures.printed, textures.plain]
    texture = textures.wood(rng) if kind == "tray" else kinds[rng.integers(len(kinds))](rng)
    to_middle = np.array([[0.8, 0, -0.4 * textures.SIDE], [0, 0.8, -0.4 * textures.SIDE], [0, 0, 1.0]])
    cover = _polygon(seen(flat))
    window = _window(cover)
    _put(scene[window], cover[window], _warp(texture, matrix @ to_middle, window))
    border = rng.uniform(0.86, 0.94)
    if kind == "tray":
        inner = _polygon(seen(flat * 0.92))
        _darken(scene, (1 - inner) * cover, -0.12)
        _darken(scene, inner * (1 - _polygon(seen(flat * 0.9) - view.light[:2] * 8, 4)), 0.3)
    elif rng.random() < 0.6:  # a hem
        hem = _polygon(seen(flat * border)) - _polygon(seen(flat * (border - 0.05)))
        _darken(scene, hem, float(rng.choice([-0.15, 0.25])))


def _add_room(scene: np.ndarray, view: View, rng: np.random.Generator) -> None:
    """Cut the table off at one or two edges, mostly away from where the objects lie."""
    far = (rng.normal(0, 0.1), rng.uniform(20, 130))
    side = 1 if rng.random() < 0.5 else -1
    lean = rng.uniform(0.05, 0.3)
    edges = []
    what = rng.choice(4, p=[0.4, 0.25, 0.2, 0.15])
    if what in (0, 2):
        edges.append("far")
    if what in (1, 2):
        edges.append("side")
    if what == 3:
        edges.append("near")
    corners = np.array([(-200.0, -200.0), (1160.0, -200.0), (1160.0, 740.0), (-200.0, 740.0)])
    if "far" in edges:
        corners[:2, 1] = far[1] + far[0] * (corners[:2, 0] - 480)
    if "side" in edges:
        place = rng.uniform(20, 180)
        at = 1 if side > 0 else 0
        low = 3 - at
        base = 480 + side * (480 - place)
        for index in (at, low):
            corners[index, 0] = base + side * lean * (corners[index, 1] - 270)
        if "far" in edges:
            corners[at, 1] = far[1] + far[0] * (corners[at, 0] - 480)
    if "near" in edges:
        place, slope = rng.uniform(430, 500), rng.normal(0, 0.06)
        corners[2:, 1] = place + slope * (corners[2:, 0] - 480)
    top = _polygon(corners)
    room = _room(view, rng, far[1] if "far" in edges else None)
    small = cv2.resize(scene, _FAR, interpolation=cv2.INTER_AREA)
    if abs(float(room[::4, ::4].mean() - small[::4, ::4].mean())) < 30:
        room *= np.float32(0.65)
    thick = rng.uniform(8, 26) * view.squash
    below = np.array([0, thick])
    _darken(room, _polygon(corners + np.array([-view.light[0] * 40, 26 - view.light[1] * 20]), 26, _FAR), 0.45)
    apron = cv2.blur(small, (5, 5)) * np.float32(rng.uniform(0.45, 0.7))
    skirt = np.max([_polygon(corners + below * share, 0, _FAR) for share in (0.34, 0.67, 1.0)], axis=0)
    shift = np.array([[1, 0, 0], [0, 1, thick / 2]], np.float64)
    _put(room, skirt, cv2.warpAffine(apron, shift, _FAR, borderMode=cv2.BORDER_REPLICATE))
    room = cv2.resize(room, _HALF, interpolation=cv2.INTER_LINEAR)
    rim = top - _polygon(corners - np.array([0, 2.0]))
    _put(room, top, scene)
    _darken(room, np.clip(rim, 0, 1), -0.12)
    scene[:] = room


def _room(view: View, rng: np.random.Generator, horizon: float | None) -> np.ndarray:
    """The floor, and behind a far edge at times a sofa, a cabinet or a wall, at the size _FAR."""
    turn = rng.uniform(-0.6, 0.6)
    texture, scale = textures.pick(textures.FLOORS, rng)
    room = cv2.resize(_warp(texture, _flat(scale, view, turn, rng)), _FAR, interpolation=cv2.INTER_AREA)
    x = 2 * np.arange(_FAR[0], dtype=np.float32)[None, :]
    y = 2 * np.arange(_FAR[1], dtype=np.float32)[:, None]
    room *= np.float32(rng.uniform(0.7, 0.95))
    if rng.random() < 0.35:  # lamps mirrored in the floor
        for _ in range(int(rng.integers(1, 4))):
            spot = rng.uniform((0, 0), _HALF)
            far = np.square(x - np.float32(spot[0])) + np.square(y - np.float32(spot[1]))
            _put(room, 0.8 * np.exp(-far / np.float32(rng.uniform(60, 300))), np.full(3, 245, np.float32))
    if horizon is None or rng.random() < 0.35:
        return room
    slope, place = rng.normal(0, 0.12), horizon * rng.uniform(0.3, 0.9)
    corners = np.array([(-50.0, -300.0), (1010.0, -300.0), (1010.0, place + slope * 530), (-50.0, place - slope * 530)])
    kind = rng.integers(3)
    tones = [(112, 134, 150), (150, 134, 120), (94, 104, 116), (158, 120, 116), (132, 146, 130), (186, 178, 166)]
    tone = np.array(tones[rng.integers(len(tones))], np.float32)
    if kind == 0:  # a sofa's ruffled skirt below its seat
        folds = 1 + 0.16 * np.sin(x * np.float32(2 * np.pi / rng.uniform(14, 30)) + 2 * np.sin(x * 0.03))
        seat = y - slope * (x - 480) < place * 0.55
        shade = np.where(seat, 1.12 + 0.03 * np.sin(x * 0.5) * np.sin(y * 0.5), 0.85 * folds)
    elif kind == 1:  # a cabinet's doors
        tone = tone * 0.25 + 165
        gap = np.abs((x + 40) % np.float32(rng.uniform(150, 300)) - 70)
        shade = 1 - 0.4 * (gap < 1.2) - 0.1 * (np.abs(gap - 18) < 1.2) + 0 * y
    else:
        tone = tone * 0.3 + 155
        skirting = (y - slope * (x - 480) > place - 14) & (y - slope * (x - 480) < place)
        shade = np.where(skirting, 1.12, 1.0) + 0.0 * x
    wall = cv2.merge([shade.astype(np.float32) * part for part in tone])
    _darken(room, _polygon(corners + np.array([0, 14.0]), 14, _FAR), 0.45)
    _put(room, _polygon(corners, 0, _FAR), wall)
    return room
