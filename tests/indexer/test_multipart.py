"""Answers in parts, cut anywhere, whole or broken."""

import email
import email.policy
from itertools import pairwise

import numpy as np
import pytest
from dicom_files import dataset, encode, part10
from hypothesis import given, strategies as st

from indexer.sources.dicomweb.failure import Failed
from indexer.sources.dicomweb.multipart import Part, boundary_of, media_type, split
from indexer.sources.dicomweb.spool import Spool, SpoolFull, sop_of

BOUNDARY = b"it-is"


def parts_of(chunks: list[bytes], boundary: bytes = BOUNDARY) -> list[tuple[str, bytes]]:
    parts: list[tuple[str, bytes]] = []
    for piece in split(chunks, boundary):
        if isinstance(piece, Part):
            parts.append((piece.media_type, b""))
        else:
            assert piece
            kind, content = parts[-1]
            parts[-1] = (kind, content + piece)
    return parts


def body_of(contents: list[bytes], head: bytes = b"Content-Type: application/dicom\r\n") -> bytes:
    delimiter = b"--" + BOUNDARY
    return (
        b"".join(delimiter + b"\r\n" + head + b"\r\n" + one + b"\r\n" for one in contents)
        + delimiter
        + b"--\r\n"
    )


def slow_parts(body: bytes) -> list[bytes]:
    """The obvious way, with everything in memory."""
    head = b'Content-Type: multipart/related; boundary="%s"\r\n\r\n' % BOUNDARY
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    return [part.get_payload(decode=True) for part in message.iter_parts()]


# Line ends, dashes and pieces of the boundary are what a splitter could stumble over.
content = st.lists(
    st.sampled_from(
        [b"\r\n", b"\r", b"\n", b"--", b"-", b"it-is", b"--it-i", b"\r\n--it-isx", b"D"]
    ),
    max_size=12,
).map(b"".join)


@given(contents=st.lists(content, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 400)))
def test_parts_come_out_as_they_went_in_wherever_the_answer_is_cut(contents, cuts):
    body = b"a preamble\r\n" + body_of(contents)
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[first:last] for first, last in pairwise(places)]

    parts = parts_of(chunks)

    assert parts == [("application/dicom", one) for one in contents]


@given(contents=st.lists(content, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 400)))
def test_line_feeds_alone_end_lines_where_the_first_boundary_says_so(contents, cuts):
    """Servers that write text where RFC 2046 wants CR LF; the content is not touched."""
    contents = [one.replace(b"\n--it-is", b"\n-it-is") for one in contents]
    delimiter, head = b"--" + BOUNDARY, b"Content-Type: application/dicom\nX-More: 1\n"
    parts = b"".join(delimiter + b"\n" + head + b"\n" + one + b"\n" for one in contents)
    body = b"a preamble\n" + parts + delimiter + b"--\n"
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[first:last] for first, last in pairwise(places)]
    assert parts_of(chunks) == [("application/dicom", one) for one in contents]


def test_a_line_feed_in_an_image_is_no_boundary_where_lines_end_with_both():
    body = body_of([b"before\n--it-is\n\nafter", b"x\n--it-is--"])
    assert [one for _, one in parts_of([body])] == [b"before\n--it-is\n\nafter", b"x\n--it-is--"]


def test_it_splits_what_the_standard_library_splits():
    image = encode(dataset(np.arange(64, dtype=np.uint8).reshape(8, 8))).replace(b"\n", b"\r")
    body = body_of([image, b"second"], b"Content-Transfer-Encoding: binary\r\nX-More: \xe4\r\n")
    assert [one for _, one in parts_of([body])] == slow_parts(body) == [image, b"second"]


@given(end=st.integers(0, 200))
def test_an_answer_cut_before_its_last_boundary_is_broken_off(end):
    body = body_of([b"one", b"two" * 20])
    whole = body.rindex(b"--\r\n") + 2
    cut = min(end, whole - 1)
    with pytest.raises(Failed) as caught:
        parts_of([body[:cut]])
    assert caught.value.passing
    assert parts_of([body[:whole]]) == parts_of([body])


def test_parts_without_a_head_or_with_spaces_after_the_boundary():
    assert parts_of([b"--it-is \t\r\n\r\nbody\r\n--it-is--"]) == [("", b"body")]
    assert parts_of([b"--it-is--\r\n"]) == []


@pytest.mark.parametrize(
    "body",
    [b"x" * 200_000, b"--it-is\r\n" + b"Name: value\r\n" * 5000],
    ids=["no boundary", "endless head"],
)
def test_what_is_no_multipart_is_not_collected(body):
    taken = 0

    def chunks():
        nonlocal taken
        for start in range(0, len(body), 1000):
            taken += 1000
            yield body[start : start + 1000]
        pytest.fail("it was read to its end")

    with pytest.raises(Failed) as caught:
        list(split(chunks(), BOUNDARY))
    assert not caught.value.passing
    assert taken < 100_000


def test_content_is_handed_on_before_the_part_ends():
    def chunks():
        yield b"--it-is\r\n\r\n"
        for _ in range(3):
            yield b"y" * 1000
        pytest.fail("what is there was not handed on")

    pieces = split(chunks(), BOUNDARY)
    got = b""
    while len(got) < 2900:
        piece = next(pieces)
        got += piece if isinstance(piece, bytes) else b""


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', b"abc"),
        ('multipart/related;boundary="a b;c";type=x', b"a b;c"),
        ("multipart/related; BOUNDARY = abc ", b"abc"),
        ("multipart/related", None),
        ('multipart/related; boundary=""', None),
        ('multipart/related; boundary="' + "x" * 300 + '"', None),
        ('multipart/related; boundary="a\r\nb"', None),
    ],
)
def test_boundaries_are_taken_from_the_header(header, boundary):
    assert boundary_of(header) == boundary
    assert media_type(header) == "multipart/related"


def test_the_identifier_of_a_file_is_found_in_its_meta_information():
    content = encode(dataset(np.zeros((8, 8), np.uint8), SOPInstanceUID="1.2.826.0.1"))
    assert sop_of(content) == "1.2.826.0.1"
    # With a private element of 32-bit length before it there would be more to skip.
    assert sop_of(content[:200]) in (None, "1.2.826.0.1")
    assert sop_of(part10()) is None
    assert sop_of(b"") is None
    assert sop_of(content[132:]) is None


@given(noise=st.binary(max_size=300))
def test_hostile_meta_information_names_nothing_or_a_plain_uid(noise):
    found = sop_of(b"\0" * 128 + b"DICM" + noise)
    assert found is None or set(found) <= set("0123456789.")


def test_a_spool_holds_what_was_kept_and_forgets_what_was_begun(tmp_path):
    with Spool(20) as spool:
        spool.write(b"0123456789")
        spool.begin()
        spool.write(b"abcde")
        spool.keep("first")
        spool.write(b"fghij")
        spool.write(b"klm")
        spool.keep("second")
        with pytest.raises(SpoolFull):
            spool.write(b"x" * 8)
        assert spool.content("first") == b"abcde"
        assert spool.content("second") == b"fghijklm"
        assert spool.content("third") is None
        assert "first" in spool
        assert "third" not in spool
