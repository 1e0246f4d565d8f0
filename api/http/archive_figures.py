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

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from sqlalchemy import Connection, func, select, text

import engine
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
        up = GaugeMetricFamily("precedent_index_up", "Whether the index can be searched.")
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
        yield GaugeMetricFamily("precedent_points", "Images in the index.", points)
        yield InfoMetricFamily("precedent_model", "The model of the index in force.", told)
        yield from calibration

    def _of_ledger(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("precedent_ledger_up", "Whether the ledger can be asked.")
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
        queue = GaugeMetricFamily(
            "precedent_job_queue",
            "Tasks of running jobs, that a worker could take (due), has (held), or has to leave.",
            labels=["state"],
        )
        for state in ("due", "held", "later"):
            queue.add_metric([state], getattr(backlog, state))
        yield queue
        yield GaugeMetricFamily(
            "precedent_job_queue_oldest_seconds",
            "For how long a worker could have taken the task that is due for longest.",
            backlog.oldest_seconds,
        )
        yield GaugeMetricFamily("precedent_ledger_bytes", "Size of the ledger's database.", size)

    def _shut(self) -> set[str]:
        """The sources that may not be read at this hour, by the clock of this process."""
        now = datetime.now().astimezone()
        sources = self._settings.sources
        return {name for name, one in sources.items() if not is_open(one.window, now)}

    def _of_disk(self) -> Iterator[Metric]:
        root = self._data_dir.root
        disk = disk_of(root)
        if disk is not None:
            for name, what, value in (
                ("size_bytes", "Size of the disk of the data folder.", disk.total),
                ("free_bytes", "What is free on the disk of the data folder.", disk.free),
                ("free_files", "For how many more files that disk has room.", disk.files),
            ):
                if value is not None:
                    yield GaugeMetricFamily(f"precedent_disk_{name}", what, value)
        receive = self._settings.receive.min_free_bytes if self._settings.server.receive else 0
        yield GaugeMetricFamily(
            "precedent_disk_least_free_bytes",
            "Below so much nothing is indexed or received.",
            max(self._settings.indexing.min_free_bytes, receive),
        )
        if self._settings.store.url is None and not self._settings.store.urls:
            try:
                size = _bytes_below(self._data_dir.index)
            except PrecedentError:
                return
            yield GaugeMetricFamily(
                "precedent_index_bytes", "What the embedded index takes on the disk.", size
            )

    def _of_audit(self) -> Iterator[Metric]:
        if self.heads is None:
            return
        up = GaugeMetricFamily("precedent_audit_up", "Whether the audit log can be read.")
        sequence = GaugeMetricFamily(
            "precedent_audit_sequence", "Last number of a chain of the audit log.", labels=["chain"]
        )
        # A label would make a new series of every line that is written.
        digest = GaugeMetricFamily(
            "precedent_audit_digest",
            "The first 48 bits of the hash of a chain's last line.",
            labels=["chain"],
        )
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
            yield GaugeMetricFamily(
                "precedent_received_waiting_bytes",
                "What this process has received and not indexed yet.",
                self.received(),
            )
            yield GaugeMetricFamily(
                "precedent_received_waiting_limit_bytes",
                "The setting receive.max_waiting_bytes.",
                self._settings.receive.max_waiting_bytes,
            )
        if self.sendings is not None:
            under_way = GaugeMetricFamily(
                "precedent_sendings",
                "Documents that wait for an attempt, or for an answer on storage commitment.",
                labels=["state"],
            )
            for state, count in self.sendings().items():
                under_way.add_metric([state], count)
            yield under_way


def _of_calibration(archive: Archive) -> Iterator[Metric]:
    gate = archive.gate
    yield GaugeMetricFamily(
        "precedent_calibration_images",
        "On how many images queries are judged; 0 = they are not.",
        0 if gate is None else gate.images,
    )
    if gate is None:
        return
    yield GaugeMetricFamily(
        "precedent_calibration_alpha",
        "Share of queries like those images that are called foreign.",
        gate.alpha,
    )
    folder = model_directory(archive.settings)
    if folder != SHIPPED:  # whose date would be that of the installation
        try:
            made = (folder / CALIBRATION).stat().st_mtime
        except OSError:
            return
        yield GaugeMetricFamily(
            "precedent_calibration_timestamp_seconds",
            "When the calibration was made; the shipped one does not say.",
            made,
        )


def _of_jobs(connection: Connection) -> Iterator[Metric]:
    c, t = jobs.c, tasks.c
    found = GaugeMetricFamily("precedent_jobs", "Jobs.", labels=["kind", "state"])
    by_job = select(c.kind, c.state, func.count()).group_by(c.kind, c.state)
    for kind, state, count in connection.execute(by_job):
        found.add_metric([kind, state], count)
    yield found
    since = (datetime.now(UTC) - _LATELY).isoformat(timespec="seconds")
    failed = select(func.count()).where(c.state == JobState.FAILED, c.finished_at >= since)
    yield GaugeMetricFamily(
        "precedent_jobs_failed_lately",
        "Jobs that ended as failed within a day, and were not taken up again.",
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
    chunks = GaugeMetricFamily("precedent_job_chunks", "Chunks of jobs.", labels=["state"])
    for state, count, *_ in by_task:
        chunks.add_metric([state], count)
    yield chunks
    for name, what, column in (
        ("precedent_job_instances_planned", "Instances that jobs are to read.", 2),
        ("precedent_job_instances", "Instances that jobs have read.", 3),
        ("precedent_job_points", "Images that jobs have brought into the index.", 4),
        ("precedent_job_instances_refused", "Instances that jobs have refused.", 5),
    ):
        yield CounterMetricFamily(name, what, sum(int(row[column] or 0) for row in by_task))


def _of_keys(connection: Connection) -> Iterator[Metric]:
    c, now = keys.c, datetime.now(UTC)
    ending = select(func.count()).where(
        c.revoked_at.is_(None),
        c.expires_at > now.isoformat(),
        c.expires_at <= (now + _SOON).isoformat(),
    )
    yield GaugeMetricFamily(
        "precedent_keys_expiring",
        "API keys that expire within two weeks.",
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
