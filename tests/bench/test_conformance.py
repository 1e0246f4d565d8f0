"""The conformance benchmark: its files, what it says is right, and that it finds wrong pictures."""

import os
import time

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from bench.conformance_files import known_cells
from bench.conformance_page import page_tables, replace_tables
from bench.drawn_encoding import encoded
from bench.drawn_headers import COLUMNS, ROWS, drawn
from bench.isolation import Isolated
from bench.our_pictures import ours
from bench.reference_rendering import Departure, render
from bench.square_pixels import pixel_ratio, squared
from bench.verdicts import Judged, Outcome, judge, kind_rows

CT = "1.2.840.10008.5.1.4.1.1.2"
XA = "1.2.840.10008.5.1.4.1.1.12.1"


def dataset(cells, **elements):
    """A grey image of ``cells`` (H, W), with ``elements`` on top."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = CT, "1.2.3.4"
    made.Rows, made.Columns = cells.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * cells.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(cells.dtype.kind == "i")
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def shown(stored, **elements):
    """What the reference makes of a row of stored values, as a list."""
    cells = np.array([stored])
    return render(cells, dataset(cells.astype("i2"), **elements)).pixels[0].tolist()


def lut(first, entries, bits):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first & 0xFFFF, bits])
    item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return [item]


# The files


@pytest.fixture(scope="module")
def files():
    return list(drawn(120, 7))


def test_the_same_seed_draws_the_same_files(files):
    again = list(drawn(20, 7))
    assert [one.content for one in again] == [one.content for one in files[:20]]
    assert [one.kinds for one in again] == [one.kinds for one in files[:20]]
    other = list(drawn(20, 8))
    assert all(one.content != two.content for one, two in zip(again, other, strict=True))


def test_all_that_decides_what_is_shown_is_drawn(files):
    kinds = {kind for one in files for kind in one.kinds}
    for wanted in (
        *("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR"),
        *("window LINEAR", "window LINEAR_EXACT", "window SIGMOID", "no VOI", "rescale"),
        *("Modality LUT", "padding: one value", "padding: a range", "overlay in an unused bit"),
        *("functional groups", "MONOCHROME1, shape INVERSE", "pixels 2:1 high to wide"),
        *("8 bits stored of 8", "10 bits stored of 16", "16 bits stored of 16, signed"),
    ):
        assert wanted in kinds, wanted
    for one in files:
        assert one.cells.shape[:2] == (ROWS, COLUMNS)


def test_the_cells_are_those_in_the_file(files):
    """PS3.5 8.1 and annex G: read from the bytes, without a decoder."""
    seen = set()
    for one in files:
        syntax = str(one.header.file_meta.TransferSyntaxUID)
        cells = known_cells(one.header, syntax)
        if cells is None:
            continue
        seen.add(syntax)
        assert np.array_equal(cells, one.cells), one.name
    assert len(seen) == 4


# What is right, by hand


def test_linear_by_hand():
    """PS3.3 C.11.2.1.2.1: of center 10 and width 11, 4.5 is black and 14.5 is white."""
    values = [4, 5, 9, 10, 14, 15]
    want = [0, round(255 * 0.05), round(255 * 0.45), round(255 * 0.55), round(255 * 0.95), 255]
    assert shown(values, WindowCenter=10, WindowWidth=11) == want


def test_linear_exact_by_hand():
    """PS3.3 C.11.2.1.3.2: of center 10 and width 10, 5 is black and 15 is white."""
    exact = {"WindowCenter": 10, "WindowWidth": 10, "VOILUTFunction": "LINEAR_EXACT"}
    assert shown([5, 10, 12, 15, 16], **exact) == [0, 128, 178, 255, 255]


def test_sigmoid_by_hand():
    """PS3.3 C.11.2.1.3.1: half at the center, 1 / (1 + e⁻²) at its half width above."""
    sigmoid = {"WindowCenter": 100, "WindowWidth": 50, "VOILUTFunction": "SIGMOID"}
    want = [round(255 / (1 + np.e**2)), 128, round(255 / (1 + np.e**-2))]
    assert shown([75, 100, 125], **sigmoid) == want


def test_rescale_padding_and_monochrome1_by_hand():
    """PS3.3 C.11.1, C.7.5.1.1.2 and C.7.6.3.1.2."""
    elements = {
        "RescaleSlope": 2,
        "RescaleIntercept": -100,
        "WindowCenter": 0.5,
        "WindowWidth": 101,
    }
    assert shown([25, 50, 75], **elements) == [0, 128, 255]
    assert shown([25, 50, 75], PixelPaddingValue=75, **elements) == [0, 128, 0]
    first = {**elements, "PhotometricInterpretation": "MONOCHROME1"}
    assert shown([25, 50, 75], **first) == [255, 127, 0]
    assert shown([25, 50, 75], **first, PresentationLUTShape="INVERSE") == [255, 127, 0]
    assert shown([25, 50, 75], **elements, PresentationLUTShape="INVERSE") == [255, 127, 0]


def test_a_voi_lut_behind_a_negative_rescale_by_hand():
    """PS3.3 C.11.2.1.1: its first value is signed, where what comes in may be negative."""
    found = shown(
        [0, 1, 2, 3, 9],
        RescaleSlope=1,
        RescaleIntercept=-2,
        VOILUTSequence=lut(-2, [0, 10, 20, 255], 8),
    )
    assert found == [0, 10, 20, 255, 255]


def test_a_modality_lut_of_angiography_is_not_for_display():
    """PS3.3 C.8.7.1.1.2."""
    elements = {
        "ModalityLUTSequence": lut(0, [50, 0], 16),
        "WindowCenter": 1,
        "WindowWidth": 2,
        "VOILUTFunction": "LINEAR_EXACT",
    }
    assert shown([0, 1], **elements) == [255, 0]
    log = {**elements, "SOPClassUID": XA, "PixelIntensityRelationship": "LOG"}
    assert shown([0, 1], **log) == [0, 128]


def test_bits_above_those_stored_are_no_pixels():
    """PS3.5 8.1.1."""
    cells = np.array([[0x8005, 0x0FFF]], "u2")
    header = dataset(cells, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096)
    assert render(cells, header).pixels.tolist() == [[0, 255]]


def test_proportions_by_hand():
    """PS3.3 C.7.6.3.1.7 and 10.7.1.3: the first value is the distance of rows."""
    cells = np.zeros((8, 8), "u2")
    assert pixel_ratio(dataset(cells, PixelSpacing=[2, 1], PixelAspectRatio=[1, 2])) == 2
    assert pixel_ratio(dataset(cells, PixelAspectRatio=[1, 2])) == 0.5
    assert pixel_ratio(dataset(cells)) == 1
    ramp = np.arange(0, 160, 20, dtype="u1")[:, None].repeat(4, axis=1)
    double = squared(ramp, (16, 4))
    assert double[:, 0].tolist() == [0, *range(5, 140, 10), 140]


# The judgement


PHANTOM = np.indices((32, 32)).sum(axis=0).astype("u2") * 16
WRONG = {
    Departure.VOI: {"WindowCenter": 300, "WindowWidth": 200},
    Departure.FUNCTION: {"WindowCenter": 500, "WindowWidth": 300, "VOILUTFunction": "SIGMOID"},
    Departure.PADDING: {"WindowCenter": 300, "WindowWidth": 300, "PixelPaddingValue": 480},
    Departure.POLARITY: {"PhotometricInterpretation": "MONOCHROME1"},
    Departure.SHAPE: {"PresentationLUTShape": "INVERSE"},
    Departure.MODALITY: {
        "RescaleSlope": 3,
        "RescaleIntercept": -9,
        "WindowCenter": 500,
        "WindowWidth": 900,
    },
}


@pytest.mark.parametrize("step", WRONG, ids=lambda step: step.name)
def test_a_wrong_picture_is_found_out_with_its_section(step):
    header = dataset(PHANTOM, **WRONG[step])

    def right(without):
        return render(PHANTOM, header, without=without).pixels

    assert judge(right(()), right).verdict == "right"
    outcome = judge(right((step,)), right)
    assert outcome.verdict == "departs"
    assert outcome.departures == (step,)
    assert step.section.startswith("PS3.3 C.")


def test_a_wrong_picture_that_nothing_explains_is_found_out():
    header = dataset(PHANTOM, WindowCenter=500, WindowWidth=900)

    def right(without):
        return render(PHANTOM, header, without=without).pixels

    for wrong in (right(())[:, ::-1], right(()) // 2, np.zeros_like(right(()))):
        outcome = judge(wrong, right)
        assert outcome.verdict == "departs"
        assert outcome.departures == ()
    # Half a grey level is rounding.
    assert judge(np.maximum(right(()), 1) - 1, right).verdict == "right"


def test_square_pixels_have_the_right_proportions():
    header = dataset(PHANTOM, WindowCenter=500, WindowWidth=900, PixelSpacing=[2, 1])

    def right(without):
        return render(PHANTOM, header, without=without).pixels

    tall = squared(right(()), (64, 32))
    assert judge(tall, right, ratio=2.0).verdict == "right"
    assert judge(squared(right(()), (32, 64)), right, ratio=2.0).verdict == "departs"


def test_our_reader_agrees_with_the_reference(tmp_path):
    """What is read of a CT slice is what the standard says, rendered the slow way."""
    elements = {
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "WindowCenter": -700,
        "WindowWidth": 600,
    }
    made = dataset(PHANTOM, **elements)
    path = tmp_path / "ct.dcm"
    path.write_bytes(encoded(made, PHANTOM, ExplicitVRLittleEndian, unused=False))
    outcome = judge(ours(path), lambda without: render(PHANTOM, made, without=without).pixels)
    assert outcome.verdict == "right"
    assert outcome.r == pytest.approx(1, abs=1e-4)
    path.write_bytes(b"no image")
    assert ours(path) == "not-an-image"


# Tables, pages and processes


def test_tables_name_who_departs_and_from_which_section(tmp_path):
    right = Outcome("right", 1.0, 0.1)
    wrong = Outcome("departs", 0.5, 60.0, (Departure.SHAPE,))
    judged = [
        Judged("a.dcm", "drawn", ("MR",), {"ours": right, "dcmtk": right, "gdcm": wrong}),
        Judged("b.dcm", "drawn", ("MR", "US"), {"ours": wrong, "dcmtk": right, "gdcm": right}),
    ]
    judged[1].outcomes["gdcm"] = Outcome("refused", said="crashed")
    rows = {row["kind"]: row for row in kind_rows(judged)}
    assert rows["MR"]["ours"]["right"] == 1
    assert rows["MR"]["gdcm"]["refused"] == 1
    assert rows["MR"]["ours"]["median r"] == 0.75
    tables = page_tables(judged)
    assert "ignores Presentation LUT Shape (PS3.3 C.11.6)" in tables
    assert "`b.dcm` (r 0.50000)" in tables
    assert "`a.dcm`" not in tables
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nbelow\n")
    replace_tables(page, tables)
    assert "old" not in page.read_text()
    assert page.read_text().startswith("above\n")
    assert page.read_text().endswith("below\n")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="tables: begin"):
        replace_tables(page, tables)


@pytest.mark.slow
def test_a_crash_and_a_hang_are_answers():
    with Isolated(20) as isolated:
        assert isolated(os._exit, 3) == "crashed"
        assert isolated(abs, -3) == 3
        assert isolated(int, "x") == "an error: ValueError"
    with Isolated(0.5) as isolated:
        assert isolated(time.sleep, 60) == "too slow"
