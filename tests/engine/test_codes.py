"""Codes, their bands and neighbourhoods, each beside the slow obvious version."""

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from engine.codes import (
    BAND_BITS,
    band_widths,
    bands,
    flips,
    from_hex,
    hamming,
    neighbourhood,
    pack_signs,
    radius,
    to_hex,
)
from engine.errors import QueryError

SIZES = range(8, 513, 8)
EVERY = np.arange(2**16, dtype=np.uint16)
codes = st.binary(min_size=1, max_size=64)


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


def bit_string(code: np.ndarray) -> str:
    return "".join(f"{byte:08b}" for byte in code)


def naive_bands(code: np.ndarray) -> list[int]:
    """Cuts the bit string from its end; what is left over is the first band."""
    text, found = bit_string(code), []
    while text:
        text, band = text[:-BAND_BITS], text[-BAND_BITS:]
        found.insert(0, int(band, 2))
    return found


def flipped(code: np.ndarray, positions: set[int]) -> np.ndarray:
    bits = np.unpackbits(code)
    bits[sorted(positions)] ^= 1
    return np.packbits(bits)


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=16))
def test_packing_is_the_sign_bit_by_bit(values):
    h = np.array(values * 8, dtype=np.float32)
    expected = "".join("1" if value >= 0 else "0" for value in h)
    assert bit_string(pack_signs(h)) == expected


def test_zero_counts_as_positive():
    assert pack_signs(np.zeros((2, 16))).tolist() == [[255, 255], [255, 255]]
    assert pack_signs(np.full(8, -0.0)).tolist() == [255]


@pytest.mark.parametrize("bits", [1, 7, 9, 60])
def test_bits_that_do_not_fill_bytes_are_refused(bits):
    with pytest.raises(QueryError, match=str(bits)):
        pack_signs(np.zeros(bits))


@given(codes)
def test_a_code_survives_bits_and_hex(data):
    code = array(data)
    signs = np.where(np.unpackbits(code) == 1, 1.0, -1.0)
    assert np.array_equal(pack_signs(signs), code)
    text = to_hex(code)
    assert text == f"{int.from_bytes(data, 'big'):0{2 * len(data)}x}"
    assert np.array_equal(from_hex(text), code)


@pytest.mark.parametrize("text", ["xyz", "abc", "0g", "é0"])
def test_text_that_is_no_hex_is_refused(text):
    with pytest.raises(QueryError, match="hexadecimal"):
        from_hex(text)


@given(codes)
def test_bands_are_the_bit_string_cut_up(data):
    assert bands(array(data)).tolist() == naive_bands(array(data))


@given(st.integers(1, 9), st.integers(0, 5))
def test_bands_of_many_codes_are_those_of_each(size, count):
    many = np.random.default_rng(size).integers(0, 256, (count, size), dtype=np.uint8)
    found = bands(many)
    assert found.shape == (count, (size + 1) // 2)
    assert found.tolist() == [naive_bands(code) for code in many]


@pytest.mark.parametrize("bits", SIZES)
def test_widths_cover_the_code(bits):
    widths = band_widths(bits)
    full = np.full(bits // 8, 255, dtype=np.uint8)
    assert sum(widths) == bits
    assert widths == [8] * (bits % 16 // 8) + [16] * (bits // 16)
    assert bands(full).tolist() == [2**width - 1 for width in widths]


def test_neighbourhoods_have_the_sizes_of_the_design():
    assert [len(neighbourhood(0x3A5C, s)) for s in (0, 1, 2)] == [1, 17, 137]
    assert [len(neighbourhood(0x5C, s, 8)) for s in (0, 1, 2)] == [1, 9, 37]


@given(st.integers(0, 2**16 - 1), st.integers(0, 3))
def test_a_neighbourhood_is_all_values_that_near(value, s):
    differing = np.unpackbits((EVERY ^ np.uint16(value)).view(np.uint8).reshape(-1, 2), axis=1).sum(
        axis=1
    )
    assert neighbourhood(value, s) == EVERY[differing <= s].tolist()


@given(st.integers(0, 255), st.integers(0, 9))
def test_a_narrow_neighbourhood_stays_narrow(value, s):
    expected = [other for other in range(256) if (value ^ other).bit_count() <= s]
    assert neighbourhood(value, s, 8) == expected


@given(st.data())
def test_hamming_counts_differing_characters(data):
    size = data.draw(st.integers(1, 64))
    a, b = (array(data.draw(st.binary(min_size=size, max_size=size))) for _ in "ab")
    naive = sum(x != y for x, y in zip(bit_string(a), bit_string(b), strict=True))
    assert hamming(a, b) == naive
    assert hamming(np.stack([a, b]), b).tolist() == [naive, 0]


def passes(code: np.ndarray, other: np.ndarray, s: int) -> bool:
    """Whether some band of the other code lies in the neighbourhood of the code's."""
    widths = band_widths(8 * len(code))
    return any(
        theirs in neighbourhood(ours, s, width)
        for ours, theirs, width in zip(
            bands(code).tolist(), bands(other).tolist(), widths, strict=True
        )
    )


@pytest.mark.parametrize("s", [0, 1, 2])
@pytest.mark.parametrize("size", range(1, 17), ids=lambda size: f"{8 * size}bits")
@settings(max_examples=15)
@given(data=st.data())
def test_pigeonhole_no_code_within_the_radius_is_missed(size, s, data):
    code = array(data.draw(st.binary(min_size=size, max_size=size)))
    within = radius(len(band_widths(8 * size)), s)
    positions = data.draw(st.sets(st.integers(0, 8 * size - 1), max_size=within))
    assert passes(code, flipped(code, positions), s)


@pytest.mark.parametrize("s", [0, 1, 2])
@pytest.mark.parametrize("m", range(1, 9))
@settings(max_examples=10)
@given(data=st.data())
def test_pigeonhole_one_bit_further_a_code_can_be_missed(m, s, data):
    code = array(data.draw(st.binary(min_size=2 * m, max_size=2 * m)))
    positions: set[int] = set()
    for band in range(m):
        places = st.integers(BAND_BITS * band, BAND_BITS * (band + 1) - 1)
        positions |= data.draw(st.sets(places, min_size=s + 1, max_size=s + 1))
    other = flipped(code, positions)
    assert hamming(code, other) == radius(m, s) + 1
    assert not passes(code, other, s)


@pytest.mark.parametrize("m", range(1, 33))
def test_as_few_flips_as_reach_the_radius(m):
    for r in range(16 * m + 1):
        assert flips(m, r) == next(s for s in range(18) if radius(m, s) >= r)


@settings(max_examples=25)
@given(data=st.data())
def test_no_code_within_any_radius_is_missed(data):
    size, r = data.draw(st.integers(1, 16)), data.draw(st.integers(0, 20))
    code = array(data.draw(st.binary(min_size=size, max_size=size)))
    positions = data.draw(st.sets(st.integers(0, 8 * size - 1), max_size=r))
    widths = band_widths(8 * size)
    s = flips(len(widths), r)
    assume(s <= 4)  # the number of values grows fast
    assert passes(code, flipped(code, positions), s)


def test_radii_are_those_of_the_design():
    assert [radius(4, s) for s in (0, 1, 2)] == [3, 7, 11]
