"""A real Prometheus that watches a service, as docker/prometheus has it configured."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import pytest

from services.needed import package
from services.server import HOST, Server

__all__ = ["Prometheus"]

_CONFIGURED = Path(__file__).parents[2] / "docker" / "prometheus"
_CHANGED = {
    '["api-1:8000", "api-2:8000"]': '["{target}"]',
    "scrape_interval: 30s": "scrape_interval: 5s",
    "evaluation_interval: 30s": "evaluation_interval: 1s",
}


class Prometheus(Server):
    """It asks often, and has the rules and the configuration of docker/prometheus otherwise.

    Args:
        service: the address of the service.
        key: one with the scope metrics.
    """

    name = "prometheus"

    def __init__(self, service: str, key: str) -> None:
        self._binary = package("prometheus")
        super().__init__()
        text = (_CONFIGURED / "prometheus.yml").read_text()
        for of_the_file, here in _CHANGED.items():
            assert of_the_file in text, of_the_file
            text = text.replace(of_the_file, here.format(target=urlsplit(service).netloc))
        rules = (_CONFIGURED / "precedent.rules.yml").read_text()
        assert "interval: 30s" in rules
        (self.folder / "prometheus.yml").write_text(text)
        (self.folder / "precedent.rules.yml").write_text(
            rules.replace("interval: 30s", "interval: 1s")
        )
        (self.folder / "precedent.key").write_text(f"{key}\n")

    def ask(self, path: str, **parameters: str) -> Any:
        """What its HTTP API answers; the test fails where it refuses."""
        url = f"http://{HOST}:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        try:
            with urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            pytest.fail(f"{parameters or path}: {error.read().decode()}")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now, each with metric and value."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def until(self, expression: str, seconds: float = 400.0) -> list[dict[str, Any]]:
        """The series of an expression, once it has any; else the test fails."""
        end = time.monotonic() + seconds
        while not (found := self.query(expression)):
            if time.monotonic() > end:
                pytest.fail(f"{expression} has no value:\n{self.last_words()}")
            time.sleep(0.2)
        return found

    def _command(self) -> Sequence[str | Path]:
        return [
            *(self._binary, "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
            *(f"--web.listen-address={HOST}:{self.port}", "--log.level=warn"),
        ]

    def _answers(self) -> bool:
        try:
            urlopen(f"http://{HOST}:{self.port}/-/ready", timeout=2).close()
            return True
        except OSError:
            return False
