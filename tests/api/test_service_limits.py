"""Limits of the service over real connections: too much, too slow, too often, and lies about it."""

import concurrent.futures
import email
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from services.running import served

from api.http import protocol
from api.http.routes import images
from api.security.keys import Keys
from api.security.policy import Scope
from api.security.rates import Rates
from api.service import create_service
from engine.settings import LedgerSettings, ServerSettings, Settings
from indexer.ledger.database import Database, open_database

MAX_UPLOAD = 200_000
Start = Callable[..., str]
EVERY_ANSWER = (
    "content-security-policy",
    "x-content-type-options",
    "referrer-policy",
    "cross-origin-resource-policy",
    "cache-control",
)


@pytest.fixture
def start(indexed, archive) -> Iterator[Start]:
    """Starts a service with these server settings over the shared archive; its address."""
    with ExitStack() as opened:

        def begin(settings: Settings | None = None, **options: object) -> str:
            server = ServerSettings(**{"max_upload_bytes": MAX_UPLOAD, **options})
            base = indexed.settings if settings is None else settings
            app = create_service(base.model_copy(update={"server": server}), archive)
            return opened.enter_context(served(app, server))

        yield begin


@pytest.fixture(scope="module")
def strict(indexed, archive) -> Iterator[str]:
    """The address of a service that waits for nobody."""
    server = ServerSettings(
        max_upload_bytes=MAX_UPLOAD,
        body_grace_seconds=1,
        min_body_bytes_per_second=1000,
        max_body_seconds=3,
        header_seconds=0.5,
        idle_seconds=1,
        write_seconds=0.5,
        max_header_bytes=2048,
    )
    settings = indexed.settings.model_copy(update={"server": server})
    with served(create_service(settings, archive), server) as address:
        yield address


class Wire:
    """A connection on which anything can be sent."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("http://").partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20)

    def send(self, content: bytes) -> None:
        self._socket.sendall(content)

    def answer(self) -> tuple[int, dict[str, object]]:
        """Status and problem of the answer, after which the server hangs up."""
        text = self.rest()
        head, _, body = text.partition(b"\r\n\r\n")
        headers = email.message_from_bytes(head.partition(b"\r\n")[2])
        assert headers["content-type"] == "application/problem+json", text
        for name in EVERY_ANSWER:
            assert headers.get_all(name), name
        problem = json.loads(body)
        assert problem["request_id"] == headers["x-request-id"]
        return int(head.split()[1]), problem

    def rest(self) -> bytes:
        found = b""
        try:
            while block := self._socket.recv(65536):
                found += block
        except ConnectionResetError:
            pass
        return found

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def searches(address: str, content: bytes) -> bool:
    """Whether a search by upload answers as it should."""
    sent = {"file": content}
    answer = httpx2.post(f"{address}/v1/search", files=sent, data={"k": 3}, timeout=30)
    return answer.status_code == 200 and len(answer.json()["hits"]) == 3


UPLOAD = (
    b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n"
)
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'


def test_a_body_of_a_byte_a_moment_is_cut(strict: str, indexed) -> None:
    with Wire(strict) as wire:
        wire.send(UPLOAD + b"Content-Length: 1000\r\n\r\n" + PART)
        began = time.monotonic()
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.2):
                try:
                    wire.send(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        status, problem = wire.answer()
        stop.set()
        dripping.join()
    assert (status, problem["code"]) == (408, "request-timeout")
    assert 0.9 < time.monotonic() - began < 5
    assert searches(strict, indexed.files["ct"][0].read_bytes())


@pytest.mark.slow
def test_a_body_that_comes_steadily_is_taken(strict: str, indexed) -> None:
    """Though it takes longer than one may take over nothing."""
    body = PART + indexed.files["ct"][0].read_bytes() + b"\r\n--b--\r\n"
    with Wire(strict) as wire:
        wire.send(UPLOAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        step = len(body) // 8 + 1
        for at in range(0, len(body), step):
            wire.send(body[at : at + step])
            time.sleep(0.2)
        assert wire.rest().startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_a_body_must_be_complete_in_the_end(start: Start) -> None:
    address = start(body_grace_seconds=1, min_body_bytes_per_second=1000, max_body_seconds=1)
    with Wire(address) as wire:
        wire.send(UPLOAD + b"Content-Length: 100000\r\n\r\n" + PART + b"x" * 90_000)
        assert wire.answer()[0] == 408


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: loc"])
def test_headers_that_do_not_come_are_not_waited_for(strict: str, sent: bytes) -> None:
    with Wire(strict) as wire:
        wire.send(sent)
        began = time.monotonic()
        assert wire.answer()[0] == 408
        assert time.monotonic() - began < 5


def test_headers_a_byte_at_a_time_are_not_waited_for(strict: str) -> None:
    with Wire(strict) as wire:
        began = time.monotonic()
        for byte in b"GET /healthz HTTP/1.1\r\nX-Long: " + b"x" * 50:
            try:
                wire.send(bytes([byte]))
            except OSError:
                break
            time.sleep(0.02)
        assert wire.answer()[0] == 408
        assert time.monotonic() - began < 5


@pytest.mark.slow
def test_an_idle_connection_is_closed_and_a_used_one_kept(strict: str) -> None:
    with Wire(strict) as wire:
        ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        wire.send(ask)
        time.sleep(0.3)
        wire.send(ask)
        assert wire.rest().count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("size", [3000, 200_000, 5_000_000])
def test_large_headers_are_refused(strict: str, size: int) -> None:
    with Wire(strict) as wire:
        try:
            wire.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
            wire.send(b"X-Long: " + b"x" * size + b"\r\n\r\n")
        except OSError:
            pass  # it was refused before all had been sent
        assert wire.answer()[0] == 431


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
        b"GET\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
        b"Content-Length: 2\r\n\r\n",
        UPLOAD + b"Transfer-Encoding: chunked\r\n\r\nnot a number\r\n",
        UPLOAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n",
        UPLOAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        UPLOAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n3\r\nabcXX",
    ],
)
def test_what_is_no_http_is_told_so_and_closed(strict: str, indexed, sent: bytes) -> None:
    with Wire(strict) as wire:
        wire.send(sent)
        assert 400 <= wire.answer()[0] < 502
    assert searches(strict, indexed.files["ct"][0].read_bytes())


def test_a_body_beyond_the_limit_is_answered_and_not_read_for_ever(
    strict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client goes on sending, and does not say how much."""
    monkeypatch.setattr(protocol, "_LINGER_SECONDS", 1.0)
    began = time.monotonic()
    with Wire(strict) as wire:
        wire.send(UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        sent = 0
        try:
            while time.monotonic() - began < 30:
                wire.send(chunk)
                sent += 1
                time.sleep(0.05)
        except OSError:
            pass
    assert sent > MAX_UPLOAD / 0x10000
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("path", ["/login", "/logout", "/embed"])
def test_who_sends_no_key_sends_little(strict: str, path: str) -> None:
    for sent in ({"data": {"key": "x" * 20_000}}, {"files": {"file": b"x" * 20_000}}):
        answer = httpx2.post(f"{strict}{path}", **sent, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert httpx2.post(f"{strict}{path}", data={"key": "x" * 1000}).status_code != 413


def test_a_client_that_does_not_take_its_answer_is_cut(strict: str, indexed) -> None:
    with Wire(strict) as wire:
        # Answers to requests one after the other, none of which is read.
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises((ConnectionError, TimeoutError)):
            for _ in range(100_000):
                wire.send(ask * 20)
    assert searches(strict, indexed.files["ct"][0].read_bytes())


def test_too_many_connections_are_refused_and_room_comes_back(start: Start) -> None:
    address = start(max_connections=8, header_seconds=30)
    with ExitStack() as opened:
        for _ in range(8):
            opened.enter_context(Wire(address))
        time.sleep(0.2)
        with Wire(address) as further:
            status, problem = further.answer()
            assert (status, problem["code"]) == (503, "service-unavailable")
    time.sleep(0.3)
    assert httpx2.get(f"{address}/healthz").status_code == 200


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Holds every facet request until it is set."""
    free = threading.Event()
    parse = images.parse_where

    def held(where: list[str]) -> object:
        free.wait(30)
        return parse(where)

    monkeypatch.setattr(images, "parse_where", held)
    return free


def test_overload_gives_503_and_no_collapse(start: Start, indexed, slow: threading.Event) -> None:
    address = start(max_at_once=2, max_waiting=3, max_waiting_seconds=20)
    with (
        httpx2.Client(base_url=address, timeout=60) as client,
        concurrent.futures.ThreadPoolExecutor(20) as pool,
    ):
        asked = [pool.submit(client.get, "/v1/facets") for _ in range(20)]
        until = time.monotonic() + 20
        while sum(one.done() for one in asked) < 15:
            assert time.monotonic() < until
            time.sleep(0.05)
        # Those that are refused are so at once; health and figures are told meanwhile.
        assert client.get("/healthz").status_code == 200
        # It is not even asked who they are: what a proxy handed on is 403 where there is room.
        handed_on = {"Via": "1.1 proxy"}
        assert client.get("/v1/facets", headers=handed_on).status_code == 503
        slow.set()
        answers = [one.result() for one in asked]
    assert Counter(one.status_code for one in answers) == {200: 5, 503: 15}
    for one in answers:
        if one.status_code == 503:
            assert one.headers["retry-after"] == "1"
            assert one.json()["code"] == "service-unavailable"
            assert one.json()["request_id"] == one.headers["x-request-id"]
    assert searches(address, indexed.files["ct"][0].read_bytes())
    assert httpx2.get(f"{address}/v1/facets", headers=handed_on).status_code == 403


def test_a_request_that_waits_too_long_is_answered(start: Start, slow: threading.Event) -> None:
    address = start(max_at_once=1, max_waiting=5, max_waiting_seconds=0.3)
    with (
        httpx2.Client(base_url=address, timeout=60) as client,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(client.get, "/v1/facets")
        time.sleep(0.2)
        assert client.get("/v1/facets").status_code == 503
        slow.set()
        assert first.result().status_code == 200


@pytest.mark.slow
def test_slow_uploads_take_no_room_from_searches(start: Start, indexed) -> None:
    address = start(max_at_once=1, max_waiting=0, max_uploads=3)
    content = indexed.files["ct"][0].read_bytes()
    with ExitStack() as opened:
        slow = [opened.enter_context(Wire(address)) for _ in range(3)]
        for wire in slow:
            wire.send(UPLOAD + b"Content-Length: 1000\r\n\r\n" + PART)
        time.sleep(0.3)
        assert httpx2.get(f"{address}/v1/facets").status_code == 200
        # A further upload has no place among them.
        full = httpx2.post(f"{address}/v1/search", files={"file": content}, timeout=30)
        assert full.status_code == 503
    time.sleep(0.3)
    assert searches(address, content)


# How often a credential may ask.


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def settings_of(indexed, folder: Path, url: str | None = None, **options: object) -> Settings:
    server = ServerSettings(max_upload_bytes=MAX_UPLOAD, **options)
    ledger = LedgerSettings() if url is None else LedgerSettings(url=url)
    copied: Settings = indexed.copy(folder)
    return copied.model_copy(update={"server": server, "ledger": ledger})


def test_a_key_that_asks_too_often_is_told_to_wait(start: Start, indexed, tmp_path: Path) -> None:
    settings = settings_of(indexed, tmp_path / "data")
    with open_database(settings, settings.data_dir / "ledger.sqlite") as database:
        bearers = [
            {"Authorization": f"Bearer {Keys(database).create(name, [Scope.SEARCH])[1]}"}
            for name in ("busy", "calm")
        ]
    address = start(settings, requests_per_second=2, burst=10)
    with httpx2.Client(base_url=address) as client:
        answers = [client.get("/v1/facets", headers=bearers[0]) for _ in range(25)]
        counts = Counter(one.status_code for one in answers)
        assert 10 <= counts[200] <= 10 + 2 * 5
        assert counts[429] == 25 - counts[200]
        assert answers[0].headers["ratelimit-policy"] == '"key";q=10;w=5'
        left = [int(one.headers["ratelimit"].split("r=")[1].split(";")[0]) for one in answers]
        assert left[:10] == list(range(9, -1, -1))
        refused = next(one for one in answers if one.status_code == 429)
        assert refused.json()["code"] == "too-many-requests"
        assert refused.json()["request_id"] == refused.headers["x-request-id"]
        assert refused.headers["retry-after"] == "1"
        # Others are not kept from asking, nor is this one for long.
        assert client.get("/v1/facets", headers=bearers[1]).status_code == 200
        time.sleep(1.1)
        assert client.get("/v1/facets", headers=bearers[0]).status_code == 200


def test_an_open_service_counts_nobody(start: Start) -> None:
    address = start(requests_per_second=1, burst=1)
    with httpx2.Client(base_url=address) as client:
        assert {client.get("/v1/facets").status_code for _ in range(5)} == {200}


def _passed(rates: Rates, times: int, credential: str = "k") -> int:
    return sum((rates.at_hand(credential) or rates.ask(credential)).allowed for _ in range(times))


@pytest.mark.parametrize("burst", [1, 3, 40, 500])
def test_a_bucket_gives_its_burst_and_then_its_rate(indexed, tmp_path: Path, burst: int) -> None:
    """Beside a counter that needs no leases: what passes is never more than is due."""
    settings = settings_of(indexed, tmp_path / "data", requests_per_second=0.001, burst=burst)
    rates = Rates(settings, lambda: None)
    assert _passed(rates, burst * 3) == burst
    assert _passed(rates, burst * 3, "other") == burst
    rates.close()


def test_processes_on_one_database_share_a_limit(ledger_url: str, indexed, tmp_path: Path) -> None:
    """Two, each with connections of its own, that are asked at the same time."""
    settings = settings_of(indexed, tmp_path / "data", ledger_url, requests_per_second=20, burst=80)
    passed: list[int] = []
    least_seconds = 1
    with Database(ledger_url) as one, Database(ledger_url) as two:
        both = [Rates(settings, lambda: one), Rates(settings, lambda: two)]
        began = time.monotonic()

        def ask(rates: Rates) -> None:
            count = 0
            while time.monotonic() - began < least_seconds:
                count += _passed(rates, 1)
                time.sleep(0.001)
            passed.append(count)

        threads = [threading.Thread(target=ask, args=(rates,)) for rates in both * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
        for rates in both:
            rates.close()
    leases = 2 * 10
    assert 80 + 20 * least_seconds - leases <= sum(passed) <= 80 + 20 * seconds + leases


_ASKS = """
import sys, time
from api.security.rates import Rates
from engine.settings import LedgerSettings, ServerSettings, Settings
from indexer.ledger.database import Database
url, until = sys.argv[1], float(sys.argv[2])
server = ServerSettings(requests_per_second=20, burst=80)
settings = Settings(server=server, ledger=LedgerSettings(url=url))
passed = 0
with Database(url) as database:
    rates = Rates(settings, lambda: database)
    while time.time() < until:
        passed += (rates.at_hand("k") or rates.ask("k")).allowed
        time.sleep(0.001)
print(passed)
"""


@pytest.mark.slow
def test_two_real_processes_share_a_limit(ledger_url: str) -> None:
    began = time.time()
    until = began + 25
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _ASKS, ledger_url, str(until)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    passed = [int(one.communicate(timeout=120)[0]) for one in started]
    assert 80 <= sum(passed) <= 80 + 20 * 25 + 2 * 10


def test_without_its_database_each_process_counts_for_itself(
    indexed, tmp_path: Path, caplog
) -> None:
    settings = settings_of(indexed, tmp_path / "data", requests_per_second=1, burst=8)
    (settings.data_dir / "request-rates.sqlite").mkdir()
    rates = Rates(settings, lambda: None, Clock())
    assert _passed(rates, 30) == 8
    assert "counted by this process alone" in caplog.text


def test_counting_costs_next_to_nothing(ledger_url: str, indexed, tmp_path: Path) -> None:
    settings = settings_of(indexed, tmp_path / "data", ledger_url, requests_per_second=1e4)
    with Database(ledger_url) as database:
        rates = Rates(settings, lambda: database)
        _passed(rates, 1)
        began = time.perf_counter()
        assert _passed(rates, 400) == 400
        each = (time.perf_counter() - began) / 400
        rates.close()
    assert each < 0.001
