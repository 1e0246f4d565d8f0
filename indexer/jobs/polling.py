"""A worker without a broker: it polls the ledger for tasks."""

import logging
import os
import socket
import time
from collections.abc import Callable

from engine.errors import LedgerError
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.jobs.runner import JobRunner
from indexer.ledger.database import open_database

__all__ = ["serve"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_LOOKED_AT = 32


def serve(settings: Settings, *, until_idle: bool, stopping: Callable[[], bool]) -> None:
    """Runs a worker until ``stopping()`` or, with ``until_idle``, until no job has tasks left.

    Raises:
        PrecedentError: the model, the ledger or the store cannot be opened at the start.
    """
    name = f"{socket.gethostname()}:{os.getpid()}"
    with (
        open_database(settings, DataDir(settings.data_dir).ledger) as database,
        JobRunner(settings, database, name, stopping=stopping) as runner,
    ):
        while not stopping():
            try:
                due = runner.due(_LOOKED_AT)
                if any(runner.run(one.job, one.number) for one in due):
                    continue
                if until_idle and not runner.leases.unfinished():
                    return
            except LedgerError as error:
                _log.warning("%s", error)
            time.sleep(_LOOK_SECONDS)
