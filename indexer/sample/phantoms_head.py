"""The head, as CT and as MR: one anatomy, painted with the values of either."""

from dataclasses import dataclass

import numpy as np

from indexer.sample.chance import derive, grain, near, noise_for, random_bends
from indexer.sample.points import SIDES, Point, Pose, mirror, ring, scaled
from indexer.sample.shapes import Canvas, Floats, Size, bump, ramp

__all__ = ["HEAD_CT", "HEAD_T1", "HEAD_T2", "Tissues", "head_ct", "head_mr"]


@dataclass(frozen=True, slots=True)
class Tissues:
    """The value of each tissue: HU for CT, signal between 0 and 1000 for MR."""

    air: float
    skin: float
    fat: float
    bone: float
    marrow: float
    fluid: float
    white: float
    grey: float
    muscle: float
    globe: float
    calcium: float
    lesion: float
    texture: float
    noise: float


HEAD_CT = Tissues(-1000, 30, -80, 1150, 650, 6, 26, 38, 50, 16, 220, 68, 1.5, 3.5)
HEAD_T1 = Tissues(4, 420, 900, 40, 480, 130, 680, 500, 400, 150, 90, 820, 18, 16)
HEAD_T2 = Tissues(4, 330, 620, 30, 330, 950, 300, 430, 190, 900, 60, 780, 16, 16)


def head_ct(
    rng: np.random.Generator, size: Size = (256, 256), *, level: float = 0.55, lesion: bool = False
) -> Floats:
    """An axial slice of a head, float32 (H, W) in HU.

    Args:
        rng: equal generators draw the same patient.
        size: rows and columns.
        level: 0 at the skull base, 0.55 at the ventricles, 1 at the vertex.
        lesion: whether a bleeding shows beside the ventricles.
    """
    return _head(rng, size, level, lesion, HEAD_CT)


def head_mr(
    rng: np.random.Generator,
    size: Size = (192, 192),
    *,
    level: float = 0.55,
    lesion: bool = False,
    tissues: Tissues = HEAD_T2,
) -> Floats:
    """As ``head_ct``, in the signal of T1 or T2 weighted MR, float32 (H, W) from 0 to ~1000."""
    return np.abs(_head(rng, size, level, lesion, tissues))


def _head(rng: np.random.Generator, size: Size, level: float, lesion: bool, t: Tissues) -> Floats:
    c = Canvas(size, t.air)
    width, length = rng.normal(0.62, 0.02), rng.normal(0.77, 0.02)
    tilt, skull = rng.normal(0, 4), rng.uniform(0.05, 0.075)
    centre = near(rng, (0, -0.04), 0.03)
    ventricles = rng.uniform(0.75, 1.3)  # they widen with age, as the sulci do
    atrophy = rng.uniform(0.2, 1.0)
    side = float(rng.choice(SIDES))
    bends = random_bends(rng, 0.010)
    folds = derive(rng)
    noise = noise_for(rng, level)

    # The vault closes towards the vertex; the base is a little narrower than the middle.
    shrink = np.sqrt(max(1 - 0.92 * ramp(level, 0.5, 1.15) ** 1.5, 0.02))
    shrink *= 0.9 + 0.1 * ramp(level, 0.0, 0.35)
    body = Pose(centre, (width * shrink, length * shrink), tilt)
    # A skull is broadest behind the middle.
    shell = [(x * (1 + 0.07 * y), y) for x, y in ring(1.0, 12, bends)]

    def shells(scale: float) -> list[Point]:
        return body(scaled(shell, scale))

    if t.air < -500:  # the head rest of a CT couch
        rest = [(-0.80, 0.3), (-0.73, 0.70), (-0.45, 0.92), (0.45, 0.92), (0.73, 0.70), (0.80, 0.3)]
        c.paint(c.path(rest, 0.008), 60)
    thick = skull / max(float(shrink) * 0.65, 0.25)
    c.paint(c.outline(shells(1.0)), t.skin)
    c.paint(c.outline(shells(1 - 0.2 * thick)), t.fat)
    c.paint(c.outline(shells(1 - 0.6 * thick)), t.bone)
    c.paint(c.outline(shells(1 - 0.95 * thick), soft=0.01), t.marrow)
    c.paint(c.outline(shells(1 - 1.15 * thick), soft=0.01), t.bone)
    inner = 1 - 1.6 * thick
    c.paint(c.outline(shells(inner)), t.fluid)
    hull = c.outline(shells(inner - 0.015 - 0.02 * atrophy), soft=0.012)
    rims = [c.whole(c.outline(shells(inner * scale))) for scale in (0.94, 0.86, 0.76)]
    c.paint(hull, _brain(c, np.sum(rims, 0), folds, level, atrophy, t))

    _midline(c, body, inner, level, t)
    _ventricles(c, body, level, ventricles, t)
    if lesion:
        r = 0.13 * bump(level, 0.6, 0.25)
        where = body.at(side * 0.42, 0.02)
        c.paint(
            c.ellipse(where, (r * 1.3, r * 1.6), 20, soft=0.06), t.fluid + (t.white > 100) * 300
        )
        c.paint(c.ellipse(where, (r * 0.8, r * 1.1), 20, soft=0.03), t.lesion)
    _skull_base(c, body, level, noise, t)
    image = c.image + np.float32(t.texture) * c.texture(noise, 50)
    return np.asarray(image + grain(noise, size, t.noise), np.float32)


def _brain(
    c: Canvas, depth: Floats, rng: np.random.Generator, level: float, atrophy: float, t: Tissues
) -> Floats:
    """Cortex, white matter and the folds between them."""
    # Two noise fields are mixed by the level, so that the folds drift from slice to slice.
    first, second = c.texture(rng, 26), c.texture(rng, 26)
    folded = np.cos(level * 4) * first + np.sin(level * 4) * second
    white = 1 / (1 + np.exp(-3 * (depth - 1.6 + 0.9 * folded)))
    brain = t.grey + (t.white - t.grey) * white
    rim = np.clip(1.25 - depth / 2.4, 0, 1)
    sulci = np.exp(-((folded / 0.22) ** 2)) * rim * (0.3 + 0.5 * atrophy)
    return np.asarray(brain + (t.fluid - brain) * sulci, np.float32)


def _midline(c: Canvas, body: Pose, inner: float, level: float, t: Tissues) -> None:
    gap = ramp(level, 0.3, 0.5)
    for y0, y1 in ((-inner, -0.42 + 0.4 * ramp(level, 0.7, 0.85)), (0.42, inner)):
        line = body([(0, y0), (0.01, (y0 + y1) / 2), (0, y1)])
        c.paint(c.path(line, 0.014), t.fluid, 0.7 * gap)
        c.paint(c.path(line, 0.004), t.grey * 1.25, 0.8 * gap)


def _ventricles(c: Canvas, body: Pose, level: float, big: float, t: Tissues) -> None:
    seen = bump(level, 0.55, 0.16)
    bodies = bump(level, 0.70, 0.10)
    for sign in SIDES:
        # Deep grey matter lies between the horns: caudate, putamen, thalamus.
        for place, radii, angle in (
            ((0.30, -0.08), (0.05, 0.13), -18 * sign),
            ((0.13, 0.10), (0.07, 0.11), 15 * sign),
            ((0.20, -0.28), (0.04, 0.08), 15 * sign),
        ):
            c.paint(
                c.ellipse(body.at(sign * place[0], place[1]), radii, angle, soft=0.03),
                t.grey,
                0.9 * bump(level, 0.5, 0.14),
            )
        horn = body([(sign * 0.05, -0.16), (sign * 0.11, -0.30), (sign * 0.19, -0.40)])
        c.paint(c.path(horn, [0.03 * big, 0.045 * big, 0.02 * big], soft=0.015), t.fluid, seen)
        back = body([(sign * 0.16, 0.20), (sign * 0.30, 0.36), (sign * 0.27, 0.54)])
        c.paint(c.path(back, [0.015 * big, 0.045 * big, 0.02 * big], soft=0.015), t.fluid, seen)
        middle = body([(sign * 0.08, -0.30), (sign * 0.13, 0.0), (sign * 0.20, 0.32)])
        c.paint(c.path(middle, [0.03 * big, 0.045 * big, 0.035 * big], soft=0.02), t.fluid, bodies)
        plexus = c.ellipse(body.at(sign * 0.28, 0.34), (0.022, 0.026), soft=0.01)
        c.paint(plexus, t.calcium, 0.8 * bump(level, 0.55, 0.08))
    third = c.path(body([(0, -0.06), (0, 0.14)]), 0.013 * big, soft=0.01)
    c.paint(third, t.fluid, bump(level, 0.48, 0.10))
    c.paint(c.ellipse(body.at(0, 0.24), (0.016, 0.016)), t.calcium, bump(level, 0.48, 0.06))
    cistern = [(-0.2, 0.16), (-0.07, 0.24), (0, 0.20), (0.07, 0.24), (0.2, 0.16)]
    c.paint(c.path(body(cistern), 0.015, soft=0.012), t.fluid, bump(level, 0.38, 0.08))


_SOCKET = [(0.15, -0.5), (0.22, -0.9), (0.48, -0.94), (0.62, -0.72), (0.34, -0.38)]
_NASAL_WALL = [(0.14, -0.95), (0.13, -0.72), (0.15, -0.48)]  # thin, between nose and orbit


def _skull_base(
    c: Canvas, body: Pose, level: float, noise: np.random.Generator, t: Tissues
) -> None:
    """Face, orbits and petrous bones, which only the lowest slices show."""
    low = 1 - ramp(level, 0.12, 0.28)
    if low <= 0.01:
        return
    fourth = c.ellipse(body.at(0, 0.45), (0.05, 0.035), soft=0.02)
    c.paint(fourth, t.fluid, low)
    stem = [(0, 0.02), (0.14, 0.12), (0.12, 0.3), (0, 0.36), (-0.12, 0.3), (-0.14, 0.12)]
    c.paint(c.outline(body(stem), soft=0.03), t.white, low * 0.8)
    face = [(-0.62, -0.55), (-0.4, -1.0), (0.0, -1.14), (0.4, -1.0), (0.62, -0.55)]
    c.paint(c.outline(body([*face, (0.5, -0.25), (-0.5, -0.25)])), t.muscle, low)
    for sign in SIDES:
        socket = mirror(_SOCKET, sign)
        c.paint(c.outline(body(socket)), t.fat, low)
        c.paint(c.path(body([*socket[2:], socket[0]]), 0.024), t.bone * 0.9, low)
        c.paint(c.ellipse(body.at(sign * 0.40, -0.82), (0.115, 0.115)), t.globe, low)
        c.paint(c.ellipse(body.at(sign * 0.40, -0.95), (0.05, 0.022)), t.calcium * 0.5, low)
        nerve = body([(sign * 0.38, -0.70), (sign * 0.24, -0.48)])
        c.paint(c.path(nerve, 0.016), t.muscle, low)
        wing = body([(sign * 0.80, -0.45), (sign * 0.55, -0.32), (sign * 0.22, -0.3)])
        c.paint(c.path(wing, [0.03, 0.03, 0.025]), t.bone, low)
        petrous = body([(sign * 0.80, 0.16), (sign * 0.52, 0.10), (sign * 0.16, -0.12)])
        c.paint(c.path(petrous, [0.09, 0.06, 0.03], soft=0.015), t.bone, low)
        for _ in range(9):  # mastoid cells
            cell = body.at(sign * noise.uniform(0.60, 0.84), noise.uniform(0.08, 0.3))
            r = noise.uniform(0.010, 0.024)
            c.paint(c.ellipse(cell, (r, r)), t.air, low * 0.9)
        sinus = c.ellipse(body.at(sign * 0.07, -0.72), (0.035, 0.16), soft=0.01)
        c.paint(sinus, t.air, low)
        c.paint(c.path(body(mirror(_NASAL_WALL, sign)), 0.010), t.bone * 0.8, low)
    c.paint(c.path(body([(0, -1.05), (0, -0.45)]), 0.010), t.bone * 0.7, low)
    c.paint(c.ellipse(body.at(0, -0.36), (0.11, 0.07), soft=0.01), t.bone, low)
    c.paint(c.ellipse(body.at(0, -0.37), (0.075, 0.045)), t.air, low * 0.9)
