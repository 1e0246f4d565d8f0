"""The log of the service: lines for people, or JSON for machines, each with its request.

Everything that logs in this process goes through it. Of exceptions it has type and place: their
messages may quote a request.
"""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from api.http.observing import current
from engine.settings import ServerSettings

__all__ = ["configure_logs"]

_OURS = ("api", "engine", "indexer", "precedent")
_FIELDS = {"method", "status", "milliseconds", "address", "code", "verdict"}
_Event = MutableMapping[str, Any]


def configure_logs(server: ServerSettings, stream: TextIO | None = None) -> logging.Handler:
    """Sends what is logged to ``stream`` (standard error when None), as the settings say; returns
    the handler that does."""
    stream = sys.stderr if stream is None else stream
    renderer: structlog.typing.Processor
    if server.log_format == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty())
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            _with_request,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(allow=_FIELDS),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _place_of_exception,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    # Those of other kinds are not ours to remove.
    others = [one for one in root.handlers if type(one) is not logging.StreamHandler]
    root.handlers[:] = [*others, handler]
    for name in _OURS:
        logging.getLogger(name).setLevel(server.log_level.upper())
    return handler


def _with_request(_: Any, __: str, event: _Event) -> _Event:
    seen = current()
    return event if seen is None else {**event, **seen.told()}


def _place_of_exception(_: Any, __: str, event: _Event) -> _Event:
    error = event.pop("exc_info", None)
    record: logging.LogRecord | None = event.get("_record")
    if record is not None and record.exc_info:
        error = record.exc_info
        # Or the handler would add the message after all.
        record.exc_info = record.exc_text = None
    if isinstance(error, tuple) and error[0] is not None:
        event["error"] = error[0].__name__
        event["places"] = "".join(traceback.format_tb(error[2]))
    return event
