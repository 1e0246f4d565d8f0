"""``precedent doctor`` names what is wrong with an installation, each thing for itself."""

import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from services.brokers import Redis
from services.server import free_ports

from api.audit.log import open_log
from api.audit.rows import Entry, Who
from api.audit.schema import AUDIT
from api.cli.main import app
from api.security.seen import Seen
from engine import environment
from engine.model.manifest import read_manifest
from engine.ood.calibration import CALIBRATION, OodGate
from engine.ood.detectors import KnnDetector
from engine.records import Observations
from engine.settings import Settings
from engine.store import edge_checks
from engine.store.sharing import client
from engine.store.sharing.place import listening
from indexer.archive import Archive
from indexer.doctor.examined import Examined
from indexer.doctor.finding import Finding
from indexer.doctor.running import findings
from indexer.ledger.database import Database

SECRET = "correct-horse-battery"


@dataclass
class Installation:
    """An archive that somebody runs. variables: of its environment."""

    settings: Settings
    patch: pytest.MonkeyPatch
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.settings.data_dir

    @property
    def model(self) -> Path:
        assert self.settings.model is not None
        return self.settings.model

    @property
    def columns(self) -> Path:
        state = json.loads((self.root / "index/columns/state.json").read_text())
        return self.root / "index/columns" / str(state["generation"])

    def sql(self, statement: str, *values: Any, file: str = "ledger.sqlite") -> None:
        with sqlite3.connect(self.root / file) as connection:
            connection.execute(statement, values)
        connection.close()

    def record(self, verdict: str, count: int) -> None:
        with open_log(self.settings) as log:
            entry = Entry(Who("user"), "precedent search", 0, "ok", Seen(verdict=verdict))
            rows = log.following(f"of-{verdict}", None, [entry] * count)
            log.add(rows)

    def doctor(self, *options: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, document, and what was printed."""
        for name in [name for name in os.environ if name.startswith("PRECEDENT_")]:
            self.patch.delenv(name)
        for name, value in self.variables.items():
            self.patch.setenv(name, value)
        where = ("--data-dir", str(self.root), "--model", str(self.model))
        printed: list[str] = []
        self.patch.setattr("api.cli.doctor.write_json", lambda one: printed.append(json.dumps(one)))
        code = app(["doctor", *where, "--json", *options], standalone_mode=False)
        (text,) = printed
        return code, json.loads(text), text


@pytest.fixture(scope="module")
def well(indexed, tmp_path_factory) -> Settings:
    """The settings of an installation in which nothing is wrong."""
    root = tmp_path_factory.mktemp("well")
    model = root / "model"
    shutil.copytree(indexed.settings.model, model)
    reference = Observations(np.eye(64, 256, dtype=np.float32), np.zeros((64, 8), np.uint8))
    scores = {"knn": np.linspace(0, 1, 99, dtype=np.float32)}
    gate = OodGate([KnnDetector(5).fit(reference)], scores)
    gate.save(model, read_manifest(model).fingerprint)
    settings: Settings = indexed.copy(root / "data").model_copy(update={"model": model})
    settings.data_dir.chmod(0o700)
    with open_log(settings) as log:
        log.add_command(Entry(Who("user"), "precedent index", 0, "ok"))
    return settings


def copied(well: Settings, to: Path, patch: pytest.MonkeyPatch) -> Installation:
    patch.chdir(to)
    patch.setattr(environment, "_told", set())
    assert well.model is not None
    shutil.copytree(well.model, to / "model")
    shutil.copytree(well.data_dir, to / "data")
    settings = well.model_copy(update={"data_dir": to / "data", "model": to / "model"})
    few = {"PRECEDENT_INDEXING__MIN_FREE_BYTES": "1000"}
    return Installation(settings, patch, few)


@pytest.fixture
def installation(well, tmp_path, monkeypatch) -> Installation:
    return copied(well, tmp_path, monkeypatch)


def found_of(document: dict[str, Any], check: str) -> dict[str, Any]:
    (one,) = (one for one in document["findings"] if one["check"] == check)
    assert (one["level"] == "ok") or one["way_out"]
    return one


def seen(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(root)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        # What readers of an SQLite file have in common while they read; it holds nothing.
        if not path.name.endswith("-shm")
    }


def test_where_nothing_is_wrong_it_says_so_and_changes_nothing(installation):
    before = seen(installation.root)
    code, document, _ = installation.doctor("--strict")
    wrong = [one for one in document["findings"] if one["level"] != "ok"]
    assert wrong == []
    assert (code, document["errors"], document["warnings"]) == (0, 0, 0)
    assert seen(installation.root) == before
    told = {one["check"]: one["value"] for one in document["findings"]}
    assert told["counts"] == "35 images in both"
    assert "JPEG 2000 Image Compression (Lossless Only)" in told["decoders"]
    assert "99 images" in told["calibration"]


def test_a_process_that_has_the_index_is_asked(installation):
    with Archive(installation.settings):
        code, document, _ = installation.doctor("--strict")
    assert code == 0, document
    assert "which answers" in found_of(document, "store.holder")["value"]
    assert found_of(document, "counts")["value"] == "35 images in both"


@pytest.mark.parametrize("listens", [False, True])
def test_a_process_that_does_not_answer_is_named(installation, monkeypatch, listens):
    monkeypatch.setattr(edge_checks, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(client, "_GREETING_SECONDS", 0.05)
    (installation.root / "index.pid").write_text("4711\nprecedent index\n2026-01-01 08:00:00\n")
    with FileLock(installation.root / "index.lock"), ExitStack() as opened:
        if listens:  # and was stopped then
            opened.enter_context(listening(installation.root / "index.sock"))
        code, document, _ = installation.doctor()
    holder = found_of(document, "store.holder")
    assert (code, holder["level"]) == (1, "error")
    assert "pid 4711, `precedent index`" in holder["value"]
    assert "kill 4711" in holder["way_out"]


def test_warnings_fail_it_only_if_asked_to(installation):
    installation.variables["PRECEDENT_AUDIT__ENABLED"] = "false"
    assert installation.doctor()[0] == 0
    code, document, _ = installation.doctor("--strict")
    assert (code, document["errors"], document["warnings"]) == (1, 0, 1)


def test_what_people_read_has_the_way_out(installation, capsys):
    installation.root.chmod(0o777)
    app(["doctor", "--data-dir", str(installation.root), "--quiet"], standalone_mode=False)
    said = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(said) if line.startswith("error    data folder"))
    assert "others may write into it" in said[at]
    assert said[at + 1].strip() == f"→ chmod 700 {installation.root}"
    assert not [line for line in said if line.startswith("ok")]


def test_a_check_that_crashes_is_a_finding_and_the_others_still_run():
    def crash(_: Examined) -> Iterator[Finding]:
        raise RuntimeError("Hidden^Somebody")
        yield

    def fine(_: Examined) -> Iterator[Finding]:
        yield Finding("fine", "ok", "it", "is fine")

    found = list(findings({"crashing": crash, "fine": fine}, Examined(Settings())))
    assert [(one.check, one.level) for one in found] == [("crashing", "error"), ("fine", "ok")]
    assert "RuntimeError" in found[0].value
    assert "Hidden" not in found[0].value


# Planted faults


@dataclass(frozen=True)
class Fault:
    """What is wrong. check, level: of the finding. said: in its value. group: those of one group do
    not hide each other, and are planted together."""

    group: int
    check: str
    level: str
    said: str
    plant: Callable[[Installation], object]


def overwritten(path: Path, content: bytes, at: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(min(1000, path.stat().st_size // 2))


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() + seconds,) * 2)


def noted(at: Installation, **changes: Any) -> None:
    path = at.root / "index/collection.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def left(at: Installation) -> None:
    (at.root / "deletions").mkdir(exist_ok=True)
    (at.root / "deletions/a.json").write_text('{"study": "1.2", "tenant": "default"}')


def waiting(at: Installation) -> None:
    at.sql("INSERT INTO jobs (id, kind, source, state) VALUES (90, 'folder', 'a', 'running')")
    at.sql("INSERT INTO tasks (job, number, kind, state) VALUES (90, 0, 'discover', 'waiting')")


def failed(at: Installation) -> None:
    at.sql(
        "INSERT INTO jobs (id, kind, source, state, finished_at) VALUES (91, 'folder', 'a', "
        "'failed', ?)",
        time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    )


def variables(**values: str) -> Callable[[Installation], object]:
    return lambda at: at.variables.update({f"PRECEDENT_{name}": v for name, v in values.items()})


FOLDER = '{"x": {"kind": "folder", "paths": ["/nowhere/at/all"]}}'
NODE = '{"pacs": {"kind": "dicom", "ae_title": "PACS", "host": "127.0.0.1", "port": %d}}'
STOW = (
    '{"web": {"kind": "stow", "url": "http://127.0.0.1:1/", "username": "a", '
    '"password_file": "/nowhere/secret"}}'
)

FAULTS = {
    "folder others can write to": Fault(
        1, "folder.mode", "error", "others may write", lambda at: at.root.chmod(0o777)
    ),
    "key that others can read": Fault(
        1, "keys.pseudonym", "error", "others may read",
        lambda at: (at.root / "pseudonym.key").chmod(0o644),
    ),
    "full disk": Fault(
        1, "disk", "error", "indexing.min_free_bytes asks for",
        variables(INDEXING__MIN_FREE_BYTES=str(10**17)),
    ),
    "damaged manifest": Fault(
        1, "model", "error", "manifest.json is damaged",
        lambda at: (at.model / "manifest.json").write_text("{"),
    ),
    "torn columns": Fault(
        1, "store.columns", "warning", "z is shorter than", lambda at: cut(at.columns / "z")
    ),
    "run that was killed": Fault(
        1, "pending", "warning", "2 are still to be read",
        lambda at: at.sql("UPDATE instances SET state = 'pending' WHERE sop LIKE '1.2.3._'"
                          " AND sop < '1.2.3.2'"),
    ),
    "job that failed": Fault(1, "jobs.failed", "warning", "1 failed", failed),
    "deletion cut short": Fault(1, "deletions", "warning", "1 cut short", left),
    "audit log off": Fault(
        1, "audit", "warning", "switched off", variables(AUDIT__ENABLED="false")
    ),
    "file from the future": Fault(
        1, "clock.files", "error", "s from now", lambda at: aged(at.root / "ledger.sqlite", 9000)
    ),
    "library that does not load": Fault(
        1, "decoders", "error", "JPEG 2000 Image Compression (openjpeg: ModuleNotFoundError)",
        lambda at: at.patch.setitem(__import__("sys").modules, "openjpeg", None),
    ),
    "disk that is not mounted": Fault(
        1, "sources", "warning", "/nowhere/at/all is not there", variables(SOURCES=FOLDER)
    ),
    "broker that is away": Fault(
        1, "broker", "error", "does not answer", variables(JOBS__BROKER=f"redis://:{SECRET}@127.0.0.1:1")
    ),
    "credential without a file": Fault(
        1, "destinations", "error", "file of a credential", variables(DESTINATIONS=STOW)
    ),
    "folder that others can look into": Fault(
        2, "folder.mode", "warning", "every user of the machine", lambda at: at.root.chmod(0o755)
    ),
    "short key": Fault(
        2, "keys.pseudonym", "error", "5 bytes, not 32",
        lambda at: (at.root / "pseudonym.key").write_bytes(b"short"),
    ),
    "weights of another training": Fault(
        2, "model", "error", "is not what manifest.json describes",
        lambda at: overwritten(at.model / "model.safetensors", bytes(4), 5000),
    ),
    "damaged calibration": Fault(
        2, "calibration", "error", "is damaged", lambda at: cut(at.model / CALIBRATION)
    ),
    "index of another model": Fault(
        2, "store.model", "error", "was made by model ffffffffffffffff",
        lambda at: noted(at, model="f" * 16),
    ),
    "ledger of a later version": Fault(
        2, "ledger", "error", "later version",
        lambda at: at.sql("UPDATE alembic_version SET version_num = '9999'"),
    ),
    "tasks without a worker": Fault(2, "jobs.workers", "warning", "1 tasks wait", waiting),
    "row that was changed": Fault(
        2, "audit", "error", "tampered with: row 0 of chain commands was changed",
        lambda at: at.sql("UPDATE audit SET body = replace(body, 'index', 'delete')",
                          file="audit.sqlite"),
    ),
    "destination that is away": Fault(
        2, "destinations", "error", "cannot be reached",
        lambda at: at.variables.update(PRECEDENT_DESTINATIONS=NODE % free_ports(1)[0]),
    ),
    "lost key": Fault(
        3, "keys.pseudonym", "error", "it is missing",
        lambda at: (at.root / "pseudonym.key").unlink(),
    ),
    "no calibration": Fault(
        3, "calibration", "warning", "there is none", lambda at: (at.model / CALIBRATION).unlink()
    ),
    "columns of another time": Fault(
        3, "store.columns", "warning", "of another time",
        lambda at: (at.root / "index/epoch").write_text("before"),
    ),
    "ledger of an earlier version": Fault(
        3, "ledger", "warning", "earlier version",
        lambda at: at.sql("UPDATE alembic_version SET version_num = '0001'"),
    ),
    "lost audit log": Fault(
        3, "audit", "warning", "there is none", lambda at: (at.root / "audit.sqlite").unlink()
    ),
    "old calibration": Fault(
        4, "calibration", "warning", "700 days ago",
        lambda at: aged(at.model / CALIBRATION, -700.5 * 86_400),
    ),
    "images that the index lost": Fault(
        4, "counts", "error", "35 images in the index, 36 in the ledger",
        lambda at: at.sql("INSERT INTO points (locator, id, frame, tenant) SELECT locator, 'x', 0, "
                          "tenant FROM instances LIMIT 1"),
    ),
    "other images than it was calibrated on": Fault(
        4, "drift", "warning", "60 of the latest 80 are foreign, 75.0% where α is 0.03",
        lambda at: (at.record("foreign", 60), at.record("known", 20)),
    ),
    "process killed while it wrote": Fault(
        5, "store.columns", "warning", "while it wrote 3 points",
        lambda at: (at.root / "index/columns/pending").write_bytes(bytes(48 + 3 * 16)),
    ),
    "lost ledger": Fault(
        5, "ledger", "error", "it is missing", lambda at: (at.root / "ledger.sqlite").unlink()
    ),
    "damaged audit log": Fault(
        5, "audit", "error", "",
        lambda at: overwritten(at.root / "audit.sqlite", bytes(8192), 4096),
    ),
    "lost index": Fault(
        6, "store.index", "error", "no index in", lambda at: shutil.rmtree(at.root / "index")
    ),
    "damaged ledger": Fault(
        6, "ledger", "error", "",
        lambda at: overwritten(at.root / "ledger.sqlite", bytes(8192), 4096),
    ),
    "data folder of a later version": Fault(
        7, "folder", "error", "made by a later version",
        lambda at: (at.root / "folder.json").write_text('{"format": 99}'),
    ),
    "lost data folder": Fault(
        8, "folder", "error", "is not there", lambda at: shutil.rmtree(at.root)
    ),
    "wrong setting": Fault(9, "settings", "error", "setting search.k", variables(SEARCH__K="0")),
    "password of no source": Fault(
        10, "settings", "error", "PRECEDENT_SOURCES__PACS__PASSWORD is set",
        variables(SOURCES__PACS__PASSWORD=SECRET),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def examined(well, tmp_path_factory) -> Callable[[int], tuple[int, dict[str, Any], str]]:
    """What doctor says of an installation with all faults of a group."""
    known: dict[int, tuple[int, dict[str, Any], str]] = {}

    def of(group: int) -> tuple[int, dict[str, Any], str]:
        if group not in known:
            with pytest.MonkeyPatch.context() as patch:
                to = tmp_path_factory.mktemp("ill")
                at = copied(well, to, patch)
                for fault in FAULTS.values():
                    if fault.group == group:
                        fault.plant(at)
                known[group] = at.doctor(*(["--destinations"] if group == 2 else []))
                patch.undo()
                shutil.rmtree(to)
        return known[group]

    return of


# pynetdicom leaves the socket of a node that is away to be closed by itself.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_fault_is_named_with_the_way_out(examined, name):
    fault = FAULTS[name]
    code, document, text = examined(fault.group)
    found = found_of(document, fault.check)
    assert found["level"] == fault.level
    assert fault.said in found["value"]
    assert code == int(document["errors"] > 0)
    assert SECRET not in text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("group", sorted({fault.group for fault in FAULTS.values()}))
def test_nothing_else_is_called_wrong(examined, group):
    _, document, _ = examined(group)
    planted = {fault.check for fault in FAULTS.values() if fault.group == group}
    follows = {
        1: set(),
        2: {"store.columns"},  # they are of the other model as well
        5: {"counts", "pending"},
        6: {"counts", "pending"},
        7: {"model", "store", "folder", "calibration", "precision"},
        8: {"store.index", "ledger", "audit"},
    }
    wrong = {one["check"] for one in document["findings"] if one["level"] != "ok"}
    assert wrong - planted <= follows.get(group, set())


# Beside real services


class Destinations:
    """A node that answers C-ECHO, and a web server that refuses whoever asks."""

    def __init__(self) -> None:
        ae = AE(ae_title="PACS")
        ae.add_supported_context(Verification)
        self._node = ae.start_server(("127.0.0.1", 0), block=False)

        class Refuse(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(401)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._web = HTTPServer(("127.0.0.1", 0), Refuse)
        self._thread = threading.Thread(target=self._web.serve_forever, args=(0.01,))
        self._thread.start()
        self.port, self.web_port = self._node.socket.getsockname()[1], self._web.server_port

    def close(self) -> None:
        self._node.shutdown()
        self._web.shutdown()
        self._thread.join()
        self._web.server_close()


def test_destinations_are_asked_only_when_they_may_be(installation):
    there = Destinations()
    entries = {
        "pacs": {"kind": "dicom", "ae_title": "PACS", "host": "127.0.0.1", "port": there.port},
        "web": {"kind": "stow", "url": f"http://127.0.0.1:{there.web_port}/"},
    }
    installation.variables["PRECEDENT_DESTINATIONS"] = json.dumps(entries)
    try:
        _, quietly, _ = installation.doctor()
        _, document, _ = installation.doctor("--destinations")
    finally:
        there.close()
    by_thing = {one["thing"]: one for one in document["findings"] if one["check"] == "destinations"}
    assert by_thing["destination pacs"]["value"] == "it answers C-ECHO"
    assert by_thing["destination web"]["level"] == "error"
    assert "refuses the credentials (HTTP 401)" in by_thing["destination web"]["value"]
    told = {one["value"] for one in quietly["findings"] if one["check"] == "destinations"}
    assert told == {"not asked; --destinations asks it"}


@pytest.mark.slow
def test_a_broker_is_asked_with_its_password(installation):
    with Redis("of-redis") as broker:
        installation.variables["PRECEDENT_JOBS__BROKER"] = broker.url
        _, document, _ = installation.doctor()
        assert found_of(document, "broker")["value"] == "it answers"
        installation.variables["PRECEDENT_JOBS__BROKER"] = broker.url.replace("of-redis", SECRET)
        code, document, text = installation.doctor()
    assert (code, found_of(document, "broker")["value"]) == (1, "it refuses user or password")
    assert SECRET not in text


@pytest.mark.slow
def test_a_ledger_in_postgresql_is_looked_at(postgres, installation):
    url = postgres.create_database()
    Database(url).close()
    with Database(url, AUDIT):
        pass
    installation.variables["PRECEDENT_LEDGER__URL"] = url
    code, document, _ = installation.doctor()
    assert code == 0, document
    assert found_of(document, "ledger")["level"] == "ok"
    assert found_of(document, "audit")["level"] == "ok"
    assert found_of(document, "clock")["value"] == "within 5 s of the database server"
    assert found_of(document, "counts")["value"] == "35 images in the index, 0 in the ledger"
    installation.variables["PRECEDENT_LEDGER__URL"] = url.rpartition("/")[0] + "/nowhere"
    code, document, _ = installation.doctor()
    assert (code, found_of(document, "ledger")["level"]) == (1, "error")
    assert "PRECEDENT_LEDGER__URL" in found_of(document, "ledger")["way_out"]
