"""DICOM frames look as on a display: polarity, windows, palettes, colours."""

import io

import numpy as np
import pydicom
import pytest
from dicom_files import SAMPLES, dataset, encode, read, shown
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing, pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

RAMP = np.tile(np.arange(0, 4000, 40, dtype=np.int16), (100, 1))
NOISE = np.random.default_rng(0).integers(-1000, 3000, (300, 300)).astype(np.int16)


def test_window():
    pixels = shown(RAMP, WindowCenter=2000, WindowWidth=1001)
    assert pixels.dtype == np.uint8
    assert pixels[0, RAMP[0] <= 1500].max() == 0
    assert pixels[0, RAMP[0] >= 2500].min() == 255
    assert abs(int(pixels[0, 50]) - 128) <= 1


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("pixels", [NOISE, NOISE[:50, :50]])
def test_windows_agree_with_the_reference(function, pixels):
    made = dataset(pixels, RescaleSlope=2, RescaleIntercept=-100, VOILUTFunction=function)
    made.WindowCenter, made.WindowWidth = [300, 0], [1500, 1]
    reference = apply_windowing(apply_modality_lut(pixels, made), made)
    low, high = -(2**15) * 2 - 100, (2**15 - 1) * 2 - 100
    expected = np.rint((reference - low) / (high - low) * 255)
    found = read(encode(made)).frames[0].pixels
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"WindowCenter": 0, "WindowWidth": 0},
        {"WindowCenter": 30000, "WindowWidth": 10},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": 0, "WindowWidth": 1_000_000},
    ],
)
def test_without_a_sensible_window_the_robust_range_is_shown(window):
    pixels = RAMP.copy()
    pixels[0, 0] = 32000
    found = shown(pixels, **window)
    assert found[1, 0] == 0
    assert found[1, -1] == 255
    assert abs(int(found[1, 50]) - 128) <= 2


def test_monochrome1_is_inverted():
    plain = shown(RAMP, WindowCenter=2000, WindowWidth=4000)
    inverted = shown(
        RAMP, WindowCenter=2000, WindowWidth=4000, PhotometricInterpretation="MONOCHROME1"
    )
    assert np.array_equal(inverted, 255 - plain)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "OTHER", False),
    ],
)
def test_the_shape_inverse_inverts_once(photometric, shape, inverted):
    """Presentation LUT Shape (PS3.3 C.11.6), which says the same as the photometric
    interpretation where both are as they should be (C.8.11.3)."""
    window = {"WindowCenter": 2000, "WindowWidth": 4000}
    made = dataset(RAMP, PhotometricInterpretation=photometric, **window)
    made.add_new("PresentationLUTShape", "CS", shape)
    plain = shown(RAMP, **window)
    found = read(encode(made)).frames[0].pixels
    assert np.array_equal(found, 255 - plain if inverted else plain)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_takes_no_part(photometric):
    pixels = RAMP.copy()
    pixels[:50] = -2000
    found = shown(pixels, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
    assert found[:50].max() == 0
    assert found[60].min() == 0
    assert found[60].max() == 255
    assert abs(int(found[60, 50]) - 128) <= 3


def test_padding_range():
    found = shown(RAMP.astype(np.uint16), PixelPaddingValue=0, PixelPaddingRangeLimit=2000)
    assert found[0, :51].max() == 0
    assert found[0, -1] == 255


def test_an_image_of_nothing_but_padding_is_not_an_error():
    assert shown(np.full((20, 20), 7, np.uint16), PixelPaddingValue=7).shape == (20, 20)


def test_voi_lut():
    item = Dataset()
    item.LUTDescriptor = [3, 1000, 8]
    item.LUTData = [0, 51, 255]
    item["LUTData"].VR = "US"
    pixels = np.full((10, 10), 1001, np.uint16)
    pixels[0], pixels[1] = 0, 5000
    found = shown(pixels, VOILUTSequence=[item])
    assert found[:, 0].tolist() == [0, 255] + [51] * 8


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_modality_lut(vr):
    item = Dataset()
    item.LUTDescriptor = [2, 5, 16]
    values = [100, 900]
    item.LUTData = values if vr == "US" else np.array(values, "<u2").tobytes()
    item["LUTData"].VR = vr
    pixels = np.full((10, 10), 6, np.uint16)
    pixels[0] = 5
    found = shown(pixels, ModalityLUTSequence=[item], WindowCenter=500.5, WindowWidth=1601)
    low, high = (round((value + 300) / 1600 * 255) for value in values)
    assert abs(int(found[0, 0]) - low) <= 1
    assert abs(int(found[1, 0]) - high) <= 1


def test_values_of_functional_groups_belong_to_their_frame():
    groups = []
    for center in (1000, 3000):
        voi = Dataset()
        voi.WindowCenter, voi.WindowWidth = center, 1000
        group = Dataset()
        group.FrameVOILUTSequence = [voi]
        groups.append(group)
    made = dataset(np.stack([RAMP, RAMP]), PerFrameFunctionalGroupsSequence=groups)
    first, second = read(encode(made)).frames
    assert first.pixels[0, 50] == 255
    assert second.pixels[0, 50] == 0


def floats(pixels: np.ndarray) -> Dataset:
    """A dataset of float32 or float64 ``pixels``, (H, W)."""
    made = dataset(np.zeros(pixels.shape, np.uint16))
    del made.PixelData, made.BitsStored, made.HighBit, made.PixelRepresentation
    made.BitsAllocated = 8 * pixels.itemsize
    keyword = "FloatPixelData" if pixels.itemsize == 4 else "DoubleFloatPixelData"
    setattr(made, keyword, pixels.tobytes())
    return made


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_float_pixels(dtype):
    pixels = np.linspace(0.0, 1.0, 400, dtype=dtype).reshape(20, 20)
    pixels[0, 0] = np.nan
    found = read(encode(floats(pixels))).frames[0].pixels
    assert found[0, 0] == 0
    assert found[-1, -1] == 255
    assert abs(int(found[10, 0]) - 128) <= 3


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.uint8, np.int8])
def test_any_integer(dtype):
    top = np.iinfo(dtype).max
    pixels = np.linspace(0, float(top) * 0.99, 400).astype(dtype).reshape(20, 20)
    found = shown(pixels)
    assert found[0, 0] == 0
    assert found[-1, -1] == 255
    assert abs(int(found[10, 0]) - 128) <= 3


def test_values_at_the_top_of_their_cells():
    made = dataset((RAMP << 4).astype(np.uint16), BitsStored=12, HighBit=15)
    made.WindowCenter, made.WindowWidth = 2000, 4000
    assert np.array_equal(
        read(encode(made)).frames[0].pixels,
        shown(RAMP.astype(np.uint16), WindowCenter=2000, WindowWidth=4000),
    )


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_byte_order_changes_nothing(syntax):
    made = dataset(RAMP, WindowCenter=2000, WindowWidth=4000)
    if syntax == ExplicitVRBigEndian:
        made.PixelData = RAMP.astype(">i2").tobytes()
    found = read(encode(made, syntax)).frames[0].pixels
    assert np.array_equal(found, shown(RAMP, WindowCenter=2000, WindowWidth=4000))


COLOR = np.random.default_rng(1).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def test_rgb_by_pixel_and_by_plane():
    assert np.array_equal(shown(COLOR), COLOR)
    planes = dataset(COLOR, PlanarConfiguration=1)
    planes.PixelData = np.moveaxis(COLOR, -1, 0).tobytes()
    assert np.array_equal(read(encode(planes)).frames[0].pixels, COLOR)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize(
    "syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless], ids=lambda uid: uid.keyword
)
def test_a_code_stream_says_itself_how_colours_lie(syntax: UID, planar: int):
    """Planar Configuration means nothing there (PS3.3 C.7.6.3.1.3, PS3.5 8.2)."""
    colors = np.tile(COLOR, (4, 4, 1))
    made = dataset(colors)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.compress(syntax, generate_instance_uid=False)
    made.PlanarConfiguration = planar
    assert np.array_equal(read(encode(made, syntax)).frames[0].pixels, colors)


def test_so_does_a_jpeg():
    smooth = np.stack([np.add.outer(np.arange(32) * 4, np.arange(32) * step) for step in (1, 2, 3)])
    colors = np.moveaxis(smooth, 0, -1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(colors).save(out, "JPEG", quality=95, subsampling=0)
    made = dataset(colors, PhotometricInterpretation="YBR_FULL_422", PlanarConfiguration=1)
    made.PixelData = encapsulate([out.getvalue()])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    found = read(encode(made, JPEGBaseline8Bit)).frames[0].pixels
    assert np.abs(found.astype(int) - colors).max() <= 12


def test_sixteen_bit_rgb():
    found = shown(COLOR.astype(np.uint16) * 257)
    assert np.array_equal(found, COLOR)


def test_ybr_becomes_rgb():
    ybr = np.zeros((10, 10, 3), dtype=np.uint8)
    ybr[...] = 76, 85, 255
    found = shown(ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(found.astype(int) - [254, 0, 0]).max() <= 2


def test_palette_agrees_with_the_reference():
    path = SAMPLES / "examples_palette.dcm"
    header = pydicom.dcmread(path)
    colors = apply_color_lut(pixel_array(header), header)
    found = read(path.read_bytes()).frames[0].pixels
    assert np.array_equal(found, (colors >> 8).astype(np.uint8))


def test_segmented_palette():
    made = dataset(np.tile(np.arange(16, dtype=np.uint8), (16, 1)))
    made.PhotometricInterpretation = "PALETTE COLOR"
    # Three discrete values, a ramp of five, the discrete ones again, the ramp once more.
    words = [0, 3, 10, 20, 30, 1, 5, 80, 2, 1, 0, 0, 1, 5, 80]
    for color in ("Red", "Green", "Blue"):
        setattr(made, f"{color}PaletteColorLookupTableDescriptor", [16, 0, 16])
        setattr(
            made,
            f"Segmented{color}PaletteColorLookupTableData",
            np.array(words, "<u2").tobytes(),
        )
    found = read(encode(made)).frames[0].pixels
    ramp = [40, 50, 60, 70, 80]
    assert found[0, :, 0].tolist() == [10, 20, 30, *ramp, 10, 20, 30, 40, 50, 60, 70, 80]


def test_frames_are_spread_evenly_and_decoded_alone():
    frames = np.stack([np.full((16, 16), number, np.uint8) for number in range(100)])
    frames[:, 0] = 255
    made = dataset(frames, WindowCenter=128, WindowWidth=256)
    instance = read(encode(made), frames=4)
    assert [frame.number for frame in instance.frames] == [12, 37, 62, 87]
    assert [int(frame.pixels[5, 5]) for frame in instance.frames] == [12, 37, 62, 87]
    assert instance.frames_declared == 100
    assert len({instance.point_id(frame) for frame in instance.frames}) == 4
    assert [frame.number for frame in read(encode(made), frames=1).frames] == [50]


def test_single_bits():
    pixels = np.zeros((16, 16), np.uint8)
    pixels[4:12, 4:12] = 1
    made = dataset(pixels, BitsAllocated=1, BitsStored=1, HighBit=0)
    made.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    assert np.array_equal(read(encode(made)).frames[0].pixels, pixels * 255)


PLANE = (RAMP.astype(np.uint16) // 4).astype(np.uint16)  # 10 bits
MARKS = np.zeros(PLANE.shape, bool)
MARKS[10:30, 10:60] = True


def overlaid(
    made: Dataset, group: int = 0x6000, *, position: int = 0, data: bool = True
) -> Dataset:
    """``made`` with an overlay plane (PS3.3 C.9.2) of :data:`MARKS`."""
    made.add_new((group, 0x0010), "US", MARKS.shape[0])
    made.add_new((group, 0x0011), "US", MARKS.shape[1])
    made.add_new((group, 0x0022), "LO", "SECRETNAME^JANE")
    made.add_new((group, 0x0040), "CS", "G")
    made.add_new((group, 0x0050), "SS", [1, 1])
    made.add_new((group, 0x0100), "US", made.BitsAllocated if position else 1)
    made.add_new((group, 0x0102), "US", position)
    if data:
        made.add_new((group, 0x3000), "OW", np.packbits(MARKS, bitorder="little").tobytes())
    return made


def test_overlay_planes_are_not_drawn():
    plain = shown(PLANE, BitsStored=10, HighBit=9)
    made = dataset(PLANE, BitsStored=10, HighBit=9)
    for group in (0x6000, 0x6002, 0x601E):
        overlaid(made, group)
    assert np.array_equal(read(encode(made)).frames[0].pixels, plain)


@pytest.mark.parametrize("position", [10, 12, 15])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_overlay_bits_above_the_stored_ones_are_not_drawn(position, signed, syntax):
    bits = {"BitsStored": 10, "HighBit": 9, "PixelRepresentation": int(signed)}
    marked = PLANE | (MARKS.astype(np.uint16) << position)
    made = overlaid(dataset(marked, **bits), position=position, data=False)
    if syntax == ExplicitVRBigEndian:
        made.PixelData = marked.astype(">u2").tobytes()
    elif syntax == RLELossless:
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.compress(RLELossless, generate_instance_uid=False)
    found = read(encode(made, syntax)).frames[0].pixels
    assert np.array_equal(found, shown(PLANE, **bits))


@pytest.mark.parametrize("position", [10, 15])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEG2000, JPEGLSLossless])
def test_overlay_bits_of_lossless_code_streams_are_not_drawn(position, signed, syntax):
    """Compressed with all 16 bits allocated; above Bits Stored is no picture (PS3.5 8.1.1)."""
    kind = np.int16 if signed else np.uint16
    marked = (PLANE | (MARKS.astype(np.uint16) << position)).view(kind)
    made = dataset(marked)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # A ratio of 1 is a lossless code stream under the transfer syntax that allows both.
    how = {"j2k_cr": [1]} if syntax == JPEG2000 else {}
    made.compress(syntax, generate_instance_uid=False, **how)
    made.BitsStored, made.HighBit = 10, 9
    found = read(encode(overlaid(made, position=position, data=False), syntax)).frames[0].pixels
    plain = PLANE.view(kind)
    assert np.array_equal(found, shown(plain, BitsStored=10, HighBit=9))


def test_overlay_bits_below_the_stored_ones_are_not_drawn():
    plain = shown(PLANE << 6, BitsStored=10, HighBit=15)
    marked = (PLANE << 6) | (MARKS.astype(np.uint16) << 2)
    made = overlaid(dataset(marked, BitsStored=10, HighBit=15), position=2, data=False)
    assert np.array_equal(read(encode(made)).frames[0].pixels, plain)


@pytest.mark.parametrize(("value", "limit"), [(-2000, -1500), (-1500, -2000), (-2000, None)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_with_a_limit(value, limit, photometric):
    pixels = RAMP.copy()
    pixels[:50] = -2000 if limit is None else np.linspace(-2000, -1500, 100)
    elements = {"PixelPaddingValue": value, "PhotometricInterpretation": photometric}
    if limit is not None:
        elements["PixelPaddingRangeLimit"] = limit
    found = shown(pixels, **elements)
    assert found[:50].max() == 0
    # The rest is shown over its own range, as if there were no padding.
    alone = shown(RAMP, PhotometricInterpretation=photometric)
    assert np.array_equal(found[50:], alone[50:])


def test_padding_written_in_the_other_signedness():
    pixels = RAMP.copy()
    pixels[:50] = -2000
    made = dataset(pixels)
    made.add_new("PixelPaddingValue", "US", 65536 - 2000)
    found = read(encode(made)).frames[0].pixels
    assert found[:50].max() == 0
    assert found[60].max() == 255


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("limit", [None, -1.5])
def test_padding_of_float_pixels(dtype, limit):
    pixels = np.tile(np.linspace(0.0, 1.0, 100, dtype=dtype), (100, 1))
    pixels[:50] = -1000.5 if limit is None else np.linspace(-1000.5, -1.5, 100, dtype=dtype)
    made = floats(pixels)
    form = "Float" if dtype == "f4" else "DoubleFloat"
    setattr(made, f"{form}PixelPaddingValue", -1000.5)
    if limit is not None:
        setattr(made, f"{form}PixelPaddingRangeLimit", limit)
    found = read(encode(made)).frames[0].pixels
    assert found[:50].max() == 0
    assert found[60, 0] == 0
    assert found[60, -1] == 255
    assert abs(int(found[60, 50]) - 128) <= 3


ABSURD = (
    ("0", "0"),
    ("2000", "-100"),
    ("2000", "0.0"),
    ("NaN", "100"),
    ("2000", "NaN"),
    ("INF", "INF"),
    ("2000", "1e308"),
    ("1e308", "1e308"),
    ("-1e300", "100"),
    ("2000", "1e-300"),
    ("DOE", "JANE"),
    ("", "400"),
    ("2000", ""),
)


@pytest.mark.parametrize("window", ABSURD)
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "DOE^JANE"])
def test_absurd_windows_are_passed_over(window, function):
    made = dataset(RAMP)
    for keyword, written in zip(("WindowCenter", "WindowWidth"), window, strict=True):
        made[keyword] = DataElement(keyword, "LO", written, validation_mode=0)
        made[keyword].VR = "LO"
    made.add_new("VOILUTFunction", "LO", function)
    found = read(encode(made)).frames[0].pixels
    assert np.array_equal(found, shown(RAMP))
    assert np.ptp(found) == 255


def test_of_several_windows_the_first_is_shown():
    one = shown(RAMP, WindowCenter=1000, WindowWidth=500)
    several = shown(RAMP, WindowCenter=[1000, 3000, 0], WindowWidth=[500, 100, 0])
    assert np.array_equal(one, several)
    # A center for each of two windows, and one width for both.
    uneven = shown(RAMP, WindowCenter=[1000, 3000], WindowWidth=500)
    assert np.array_equal(one, uneven)


def test_what_the_functions_of_a_window_do_to_values():
    """The formulas of PS3.3 C.11.2.1.2 and C.11.2.1.3, value by value."""
    center, width = 2000.0, 1000.0
    x = RAMP[0].astype(float)
    expected = {
        "LINEAR": (x - (center - 0.5)) / (width - 1) + 0.5,
        "LINEAR_EXACT": (x - center) / width + 0.5,
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - center) / width)),
    }
    for function, share in expected.items():
        found = shown(RAMP, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
        assert np.abs(found[0] - np.clip(share, 0, 1) * 255).max() <= 0.501, function
        # Not what the standard calls a code string, and yet written.
        made = dataset(RAMP, WindowCenter=center, WindowWidth=width)
        made.add_new("VOILUTFunction", "LO", function.lower())
        assert np.array_equal(read(encode(made)).frames[0].pixels, found)


@pytest.mark.parametrize("slope", ["1e308", "-1e308", "1e-320", "NaN", "INF", "0", "DOE"])
def test_absurd_rescaling_is_passed_over(slope):
    made = dataset(RAMP, RescaleIntercept=0)
    made["RescaleSlope"] = DataElement("RescaleSlope", "LO", slope, validation_mode=0)
    made["RescaleSlope"].VR = "LO"
    found = read(encode(made)).frames[0].pixels
    assert np.array_equal(found, shown(RAMP))


def test_floats_from_one_end_of_their_range_to_the_other():
    top = float(np.finfo(np.float64).max)
    pixels = np.tile(np.linspace(-1.0, 1.0, 100), (100, 1)) * top
    found = read(encode(floats(pixels))).frames[0].pixels
    assert found[0, 0] == 0
    assert found[0, -1] == 255
    assert abs(int(found[0, 50]) - 128) <= 3
