"""Painters of the objects: cars, people, lamp posts, signs, trees and bushes."""

import numpy as np

from famix_minitown.canvas import Canvas, Color, Points, TrainId
from famix_minitown.layout import Object

__all__ = ["paint_object"]

_CAR_COLORS: tuple[Color, ...] = (
    (186, 28, 30), (30, 62, 140), (236, 236, 232), (40, 42, 48), (168, 172, 178), (232, 186, 40), (26, 98, 70),
    (222, 110, 30),
)  # fmt: skip
_CLOTHES: tuple[Color, ...] = (
    (200, 40, 50), (40, 70, 160), (240, 210, 60), (60, 140, 90), (230, 230, 230), (140, 60, 150), (240, 130, 40),
    (50, 50, 58), (90, 170, 210),
)  # fmt: skip
_SKIN: tuple[Color, ...] = ((236, 196, 168), (202, 150, 116), (128, 86, 62))
_GREENS: tuple[Color, ...] = ((58, 116, 44), (76, 136, 54), (96, 148, 60), (48, 100, 60), (118, 150, 58))
_STEEL: Color = (104, 108, 112)
_LAMP: Color = (255, 214, 140)
_HEADLIGHT: Color = (255, 248, 220)
_TAIL_LIGHT: Color = (255, 40, 30)


def paint_object(canvas: Canvas, item: Object) -> None:
    """Paint an object in front of the canvas; its seed determines its appearance."""
    rng = np.random.default_rng(item.seed)
    {
        "car": _paint_car,
        "person": _paint_person,
        "lamp": _paint_lamp,
        "sign": _paint_sign,
        "tree": _paint_tree,
        "bush": _paint_bush,
    }[item.kind](canvas, item, rng)


def _pick(colors: tuple[Color, ...], rng: np.random.Generator) -> Color:
    return colors[int(rng.integers(len(colors)))]


def _shade(color: Color, share: float) -> Color:
    red, green, blue = (min(255, int(value * share)) for value in color)
    return red, green, blue


def _box(canvas: Canvas, item: Object, left: float, right: float, low: float, high: float) -> Points:
    """Project an upright rectangle at the object's distance, in metres relative to its foot."""
    corners = [(left, low), (left, high), (right, high), (right, low)]
    return canvas.camera.project([(item.x + x, y) for x, y in corners], item.z)


def _shape(canvas: Canvas, item: Object, points: list[tuple[float, float]]) -> Points:
    return canvas.camera.project([(item.x + x, y) for x, y in points], item.z)


def _paint_car(canvas: Canvas, item: Object, rng: np.random.Generator) -> None:
    color, half, roof = _pick(_CAR_COLORS, rng), rng.uniform(0.86, 1.0), rng.uniform(1.4, 1.75)
    length, oncoming = rng.uniform(3.4, 4.6), item.x < 0
    number = canvas.begin(TrainId.CAR, item.z)
    shadow = canvas.camera.project(
        [(item.x + x, 0.0) for x in (-half - 0.1, half + 0.1, half + 0.1, -half - 0.1)],
        [item.z - 0.15, item.z - 0.15, item.z + length, item.z + length],
    )
    canvas.polygon(shadow, (44, 44, 48))
    _paint_flank(canvas, item, number, color, half, roof, length)
    shoulder = roof * 0.58
    cabin = [(-half * 0.96, shoulder), (-half * 0.76, roof), (half * 0.76, roof), (half * 0.96, shoulder)]
    glass = [(-half * 0.82, shoulder + 0.05), (-half * 0.67, roof - 0.1), (half * 0.67, roof - 0.1)]
    for wheel in (-half + 0.05, half - 0.3):
        canvas.polygon(_box(canvas, item, wheel, wheel + 0.25, 0, 0.4), (24, 24, 26), part_of=number)
    canvas.polygon(_shape(canvas, item, cabin), color, part_of=number)
    canvas.polygon(_shape(canvas, item, [*glass, (half * 0.82, shoulder + 0.05)]), (52, 66, 82))
    canvas.polygon(_box(canvas, item, -half, half, 0.24, shoulder + 0.04), color, part_of=number)
    canvas.polygon(_box(canvas, item, -half, half, 0.24, 0.42), _shade(color, 0.55))
    canvas.polygon(_box(canvas, item, -0.26, 0.26, 0.44, 0.56), (238, 238, 226))
    lamp = _HEADLIGHT if oncoming else _TAIL_LIGHT
    for side in (-1, 1):
        _paint_car_light(canvas, item, number, side * half * 0.76, shoulder - 0.14, lamp)


def _paint_flank(
    canvas: Canvas, item: Object, number: int, color: Color, half: float, roof: float, length: float
) -> None:
    """Paint the visible side, unless the car is straight ahead."""
    edge = item.x - half if item.x > half else item.x + half if item.x < -half else None
    if edge is None:
        return
    inner = edge + (0.2 if item.x > 0 else -0.2)
    shoulder, far = roof * 0.58, item.z + length
    depths = [item.z, far, far, item.z]
    body = canvas.camera.project([(edge, 0.24), (edge, 0.3), (edge, shoulder), (edge, shoulder)], depths)
    cabin = canvas.camera.project(
        [(edge, shoulder), (edge, shoulder), (inner, roof), (inner, roof)], [item.z, far - 0.5, far - 1.1, item.z + 0.3]
    )
    canvas.polygon(cabin, (44, 54, 66), part_of=number)
    canvas.polygon(body, _shade(color, 0.7), part_of=number)
    for near in (item.z + 0.5, far - 1.0):
        wheel = [(edge, 0.0), (edge, 0.0), (edge, 0.55), (edge, 0.55)]
        canvas.polygon(canvas.camera.project(wheel, [near, near + 0.6, near + 0.6, near]), (26, 26, 28), part_of=number)


def _paint_car_light(canvas: Canvas, item: Object, number: int, x: float, y: float, lamp: Color) -> None:
    center = _shape(canvas, item, [(x, y)])[0]
    radius = canvas.camera.pixels(0.13, item.z)
    canvas.ellipse(center, (radius * 1.2, radius), _shade(lamp, 0.86))
    headlight = lamp == _HEADLIGHT
    ground = canvas.camera.horizon + canvas.camera.pixels(canvas.camera.elevation, max(item.z - 1.5, 2.5))
    reach = canvas.camera.pixels(1.7 if headlight else 0.6, item.z)
    canvas.light(center, radius, lamp, reach, number, ground if headlight else None)


def _paint_person(canvas: Canvas, item: Object, rng: np.random.Generator) -> None:
    size, top, legs = rng.uniform(1.55, 1.95), _pick(_CLOTHES, rng), _shade(_pick(_CLOTHES, rng), 0.6)
    step, width = rng.uniform(0.06, 0.3), rng.uniform(0.24, 0.32)
    number = canvas.begin(TrainId.PERSON, item.z)
    for foot in (-step, step):
        leg = [(foot - 0.1, 0.0), (foot * 0.3 - 0.12, size * 0.5), (foot * 0.3 + 0.12, size * 0.5), (foot + 0.1, 0.0)]
        canvas.polygon(_shape(canvas, item, leg), legs, part_of=number)
    torso = [(-width * 0.8, size * 0.45), (-width, size * 0.82), (width, size * 0.82), (width * 0.8, size * 0.45)]
    arms = [(-width, size * 0.82), (-width - 0.13, size * 0.5), (width + 0.13, size * 0.5), (width, size * 0.82)]
    canvas.polygon(_shape(canvas, item, arms), _shade(top, 0.75), part_of=number)
    canvas.polygon(_shape(canvas, item, torso), top, part_of=number)
    radius = canvas.camera.pixels(0.15, item.z)
    head = _shape(canvas, item, [(0.0, size * 0.92)])[0]
    canvas.ellipse(head, (radius, radius * 1.2), _pick(_SKIN, rng), part_of=number)
    hair = _shape(canvas, item, [(0.0, size * 0.975)])[0]
    canvas.ellipse(hair, (radius * 1.02, radius * 0.6), (50, 36, 28), part_of=number)


def _paint_post(canvas: Canvas, item: Object, number: int, width: float, height: float) -> None:
    canvas.polygon(_box(canvas, item, -width, width, 0, height), _STEEL, part_of=number)
    canvas.polygon(_box(canvas, item, width * 0.2, width, 0, height), _shade(_STEEL, 0.7))


def _paint_lamp(canvas: Canvas, item: Object, rng: np.random.Generator) -> None:
    height, inward = rng.uniform(4.2, 6.2), -1 if item.x > 0 else 1
    arm = inward * rng.uniform(0.9, 1.6)
    number = canvas.begin(TrainId.POLE, item.z)
    _paint_post(canvas, item, number, rng.uniform(0.13, 0.18), height)
    low, high = min(0.0, arm), max(0.0, arm)
    canvas.polygon(_box(canvas, item, low, high, height - 0.16, height), _STEEL, part_of=number)
    head = _box(canvas, item, arm - 0.4, arm + 0.4, height - 0.42, height - 0.14)
    canvas.polygon(head, (214, 212, 200), part_of=number)
    center = _shape(canvas, item, [(arm, height - 0.35)])[0]
    ground = canvas.camera.horizon + canvas.camera.pixels(canvas.camera.elevation, item.z)
    reach = canvas.camera.pixels(3.6, item.z)
    canvas.light(center, canvas.camera.pixels(0.3, item.z), _LAMP, reach, number, ground)


def _paint_sign(canvas: Canvas, item: Object, rng: np.random.Generator) -> None:
    height, radius = rng.uniform(2.3, 3.0), rng.uniform(0.5, 0.72)
    post = canvas.begin(TrainId.POLE, item.z)
    _paint_post(canvas, item, post, 0.1, height)
    plate = canvas.begin(TrainId.TRAFFIC_SIGN, item.z)
    sides = int(rng.choice([3, 4, 8, 24]))
    turn = {3: -0.25, 4: 0.125, 8: 0.0625, 24: 0.0}[sides]
    rim, face = ((200, 24, 30), (244, 244, 240)) if rng.random() < 0.55 else ((240, 240, 238), (26, 70, 170))
    if rng.random() < 0.15:
        rim, face = (30, 30, 30), (246, 200, 30)

    def ring(share: float) -> Points:
        angles = (np.arange(sides) / sides + turn) * 2 * np.pi
        points = [(radius * share * np.cos(a), height + radius * share * np.sin(-a)) for a in angles]
        return _shape(canvas, item, points)

    canvas.polygon(ring(1.0), rim, part_of=plate)
    canvas.polygon(ring(0.72), face)
    canvas.polygon(_box(canvas, item, -radius * 0.3, radius * 0.3, height - 0.08, height + 0.08), rim)


def _paint_tree(canvas: Canvas, item: Object, rng: np.random.Generator) -> None:
    trunk, crown = rng.uniform(1.7, 2.8), rng.uniform(1.1, 2.0)
    number = canvas.begin(TrainId.VEGETATION, item.z)
    canvas.polygon(_box(canvas, item, -0.16, 0.16, 0, trunk + 0.5), (96, 72, 52), part_of=number)
    _paint_leaves(canvas, item, rng, number, trunk + crown * 0.8, crown)


def _paint_bush(canvas: Canvas, item: Object, rng: np.random.Generator) -> None:
    size = rng.uniform(0.6, 1.1)
    _paint_leaves(canvas, item, rng, canvas.begin(TrainId.VEGETATION, item.z), size * 0.6, size)


def _paint_leaves(
    canvas: Canvas, item: Object, rng: np.random.Generator, number: int, height: float, size: float
) -> None:
    """Paint a crown of clumps; lower ones are darker."""
    color = _pick(_GREENS, rng)
    for share in (0.62, 0.62, 0.8, 0.8, 1.0, 1.0, 1.22):
        x, y = rng.uniform(-0.6, 0.6) * size, (share - 0.92) * 1.5 * size + rng.uniform(-0.2, 0.2) * size
        radius = canvas.camera.pixels(rng.uniform(0.45, 0.68) * size, item.z)
        center = _shape(canvas, item, [(x, max(height + y, 0.2 * size))])[0]
        canvas.ellipse(center, (radius, radius * 0.9), _shade(color, share), part_of=number)
