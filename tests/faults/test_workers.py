"""Two workers on one job, while what they need fails: nothing is lost, nothing is different.

The parts are real: Celery workers in processes of their own, Redis or RabbitMQ, PostgreSQL. The
store is the loopback stand-in of the contract tests.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract.loopback import Loopback
from PIL import Image
from services.brokers import Broker, RabbitMQ, Redis
from services.commands import CommandProcess
from services.postgres import Postgres

from engine.model.checkpoint import save_checkpoint
from engine.model.config import small_network
from engine.model.network import HashingNetwork
from engine.model.preprocess import Preprocess
from engine.records import Point
from engine.settings import JobSettings, LedgerSettings, Settings, StoreSettings
from engine.store.base import Filter
from indexer.archive import Archive
from indexer.jobs.dispatch import Dispatcher, celery_app
from indexer.jobs.ledger import JobLedger
from indexer.jobs.records import JobOptions
from indexer.ledger.database import Database
from indexer.sources.opening import SourceSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

INSTANCES = 1200
WORKERS = 2
PATIENCE_SECONDS = 300
"""For a job to end after a fault: many times what the work takes."""
AT = "2026-01-01T00:00:00+00:00"


class Scene:
    """A deployment with an archive of small pictures."""

    def __init__(self, root: Path, store: Loopback, port: int, broker: Broker, ledger: str) -> None:
        self.root = root
        self.store = store
        self.broker = broker
        self.workers: list[CommandProcess] = []
        self.settings = Settings(
            data_dir=root / "data",
            model=root.parent / "model",
            pseudonym_key="k" * 32,
            ledger=LedgerSettings(url=ledger),
            store=StoreSettings(
                url=f"http://127.0.0.1:{port}", collection=root.name, prefer_grpc=False, attempts=2
            ),
            jobs=JobSettings(
                broker=broker.url,
                chunk=100,
                attempts=50,
                backoff_seconds=0.5,
                heartbeat_seconds=0.5,
                lapse_seconds=4.0,
            ),
        )

    def environment(self) -> dict[str, str]:
        s = self.settings
        assert s.ledger.url is not None
        assert s.jobs.broker is not None
        named = {
            "DATA_DIR": s.data_dir,
            "MODEL": s.model,
            "PSEUDONYM_KEY": "k" * 32,
            "LEDGER__URL": s.ledger.url.get_secret_value(),
            "STORE__URL": s.store.url,
            "STORE__COLLECTION": s.store.collection,
            "STORE__PREFER_GRPC": "false",
            "STORE__ATTEMPTS": s.store.attempts,
            "JOBS__BROKER": s.jobs.broker.get_secret_value(),
            "JOBS__CHUNK": s.jobs.chunk,
            "JOBS__ATTEMPTS": s.jobs.attempts,
            "JOBS__BACKOFF_SECONDS": s.jobs.backoff_seconds,
            "JOBS__HEARTBEAT_SECONDS": s.jobs.heartbeat_seconds,
            "JOBS__LAPSE_SECONDS": s.jobs.lapse_seconds,
            "INDEXING__READERS": 1,
            "INDEXING__ENCODERS": 1,
            "INDEXING__COMMIT_EVERY": 40,
        }
        ours = {f"PRECEDENT_{name}": str(value) for name, value in named.items()}
        return {**os.environ, **ours, "OMP_NUM_THREADS": "1"}

    def start_worker(self) -> CommandProcess:
        with (self.root / "workers.log").open("ab") as log:
            worker = CommandProcess(
                ["worker"],
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def end_workers(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()

    @contextmanager
    def jobs(self) -> Iterator[JobLedger]:
        assert self.settings.ledger.url is not None
        with Database(self.settings.ledger.url.get_secret_value()) as database:
            yield JobLedger(database.of("default"))

    def submit(self, files: Path) -> int:
        assert self.settings.ledger.url is not None
        with Database(self.settings.ledger.url.get_secret_value()) as database:
            job = JobLedger(database.of("default")).submit(
                SourceSpec.asked([files], None), JobOptions(), at=AT
            )
            Dispatcher(self.settings, database, celery_app(self.settings)).dispatch()
        return job

    def wait(self, until: Callable[[Any], bool], job: int) -> Any:
        ends = time.monotonic() + PATIENCE_SECONDS
        with self.jobs() as jobs:
            while not until(told := jobs.summary(job, time.time())):
                if time.monotonic() > ends:
                    log = (self.root / "workers.log").read_text(errors="replace")[-3000:]
                    pytest.fail(f"still {told}\n{log}")
                time.sleep(0.05)
        return told

    def points(self) -> dict[str, Point]:
        with Archive(self.settings) as archive:
            return {point.id: point for point in archive.store.scroll(Filter(), with_z=True)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures; some twice, some no pictures at all."""
    root = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(3)
    for number in range(INSTANCES):
        path = root / f"{number % 20:02}" / f"{number:05}.png"
        path.parent.mkdir(exist_ok=True)
        if number % 100 == 7:
            path.write_bytes(b"no picture %d" % number)
        elif number % 100 == 9:
            first = root / "08" / f"{number - 1:05}.png"
            path.write_bytes(first.read_bytes())
        else:
            Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def new_broker() -> Iterator[Callable[[type[Broker]], Broker]]:
    """Of each kind one, for all scenes."""
    with ExitStack() as running:
        made: dict[type[Broker], Broker] = {}

        def make(kind: type[Broker]) -> Broker:
            if kind not in made:
                made[kind] = running.enter_context(kind())
            return made[kind]

        yield make


@pytest.fixture(scope="module")
def new_scene(
    tmp_path_factory: pytest.TempPathFactory,
    postgres: Postgres,
    new_broker: Callable[[type[Broker]], Broker],
) -> Iterator[Callable[..., Scene]]:
    base = tmp_path_factory.mktemp("scenes")
    torch.manual_seed(0)
    config, preprocess = small_network(0, tower="timm:test_resnet"), Preprocess(size=64)
    network = HashingNetwork(config, preprocess).eval()
    save_checkpoint(base / "model", network, config, preprocess, (), {})
    store = Loopback()
    made: list[Scene] = []
    with store.rest() as port:

        def make(kind: type[Broker] = Redis) -> Scene:
            root = base / f"scene{len(made)}"
            root.mkdir()
            made.append(Scene(root, store, port, new_broker(kind), postgres.create_database()))
            return made[-1]

        try:
            yield make
        finally:
            store.faults.clear()
            for scene in made:
                scene.end_workers()


def accounted(told: Any) -> dict[str, Any]:
    return {
        "state": told.state,
        "discovered": told.discovered,
        "done": told.done,
        "indexed": told.indexed,
        "refused": told.refused,
    }


EXPECTED = {
    "state": "finished",
    "discovered": INSTANCES,
    "done": INSTANCES,
    "indexed": INSTANCES - INSTANCES // 100,
    "refused": {"not-an-image": INSTANCES // 100},
}


def ended(told: Any) -> bool:
    return told.state != "running"


@pytest.fixture(scope="module")
def undisturbed(new_scene: Callable[..., Scene], files: Path) -> dict[str, Point]:
    scene = new_scene()
    job = scene.submit(files)
    for _ in range(WORKERS):
        scene.start_worker()
    assert accounted(scene.wait(ended, job)) == EXPECTED
    with scene.jobs() as jobs:
        fates = Counter(one.fate for one in jobs.fates(job))
    twice = INSTANCES // 100
    assert fates["indexed"] + fates["duplicate"] == EXPECTED["indexed"]
    assert fates["refused"] == twice
    scene.end_workers()
    points = scene.points()
    assert len(points) == EXPECTED["indexed"] - twice
    return points


def kill_a_worker(scene: Scene, chance: random.Random) -> None:
    worker = chance.choice(scene.workers)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def kill_the_broker(scene: Scene, chance: random.Random) -> None:
    scene.broker.kill()
    time.sleep(chance.uniform(1, 4))
    scene.broker.start()


def stop_the_broker(scene: Scene, chance: random.Random) -> None:
    """In order, and for longer than a lease lasts."""
    scene.broker.stop()
    time.sleep(chance.uniform(6, 9))
    scene.broker.start()


def nothing(scene: Scene, chance: random.Random) -> None:
    """All goes well."""


def stop_the_store(scene: Scene, chance: random.Random) -> None:
    scene.store.faults.extend([(0, {})] * 100_000)
    time.sleep(8)  # for longer than a lease lasts
    scene.store.faults.clear()


def same(points: dict[str, Point], others: dict[str, Point]) -> None:
    """Equal but for the time, and for the last bits of a vector: an image that is encoded
    again goes with other images, and sums in bfloat16 may come out in another order."""
    assert points.keys() == others.keys()
    for key, point in points.items():
        other = others[key]
        assert point.record == other.record
        assert point.code.tobytes() == other.code.tobytes()
        assert point.z is not None
        assert other.z is not None
        assert float(point.z @ other.z) > 0.9999


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (Redis, kill_a_worker),
        (Redis, kill_the_broker),
        (Redis, stop_the_store),
        (RabbitMQ, nothing),
        (RabbitMQ, kill_a_worker),
        (RabbitMQ, kill_the_broker),
        (RabbitMQ, stop_the_broker),
    ],
)
def test_a_job_ends_by_itself_and_the_same_after(
    kind: type[Broker],
    fault: Callable[[Scene, random.Random], None],
    new_scene: Callable[..., Scene],
    files: Path,
    undisturbed: dict[str, Point],
) -> None:
    scene = new_scene(kind)
    chance = random.Random(fault.__name__)
    job = scene.submit(files)
    for _ in range(WORKERS):
        scene.start_worker()
    at = chance.randrange(100, INSTANCES // 2)
    assert not ended(scene.wait(lambda told: told.done >= at or ended(told), job))
    fault(scene, chance)
    assert accounted(scene.wait(ended, job)) == EXPECTED
    scene.end_workers()
    same(scene.points(), undisturbed)
    thumbnails = {path.stem for path in (scene.settings.data_dir / "thumbnails").rglob("*.jpg")}
    assert thumbnails == set(undisturbed)
