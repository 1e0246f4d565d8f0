"""Two thousand bad uploads to a running service: each a 4xx in bounded time and memory."""

import io
import os
import random
import socket
import struct
import sys
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from services.running import served

from api.service import create_service
from engine.settings import ImageLimits, IndexingSettings, ServerSettings

sys.path.append(str(Path(__file__).parents[1] / "faults"))

# Starlette leaves the file of a form whose body ends early to the garbage collector.
pytestmark = [
    pytest.mark.usefixtures("own_readers"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

COUNT = 2000
SECONDS = 5.0
SLACK = 25.0
_READER_MEMORY = 1024**3
# What this process may take besides what it had: uploads on their way, and libraries' buffers.
_OWN_MEMORY = 400 * 1024**2
_MAX_UPLOAD = 2 * 1024**2
_CLIENTS = 8


@pytest.fixture
def others() -> set[psutil.Process]:
    """Children of this process that other tests keep."""
    return set(psutil.Process().children(recursive=True))


@pytest.fixture
def address(indexed, tmp_path: Path, others: set[psutil.Process]) -> Iterator[str]:
    settings = indexed.copy(tmp_path / "data")
    server = ServerSettings(
        max_upload_bytes=_MAX_UPLOAD,
        body_grace_seconds=1,
        min_body_bytes_per_second=20_000,
        max_body_seconds=20,
        header_seconds=1,
        max_waiting_seconds=120,
    )
    indexing = IndexingSettings(
        readers=2, reader_seconds=SECONDS, reader_memory_bytes=_READER_MEMORY
    )
    limits = ImageLimits(max_pixels=4_000_000, max_decoded_bytes=64 * 1024**2)
    changed = settings.model_copy(update={"server": server, "indexing": indexing, "limits": limits})
    with served(create_service(changed), server) as address:
        yield address


def _png(width: int, height: int, body: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        told = struct.pack(">I", len(content)) + kind + content
        return told + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _bombs(rng: random.Random) -> bytes:
    """Small files that say, or are, much more than they look."""
    zeros = zlib.compress(bytes(50_000_000), 9)
    side = rng.choice([60_000, 2**31 - 1, 2**32 - 1])
    kinds: list[Callable[[], bytes]] = [
        lambda: _png(side, side, zeros),
        lambda: _png(8000, 8000, zeros),
        lambda: _zip({"bomb": bytes(50_000_000)}),
        lambda: _zip({f"{n}.png": _png(8000, 8000, zeros[:9000]) for n in range(3)}),
        lambda: zlib.compress(bytes(30_000_000), 9, wbits=31),
    ]
    return rng.choice(kinds)()


def _polyglots(rng: random.Random, whole: list[bytes]) -> bytes:
    """The beginning of one format before the end of another."""
    starts = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\x00", b"PK\x03\x04"]
    starts += [b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'>", b"MZ", b"\x7fELF", b"#!"]
    other = rng.choice(whole)
    return rng.choice(starts) + rng.randbytes(rng.randint(0, 200)) + other[len(other) // 2 :]


def _cut(rng: random.Random, whole: list[bytes]) -> bytes:
    """A file that ends in the header of its pixels, or before."""
    one = rng.choice(whole)
    return one[: rng.randint(0, min(120, len(one) // 8))]


def _wrong_type(rng: random.Random, _: list[bytes]) -> bytes:
    texts = [b"", b"hello", b"{}", b"%PDF-1.7\n%", b"<html>", b"\x00" * 5000, b"DICM" * 400]
    return rng.choice(texts) + rng.randbytes(rng.choice([0, 3, 4000]))


def _form(content: bytes, name: str = "x.dcm") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--b--\r\n"


_POST = (
    b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n"
)


def _whole(body: bytes, headers: bytes = b"") -> list[bytes]:
    return [_POST + headers + b"Content-Length: %d\r\n\r\n" % len(body), body]


def _request(rng: random.Random, whole: list[bytes]) -> tuple[str, list[bytes]]:
    """The kind of a bad upload, and what is sent, with pauses between the parts."""
    kind = rng.choices(
        [
            *("bomb", "polyglot", "cut", "wrong type", "huge header", "slow", "stalled"),
            *("chunked lie", "length lie", "too large", "bad form"),
        ],
        [10, 25, 25, 15, 8, 2, 2, 6, 3, 2, 6],
    )[0]
    if kind == "bomb":
        return kind, _whole(_form(_bombs(rng)))
    if kind in ("polyglot", "cut", "wrong type"):
        make = {"polyglot": _polyglots, "cut": _cut, "wrong type": _wrong_type}[kind]
        return kind, _whole(_form(make(rng, whole)))
    if kind == "huge header":
        size = rng.choice([40_000, 300_000, 3_000_000])
        return kind, _whole(_form(b"x"), b"X-Long: " + b"x" * size + b"\r\n")
    if kind == "slow":
        body = _form(rng.randbytes(400))
        return kind, [*_whole(body)[:1], *(body[at : at + 8] for at in range(0, 240, 8))]
    if kind == "stalled":
        return kind, [_POST + b"Content-Length: 90000\r\n\r\n" + _form(b"x")[:60]]
    if kind == "chunked lie":
        size = rng.choice([b"zz", b"-5", b"ffffffffffffffffff", b"0x10", b"5;" + b"e" * 99999])
        return kind, [
            _POST + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\nabc\r\n0\r\n\r\n"
        ]
    if kind == "length lie":
        length = rng.choice([b"-1", b"1e3", b"12, 13", b"+5", b"9" * 30, b"0x10"])
        return kind, [_POST + b"Content-Length: " + length + b"\r\n\r\n" + _form(b"x")]
    if kind == "too large":
        return kind, _whole(_form(bytes(_MAX_UPLOAD + 200_000)))
    bad = [b"", b"--b", b"--c\r\n\r\n--c--", b"x" * 5000, _form(b"x")[:-9], b"--b\r\n" * 900]
    # Neither image nor id is given, or the form is none.
    return kind, _whole(rng.choice(bad))


def _sent(address: str, parts: list[bytes]) -> tuple[int, float]:
    """Status of the answer, 0 = none came; and seconds."""
    began = time.monotonic()
    host, _, port = address.removeprefix("http://").partition(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=SECONDS + SLACK) as wire:
        try:
            for part in parts:
                wire.sendall(part)
                if len(parts) > 3:
                    time.sleep(0.15)
        except ConnectionError:
            pass
        try:
            while b"\r\n\r\n" not in found and (block := wire.recv(65536)):
                found += block
        except ConnectionError:
            pass
    status = int(found.split()[1]) if found.startswith(b"HTTP/1.1 ") else 0
    return status, time.monotonic() - began


class _Memory:
    """Notes the most that this process grew by, and the most that a child took.

    Args:
        others: children that are of no interest.
    """

    def __init__(self, others: set[psutil.Process]) -> None:
        self._process = psutil.Process()
        self._others = others
        self._first = self._own()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.grown = self.child = 0

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _own(self) -> int:
        memory = self._process.memory_info()
        return int(memory.rss - memory.shared)

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.grown = max(self.grown, self._own() - self._first)
            for child in {*self._process.children(recursive=True)} - self._others:
                try:
                    self.child = max(self.child, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue


def _searches(address: str, content: bytes) -> None:
    """A good search answers, with the image itself first."""
    import httpx2

    answer = httpx2.post(f"{address}/v1/search", files={"file": content}, data={"k": 3}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["hits"][0]["sop"] == "1.2.3.0"


def _check(
    address: str, indexed, others: set[psutil.Process], count: int, seed: int
) -> Counter[str]:
    from mutations import whole_files

    content = indexed.files["ct"][0].read_bytes()
    whole = list(whole_files().values())
    rng = random.Random(seed)
    asked = [_request(rng, whole) for _ in range(count)]
    _searches(address, content)
    statuses: Counter[str] = Counter()
    with _Memory(others) as memory, ThreadPoolExecutor(_CLIENTS) as pool:
        answers = pool.map(lambda one: _sent(address, one[1]), asked)
        for (kind, _), (status, seconds) in zip(asked, answers, strict=True):
            statuses[f"{kind} {status}"] += 1
            assert 400 <= status < 500, (kind, status)
            assert seconds < SECONDS + SLACK, (kind, seconds)
            if sum(statuses.values()) % 250 == 0:
                _searches(address, content)
    _searches(address, content)
    assert memory.grown <= _OWN_MEMORY
    assert 0 < memory.child <= _READER_MEMORY
    return statuses


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_bad_uploads(address: str, indexed, others, capfd) -> None:
    count = int(os.environ.get("PRECEDENT_BAD_UPLOADS", COUNT))
    statuses = _check(address, indexed, others, count, 7)
    with capfd.disabled():
        print(f"\n{dict(sorted(statuses.items()))}")
    assert {name.rpartition(" ")[0] for name in statuses} >= {"bomb", "slow", "chunked lie"}
