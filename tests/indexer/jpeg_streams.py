"""JPEG code streams written from ISO/IEC 10918-1, of every precision and with any markers."""

import struct

import numpy as np

JFIF = b"\xff\xe0\x00\x10JFIF\0\x01\x01\x00\x00\x01\x00\x01\x00\x00"


def adobe(transform: int) -> bytes:
    """The Adobe marker segment: 0 = colours as they were given, 1 = YCbCr."""
    return b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


class _Bits:
    def __init__(self) -> None:
        self._text: list[str] = []

    def add(self, number: int, length: int) -> None:
        if length:
            self._text.append(f"{number & (1 << length) - 1:0{length}b}")

    def difference(self, number: int) -> None:
        """Table H.2: the category, here always in 5 bits, and as many bits as it says (F.1.2.1)."""
        category = abs(number).bit_length()
        self.add(category, 5)
        if category < 16:
            self.add(number if number > 0 else number - 1, category)

    def stuffed(self) -> bytes:
        """Padded with ones, and a zero byte behind each FF (B.1.1.5)."""
        text = "".join(self._text)
        text += "1" * (-len(text) % 8)
        data = int(text, 2).to_bytes(len(text) // 8, "big")
        return data.replace(b"\xff", b"\xff\0")


def _stream(
    process: int, size: tuple[int, ...], bits: int, ids: bytes, parts: list[bytes]
) -> bytes:
    """SOI, what comes before the frame header, the frame header, what comes behind it, EOI."""
    components = b"".join(bytes([one, 0x11, 0]) for one in ids)
    header = struct.pack(">HBHHB", 8 + len(components), bits, size[0], size[1], len(ids))
    before, *behind = parts
    return b"".join(
        [b"\xff\xd8", before, bytes([0xFF, process]), header, components, *behind, b"\xff\xd9"]
    )


def _table(kind: int, length: int, symbols: bytes) -> bytes:
    """A Huffman table all of whose codes have ``length`` bits (B.2.4.2)."""
    counts = bytes(len(symbols) if one == length else 0 for one in range(1, 17))
    return b"\xff\xc4" + struct.pack(">HB", 19 + len(symbols), kind) + counts + symbols


def _scan(ids: bytes, first: int, last: int) -> bytes:
    selectors = b"".join(bytes([one, 0]) for one in ids)
    head = struct.pack(">HB", 6 + len(selectors), len(ids))
    return b"\xff\xda" + head + selectors + bytes([first, last, 0])


def lossless(
    values: np.ndarray, bits: int, predictor: int = 1, ids: bytes = b"", before: bytes = b""
) -> bytes:
    """Process 14 (annex H): (H, W) or (H, W, 3) values of ``bits`` bits, unsigned."""
    samples = values.reshape(*values.shape[:2], -1).astype(int)
    ids = ids or bytes(range(1, samples.shape[2] + 1))
    a = np.roll(samples, 1, axis=1)
    b = np.roll(samples, 1, axis=0)
    c = np.roll(b, 1, axis=1)
    predicted = {
        1: a,
        2: b,
        3: c,
        4: a + b - c,
        5: a + (b - c >> 1),
        6: b + (a - c >> 1),
        7: a + b >> 1,
    }[predictor]
    predicted[:, 0] = b[:, 0]
    predicted[0] = a[0]
    predicted[0, 0] = 1 << bits - 1
    # Differences are taken modulo 2 to the 16th (H.1.2.1).
    differences = (samples - predicted + 0x7FFF) % 0x10000 - 0x7FFF
    coded = _Bits()
    for difference in differences.ravel().tolist():
        coded.difference(difference)
    tables = _table(0x00, 5, bytes(range(17)))
    parts = [before, tables, _scan(ids, predictor, 0), coded.stuffed()]
    return _stream(0xC3, samples.shape[:2], bits, ids, parts)


def blocks(
    values: np.ndarray, bits: int = 8, ids: bytes = b"", before: bytes = b"", process: int = 0xC1
) -> bytes:
    """DCT (annex F) of nothing but means: each of (H, W) or (H, W, 3) values fills 8 × 8 pixels."""
    means = values.reshape(*values.shape[:2], -1).astype(int) - (1 << bits - 1)
    ids = ids or bytes(range(1, means.shape[2] + 1))
    coded, last = _Bits(), [0] * len(ids)
    for block in means.reshape(-1, len(ids)).tolist():
        for component, mean in enumerate(block):
            coded.difference(mean - last[component])
            # End of block: all the other coefficients are 0.
            coded.add(0, 1)
            last[component] = mean
    # All coefficients are divided by 8, and that of the mean is 8 times the mean (A.3.3).
    quantisers = b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([8] * 64)
    tables = _table(0x00, 5, bytes(range(16))) + _table(0x10, 1, b"\0")
    size = (8 * values.shape[0], 8 * values.shape[1])
    parts = [before, quantisers, tables, _scan(ids, 0, 63), coded.stuffed()]
    return _stream(process, size, bits, ids, parts)
