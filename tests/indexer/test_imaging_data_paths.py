"""Frames of enhanced ultrasound volumes take the path that their data type is assigned to (PS3.3
C.7.6.23)."""

import numpy as np
import pytest
from dicom_files import dataset, encode, read
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

ENHANCED_US_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
# Three tables that nothing but themselves gives.
COLORS = np.stack([np.arange(256), 255 - np.arange(256), (np.arange(256) * 7) % 256])


def item(**elements: object) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def assigned(kind: str, path: str, **more: object) -> Dataset:
    return item(DataType=kind, DataPathAssignment=path, **more)


def palette(path: str, tables: np.ndarray, order: str = "<") -> Dataset:
    """Of as many entries as the tables (3, N) have, each of 16 bits that repeat its 8."""
    made = item(DataPathID=path, RGBLUTTransferFunction="TABLE", AlphaLUTTransferFunction="NONE")
    for color, entries in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(made, f"{color}PaletteColorLookupTableDescriptor", [len(entries), 0, 16])
        words = (entries * 257).astype(f"{order}u2")
        setattr(made, f"{color}PaletteColorLookupTableData", words.tobytes())
    return made


def equal(path: str) -> Dataset:
    return item(
        DataPathID=path, RGBLUTTransferFunction="EQUAL_RGB", AlphaLUTTransferFunction="NONE"
    )


def volume(
    kinds: list[str],
    paths: list[Dataset],
    palettes: list[Dataset],
    pixels: np.ndarray = RAMP,
    **more: object,
) -> Dataset:
    """One frame of ``pixels`` for each data type in ``kinds``."""
    frames = np.stack([pixels] * len(kinds))
    groups = [item(ImageDataTypeSequence=[item(DataType=kind)]) for kind in kinds]
    return dataset(
        frames,
        SOPClassUID=ENHANCED_US_VOLUME,
        PerFrameFunctionalGroupsSequence=groups,
        DataFrameAssignmentSequence=paths,
        EnhancedPaletteColorLookupTableSequence=palettes,
        **more,
    )


def frames(made: Dataset, syntax: str = ExplicitVRLittleEndian) -> list[np.ndarray]:
    return [frame.pixels for frame in read(encode(made, syntax)).frames]


def test_each_frame_has_the_palette_of_its_path():
    """PS3.17 QQ.1, example 4: grey tissue below coloured flow; frames are shown one by one."""
    made = volume(
        ["TISSUE_INTENSITY", "FLOW_VELOCITY"],
        [
            assigned("TISSUE_INTENSITY", "PRIMARY_SINGLE"),
            assigned("FLOW_VELOCITY", "SECONDARY_SINGLE"),
        ],
        [equal("PRIMARY"), palette("SECONDARY", COLORS)],
    )
    tissue, flow = frames(made)
    # EQUAL_RGB: red, green and blue are the input, without any stretching.
    assert np.array_equal(tissue, RAMP)
    assert np.array_equal(flow, COLORS[:, RAMP].transpose(1, 2, 0))


def test_tissue_in_colours():
    """PS3.17 QQ.1, example 3."""
    made = volume(
        ["TISSUE_INTENSITY"],
        [assigned("TISSUE_INTENSITY", "PRIMARY_SINGLE")],
        [palette("PRIMARY", COLORS)],
    )
    (found,) = frames(made)
    assert np.array_equal(found, COLORS[:, RAMP].transpose(1, 2, 0))


def test_only_the_most_significant_bits_are_mapped():
    """C.7.6.23.3: 12 bits are stored, the upper 6 are the input; the last entry serves what is
    beyond the table."""
    stored = (np.arange(256, dtype=np.uint16) * 16).reshape(16, 16)
    path = assigned("TISSUE_INTENSITY", "PRIMARY_SINGLE", BitsMappedToColorLookupTable=6)
    tables = COLORS[:, :40]
    made = volume(
        ["TISSUE_INTENSITY"],
        [path],
        [palette("PRIMARY", tables)],
        stored,
        BitsStored=12,
        HighBit=11,
    )
    (found,) = frames(made)
    expected = tables[:, np.minimum(stored >> 6, 39)].transpose(1, 2, 0)
    assert np.array_equal(found, expected)
    made.EnhancedPaletteColorLookupTableSequence = [equal("PRIMARY")]
    (found,) = frames(made)
    assert np.array_equal(found, np.rint((stored >> 6) * 255 / 63))


def test_in_big_endian():
    made = volume(
        ["TISSUE_INTENSITY"],
        [assigned("TISSUE_INTENSITY", "PRIMARY_SINGLE")],
        [palette("PRIMARY", COLORS, ">")],
    )
    (found,) = frames(made, ExplicitVRBigEndian)
    assert np.array_equal(found, COLORS[:, RAMP].transpose(1, 2, 0))


def test_p_values_go_through_the_window_of_their_type():
    """PS3.17 QQ.1, example 1, and the VOI LUT macro of table C.7.6.23-1."""
    path = assigned("TISSUE_INTENSITY", "PRIMARY_PVALUES", WindowCenter=64.5, WindowWidth=129)
    (found,) = frames(volume(["TISSUE_INTENSITY"], [path], []))
    assert found.ndim == 2
    # PS3.3 C.11.2.1.2.1: white from 64.5 − 0.5 + 128/2 on.
    assert np.array_equal(found, np.rint(np.clip(RAMP / 128, 0, 1) * 255))


@pytest.mark.parametrize(
    ("path", "palettes"),
    [
        ("SECONDARY_HIGH", [palette("SECONDARY", COLORS)]),
        ("SECONDARY_LOW", [palette("SECONDARY", COLORS)]),
        ("SECONDARY_SINGLE", [palette("PRIMARY", COLORS)]),
        ("PRIMARY_SINGLE", []),
        ("PRIMARY_SINGLE", [item(DataPathID="PRIMARY", RGBLUTTransferFunction="TABLE")]),
        ("NOTHING_KNOWN", [palette("PRIMARY", COLORS)]),
        ("", []),
    ],
)
def test_what_has_no_colours_of_its_own_is_grey(path, palettes):
    """A palette that is entered by two frames together, none, a broken one, another path's."""
    (found,) = frames(volume(["FLOW_VELOCITY"], [assigned("FLOW_VELOCITY", path)], palettes))
    assert found.ndim == 2
    assert (found.min(), found.max()) == (0, 255)


def test_a_frame_of_another_type_is_grey():
    made = volume(
        ["FLOW_POWER"],
        [assigned("TISSUE_INTENSITY", "PRIMARY_SINGLE")],
        [palette("PRIMARY", COLORS)],
    )
    (found,) = frames(made)
    assert found.ndim == 2


def test_a_type_that_all_frames_share():
    made = volume(
        ["FLOW_POWER"],
        [assigned("TISSUE_INTENSITY", "PRIMARY_SINGLE")],
        [palette("PRIMARY", COLORS)],
    )
    del made.PerFrameFunctionalGroupsSequence
    kind = item(DataType="TISSUE_INTENSITY")
    made.SharedFunctionalGroupsSequence = [item(ImageDataTypeSequence=[kind])]
    (found,) = frames(made)
    assert found.ndim == 3
