"""Synthetic foreign images without any anatomy: noise, patterns, scenes and pages of documents.

They are used to measure the OOD gate, never to calibrate it. The i-th image depends on the seed and
on i only, so a longer list begins with the shorter one.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = ["DOCUMENTS", "NOISE", "SCENES", "document_images", "noise_images", "scene_images"]

_VOWELS, _CONSONANTS = "aeiou", "bcdfglmnprstv"


def noise_images(count: int, seed: int) -> list[NDArray[np.uint8]]:
    """``count`` images, the kinds of :data:`NOISE` in turn; uint8 (H, W), 96 to 320 pixels."""
    return [_noise(seed, i) for i in range(count)]


def document_images(count: int, seed: int) -> list[NDArray[np.uint8]]:
    """``count`` pages, the kinds of :data:`DOCUMENTS` in turn; uint8 (H, W), 360 to 720 pixels.

    One in four is light on dark; all are turned a little and unevenly lit, as scans are.
    """
    return [_page(seed, i) for i in range(count)]


def scene_images(count: int, seed: int) -> list[NDArray[np.uint8]]:
    """``count`` images, the kinds of :data:`SCENES` in turn; uint8 (H, W), 128 to 224 pixels.

    Things that hide each other, each with its own light and texture: the statistics of photographs
    (dead leaves; Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 2001).
    """
    return [_scene(seed, i) for i in range(count)]


_SMALLEST, _LARGEST = 0.07, 0.6  # things, by the shorter side


def _scene(seed: int, i: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([seed, i])
    shape = (int(rng.integers(128, 225)), int(rng.integers(128, 225)))
    mask = Image.new("L", shape[::-1])
    outline = list(SCENES.values())[i % len(SCENES)]
    scene = _texture(rng, shape)
    for share in rng.random(int(rng.integers(60, 160))):
        # The number of things falls with the third power of their size: no scale is preferred.
        size = (_SMALLEST**-2 * (1 - share) + _LARGEST**-2 * share) ** -0.5 * min(shape)
        at = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
        mask.paste(0, (0, 0, *mask.size))
        outline(rng, ImageDraw.Draw(mask), at, size)
        if (box := mask.getbbox()) is None:
            continue
        part = slice(box[1], box[3]), slice(box[0], box[2])
        inside = np.asarray(mask.crop(box)) > 0
        scene[part][inside] = _texture(rng, inside.shape)[inside]
    blurred = Image.fromarray(_grey(scene)).filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1)))
    return _grey(np.asarray(blurred) / 255 + rng.normal(0, 0.01, shape))


def _texture(rng: np.random.Generator, shape: "_Shape") -> NDArray[np.float64]:
    """A surface: its own brightness, lit from one side, with a little structure."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    light = rng.uniform(-0.15, 0.15) * y + rng.uniform(-0.15, 0.15) * x
    lattice = Image.fromarray(rng.normal(0, 1, (12, 12)).astype(np.float32))
    rough = np.asarray(lattice.resize(shape[::-1], Image.Resampling.BICUBIC))
    surface: NDArray[np.float64] = rng.uniform(0.05, 0.95) + light + rng.uniform(0, 0.08) * rough
    return surface


def _disc(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, at: tuple[float, float], size: float
) -> None:
    wide, tall = size * rng.uniform(0.4, 1, 2)
    draw.ellipse((at[0] - wide, at[1] - tall, at[0] + wide, at[1] + tall), fill=255)


def _polygon(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, at: tuple[float, float], size: float
) -> None:
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
    reach = size * rng.uniform(0.4, 1, len(angles))
    corners = zip(at[0] + reach * np.cos(angles), at[1] + reach * np.sin(angles), strict=True)
    draw.polygon([(float(x), float(y)) for x, y in corners], fill=255)


def _bar(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, at: tuple[float, float], size: float
) -> None:
    angle, reach = rng.uniform(0, np.pi), 2 * size
    end = at[0] + reach * np.cos(angle), at[1] + reach * np.sin(angle)
    draw.line((*at, *end), fill=255, width=max(2, int(size * rng.uniform(0.1, 0.5))))


def _any_of_them(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, at: tuple[float, float], size: float
) -> None:
    (_disc, _polygon, _bar)[int(rng.integers(3))](rng, draw, at, size)


SCENES: dict[
    str,
    Callable[[np.random.Generator, ImageDraw.ImageDraw, tuple[float, float], float], None],
] = {"leaves": _disc, "houses": _polygon, "branches": _bar, "all of them": _any_of_them}


def _noise(seed: int, i: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([seed, i])
    shape = (int(rng.integers(96, 321)), int(rng.integers(96, 321)))
    return _grey(list(NOISE.values())[i % len(NOISE)](rng, shape))


def _grey(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values in [0, 1], anything beyond cut off, as uint8."""
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


_Shape = tuple[int, int]


def _uniform(rng: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    return rng.random(shape)


def _gaussian(rng: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    return rng.normal(rng.uniform(0.3, 0.7), rng.uniform(0.05, 0.3), shape)


def _clouds(rng: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    """Noise whose amplitude falls with frequency f as 1/f^a, as it does in photographs."""
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1]), indexing="ij"))
    f[0, 0] = np.inf
    amplitude = f ** -rng.uniform(0.8, 2.0)
    phase = rng.uniform(0, 2 * np.pi, f.shape)
    clouds = np.fft.irfft2(amplitude * np.exp(1j * phase), s=shape)
    shown: NDArray[np.float64] = 0.5 + rng.uniform(0.15, 0.3) * clouds / clouds.std()
    return shown


def _blobs(rng: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    """Value noise (Perlin's): a coarse random lattice, smoothly enlarged, in four octaves."""
    total = np.zeros(shape)
    for octave in range(4):
        cells = 3 * 2**octave
        lattice = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
        enlarged = lattice.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
        total += np.asarray(enlarged) / 2**octave
    shown: NDArray[np.float64] = (total - total.min()) / np.ptp(total)
    return shown


def _salt_and_pepper(rng: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    drawn = rng.random(shape)
    share = rng.uniform(0.02, 0.3)
    image = np.full(shape, rng.uniform(0.2, 0.8))
    image[drawn < share] = 0
    image[drawn > 1 - share] = 1
    return image


def _checkerboard(rng: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    side = rng.integers(6, 48)
    dark, light = sorted(rng.random(2))
    board: NDArray[np.float64] = np.where((y // side + x // side) % 2, light + 0.1, dark - 0.1)
    return board


def _stripes(rng: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 60)
    wave = np.sin((y * np.sin(angle) + x * np.cos(angle)) * 2 * np.pi / period)
    shown: NDArray[np.float64] = 0.5 + 0.45 * (np.sign(wave) if rng.random() < 0.5 else wave)
    return shown


def _constant(rng: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    return np.full(shape, rng.random())


def _gradient(rng: np.random.Generator, shape: _Shape) -> NDArray[np.float64]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = y / shape[0] * np.sin(angle) + x / shape[1] * np.cos(angle)
    else:
        ramp = np.hypot(y - rng.uniform(0, shape[0]), x - rng.uniform(0, shape[1]))
    shown: NDArray[np.float64] = (ramp - ramp.min()) / np.ptp(ramp)
    return shown


NOISE: dict[str, Callable[[np.random.Generator, _Shape], NDArray[np.float64]]] = {
    "uniform": _uniform,
    "gaussian": _gaussian,
    "clouds": _clouds,
    "blobs": _blobs,
    "salt and pepper": _salt_and_pepper,
    "checkerboard": _checkerboard,
    "stripes": _stripes,
    "constant": _constant,
    "gradient": _gradient,
}


def _page(seed: int, i: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([seed, i])
    height = int(rng.integers(360, 721))
    width = min(720, max(360, round(height / rng.choice([0.71, 1.0, 1.41, 1.41]))))
    paper, ink = int(rng.integers(190, 256)), int(rng.integers(0, 80))
    page = Image.new("L", (width, height), paper)
    list(DOCUMENTS.values())[i % len(DOCUMENTS)](rng, ImageDraw.Draw(page), page.size, ink)
    turned = page.rotate(rng.uniform(-4, 4), resample=Image.Resampling.BICUBIC, fillcolor=paper)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = 1 + rng.uniform(-0.08, 0.08) * y + rng.uniform(-0.08, 0.08) * x
    scan = np.asarray(turned) / 255 * light + rng.normal(0, 0.01, (height, width))
    return _grey(1 - scan if rng.random() < 0.25 else scan)


def _words(rng: np.random.Generator, count: int) -> str:
    consonants, vowels = (rng.choice(list(kind), (count, 4)) for kind in (_CONSONANTS, _VOWELS))
    syllables = np.char.add(consonants, vowels)
    words = ["".join(word[: rng.integers(1, 5)]) for word in syllables]
    return " ".join(words).capitalize()


def _font(rng: np.random.Generator, low: int, high: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(int(rng.integers(low, high)))
    if not isinstance(font, ImageFont.FreeTypeFont):
        # What Pillow has in its place depends on how it was built.
        raise RuntimeError(  # noqa: TRY004
            "Pillow was built without FreeType; install the one from PyPI"
        )
    return font


def _line(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    words: str,
    font: ImageFont.FreeTypeFont,
    ink: int,
    width: int,
) -> None:
    """As many of the words as go into ``width``, at least one."""
    while " " in words and draw.textlength(words, font) > width:
        words = words.rsplit(" ", 1)[0]
    draw.text(at, words, fill=ink, font=font)


def _paragraphs(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], ink: int
) -> None:
    width, height = size
    margin = int(width * rng.uniform(0.06, 0.12))
    font = _font(rng, 9, 20)
    title = _font(rng, 20, 34)
    columns = int(rng.integers(1, 3))
    _line(draw, (margin, margin), _words(rng, 5), title, ink, width - 2 * margin)
    column = (width - margin) // columns - margin
    pitch = round(font.size * 1.4)
    for left in (margin + (column + margin) * k for k in range(columns)):
        until_break = int(rng.integers(3, 9))
        for top in range(margin + 60, height - margin - pitch, pitch):
            until_break -= 1
            if until_break < 0:
                until_break = int(rng.integers(3, 9))
                continue
            room = column if until_break else column // 2
            _line(draw, (left, top), _words(rng, 16), font, ink, room)


def _table(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], ink: int
) -> None:
    width, height = size
    margin = int(width * rng.uniform(0.05, 0.1))
    font = _font(rng, 9, 16)
    rows, columns = int(rng.integers(8, 24)), int(rng.integers(3, 7))
    left = np.linspace(margin, width - margin, columns + 1).astype(int)
    top = np.linspace(2 * margin, height - margin, rows + 1).astype(int)
    _line(draw, (margin, margin), _words(rng, 4), _font(rng, 16, 26), ink, width - 2 * margin)
    ruled = rng.random() < 0.7
    for y, below in pairwise(top.tolist()):
        if ruled or y == top[0]:
            draw.line([(margin, y), (width - margin, y)], fill=ink)
        for k, (x, right) in enumerate(pairwise(left.tolist())):
            text = f"{rng.uniform(0, 999):.2f}" if k else _words(rng, 2)
            _line(draw, (x + 3, (y + below - font.size) // 2), text, font, ink, right - x - 6)
    if ruled:
        for x in left.tolist():
            draw.line([(x, int(top[0])), (x, int(top[-1]))], fill=ink)


def _form(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], ink: int
) -> None:
    width, height = size
    margin = int(width * rng.uniform(0.05, 0.1))
    font = _font(rng, 10, 17)
    top = margin
    while top < height - 2 * margin:
        _line(draw, (margin, top), _words(rng, 2) + ":", font, ink, width // 3)
        kind = rng.integers(3)
        left, right = margin + width // 3, width - margin
        if kind == 0:
            draw.line([(left, top + font.size), (right, top + font.size)], fill=ink)
        elif kind == 1:
            draw.rectangle([left, top - 2, right, top + font.size + 6], outline=ink)
            _line(draw, (left + 4, top), _words(rng, 5), font, ink, right - left - 8)
        else:
            for x in range(left, right - 60, 80):
                draw.rectangle([x, top, x + 10, top + 10], outline=ink)
                if rng.random() < 0.4:
                    draw.line([(x, top), (x + 10, top + 10)], fill=ink, width=2)
                    draw.line([(x, top + 10), (x + 10, top)], fill=ink, width=2)
                _line(draw, (x + 14, top - 2), _words(rng, 1)[:6], font, ink, 60)
        top += round(font.size * rng.uniform(1.8, 3.0))


def _handwriting(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], ink: int
) -> None:
    width, height = size
    margin = int(width * rng.uniform(0.06, 0.12))
    letter = rng.uniform(5, 10)
    pen = int(rng.integers(1, 4))
    pitch = letter * rng.uniform(3.5, 5)
    for top in np.arange(margin + pitch, height - margin, pitch):
        x, last = float(margin), width - margin * rng.uniform(1, 2.5)
        while x < last:
            loops = int(rng.integers(2, 9))
            t = np.linspace(0, loops * 2 * np.pi, loops * 12)
            tall = np.repeat(rng.uniform(0.4, 1.6, loops), 12) * letter
            word_x = x + t * letter / 6 + 0.4 * tall * np.sin(t)
            word_y = top - tall * (1 - np.cos(t)) / 2 + rng.normal(0, 0.4, len(t))
            shown = word_x < width - margin / 2
            if shown.sum() > 1:
                stroke = np.stack([word_x, word_y], axis=1)[shown].ravel().tolist()
                draw.line(stroke, fill=ink, width=pen, joint="curve")
            x = float(word_x[-1] + letter * rng.uniform(1, 2))


DOCUMENTS: dict[
    str, Callable[[np.random.Generator, ImageDraw.ImageDraw, tuple[int, int], int], None]
] = {
    "paragraphs": _paragraphs,
    "table": _table,
    "form": _form,
    "handwriting": _handwriting,
}
