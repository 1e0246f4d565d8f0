"""docker/nginx.conf and docker/Caddyfile, run by a real nginx and a real Caddy: TLS, what they say
of clients, uploads, events, and two replicas."""

import asyncio
import json
import ssl
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import httpx2
import pytest
import uvicorn
from deployed import DOCKER, compose
from services.needed import package, program
from services.nginx import self_signed
from services.server import HOST, Server

from api.http.proxies import Proxies

pytestmark = pytest.mark.slow


class Proxy(Server):
    """A proxy with a certificate made for it, configured as a file of docker/ has it."""

    stop_seconds = 20.0
    file: str
    notices_seconds = 0.0
    """For how long an upload may still meet a dead replica."""

    def __init__(self, replicas: Sequence[str]) -> None:
        self._binary = package(self.name)
        openssl = program("openssl", "openssl")
        super().__init__()
        key, certificate = self.folder / "tls_key", self.folder / "tls_certificate"
        self_signed(openssl, key, certificate)
        text = (DOCKER / self.file).read_text()
        changed = {
            **self._changed(),
            "/run/secrets": str(self.folder),
            **{f"api-{i + 1}:8000": one for i, one in enumerate(replicas)},
        }
        for of_the_file, here in changed.items():
            assert of_the_file in text, of_the_file
            text = text.replace(of_the_file, here)
        (self.folder / self.file).write_text(text)
        self.url = f"https://localhost:{self.port}"
        self.trust = ssl.create_default_context(cafile=certificate)

    @abstractmethod
    def _changed(self) -> Mapping[str, str]:
        """What a container has that this machine has not, and what comes in its place."""

    def _answers(self) -> bool:
        try:
            urlopen(self.url, context=self.trust, timeout=1).close()
        except HTTPError:
            return True
        except OSError:
            return False
        return True


class ClusterProxy(Proxy):
    """The proxy of the cluster."""

    name, file = "nginx", "nginx.conf"

    def _changed(self) -> Mapping[str, str]:
        return {
            "listen 8443 ssl;": f"listen {HOST}:{self.port} ssl;",
            "/tmp/": f"{self.folder}/",
            "/dev/stderr": "stderr",
        }

    def _command(self) -> Sequence[str | Path]:
        # As the container starts it, but for the one process that the test can end.
        _, *options = compose("compose.cluster.yaml")["services"]["proxy"]["entrypoint"]
        options = [one.replace("/dev/stderr", "stderr") for one in options]
        options[-1] += " master_process off;"
        return [self._binary, "-p", self.folder, "-c", "nginx.conf", *options]


class Caddy(Proxy):
    """The other proxy that there is an example of."""

    name, file = "caddy", "Caddyfile"
    notices_seconds = 5.0

    def _changed(self) -> Mapping[str, str]:
        return {
            "admin off": "admin off\n\tauto_https disable_redirects",
            "precedent.example {": f"https://localhost:{self.port} {{\n\tbind {HOST}",
        }

    def _command(self) -> Sequence[str | Path]:
        return [self._binary, "run", "--adapter", "caddyfile", "--config", self.file]


def replica(name: str) -> Any:
    """An application that says who asked, as far as the proxy is believed."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["path"] == "/events":
            await _send_events(send)
            return
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        told = {
            "name": name,
            "client": scope["client"][0],
            "scheme": scope["scheme"],
            "host": headers["host"],
            "forwarded": headers.get("x-forwarded-for"),
            "size": size,
        }
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})

    return Proxies(answer, [HOST])


async def _send_events(send: Any) -> None:
    """Two events, and two seconds between them, as the service tells how a job goes on."""
    headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number, more in ((1, True), (2, False)):
        event = f"data: {number}\n\n".encode()
        await send({"type": "http.response.body", "body": event, "more_body": more})
        if more:
            await asyncio.sleep(2)


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of a server that runs it in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, HOST, 0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 30
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        yield f"{HOST}:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


class Running:
    """The proxy, two replicas, and a client that trusts the certificate."""

    def __init__(self, kind: type[Proxy], opened: ExitStack) -> None:
        self.first = opened.enter_context(ExitStack())
        addresses = [
            self.first.enter_context(served(replica("api-1"))),
            opened.enter_context(served(replica("api-2"))),
        ]
        self.proxy = opened.enter_context(kind(addresses))
        self.client = opened.enter_context(
            httpx2.Client(base_url=self.proxy.url, verify=self.proxy.trust, timeout=30)
        )


@pytest.fixture(scope="module", params=[ClusterProxy, Caddy], ids=lambda kind: kind.name)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with ExitStack() as opened:
        yield Running(request.param, opened)


def test_what_the_proxy_says_of_a_client_is_believed_and_not_what_it_says_itself(running):
    made_up = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example",
    }
    told = running.client.get("/", headers=made_up).json()
    assert told["forwarded"] == told["client"] == HOST
    assert told["scheme"] == "https"
    assert told["host"] == running.proxy.url.removeprefix("https://")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_tls_is_refused_and_browsers_are_told_to_come_over_tls(running):
    answer = running.client.get("/")
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert answer.headers["server"].lower() == running.proxy.name
    old = ssl.create_default_context(cafile=running.proxy.folder / "tls_certificate")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(OSError, match=r"(?i)ssl|tls|protocol|alert"):
        urlopen(running.proxy.url, context=old, timeout=5)


def test_an_upload_as_large_as_the_service_takes_comes_through_and_no_larger(running):
    assert running.client.post("/", content=bytes(64 * 1024**2)).json()["size"] == 64 * 1024**2
    assert running.client.post("/", content=bytes(66 * 1024**2)).status_code == 413


def test_events_come_when_they_happen_and_not_at_the_end(running):
    with running.client.stream("GET", "/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        began = time.monotonic()
        came = [(time.monotonic() - began, one) for one in answer.iter_text() if "data" in one]
    assert [one.strip() for _, one in came] == ["data: 1", "data: 2"]
    assert came[1][0] - came[0][0] > 1


def test_nobody_is_handed_on_to_another_protocol(running):
    asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    assert running.client.get("/", headers=asked).status_code == 200


def test_what_goes_wrong_is_not_logged_with_its_address(running):
    assert running.client.post("/HIDDEN-1", content=bytes(66 * 1024**2)).status_code == 413
    assert "HIDDEN" not in running.proxy.last_words()


def test_when_a_replica_dies_the_other_answers_everything(running):
    asked = [running.client.get("/").json()["name"] for _ in range(8)]
    assert set(asked) == {"api-1", "api-2"}
    running.first.close()
    for _ in range(8):
        assert running.client.get("/").json()["name"] == "api-2"
    time.sleep(running.proxy.notices_seconds)
    for _ in range(8):
        posted = running.client.post("/", content=b"image").json()
        assert (posted["name"], posted["size"]) == ("api-2", 5)
