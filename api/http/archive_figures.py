"""Figures of what the service works on: the index, the ledger, the disk, the audit log, queues.

They are asked for at most every ten seconds. What of it cannot be asked is left out, and a figure
that ends with ``_up`` is 0.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from prometheus_client.metrics_core import Metric
from sqlalchemy import Connection, func, select, text

import engine
from api.http.figures import counter_family, gauge_family, info_family
from api.http.serving import Serving
from engine.errors import PrecedentError
from engine.model.manifest import SHIPPED
from engine.ood.calibration import CALIBRATION
from engine.settings import Settings
from indexer.archive import Archive
from indexer.datadir.disk_space import disk_of
from indexer.datadir.layout import DataDir
from indexer.datadir.models import model_directory
from indexer.jobs.leases import Leases
from indexer.jobs.records import JobState
from indexer.jobs.windows import is_open
from indexer.ledger.database import Database
from indexer.ledger.schema import jobs, keys, tasks

__all__ = ["ArchiveFigures", "Head"]

_ASKED_EVERY_SECONDS = 10.0
_LATELY = timedelta(days=1)
_SOON = timedelta(days=14)
_SIZES = {
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
    "postgresql": "SELECT pg_database_size(current_database())",
}


class Head(Protocol):
    """The last row of a chain of the audit log. seq: its number. hash: hex."""

    @property
    def chain(self) -> str: ...
    @property
    def seq(self) -> int: ...
    @property
    def hash(self) -> str: ...


class ArchiveFigures:
    """A collector of what the index, the ledger, the disk, the audit log and queues tell.

    serving: the archive that is served. heads: gives the ends of the audit log's chains, of those
    alone that were written to lately: each process that ever was has one; None = no log is kept.
    received: gives the bytes that wait in this process to be indexed. sendings: gives how many
    documents are under way, by what they wait for.

    Args:
        database: gives the ledger's database; None = there is none yet.
    """

    def __init__(self, settings: Settings, database: Callable[[], Database | None]) -> None:
        self.serving: Serving | None = None
        self.heads: Callable[[], Iterable[Head]] | None = None
        self.received: Callable[[], int] | None = None
        self.sendings: Callable[[], Mapping[str, int]] | None = None
        self._settings = settings
        self._data_dir = DataDir(settings.data_dir)
        self._database = database
        self._lock = threading.Lock()
        self._found: list[Metric] = []
        self._asked = -_ASKED_EVERY_SECONDS

    def describe(self) -> list[Metric]:
        """Nothing: it would ask the database before there is one."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            now = time.monotonic()
            if now - self._asked >= _ASKED_EVERY_SECONDS:
                self._found = [
                    *self._of_index(),
                    *self._of_ledger(),
                    *self._of_disk(),
                    *self._of_audit(),
                    *self._of_queues(),
                ]
                self._asked = now
            found = self._found
        yield from found

    def _of_index(self) -> Iterator[Metric]:
        if self.serving is None:
            return
        up = gauge_family("precedent_index_up")
        try:
            with self.serving.request() as (archive, _):
                points = archive.count_all()
                told = {
                    "fingerprint": archive.manifest.fingerprint,
                    "bits": str(archive.manifest.bits),
                    "precision": archive.encoder.precision,
                    "version": engine.__version__,
                }
                calibration = list(_of_calibration(archive))
        except PrecedentError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield gauge_family("precedent_points", points)
        yield info_family("precedent_model", told)
        yield from calibration

    def _of_ledger(self) -> Iterator[Metric]:
        up = gauge_family("precedent_ledger_up")
        try:
            database = self._database()
            if database is None:
                return
            leases = Leases(database, self._settings.jobs)
            backlog = leases.backlog(time.time(), self._shut())
            with database.begin(read=True) as connection:
                found = [*_of_jobs(connection), *_of_keys(connection)]
                size = connection.execute(text(_SIZES[database.dialect])).scalar_one()
        except PrecedentError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from found
        queue = gauge_family("precedent_job_queue")
        for state in ("due", "held", "later"):
            queue.add_metric([state], getattr(backlog, state))
        yield queue
        yield gauge_family(
            "precedent_job_queue_oldest_seconds",
            backlog.oldest_seconds,
        )
        yield gauge_family("precedent_ledger_bytes", size)

    def _shut(self) -> set[str]:
        """The sources that may not be read at this hour, by the clock of this process."""
        now = datetime.now().astimezone()
        sources = self._settings.sources
        return {name for name, one in sources.items() if not is_open(one.window, now)}

    def _of_disk(self) -> Iterator[Metric]:
        root = self._data_dir.root
        disk = disk_of(root)
        if disk is not None:
            for name, value in (
                ("precedent_disk_size_bytes", disk.total),
                ("precedent_disk_free_bytes", disk.free),
                ("precedent_disk_free_files", disk.files),
            ):
                if value is not None:
                    yield gauge_family(name, value)
        receive = self._settings.receive.min_free_bytes if self._settings.server.receive else 0
        yield gauge_family(
            "precedent_disk_least_free_bytes",
            max(self._settings.indexing.min_free_bytes, receive),
        )
        if self._settings.store.url is None and not self._settings.store.urls:
            try:
                size = _bytes_below(self._data_dir.index)
            except PrecedentError:
                return
            yield gauge_family("precedent_index_bytes", size)

    def _of_audit(self) -> Iterator[Metric]:
        if self.heads is None:
            return
        up = gauge_family("precedent_audit_up")
        sequence = gauge_family("precedent_audit_sequence")
        # A label would make a new series of every line that is written.
        digest = gauge_family("precedent_audit_digest")
        try:
            for head in self.heads():
                sequence.add_metric([head.chain], head.seq)
                digest.add_metric([head.chain], int(head.hash[:12], 16))
        except PrecedentError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield sequence
        yield digest

    def _of_queues(self) -> Iterator[Metric]:
        if self.received is not None:
            yield gauge_family(
                "precedent_received_waiting_bytes",
                self.received(),
            )
            yield gauge_family(
                "precedent_received_waiting_limit_bytes",
                self._settings.receive.max_waiting_bytes,
            )
        if self.sendings is not None:
            under_way = gauge_family("precedent_sendings")
            for state, count in self.sendings().items():
                under_way.add_metric([state], count)
            yield under_way


def _of_calibration(archive: Archive) -> Iterator[Metric]:
    gate = archive.gate
    yield gauge_family(
        "precedent_calibration_images",
        0 if gate is None else gate.images,
    )
    if gate is None:
        return
    yield gauge_family(
        "precedent_calibration_alpha",
        gate.alpha,
    )
    folder = model_directory(archive.settings)
    if folder != SHIPPED:  # whose date would be that of the installation
        try:
            made = (folder / CALIBRATION).stat().st_mtime
        except OSError:
            return
        yield gauge_family(
            "precedent_calibration_timestamp_seconds",
            made,
        )


def _of_jobs(connection: Connection) -> Iterator[Metric]:
    c, t = jobs.c, tasks.c
    found = gauge_family("precedent_jobs")
    by_job = select(c.kind, c.state, func.count()).group_by(c.kind, c.state)
    for kind, state, count in connection.execute(by_job):
        found.add_metric([kind, state], count)
    yield found
    since = (datetime.now(UTC) - _LATELY).isoformat(timespec="seconds")
    failed = select(func.count()).where(c.state == JobState.FAILED, c.finished_at >= since)
    yield gauge_family(
        "precedent_jobs_failed_lately",
        connection.execute(failed).scalar_one(),
    )
    by_task = connection.execute(
        select(
            t.state,
            func.count(),
            func.sum(t.total),
            func.sum(t.done),
            func.sum(t.points),
            func.sum(t.done - t.indexed),
        ).group_by(t.state)
    ).all()
    chunks = gauge_family("precedent_job_chunks")
    for state, count, *_ in by_task:
        chunks.add_metric([state], count)
    yield chunks
    for name, column in (
        ("precedent_job_instances_planned", 2),
        ("precedent_job_instances", 3),
        ("precedent_job_points", 4),
        ("precedent_job_instances_refused", 5),
    ):
        yield counter_family(name, sum(int(row[column] or 0) for row in by_task))


def _of_keys(connection: Connection) -> Iterator[Metric]:
    c, now = keys.c, datetime.now(UTC)
    ending = select(func.count()).where(
        c.revoked_at.is_(None),
        c.expires_at > now.isoformat(),
        c.expires_at <= (now + _SOON).isoformat(),
    )
    yield gauge_family(
        "precedent_keys_expiring",
        connection.execute(ending).scalar_one(),
    )


def _bytes_below(folder: Path) -> int:
    """What the files of a folder take on the disk, which for those with holes is less than their
    length. Files that go meanwhile do not count."""
    total, left = 0, [folder]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue
    return total
