"""Workers on Celery: a message broker tells workers on several machines which task to do.

Tasks are kept in the ledger; a message only names one. Every worker checks the ledger from time
to time, so a message that was lost with a broker or a worker is sent again.
"""

import logging
import multiprocessing
import os
import re
import socket
import time
from collections.abc import Callable
from importlib.util import find_spec
from threading import Event, Thread
from typing import Any

from celery import Celery, Task as CeleryTask, signals
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from engine.errors import JobError, LedgerError
from engine.extras import install_command
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.jobs.leases import Leases
from indexer.jobs.records import MOST_URGENT, Due
from indexer.jobs.runner import JobRunner
from indexer.ledger.database import Database, open_database

__all__ = ["Dispatcher", "celery_app", "check_broker", "refuses", "serve"]

_log = logging.getLogger(__name__)

_QUEUE = "precedent"
_TASK = "precedent.run"
# Redis redelivers a message that is not acknowledged within this time. Chunks take minutes; the
# task of a dead worker is found much sooner, by its lapsed lease.
_VISIBILITY_SECONDS = 6 * 3600
_REFUSALS = ("AccessRefused", "AuthenticationError", "NoPermissionError", "NotAllowed")
_DENIED = re.compile("WRONGPASS|NOAUTH|invalid username-password")
# A broker that was restarted is noticed only when sending over the old connection fails.
_ONCE_MORE = {"max_retries": 1, "interval_start": 0.0}


def celery_app(settings: Settings) -> Celery:
    """The Celery application of these settings, without tasks.

    Raises:
        JobError: the settings name no broker.
    """
    if settings.jobs.broker is None:
        raise JobError(
            "no message broker is set; name one in PRECEDENT_JOBS__BROKER, or let workers take "
            "tasks from the ledger"
        )
    url = settings.jobs.broker.get_secret_value()
    if _is_redis(url) and find_spec("redis") is None:
        raise JobError(
            "a broker on Redis or Valkey needs the package redis, which is not installed; "
            + install_command("server")
        )
    app = Celery("precedent", broker=url, set_as_current=False)
    app.conf.update(
        task_queues=[Queue(_QUEUE, max_priority=MOST_URGENT)],  # type: ignore[no-untyped-call]
        task_default_queue=_QUEUE,
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
        broker_transport_options=(
            {
                "visibility_timeout": _VISIBILITY_SECONDS,
                "priority_steps": list(range(MOST_URGENT + 1)),
                "queue_order_strategy": "priority",
                "socket_timeout": 30,
                "socket_connect_timeout": 5,
                "socket_keepalive": True,
            }
            if _is_redis(url)
            else {"confirm_publish": True}
        ),
    )
    return app


def check_broker(settings: Settings) -> None:
    """Checks that the broker of the settings, if they name one, takes their user and password.

    One that does not answer is not waited for here: workers wait for it.

    Raises:
        JobError: it refuses them.
    """
    if settings.jobs.broker is None:
        return
    # One that refused is asked once more; two seconds later would be for one that is starting.
    at_once = {"interval_start": 0, "interval_step": 0}
    with celery_app(settings).connection_for_write(transport_options=at_once) as connection:
        try:
            connection.connect()
            connection.channel().close()
        except Exception as error:  # of amqp, redis and kombu, which have no base in common
            if not refuses(error):
                return
            raise JobError(
                f"the message broker refuses user or password ({type(error).__name__}); correct "
                "them in PRECEDENT_JOBS__BROKER"
            ) from None


def refuses(error: Exception) -> bool:
    """Whether a broker that raises this refuses user or password, rather than being away."""
    return type(error).__name__ in _REFUSALS or _DENIED.search(str(error)) is not None


class Dispatcher:
    """Sends the broker messages for due tasks of the ledger, a bounded number at a time."""

    def __init__(self, settings: Settings, database: Database, app: Celery) -> None:
        self._runner_sees = JobRunner(settings, database, "dispatcher").due
        self._leases = Leases(database, settings.jobs)
        self._most = settings.jobs.queued
        self._app = app
        self._redis = _is_redis(str(app.conf.broker_url))

    def dispatch(self) -> int:
        """Sends a message for each task that is due; returns how many were sent.

        Raises:
            LedgerError: the ledger cannot be reached. JobError: the broker cannot.
        """
        free = self._most - self._leases.queued()
        sent = 0
        for due in self._runner_sees(self._most) if free > 0 else []:
            if sent == free:
                break
            self._send(due)
            self._leases.mark_queued(due.job, due.number, time.time())
            sent += 1
        return sent

    def _send(self, due: Due) -> None:
        # In Redis a low number is urgent, in AMQP a high one.
        priority = MOST_URGENT - due.priority if self._redis else due.priority
        try:
            self._app.send_task(
                _TASK,
                args=(due.job, due.number),
                queue=_QUEUE,
                priority=priority,
                retry=True,
                retry_policy=_ONCE_MORE,
            )
        except OperationalError as error:
            raise JobError(
                f"the message broker does not answer ({type(error.__cause__ or error).__name__}); "
                "the task stays in the ledger, and workers send it when the broker is back"
            ) from error


class _Stop:
    """A flag that a worker's main process sets and its child processes read."""

    def __init__(self) -> None:
        self._event = multiprocessing.get_context("fork").Event()

    def set(self, **_: Any) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()


def serve(settings: Settings, *, concurrency: int, level: int = logging.INFO) -> int:
    """Runs a worker for the broker until a signal stops it; returns the exit code.

    Args:
        concurrency: how many tasks run at once, each in its own process with its own model.

    Raises:
        JobError: the settings name no broker, or it refuses their user or password.
    """
    check_broker(settings)
    app = celery_app(settings)
    stop = _Stop()
    _register(app, settings, stop)
    ended = Event()
    signals.worker_shutting_down.connect(stop.set, weak=False)
    ticker = Thread(target=_tick, args=(settings, app, ended), name="dispatcher", daemon=True)
    signals.worker_ready.connect(lambda **_: ticker.start(), weak=False)
    worker = app.Worker(
        pool="prefork",
        concurrency=concurrency,
        hostname=f"precedent-{os.getpid()}@{socket.gethostname()}",
        loglevel=level,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
        quiet=True,
    )
    worker.start()
    ended.set()
    return int(worker.exitcode or 0)


def _register(app: Celery, settings: Settings, stop: _Stop) -> None:
    class Running(CeleryTask):  # type: ignore[misc]  # celery has no types
        """Opens the ledger and the archive once for each process that does tasks."""

        abstract = True
        _opened: tuple[JobRunner, Dispatcher] | None = None

        def opened(self) -> tuple[JobRunner, Dispatcher]:
            if self._opened is None:
                database = open_database(settings, DataDir(settings.data_dir).ledger)
                name = f"{socket.gethostname()}:{os.getpid()}"
                runner = JobRunner(settings, database, name, stopping=stop.is_set)
                self._opened = runner, Dispatcher(settings, database, app)
            return self._opened

    @app.task(name=_TASK, bind=True, base=Running)  # type: ignore[untyped-decorator]
    def run(self: Running, job: int, number: int) -> None:
        if stop.is_set():
            return
        runner, dispatcher = self.opened()
        runner.run(job, number)
        if not stop.is_set():
            _quietly(dispatcher.dispatch)


def _tick(settings: Settings, app: Celery, ended: Event) -> None:
    """Dispatches due tasks, also those that other workers lost, until the worker has ended."""
    with open_database(settings, DataDir(settings.data_dir).ledger) as database:
        dispatcher = Dispatcher(settings, database, app)
        while True:
            _quietly(dispatcher.dispatch)
            if ended.wait(settings.jobs.heartbeat_seconds):
                return


def _quietly(dispatch: Callable[[], int]) -> None:
    try:
        dispatch()
    except (LedgerError, JobError) as error:
        _log.warning("%s", error)


def _is_redis(url: str) -> bool:
    return url.startswith(("redis", "valkey", "sentinel"))
