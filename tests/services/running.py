"""The HTTP service on a port of its own, in a thread of the test."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from api.cli.serve import listening
from api.http.running import server_config
from engine.settings import ServerSettings

__all__ = ["served"]


@contextmanager
def served(
    app: FastAPI, server_settings: ServerSettings | None = None, port: int = 0
) -> Iterator[str]:
    """The address of a server that runs ``app`` in a thread. port: 0 = a free one."""
    listener = listening("127.0.0.1", port)
    server = uvicorn.Server(server_config(app, server_settings or ServerSettings()))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.05)
        assert server.started
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()
