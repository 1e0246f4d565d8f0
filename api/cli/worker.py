"""``precedent worker``: a process that indexes the instances of jobs."""

import logging
import signal
from typing import Annotated

import typer

from api.cli.options import DataDirOption, ModelOption
from engine.errors import JobError
from engine.settings import load_settings

__all__ = ["worker"]


def worker(
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, help="Tasks at once; each takes a model's memory.")
    ] = 1,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End when no job has anything left to do.")
    ] = False,
    data_dir: DataDirOption = None,
    model: ModelOption = None,
) -> int:
    """Work on jobs until stopped: Ctrl-C or SIGTERM ends it after the instances it has begun.

    With a broker (PRECEDENT_JOBS__BROKER), tasks come from the broker, otherwise from the ledger.
    """
    logging.getLogger("indexer").setLevel(logging.INFO)
    settings = load_settings(data_dir=data_dir, model=model)
    if settings.jobs.broker is not None and not until_idle:
        from indexer.jobs.dispatch import serve

        return serve(settings, concurrency=concurrency)
    from indexer.jobs.polling import serve as poll

    if concurrency > 1:
        raise JobError(
            "without a broker a worker does one task at a time; start several workers, or name "
            "a broker in PRECEDENT_JOBS__BROKER"
        )
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stopped.append(got))
    poll(settings, until_idle=until_idle, stopping=lambda: bool(stopped))
    return 0
