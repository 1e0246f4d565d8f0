"""A page of another site in a real browser, which sends a token into its frame."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from oidc_site import bearer
from services.needed import package
from services.running import served
from starlette.types import ASGIApp, Message, Receive, Scope as AsgiScope, Send

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from indexer.ledger.database import Database

PAGE = """<!doctype html><iframe name="related"></iframe>
<form method="post" action="{address}/embed" target="related">
<input type="hidden" name="token" value="{token}"></form>
<script>document.forms[0].submit()</script>"""


class Noted:
    """ASGI middleware that notes each answer: path, status, and for what the browser asked."""

    def __init__(self, app: ASGIApp, answers: list[tuple[str, int, str]]) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                wanted = dict(scope["headers"]).get(b"sec-fetch-dest", b"").decode()
                self._answers.append((scope["path"], message["status"], wanted))
            await send(message)

        await self._app(scope, receive, noting)


@contextmanager
def site(pages: dict[str, str]) -> Iterator[str]:
    """The origin of another site with these pages."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.get(self.path, "").encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        # The service is at 127.0.0.1: by another name it is another site.
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_a_frame_shows_what_its_token_is_for_and_to_no_other_site(indexed, tmp_path: Path) -> None:
    browser = package("chromium")
    settings = indexed.copy(tmp_path / "data")
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        _, written = Keys(database).create("portal", [Scope.SEARCH])
    answers: list[tuple[str, int, str]] = []
    pages: dict[str, str] = {}
    app = create_service(settings)
    app.add_middleware(Noted, answers=answers)
    with site(pages) as origin, served(app) as address:
        for path, of in (("/mine", origin), ("/theirs", "https://other.example")):
            asked = {"study": "1.2.4.0", "origin": of, "acting_user": "dr.weber"}
            made = httpx.post(f"{address}/v1/embed-tokens", headers=bearer(written), json=asked)
            pages[path] = PAGE.format(address=address, token=made.json()["token"])
        shown = {}
        # A busy browser may end before it has asked for everything.
        for path in (*pages, "/mine", "/mine"):
            if len(shown.get(path, ())) > 1:
                continue
            answers.clear()
            subprocess.run(
                [
                    *(browser, "--headless", "--no-sandbox", "--disable-gpu"),
                    *(
                        f"--user-data-dir={tmp_path / 'browser'}",
                        "--virtual-time-budget=15000",
                        "--dump-dom",
                    ),
                    origin + path,
                ],
                capture_output=True,
                check=False,
                timeout=180,
            )
            shown[path] = list(answers)
    # Only a page that is shown asks for its style, and it needs nothing else.
    assert shown["/mine"] == [("/embed", 200, "iframe"), ("/static/style.css", 200, "style")]
    assert shown["/theirs"] == [("/embed", 403, "iframe")]
