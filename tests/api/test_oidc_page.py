"""Signing in to the page by a real identity provider: code flow, PKCE, and what it withstands."""

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from oidc_site import PAGE, PEOPLE, PROGRAMS, bearer, settings_of
from pydantic import SecretStr
from services.identity_provider import IdentityProvider
from services.loopback import LoopbackClient

from api.audit.log import open_log
from api.security.access import Access, Request
from api.security.oidc.code_flow import CodeFlow
from api.security.oidc.identity import Identity
from api.security.oidc.outbound import Outbound
from api.security.oidc.provider import Provider
from api.security.oidc.sessions import OidcSessions
from api.security.policy import Scope
from api.security.sessions import ABSOLUTE, IDLE
from api.service import create_service
from engine.errors import NotAuthenticated
from engine.settings import Settings
from indexer.ledger.database import Database

SESSION = "__Host-precedent"
SIGN_IN = "__Host-precedent-sign-in"
BACK = "__Host-precedent-back"


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider(PROGRAMS, PEOPLE, PAGE) as running:
        yield running


@pytest.fixture(scope="module")
def settings(provider: IdentityProvider, indexed, store_root: Path) -> Settings:
    copied = indexed.copy(store_root / "data")
    oidc = settings_of(
        provider,
        name="your <hospital> account",
        client_id="page",
        client_secret=provider.page_secret,
        page_url=PAGE,
        refetch_seconds=1,
    )
    made: Settings = copied.model_copy(update={"oidc": oidc})
    return made


@pytest.fixture(scope="module")
def page(settings: Settings) -> Iterator[TestClient]:
    with LoopbackClient(create_service(settings), follow_redirects=False) as client:
        yield client


def cookie(answer: httpx.Response, name: str) -> str:
    """The value of a cookie that an answer sets, checked to be a safe one."""
    found = SimpleCookie()
    for line in answer.headers.get_list("set-cookie"):
        found.load(line)
    morsel = found[name]
    assert morsel["secure"]
    assert morsel["httponly"]
    assert (morsel["path"], morsel["samesite"], morsel["domain"]) == ("/", "lax", "")
    return morsel.value


def begun(page: TestClient) -> tuple[str, str]:
    """Where a sign-in leads, and the cookie that it leaves."""
    answer = page.get("/login/oidc")
    page.cookies.clear()
    assert answer.status_code == 303
    return answer.headers["location"], cookie(answer, SIGN_IN)


def signed_in_there(address: str, who: str) -> str:
    """The address to which the provider sends back a browser in which somebody signs in."""
    with httpx.Client(timeout=30) as browser:
        for _ in range(12):
            answer = browser.get(address)
            if answer.is_redirect:
                address = urljoin(address, answer.headers["location"])
            else:
                action = re.search(r'<form[^>]* action="([^"]+)"', answer.text)
                prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
                assert action is not None
                assert prompt is not None
                form = {"prompt": prompt[1], "login": who, "password": "any"}
                sent = browser.post(urljoin(address, action[1]), data=form)
                address = urljoin(address, sent.headers["location"])
            if address.startswith(PAGE):
                return address
    raise AssertionError(f"the provider does not come to an end: {address}")


def back(page: TestClient, address: str, left: str | None) -> httpx.Response:
    headers = {} if left is None else {"Cookie": f"{SIGN_IN}={left}"}
    answer: httpx.Response = page.get(address.removeprefix(PAGE), headers=headers)
    page.cookies.clear()
    return answer


def session(page: TestClient, who: str = "ann") -> dict[str, str]:
    address, left = begun(page)
    answer = back(page, signed_in_there(address, who), left)
    assert (answer.status_code, answer.headers["location"]) == (303, "../../")
    return {"Cookie": f"{SESSION}={cookie(answer, SESSION)}"}


def test_the_page_offers_the_provider(page: TestClient) -> None:
    assert page.get("/").headers["location"] == "login"
    shown = page.get("/login").text
    assert 'href="login/oidc"' in shown
    assert "your &lt;hospital&gt; account" in shown
    assert "API key" not in shown, "no key was ever made"


def test_somebody_signs_in_searches_and_signs_out(
    page: TestClient, provider: IdentityProvider, indexed
) -> None:
    mine = session(page)
    shown = page.get("/", headers=mine)
    assert shown.status_code == 200
    picture = re.search(r'src="(v1/images/[^"]+)"', shown.text)
    assert picture is not None
    assert page.get("/" + picture[1], headers=mine).status_code == 200
    token = re.search(r'name="csrf" value="(\w+)"', shown.text)
    assert token is not None
    file = {"file": indexed.files["ct"][0].read_bytes()}
    sent = page.post("/", headers=mine, files=file, data={"csrf": token[1]})
    assert sent.status_code == 200
    assert page.post("/", headers=mine, files=file).status_code == 403
    assert page.post("/v1/search", headers=mine, data={"id": "x"}).status_code == 401
    assert page.post("/logout", headers=mine).status_code == 403
    left = page.post("/logout", headers=mine, data={"csrf": token[1]})
    assert left.status_code == 303
    told = page.get("/" + left.headers["location"]).text
    assert f'href="{provider.issuer}/session/end"' in told
    assert page.get("/", headers=mine).headers["location"] == "login"
    assert page.get("/" + picture[1], headers=mine).status_code == 401


def test_a_link_to_a_page_of_ours_leads_there_in_the_end(page: TestClient) -> None:
    asked = page.get("/studies/1.2.4.0")
    assert asked.headers["location"] == "../login?to=studies%2F1.2.4.0"
    assert 'href="login/oidc?to=studies/1.2.4.0"' in page.get("/login?to=studies%2F1.2.4.0").text
    for to, led in (("studies/1.2.4.0", "../../studies/1.2.4.0"), ("//evil.example", "../../")):
        begins = page.get("/login/oidc", params={"to": to})
        page.cookies.clear()
        kept = f"; {BACK}={cookie(begins, BACK)}" if BACK in str(begins.headers) else ""
        left = cookie(begins, SIGN_IN) + kept
        answer = back(page, signed_in_there(begins.headers["location"], "ann"), left)
        assert (answer.status_code, answer.headers["location"]) == (303, led)
        assert page.get("/login").status_code == 200


def test_what_the_browser_is_sent_with(page: TestClient, provider: IdentityProvider) -> None:
    (first, one), (second, other) = begun(page), begun(page)
    asked = {name: value[0] for name, value in parse_qs(urlsplit(first).query).items()}
    again = {name: value[0] for name, value in parse_qs(urlsplit(second).query).items()}
    assert first.startswith(provider.issuer + "/auth?")
    assert asked["response_type"] == "code"
    assert asked["code_challenge_method"] == "S256"
    assert asked["redirect_uri"] == PAGE + "/login/oidc/callback"
    assert len({one, other}) == 2
    secrets = [made[name] for made in (asked, again) for name in ("state", "nonce")]
    secrets += [asked["code_challenge"], again["code_challenge"]]
    assert len(set(secrets)) == 6
    assert min(map(len, secrets)) == 43
    for secret in secrets:
        assert secret not in one + other


def test_an_answer_is_taken_once_and_from_its_own_browser(page: TestClient) -> None:
    address, mine = begun(page)
    _, others = begun(page)
    there = signed_in_there(address, "ann")
    for left in (None, others, "nonsense", mine + "A"):
        refused = back(page, there, left)
        assert refused.status_code == 401
        assert "begin it again" in refused.text
        assert SESSION + "=" not in str(refused.headers)
    changed = there.replace("state=", "state=x")
    assert back(page, changed, mine).status_code == 401
    assert back(page, there, mine).status_code == 303
    again = back(page, there, mine)
    assert again.status_code == 401
    assert "is over" in again.text


def test_a_code_of_another_sign_in_is_none(page: TestClient) -> None:
    """Somebody slips their own code into another browser: its verifier does not fit."""
    theirs = signed_in_there(begun(page)[0], "ann")
    address, mine = begun(page)
    state = parse_qs(urlsplit(address).query)["state"][0]
    slipped = re.sub(r"state=[\w-]+", f"state={state}", theirs)
    refused = back(page, slipped, mine)
    assert refused.status_code == 401
    assert "is over" in refused.text


def test_an_answer_of_another_provider_is_none(page: TestClient) -> None:
    address, mine = begun(page)
    there = signed_in_there(address, "ann")
    for changed in (
        re.sub(r"iss=[^&]+", "iss=https%3A%2F%2Fevil.example", there),
        re.sub(r"&?iss=[^&]+", "", there),
    ):
        refused = back(page, changed, mine)
        assert refused.status_code == 401
        assert "another identity provider" in refused.text
    twice = back(page, there + "&state=x", mine)
    assert twice.status_code == 401


def test_what_the_provider_says_is_not_repeated(page: TestClient, provider) -> None:
    address, mine = begun(page)
    state = parse_qs(urlsplit(address).query)["state"][0]
    callback = f"/login/oidc/callback?state={state}&iss={provider.issuer}"
    shown = back(page, f"{callback}&error=access_denied&error_description=Boo", mine)
    assert shown.status_code == 401
    assert "access_denied" in shown.text
    assert "Boo" not in shown.text
    shown = back(page, f"{callback}&error=<script>x</script>", mine)
    assert "script>x" not in shown.text
    assert '"../../static/style.css"' in shown.text


@pytest.mark.parametrize(
    ("who", "said"),
    [("cook", "nothing that gives a scope"), ("clerk", "lacks the scopes")],
)
def test_only_who_may_see_a_page_signs_in(
    page: TestClient, settings: Settings, who: str, said: str
) -> None:
    address, left = begun(page)
    refused = back(page, signed_in_there(address, who), left)
    assert refused.status_code == 403
    assert said in refused.text
    assert SESSION + "=" not in str(refused.headers)
    with open_log(settings) as log:
        row = next(iter(log.between(latest_first=True))).document
    assert (row["action"], row["status"]) == ("GET /login/oidc/callback", 403)
    assert (row["who"]["id"], row["outcome"]) == (who, "refused")


def test_who_reads_the_audit_log_is_led_there_and_sees_no_image(page: TestClient) -> None:
    address, left = begun(page)
    answer = back(page, signed_in_there(address, "officer"), left)
    assert (answer.status_code, answer.headers["location"]) == (303, "../../audit")
    mine = {"Cookie": f"{SESSION}={cookie(answer, SESSION)}"}
    shown = page.get("/audit", headers=mine)
    assert (shown.status_code, "Audit log" in shown.text) == (200, True)
    assert page.get("/", headers=mine).status_code == 403
    assert page.get("/v1/keys", headers=mine).status_code == 403


def test_a_session_is_of_its_provider(page: TestClient, settings: Settings) -> None:
    mine = session(page)
    assert page.get("/v1/facets", headers=mine).status_code == 200
    secret = mine["Cookie"].partition("=")[2]

    def scopes(**changed: object) -> frozenset[Scope] | None:
        """Those of the session, in another process with other settings."""
        oidc = settings.oidc.model_copy(update=changed)
        with closing(Access(settings.model_copy(update={"oidc": oidc}))) as access:
            asked = Request([("host", "localhost")], "127.0.0.1", session=secret)
            found = access.caller(asked, None)
            return None if found is None else found.scopes

    assert scopes() == {Scope.SEARCH}, "it outlives a restart"
    assert scopes(issuer="https://other.example") is None


def test_who_it_is_is_told_to_the_audit(page: TestClient, settings: Settings) -> None:
    secret = session(page)["Cookie"].partition("=")[2]
    with closing(Access(settings)) as access:
        asked = Request([("host", "localhost")], "127.0.0.1", session=secret)
        found = access.caller(asked, Scope.SEARCH)
    assert found is not None
    assert (found.key, found.subject, found.name) == (None, "ann", "Ann Weber")
    assert secret not in repr(found)
    with open_log(settings) as log:
        row = next(iter(log.between(latest_first=True))).document
    assert (row["action"], row["status"]) == ("GET /login/oidc/callback", 303)
    assert row["who"] == {
        "kind": "session",
        "id": "ann",
        "name": "Ann Weber",
        "tenant": "default",
    }


@pytest.mark.parametrize("every", [IDLE, timedelta(minutes=20)], ids=["idle", "used"])
def test_a_session_ends(ledger_url: str, every: timedelta) -> None:
    now = start = datetime(2031, 1, 1, tzinfo=UTC)
    ann = Identity("ann", "Ann Weber", "default", frozenset({Scope.SEARCH}))
    with Database(ledger_url) as database:
        kept = OidcSessions(database, "https://login.example", lambda: now)
        secret = kept.begin(ann, "sign-in")
        with Database(ledger_url) as other:
            sessions = OidcSessions(other, "https://login.example", lambda: now)
            assert sessions.identity_of(secret) == ann
            with pytest.raises(NotAuthenticated, match="is over"):
                sessions.begin(ann, "sign-in")
        while kept.identity_of(secret) is not None:
            now += every
        assert now - start == (IDLE if every == IDLE else ABSOLUTE)
        assert kept.identity_of("oidc-nonsense") is None


def test_the_page_says_that_the_provider_is_away(
    settings: Settings,
    provider: IdentityProvider,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def page_with(**changed: object) -> LoopbackClient:
        oidc = settings.oidc.model_copy(update=changed)
        update = {"oidc": oidc, "data_dir": tmp_path / "data"}
        app = create_service(settings.model_copy(update=update))
        return LoopbackClient(app, follow_redirects=False)

    with page_with(client_secret=SecretStr("of another client")) as wrong:
        address, left = begun(wrong)
        refused = back(wrong, signed_in_there(address, "ann"), left)
        assert refused.status_code == 503
        assert "invalid_client" in caplog.text
    with page_with(issuer="http://127.0.0.1:9") as alone:
        shown = alone.get("/login/oidc")
        assert shown.status_code == 503
        assert "does not answer" in shown.text
    with page_with(issuer=None) as without:
        assert without.get("/login/oidc").status_code == 403
    for secret in (provider.page_secret, "of another client"):
        assert secret not in caplog.text


def test_a_sign_in_takes_ten_minutes_at_most(settings: Settings) -> None:
    with closing(Outbound(settings.oidc)) as outbound:
        now = 1_900_000_000.0
        asked = Provider(settings.oidc, outbound)
        flow = CodeFlow(settings.oidc, asked, outbound, "of-page", lambda: now)
        started = flow.start()
        state = parse_qs(urlsplit(started.url).query)["state"][0]
        answer = {"state": state, "iss": settings.oidc.issuer or "", "code": "x"}
        now += 601
        with pytest.raises(NotAuthenticated, match="too long"):
            flow.finish(started.cookie, answer)
        younger = re.sub(r"^\d+", str(int(now)), started.cookie)
        with pytest.raises(NotAuthenticated, match="not begun in this browser"):
            flow.finish(younger, answer)


def test_what_tells_the_page_who_somebody_is_is_no_credential(
    page: TestClient, settings: Settings, provider: IdentityProvider
) -> None:
    taken: list[str] = []

    class Keeping(Outbound):
        def post(self, *arguments: Any) -> tuple[int, dict[str, Any]]:
            status, found = super().post(*arguments)
            taken.append(found["id_token"])
            return status, found

    with closing(Keeping(settings.oidc)) as outbound:
        asked = Provider(settings.oidc, outbound)
        flow = CodeFlow(settings.oidc, asked, outbound, provider.page_secret)
        started = flow.start()
        brought = parse_qs(urlsplit(signed_in_there(started.url, "ann")).query)
        answer = {name: value[0] for name, value in brought.items()}
        assert flow.finish(started.cookie, answer)["sub"] == "ann"
    refused = page.get("/v1/facets", headers=bearer(taken[0]))
    assert (refused.status_code, refused.json()["code"]) == (401, "not-authenticated")
    assert "audience" in refused.json()["detail"]
