"""Layout of a street in metres, drawn at random before anything is painted."""

from bisect import bisect
from dataclasses import dataclass
from typing import Literal

import numpy as np

from famix_minitown.canvas import FAR

__all__ = ["Facade", "Kind", "Object", "Street", "draw_street"]

Kind = Literal["car", "person", "lamp", "sign", "tree", "bush"]
Surface = Literal["building", "wall", "hedge"]
Color = tuple[int, int, int]

_FACADES: tuple[Color, ...] = (
    (176, 142, 112), (150, 96, 80), (198, 184, 160), (128, 128, 136), (206, 172, 120), (118, 104, 122), (168, 174, 180),
    (188, 120, 92), (140, 152, 138), (216, 204, 188),
)  # fmt: skip
_WALLS: tuple[Color, ...] = ((158, 150, 138), (128, 122, 116), (176, 160, 134), (142, 110, 92))
_HEDGES: tuple[Color, ...] = ((62, 104, 46), (78, 120, 58), (54, 92, 52))
_NEAREST_FACADE = 2.0


@dataclass(frozen=True)
class Facade:
    """A section of a side of the street: a building, a wall or a hedge.

    Attributes:
        surface: kind of the section.
        start: distance of its near end in metres; its far end is the start of the next one.
        height: in metres.
        color: RGB.
        floor, pitch: height of a floor and distance between windows, in metres.
        glass: RGB of its windows by day.
        pattern: seed of the lit windows.
    """

    surface: Surface
    start: float
    height: float
    color: Color
    floor: float
    pitch: float
    glass: Color
    pattern: int


@dataclass(frozen=True)
class Object:
    """An object on the ground at (x, z) in metres; `seed` determines its appearance."""

    kind: Kind
    x: float
    z: float
    seed: int


@dataclass(frozen=True)
class Street:
    """A street.

    Attributes:
        road: x of the left and the right kerb.
        sides: x of the left and the right line of facades.
        middle: x of the line between the lanes.
        front, back: for each side, the facades on the line and in the row behind it, from near to far.
        objects: from far to near, the order of painting.
    """

    road: tuple[float, float]
    sides: tuple[float, float]
    middle: float
    front: tuple[tuple[Facade, ...], tuple[Facade, ...]]
    back: tuple[tuple[Facade, ...], tuple[Facade, ...]]
    objects: tuple[Object, ...]


def draw_street(rng: np.random.Generator) -> Street:
    """Draw a street."""
    left, right = -rng.uniform(3.4, 5.6), rng.uniform(3.4, 6.4)
    road = (left, right)
    sides = (left - rng.uniform(2.2, 4.2), right + rng.uniform(2.2, 4.2))
    objects = [*_draw_cars(road, rng), *_draw_people(road, sides, rng), *_draw_furniture(road, sides, rng)]
    return Street(
        road=road,
        sides=sides,
        middle=(left + right) / 2,
        front=(_draw_facades(rng), _draw_facades(rng)),
        back=(_draw_facades(rng, tall=True), _draw_facades(rng, tall=True)),
        objects=tuple(sorted(objects, key=lambda item: -item.z)),
    )


def _draw_facades(rng: np.random.Generator, tall: bool = False) -> tuple[Facade, ...]:
    facades, start = [], 0.0
    while start < FAR:
        surface: Surface = "building"
        if not tall:
            surface = _SURFACES[bisect(_SURFACE_SHARES, rng.random())]
        facades.append(_draw_facade(surface, start, rng))
        length = rng.uniform(7, 20) if surface == "building" else rng.uniform(6, 13)
        start += length + (_NEAREST_FACADE if not start else 0)
    return tuple(facades)


_SURFACES: tuple[Surface, ...] = ("building", "wall", "hedge")
_SURFACE_SHARES = (0.56, 0.83)  # cumulative


def _draw_facade(surface: Surface, start: float, rng: np.random.Generator) -> Facade:
    colors = {"building": _FACADES, "wall": _WALLS, "hedge": _HEDGES}[surface]
    low, high = {"building": (5.5, 17.0), "wall": (2.0, 3.2), "hedge": (1.6, 3.0)}[surface]
    base = colors[int(rng.integers(len(colors)))]
    changes = rng.integers(-14, 15, 3).tolist()
    red, green, blue = (min(max(value + change, 0), 255) for value, change in zip(base, changes, strict=True))
    glass = int(rng.integers(40, 120))
    return Facade(
        surface=surface,
        start=start,
        height=rng.uniform(low, high),
        color=(red, green, blue),
        floor=rng.uniform(2.7, 3.5),
        pitch=rng.uniform(2.0, 3.4),
        glass=(glass, glass + int(rng.integers(8, 30)), glass + int(rng.integers(16, 50))),
        pattern=int(rng.integers(256)),
    )


def _draw_cars(road: tuple[float, float], rng: np.random.Generator) -> list[Object]:
    lanes = (road[0] + 1.1, (road[0] + road[1]) / 2 + 1.7, (road[0] + road[1]) / 2 - 1.7, road[1] - 1.1)
    return _spread("car", int(rng.integers(3, 8)), lanes, (6.5, 48), 5.5, rng)


def _draw_people(road: tuple[float, float], sides: tuple[float, float], rng: np.random.Generator) -> list[Object]:
    places = (sides[0] + 1.2, road[0] - 0.8, road[1] + 0.8, sides[1] - 1.2)
    people = _spread("person", int(rng.integers(4, 11)), places, (5, 30), 0.8, rng)
    crossing = int(rng.random() < 0.35)
    return people + _spread("person", crossing, ((road[0] + road[1]) / 2,), (9, 22), 1.0, rng)


def _draw_furniture(road: tuple[float, float], sides: tuple[float, float], rng: np.random.Generator) -> list[Object]:
    kerbs = (road[0] - 0.5, road[1] + 0.5)
    lamps = _spread("lamp", int(rng.integers(3, 6)), kerbs, (5.5, 45), 4.0, rng)
    signs = _spread("sign", int(rng.integers(3, 7)), kerbs, (5, 30), 2.5, rng)
    inner = (sides[0] + 0.9, sides[1] - 0.9)
    trees = _spread("tree", int(rng.integers(1, 6)), inner, (8, 60), 4.0, rng)
    return lamps + signs + trees + _spread("bush", int(rng.integers(0, 4)), inner, (6, 40), 2.0, rng)


def _spread(
    kind: Kind,
    count: int,
    places: tuple[float, ...],
    depths: tuple[float, float],
    gap: float,
    rng: np.random.Generator,
) -> list[Object]:
    """Draw up to `count` objects near the given x, at least `gap` metres apart in depth at the same x."""
    found: list[tuple[int, float]] = []
    objects = []
    for _ in range(count):
        place, share = int(rng.integers(len(places))), rng.random()
        z = depths[0] + (depths[1] - depths[0]) * share * share  # more near the camera, where they are visible
        x, seed = places[place] + rng.uniform(-0.3, 0.3), int(rng.integers(2**31))
        if all(place != other or abs(z - depth) > gap for other, depth in found):
            found.append((place, z))
            objects.append(Object(kind, x, z, seed))
    return objects
