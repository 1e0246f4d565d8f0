"""Instances from four senders at once, by STOW-RS and C-STORE, while searches go on and the service
is killed twice: what was acknowledged is indexed or refused with a reason, and nothing twice."""

import io
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pydicom
import pytest
import requests
from handed_in import slice_file
from pynetdicom import AE, build_context
from services.commands import CommandProcess
from services.server import HOST, free_ports
from stow_bodies import CONTENT_TYPE, related

from engine.settings import Settings
from engine.store.base import Filter, Match
from indexer.archive import Archive

INSTANCES = int(os.environ.get("PRECEDENT_TEST_STOW_INSTANCES", "240"))
PATIENCE = 120.0 + INSTANCES / 20
CT = "1.2.840.10008.5.1.4.1.1.2"
AT_ONCE = 8
"""Instances of one request."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Service:
    """``precedent serve --receive``, always at the same ports."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.port, self.dicom_port = free_ports(2)
        self.address = f"http://{HOST}:{self.port}"
        self._settings, self._log = settings, log
        self._process: CommandProcess | None = None

    def start(self) -> None:
        variables = {
            "PRECEDENT_DATA_DIR": str(self._settings.data_dir),
            "PRECEDENT_MODEL": str(self._settings.model),
            "PRECEDENT_RECEIVE__ALLOWED_AE_TITLES": '["PACS"]',
            "PRECEDENT_RECEIVE__IDLE_SECONDS": "0.2",
            "PRECEDENT_RECEIVE__BATCH": "40",
            "PRECEDENT_INDEXING__READERS": "1",
            "OMP_NUM_THREADS": "1",
        }
        listen = ("--port", self.port, "--receive", f"PRECEDENT:{self.dicom_port}")
        with self._log.open("ab") as log:
            self._process = CommandProcess(
                ["serve", *listen],
                env={**os.environ, **variables},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def end(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(PATIENCE)


def instance(number: int) -> bytes:
    """Every tenth has no pixels, and cannot be indexed."""
    content = slice_file(number)
    if number % 10 != 9:
        return content
    text = pydicom.dcmread(io.BytesIO(content))
    del text.PixelData
    out = io.BytesIO()
    text.save_as(out, enforce_file_format=True)
    return out.getvalue()


def by_stow(service: Service, numbers: list[int], acknowledged: set[int]) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Content-Type"] = CONTENT_TYPE
        while left := [one for one in numbers if one not in acknowledged][:AT_ONCE]:
            body = related([instance(number) for number in left], before=b"\r\n")
            try:
                address = f"{service.address}/dicomweb/studies"
                answer = session.post(address, data=body, timeout=60)
            except requests.RequestException:
                time.sleep(0.1)
                continue
            if answer.status_code == 503:
                time.sleep(0.1)
                continue
            assert answer.status_code == 200, answer.text
            told = pydicom.Dataset.from_json(answer.json()).ReferencedSOPSequence
            acknowledged |= {int(one.ReferencedSOPInstanceUID.rpartition(".")[2]) for one in told}


def by_c_store(service: Service, numbers: list[int], acknowledged: set[int]) -> None:
    sender = AE("PACS")
    sender.connection_timeout = 5
    while left := [one for one in numbers if one not in acknowledged]:
        association = sender.associate(
            HOST, service.dicom_port, [build_context(CT)], ae_title="PRECEDENT"
        )
        # pynetdicom forgets that of a peer that is gone.
        connection = association.dul.socket
        held = None if connection is None else connection.socket
        with suppress(RuntimeError):  # the association is gone
            for number in left:
                made = pydicom.dcmread(io.BytesIO(instance(number)))
                if association.send_c_store(made).get("Status") == 0:
                    acknowledged.add(number)
        association.abort()
        if held is not None:
            held.close()
        time.sleep(0.1)


class Running(threading.Thread):
    """A thread that passes its failure on."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.failure = error


@pytest.fixture
def service(indexed, tmp_path: Path) -> Iterator[Service]:
    one = Service(indexed.copy(tmp_path / "data"), tmp_path / "log.txt")
    one.start()
    yield one
    one.kill()


# As a sender pynetdicom leaves the socket of a connection that is refused to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)
def test_what_four_senders_were_told_is_stored_is_indexed_or_refused_once(
    indexed, service, tmp_path
):
    numbers = list(range(1000, 1000 + INSTANCES))
    acknowledged: list[set[int]] = [set() for _ in range(4)]
    ways = (by_stow, by_c_store, by_stow, by_c_store)
    senders = [
        Running(lambda of=of, way=way: way(service, numbers[of::4], acknowledged[of]))  # type: ignore[misc]
        for of, way in enumerate(ways)
    ]
    over = threading.Event()
    answered: list[int] = []
    lives = [0]
    query = indexed.files["ct"][0].read_bytes()

    def search() -> None:
        while not over.is_set():
            with suppress(requests.RequestException):
                files = {"file": query}
                found = requests.post(f"{service.address}/v1/search", files=files, timeout=60)
                assert found.status_code in (200, 503), found.text
                if found.status_code == 200:
                    answered.append(lives[0])
            time.sleep(0.05)

    def until(true: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            for one in running:
                if one.failure is not None:
                    raise one.failure
            assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()[-3000:]
            time.sleep(0.02)

    running = [*senders, Running(search)]
    for one in running:
        one.start()
    for share in (1 / 3, 2 / 3):
        until(lambda share=share: sum(map(len, acknowledged)) >= share * INSTANCES)  # type: ignore[misc]
        until(lambda: lives[0] in answered)
        service.kill()
        lives[0] += 1
        service.start()
    until(lambda: not any(one.is_alive() for one in senders))
    assert set().union(*acknowledged) == set(numbers)
    pictures = {number for number in numbers if number % 10 != 9}

    def indexed_now() -> bool:
        where = f"{service.address}/v1/facets?where=source=storescp"
        with suppress(requests.RequestException):
            return bool(requests.get(where, timeout=60).json().get("count") == len(pictures))
        return False

    until(indexed_now)
    over.set()
    until(lambda: not running[-1].is_alive())
    assert set(answered) == {0, 1, 2}
    # The refused ones may be in the last round, which is done to its end.
    until(lambda: "instances indexed" in (tmp_path / "log.txt").read_text())
    service.end()
    with Archive(service._settings) as archive:
        where = Filter((Match("source", ("storescp",)),))
        found = Counter(point.record.sop for point in archive.store.scroll(where))
        assert found == Counter(f"1.2.7.{number}" for number in pictures)
        # Of a service that is ended, what it had not come to waits: the next one does it.
        refused = {
            one.locator.rpartition("/")[2]: one.reason for one in archive.ledger.refusals(10**6)
        }
        left = {f"1.2.7.{number}.dcm" for number in numbers if number not in pictures}
        assert refused == dict.fromkeys(left, "no-pixels")
