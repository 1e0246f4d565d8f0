"""MR of the breasts and of the beating heart; signal runs from 0 to about 1000."""

import numpy as np
from numpy.typing import NDArray

from indexer.sample.chance import derive, grain, jitter, near, noise_for, random_bends
from indexer.sample.points import SIDES, Pose, mirror, ring, scaled, shifted
from indexer.sample.shapes import Canvas, Floats, Size, blur, bump, contraction, ramp

__all__ = ["breast_mr", "cardiac_mr"]


def breast_mr(
    rng: np.random.Generator, size: Size = (192, 192), *, level: float = 0.5, lesion: bool = False
) -> Floats:
    """An axial T1 slice of both breasts, lying prone, float32 (H, W).

    Args:
        rng: equal generators draw the same patient.
        size: rows and columns.
        level: 0 at the upper edge of the breasts, 0.5 at the nipples, 1 at the lower edge.
        lesion: whether a mass lights up in one breast.
    """
    c = Canvas(size, 4)
    wide, long = float(rng.uniform(0.84, 0.96)), float(rng.uniform(0.45, 0.78))
    centre = near(rng, (0, 0.06), (0.02, 0.03))
    pose = Pose(centre, (wide, 0.9), float(rng.normal(0, 1.5)))
    dense = float(rng.uniform(0.2, 1.0))
    lean = [float(rng.normal(0, 0.03)) for _ in SIDES]
    tissue = derive(rng)
    side = float(rng.choice(SIDES))
    noise = noise_for(rng, level)
    reach = long * np.sqrt(max(bump(level, 0.5, 0.42), 0.03))

    # The coil is close to the breasts, so that the signal falls towards the back.
    back = [(0.98, 0.05), (0.99, 0.35), (0.86, 0.58), (0.45, 0.66)]
    trunk = [(-0.5, -0.05), (0.0, -0.03), (0.5, -0.05), *back, *mirror(back[::-1])]
    fatty, cores = [c.outline(pose(trunk))], []
    c.paint(fatty[0], 740)
    for sign, tilt in zip(SIDES, lean, strict=True):
        breast = [
            (0.08, 0.10),
            (0.13, -0.06),
            (0.20, -0.35 * reach),
            (0.30 + tilt, -0.85 * reach),
            (0.48 + tilt, -1.0 * reach),
            (0.66 + tilt, -0.85 * reach),
            (0.80, -0.35 * reach),
            (0.94, 0.0),
            (0.98, 0.15),
            (0.5, 0.2),
        ]
        fatty.append(c.outline(pose(mirror(breast, sign))))
        c.paint(fatty[-1], 760)
        gland = Pose(
            pose.at(sign * (0.49 + tilt * 0.8), -0.50 * reach), (0.20 * wide, 0.42 * reach * 0.9)
        )
        cores.append(c.outline(gland(ring()), soft=0.10))
        nipple = c.ellipse(pose.at(sign * (0.48 + tilt), -1.0 * reach), (0.03, 0.03), soft=0.02)
        c.paint(nipple, 520, bump(level, 0.5, 0.15))
    phase = 3 * level
    first, second = tissue.spawn(2)
    strands = np.cos(phase) * c.texture(first, 30) + np.sin(phase) * c.texture(second, 30)
    gland_share = np.clip(c.union(cores) * (0.10 + 0.6 * dense + 0.6 * strands), 0, 1)
    c.image += c.union(fatty) * gland_share * (250 - c.image)
    if lesion:
        where = pose.at(side * 0.52, -0.45 * reach)
        r = 0.075 * bump(level, 0.5, 0.25)
        c.paint(c.ellipse(where, (r, r * 0.85), 20, soft=0.015), 980)

    # Behind the breasts: muscle, ribs, dark lungs and the heart.
    chest = [(0.62, 0.13), (0.84, 0.32), (0.80, 0.58), (0.40, 0.70)]
    cage = [(0.0, 0.13), (0.3, 0.09), *chest, *mirror(chest[::-1]), (-0.3, 0.09)]
    c.paint(c.outline(pose(cage), soft=0.01), 260)
    ribs, lungs = scaled(cage, 0.90, 0.96), scaled(cage, 0.86, 0.96)
    c.paint(c.outline(pose(shifted(ribs, 0, 0.04)), soft=0.01), 420, 0.7)
    c.paint(c.outline(pose(shifted(lungs, 0, 0.055)), soft=0.01), 40)
    heart = c.ellipse(pose.at(0.10, 0.42), (0.28 * wide, 0.19), 15, soft=0.02)
    c.paint(heart, 150, 0.4 + 0.6 * ramp(level, 0.1, 0.5))
    liver = c.ellipse(pose.at(-0.42, 0.48), (0.30 * wide, 0.22), -10, soft=0.02)
    c.paint(liver, 230, ramp(level, 0.55, 0.85))
    c.paint(c.ellipse(pose.at(0.05, 0.12), (0.08, 0.035), soft=0.02), 480)
    for sign in SIDES:
        muscle = pose([(sign * 0.12, 0.10), (sign * 0.45, 0.06), (sign * 0.75, 0.16)])
        c.paint(c.path(muscle, [0.02, 0.04, 0.035], soft=0.01), 230)
    bias = np.clip(1.1 - 0.75 * np.clip(c.y - centre[1], -0.4, 1.0), 0.15, 1.4)
    cut = pose.at(0, 0.60)[1]  # a saturation band ends the picture behind the chest
    band = np.clip((cut - c.y) / 0.04, 0, 1)
    return _received(c, c.image * bias * band, noise, cells=8, sigma=9)


def cardiac_mr(
    rng: np.random.Generator,
    size: Size = (192, 192),
    *,
    level: float = 0.5,
    lesion: bool = False,
    phase: float = 0.0,
) -> Floats:
    """A short-axis cine slice of the heart, float32 (H, W).

    Args:
        rng: equal generators draw the same patient.
        size: rows and columns.
        level: 0 at the base of the ventricles, 1 at the apex.
        lesion: whether part of the wall is thin and bright, as after an infarct.
        phase: of the heart beat, 0 filled, 0.5 contracted, 1 filled again.
    """
    c = Canvas(size, 2)
    centre = near(rng, (0, -0.04), 0.06)
    turn = float(rng.normal(-18, 14))
    scale = float(rng.uniform(0.85, 1.15))
    pose = Pose(centre, (scale, scale), turn)
    round_view = bool(rng.random() < 0.6)
    fatty = float(rng.uniform(0.3, 1.0))
    walls = random_bends(rng, 0.03)
    scar = float(rng.uniform(0, 2 * np.pi))
    rest = derive(rng)
    noise = noise_for(rng, level + 7 * phase)

    # Chest wall: a bright fat rim at the front and left, seen in part.
    chest = [(-1.15, 0.9), (-1.05, -0.2), (-0.6, -0.78), (0.1, -0.92), (0.75, -0.62), (1.0, 0.1)]
    chest = [*chest, (0.95, 0.95), (0.0, 1.2)]
    c.paint(c.outline(pose(chest)), 620)
    c.paint(c.outline(pose(scaled(chest, 0.91, 0.90))), 170 + 120 * fatty)
    c.paint(c.outline(pose(scaled(chest, 0.88, 0.87))), 140)
    lungs = [(-0.85, 0.25), (-0.75, -0.35), (-0.4, -0.66), (0.1, -0.74), (0.62, -0.48)]
    c.paint(c.outline(pose([*lungs, (0.80, 0.1), (0.62, 0.45), (0.0, 0.4)]), soft=0.02), 28)
    liver = [(-0.95, 0.40), (-0.5, 0.33), (0.0, 0.42), (0.35, 0.55), (0.2, 1.1), (-0.9, 1.1)]
    c.paint(c.outline(pose(jitter(rest, liver, 0.03)), soft=0.01), 210)
    stomach = c.ellipse(pose.at(0.55, 0.72), (0.26, 0.20), 20)
    c.paint(stomach, 90 + 300 * float(rest.random()))
    for _ in range(9):
        spot = pose.at(rest.uniform(-0.8, 0.2), rest.uniform(0.5, 1.0))
        c.paint(c.ellipse(spot, (0.03, 0.02), rest.uniform(0, 180), soft=0.01), 330)
    for _ in range(14):
        spot = pose.at(rest.uniform(-0.75, 0.7), rest.uniform(-0.6, 0.3))
        c.paint(c.ellipse(spot, (0.012, 0.012), soft=0.01), 160)

    beat = contraction(phase)
    taper = np.sqrt(max(1 - 0.75 * level**1.7, 0.1))
    outer = 0.325 * taper
    wall = (0.085 + 0.05 * beat) * (0.9 + 0.2 * level)
    inner = max(outer - wall - 0.015 * beat, 0.03)
    # Right ventricle: a crescent around the septum, at the image's left.
    free = 1 - 0.25 * beat
    right = [
        (-0.10, -0.33),
        (-0.36, -0.36 * free),
        (-0.60 * free, -0.10),
        (-0.56 * free, 0.16),
        (-0.30, 0.36),
        (-0.08, 0.33),
        (-0.26, 0.08),
        (-0.26, -0.14),
    ]
    right = scaled(right, taper)
    c.paint(
        c.ellipse(pose.at(-0.10, 0.0), (0.60 * taper, 0.43 * taper), turn, soft=0.02), 330, fatty
    )
    c.paint(c.outline(pose(scaled(right, 1.10)), soft=0.01), 120)
    c.paint(c.outline(pose(right), soft=0.01), 470)
    for _ in range(5):
        spot = pose.at(rest.uniform(-0.5, -0.3) * taper, rest.uniform(-0.2, 0.2) * taper)
        c.paint(c.ellipse(spot, (0.025, 0.015), rest.uniform(0, 180), soft=0.01), 200, 0.7)
    c.paint(c.outline(pose(ring(outer, 12, walls)), soft=0.01), 115)
    pool = ring(inner, 12, walls)
    if lesion:
        reach = wall * 0.45
        angles = [float(np.arctan2(y, x)) for x, y in pool]
        push = [reach * max(0.0, np.cos(a - scar)) ** 4 for a in angles]
        pool = [
            (x + p * np.cos(a), y + p * np.sin(a))
            for (x, y), a, p in zip(pool, angles, push, strict=True)
        ]
        edge = [(outer * 0.93 * np.cos(scar + d), outer * 0.93 * np.sin(scar + d)) for d in _ARC]
        c.paint(c.path(pose(edge), 0.025, soft=0.02), 520)
    c.paint(c.outline(pose(pool), soft=0.015), 540)
    for angle in (0.9, 3.6):  # papillary muscles
        place = pose.at(inner * 0.62 * np.cos(angle), inner * 0.62 * np.sin(angle))
        r = (0.035 + 0.01 * beat) * taper
        c.paint(c.ellipse(place, (r, r * 0.8), 30, soft=0.015), 130, bump(level, 0.5, 0.35))
    aorta = c.ellipse(pose.at(0.30, 0.52), (0.07, 0.07))
    c.paint(aorta, 500)

    glow = 1 + 1.5 * np.exp(-((c.x - centre[0] + 0.5) ** 2 + (c.y - centre[1] + 0.8) ** 2) / 0.3)
    image = _received(c, c.image * glow, noise, cells=10, sigma=10)
    if round_view:
        image = image * c.whole(c.ellipse((0, 0), (0.86, 0.86), soft=0.01))
    return np.asarray(image, np.float32)


_ARC = (-0.6, -0.3, 0.0, 0.3, 0.6)


def _received(
    c: Canvas,
    signal: NDArray[np.floating],
    noise: np.random.Generator,
    *,
    cells: float,
    sigma: float,
) -> Floats:
    """What the coil receives of a signal, float32 (H, W): cloudy, a little blurred, and noisy.

    The noise is Rician: the magnitude of a signal that is noisy in both of its channels.

    Args:
        c: the canvas, for its texture.
        signal: (H, W), 0 to about 1000.
        noise: where the clouds and the noise come from.
        cells: clouds along the shorter side of the image.
        sigma: standard deviation of the noise in each channel, in the unit of the signal.
    """
    clouded = signal * (1 + np.float32(0.05) * c.texture(noise, cells))
    image = blur(np.asarray(clouded, np.float32), 0.5)
    real, other = grain(noise, (2, *image.shape), sigma)
    return np.asarray(np.hypot(image + real, other), np.float32)
