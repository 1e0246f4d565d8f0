"""Frames that belong to a film: colour Doppler ultrasound and contrast in arteries."""

import numpy as np
from numpy.typing import NDArray

from indexer.sample.chance import derive, exposure, near, noise_for, random_bends
from indexer.sample.points import SIDES, Point, Pose
from indexer.sample.shapes import Canvas, Floats, Size, blur, bump, contraction, ramp

__all__ = ["angiogram", "ultrasound"]


def ultrasound(
    rng: np.random.Generator, size: Size = (240, 320), *, phase: float = 0.0, doppler: bool = True
) -> NDArray[np.uint8]:
    """An apical view of the heart, uint8 (H, W, 3), RGB.

    Args:
        rng: equal generators draw the same patient.
        size: rows and columns.
        phase: of the heart beat, 0 to 1.
        doppler: whether a box of blood flow is coloured: red towards the probe, blue away.
    """
    c = Canvas(size, 0.0)
    apex = (float(rng.normal(0, 0.02)), -0.94)
    lean = float(rng.normal(0, 5))
    big = float(rng.uniform(0.9, 1.12))
    shift = random_bends(rng, 0.02, 4)
    tissue = derive(rng)
    noise = noise_for(rng, phase)
    beat = contraction(phase)

    depth = np.hypot(c.x - apex[0], c.y - apex[1])
    angle = np.arctan2(c.x - apex[0], c.y - apex[1])
    sector = np.clip((0.66 - np.abs(angle)) / 0.01, 0, 1) * np.clip((1.86 - depth) / 0.01, 0, 1)
    sector = sector * np.clip((depth - 0.07) / 0.01, 0, 1)
    echo = 0.40 + 0.07 * c.texture(tissue, 9) - 0.10 * np.clip(depth - 0.9, 0, 1)
    c.image = np.asarray(echo, np.float32)

    pose = Pose((apex[0], -0.05), (big, big), lean)
    narrow, wide = 1 - 0.22 * beat, 0.85 + 0.15 * beat
    chambers = (
        ((0.20, -0.22), (0.19 * narrow, 0.42 * (1 - 0.1 * beat)), 10.0),
        ((-0.22, -0.12), (0.13 * narrow, 0.33), -12.0),
        ((0.26, 0.48), (0.21 * wide, 0.20), 0.0),
        ((-0.22, 0.46), (0.19 * wide, 0.20), 0.0),
    )
    heart = c.ellipse(pose.at(0.02, 0.05), (0.58, 0.86), lean, soft=0.06)
    c.paint(heart, 0.52)
    for (place, radii, turn), (dx, dy) in zip(chambers, shift, strict=True):
        where = pose.at(place[0] + dx, place[1] + dy)
        c.paint(c.ellipse(where, (radii[0] * big, radii[1] * big), turn + lean, soft=0.06), 0.05)
    wall = pose([(0.01, -0.62), (-0.01, 0.1), (0.02, 0.75)])
    c.paint(c.path(wall, [0.035, 0.045, 0.02], soft=0.03), 0.66)
    for sign in SIDES:  # the valves open and close
        for root, tip in ((0.42, 0.22 - 0.10 * (1 - beat)), (0.03, 0.19 + 0.02 * beat)):
            valve = pose([(sign * root, 0.22), (sign * tip, 0.20 - 0.10 * (1 - beat))])
            c.paint(c.path(valve, [0.016, 0.010], soft=0.01), 0.95)
    rim = pose([(-0.60, -0.25), (-0.58, 0.3), (-0.42, 0.72), (0.1, 0.86), (0.5, 0.70), (0.62, 0.1)])
    c.paint(c.path(rim, 0.018, soft=0.04), 0.85)

    # Speckle is fine along the beam and grows sideways with depth.
    speckle = np.abs(c.texture(noise, 75) + 1j * c.texture(noise, 75))
    speckle = 0.6 * speckle + 0.4 * np.abs(noise.standard_normal(size))
    gain = 1.05 - 0.25 * np.clip(depth - 1.0, 0, 1)
    grey = np.clip(c.image * (0.35 + 0.75 * speckle) * gain, 0, 1.2) ** 1.15 * sector
    rgb = np.repeat(np.asarray(blur(np.asarray(grey, np.float32), 0.4))[..., None], 3, axis=2)
    if doppler:
        _colour_flow(c, rgb, pose, phase, noise, np.asarray(sector, np.float32))
    _colour_bar(c, rgb, doppler)
    return np.asarray(np.clip(rgb, 0, 1) * 255, np.uint8)


def _colour_flow(
    c: Canvas,
    rgb: Floats,
    pose: Pose,
    phase: float,
    noise: np.random.Generator,
    sector: Floats,
) -> None:
    inflow = c.path(pose([(0.24, 0.42), (0.20, 0.1), (0.18, -0.35)]), [0.10, 0.09, 0.11], soft=0.06)
    outflow = c.path(
        pose([(0.10, -0.45), (0.09, -0.05), (0.06, 0.22)]), [0.06, 0.06, 0.05], soft=0.04
    )
    filling = bump((phase + 0.25) % 1, 0.25, 0.30)
    speed = 0.95 * filling * c.whole(inflow) - 0.95 * (1 - filling) * c.whole(outflow)
    speed = np.asarray(speed * sector * (0.85 + 0.2 * c.texture(noise, 16)), np.float32)
    shown = np.clip(np.abs(speed) * 4 - 0.8, 0, 1)[..., None]
    rgb += shown * (_flow_colours(speed) - rgb)
    box = pose([(-0.02, -0.60), (0.42, -0.60), (0.46, 0.62), (-0.06, 0.62), (-0.02, -0.60)])
    rgb += 0.6 * c.whole(c.path(box, 0.005))[..., None] * (np.float32(0.9) - rgb)


def _flow_colours(speed: Floats) -> Floats:
    """Red to yellow towards the probe, blue to cyan away from it; float32 (..., 3)."""
    towards, away = np.clip(speed, 0, 1), np.clip(-speed, 0, 1)
    fast = np.clip(np.abs(speed) - 0.55, 0, 1) * 1.8
    red = np.where(towards > 0, 0.35 + 0.65 * towards, 0)
    blue = np.where(away > 0, 0.35 + 0.65 * away, 0)
    return np.asarray(np.stack([red, fast, blue], axis=-1), np.float32)


def _colour_bar(c: Canvas, rgb: Floats, doppler: bool) -> None:
    """The scale at the right edge, and the depth marks at the left one."""
    right = float(c.x[0, -1])
    bar = c.whole(c.path([(right - 0.10, -0.82), (right - 0.10, -0.32)], 0.035))
    height = np.broadcast_to(-(c.y + 0.57) / 0.27, c.size).astype(np.float32)
    scale = np.clip(height, -1, 1)
    grey = np.repeat(((scale + 1) / 2)[..., None], 3, axis=2)
    rgb += bar[..., None] * ((_flow_colours(scale) if doppler else grey) - rgb)
    for k in range(8):
        y = -0.86 + k * 0.24
        mark = c.path([(-right + 0.05, y), (-right + (0.13 if k % 4 == 0 else 0.09), y)], 0.005)
        rgb += c.whole(mark)[..., None] * (np.float32(0.8) - rgb)


def angiogram(rng: np.random.Generator, size: Size = (256, 256), *, phase: float = 0.5) -> Floats:
    """A frame of a coronary angiogram, float32 (H, W): 0 black to 1; vessels are dark.

    Args:
        rng: equal generators draw the same patient.
        size: rows and columns.
        phase: 0 before the contrast arrives, 0.5 when it fills the vessels, 1 washed out.
    """
    c = Canvas(size, 0.62)
    tree = derive(rng)
    pose = Pose(near(rng, (0, 0), 0.04), turn=float(rng.normal(0, 8)))
    noise = noise_for(rng, phase)
    c.image += np.float32(0.05) * c.texture(tree, 3)
    heart = c.outline(
        pose([(-0.5, -0.5), (0.3, -0.7), (0.75, 0.1), (0.5, 0.8), (-0.4, 0.6)]), soft=0.3
    )
    c.add(heart, -0.14)
    c.add(
        c.path(pose([(-0.9, 0.9), (-0.2, 0.75), (1.1, 0.95)]), [0.3, 0.22, 0.35], soft=0.2), -0.12
    )
    for k in range(5):
        rib = pose([(-1.1, -0.9 + 0.4 * k), (-0.1, -0.75 + 0.4 * k), (1.1, -1.05 + 0.45 * k)])
        c.add(c.path(rib, 0.05, soft=0.05), -0.035)
    spine = pose([(-0.62, -1.2), (-0.58, 1.2)])
    c.add(c.path(spine, 0.2, soft=0.1), -0.07)
    catheter = pose([(-0.62, -1.2), (-0.60, -0.7), (-0.48, -0.52), (-0.40, -0.50)])
    c.add(c.path(catheter, 0.014), -0.22)
    beat = 0.03 * np.sin(2 * np.pi * phase * 3)
    filled = ramp(phase, 0.05, 0.45)
    strength = 0.42 * (1 - ramp(phase, 0.7, 1.05))
    start = (-0.40, -0.50)
    for heading, length in ((0.25, 1.25), (1.15, 1.25), (0.75, 0.9)):
        _branch(c, tree, pose, (start, heading, length, 0.036), (filled, strength, beat), 0)
    shutter = c.whole(c.ellipse((0, 0), (1.03, 1.03), soft=0.02))
    return exposure(c, noise, soft=0.6, sigma=0.018, top=1) * shutter


def _branch(
    c: Canvas,
    rng: np.random.Generator,
    pose: Pose,
    vessel: tuple[Point, float, float, float],
    flow: tuple[float, float, float],
    depth: int,
) -> None:
    """A winding vessel and its side branches, as far as the contrast has come."""
    (x, y), heading, length, radius = vessel
    filled, strength, beat = flow
    points, radii = [(x, y)], [radius]
    steps = 9
    for k in range(steps):
        heading += rng.normal(0, 0.22) + 0.06
        x += length / steps * np.cos(heading)
        y += length / steps * np.sin(heading) + beat * 0.3
        points.append((float(x), float(y)))
        radii.append(radius * (1 - 0.75 * (k + 1) / steps))
        fork = rng.random()
        if depth < 2 and k in (2, 4, 6):
            side = 1 if fork > 0.5 else -1
            child = ((float(x), float(y)), heading + side * 0.75, length * 0.48, radii[-1] * 0.75)
            _branch(c, rng, pose, child, (max(0.0, filled * 1.5 - 0.5), strength, beat), depth + 1)
    shown = max(2, round(filled * (steps + 1)))
    if filled > 0.05:
        c.add(
            c.path(pose(points[:shown]), radii[:shown], soft=0.012), -strength * (1 - 0.2 * depth)
        )
