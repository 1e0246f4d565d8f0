"""The component ``precedent-related`` in pages of other sites, in a real browser."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from oidc_site import bearer
from services.browser import Browser
from services.other_site import other_site
from services.running import served

from api.security.embedding import Embed, EmbedTokens
from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from indexer.ledger.database import Database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STUDY, ANOTHER = "1.2.4.0", "1.2.4.1"
PAGE = """<!doctype html><html lang="en"><title>Portal</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; connect-src 'self';
  script-src 'self' {service}; frame-src {service}">
<script src="own.js" defer></script>
<script src="{service}/static/precedent-related.js" defer></script>
{body}"""
OWN = """
window.told = [];
for (const name of ["token-wanted", "study-opened", "resized", "failed"]) {
  document.addEventListener(name, (event) => {
    told.push({ name, id: event.target.id, ...event.detail, give: undefined });
  });
}
document.addEventListener("token-wanted", async (event) => {
  const answer = await fetch(`token?id=${event.target.id}&study=${event.detail.study}`);
  const token = await answer.text();
  if (token) event.detail.give(token);
});
document.addEventListener("securitypolicyviolation", (event) => {
  told.push({ name: "violation", what: event.violatedDirective });
});
"""
ONE = '<precedent-related id="one" study="{study}" src="{service}"></precedent-related>'


@dataclass
class Portal:
    """A portal beside a service. origins: of the portal, and of another site. token: what the
    portal's server gives, of its key's; it may be exchanged. asked: of its server for tokens."""

    service: str
    origins: tuple[str, str]
    secret: bytes
    key: str
    elsewhere: str
    body: str = ONE
    token: Callable[[str], str] = str
    asked: list[str] = field(default_factory=list)

    def made(self, study: str, *, seconds: int = 300, **changed: str) -> str:
        """A token. seconds: that are left of it; none or less: it has ended."""
        usual = {"key": self.key, "tenant": "default", "origin": self.origins[0]}
        embed = Embed(**{**usual, **changed}, study=study, acting="dr.weber")
        earlier = EmbedTokens(self.secret, lambda: time.time() - 600 + seconds)
        return earlier.make(embed, 10)[0]

    def shows(self, path: str) -> str:
        """What is at a path of the portal."""
        parts = urlsplit(path)
        if parts.path == "/own.js":
            return OWN
        if parts.path == "/token":
            study = parse_qs(parts.query)["study"][0]
            self.asked.append(study)
            return self.token(study)
        filled = self.body.format(service=self.service, study=STUDY)
        return PAGE.format(service=self.service, body=filled)


@pytest.fixture(scope="module")
def portal_site(indexed, store_root: Path) -> Iterator[Portal]:
    settings = indexed.copy(store_root / "data")
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        key, written = Keys(database).create("portal", [Scope.SEARCH])
        elsewhere, _ = Keys(database).create("portal", [Scope.SEARCH], tenant="elsewhere")
    made: list[Portal] = []
    with ExitStack() as opened:
        service = opened.enter_context(served(create_service(settings)))
        origins = tuple(
            opened.enter_context(other_site(lambda path: made[0].shows(path))) for _ in range(2)
        )
        asks = {"study": STUDY, "origin": origins[0], "acting_user": "x"}
        # The secret is made by the first token.
        sent = httpx.post(
            f"{service}/v1/embed-tokens", headers=bearer(written), json=asks, timeout=60
        )
        sent.raise_for_status()
        secret = (settings.data_dir / "embedding.key").read_bytes()
        made.append(Portal(service, (origins[0], origins[1]), secret, key.id, elsewhere.id))
        yield made[0]


@pytest.fixture
def portal(portal_site: Portal) -> Portal:
    portal_site.body, portal_site.token = ONE, portal_site.made
    portal_site.asked.clear()
    return portal_site


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


_PAGES = count()


def opened(browser: Browser, origin: str) -> None:
    """Opens the portal's page, under an address that was not opened before, and waits for it."""
    path = f"/{next(_PAGES)}"
    browser.open(origin + path)
    browser.until(f"location.pathname === '{path}' && window.told !== undefined")


def told(browser: Browser, name: str, least: int = 1, **what: Any) -> list[dict[str, Any]]:
    """What the component has told so far by events of this name, once there are so many."""
    wanted = json.dumps({"name": name, **what})
    found: list[dict[str, Any]] = browser.until(
        f"(() => {{ const wanted = {wanted}; const found = (window.told ?? []).filter((one) => "
        "Object.entries(wanted).every(([name, value]) => one[name] === value)); "
        f"return found.length >= {least} && found }})()"
    )
    return found


def never(browser: Browser, name: str) -> None:
    assert browser.evaluate(f"told.filter((one) => one.name === '{name}').length") == 0


def test_the_cases_are_shown_and_one_is_opened(portal: Portal, browser: Browser) -> None:
    opened(browser, portal.origins[0])
    frame = browser.frame("/embed")
    said = frame.until_text("related case")
    assert portal.asked == [STUDY]
    assert "Not a medical device" in said
    height = told(browser, "resized")[-1]["height"]
    frame_of = "document.querySelector('precedent-related').shadowRoot.querySelector('iframe')"
    browser.until(f"{frame_of}.clientHeight > 400 && told.at(-1)")
    assert height > 0
    assert browser.evaluate(f"{frame_of}.title") == "Related cases"
    assert browser.evaluate(f"{frame_of}.sandbox.value") == "allow-scripts allow-same-origin"
    assert "eyJ" not in browser.evaluate(f"{frame_of}.outerHTML")
    assert "eyJ" not in browser.evaluate("document.documentElement.outerHTML")
    assert frame.evaluate("document.cookie + location.href").endswith(
        f"/embed?parent={portal.origins[0].replace(':', '%3A').replace('/', '%2F')}&lang=en"
    )
    shown = frame.evaluate("document.querySelector('button[data-study]').dataset.study")
    browser.evaluate("scrollTo(0, 0)")
    frame.evaluate("document.querySelector('button[data-study]').click()")
    (event,) = told(browser, "study-opened")
    assert (event["study"], event["id"]) == (shown, "one")
    assert event["series"].startswith("1.2.5.")
    never(browser, "failed")
    never(browser, "violation")


def test_attributes_are_followed_and_what_is_removed_is_gone(
    portal: Portal, browser: Browser
) -> None:
    opened(browser, portal.origins[0])
    browser.frame("/embed").until_text("related case")
    browser.evaluate(
        "{ const one = document.getElementById('one'); one.setAttribute('label', 'Like this'); "
        f"one.setAttribute('study', '{ANOTHER}') }}"
    )
    told(browser, "token-wanted", study=ANOTHER)
    frame = browser.frame("/embed")
    frame.until("document.querySelectorAll('article').length > 0")
    assert portal.asked == [STUDY, ANOTHER]
    root = "document.querySelector('precedent-related').shadowRoot"
    assert browser.evaluate(f"{root}.querySelector('iframe').title") == "Like this"
    browser.evaluate("document.getElementById('one').removeAttribute('study')")
    frame.until_text("shown here by the page around")
    browser.evaluate("window.gone = document.getElementById('one'); gone.remove()")
    assert browser.evaluate("gone.shadowRoot.childElementCount") == 0
    assert browser.evaluate("window.length") == 0
    never(browser, "failed")


def test_two_on_a_page_do_not_hear_each_other(portal: Portal, browser: Browser) -> None:
    two = ONE.replace('"one"', '"two"').replace("{study}", ANOTHER)
    portal.body = ONE + two
    opened(browser, portal.origins[0])
    assert told(browser, "token-wanted", id="one")[0]["study"] == STUDY
    assert told(browser, "token-wanted", id="two")[0]["study"] == ANOTHER
    for name in ("one", "two"):
        tall = f"one.name === 'resized' && one.id === '{name}' && one.height > 400"
        browser.until(f"told.some((one) => {tall})")
    never(browser, "failed")


def test_a_renewed_token_keeps_the_view_and_an_ended_one_takes_it_away(
    portal: Portal, browser: Browser
) -> None:
    given = []

    def token(study: str) -> str:
        given.append(study)
        # Of the third and the later ones nothing comes.
        return portal.made(study, seconds=6) if len(given) < 3 else ""

    portal.token = token
    opened(browser, portal.origins[0])
    frame = browser.frame("/embed")
    frame.until_text("related case")
    frame.evaluate("window.same = document.querySelector('article')")
    told(browser, "token-wanted", 3)
    assert frame.evaluate("same.isConnected"), "who reads it keeps their place"
    (failed,) = told(browser, "failed")
    assert failed["code"] == "expired"
    assert frame.evaluate("document.querySelectorAll('article').length") == 0
    # The portal is asked once more, and has a token again.
    told(browser, "token-wanted", 4)
    browser.evaluate(f"document.getElementById('one').token = {portal.made(STUDY)!r}")
    frame.until_text("related case")


def _of_another_study(portal: Portal) -> str:
    return portal.made(ANOTHER)


def _ended(portal: Portal) -> str:
    return portal.made(STUDY, seconds=-1)


def _of_another_tenant(portal: Portal) -> str:
    return portal.made(STUDY, tenant="elsewhere", key=portal.elsewhere)


def _of_another_site(portal: Portal) -> str:
    return portal.made(STUDY, origin=portal.origins[1])


@pytest.mark.parametrize(
    ("token", "code", "said"),
    [
        (_of_another_study, "not-allowed", "another study"),
        (_ended, "not-authenticated", "has expired"),
        (_of_another_tenant, "image-not-found", STUDY),
        (_of_another_site, "not-allowed", "the site that it was made for"),
        (lambda _: "nonsense", "not-authenticated", "none for a page"),
    ],
)
def test_a_wrong_token_shows_nothing_and_says_why(
    portal: Portal, browser: Browser, token: Callable[[Portal], str], code: str, said: str
) -> None:
    portal.token = lambda _: token(portal)
    opened(browser, portal.origins[0])
    (failed,) = told(browser, "failed")
    assert (failed["code"], said in failed["message"]) == (code, True)
    frame = browser.frame("/embed")
    assert said in frame.evaluate("document.querySelector('[role=alert]').textContent")
    assert frame.evaluate("document.querySelectorAll('article').length") == 0


def test_another_site_shows_nothing_whatever_it_says(portal: Portal, browser: Browser) -> None:
    """The second site has got the portal's token: the service knows by the frame's origin."""
    opened(browser, portal.origins[1])
    (failed,) = told(browser, "failed")
    assert failed["code"] == "not-allowed"
    # It says that it is the portal: then the browser shows it no frame.
    parent = portal.origins[0]
    browser.evaluate(
        "{ window.heard = []; const frame = document.createElement('iframe'); "
        "addEventListener('message', (one) => "
        "one.source === frame.contentWindow && heard.push(one.origin)); "
        f"frame.src = '{portal.service}/embed?parent={parent}'; "
        "frame.onload = () => { window.loaded = true }; document.body.append(frame) }"
    )
    browser.until("window.loaded")
    refused = browser.frame(f"/embed?parent={parent}")
    assert refused.evaluate("document.querySelector('main, script[src]') === null")
    assert refused.evaluate("document.documentElement.dataset.parent === undefined")
    assert browser.evaluate("heard.length") == 0


def test_a_service_that_is_not_there_is_told(portal: Portal, browser: Browser) -> None:
    portal.body = ONE.replace("{service}", "ftp://{service}")
    opened(browser, portal.origins[0])
    (failed,) = told(browser, "failed")
    assert failed["code"] == "bad-src"
