"""What the tests of the deployment share: compose.yaml as it is read, and commands as typed."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import typer
import yaml

from api.cli.main import app
from engine.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"

COMPOSE_ONLY = {
    "PRECEDENT_BIND",
    "PRECEDENT_CONFIG_FILE",
    "PRECEDENT_GPU_IMAGE",
    "PRECEDENT_IMAGE",
    "PRECEDENT_PORT",
    "PRECEDENT_RECEIVE_BIND",
    "PRECEDENT_RECEIVE_PORT",
}
"""Variables of compose.yaml that no container gets to see."""

_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::([-?])([^}]*))?\})")


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """A compose file, its variables not replaced, with what its services extend."""
    document: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    services = document["services"]
    for service, own in services.items():
        if (base := own.pop("extends", None)) is not None:
            there = compose(base["file"])["services"][base["service"]]
            services[service] = _extended(there, own)
    return document


def _extended(there: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A service that extends another one: tables are joined, and all else of its own comes in
    place of the other's. Lists, which Compose joins by rules of their own, may not be in both."""
    both = there.keys() & own.keys()
    assert not {name for name in both if isinstance(own[name], list)}
    joined = {name: there[name] | own[name] for name in both if isinstance(own[name], dict)}
    return there | own | joined


def variables(text: str) -> list[tuple[str, str, str]]:
    """Name, operator ("-", "?" or none) and default or message of each ``${…}``."""
    return [(m[2], m[3] or "", m[4] or "") for m in _VARIABLE.finditer(text) if m[2]]


def interpolated(document: Any, values: Mapping[str, str]) -> Any:
    """A compose file with its variables replaced. Raises KeyError for a required one."""
    if isinstance(document, dict):
        return {key: interpolated(value, values) for key, value in document.items()}
    if isinstance(document, list):
        return [interpolated(value, values) for value in document]
    if not isinstance(document, str):
        return document

    def replaced(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        value = values.get(match[2], "")
        if not value and match[3] != "-":
            raise KeyError(match[2])
        return value or match[4]

    return _VARIABLE.sub(replaced, document)


def example_variables(name: str = ".env.example") -> tuple[dict[str, str], set[str]]:
    """An example of variables: those that it sets, and those that are commented out."""
    lines = (DOCKER / name).read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    offered = {m[1] for line in lines if (m := re.match(r"# (\w+)=", line))}
    return given, offered


def check_command(words: Sequence[str]) -> None:
    """Fails unless the command line takes these words after "precedent"."""
    command: Any = typer.main.get_command(app)
    left = list(words)
    name = "precedent"
    while hasattr(command, "get_command"):
        assert left, f"{' '.join(words)!r} names no command"
        name = left.pop(0)
        command = command.get_command(None, name)
        assert command is not None, f"there is no command {name!r} in {' '.join(words)!r}"
    command.make_context(name, left)


def is_setting(variable: str) -> bool:
    """Whether a PRECEDENT_… variable is one that the settings look at."""
    if variable == "PRECEDENT_CONFIG":
        return True
    secret = variable.removesuffix("_FILE")
    if secret not in (variable, "PRECEDENT_CONFIG") and is_setting(secret):
        return True
    group, *rest = variable.removeprefix("PRECEDENT_").lower().split("__")
    if group not in Settings.model_fields:
        return False
    kind: Any = Settings.model_fields[group].annotation
    if group == "sources":
        return len(rest) == 2
    for name in rest:
        fields = getattr(kind, "model_fields", {})
        if name not in fields:
            return False
        kind = fields[name].annotation
    return True


@contextmanager
def answering(path: str, status: int) -> Iterator[int]:
    """The port of a server that answers ``path`` with this status, and knows no other."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == path else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
