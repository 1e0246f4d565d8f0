"""The imaging protocols of the sample: what a study of each kind holds, and in which syntax."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    XRayAngiographicImageStorage,
)

from indexer.sample import headers, phantoms
from indexer.sample.encoding import Pixels, set_pixels
from indexer.sample.headers import Series, Study
from indexer.sample.shapes import Floats, Size

__all__ = ["PROTOCOLS", "Instance", "Protocol"]

Value = TypeVar("Value", bound=np.generic)
Draw: TypeAlias = Callable[..., NDArray[Value]]
Windows: TypeAlias = list[tuple[int, int, str]]

_CHEST: Windows = [(40, 400, "MEDIASTINUM"), (-600, 1500, "LUNG")]
_LUNG: Windows = [(-600, 1500, "LUNG")]
_BRAIN: Windows = [(35, 90, "BRAIN"), (500, 2500, "BONE")]
_ABDOMEN: Windows = [(50, 400, "ABDOMEN")]


@dataclass(frozen=True, slots=True)
class Instance:
    """An image ready to be written."""

    series: Series
    dataset: Dataset


Build: TypeAlias = Callable[[Study], Iterator[Instance]]


@dataclass(frozen=True, slots=True)
class Protocol:
    """A kind of study. ``ages``: years, from and up to. ``sex``: F, or empty for any."""

    name: str
    description: str
    ages: tuple[int, int]
    sex: str
    build: Build


def _draw(
    study: Study, function: Draw[Value], size: Size, *stream: int, **how: object
) -> NDArray[Value]:
    """Draws the phantom of this patient: two studies of one patient show one anatomy.

    Numbers in ``stream`` give the patient another anatomy of the same kind.
    """
    rng = np.random.default_rng((study.patient.anatomy, *stream))
    return function(rng, size, **how)


def _film(
    study: Study, function: Draw[Value], size: Size, frames: int, *stream: int, **how: object
) -> NDArray[Value]:
    """Draws one beat of the heart: as ``_draw``, with a leading axis of frames."""
    phases = _phases(study, frames)
    return np.stack([_draw(study, function, size, *stream, phase=p, **how) for p in phases])


def _twelve_bits(values: Floats) -> NDArray[np.uint16]:
    """Rounds to whole numbers from 0 to 4095."""
    return np.clip(np.rint(values), 0, 4095).astype(np.uint16)


def _levels(study: Study, first: float, last: float, count: int) -> list[float]:
    """Slice positions; a later study never hits the very same ones."""
    shift = 0.37 * (study.number - 1) * (last - first) / count
    return [float(level) for level in np.linspace(first, last, count) + shift]


def _phases(study: Study, count: int) -> list[float]:
    """Times within one beat, from 0 to 1; a later study is gated a little later."""
    return [(k + 0.1 * study.number) / count for k in range(count)]


def _ct(
    series: Series,
    function: Draw[np.float32],
    levels: list[float],
    windows: Windows,
    syntax: UID,
    *,
    signed: bool = False,
    size: int = 256,
    field: float = 360.0,
    kernel: str = "STANDARD",
) -> Iterator[Instance]:
    for number, level in enumerate(levels, start=1):
        ds = headers.new_dataset(series, CTImageStorage, number)
        headers.image_plane(ds, -5.0 * number, 5.0, field, size)
        lesion = series.study.patient.lesion
        hu = np.rint(_draw(series.study, function, (size, size), level=level, lesion=lesion))
        pixels: Pixels
        if signed:
            headers.ct(ds, windows, 0, kernel)
            pixels, bits = hu.astype(np.int16), 16
        else:
            headers.ct(ds, windows, -1024, kernel)
            pixels, bits = _twelve_bits(hu + 1024), 12
        set_pixels(ds, pixels, syntax, photometric="MONOCHROME2", bits=bits)
        yield Instance(series, ds)


def _chest_ct(study: Study) -> Iterator[Instance]:
    soft = Series(study, 1, "CT", "CHEST", "Chest 5 mm soft tissue")
    lung = Series(study, 2, "CT", "CHEST", "Chest 5 mm lung")
    levels = _levels(study, 0.02, 0.92, 10)
    yield from _ct(soft, phantoms.chest_ct, levels, _CHEST, ExplicitVRLittleEndian)
    yield from _ct(
        lung, phantoms.chest_ct, levels[::2], _LUNG, JPEG2000Lossless, signed=True, kernel="LUNG"
    )


def _head_ct(study: Study) -> Iterator[Instance]:
    series = Series(study, 1, "CT", "HEAD", "Head 5 mm")
    levels = _levels(study, 0.03, 0.93, 11)
    yield from _ct(series, phantoms.head_ct, levels, _BRAIN, RLELossless, signed=True, field=240.0)


def _abdomen_ct(study: Study) -> Iterator[Instance]:
    series = Series(study, 1, "CT", "ABDOMEN", "Abdomen 5 mm")
    levels = _levels(study, 0.03, 0.93, 11)
    first = study.number == 1
    syntax = DeflatedExplicitVRLittleEndian if first else ImplicitVRLittleEndian
    yield from _ct(series, phantoms.abdomen_ct, levels, _ABDOMEN, syntax)


def _mr(
    series: Series,
    function: Draw[np.float32],
    shots: list[dict[str, float]],
    syntax: UID,
    timing: tuple[float, float, str],
    window: int,
    size: int = 192,
    **how: object,
) -> Iterator[Instance]:
    for number, shot in enumerate(shots, start=1):
        ds = headers.new_dataset(series, MRImageStorage, number)
        headers.image_plane(ds, -4.0 * number, 4.0, 320.0, size)
        headers.mr(ds, *timing, window)
        lesion = series.study.patient.lesion
        signal = _draw(series.study, function, (size, size), lesion=lesion, **shot, **how)
        set_pixels(ds, _twelve_bits(signal), syntax, photometric="MONOCHROME2", bits=12)
        yield Instance(series, ds)


def _head_mr(study: Study) -> Iterator[Instance]:
    shots = [{"level": level} for level in _levels(study, 0.25, 0.9, 8)]
    draw = phantoms.head_mr
    t1 = Series(study, 1, "MR", "HEAD", "T1 axial")
    t2 = Series(study, 2, "MR", "HEAD", "T2 axial")
    yield from _mr(
        t1, draw, shots, ImplicitVRLittleEndian, (12, 520, "SE"), 1000, tissues=phantoms.HEAD_T1
    )
    yield from _mr(
        t2, draw, shots, ExplicitVRBigEndian, (98, 4200, "SE"), 1000, tissues=phantoms.HEAD_T2
    )


def _breast_mr(study: Study) -> Iterator[Instance]:
    series = Series(study, 1, "MR", "BREAST", "T1 axial both breasts")
    shots = [{"level": level} for level in _levels(study, 0.12, 0.88, 11)]
    draw = phantoms.breast_mr
    yield from _mr(series, draw, shots, JPEGLSLossless, (5, 12, "GR"), 900)


def _cardiac_mr(study: Study) -> Iterator[Instance]:
    stack = Series(study, 1, "MR", "HEART", "Short axis stack")
    shots = [{"level": level} for level in _levels(study, 0.12, 0.85, 8)]
    draw = phantoms.cardiac_mr
    yield from _mr(stack, draw, shots, ExplicitVRLittleEndian, (1.5, 3, "GR"), 1100)
    cine = Series(study, 2, "MR", "HEART", "Short axis cine")
    frames, size, window = 8, 160, 1100
    ds = headers.new_dataset(cine, EnhancedMRImageStorage, 1)
    headers.enhanced_mr(ds, frames, 2.0, window)
    pixels = _twelve_bits(_film(study, draw, (size, size), frames, lesion=study.patient.lesion))
    set_pixels(ds, pixels, JPEG2000Lossless, photometric="MONOCHROME2", bits=12, frames=frames)
    yield Instance(cine, ds)


def _radiograph(
    series: Series,
    number: int,
    attenuation: Floats,
    syntax: UID,
    *,
    sop_class: UID,
    view: str,
    laterality: str = "",
    inverted: bool = False,
) -> Instance:
    ds = headers.new_dataset(series, sop_class, number)
    headers.radiograph(ds, view, laterality, inverted)
    top = max(float(attenuation.max()), 0.1)
    # Phantoms of one patient repeat to the last bit; no two exposures do.
    grain = np.random.default_rng((series.study.patient.anatomy, series.study.number, number))
    exposed = attenuation / top + 0.004 * grain.standard_normal(attenuation.shape)
    stored = np.rint(np.clip(exposed, 0, 1) * 4095)
    pixels = (4095 - stored if inverted else stored).astype(np.uint16)
    photometric = "MONOCHROME1" if inverted else "MONOCHROME2"
    set_pixels(ds, pixels, syntax, photometric=photometric, bits=12)
    return Instance(series, ds)


def _both_sides(
    series: Series,
    function: Draw[np.float32],
    size: Size,
    syntax: UID,
    *,
    sop_class: UID,
    views: Mapping[str, Mapping[str, object]],
    inverted: bool = False,
) -> Iterator[Instance]:
    """Radiographs of the left side, then of the right one; a lesion shows on the left.

    Args:
        series: which they belong to.
        function: draws one side.
        size: rows and columns.
        syntax: the transfer syntax.
        sop_class: the SOP class UID.
        views: the view positions, each with what ``function`` is told to draw it.
        inverted: whether they are stored as MONOCHROME1.
    """
    for number, (left, view) in enumerate(product((True, False), views), start=1):
        lesion = series.study.patient.lesion and left
        image = _draw(series.study, function, size, left=left, lesion=lesion, **views[view])
        yield _radiograph(
            series,
            number,
            image,
            syntax,
            sop_class=sop_class,
            view=view,
            laterality="L" if left else "R",
            inverted=inverted,
        )


def _chest_xray(study: Study) -> Iterator[Instance]:
    # Computed radiography stores films as films look: dense is dark until it is inverted.
    inverted = study.patient.anatomy % 2 == 0
    series = Series(study, 1, "CR" if inverted else "DX", "CHEST", "Chest frontal")
    views = (("PA", 0), ("AP", 1)) if study.patient.lesion else (("PA", 0),)
    for number, (view, turn) in enumerate(views, start=1):
        side = 320 - 16 * turn
        image = _draw(study, phantoms.chest_xray, (side, 320), lesion=study.patient.lesion)
        yield _radiograph(
            series,
            number,
            image,
            JPEGLSLossless if inverted else ExplicitVRLittleEndian,
            sop_class=ComputedRadiographyImageStorage
            if inverted
            else DigitalXRayImageStorageForPresentation,
            view=view,
            inverted=inverted,
        )


def _hand_xray(study: Study) -> Iterator[Instance]:
    yield from _both_sides(
        Series(study, 1, "CR", "HAND", "Both hands"),
        phantoms.hand_xray,
        (320, 288),
        RLELossless,
        sop_class=ComputedRadiographyImageStorage,
        views={"PA": {}},
        inverted=True,
    )


def _knee_xray(study: Study) -> Iterator[Instance]:
    yield from _both_sides(
        Series(study, 1, "DX", "KNEE", "Both knees frontal"),
        phantoms.knee_xray,
        (288, 288),
        JPEG2000Lossless,
        sop_class=DigitalXRayImageStorageForPresentation,
        views={"AP": {}},
    )


def _mammography(study: Study) -> Iterator[Instance]:
    for instance in _both_sides(
        Series(study, 1, "MG", "BREAST", "Screening"),
        phantoms.mammogram,
        (384, 288),
        JPEGLSLossless,
        sop_class=DigitalMammographyXRayImageStorageForPresentation,
        views={"CC": {"oblique": False}, "MLO": {"oblique": True}},
    ):
        headers.mammography(instance.dataset, instance.dataset.ViewPosition)
        yield instance


def _echo(study: Study) -> Iterator[Instance]:
    loop = Series(study, 1, "US", "HEART", "Four chamber view, colour flow")
    frames = 6
    ds = headers.new_dataset(loop, UltrasoundMultiFrameImageStorage, 1)
    ds.ImageType, ds.BurnedInAnnotation = ["ORIGINAL", "PRIMARY"], "NO"
    headers.film(ds, 60.0)
    pixels = _film(study, phantoms.ultrasound, (240, 320), frames)
    set_pixels(ds, pixels, JPEGBaseline8Bit, photometric="RGB", bits=8, frames=frames)
    yield Instance(loop, ds)
    still = Series(study, 2, "US", "HEART", "Four chamber view")
    for number, (phase, syntax) in enumerate(
        ((0.1, ExplicitVRLittleEndian), (0.5, RLELossless)), start=1
    ):
        ds = headers.new_dataset(still, UltrasoundImageStorage, number)
        # The scale at the edge of the picture is burned in.
        ds.ImageType, ds.BurnedInAnnotation = ["ORIGINAL", "PRIMARY"], "YES"
        ds.LossyImageCompression = "00"
        phase += 0.03 * (study.number - 1)
        image = _draw(study, phantoms.ultrasound, (240, 320), phase=phase, doppler=number == 1)
        set_pixels(ds, image, syntax, photometric="RGB", bits=8)
        yield Instance(still, ds)


def _angiography(study: Study) -> Iterator[Instance]:
    frames, size = 8, 192
    for number in (1, 2):
        series = Series(study, number, "XA", "HEART", f"Left coronary run {number}")
        ds = headers.new_dataset(series, XRayAngiographicImageStorage, 1)
        ds.ImageType = ["ORIGINAL", "PRIMARY", "SINGLE PLANE"]
        ds.PixelIntensityRelationship, ds.BurnedInAnnotation = "LOG", "NO"
        ds.KVP, ds.XRayTubeCurrent, ds.ExposureTime, ds.RadiationSetting = 80, 500, 8, "GR"
        ds.PositionerMotion, ds.DistanceSourceToDetector = "STATIC", 1000
        ds.PositionerPrimaryAngle, ds.PositionerSecondaryAngle = 30 * number - 45, 20
        ds.LossyImageCompression, ds.ImagerPixelSpacing = "00", [0.8, 0.8]
        headers.film(ds, 66.0)
        run = _film(study, phantoms.angiogram, (size, size), frames, number)
        pixels = np.rint(run * 255).astype(np.uint8)
        syntax = RLELossless if number == 1 else ExplicitVRLittleEndian
        set_pixels(ds, pixels, syntax, photometric="MONOCHROME2", bits=8, frames=frames)
        yield Instance(series, ds)


PROTOCOLS: tuple[Protocol, ...] = (
    Protocol("ct-chest", "CT chest with contrast", (30, 85), "", _chest_ct),
    Protocol("xr-chest", "Chest radiograph", (18, 90), "", _chest_xray),
    Protocol("ct-head", "CT head", (20, 90), "", _head_ct),
    Protocol("us-heart", "Echocardiography", (25, 85), "", _echo),
    Protocol("xr-hand", "Hand radiographs", (6, 70), "", _hand_xray),
    Protocol("mr-heart", "Cardiac MR", (20, 80), "", _cardiac_mr),
    Protocol("ct-abdomen", "CT abdomen with contrast", (25, 85), "", _abdomen_ct),
    Protocol("xr-knee", "Knee radiographs", (35, 85), "", _knee_xray),
    Protocol("mr-breast", "MR of the breasts", (28, 75), "F", _breast_mr),
    Protocol("mr-head", "MR head", (18, 85), "", _head_mr),
    Protocol("mg-breast", "Screening mammography", (45, 75), "F", _mammography),
    Protocol("xa-heart", "Coronary angiography", (40, 85), "", _angiography),
)
