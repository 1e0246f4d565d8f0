"""Commands beside a running service, each in a process of its own, over one data folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from handed_in import picture_file, slice_file
from services.commands import CommandProcess
from services.needed import dcmtk

from engine.errors import StoreLocked
from engine.settings import Settings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.sources.pushed.inbox import Inbox

PATIENCE = 180.0
BIT_BY_BIT = {"PRECEDENT_INDEXING__BATCH_SIZE": 2, "PRECEDENT_INDEXING__COMMIT_EVERY": 2}
"""So that an index run of a few dozen pictures has a middle, however quick the machine."""
pytestmark = pytest.mark.timeout(1800)  # many processes that each load the model
QUICK = {"OMP_NUM_THREADS": "1", "PRECEDENT_INDEXING__READERS": "1", "COLUMNS": "200"}


class Process:
    """A command in a process of its own, in a data folder."""

    def __init__(self, settings: Settings, *arguments: object, **variables: object) -> None:
        place = {"PRECEDENT_DATA_DIR": settings.data_dir, "PRECEDENT_MODEL": settings.model}
        chosen = {name: str(value) for name, value in (place | variables).items()}
        self.process = CommandProcess(arguments, env={**os.environ, **QUICK, **chosen})
        self.opened: list[httpx.Client] = []
        self.said: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._reading = [
            threading.Thread(target=self._read, args=(name,), daemon=True) for name in self.said
        ]
        for thread in self._reading:
            thread.start()

    def _read(self, name: str) -> None:
        for line in getattr(self.process, name):
            self.said[name].append(line)

    @property
    def out(self) -> str:
        return "".join(self.said["stdout"])

    @property
    def errors(self) -> str:
        return "".join(self.said["stderr"])

    def end(self) -> int:
        code = self.process.wait(PATIENCE)
        for thread in self._reading:
            thread.join(PATIENCE)
        return code

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.end()

    def close(self) -> None:
        for client in self.opened:
            client.close()
        self.process.kill()
        self.end()
        for name in self.said:
            getattr(self.process, name).close()


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Process] = []

    def begun(*arguments: Any, **variables: object) -> Process:
        started.append(Process(*arguments, **variables))
        return started[-1]

    yield begun
    for process in started:
        process.close()


def until(true: Callable[[], Any], *processes: Process) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := true()):
        said = "\n".join(one.out + one.errors for one in processes)
        assert time.monotonic() < deadline, said
        time.sleep(0.02)
    return found


def advance(process: Process, true: Callable[[], Any]) -> None:
    """Let a process run, a moment at a time, until something is true: it is stopped then."""
    deadline = time.monotonic() + PATIENCE
    while True:
        process.process.send_signal(signal.SIGCONT)
        time.sleep(0.01)
        process.process.send_signal(signal.SIGSTOP)
        assert process.process.poll() is None, process.out + process.errors
        if true():
            return
        assert time.monotonic() < deadline, process.out + process.errors


class Site:
    """A running service."""

    def __init__(self, process: Process) -> None:
        self.process = process
        found = until(lambda: re.search(r"http://\S+/", process.out), process)
        process.opened.append(client := httpx.Client(base_url=found[0], timeout=PATIENCE))
        self.client = client
        until(self._answers, process)

    def _answers(self) -> bool:
        try:
            return self.client.get("/healthz").status_code in (200, 503)
        except httpx.TransportError:
            return False

    @property
    def points(self) -> int:
        answer = self.client.get("/healthz")
        return answer.json()["points"] if answer.status_code == 200 else 0

    def search(self, content: bytes) -> list[str]:
        answer = self.client.post("/v1/search", files={"file": content}, data={"k": "1"})
        assert answer.status_code == 200, answer.text
        return [hit["id"] for hit in answer.json()["hits"]]


@pytest.fixture
def settings(indexed, tmp_path: Path) -> Settings:
    return indexed.copy(tmp_path / "data")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder with 60 images that are not indexed yet."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:03}.png").write_bytes(picture_file(500 + number))
    return folder


def ran(process: Process) -> dict[str, Any]:
    """What the command tells as JSON; it has to succeed."""
    code = process.end()
    assert code == 0, process.errors
    return json.loads(process.out.splitlines()[-1])


def points_and_thumbnails(settings: Settings) -> tuple[set[str], set[str]]:
    with Archive(settings) as archive:
        found = {point.id for point in archive.store.scroll(Filter())}
        owned = {i for ids in archive.ledger.points_of(archive.ledger.find()).values() for i in ids}
        assert found == owned
        return found, {path.stem for path in archive.data_dir.thumbnails.rglob("*.jpg")}


@pytest.mark.slow
def test_every_command_goes_on_beside_the_service(start, settings, indexed, many, tmp_path):
    site = Site(start(settings, "serve", "--port", "0"))
    query = indexed.files["stripes"][0]
    own = site.search(query.read_bytes())
    together = [start(settings, "search", query, "--json", "-k", "1") for _ in range(2)]
    assert [ran(one)["hits"][0]["id"] for one in together] == own * 2
    assert ran(start(settings, "info", "--json"))["points"] == 35
    assert ran(start(settings, "index", many, "--json"))["indexed"] == 60
    assert site.points == 95
    new = many / "007.png"
    assert site.search(new.read_bytes()) == [
        ran(start(settings, "search", new, "--json", "-k", "1"))["hits"][0]["id"]
    ]
    assert ran(start(settings, "profile", "--json"))["images"] == 95
    groups = start(settings, "duplicates", "--json")
    assert groups.end() == 0, groups.errors
    assert ran(start(settings, "recommend", "--like", *own, "--json"))["hits"]
    saved = tmp_path / "saved"
    assert ran(start(settings, "snapshot", saved, "--json"))["written"] == 95
    gone = ran(start(settings, "delete", "--study", "1.2.4.0", "--yes", "--json"))
    assert gone == {"instances": 2, "points": 2}
    assert site.points == 93
    assert ran(start(settings, "restore", saved, "--json"))["restored"] == 95
    assert site.points == 95
    assert ran(start(settings, "profile", "precise", "--json"))["graph"] == "precise"
    assert site.search(query.read_bytes()) == own
    # And a second service: it says who has the index before it prints an address.
    other = Site(start(settings, "serve", "--port", "0"))
    pid = site.process.process.pid
    told = f"The index is open in another process (pid {pid}, `precedent serve`, since "
    assert told in other.process.errors
    assert other.search(query.read_bytes()) == own
    # Without the first one, it has the index itself.
    site.process.kill(signal.SIGTERM)
    assert other.search(query.read_bytes()) == own
    assert ran(start(settings, "info", "--json"))["points"] == 95


@pytest.mark.slow
def test_searches_are_answered_while_another_process_indexes(start, settings, indexed, many):
    site = Site(start(settings, "serve", "--port", "0"))
    content = indexed.files["rings"][0].read_bytes()
    own = site.search(content)
    indexing = start(settings, "index", many, "--json", **BIT_BY_BIT)
    took: list[float] = []
    while indexing.process.poll() is None:
        began = time.monotonic()
        assert site.search(content) == own
        took.append(time.monotonic() - began)
    assert ran(indexing)["indexed"] == 60
    assert len(took) > 10
    p99 = sorted(took)[int(0.99 * (len(took) - 1))]
    print(f"{len(took)} searches beside indexing, p99 {1000 * p99:.0f} ms")
    # On a machine that has nothing else to do it is a fraction of a second.
    assert p99 < 30.0
    assert site.points == 95


@pytest.mark.slow
def test_a_killed_index_run_leaves_the_service_whole_and_goes_on(start, settings, many):
    site = Site(start(settings, "serve", "--port", "0"))
    for _ in range(2):
        before = site.points
        indexing = start(settings, "index", many, **BIT_BY_BIT)
        advance(indexing, lambda before=before: site.points > before)
        indexing.kill()
    listed = ran(start(settings, "jobs", "list", "--json"))["jobs"]
    assert listed[0]["state"] == "running"
    last = ran(start(settings, "index", many, "--json"))
    assert last["indexed"] + last["unchanged"] == 60
    assert last["unchanged"] > 0
    states = [one["state"] for one in ran(start(settings, "jobs", "list", "--json"))["jobs"]]
    # A run that was killed is told from one that is under way.
    assert states[:3] == ["finished", "failed", "failed"]
    assert site.points == 95
    site.process.kill(signal.SIGTERM)
    found, thumbnails = points_and_thumbnails(settings)
    assert len(found) == 95
    assert thumbnails == found


@pytest.mark.slow
def test_a_killed_service_does_not_stop_an_index_run(start, settings, many, indexed):
    site = Site(start(settings, "serve", "--port", "0"))
    indexing = start(settings, "index", many, "--json", **BIT_BY_BIT)
    advance(indexing, lambda: site.points >= 39)
    site.process.kill()
    indexing.process.send_signal(signal.SIGCONT)
    again = Site(start(settings, "serve", "--port", "0"))
    content = indexed.files["rings"][0].read_bytes()
    own = again.search(content)
    while indexing.process.poll() is None:
        assert again.search(content) == own
    assert ran(indexing)["indexed"] == 60
    assert again.points == 95
    again.process.kill(signal.SIGTERM)
    found, thumbnails = points_and_thumbnails(settings)
    assert len(found) == 95
    assert thumbnails == found


@pytest.mark.slow
def test_two_index_runs_and_a_service_that_starts_between_them(start, settings, many, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    for path in sorted(many.iterdir())[:30]:
        path.rename(half / path.name)
    runs = [start(settings, "index", folder, "--json") for folder in (many, half)]
    site = Site(start(settings, "serve", "--port", "0"))
    assert [ran(one)["indexed"] for one in runs] == [30, 30]
    assert site.points == 95
    jobs = ran(start(settings, "jobs", "list", "--json"))["jobs"]
    assert [one["state"] for one in jobs[:2]] == ["finished"] * 2


@pytest.mark.slow
def test_ctrl_c_stops_an_index_run_as_it_does_alone(start, settings, many):
    site = Site(start(settings, "serve", "--port", "0"))
    indexing = start(settings, "index", many, **BIT_BY_BIT)
    advance(indexing, lambda: site.points > 36)
    indexing.process.send_signal(signal.SIGINT)
    indexing.process.send_signal(signal.SIGCONT)
    assert indexing.end() == 130
    assert indexing.errors.strip().splitlines()[-1].startswith("precedent: interrupted")
    assert "Traceback" not in indexing.errors
    assert 36 < site.points < 95
    assert ran(start(settings, "index", many, "--json"))["unchanged"] > 0


def storescu(port: int, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [dcmtk("storescu"), "-v", "-aet", "PACS", "-aec", "ARCHIVE", "127.0.0.1", str(port)]
    return subprocess.run(
        [*command, *map(str, files)], capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.mark.slow
def test_the_service_takes_what_a_pacs_pushes_while_it_answers(start, settings, tmp_path, indexed):
    files = []
    for number in range(40):
        content = slice_file(700 + number)
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(content)
    site = Site(
        start(
            settings,
            *("serve", "--port", "0", "--receive", "ARCHIVE:0"),
            PRECEDENT_RECEIVE__ALLOWED_AE_TITLES='["PACS"]',
            PRECEDENT_RECEIVE__IDLE_SECONDS=0.2,
        )
    )
    port = int(
        until(
            lambda: re.search(r"ARCHIVE takes C-STORE on 127.0.0.1:(\d+)", site.process.errors),
            site.process,
        )[1]
    )
    query = indexed.files["rings"][0].read_bytes()
    own = site.search(query)
    with pytest.raises(StoreLocked, match="another process that receives"):
        Inbox(settings.data_dir / "received", settings.receive, 1000)
    done: list[subprocess.CompletedProcess[str]] = []
    sending = threading.Thread(target=lambda: done.append(storescu(port, *files)))
    sending.start()
    while sending.is_alive() or site.points < 75:
        assert site.search(query) == own
    sending.join()
    assert done[0].returncode == 0, done[0].stderr
    assert len(site.search(files[0].read_bytes())) == 1
    site.process.kill(signal.SIGTERM)
    found, thumbnails = points_and_thumbnails(settings)
    assert len(found) == 75
    assert thumbnails == found


@pytest.mark.slow
def test_a_kill_in_the_middle_of_taking_in_loses_nothing_and_leaves_nothing_half(
    start, settings, tmp_path
):
    contents = [slice_file(800 + number) for number in range(12)]
    for after in (0, 6):
        site = Site(start(settings, "serve", "--port", "0"))
        sent: list[int] = []

        def send(site: Site = site, sent: list[int] = sent) -> None:
            for at, content in enumerate(contents):
                try:
                    answer = site.client.post("/v1/instances", files={"file": content})
                except httpx.TransportError:
                    return
                if answer.status_code in (200, 201):
                    sent.append(at)

        sending = threading.Thread(target=send)
        sending.start()
        until(lambda sent=sent, after=after: len(sent) >= after, site.process)
        site.process.kill()
        sending.join()
        assert len(sent) < len(contents)
        again = Site(start(settings, "serve", "--port", "0"))
        for at in sent:
            # What was acknowledged is there.
            (found,) = again.search(contents[at])
            assert again.client.get(f"/v1/images/{found}").json()["sop"] == f"1.2.7.{800 + at}"
        again.process.kill(signal.SIGTERM)
    site = Site(start(settings, "serve", "--port", "0"))
    for content in contents:
        assert site.client.post("/v1/instances", files={"file": content}).status_code in (200, 201)
    assert site.points == 35 + 12
    site.process.kill(signal.SIGTERM)
    found, thumbnails = points_and_thumbnails(settings)
    assert thumbnails == found


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_deletion_finishes_it(start, settings, many):
    ran(start(settings, "index", many, "--labels", "folder", "--json"))
    kept = settings.data_dir.with_name("kept")
    killed = 0
    for after in (0.0, 0.02, 0.05, 0.1, 0.2):
        shutil.copytree(settings.data_dir, kept)
        site = Site(start(settings, "serve", "--port", "0"))
        deleting = start(settings, "delete", "--source", "folder", "--yes", "--json")
        noted = settings.data_dir / "deletions"
        while deleting.process.poll() is None and not list(noted.glob("*.json")):
            time.sleep(0.001)
        time.sleep(after)
        killed += deleting.process.poll() is None
        deleting.kill()
        site.process.kill()
        again = Site(start(settings, "serve", "--port", "0"))
        assert again.points == 0
        again.process.kill(signal.SIGTERM)
        assert points_and_thumbnails(settings) == (set(), set())
        shutil.rmtree(settings.data_dir)
        kept.rename(settings.data_dir)
    assert killed


@pytest.mark.slow
def test_a_job_made_over_http_goes_on_after_a_kill(start, settings, many, tmp_path):
    source = json.dumps({"shelf": {"kind": "folder", "paths": [str(many)]}})
    variables = {
        "PRECEDENT_SOURCES": source,
        "PRECEDENT_JOBS__CHUNK": "40",
        "PRECEDENT_JOBS__LAPSE_SECONDS": "2",
        "PRECEDENT_JOBS__HEARTBEAT_SECONDS": "0.5",
        **BIT_BY_BIT,
    }
    site = Site(start(settings, "serve", "--port", "0", **variables))
    made = site.client.post("/v1/jobs", json={"source": "shelf"})
    assert made.status_code == 201, made.text
    until(lambda: site.points > 45, site.process)
    site.process.kill()
    again = Site(start(settings, "serve", "--port", "0", **variables))
    number = made.json()["job"]

    def state() -> str:
        return str(ran(start(settings, "jobs", "show", number, "--json"))["state"])

    until(lambda: state() == "finished", again.process)
    assert again.points == 95
    began = time.monotonic()
    again.process.kill(signal.SIGTERM)
    assert time.monotonic() - began < 30
