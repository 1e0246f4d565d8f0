"""A client of the application, as a program on the same machine is one of an open service."""

from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

__all__ = ["LoopbackClient"]


class LoopbackClient(TestClient):
    """Calls the application without a network, from a loopback address by a loopback name."""

    def __init__(self, app: FastAPI, **options: Any) -> None:
        super().__init__(app, base_url="http://localhost", client=("127.0.0.1", 50000), **options)
