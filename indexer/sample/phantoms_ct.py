"""Axial CT slices of chest and abdomen, in HU."""

import numpy as np

from indexer.sample.chance import derive, grain, jitter, near, noise_for, random_bends
from indexer.sample.points import SIDES, Point, Pose, mirror, ring, scaled, shifted
from indexer.sample.shapes import Canvas, Floats, Size, bump, ramp

__all__ = ["abdomen_ct", "chest_ct"]

_AIR, _FAT, _MUSCLE, _LUNG = -1000.0, -105.0, 52.0, -850.0


def chest_ct(
    rng: np.random.Generator, size: Size = (256, 256), *, level: float = 0.5, lesion: bool = False
) -> Floats:
    """An axial slice of a chest, float32 (H, W) in HU.

    Args:
        rng: equal generators draw the same patient.
        size: rows and columns.
        level: 0 at the aortic arch, 0.5 at the hilum, 1 at the dome of the liver.
        lesion: whether a nodule shows in a lung.
    """
    c = Canvas(size, _AIR)
    body, fat, blood = _trunk(rng, 0.91, 0.67)
    bends = random_bends(rng, 0.012)
    heart_size, hollow = rng.uniform(0.88, 1.12), rng.normal(0, 0.02)
    shape = [jitter(rng, mirror(_LUNG_EDGE, side), 0.018) for side in SIDES]
    tree = derive(rng)
    spots = (float(rng.choice(SIDES)), rng.uniform(0.42, 0.62), rng.uniform(-0.2, 0.3))
    noise = noise_for(rng, level)

    _wall(c, body, bends, fat, noise)
    arms = 1 - ramp(level, 0.0, 0.3)
    for sign in SIDES:  # the shoulder blades, lower ends first to go
        blade = [(sign * 0.45, 0.80), (sign * 0.66, 0.66), (sign * 0.80, 0.42)]
        c.paint(c.path(body(blade), 0.014 + 0.01 * arms), 520, 0.25 + 0.75 * arms)
    c.paint(c.outline(body(ring(0.80 - 0.1 * fat))), _MUSCLE)
    _ribs(c, body, 0.83 - 0.1 * fat, level)

    # The lungs are widest above the diaphragm; near it the liver takes the right base.
    spread = 0.86 + 0.14 * ramp(level, 0.0, 0.4)
    c.paint(c.outline(body(shifted(scaled(ring(), 0.42, 0.62), 0, -0.06))), _FAT)
    lungs = c.union(c.outline(body(scaled(points, spread, 1))) for points in shape)
    c.image += lungs * (_LUNG + np.float32(18) * c.texture(noise, 22) - c.image)
    with c.within(lungs):
        _vessels(c, body, tree, level)
    if lesion:
        side, px, py = spots
        r = 0.065 * bump(level, 0.5, 0.35)
        c.paint(c.ellipse(body.at(side * px, py), (r, r * 0.9), 30, soft=0.01), 45)
    dome = ramp(level, 0.72, 0.98)
    if dome > 0.05:
        reach = 0.12 + 0.42 * dome
        c.paint(c.ellipse(body.at(-0.36, 0.05), (reach * 0.78, reach * 0.72)), 62 + blood * 0.25)
    _mediastinum(c, body, level, heart_size, blood)
    _spine(c, body.at(hollow, 0.47), 1.0)
    _table(c, body)
    return _scan(c, noise, 11)


def abdomen_ct(
    rng: np.random.Generator, size: Size = (256, 256), *, level: float = 0.4, lesion: bool = False
) -> Floats:
    """An axial slice of an abdomen, float32 (H, W) in HU.

    Args:
        rng: equal generators draw the same patient.
        size: rows and columns.
        level: 0 at the dome of the liver, 0.45 at the kidneys, 1 at the iliac wings.
        lesion: whether a low-density focus shows in the liver.
    """
    c = Canvas(size, _AIR)
    body, fat, blood = _trunk(rng, 0.89, 0.70)
    bends = random_bends(rng, 0.012)
    liver = jitter(rng, _LIVER, 0.022)
    spleen = jitter(rng, _SPLEEN, 0.015)
    kidneys = [near(rng, (0.40, 0.30), 0.02) for _ in SIDES]
    bowel = derive(rng)
    focus = (rng.uniform(-0.65, -0.4), rng.uniform(-0.25, 0.1), rng.uniform(0.05, 0.09))
    noise = noise_for(rng, level)

    _wall(c, body, bends, fat, noise)
    inner = 0.80 - 0.14 * fat
    c.paint(c.outline(body(ring(inner + 0.03))), _MUSCLE)
    for sign in SIDES:  # the muscles beside the spine
        c.paint(c.ellipse(body.at(sign * 0.20, 0.74), (0.17, 0.10), -12 * sign), _MUSCLE)
    if level < 0.62:
        _ribs(c, body, inner + 0.03, level * 0.7)
    cavity = c.outline(body(shifted(scaled(ring(inner), 0.96, 0.9), 0, -0.03)))
    c.paint(cavity, _FAT)

    with c.within(c.whole(cavity)):
        _bowel(c, body, bowel, level)
        _stomach(c, body, level)
    low = ramp(level, 0.45, 0.75)
    for sign in SIDES:
        psoas = body.at(sign * (0.20 + 0.06 * low), 0.42 - 0.03 * low)
        r = 0.05 + 0.07 * low
        c.paint(c.ellipse(psoas, (r, r * 1.25), 15 * sign), _MUSCLE + 6)
        wing = body([(sign * 0.30, 0.52), (sign * 0.55, 0.30), (sign * 0.70, -0.06)])
        iliac = ramp(level, 0.76, 0.86)
        c.paint(c.path(wing, [0.075, 0.06, 0.05]), _MUSCLE + 6, iliac)
        c.paint(c.path(wing, [0.04, 0.022, 0.016]), 620, iliac)
        c.paint(c.path(wing, [0.025, 0.01, 0.006], soft=0.01), 260, iliac)
    _organs(c, body, level, (liver, spleen), kidneys, blood)
    if lesion:
        r = focus[2] * bump(level, 0.2, 0.3)
        c.paint(c.ellipse(body.at(focus[0], focus[1]), (r, r * 0.9), soft=0.015), 18)
    vessel = blood * 1.3 + 45
    c.paint(c.ellipse(body.at(0.05, 0.26), (0.052, 0.052)), vessel)
    c.paint(c.ellipse(body.at(-0.13, 0.24), (0.062, 0.048), 10), vessel * 0.75)
    _spine(c, body.at(0, 0.46), 1.12)
    _table(c, body)
    return _scan(c, noise, 12)


def _trunk(rng: np.random.Generator, wide: float, deep: float) -> tuple[Pose, float, float]:
    """A pose, the thickness of the fat (0 to 1) and the contrast in the blood (HU above plain)."""
    build = rng.uniform(0.9, 1.06)
    pose = Pose(
        near(rng, (0, -0.04), 0.02),
        (wide * build, deep * build * rng.uniform(0.94, 1.06)),
        float(rng.normal(0, 1.5)),
    )
    return pose, float(rng.uniform(0.25, 1.0)), float(rng.uniform(10, 140))


def _wall(
    c: Canvas, body: Pose, bends: list[Point], fat: float, noise: np.random.Generator
) -> None:
    # Superellipse: a trunk is squarer than an ellipse, and flat on the back.
    points = [
        (np.sign(x) * abs(x) ** 0.85, np.sign(y) * abs(y) ** 0.92 * (0.94 if y > 0 else 1))
        for x, y in ring(1.0, 12, bends)
    ]
    c.paint(c.outline(body(points)), 5)
    c.paint(c.outline(body(scaled(points, 0.985, 0.98))), _FAT + 8 * c.texture(noise, 30))
    layer = scaled(points, 0.92 - 0.11 * fat)
    c.paint(c.outline(body(layer)), _MUSCLE)
    c.paint(c.outline(body(scaled(layer, 0.97, 0.95))), _FAT, 0.35)


def _ribs(c: Canvas, body: Pose, radius: float, level: float) -> None:
    """Ribs run downwards to the front: a slice cuts each one obliquely, in short arcs."""
    drift = level * 1.3
    for sign in SIDES:
        for k in range(-1, 9):
            middle = -72 + (k + drift % 1) * 19.5
            if not -80 < middle < 72:
                continue
            half = 5.0 + 3.0 * abs(np.sin(k * 2.1 + drift))
            arc = []
            for step in (-1, 0, 1):
                a = np.deg2rad(middle + step * half)
                arc.append((sign * radius * np.cos(a), radius * np.sin(a) * 0.99))
            c.paint(c.path(body(arc), 0.030), _MUSCLE + 5)
            c.paint(c.path(body(arc), 0.019), 520)
            c.paint(c.path(body(arc), 0.007, soft=0.012), 240)


_LUNG_EDGE = [
    (0.16, -0.60),
    (0.36, -0.68),
    (0.58, -0.50),
    (0.70, -0.10),
    (0.70, 0.30),
    (0.54, 0.60),
    (0.30, 0.66),
    (0.19, 0.46),
    (0.24, 0.15),
    (0.22, -0.20),
]


def _vessels(c: Canvas, body: Pose, rng: np.random.Generator, level: float) -> None:
    """Vessels leave the hilum and thin out; many are cut across and show as dots."""
    strength = 0.4 + 0.6 * bump(level, 0.5, 0.35)
    for sign in SIDES:
        for _ in range(7):
            turn = rng.uniform(-1.2, 1.25)
            end = rng.uniform(0.5, 0.75) * strength
            hilum = (sign * 0.22, 0.02)
            middle = (
                sign * (0.22 + end * 0.45 * np.cos(turn)),
                0.02 + end * 0.5 * np.sin(turn) + rng.normal(0, 0.03),
            )
            far = (
                sign * (0.22 + end * 0.75 * np.cos(turn)),
                0.02 + end * 0.95 * np.sin(turn) + rng.normal(0, 0.09),
            )
            c.paint(c.path(body([hilum, middle, far]), [0.020, 0.009, 0.002]), 30, 0.85)
        for _ in range(55):
            drift = (level * rng.normal(0, 0.25), level * rng.normal(0, 0.25))
            dot = body.at(
                sign * (rng.uniform(0.22, 0.68) + drift[0]), rng.uniform(-0.55, 0.6) + drift[1]
            )
            r = 0.004 + 0.012 * rng.random() ** 3
            c.paint(c.ellipse(dot, (r, r * rng.uniform(1, 2.5)), rng.uniform(0, 180)), 0, 0.8)


def _mediastinum(c: Canvas, body: Pose, level: float, heart: float, blood: float) -> None:
    vessel, wall = 45 + blood * 1.3, 45 + blood * 0.4
    base = ramp(level, 0.42, 0.68)
    arch = bump(level, 0.02, 0.13)
    if base > 0.02:
        size = heart * (0.55 + 0.45 * base)
        centre = (0.12, -0.17)
        pose = Pose(body.at(*centre), (0.36 * size, 0.28 * size), 22 + body.turn)
        c.paint(c.outline(pose(ring(1.06)), soft=0.01), _FAT, base)
        c.paint(c.outline(pose(ring(1.0))), wall, base)
        for place, radii in (
            ((0.42, 0.18), (0.15, 0.11)),
            ((-0.42, 0.10), (0.12, 0.13)),
            ((0.08, -0.48), (0.16, 0.08)),
            ((-0.05, 0.62), (0.17, 0.08)),
        ):
            chamber = c.ellipse(pose.at(*place), (radii[0] * size, radii[1] * size), 22, soft=0.02)
            c.paint(chamber, vessel * (0.9 if place[0] > 0.2 else 0.75), base)
    great = 1 - base
    c.paint(c.ellipse(body.at(-0.05, -0.20), (0.085, 0.085)), vessel, great * (1 - arch))
    c.paint(c.ellipse(body.at(-0.17, -0.14), (0.045, 0.055)), vessel * 0.85, great)
    trunk = body([(0.08, -0.28), (0.10, -0.12), (-0.02, -0.02), (-0.2, 0.02)])
    c.paint(c.path(trunk, [0.07, 0.06, 0.05, 0.04]), vessel * 0.95, bump(level, 0.34, 0.12))
    across = body([(-0.05, -0.22), (0.08, -0.08), (0.13, 0.18)])
    c.paint(c.path(across, [0.075, 0.085, 0.07]), vessel, arch)
    c.paint(c.ellipse(body.at(0.13, 0.30), (0.062, 0.062)), vessel)
    c.paint(c.ellipse(body.at(0.03, 0.24), (0.035, 0.025), 20), 40)
    split = ramp(level, 0.22, 0.32)
    gone = 1 - ramp(level, 0.48, 0.58)
    c.paint(c.ellipse(body.at(-0.01, 0.08), (0.052, 0.055)), 40, 1 - split)
    c.paint(c.ellipse(body.at(-0.01, 0.08), (0.042, 0.045)), _AIR, 1 - split)
    for sign in SIDES:
        tube = body([(sign * 0.05, 0.09), (sign * (0.06 + 0.12 * split), 0.12)])
        c.paint(c.path(tube, 0.042), 30, split * gone)
        c.paint(c.path(tube, 0.030), _AIR, split * gone)
    bone = body([(-0.09, -0.72), (0, -0.735), (0.09, -0.72)])
    c.paint(c.path(bone, 0.030), 380)
    c.paint(c.path(bone, 0.014, soft=0.015), 140)


_LIVER = [
    (-0.20, -0.58),
    (-0.52, -0.56),
    (-0.74, -0.22),
    (-0.74, 0.20),
    (-0.56, 0.48),
    (-0.34, 0.36),
    (-0.20, 0.10),
    (0.02, -0.12),
    (0.22, -0.34),
    (0.18, -0.54),
]
_SPLEEN = [(0.62, -0.02), (0.74, 0.12), (0.70, 0.40), (0.50, 0.55), (0.50, 0.44), (0.57, 0.20)]


def _organs(
    c: Canvas,
    body: Pose,
    level: float,
    shapes: tuple[list[Point], list[Point]],
    kidneys: list[Point],
    blood: float,
) -> None:
    liver, spleen = shapes
    here = 1 - ramp(level, 0.38, 0.66)
    if here > 0.03:  # the liver shrinks towards its lower tip at the right flank
        inside = c.outline(body(scaled(liver, 0.25 + 0.75 * here, about=(-0.62, 0.12))))
        c.paint(inside, 60 + blood * 0.35)
        for start, middle, end in (
            ((-0.22, -0.05), (-0.42, -0.12), (-0.62, -0.02)),
            ((-0.22, 0.0), (-0.45, 0.15), (-0.60, 0.30)),
            ((-0.18, -0.1), (-0.32, -0.30), (-0.40, -0.45)),
        ):
            line = body([start, middle, end])
            shown = here * bump(level, 0.15, 0.2)
            c.paint(c.path(line, [0.022, 0.015, 0.006], soft=0.01), 60 + blood * 0.8, shown)
        gall = c.ellipse(body.at(-0.30, -0.28), (0.07, 0.05), 40, soft=0.01)
        c.paint(gall, 10, bump(level, 0.36, 0.08))
    inside = c.outline(body(spleen))
    c.paint(inside, 55 + blood * 0.45, 1 - ramp(level, 0.35, 0.45))
    shown = bump(level, 0.5, 0.17)
    for sign, (x, y) in zip(SIDES, kidneys, strict=True):
        size = 0.35 + 0.65 * shown if shown > 0.2 else 0.0
        place, angle = body.at(sign * x, y), -28 * sign
        c.paint(c.ellipse(place, (0.125 * size, 0.155 * size), angle), 40 + blood * 0.9)
        c.paint(c.ellipse(place, (0.085 * size, 0.11 * size), angle, soft=0.03), 36 + blood * 0.5)
        hilum = body([(sign * (x - 0.02), y - 0.02), (sign * (x - 0.16), y - 0.08)])
        c.paint(c.path(hilum, [0.035 * size, 0.02 * size], soft=0.02), _FAT * 0.6, shown)
    head = body([(-0.22, -0.02), (-0.02, 0.0), (0.22, -0.06), (0.45, 0.05)])
    c.paint(
        c.path(head, [0.07, 0.045, 0.05, 0.035], soft=0.015),
        55 + blood * 0.3,
        bump(level, 0.36, 0.1),
    )


def _stomach(c: Canvas, body: Pose, level: float) -> None:
    shown = bump(level, 0.18, 0.17)
    if shown < 0.05:
        return
    points = [(0.15, -0.50), (0.42, -0.56), (0.60, -0.28), (0.52, 0.08), (0.34, 0.10), (0.26, -0.2)]
    c.paint(c.outline(body(points), soft=0.01), 45, min(1.0, shown * 1.6))
    inside = c.outline(body(scaled(points, 0.84, 0.86, about=(0.39, -0.24))))
    if inside is None:
        return
    # Gas rises to the front: above a level line there is air, below it a drink of contrast.
    surface = body.at(0.4, -0.33)[1]
    content = np.where(c.y < surface, _AIR, 25.0).astype(np.float32)
    c.paint(inside, np.broadcast_to(content, c.size), min(1.0, shown * 1.6))


def _bowel(c: Canvas, body: Pose, rng: np.random.Generator, level: float) -> None:
    shown = ramp(level, 0.2, 0.5)
    for _ in range(26):
        x, y = rng.uniform(-0.62, 0.62), rng.uniform(-0.56, 0.20)
        drift = rng.normal(0, 0.25, 2) * level
        r, gas, angle = rng.uniform(0.05, 0.095), rng.random(), rng.uniform(0, 180)
        bright = rng.choice([20.0, 35.0, 240.0], p=[0.45, 0.4, 0.15])
        where = body.at(x + drift[0], np.clip(y + drift[1], -0.58, 0.25))
        c.paint(c.ellipse(where, (r, r * 0.75), angle), 55, shown)
        c.paint(c.ellipse(where, (r * 0.75, r * 0.52), angle, soft=0.01), bright, shown)
        if gas > 0.72:
            c.paint(c.ellipse(where, (r * 0.7, r * 0.5), angle), -850, shown)
    for sign in SIDES:  # the colon, with gas and stool, runs down both flanks
        where = body.at(sign * 0.62, -0.02 + 0.1 * np.sin(4 * level))
        c.paint(c.ellipse(where, (0.085, 0.10)), 50, shown)
        c.paint(c.ellipse(where, (0.066, 0.08), soft=0.02), -150, shown)
        c.paint(c.ellipse((where[0], where[1] - 0.03), (0.05, 0.035)), -900, shown)


def _spine(c: Canvas, centre: Point, size: float) -> None:
    x, y = centre
    c.paint(c.ellipse((x, y), (0.115 * size, 0.088 * size)), 480)
    c.paint(c.ellipse((x, y), (0.10 * size, 0.073 * size), soft=0.02), 190)
    for sign in SIDES:
        arch = [
            (x + sign * 0.07 * size, y + 0.06 * size),
            (x + sign * 0.085 * size, y + 0.14 * size),
        ]
        c.paint(c.path([*arch, (x, y + 0.20 * size)], 0.026 * size), 560)
        wing = [
            (x + sign * 0.08 * size, y + 0.13 * size),
            (x + sign * 0.19 * size, y + 0.17 * size),
        ]
        c.paint(c.path(wing, 0.022 * size), 420)
    c.paint(c.path([(x, y + 0.20 * size), (x, y + 0.29 * size)], 0.018 * size), 480)
    c.paint(c.ellipse((x, y + 0.125 * size), (0.055 * size, 0.042 * size)), 22)


def _table(c: Canvas, body: Pose) -> None:
    bottom = body.at(0, 0.98)[1] + 0.05
    curve = [
        (-0.95, bottom - 0.16),
        (-0.5, bottom + 0.02),
        (0.5, bottom + 0.02),
        (0.95, bottom - 0.16),
    ]
    c.paint(c.path(curve, 0.008), -250)
    c.paint(c.path(shifted(curve, 0, 0.07), 0.006), -350)


def _scan(c: Canvas, noise: np.random.Generator, sigma: float) -> Floats:
    """Adds what a scanner adds: a little blur and noise that grows inside the body."""
    c.blur(c.pixel * 0.5)
    image = c.image + np.float32(sigma) * (grain(noise, c.size, 0.6) + 0.6 * c.texture(noise, 70))
    return np.asarray(np.clip(image, -1024, 3000), np.float32)
