"""Many byte strings are found in one pass: as by looking for each of them alone."""

import uuid
from pathlib import Path

import numpy as np
import pytest

from indexer.erasure import byte_search
from indexer.erasure.byte_search import ByteSearch
from indexer.erasure.known_by import KnownBy, Needle


def obvious(data: bytes, wanted: list[bytes]) -> set[tuple[bytes, int]]:
    found = set()
    for one in wanted:
        at = data.find(one)
        while at >= 0:
            found.add((one, at))
            at = data.find(one, at + 1)
    return found


@pytest.mark.parametrize("piece", [64, 100, 4096, 4 * 1024**2])
def test_it_finds_what_the_obvious_search_finds(tmp_path: Path, monkeypatch, piece: int) -> None:
    monkeypatch.setattr(byte_search, "_PIECE", piece)
    rng = np.random.default_rng(5)
    # Of two letters and few, so that beginnings and ends repeat.
    data = bytearray(rng.choice(np.frombuffer(b"ab", np.uint8), 20_000).tobytes())
    wanted = [bytes(data[at : at + n]) for at, n in zip(range(0, 19_000, 911), [*range(4, 25)],
                                                        strict=False)]  # fmt: skip
    strange = rng.integers(0, 256, 40, dtype=np.uint8).tobytes()
    for at in (0, 4090, 19_960):
        data[at : at + 40] = strange
    wanted += [strange, strange[3:12], b"nowhere to be found"]
    path = tmp_path / "file"
    path.write_bytes(data)
    search = ByteSearch(Needle("content", "", "", one) for one in wanted)
    read, found = search.in_file(path)
    assert read == len(data)
    told = [(one.needle.data, one.at) for one in found]
    assert len(told) == len(set(told))
    assert set(told) == obvious(bytes(data), wanted)
    assert (strange, 19_960) in told


@pytest.mark.parametrize("piece", [16, 17, 4096])
def test_a_uid_within_a_longer_one_is_another(tmp_path: Path, monkeypatch, piece: int) -> None:
    monkeypatch.setattr(byte_search, "_PIECE", piece)
    uid = "1.2.840.5"
    search = ByteSearch([Needle("sop", uid, "text", uid.encode(), is_uid=True)])
    path = tmp_path / "file"
    whole = (f'"{uid}"', f"/{uid}.dcm", f"{uid}\0", f"x{uid}")
    longer = (f"{uid}1", f"3{uid}", f"{uid}.1", f"1.{uid}")
    path.write_text("".join(f"{one}|" for one in (*whole, *longer)))
    found = search.in_file(path)[1]
    assert [one.whole for one in found] == [True] * 4 + [False] * 4
    assert [one.whole for one in search.in_name(f"{uid}.dcm")] == [True]


def test_holes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(700_000_000)
        file.write(b"something that is there")
    search = ByteSearch([Needle("content", "", "", b"that is there")])
    read, found = search.in_file(path)
    assert [one.at for one in found] == [700_000_010]
    if path.stat().st_blocks * 512 < 1 << 29:
        assert read < 1 << 20
    path.unlink()


def test_an_id_is_known_in_all_its_forms() -> None:
    known, one = KnownBy(), uuid.uuid4()
    known.add_ids([str(one)])
    forms = {needle.data for needle in known.needles()}
    assert forms == {str(one).encode(), one.bytes, one.bytes[::-1], one.hex.encode()}
    assert [*KnownBy.from_noted(known.noted()).needles()] == [*known.needles()]
