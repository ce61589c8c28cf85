"""Streets: their layout in meters, drawn at random before anything is painted, and the painter for their objects."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from famix_minitown.rendering.canvas import FAR, FIXED_POINT_BITS, Canvas, Color, Light, TrainId

Kind = Literal["car", "person", "lamp", "sign", "tree", "bush"]
Surface = Literal["building", "wall", "hedge"]
Pair = tuple[float, float]

_COLORS: dict[str, tuple[Color, ...]] = {
    "building": (
        (176, 142, 112), (150, 96, 80), (198, 184, 160), (128, 128, 136), (206, 172, 120), (118, 104, 122),
        (168, 174, 180), (188, 120, 92), (140, 152, 138), (216, 204, 188),
    ),
    "wall": ((158, 150, 138), (128, 122, 116), (176, 160, 134), (142, 110, 92)),
    "hedge": ((62, 104, 46), (78, 120, 58), (54, 92, 52)),
    "car": (
        (186, 28, 30), (30, 62, 140), (236, 236, 232), (40, 42, 48), (168, 172, 178), (232, 186, 40), (26, 98, 70),
        (222, 110, 30),
    ),
    "clothes": (
        (200, 40, 50), (40, 70, 160), (240, 210, 60), (60, 140, 90), (230, 230, 230), (140, 60, 150), (240, 130, 40),
        (50, 50, 58), (90, 170, 210),
    ),
    "skin": ((236, 196, 168), (202, 150, 116), (128, 86, 62)),
    "leaves": ((58, 116, 44), (76, 136, 54), (96, 148, 60), (48, 100, 60), (118, 150, 58)),
}  # fmt: skip
_STEEL: Color = (104, 108, 112)
_LAMP: Color = (255, 214, 140)
_HEADLIGHT: Color = (255, 248, 220)
_TAIL_LIGHT: Color = (255, 40, 30)
_HEIGHTS = {"building": (5.5, 17.0), "wall": (2.0, 3.2), "hedge": (1.6, 3.0)}  # meters
_SURFACES: tuple[Surface, ...] = ("building", "wall", "hedge")
_SURFACE_SHARES = (0.56, 0.83)  # cumulative
_NEAREST_FACADE = 2.0  # meters


@dataclass(frozen=True)
class Facade:
    """Section of one side of the street. Lengths are in meters."""

    surface: Surface
    start: float  # distance of its near end; its far end is the start of the next one
    height: float
    color: Color
    floor: float  # height of a floor
    pitch: float  # distance between windows
    glass: Color  # daytime color of its windows
    pattern: int  # seed of the lit windows


@dataclass(frozen=True)
class Object:
    """Object on the ground at (x, z) in meters. `seed` determines its appearance."""

    kind: Kind
    x: float
    z: float
    seed: int


@dataclass(frozen=True)
class Street:
    """Layout of a street. Pairs contain values for the left and right side."""

    road: Pair  # x of the curbs
    sides: Pair  # x of the lines of facades
    middle: float  # x of the line between the lanes
    front: tuple[tuple[Facade, ...], tuple[Facade, ...]]  # facades on the line, from near to far
    back: tuple[tuple[Facade, ...], tuple[Facade, ...]]  # facades in the row behind the line
    objects: tuple[Object, ...]  # in painting order, from far to near


def draw_street(rng: np.random.Generator) -> Street:
    """Draw a street."""
    left, right = -rng.uniform(3.4, 5.6), rng.uniform(3.4, 6.4)
    sides = (left - rng.uniform(2.2, 4.2), right + rng.uniform(2.2, 4.2))
    middle, kerbs, inner = (left + right) / 2, (left - 0.5, right + 0.5), (sides[0] + 0.9, sides[1] - 0.9)
    lanes = (left + 1.1, middle + 1.7, middle - 1.7, right - 1.1)
    objects = _spread("car", int(rng.integers(3, 8)), lanes, (6.5, 48), 5.5, rng)
    pavements = (sides[0] + 1.2, left - 0.8, right + 0.8, sides[1] - 1.2)
    objects += _spread("person", int(rng.integers(4, 11)), pavements, (5, 30), 0.8, rng)
    objects += _spread("person", int(rng.random() < 0.35), (middle,), (9, 22), 1.0, rng)
    objects += _spread("lamp", int(rng.integers(3, 6)), kerbs, (5.5, 45), 4.0, rng)
    objects += _spread("sign", int(rng.integers(3, 7)), kerbs, (5, 30), 2.5, rng)
    objects += _spread("tree", int(rng.integers(1, 6)), inner, (8, 60), 4.0, rng)
    objects += _spread("bush", int(rng.integers(0, 4)), inner, (6, 40), 2.0, rng)
    return Street(
        road=(left, right),
        sides=sides,
        middle=middle,
        front=(_draw_facades(rng), _draw_facades(rng)),
        back=(_draw_facades(rng, tall=True), _draw_facades(rng, tall=True)),
        objects=tuple(sorted(objects, key=lambda item: -item.z)),
    )


def _spread(
    kind: Kind, count: int, places: Sequence[float], depths: Pair, gap: float, rng: np.random.Generator
) -> list[Object]:
    """Draw up to `count` objects near the given x positions, at least `gap` meters apart in depth at the same x."""
    found: list[tuple[int, float]] = []
    objects = []
    for _ in range(count):
        place, share = int(rng.integers(len(places))), rng.random()
        z = depths[0] + (depths[1] - depths[0]) * share * share  # denser near the camera, where they are visible
        x, seed = places[place] + rng.uniform(-0.3, 0.3), int(rng.integers(2**31))
        if all(place != other or abs(z - depth) > gap for other, depth in found):
            found.append((place, z))
            objects.append(Object(kind, x, z, seed))
    return objects


def _draw_facades(rng: np.random.Generator, tall: bool = False) -> tuple[Facade, ...]:
    facades, start = [], 0.0
    while start < FAR:
        surface: Surface = "building" if tall else _SURFACES[bisect(_SURFACE_SHARES, rng.random())]
        base = _pick(surface, rng)
        changes = rng.integers(-14, 15, 3).tolist()
        red, green, blue = (min(max(value + change, 0), 255) for value, change in zip(base, changes, strict=True))
        glass = int(rng.integers(40, 120))
        facades.append(
            Facade(
                surface=surface,
                start=start,
                height=rng.uniform(*_HEIGHTS[surface]),
                color=(red, green, blue),
                floor=rng.uniform(2.7, 3.5),
                pitch=rng.uniform(2.0, 3.4),
                glass=(glass, glass + int(rng.integers(8, 30)), glass + int(rng.integers(16, 50))),
                pattern=int(rng.integers(256)),
            )
        )
        length = rng.uniform(7, 20) if surface == "building" else rng.uniform(6, 13)
        start += length + (_NEAREST_FACADE if not start else 0)
    return tuple(facades)


def _pick(name: str, rng: np.random.Generator) -> Color:
    return _COLORS[name][int(rng.integers(len(_COLORS[name])))]


def _shade(color: Color, share: float) -> Color:
    red, green, blue = (min(255, int(value * share)) for value in color)
    return red, green, blue


def paint_object(canvas: Canvas, item: Object) -> None:
    """Paint an object in front of the canvas. Its seed determines its appearance."""
    getattr(_Painter(canvas, item), item.kind)()


class _Painter:
    """Painter for an object. Points (x, y) are in meters relative to its foot. `detail` only changes colors."""

    def __init__(self, canvas: Canvas, item: Object) -> None:
        self.canvas, self.item, self.rng = canvas, item, np.random.default_rng(item.seed)
        self.number = 0

    def begin(self, class_id: int) -> None:
        self.number = self.canvas.begin(class_id, self.item.z)

    def pixels(self, meters: float) -> float:
        return self.canvas.camera.pixels(meters, self.item.z)

    def polygon(
        self,
        points: Sequence[Pair],
        color: Color,
        *,
        detail: bool = False,
        origin: float | None = None,
        depths: list[float] | None = None,
    ) -> None:
        """Fill a polygon, by default relative to the object's x and at its distance."""
        left = self.item.x if origin is None else origin
        projected = self.canvas.camera.project(
            [(left + x, y) for x, y in points], depths or [self.item.z] * len(points)
        )
        self.canvas.polygon(projected, color, 0 if detail else self.number)

    def box(self, left: float, right: float, low: float, high: float, color: Color, *, detail: bool = False) -> None:
        self.polygon([(left, low), (left, high), (right, high), (right, low)], color, detail=detail)

    def ellipse(self, x: float, y: float, radii: Pair, color: Color, *, detail: bool = False) -> None:
        (center,) = self.canvas.camera.project([(self.item.x + x, y)], [self.item.z])
        self.canvas.ellipse(center, radii, color, 0 if detail else self.number)

    def light(self, x: float, y: float, radius: float, color: Color, reach: float, ground_z: float | None) -> None:
        """Add a lamp with a pool of light on the ground at distance `ground_z`, or without one if it is None."""
        camera = self.canvas.camera
        (center,) = camera.project([(self.item.x + x, y)], [self.item.z])
        ground = None if ground_z is None else camera.horizon + camera.pixels(camera.elevation, ground_z)
        column, row = (float(place) / (1 << FIXED_POINT_BITS) for place in center)
        light = Light(column, row, self.pixels(radius), color, self.pixels(reach), self.number, ground)
        self.canvas.lights.append(light)

    def car(self) -> None:
        item, rng = self.item, self.rng
        color, half, roof = _pick("car", rng), rng.uniform(0.86, 1.0), rng.uniform(1.4, 1.75)
        length, lamp = rng.uniform(3.4, 4.6), _HEADLIGHT if item.x < 0 else _TAIL_LIGHT
        self.begin(TrainId.CAR)
        shadow = [(x, 0.0) for x in (-half - 0.1, half + 0.1, half + 0.1, -half - 0.1)]
        near, far = item.z - 0.15, item.z + length
        self.polygon(shadow, (44, 44, 48), detail=True, depths=[near, near, far, far])
        if abs(item.x) > half:  # otherwise the car is straight ahead and shows no side
            self.flank(color, item.x - half if item.x > 0 else item.x + half, roof, far)
        shoulder = roof * 0.58
        for wheel in (-half + 0.05, half - 0.3):
            self.box(wheel, wheel + 0.25, 0, 0.4, (24, 24, 26))
        cabin = [(-half * 0.96, shoulder), (-half * 0.76, roof), (half * 0.76, roof), (half * 0.96, shoulder)]
        glass = [(-half * 0.82, shoulder + 0.05), (-half * 0.67, roof - 0.1), (half * 0.67, roof - 0.1)]
        self.polygon(cabin, color)
        self.polygon([*glass, (half * 0.82, shoulder + 0.05)], (52, 66, 82), detail=True)
        self.box(-half, half, 0.24, shoulder + 0.04, color)
        self.box(-half, half, 0.24, 0.42, _shade(color, 0.55), detail=True)
        self.box(-0.26, 0.26, 0.44, 0.56, (238, 238, 226), detail=True)
        for side in (-1, 1):
            x, y, radius = side * half * 0.76, shoulder - 0.14, self.pixels(0.13)
            self.ellipse(x, y, (radius * 1.2, radius), _shade(lamp, 0.86), detail=True)
            reach, ground_z = (1.7, max(item.z - 1.5, 2.5)) if lamp == _HEADLIGHT else (0.6, None)
            self.light(x, y, 0.13, lamp, reach, ground_z)

    def flank(self, color: Color, edge: float, roof: float, far: float) -> None:
        """Paint the visible side of a car, at x = `edge`."""
        near, shoulder = self.item.z, roof * 0.58
        inner = 0.2 if self.item.x > 0 else -0.2
        cabin = [(0.0, shoulder), (0.0, shoulder), (inner, roof), (inner, roof)]
        self.polygon(cabin, (44, 54, 66), origin=edge, depths=[near, far - 0.5, far - 1.1, near + 0.3])
        body = [(0.0, 0.24), (0.0, 0.3), (0.0, shoulder), (0.0, shoulder)]
        self.polygon(body, _shade(color, 0.7), origin=edge, depths=[near, far, far, near])
        wheel = [(0.0, 0.0), (0.0, 0.0), (0.0, 0.55), (0.0, 0.55)]
        for z in (near + 0.5, far - 1.0):
            self.polygon(wheel, (26, 26, 28), origin=edge, depths=[z, z + 0.6, z + 0.6, z])

    def person(self) -> None:
        rng = self.rng
        size, top = rng.uniform(1.55, 1.95), _pick("clothes", rng)
        legs, step, width = _shade(_pick("clothes", rng), 0.6), rng.uniform(0.06, 0.3), rng.uniform(0.24, 0.32)
        self.begin(TrainId.PERSON)
        for foot in (-step, step):
            knees = [(foot * 0.3 - 0.12, size * 0.5), (foot * 0.3 + 0.12, size * 0.5)]
            self.polygon([(foot - 0.1, 0.0), *knees, (foot + 0.1, 0.0)], legs)
        shoulders = [(-width, size * 0.82), (width, size * 0.82)]
        hands = [(-width - 0.13, size * 0.5), (width + 0.13, size * 0.5)]
        self.polygon([shoulders[0], *hands, shoulders[1]], _shade(top, 0.75))
        self.polygon([(-width * 0.8, size * 0.45), *shoulders, (width * 0.8, size * 0.45)], top)
        radius = self.pixels(0.15)
        self.ellipse(0.0, size * 0.92, (radius, radius * 1.2), _pick("skin", rng))
        self.ellipse(0.0, size * 0.975, (radius * 1.02, radius * 0.6), (50, 36, 28))

    def post(self, width: float, height: float) -> None:
        self.begin(TrainId.POLE)
        self.box(-width, width, 0, height, _STEEL)
        self.box(width * 0.2, width, 0, height, _shade(_STEEL, 0.7), detail=True)

    def lamp(self) -> None:
        rng = self.rng
        height, inward = rng.uniform(4.2, 6.2), -1 if self.item.x > 0 else 1
        arm = inward * rng.uniform(0.9, 1.6)
        self.post(rng.uniform(0.13, 0.18), height)
        self.box(min(0.0, arm), max(0.0, arm), height - 0.16, height, _STEEL)
        self.box(arm - 0.4, arm + 0.4, height - 0.42, height - 0.14, (214, 212, 200))
        self.light(arm, height - 0.35, 0.3, _LAMP, 3.6, self.item.z)

    def sign(self) -> None:
        rng = self.rng
        height, radius = rng.uniform(2.3, 3.0), rng.uniform(0.5, 0.72)
        self.post(0.1, height)
        self.begin(TrainId.TRAFFIC_SIGN)
        sides = int(rng.choice([3, 4, 8, 24]))
        turn = {3: -0.25, 4: 0.125, 8: 0.0625, 24: 0.0}[sides]
        rim, face = ((200, 24, 30), (244, 244, 240)) if rng.random() < 0.55 else ((240, 240, 238), (26, 70, 170))
        if rng.random() < 0.15:
            rim, face = (30, 30, 30), (246, 200, 30)
        angles = (np.arange(sides) / sides + turn) * 2 * np.pi
        for share, color in ((1.0, rim), (0.72, face)):
            ring = [(radius * share * np.cos(a), height + radius * share * np.sin(-a)) for a in angles]
            self.polygon(ring, color, detail=color == face)
        self.box(-radius * 0.3, radius * 0.3, height - 0.08, height + 0.08, rim, detail=True)

    def tree(self) -> None:
        trunk, crown = self.rng.uniform(1.7, 2.8), self.rng.uniform(1.1, 2.0)
        self.begin(TrainId.VEGETATION)
        self.box(-0.16, 0.16, 0, trunk + 0.5, (96, 72, 52))
        self.leaves(trunk + crown * 0.8, crown)

    def bush(self) -> None:
        size = self.rng.uniform(0.6, 1.1)
        self.begin(TrainId.VEGETATION)
        self.leaves(size * 0.6, size)

    def leaves(self, height: float, size: float) -> None:
        """Paint a crown of leaf clumps, with darker clumps at the bottom."""
        rng, color = self.rng, _pick("leaves", self.rng)
        for share in (0.62, 0.62, 0.8, 0.8, 1.0, 1.0, 1.22):
            x, y = rng.uniform(-0.6, 0.6) * size, (share - 0.92) * 1.5 * size + rng.uniform(-0.2, 0.2) * size
            radius = self.pixels(rng.uniform(0.45, 0.68) * size)
            self.ellipse(x, max(height + y, 0.2 * size), (radius, radius * 0.9), _shade(color, share))
