"""What stands on the table and is round: the parts of a vessel, and mug, bowl and plate."""

from dataclasses import dataclass

import numpy as np

from data_prep.mini.canvas import Canvas, Shape, circle, rounded_box
from data_prep.mini.patterns import Weights, decorate

_SLICES = 9


@dataclass(frozen=True)
class Wall:
    """A surface of revolution: at depth d in [0, 1] below the rim its radius² is rim² × (1 + slope·d + bend·d²).

    Attributes:
        rim: radius of its upper edge, units.
        height: units.
        slope: linear term.
        bend: quadratic term; slope + bend > -1.
    """

    rim: float
    height: float
    slope: float
    bend: float = 0.0

    @classmethod
    def cone(cls, rim: float, height: float, base: float) -> "Wall":
        """A straight wall whose lower radius is `base` times the rim's."""
        return cls(rim, height, 2 * (base - 1), (base - 1) ** 2)

    @classmethod
    def bulging(cls, rim: float, height: float, base: float, belly: float) -> "Wall":
        """A wall that bends outwards by about `belly` between the rim and a base of `base` times the rim."""
        return cls(rim, height, base * base - 1 + 4 * belly, -4 * belly)

    def radius(self, depth: np.ndarray | float) -> np.ndarray:
        """Radius at a depth in [0, 1], units."""
        return self.rim * np.sqrt(np.maximum(1 + self.slope * depth + self.bend * depth * depth, 0))

    def silhouette(self, c: Canvas, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Signed distance to the whole body, its rim round the origin of (x, y)."""
        depths = np.linspace(0, 1, _SLICES, dtype=np.float32)
        square = x * x
        sdf = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf, np.float32)
        for depth, radius in zip(depths, self.radius(depths), strict=True):
            np.minimum(sdf, np.sqrt(square + np.square(y - depth * self.height * c.drop)) - radius, out=sdf)
        return sdf

    def hit(self, c: Canvas, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Depth, in [0, 1], at which a line of sight through (x, y) meets it; inside the rim, its inner side."""
        sink, square = self.height * c.drop, self.rim**2
        a = sink * sink - square * self.bend
        b = -2 * y * sink - (square * self.slope)
        free = x * x + y * y - square
        root = np.sqrt(np.maximum(b * b - 4 * a * free, 0))
        below = np.where(free > 0, root, -root) - b  # from outside the near wall is met, from inside the far one
        depth = 2 * free / np.where(np.abs(below) < 1e-6, -1e-6, below)
        return np.where(depth < 0, 1, np.clip(depth, 0, 1)).astype(np.float32)

    def normal(
        self, c: Canvas, x: np.ndarray, y: np.ndarray, depth: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Outward unit normal (east, near, up) at that depth."""
        radius = np.maximum(self.radius(depth), 0.05)
        steep = self.rim**2 * (self.slope + 2 * self.bend * depth) / (2 * self.height)
        up = steep / radius
        east, near = x / radius, (y - depth * (self.height * c.drop)) / radius
        norm = 1 / np.sqrt(east * east + near * near + up * up + (1e-6))
        return east * norm, near * norm, up * norm

    def cast(self, c: Canvas, x: float = 0.0, y: float = 0.0) -> None:
        """Its shadow on the table; (x, y): its rim's centre."""
        gx, gy = c.ground
        for depth in np.linspace(1, 0, 6).tolist():
            high = (1 - depth) * self.height
            centre_x, centre_y = x + high * c.fall[0], y + self.height * c.drop + high * c.fall[1]
            radius = float(self.radius(depth))
            dark = 0.95 - 0.35 * (1 - depth)
            c.cast(circle(gx - centre_x, gy - centre_y, radius), 0.14 + 0.4 * high, dark)
        base = float(self.radius(1))
        c.cast(circle(gx - x, gy - (y + self.height * c.drop), base * 1.06), 0.28, 0.9)


def blend(main: np.ndarray, second: np.ndarray, accent: np.ndarray, weights: Weights) -> np.ndarray:
    """Colours (3, H, W) of a decorated surface."""
    a, b = weights
    main, second, accent = (np.asarray(colour, np.float32)[:, None, None] for colour in (main, second, accent))
    if not a.any() and not b.any():
        return main
    ground = main + a * (second - main)
    return ground + b * (accent - ground)


def outside(c: Canvas, wall: Wall, colours: np.ndarray, kind: str, gloss: float, rng: np.random.Generator) -> None:
    """Paint a vessel's outer wall, its rim round the centre."""
    depth = wall.hit(c, c.x, c.y)
    normal = wall.normal(c, c.x, c.y, depth)
    angle = np.arctan2(normal[0], np.maximum(normal[1], 0.02))
    weights = decorate(kind, angle * wall.rim, depth * wall.height, c.soft, rng)
    light = c.lambert(*normal) * (1 - 0.12 * depth) * (0.88 + 0.12 * np.cos(angle))
    c.paint(
        wall.silhouette(c, c.x, c.y),
        blend(colours[0], colours[1], colours[2], weights),
        light,
        gloss * c.glint(*normal),
    )


def inside(
    c: Canvas,
    wall: Wall,
    colour: np.ndarray,
    gloss: float,
    y: float = 0.0,
    ring: tuple[float, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint the inner side of a vessel and its floor.

    Args:
        c: the canvas.
        wall: the inner wall.
        colour: (3,) RGB.
        gloss: strength of highlights, 0..1.
        y: where its rim's centre lies.
        ring: depth and colour of a painted ring, if any.

    Returns:
        Signed distance to its opening, and the depth seen at each cell.
    """
    x, near = c.x, c.y - y
    opening = circle(x, near, wall.rim)
    depth = wall.hit(c, x, near)
    east, toward, up = (-part for part in wall.normal(c, x, near, depth))
    floor = depth > 0.995
    up = np.where(floor, 0.96, np.maximum(up, 0))
    east, toward = np.where(floor, 0.0, east), np.where(floor, 0.0, toward)
    high = depth * wall.height
    over_x = x - high * c.fall[0]
    over_y = near - high * c.drop - high * c.fall[1]
    shaded = np.clip(circle(over_x, over_y, wall.rim) / (0.08 + 0.2 * high) + 0.5, 0, 1)
    light = c.lambert(east, toward, up) * (1.02 - 0.24 * min(wall.height, 1.0) * depth) * (1 - 0.3 * shaded)
    paint = np.asarray(colour, np.float32)[:, None, None]
    if ring is not None:
        line = c.soft(np.abs(depth - ring[0]) * wall.height - 0.035)
        paint = paint + line * (np.asarray(ring[1], np.float32)[:, None, None] - paint)
    c.paint(opening, paint, light, gloss * c.glint(east, toward, up, 60) * (1 - shaded))
    return opening, depth


def fill(c: Canvas, wall: Wall, level: float, colour: np.ndarray, y: float = 0.0, lumps: float = 0.0) -> None:
    """Fill a vessel up to a depth; `lumps` roughens the surface."""
    sink = level * wall.height
    x, near = c.x, c.y - (y + sink * c.drop)
    surface = circle(x, near, float(wall.radius(level)) - 0.01)
    sdf = np.maximum(surface, circle(c.x, c.y - y, wall.rim))
    shade = np.clip(circle(x - sink * c.fall[0], near - sink * c.fall[1], wall.rim) / 0.15 + 0.5, 0, 1)
    rough = np.sin(x * 29 + 2 * np.sin(near * 17)) * np.sin(near * 31 + 2 * np.sin(x * 15))
    rim = np.exp(-np.square(surface / 0.05))
    gleam = np.exp(-np.square((x + 0.25) / 0.2) - np.square((near + 0.3) / 0.09)) * (0.4 if lumps == 0 else 0.0)
    c.paint(sdf, colour, (1.0 - 0.3 * shade) * (1 + lumps * rough) - 0.12 * rim, gleam)


def lip(c: Canvas, colour: np.ndarray, outer: float, inner: float, gloss: float, y: float = 0.0) -> None:
    """Paint the rim: a rounded ring between two radii."""
    far = np.sqrt(c.x * c.x + np.square(c.y - y))
    middle, half = (outer + inner) / 2, (outer - inner) / 2
    tilt = np.clip((far - middle) / half, -1, 1) * 0.8
    east, near = c.x / (far + 1e-3) * tilt, (c.y - y) / (far + 1e-3) * tilt
    up = np.sqrt(1 - tilt * tilt)
    light = 1.06 * c.lambert(east, near, up)
    c.paint(np.abs(far - middle) - half, colour, light, gloss * c.glint(east, near, up, 30))


def loop(
    c: Canvas, colour: np.ndarray, middle: tuple[float, float], half: tuple[float, float], thick: float, corner: float
) -> None:
    """Paint a loop handle that lies in the (u, v) plane at rim height.

    Args:
        c: the canvas.
        colour: (3,) RGB.
        middle: (u, v) of the loop's middle.
        half: half extents of the bar's centre line along u and v.
        thick: half thickness of the bar.
        corner: radius of the centre line's corners.
    """

    def bar(below: float) -> tuple[np.ndarray, np.ndarray]:
        u, v = c.turn(c.x, c.y - below)
        line = rounded_box(u - middle[0], v - middle[1], *half, corner)
        return np.abs(line) - thick, line

    depth = 0.7 * thick * c.drop + 0.03
    for share in (1.0, 0.5):
        c.paint(bar(share * depth)[0], colour, 0.62 + 0.1 * (1 - share), handle=True)
    sdf, line = bar(0.0)
    tilt = np.clip(line / thick, -1, 1)
    up = np.sqrt(1 - 0.9 * tilt * tilt)
    away = np.sign(c.u - middle[0]) * tilt * 0.6
    cos, sin = c.axis
    normal = (away * cos, away * sin, up)
    c.paint(sdf, colour, 0.35 + 0.68 * c.lambert(*normal), 0.4 * c.glint(*normal, 25), handle=True)
    gx, gy = c.ground
    u, v = c.turn(gx - (0.4 * c.fall[0]), gy - (0.4 * c.drop + 0.4 * c.fall[1]))
    line = np.abs(rounded_box(u - middle[0], v - middle[1], *half, corner))
    c.cast(line - thick, 0.25, 0.7)


def paint_mug(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    """A mug: rim of radius 1 round the centre, its loop at +u."""
    main, second, accent = colours
    height, base = 1.05 + 0.75 * shape[1], 0.72 + 0.26 * shape[2]
    wall = (
        Wall.bulging(1.0, height, base, 0.05 + 0.12 * rng.random())
        if rng.random() < 0.35
        else Wall.cone(1.0, height, base)
    )
    gloss = float(rng.choice([0.1, 0.5, 0.8]))
    kinds = ["plain", "band", "rings", "stripes", "dots", "checks", "flowers", "dip", "zigzag", "print", "speckle"]
    kind = kinds[int(shape[5] * len(kinds))]
    wall.cast(c)
    outside(c, wall, colours, kind, gloss, rng)
    handle = second if rng.random() < 0.2 else main
    thick = 0.075 + 0.045 * shape[4]
    reach, wide = 1.46 - thick, 0.3 + 0.1 * shape[3] - thick / 2
    loop(c, handle, (reach / 2 + 0.43, 0), (reach / 2 - 0.43, wide), thick, min(wide, 0.3 * (0.4 + 0.6 * rng.random())))
    lip(c, accent if rng.random() < 0.25 else main * 0.98 + 5, 1.0, 0.9, gloss)
    inner = second if shape[6] < 0.25 else np.array([244, 240, 232]) if shape[6] < 0.55 else main
    cup = Wall(wall.rim * 0.9, wall.height, wall.slope, wall.bend)
    inside(c, cup, inner, gloss)
    drink = [(58, 34, 22), (150, 88, 46), (226, 210, 186), (176, 96, 40), None, None][int(shape[7] * 6)]
    if drink is not None:
        fill(c, cup, rng.uniform(0.14, 0.4), np.array(drink))


def paint_bowl(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    """A bowl: rim of radius 1 round the centre."""
    main, second, accent = colours
    height, base = 0.5 + 0.4 * shape[1], 0.42 + 0.22 * shape[2]
    wall = Wall(1.0, height, -0.35 * (1 - base**2), -0.65 * (1 - base**2))
    gloss = float(rng.choice([0.12, 0.45, 0.75]))
    kinds = ["plain", "band", "rings", "stripes", "dots", "flowers", "dip", "zigzag", "speckle", "plain"]
    wall.cast(c)
    outside(c, wall, colours, kinds[int(shape[5] * len(kinds))], gloss, rng)
    lip(c, accent if rng.random() < 0.3 else main, 1.0, 0.93, gloss)
    inner = second if shape[3] < 0.35 else np.array([242, 239, 232]) if shape[3] < 0.55 else main
    cup = Wall(0.93, height * 0.94, wall.slope, wall.bend)
    inside(c, cup, inner, gloss, ring=(rng.uniform(0.08, 0.2), accent) if shape[4] < 0.45 else None)
    foods = [(238, 234, 222), (190, 98, 40), (146, 40, 48), (104, 134, 62), (226, 188, 96), (120, 74, 44)]
    if shape[6] < 0.5:
        fill(c, cup, rng.uniform(0.3, 0.55), np.array(foods[int(shape[7] * len(foods))]), lumps=0.09)


def paint_plate(c: Canvas, shape: Shape, colours: np.ndarray, rng: np.random.Generator) -> None:
    """A plate."""
    main, _, accent = colours
    wall = Wall.cone(1.0, 0.14, 0.66)
    wall.cast(c)
    outside(c, wall, colours, "plain", 0.2, rng)
    lip(c, accent if shape[1] < 0.5 else main, 1.0, 0.94, 0.5)
    cup = Wall.cone(0.94, 0.12, 0.62)
    inside(c, cup, main, 0.2, ring=(0.5, accent) if shape[2] < 0.5 else None)
