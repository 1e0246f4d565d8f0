"""Projection radiographs of the hand and of the knee."""

import numpy as np

from indexer.sample.chance import exposure, jitter, near, noise_for
from indexer.sample.points import Point, Pose, mirror, ring, shifted
from indexer.sample.shapes import Canvas, Floats, Patch, Size, blur

__all__ = ["hand_xray", "knee_xray"]

# Where each finger starts at the wrist, its direction (degrees from upright, towards the
# thumb), and the lengths of the metacarpal and of the phalanges.
_FINGERS = (
    ((0.20, 0.34), 52.0, (0.27, 0.24, 0.19)),
    ((0.10, 0.20), 15.0, (0.40, 0.29, 0.17, 0.13)),
    ((0.00, 0.18), 2.0, (0.38, 0.32, 0.20, 0.14)),
    ((-0.09, 0.21), -10.0, (0.34, 0.29, 0.19, 0.14)),
    ((-0.17, 0.26), -24.0, (0.31, 0.23, 0.13, 0.12)),
)


def hand_xray(
    rng: np.random.Generator, size: Size = (320, 320), *, left: bool = True, lesion: bool = False
) -> Floats:
    """A radiograph of a hand, float32 (H, W): attenuation from 0 (free beam) to ~1.

    Args:
        rng: equal generators draw the same hand.
        size: rows and columns.
        left: the thumb points to the right in a left hand seen from its back.
        lesion: whether a metacarpal is broken.
    """
    c = Canvas(size, 0.05)
    noise = noise_for(rng, 0.0)
    child = float(rng.uniform(0, 1)) if rng.random() < 0.6 else 0.0
    scale = float(rng.uniform(1.08, 1.34))
    pose = Pose(near(rng, (0, 0.22), 0.04), (scale, scale), float(rng.normal(0, 6)))
    spread = float(rng.uniform(0.7, 1.25))
    broken = int(rng.integers(1, 5)) if lesion else -1
    parts: list[Patch | None] = []
    bones: list[tuple[Point, Point, float, bool]] = []
    for k, (start, angle, lengths) in enumerate(_FINGERS):
        turn = np.deg2rad(angle * (1 if k == 0 else spread) + rng.normal(0, 2))
        point = start
        line = [start]
        for j, length in enumerate(lengths):
            step = length * float(rng.normal(1, 0.02))
            bend = turn - (0.25 if k == 0 and j > 0 else 0.0) + (0.02 * j * (2 - k))
            end = (point[0] + step * np.sin(bend), point[1] - step * np.cos(bend))
            wide = (0.046, 0.040, 0.034, 0.028)[j] * (1.08 if k == 0 else 1.0)
            bones.append((point, end, wide, k == broken and j == 0))
            line.append(end)
            point = end
        joints = len(line)
        thick = np.linspace(0.115 if k else 0.13, 0.068, joints).tolist()
        parts.append(c.path(pose(line), thick, soft=0.05))
    palm = [(0.22, 0.30), (0.20, 0.0), (0.12, -0.22), (-0.16, -0.16), (-0.28, 0.05), (-0.2, 0.36)]
    parts.append(c.outline(pose(palm), soft=0.05))
    arm = pose([(0.0, 0.36), (0.0, 1.4)])
    parts.append(c.path(arm, [0.20, 0.23], soft=0.06))
    web = pose([(0.12, -0.05), (0.30, 0.12), (0.2, 0.36)])
    parts.append(c.path(web, [0.08, 0.11, 0.12], soft=0.08))
    flesh = c.union(parts)
    c.image += np.float32(0.32) * flesh * (1 + np.float32(0.03) * c.texture(noise, 20))
    for start, end, wide, fractured in bones:
        _tube(c, pose, start, end, wide, child, fractured)
    _wrist(c, rng, pose, child)
    _marker(c, rng, left)
    c.image *= 1 + np.float32(0.02) * c.texture(noise, 60)
    return exposure(c, noise, soft=0.6, sigma=0.007, top=1.2, left=left)


def _tube(
    c: Canvas,
    pose: Pose,
    start: Point,
    end: Point,
    wide: float,
    child: float,
    broken: bool,
) -> None:
    """A long bone: flared ends, a narrow shaft, and walls that project brighter."""

    def along(t: float, aside: float = 0.0) -> Point:
        dx, dy = end[0] - start[0], end[1] - start[1]
        long = float(np.hypot(dx, dy))
        return pose.at(start[0] + t * dx - aside * dy / long, start[1] + t * dy + aside * dx / long)

    first, last = 0.10, 0.93
    spots = (first, 0.25, 0.5, 0.78, last)
    radii = [wide * k for k in (0.88, 0.70, 0.56, 0.68, 0.86)]
    shift = 0.35 * wide if broken else 0.0
    pieces = [(0, 3), (2, 5)] if broken else [(0, 5)]
    for number, (a, b) in enumerate(pieces):
        axis = [along(t, shift * (1 if number else -1)) for t in spots[a:b]]
        size = radii[a:b]
        c.add(c.path(axis, size, soft=0.012), 0.30)
        c.add(c.path(axis, [r * 0.55 for r in size], soft=0.02), -0.09)
    c.add(c.ellipse(along(0.06), (wide * 0.8, wide * 0.45), soft=0.02), 0.10)
    c.add(c.ellipse(along(0.94), (wide * 0.7, wide * 0.6), soft=0.03), 0.10)
    if child > 0.05:  # the growth plate of a child stays dark
        gap = [along(0.17, -wide), along(0.17, wide)]
        c.add(c.path(gap, 0.010, soft=0.012), -0.24 * child)


def _wrist(c: Canvas, rng: np.random.Generator, pose: Pose, child: float) -> None:
    carpals = [
        (0.13, 0.27, 0.055),
        (0.06, 0.25, 0.050),
        (-0.015, 0.255, 0.062),
        (-0.10, 0.285, 0.058),
        (0.10, 0.37, 0.062),
        (0.015, 0.375, 0.058),
        (-0.075, 0.37, 0.05),
        (-0.11, 0.35, 0.034),
    ]
    for x, y, r in carpals:
        size = r * (1 - 0.35 * child) * float(rng.normal(1, 0.05))
        where = Pose(pose.at(x, y), (size * pose.scale[0], size * pose.scale[1]))
        shape = where(jitter(rng, ring(1.0, 7), 0.09))
        c.add(c.outline(shape, soft=0.012), 0.28)
        small = Pose(where.centre, (size * 0.6, size * 0.6))
        c.add(c.outline(small(ring(1.0, 7)), soft=0.03), -0.06)
    for x, wide, head in ((0.085, 0.075, 0.125), (-0.115, 0.048, 0.066)):
        top = 0.47 if x > 0 else 0.46
        axis = pose([(x * 0.85, top + 0.03), (x * 0.9, top + 0.16), (x, top + 0.4), (x, 1.5)])
        radii = [head, head * 0.9, wide, wide]
        c.add(c.path(axis, [r * pose.scale[0] for r in radii], soft=0.015), 0.34)
        c.add(c.path(axis, [r * 0.6 * pose.scale[0] for r in radii], soft=0.03), -0.10)
        if child > 0.05:
            gap = pose([(x * 0.9 - head, top + 0.05), (x * 0.9 + head, top + 0.05)])
            c.add(c.path(gap, 0.012, soft=0.012), -0.28 * child)


def _marker(c: Canvas, rng: np.random.Generator, left: bool) -> None:
    """The lead letter that says which side it is."""
    x, y = float(rng.choice([-0.78, 0.80])), float(rng.uniform(0.3, 0.75))
    flip = 1.0 if left else -1.0  # the whole image is mirrored for a right hand
    strokes = [[(-0.03, -0.06), (-0.03, 0.06), (0.03, 0.06)]]
    if not left:
        strokes = [
            [(-0.03, 0.06), (-0.03, -0.06), (0.025, -0.05), (0.025, -0.01), (-0.03, 0.0)],
            [(-0.01, 0.0), (0.03, 0.06)],
        ]
    plate = c.path([(x, y - 0.05), (x, y + 0.05)], 0.075, soft=0.01)
    c.add(plate, 0.10)
    for stroke in strokes:
        c.add(c.path(shifted(mirror(stroke, flip), x, y), 0.010), 0.55)


def knee_xray(
    rng: np.random.Generator, size: Size = (256, 256), *, left: bool = True, lesion: bool = False
) -> Floats:
    """A frontal radiograph of a knee, float32 (H, W): attenuation from 0 to ~1.

    Args:
        rng: equal generators draw the same knee.
        size: rows and columns.
        left: the fibula lies at the right edge of a left knee.
        lesion: whether the joint is worn: narrow on one side, with spurs.
    """
    c = Canvas(size, 0.10)
    noise = noise_for(rng, 0.0)
    scale = float(rng.uniform(0.94, 1.06))
    pose = Pose(near(rng, (0, 0), 0.03), (scale, scale), float(rng.normal(0, 2)))
    gap = float(rng.uniform(0.015, 0.04))
    worn = 0.06 if lesion else 0.0
    flesh = [(-1.2, -1.5), (-0.98, 0.0), (-1.0, 1.5), (1.0, 1.5), (0.98, 0.0), (1.2, -1.5)]
    c.add(c.outline(pose(flesh), soft=0.08), 0.24)
    femur = [
        (-0.44, -1.6),
        (-0.44, -1.0),
        (-0.60, -0.72),
        (-0.78, -0.46),
        (-0.79, -0.14),
        (-0.60, 0.05 - gap),
        (-0.32, 0.06 - gap),
        (-0.14, -0.04 - gap),
        (-0.02, -0.16),
        (0.12, -0.04 - gap),
        (0.34, 0.07 - gap),
        (0.62, 0.05 - gap),
        (0.77, -0.14),
        (0.74, -0.46),
        (0.58, -0.72),
        (0.44, -1.0),
        (0.44, -1.6),
    ]
    tibia = [
        (-0.78, 0.13 - worn),
        (-0.50, 0.10 - worn),
        (-0.20, 0.10),
        (-0.09, 0.02),
        (0.0, 0.07),
        (0.10, 0.01),
        (0.22, 0.10),
        (0.50, 0.11),
        (0.78, 0.13),
        (0.77, 0.34),
        (0.60, 0.62),
        (0.46, 0.95),
        (0.40, 1.6),
        (-0.40, 1.6),
        (-0.46, 0.95),
        (-0.62, 0.62),
        (-0.77, 0.34),
    ]
    femur, tibia = jitter(rng, femur, 0.010), jitter(rng, tibia, 0.008)
    trabeculae = 0.6 * c.texture(noise, 90, stretch=4) + 0.6 * c.texture(noise, 40, stretch=2)
    trabeculae += 0.5 * c.texture(noise, 9)
    fibula = pose([(0.63, 0.40), (0.66, 0.55), (0.67, 0.75), (0.66, 1.0), (0.65, 1.6)])
    c.add(c.path(fibula, [0.07, 0.12, 0.09, 0.07, 0.07], soft=0.02), 0.20)
    c.add(c.path(fibula, [0.03, 0.08, 0.05, 0.035, 0.03], soft=0.03), -0.07)
    for bone in (femur, tibia):
        whole = c.outline(pose(bone), soft=0.012)
        c.add(whole, 0.30 + np.float32(0.030) * trabeculae)
        inner = c.whole(c.outline(pose(bone), soft=0.09))
        c.image += np.float32(0.30) * c.whole(whole) * (1 - inner) * inner
    # The bone under the cartilage is dense and shows as two white lines.
    for line in (femur[5:8], femur[9:12], tibia[0:3], tibia[6:9]):
        c.add(c.path(pose(line), 0.014, soft=0.022), 0.15)
        deep = shifted(line, 0, 0.06 if line[0] in tibia else -0.06)
        c.add(c.path(pose(deep), 0.035, soft=0.06), 0.06)
    for line in (femur[:5], femur[12:], tibia[9:13], tibia[13:]):
        c.add(c.path(pose(line), 0.012, soft=0.02), 0.12)
    plate = [(-0.72, -0.38), (-0.3, -0.30), (0.1, -0.36), (0.7, -0.38)]
    c.add(c.path(pose(plate), 0.008, soft=0.02), 0.06)
    scar = [(-0.7, 0.40), (-0.2, 0.34), (0.2, 0.34), (0.68, 0.42)]
    c.add(c.path(pose(scar), 0.008, soft=0.02), 0.06)
    cap = pose.at(0.06, -0.48)
    c.add(c.ellipse(cap, (0.36, 0.34), soft=0.05), 0.10)
    c.add(c.ellipse(cap, (0.28, 0.26), soft=0.12), 0.05)
    if lesion:
        for x in (-0.80, 0.80):
            for y, lift in ((-0.02, 0.05), (0.15, -0.03)):
                spur = pose([(x * 0.93, y), (x * 1.06, y + lift)])
                c.add(c.path(spur, [0.04, 0.015], soft=0.02), 0.22)
    # Radiographs of the knee come with their local contrast raised.
    c.image += np.float32(0.5) * (c.image - blur(c.image, 0.14 / c.pixel))
    return exposure(c, noise, soft=0.5, sigma=0.012, top=1.2, left=left)
