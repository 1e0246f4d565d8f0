"""A server that, when it is told to end, first says that no further requests should come."""

import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

__all__ = ["DrainingServer"]


class DrainingServer(uvicorn.Server):
    """Finishes the requests that it has, and ends.

    Args:
        config: of the server. app: the service, whose readiness is told.
        seconds: for how long after SIGTERM or Ctrl-C it still takes requests, while ``/readyz``
            answers 503, so that whoever distributes requests notices. A second signal ends that.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, seconds: float = 0.0) -> None:
        super().__init__(config)
        self._state = app.state
        self._seconds = seconds
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if (readiness := getattr(self._state, "readiness", None)) is not None:
            # Ends the streams that would go on for minutes, too.
            readiness.drain()
        if self._told or self._seconds <= 0:
            super().handle_exit(sig, frame)
            return
        self._told = True
        later = threading.Timer(self._seconds, super().handle_exit, (sig, frame))
        later.daemon = True
        later.start()
