"""Lookup tables of modality, values of interest and palettes do what the standard says."""

import struct

import numpy as np
import pytest
from dicom_files import CT, dataset, encode, read, shown
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

PLANE = np.add.outer(np.arange(64) * 40, np.arange(64) * 20).astype(np.uint16)  # 12 bits
TWELVE = {"BitsStored": 12, "HighBit": 11}
CR = "1.2.840.10008.5.1.4.1.1.1"


def curve(top: int, length: int = 4096) -> np.ndarray:
    """Entries of a table that is not linear, from 0 to ``top``."""
    return np.rint((np.arange(length) / (length - 1)) ** 2 * top).astype(np.int64)


def table(keyword: str, descriptor: tuple[int, int, int], entries: np.ndarray, vr: str = "US"):
    """The elements of a LUT; a first value that its VR cannot hold is written as its 16 bits."""
    item = Dataset()
    first = descriptor[1]
    if vr == "US":
        first &= 0xFFFF
    elif first > 0x7FFF:
        first -= 0x10000
    count = descriptor[0] - 0x10000 if vr == "SS" and descriptor[0] > 0x7FFF else descriptor[0]
    item.add_new("LUTDescriptor", vr, [count, first, descriptor[2]])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return {keyword: Sequence([item])}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("vr", ["US", "SS"])
def test_the_first_value_of_a_voi_lut_is_signed_where_rescaled_values_are(syntax, vr):
    """PS3.3 C.11.2.1.1: unsigned pixels with an intercept below 0."""
    entries = curve(255)
    lut = table("VOILUTSequence", (4096, -1024, 8), entries, vr)
    made = dataset(PLANE, **TWELVE, RescaleSlope=1, RescaleIntercept=-1024, **lut)
    assert np.array_equal(read(encode(made, syntax)).frames[0].pixels, entries[PLANE])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("vr", ["US", "SS"])
def test_the_first_value_of_a_voi_lut_is_unsigned_where_rescaled_values_are(syntax, vr):
    """Signed pixels that an intercept lifts above 32767."""
    entries = curve(255)
    signed = PLANE.astype(np.int16) - 2048
    lut = table("VOILUTSequence", (4096, 40_000, 8), entries, vr)
    made = dataset(signed, **TWELVE, RescaleSlope=1, RescaleIntercept=42_048, **lut)
    made.SOPClassUID = CR
    assert np.array_equal(read(encode(made, syntax)).frames[0].pixels, entries[PLANE])


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_a_voi_lut_behind_a_modality_lut_begins_at_an_unsigned_value(vr):
    """What comes out of a modality LUT is unsigned (PS3.3 C.11.1.1.1), whatever is stored."""
    signed = PLANE.astype(np.int16) - 2048
    entries = curve(255)
    lut = table("ModalityLUTSequence", (4096, -2048, 16), np.arange(4096) + 40_000)
    lut |= table("VOILUTSequence", (4096, 40_000, 8), entries, vr)
    found = shown(signed, **TWELVE, SOPClassUID=CR, **lut)
    assert np.array_equal(found, entries[PLANE])


@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize(("kind", "first"), [("i2", -2048), ("u2", 60_000)])
def test_the_first_value_of_a_modality_lut_has_the_sign_of_what_is_stored(vr, kind, first):
    stored = (PLANE.astype(np.int64) + first).astype(kind)
    lut = table("ModalityLUTSequence", (4096, first, 16), curve(1000))
    found = shown(stored, SOPClassUID=CR, WindowCenter=500.5, WindowWidth=1001, **lut)
    assert np.abs(found - curve(1000)[PLANE] / 1000 * 255).max() <= 0.501


def test_a_table_that_begins_below_unsigned_values_stays_there():
    """−100 in SS over values from 0 on is −100, for as 65436 it would map nothing."""
    entries = curve(255, 4196)
    found = shown(PLANE, **TWELVE, **table("VOILUTSequence", (4196, -100, 8), entries, "SS"))
    assert np.array_equal(found, entries[PLANE.astype(int) + 100])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("declared", "used"), [(16, 12), (16, 10), (16, 8), (16, 14), (12, 10), (8, 12), (8, 16)]
)
def test_white_is_the_largest_value_of_the_bits_in_use(photometric, declared, used):
    """An image may declare 8 or 16 bits only (PS3.3 C.11.2.1.1), which says the size of a cell."""
    entries = curve(2**used - 1)
    elements = table("VOILUTSequence", (4096, 0, declared), entries)
    found = shown(PLANE, **TWELVE, PhotometricInterpretation=photometric, **elements)
    expected = entries[PLANE] / (2**used - 1) * 255
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    assert np.abs(found - expected).max() <= 0.501


@pytest.mark.parametrize(("declared", "top"), [(8, 100), (16, 40_000), (16, 20_000), (12, 1500)])
def test_a_dark_table_of_full_depth_stays_dark(declared, top):
    entries = curve(top)
    found = shown(PLANE, **TWELVE, **table("VOILUTSequence", (4096, 0, declared), entries))
    assert np.abs(found - entries[PLANE] / (2**declared - 1) * 255).max() <= 0.501


def test_a_table_of_few_values_of_full_depth_keeps_them():
    entries = np.where(np.arange(4096) < 2000, 0, 0x8000)
    found = shown(PLANE, **TWELVE, **table("VOILUTSequence", (4096, 0, 16), entries))
    assert set(np.unique(found)) == {0, 128}


def big_endian(entries: np.ndarray) -> bytes:
    """Entries of 8 bits in words, the first in the low byte of each (PS3.5 7.3)."""
    return np.frombuffer(entries.astype(np.uint8).tobytes(), "<u2").astype(">u2").tobytes()


def test_bytes_of_a_voi_lut_are_swapped_in_a_big_endian_file():
    entries = curve(255, 256)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    item.add_new("LUTData", "OW", big_endian(entries))
    stored = (PLANE // 16).astype(np.uint8)
    made = dataset(stored, VOILUTSequence=Sequence([item]))
    assert np.array_equal(read(encode(made, ExplicitVRBigEndian)).frames[0].pixels, entries[stored])


COLORS = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) * 3 % 256])


def palette(first: int, entries: np.ndarray, bits: int, order: str = "<") -> dict[str, object]:
    elements: dict[str, object] = {}
    for name, channel in zip(("Red", "Green", "Blue"), entries, strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [len(channel) % 65536, first, bits]
        data = channel.astype(f"{order}u2").tobytes()
        elements[f"{name}PaletteColorLookupTableData"] = data
    return elements


def test_bytes_of_a_palette_are_swapped_in_a_big_endian_file():
    stored = (PLANE // 16).astype(np.uint8)
    made = dataset(stored, PhotometricInterpretation="PALETTE COLOR")
    for name, channel in zip(("Red", "Green", "Blue"), COLORS, strict=True):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
        setattr(made, f"{name}PaletteColorLookupTableData", big_endian(channel))
    found = read(encode(made, ExplicitVRBigEndian)).frames[0].pixels
    assert np.array_equal(found, COLORS[:, stored].transpose(1, 2, 0))


def test_bytes_of_a_segmented_palette_are_swapped_in_a_big_endian_file():
    """PS3.3 C.7.9.2: one discrete segment of 16 entries."""
    stored = np.tile(np.arange(16, dtype=np.uint8), (16, 1))
    made = dataset(stored, PhotometricInterpretation="PALETTE COLOR")
    for name, channel in zip(("Red", "Green", "Blue"), COLORS[:, :16], strict=True):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [16, 0, 8])
        segment = np.concatenate([[0, 16], channel])
        setattr(made, f"Segmented{name}PaletteColorLookupTableData", big_endian(segment))
    found = read(encode(made, ExplicitVRBigEndian)).frames[0].pixels
    assert np.array_equal(found, COLORS[:, stored].transpose(1, 2, 0))


def test_bytes_in_pairs_are_read_from_numbers_too():
    """LUT Data of VR US with two entries of 8 bits in each number."""
    entries = curve(255, 256)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    packed = np.frombuffer(entries.astype(np.uint8).tobytes(), "<u2").tolist()
    item.add_new("LUTData", "US", packed)
    stored = (PLANE // 16).astype(np.uint8)
    assert np.array_equal(shown(stored, VOILUTSequence=Sequence([item])), entries[stored])


XA, XRF, BIPLANE = (f"1.2.840.10008.5.1.4.1.1.12.{number}" for number in (1, 2, 3))
BACK = {
    **table("ModalityLUTSequence", (4096, 0, 16), curve(65535)),
    **TWELVE,
    "WindowCenter": 2048,
    "WindowWidth": 4096,
}


@pytest.mark.parametrize("sop_class", [XA, XRF, BIPLANE])
@pytest.mark.parametrize("relation", ["LOG", "DISP"])
def test_the_modality_lut_of_an_angiogram_is_not_for_display(sop_class, relation):
    """It leads back to the intensity of the beam (PS3.3 C.8.7.1.1.2)."""
    found = shown(PLANE, SOPClassUID=sop_class, PixelIntensityRelationship=relation, **BACK)
    assert np.array_equal(found, shown(PLANE, **TWELVE, WindowCenter=2048, WindowWidth=4096))


def test_the_modality_lut_of_an_enhanced_angiogram_is_not_for_display_either():
    """PS3.3 C.8.19.6.4.1.1: the relation stands in a functional group."""
    properties, shared = Dataset(), Dataset()
    properties.PixelIntensityRelationship = "LOG"
    shared.FramePixelDataPropertiesSequence = [properties]
    made = dataset(PLANE, SOPClassUID=f"{XA}.1", SharedFunctionalGroupsSequence=[shared], **BACK)
    expected = shown(PLANE, **TWELVE, WindowCenter=2048, WindowWidth=4096)
    assert np.array_equal(read(encode(made)).frames[0].pixels, expected)


@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": XA, "PixelIntensityRelationship": "LIN"},
        {"SOPClassUID": CR, "PixelIntensityRelationship": "LOG"},
    ],
)
def test_any_other_modality_lut_is_applied(elements):
    found = shown(PLANE, **elements, **BACK)
    expected = np.clip((curve(65535)[PLANE] - 2047.5) / 4095 + 0.5, 0, 1) * 255
    assert np.abs(found - expected).max() <= 0.501


ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


def presented(first: int, presentation: str | None = "COLOR") -> tuple[Dataset, np.ndarray]:
    """A dataset with a supplemental palette from ``first`` on, and its grey and colours."""
    stored = PLANE[:, ::2] % (first + 256)
    made = dataset(stored.astype(np.uint16), SOPClassUID=ENHANCED_MR, **TWELVE)
    made.WindowCenter, made.WindowWidth = first / 2, first
    if presentation is not None:
        made.PixelPresentation = presentation
    for keyword, value in palette(first, COLORS * 257, 16).items():
        setattr(made, keyword, value)
    grey = np.clip((stored - (first / 2 - 0.5)) / (first - 1) + 0.5, 0, 1) * 255
    colored = COLORS[:, np.clip(stored.astype(int) - first, 0, 255)].transpose(1, 2, 0)
    return made, np.where((stored >= first)[..., None], colored, np.rint(grey)[..., None])


@pytest.mark.parametrize("first", [256, 1000])
@pytest.mark.parametrize("presentation", ["COLOR", "MIXED"])
def test_a_supplemental_palette_colours_the_values_from_its_first_on(first, presentation):
    """PS3.3 C.7.6.19 and C.8.16.2.1.1.1; what is below goes through the window."""
    made, expected = presented(first, presentation)
    found = read(encode(made)).frames[0].pixels
    assert np.abs(found.astype(float) - expected).max() <= 1


@pytest.mark.parametrize("presentation", [None, "MONOCHROME"])
def test_without_a_presentation_in_colour_a_palette_is_left_alone(presentation):
    made, _ = presented(256, presentation)
    assert read(encode(made)).frames[0].pixels.ndim == 2


def test_without_a_window_the_grey_values_alone_are_stretched():
    made, _ = presented(1000)
    del made.WindowCenter, made.WindowWidth
    found = read(encode(made)).frames[0].pixels
    stored = np.frombuffer(made.PixelData, "<u2").reshape(found.shape[:2])
    grey = found[stored < 1000]
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert (grey.min(), grey.max()) == (0, 255)
    middle = found[np.abs(stored - 500.0) <= 20]
    assert np.abs(middle - 128.0).max() <= 10


def test_a_frame_says_itself_whether_it_is_in_colour():
    """PS3.3 C.8.13.5.1: MIXED in the header, and one of both of each frame."""
    made, expected = presented(256, "MIXED")
    made.PixelData, made.NumberOfFrames = made.PixelData * 2, 2
    groups = []
    for presentation in ("MONOCHROME", "COLOR"):
        kind, group = Dataset(), Dataset()
        kind.PixelPresentation = presentation
        group.MRImageFrameTypeSequence = [kind]
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = groups
    grey, colored = (frame.pixels for frame in read(encode(made)).frames)
    assert grey.ndim == 2
    assert np.abs(colored.astype(float) - expected).max() <= 1


def test_a_supplemental_palette_without_entries_leaves_grey():
    made, _ = presented(256)
    del made.GreenPaletteColorLookupTableData
    assert read(encode(made)).frames[0].pixels.ndim == 2


def test_a_descriptor_whose_vr_nothing_decides():
    """Implicit VR without Pixel Representation: three words of no known sign."""
    entries = curve(255)
    made = dataset(PLANE, **TWELVE, **table("VOILUTSequence", (4096, 0, 8), entries))
    del made.PixelRepresentation
    content = encode(made, ImplicitVRLittleEndian)
    assert struct.pack("<3H", 4096, 0, 8) in content
    assert made.SOPClassUID == CT
    assert np.array_equal(read(content).frames[0].pixels, entries[PLANE])
