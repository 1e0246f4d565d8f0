"""Elements are found by the standard's rules, whatever lies between those that are needed."""

import copy
import io
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
from dicom_files import LIMITS, dataset, element, encode, part10, read, us
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from engine.errors import ImageRefused
from indexer.imaging.dicom import read_dicom

RAMP = np.add.outer(np.arange(32) * 60, np.arange(24) * 80).astype(np.uint16)
WINDOW = {"WindowCenter": 1500, "WindowWidth": 2000}
ITEM, ITEM_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
UNDEFINED = b"\xff" * 4
CREATOR = element(0x00210010, b"LO", b"MAKER 1 ")
GROUP_28 = struct.pack("<HH", 0x0028, 0x0002) + b"US"


def slice_of(**elements) -> Dataset:
    return dataset(RAMP, Modality="MR", PatientID="P1", **WINDOW, **elements)


PLAIN = encode(slice_of())
RIGHT = read(PLAIN)


def with_elements(*raw: bytes) -> bytes:
    """A slice in explicit VR little endian with ``raw`` before its group 0028."""
    at = PLAIN.index(GROUP_28)
    return PLAIN[:at] + b"".join(raw) + PLAIN[at:]


def looks_right(content: bytes, body_part: str | None = None) -> None:
    found = read(content)
    assert np.array_equal(found.frames[0].pixels, RIGHT.frames[0].pixels)
    assert found.record == replace(RIGHT.record, body_part=body_part)


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def head(tag: int, vr: bytes) -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr


def unknown_sequence(inner: bytes, *, defined: bool = False) -> bytes:
    """A private sequence of VR UN, as PS3.5 6.2.2 has it: its content is implicit VR."""
    if defined:
        item = ITEM + struct.pack("<L", len(inner)) + inner
    else:
        item = ITEM + UNDEFINED + inner + ITEM_END
    return head(0x00211001, b"UN\0\0") + UNDEFINED + item + SEQUENCE_END


# Lengths whose low bytes are capital letters, one or both: 0x4141 to 0x5A5A among them.
LENGTHS = (0, 2, 64, 66, 88, 90, 322, 346, 0x4142, 0x4342, 0x5355, 0x534C, 0x5A5A, 0x14155)


@pytest.mark.parametrize("defined", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_in_an_unknown_sequence_are_no_vrs(length, defined):
    """PS3.5 6.2.2 and CP-246: implicit VR, whatever its lengths look like."""
    value = (b"exposure settings as the maker writes them " * 2000)[:length]
    for inner in (
        implicit(0x00211002, value),
        implicit(0x00210010, b"MAKER 1 ") + implicit(0x00211002, value),
        implicit(0x00211002, value) + implicit(0x00211003, value),
    ):
        looks_right(with_elements(CREATOR, unknown_sequence(inner, defined=defined)))


def test_unknown_sequences_in_unknown_sequences():
    inner = implicit(0x00211002, b"x" * 88)
    nested = (
        struct.pack("<HH", 0x0021, 0x1003) + UNDEFINED + ITEM + UNDEFINED + inner + ITEM_END
    ) + SEQUENCE_END
    looks_right(
        with_elements(CREATOR, unknown_sequence(inner + nested + inner[:2] + b"\4\x10" + inner[4:]))
    )


def test_writers_that_leave_explicit_vr_in_an_unknown_sequence():
    """Against PS3.5 6.2.2, but it makes sense only so."""
    inner = element(0x00211002, b"LO", b"abcd") + element(0x00211003, b"DS", b"12")
    looks_right(with_elements(CREATOR, unknown_sequence(inner)))


def test_a_sequence_whose_items_are_in_implicit_vr():
    inner = implicit(0x00080100, b"T-D3000 ") + implicit(0x00080104, b"c" * 88)
    items = ITEM + struct.pack("<L", len(inner)) + inner
    sequence = head(0x00082218, b"SQ\0\0") + struct.pack("<L", len(items)) + items
    looks_right(with_elements(sequence), "CHEST")


def test_windows_beside_private_sequences_of_each_frame():
    """PS3.3 C.7.6.16: functional groups; what is private in them does not matter."""
    transform = head(0x00289145, b"SQ\0\0") + UNDEFINED + ITEM + UNDEFINED
    transform += element(0x00281052, b"DS", b"-1000 ") + element(0x00281053, b"DS", b"2 ")
    transform += ITEM_END + SEQUENCE_END
    group = CREATOR + unknown_sequence(implicit(0x00211002, b"z" * 0x4342)) + transform
    shared = head(0x52009229, b"SQ\0\0") + UNDEFINED + ITEM + UNDEFINED + group + ITEM_END
    shared += SEQUENCE_END
    at = PLAIN.index(b"\xe0\x7f\x10\x00OW")
    found = read(PLAIN[:at] + shared + PLAIN[at:]).frames[0].pixels
    expected = read(encode(slice_of(RescaleSlope=2, RescaleIntercept=-1000))).frames[0].pixels
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, RIGHT.frames[0].pixels)


def test_standard_elements_of_unknown_vr_are_read_as_what_they_are():
    """PS3.5 6.2.2: implicit VR little endian, also of VR UN with a length and known tags."""
    rows = element(0x00280010, b"US", us(32))
    assert PLAIN.count(rows) == 1
    looks_right(PLAIN.replace(rows, element(0x00280010, b"UN", us(32))))
    big = slice_of()
    big.PixelData = RAMP.astype(">u2").tobytes()
    content = encode(big, ExplicitVRBigEndian)
    rows = b"\0\x28\0\x10US\0\2\0\x20"
    assert content.count(rows) == 1
    # Little endian even in a file that is not.
    looks_right(content.replace(rows, b"\0\x28\0\x10UN\0\0\0\0\0\2\x20\0"))


@pytest.mark.parametrize("vr", [b"??", b"--", b"  ", b"\0\0", b"ox", b"XX"])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("length", [0, 2, 4, 0x1234])
def test_vrs_that_are_none_of_the_standards(vr, long, length):
    """PS3.5 7.1.2: whether two or four bytes of length follow is told by what stands behind."""
    value = (b"whatever this is " * 400)[:length]
    sized = struct.pack("<HL", 0, length) if long else struct.pack("<H", length)
    one = head(0x00211001, vr) + sized + value
    looks_right(with_elements(CREATOR, one))
    looks_right(with_elements(CREATOR, one, head(0x00211002, vr) + sized + value))


def test_a_standard_element_with_such_a_vr_is_read_as_what_it_is():
    rows = element(0x00280010, b"US", us(32))
    looks_right(PLAIN.replace(rows, rows.replace(b"US", b"??")))


@pytest.mark.parametrize("vr", [b"UN", b"OB", b"UT"])
def test_two_bytes_of_length_where_four_belong(vr):
    one = head(0x00211001, vr) + struct.pack("<H", 6) + b"abcdef"
    looks_right(with_elements(CREATOR, one))


def test_a_value_of_undefined_length_that_is_no_sequence():
    raw = head(0x00211001, b"OB\0\0") + UNDEFINED + b"not encapsulated" + SEQUENCE_END
    looks_right(with_elements(CREATOR, raw))


def test_delimiters_too_many_or_too_few():
    inner = element(0x00080100, b"SH", b"T-D3000 ")
    item = ITEM + struct.pack("<L", len(inner)) + inner
    start = head(0x00082218, b"SQ\0\0")
    # Behind an item and a sequence that have lengths.
    whole = start + struct.pack("<L", len(item + ITEM_END)) + item + ITEM_END + SEQUENCE_END
    looks_right(with_elements(whole), "CHEST")
    # None behind the items.
    looks_right(with_elements(start + UNDEFINED + item), "CHEST")


def without_preamble(content: bytes) -> bytes:
    """The dataset alone."""
    start = content.index(struct.pack("<H", 8) + b"\x16\0") if b"\x08\0\x16\0" in content else 0
    return content[start or content.index(b"\0\x08\0\x16") :]


def test_a_dataset_alone_that_begins_with_a_group_length():
    """PS3.5 7.2: retired, and still how ACR-NEMA files and old archives begin."""
    explicit = without_preamble(PLAIN)
    length = struct.pack("<L", 1000)
    looks_right(element(0x00080000, b"UL", length) + explicit)
    inside = without_preamble(encode(slice_of(), ImplicitVRLittleEndian))
    looks_right(implicit(0x00080000, length) + inside)
    big = slice_of()
    big.PixelData = RAMP.astype(">u2").tobytes()
    swapped = without_preamble(encode(big, ExplicitVRBigEndian))
    looks_right(b"\0\x08\0\0UL\0\4" + length + swapped)


@pytest.mark.parametrize("rest", [b"", b"\0" * 100, b"a letter to a colleague" * 9])
def test_a_group_length_alone_is_no_dicom(rest):
    for start in (element(0x00080000, b"UL", b"\0" * 4), implicit(0x00080000, b"\0" * 4)):
        with pytest.raises(ImageRefused) as caught:
            read(start + rest)
        assert caught.value.reason == "not-an-image"


@pytest.mark.parametrize("name", [b"UN\0\0", b"SQ\0\0", b"??\0\0"])
def test_a_sequence_that_never_ends_is_truncated(name):
    raw = head(0x00211001, name) + UNDEFINED + ITEM + UNDEFINED + b"\x21\0\2\x10" + b"\4\0\0\0abcd"
    with pytest.raises(ImageRefused) as caught:
        read(part10(CREATOR, raw))
    assert caught.value.reason == "truncated"


def grouped(*centers: int) -> Dataset:
    """The header as it is read, of an instance with a window for each frame."""
    groups = []
    for center in centers:
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 100
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    made = dataset(np.stack([RAMP] * len(centers)), PerFrameFunctionalGroupsSequence=groups)
    content = encode(made)
    return read_dicom(io.BytesIO(content), len(content), LIMITS, 1).header


def centers_of(header: Dataset) -> list[int]:
    groups = header.PerFrameFunctionalGroupsSequence
    return [int(group.FrameVOILUTSequence[0].WindowCenter) for group in groups]


def test_items_that_are_read_late_are_as_any_others():
    header, other = grouped(1, 2, 3), grouped(1, 2, 4)
    assert header == grouped(1, 2, 3)
    assert header != other
    for copied in (copy.deepcopy(header), pickle.loads(pickle.dumps(header))):
        assert copied == header
        assert centers_of(copied) == [1, 2, 3]
    groups = header.PerFrameFunctionalGroupsSequence
    assert groups[-1] in groups
    assert [int(one.FrameVOILUTSequence[0].WindowCenter) for one in groups[::-1]] == [3, 2, 1]
    with pytest.raises(IndexError):
        groups[3]


def test_items_that_are_read_late_may_be_changed():
    header, more = grouped(1, 2, 3), grouped(7, 8)
    groups = header.PerFrameFunctionalGroupsSequence
    first, second = more.PerFrameFunctionalGroupsSequence
    del groups[0]
    groups.append(first)
    groups[0] = second
    groups.extend([first, second])
    assert centers_of(header) == [8, 3, 7, 7, 8]
    assert len(groups) == 5


def test_an_empty_element_of_odd_vr_does_not_make_its_item_implicit():
    empty = head(0x00080001, b"\0\0") + b"\0\0"
    code = element(0x00080100, b"SH", b"T-D3000 ")
    region = head(0x00082218, b"SQ\0\0") + UNDEFINED + ITEM + UNDEFINED
    looks_right(with_elements(region + empty + code + ITEM_END + SEQUENCE_END), "CHEST")


def test_different_odd_vrs_side_by_side():
    """Neither leads to a head that makes sense; the lengths that fit are taken."""
    odd = head(0x00080050, b"\0\0") + struct.pack("<H", 4) + b"abcd"
    odd += head(0x00080060, b"  ") + struct.pack("<H", 4) + b"efgh"
    code = element(0x00080100, b"SH", b"T-D3000 ")
    region = head(0x00082218, b"SQ\0\0") + UNDEFINED + ITEM + UNDEFINED
    looks_right(with_elements(region + odd + code + ITEM_END + SEQUENCE_END), "CHEST")
