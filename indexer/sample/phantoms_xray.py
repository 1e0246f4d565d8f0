"""Projection radiographs of the chest and the breast: sums of what the rays pass."""

import numpy as np

from indexer.sample.chance import derive, exposure, jitter, near, noise_for
from indexer.sample.points import SIDES, Pose, mirror, scaled, shifted
from indexer.sample.shapes import Canvas, Floats, Size

__all__ = ["chest_xray", "mammogram"]


def chest_xray(
    rng: np.random.Generator, size: Size = (320, 320), *, lesion: bool = False
) -> Floats:
    """A frontal chest radiograph, float32 (H, W): attenuation from 0 (free beam) to ~1.1.

    Args:
        rng: equal generators draw the same patient.
        size: rows and columns.
        lesion: whether a patch of a lung is opaque.
    """
    c = Canvas(size, 0.0)
    noise = noise_for(rng, 0.0)
    pose = Pose(
        near(rng, (0, 0.02), (0.03, 0.04)),
        (float(rng.uniform(0.94, 1.08)), float(rng.uniform(0.94, 1.08))),
        float(rng.normal(0, 2)),
    )
    high = float(rng.uniform(-0.12, 0.10))  # how deep the patient breathed in
    stout = float(rng.uniform(0, 1))
    _torso(c, pose, stout)
    lungs, veil = _lungs(c, rng, pose, high, noise)
    _heart(c, rng, pose, high)
    _cage(c, pose, high, float(rng.uniform(0.8, 1.3)))
    if lesion:
        side = float(rng.choice(SIDES))
        where = pose.at(side * rng.uniform(0.32, 0.45), rng.uniform(-0.25, 0.25))
        r = rng.uniform(0.10, 0.2)
        spot = c.whole(c.ellipse(where, (r, r * 0.8), 30, soft=0.16))
        c.image += spot * lungs * (0.20 + np.float32(0.05) * veil)
    c.image = np.asarray(np.clip(c.image, 0, None), np.float32)
    return exposure(c, noise, soft=0.6, sigma=0.008, top=1.4)


def _torso(c: Canvas, pose: Pose, stout: float) -> None:
    wide = 0.80 + 0.10 * stout
    half = [
        (0.20, -1.35),
        (0.22, -0.98),
        (0.34, -0.86),
        (0.70, -0.80),
        (1.04, -0.66),
        (1.20, -0.30),
        (1.12, 0.0),
        (wide + 0.08, 0.22),
        (wide + 0.02, 0.6),
        (wide + 0.02, 1.3),
    ]
    trunk = [*half, *mirror(half[::-1])]
    c.add(c.outline(pose(trunk), soft=0.03), 0.34 + 0.06 * stout)
    c.add(c.outline(pose(shifted(scaled(trunk, 0.82, 1), 0, 0.04)), soft=0.35), 0.20)
    for sign in SIDES:
        arm = pose([(sign * 0.94, -0.62), (sign * 1.16, 0.0), (sign * 1.25, 0.9)])
        c.add(c.path(arm, 0.15, soft=0.06), 0.16)
        head = c.ellipse(pose.at(sign * 0.93, -0.62), (0.115, 0.115), soft=0.03)
        c.add(head, 0.17)
        shaft = pose([(sign * 0.98, -0.56), (sign * 1.16, 0.0), (sign * 1.24, 0.9)])
        c.add(c.path(shaft, [0.08, 0.055, 0.055], soft=0.02), 0.16)
        blade = [(0.78, -0.62), (0.62, -0.56), (0.60, -0.1), (0.66, 0.08), (0.76, -0.28)]
        blade = mirror(blade, sign)
        c.add(c.outline(pose(blade), soft=0.02), 0.055)
        c.add(c.path(pose(blade[1:4]), 0.014, soft=0.02), 0.05)


def _lungs(
    c: Canvas, rng: np.random.Generator, pose: Pose, high: float, noise: np.random.Generator
) -> tuple[Floats, Floats]:
    """Takes the lungs out of the sum; returns their mask and a cloudy texture."""
    right = [
        (-0.20, -0.76),
        (-0.36, -0.74),
        (-0.54, -0.48),
        (-0.64, -0.05),
        (-0.68, 0.36 + high * 0.5),
        (-0.67, 0.52 + high),
        (-0.56, 0.46 + high),
        (-0.36, 0.36 + high),
        (-0.19, 0.42 + high),
        (-0.15, 0.10),
        (-0.16, -0.40),
    ]
    left = [
        (0.20, -0.76),
        (0.36, -0.74),
        (0.54, -0.48),
        (0.64, -0.05),
        (0.68, 0.40 + high * 0.5),
        (0.67, 0.58 + high),
        (0.56, 0.52 + high),
        (0.44, 0.46 + high),
        (0.36, 0.30 + high),
        (0.24, 0.02),
        (0.17, -0.25),
        (0.17, -0.45),
    ]
    both = [pose(jitter(rng, points, 0.012)) for points in (right, left)]
    lungs = c.union(c.outline(points, soft=0.012) for points in both)
    deep = c.union(c.outline(points, soft=0.09) for points in both)
    veil = c.texture(noise, 14)
    # The abdomen under the diaphragm is dense; the lungs lie in front of and above it.
    floor = np.clip((c.y - (pose.at(0, 0.28 + high)[1])) / 0.35, 0, 1)
    trunk = np.clip(c.image / 0.3, 0, 1)
    c.image += np.float32(0.42) * floor * trunk
    c.image -= lungs * (0.24 + 0.12 * deep) + np.float32(0.38) * floor * lungs
    for sign in SIDES:
        for _ in range(26):  # vessels fan out of the hilum
            turn = rng.uniform(-1.25, 1.35)
            reach = rng.uniform(0.2, 0.5)
            y0 = rng.normal(-0.02, 0.05)
            line = [
                (sign * 0.18, y0),
                (
                    sign * (0.18 + reach * 0.5 * np.cos(turn)),
                    y0 + reach * 0.55 * np.sin(turn) + rng.normal(0, 0.02),
                ),
                (sign * (0.18 + reach * np.cos(turn)), y0 + reach * 1.25 * np.sin(turn)),
            ]
            vessel = c.path(pose(line), [0.020, 0.010, 0.003], soft=0.02)
            c.add(vessel, lungs * np.float32(rng.uniform(0.015, 0.05)))
        hilum = pose([(sign * 0.17, -0.14), (sign * 0.22, 0.0), (sign * 0.20, 0.14)])
        c.add(c.path(hilum, [0.03, 0.055, 0.03], soft=0.06), 0.09)
    c.image += lungs * np.float32(0.010) * (veil + c.texture(noise, 45))
    return lungs, veil


def _heart(c: Canvas, rng: np.random.Generator, pose: Pose, high: float) -> None:
    big = float(rng.uniform(0.85, 1.2))
    middle = [(-0.12, -1.2), (0.12, -1.2), (0.13, -0.5), (0.16, 0.1), (0.12, 1.2), (-0.12, 1.2)]
    c.add(c.outline(pose([*middle, (-0.14, 0.1), (-0.13, -0.5)]), soft=0.06), 0.16)
    shadow = [
        (-0.05, -0.36),
        (0.12, -0.40),
        (0.17, -0.22),
        (0.26 * big, -0.02),
        (0.40 * big, 0.22 + high),
        (0.42 * big, 0.40 + high),
        (0.20, 0.52 + high),
        (-0.14, 0.48 + high),
        (-0.21 * big, 0.26 + high),
        (-0.17, 0.0),
    ]
    c.add(c.outline(pose(jitter(rng, shadow, 0.012)), soft=0.03), 0.20 - 0.06 * (big - 1))
    c.add(c.ellipse(pose.at(0.12, -0.42), (0.10, 0.10), soft=0.03), 0.11)
    c.add(c.path(pose([(0, -1.2), (0.0, -0.62), (-0.02, -0.42)]), 0.045, soft=0.03), -0.08)
    for k in range(13):  # vertebrae shine through
        y = -1.0 + k * 0.17
        c.add(c.path(pose([(-0.075, y), (0.075, y)]), 0.055, soft=0.03), 0.055)
        c.add(c.path(pose([(0, y + 0.02), (0, y + 0.07)]), 0.018, soft=0.02), 0.04)
    bubble = c.ellipse(pose.at(0.40, 0.66 + high), (0.12, 0.07), 15, soft=0.03)
    c.add(bubble, -0.10 * float(rng.uniform(0, 1.5)))


def _cage(c: Canvas, pose: Pose, high: float, strength: float) -> None:
    for sign in SIDES:
        for k in range(10):
            top = -0.80 + k * 0.135 + 0.15 * high
            wide = 0.40 + 0.30 * (1 - np.exp(-k / 2.2))
            back = [
                (0.08, top),
                (wide * 0.5, top - 0.03 + 0.01 * k),
                (wide * 0.88, top + 0.09),
                (wide, top + 0.22),
            ]
            line = pose(mirror(back, sign))
            c.add(c.path(line, 0.028, soft=0.012), 0.040 * strength)
            c.add(c.path(shifted(line, 0, 0.024), 0.006, soft=0.008), 0.028 * strength)
            front = [(wide, top + 0.22), (wide * 0.82, top + 0.36), (wide * 0.45, top + 0.40)]
            c.add(c.path(pose(mirror(front, sign)), 0.026, soft=0.02), 0.026 * strength)
        bone = [(0.07, -0.62), (0.25, -0.68), (0.48, -0.76), (0.76, -0.74)]
        line = pose(mirror(bone, sign))
        c.add(c.path(line, [0.042, 0.030, 0.030, 0.04], soft=0.015), 0.10 * strength)


def mammogram(
    rng: np.random.Generator,
    size: Size = (384, 288),
    *,
    left: bool = True,
    oblique: bool = False,
    lesion: bool = False,
) -> Floats:
    """A mammogram, float32 (H, W): attenuation from 0 (free beam) to ~1.

    Args:
        rng: equal generators draw the same breast.
        size: rows and columns; taller than wide.
        left: the left breast lies at the left edge, the right one at the right edge.
        oblique: mediolateral oblique, which shows the pectoral muscle, or craniocaudal.
        lesion: whether a dense mass with spicules shows.
    """
    c = Canvas(size, 0.0)
    deep, tall = rng.uniform(1.05, 1.5), rng.uniform(0.75, 0.98)
    density = rng.uniform(0.3, 1.0)
    mass = (rng.uniform(0.35, 0.6), rng.uniform(-0.3, 0.3))
    ducts = derive(rng)
    noise = noise_for(rng, float(oblique))
    x0, sag = -1.0, 0.22 if oblique else 0.0
    body = Pose((x0, 0.0), (deep, tall))
    skin = [
        (-0.3, -1.05 - sag),
        (0.25, -0.98),
        (0.72, -0.60 + sag),
        (0.97, -0.05 + sag),
        (0.90, 0.42 + sag),
        (0.50, 0.88 + sag * 0.6),
        (-0.3, 1.0),
    ]
    inside = c.whole(c.outline(body(skin)))
    thick = c.whole(c.outline(body(skin), soft=0.12))
    c.image += inside * (0.14 + 0.16 * thick)
    gland = [(0.12, -0.55), (0.5, -0.42), (0.84, -0.02), (0.62, 0.38), (0.2, 0.55), (0.05, 0.0)]
    gland = shifted(gland, 0, sag * 0.8)
    core = c.whole(c.outline(body(gland), soft=0.22))
    strands = c.texture(ducts, 9) + 0.7 * c.texture(ducts, 22) + 0.4 * c.texture(ducts, 45)
    c.image += core * np.float32(0.12 + 0.24 * density) * np.clip(0.75 + 0.42 * strands, 0, 2)
    c.image += inside * np.float32(0.012) * c.texture(ducts, 60)
    for _ in range(16):  # ducts gather behind the nipple
        start = (ducts.uniform(0.05, 0.5), ducts.uniform(-0.6, 0.6) + sag)
        middle = (ducts.uniform(0.5, 0.75), start[1] * 0.5 + ducts.normal(0, 0.06))
        line = c.path(body([start, middle, (0.94, sag)]), [0.006, 0.010, 0.008], soft=0.01)
        c.add(line, inside * np.float32(0.05))
    c.add(c.ellipse(body.at(0.985, sag - 0.02), (0.045, 0.05), soft=0.02), 0.16)
    if oblique:
        muscle = body([(-0.4, -1.2), (0.36, -1.2), (0.18, -0.4), (-0.02, 0.25), (-0.4, 0.5)])
        c.add(c.outline(muscle, soft=0.03), inside * np.float32(0.30))
    if lesion:
        where = body.at(mass[0], mass[1] + sag)
        for angle in np.linspace(0, 2 * np.pi, 11, endpoint=False):
            tip = (where[0] + 0.15 * np.cos(angle), where[1] + 0.15 * np.sin(angle))
            c.add(c.path([where, tip], [0.012, 0.002], soft=0.008), 0.10)
        c.add(c.ellipse(where, (0.075, 0.065), 20, soft=0.03), 0.28)
    return exposure(c, noise, soft=0.5, sigma=0.006, top=1.2, left=left)
