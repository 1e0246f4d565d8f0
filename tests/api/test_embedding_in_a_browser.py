"""A page of another site in a real browser, which sends a token into its frame."""

import subprocess
from pathlib import Path

import httpx
import pytest
from oidc_site import bearer
from services.needed import package
from services.other_site import other_site
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
    with other_site(lambda path: pages.get(path, "")) as origin, served(app) as address:
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
