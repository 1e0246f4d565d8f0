"""An EHR opens the page by SMART App Launch: who comes, at which study, and what is refused."""

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fastapi.testclient import TestClient
from oidc_site import by_public_key, part
from pydantic import ValidationError
from services.ehr import CLIENT, Ehr, Page, ehr
from services.identity_provider import SigningKey
from services.loopback import LoopbackClient

from api.audit.log import open_log
from api.security.smart.launches import MOST_AT_ONCE, Ehrs
from api.service import create_service
from engine.errors import NotAllowed, NotAuthenticated, ProviderUnavailable, SettingsError
from engine.settings import Settings
from engine.smart_settings import SmartSettings

PAGE = "http://localhost"
STUDY, ANOTHER = "1.2.4.0", "1.2.4.1"
SESSION, FRAMED = "__Host-precedent", "__Host-precedent-framed"
LAUNCH = "__Host-precedent-launch-"
STANDALONE = "openid fhirUser launch/imagingstudy"


def of(server: Ehr, **changed: Any) -> SmartSettings:
    """The settings of a service that this EHR may open."""
    usual: dict[str, Any] = {
        "issuer": server.iss,
        "client_id": CLIENT,
        "page_url": PAGE,
        "tenant": "default",
        "skew_seconds": 0,
        "timeout_seconds": 20,
    }
    return SmartSettings(**{**usual, **changed})


@dataclass(frozen=True)
class Site:
    """A service, with EHRs that may open it. theirs: of another tenant. framed: in a frame of
    its own."""

    page: TestClient
    settings: Settings
    ours: Ehr
    theirs: Ehr
    framed: Ehr

    def get(self, address: str, cookies: Mapping[str, str] | None = None) -> httpx.Response:
        """The answer to a browser that has these cookies."""
        sent = "; ".join(f"{name}={value}" for name, value in (cookies or {}).items())
        headers = {"Cookie": sent} if sent else {}
        answer: httpx.Response = self.page.get(address.removeprefix(PAGE), headers=headers)
        self.page.cookies.clear()
        return answer

    def begun(self, server: Ehr, name: str | None = "study") -> tuple[str, dict[str, str]]:
        """Where the EHR sends a browser back in which it has opened the page, and what cookies the
        browser has."""
        begins = self.get(server.launch(name))
        assert begins.status_code == 303, begins.text
        authorized = httpx.get(begins.headers["location"], timeout=60)
        assert authorized.status_code == 302, authorized.text
        return authorized.headers["location"], cookies_of(begins)

    def launched(self, server: Ehr, name: str | None = "study") -> httpx.Response:
        """The answer to a browser in which the EHR has opened the page."""
        back, cookies = self.begun(server, name)
        return self.get(back, cookies)


def cookies_of(answer: httpx.Response) -> dict[str, str]:
    """The cookies that an answer sets, checked to be safe ones; not those that it removes."""
    found = {}
    for line in answer.headers.get_list("set-cookie"):
        (morsel,) = SimpleCookie(line.replace("; Partitioned", "")).values()
        lax = (morsel["samesite"], "Partitioned" in line) == ("lax", False)
        assert lax or (morsel["samesite"], "Partitioned" in line) == ("none", True)
        assert morsel["secure"]
        assert morsel["httponly"]
        assert (morsel["path"], morsel["domain"], morsel.key[:7]) == ("/", "", "__Host-")
        if morsel["max-age"] != "0":
            found[morsel.key] = morsel.value
    return found


@pytest.fixture(scope="module")
def site(indexed, store_root: Path) -> Iterator[Site]:
    copied = indexed.copy(store_root / "data")
    with ExitStack() as opened:
        ours, theirs, framed = (opened.enter_context(ehr(PAGE)) for _ in range(3))
        smart = {
            "ours": of(ours, title="the <EHR>", standalone_scope=STANDALONE),
            "theirs": of(theirs, tenant="elsewhere"),
            "framed": of(framed, framed=True),
        }
        server = copied.server.model_copy(update={"frame_ancestors": (framed.origin,)})
        settings = copied.model_copy(update={"smart": smart, "server": server})
        page = LoopbackClient(create_service(settings), follow_redirects=False)
        yield Site(opened.enter_context(page), settings, ours, theirs, framed)


@pytest.fixture(autouse=True)
def as_ever(site: Site) -> None:
    """EHRs keep to what was registered, until a test says otherwise."""
    for server in (site.ours, site.theirs, site.framed):
        server.claims, server.instead, server.configuration = {}, {}, {}
        server.sign = None
        server.studies = {"is-1": STUDY, "is-2": ANOTHER, "is-3": "1.2.9.9"}
        server.context = {
            "study": {"fhirContext": [{"reference": "ImagingStudy/is-1"}]},
            "other": {"fhirContext": [{"reference": "ImagingStudy/is-2"}]},
            "unknown": {"fhirContext": [{"reference": "ImagingStudy/is-3"}]},
            "none": {},
        }


def rows_of(site: Site, count: int) -> list[dict[str, Any]]:
    """The latest rows of the audit log, the last one first."""
    with open_log(site.settings) as log:
        found = log.between(latest_first=True)
        return [next(found).document for _ in range(count)]


def test_an_ehr_opens_the_page_at_its_study(site: Site) -> None:
    begins = site.get(site.ours.launch("study"))
    assert begins.headers["referrer-policy"] == "no-referrer"
    asked = dict(parse_qsl(urlsplit(begins.headers["location"]).query))
    (kept,) = cookies_of(begins).values()
    assert asked["redirect_uri"] == f"{PAGE}/smart/callback"
    assert (asked["aud"], asked["launch"]) == (site.ours.iss, "study")
    assert asked["scope"] == "openid fhirUser launch user/ImagingStudy.rs"
    assert len({asked["state"], asked["nonce"], asked["code_challenge"], kept}) == 4
    back = httpx.get(begins.headers["location"], timeout=60).headers["location"]
    answer = site.get(back, cookies_of(begins))
    assert (answer.status_code, answer.headers["location"]) == (303, f"../?study={STUDY}")
    mine = cookies_of(answer)
    assert [*mine] == [SESSION]
    shown = site.get(f"{PAGE}/?study={STUDY}", mine)
    assert shown.status_code == 200
    assert "Sign out" in shown.text
    who = site.get("/v1/whoami", mine).json()
    assert who["id"] == f"{site.ours.iss}/Practitioner/ann"
    assert (who["scopes"], who["tenant"]) == (["search"], "default")
    _, _, row = rows_of(site, 3)
    assert (row["action"], row["status"]) == ("GET /smart/callback", 303)
    assert row["who"] == {
        "kind": "session",
        "id": f"{site.ours.iss}/Practitioner/ann",
        "name": "Ann Weber",
        "tenant": "default",
    }


def test_what_is_logged_tells_no_token_and_no_patient(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where something goes wrong on the way."""
    caplog.set_level(logging.DEBUG, "precedent")
    caplog.set_level(logging.DEBUG, "api")
    site.ours.instead["/fhir/ImagingStudy/is-1"] = lambda: Page(200, b"no JSON")
    back, cookies = site.begun(site.ours)
    answer = site.get(back, cookies)
    assert answer.status_code == 503
    query = dict(parse_qsl(urlsplit(back).query))
    ours = [one.getMessage() for one in caplog.records if one.name.split(".")[0] != "httpx"]
    written = "\n".join([*ours, json.dumps(rows_of(site, 1)), answer.text])
    for secret in (site.ours.tokens[-1], query["code"], query["state"], *cookies.values()):
        assert secret not in written
    assert "is-1" not in written
    assert "the study that is open" in written


@pytest.mark.parametrize(
    "iss",
    [
        "https://evil.example/fhir",
        "{iss}/",
        "{iss}?x=1",
        "HTTP{rest}",
        "",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
    ],
)
def test_an_unknown_ehr_opens_nothing_and_is_not_asked(site: Site, iss: str) -> None:
    iss = iss.format(iss=site.ours.iss, rest=site.ours.iss.removeprefix("http"))
    before = len(site.ours.asked)
    refused = site.get(f"/smart/launch?{urlencode({'iss': iss, 'launch': 'study'})}")
    assert refused.status_code == 403
    assert "may not open the page" in refused.text
    assert "set-cookie" not in refused.headers
    assert len(site.ours.asked) == before
    assert "169.254" not in refused.text


@pytest.mark.parametrize(
    "query",
    [
        "",
        "launch=study",
        "iss={iss}&iss={iss}&launch=study",
        "iss={iss}&launch=a&launch=b",
        "iss={iss}&launch=",
        "iss={iss}&launch=a%0Ab",
    ],
)
def test_a_malformed_launch_is_refused(site: Site, query: str) -> None:
    refused = site.get("/smart/launch?" + query.format(iss=site.ours.iss))
    assert refused.status_code == 401
    assert "EHR" in refused.text


def test_an_answer_is_taken_once_and_from_its_own_browser(site: Site) -> None:
    back, mine = site.begun(site.ours)
    _, others = site.begun(site.ours)
    ((name, secret),) = mine.items()
    ((_, of_another),) = others.items()
    forged = re.sub(r"(state=\w{16}\.)..", r"\1AA", back)
    for address, cookies in (
        (back, {}),
        (back, others),
        (back, {name: of_another}),
        (back, {name: secret + "A"}),
        (back, {name: secret.replace(".ours.", ".theirs.")}),
        (back, {name: secret.replace(".ours.", ".nobody.")}),
        (forged, mine),
        (back.replace("state=", "stat="), mine),
        (back + "&state=x", mine),
        (back + "&iss=https%3A%2F%2Fevil.example", mine),
        (re.sub(r"code=[\w-]+", "error=access_denied", back), mine),
    ):
        refused = site.get(address, cookies)
        assert refused.status_code == 401, address
        assert SESSION not in cookies_of(refused)
    assert site.get(back, mine).status_code == 303
    again = site.get(back, mine)
    assert again.status_code == 401
    assert "is over" in again.text


def test_a_code_of_another_launch_is_none(site: Site) -> None:
    """Somebody slips their own code into another browser: its verifier does not fit."""
    theirs, _ = site.begun(site.ours)
    back, mine = site.begun(site.ours)
    code = parse_qs(urlsplit(theirs).query)["code"][0]
    refused = site.get(re.sub(r"code=[\w-]+", f"code={code}", back), mine)
    assert refused.status_code == 401
    assert "is over" in refused.text


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"nonce": "x"}, "another sign-in"),
        ({"nonce": None}, "another sign-in"),
        ({"aud": "another-app"}, "another audience"),
        ({"aud": [CLIENT, "another-app"]}, "another client"),
        ({"azp": "another-app"}, "another client"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"exp": 1_600_000_000}, "has expired"),
        ({"exp": None}, "lacks the claim"),
        ({"fhirUser": None}, "who has signed in"),
        ({"fhirUser": "ann"}, "who has signed in"),
        ({"fhirUser": ["Practitioner/ann"]}, "who has signed in"),
        ({"fhirUser": "javascript:Practitioner/ann"}, "who has signed in"),
    ],
)
def test_an_id_token_that_does_not_fit_is_refused(
    site: Site, claims: dict[str, Any], said: str
) -> None:
    site.ours.claims = claims
    refused = site.launched(site.ours)
    assert refused.status_code == 401
    assert said in refused.text
    assert not cookies_of(refused)


@pytest.mark.filterwarnings("ignore:The HMAC key:jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize(
    "forged",
    [
        lambda key, claims: SigningKey(key.id).signed(claims),
        lambda _, claims: f"{part({'alg': 'none'})}.{part(claims)}.",
        lambda _, claims: jwt.encode(claims, CLIENT, "HS256"),
        by_public_key,
        lambda key, claims: key.signed(claims, typ="at+jwt"),
        lambda _, claims: "nonsense",
    ],
)
def test_an_id_token_that_the_ehr_has_not_signed_is_refused(site: Site, forged) -> None:
    site.ours.sign = partial(forged, site.ours.key)
    refused = site.launched(site.ours)
    assert refused.status_code == 401
    assert "not valid" in refused.text
    assert not cookies_of(refused)


@pytest.mark.parametrize("user", ["Patient/p-hidden", "RelatedPerson/x", "Device/y"])
def test_patients_see_no_archive(site: Site, user: str) -> None:
    site.ours.claims = {"fhirUser": user, "name": None}
    refused = site.launched(site.ours)
    assert refused.status_code == 403
    assert SESSION not in cookies_of(refused)
    (row,) = rows_of(site, 1)
    assert row["who"]["id"] == f"{site.ours.iss}/{user}"
    assert row["outcome"] == "refused"


@pytest.mark.parametrize(
    ("context", "led"),
    [
        ({}, "../"),
        ({"imagingstudy": "is-1"}, f"../?study={STUDY}"),
        ({"fhirContext": [{"reference": "Encounter/1"}, {"reference": "ImagingStudy/is-2"}]},
         f"../?study={ANOTHER}"),
        ({"fhirContext": [{"reference": "{iss}/ImagingStudy/is-1"}]}, f"../?study={STUDY}"),
        ({"fhirContext": [{"reference": "ImagingStudy/is-1/_history/3"}]}, f"../?study={STUDY}"),
        ({"fhirContext": [{"type": "ImagingStudy", "identifier": {"system": "urn:dicom:uid",
          "value": f"urn:oid:{ANOTHER}"}}]}, f"../?study={ANOTHER}"),
        # Nobody else's server is asked, and nothing but an id becomes part of an address.
        ({"fhirContext": [{"reference": "https://evil.example/ImagingStudy/is-1"}]}, "../"),
        ({"fhirContext": [{"reference": "ImagingStudy/../../keys"}]}, "../"),
        ({"fhirContext": "ImagingStudy/is-1", "imagingstudy": {"a": 1}}, "../"),
    ],
)  # fmt: skip
def test_the_study_is_what_is_open_in_the_ehr(
    site: Site, context: dict[str, Any], led: str
) -> None:
    written = json.dumps(context).replace("{iss}", site.ours.iss)
    site.ours.context["study"] = json.loads(written)
    answer = site.launched(site.ours)
    assert (answer.status_code, answer.headers["location"]) == (303, led)


@pytest.mark.parametrize(
    ("page", "status", "said"),
    [
        (Page(403, b"{}"), 404, "does not let this app read"),
        (Page(404, b"{}"), 404, "is not there"),
        (Page(200, b'{"resourceType": "Patient"}'), 404, "is not there"),
        (Page(200, b'{"resourceType": "ImagingStudy"}'), 404, "no Study Instance UID"),
        (Page(200, b'{"resourceType": "ImagingStudy", "identifier": [{"system": "urn:dicom:uid", '
              b'"value": "urn:oid:1.2/../.."}]}'), 404, "no Study Instance UID"),
        (Page(302, b"{}", {"Location": "http://localhost/"}), 404, "is not there"),
        (Page(200, b" " * (8 * 1024 * 1024 + 1)), 503, "does not answer as it should"),
    ],
)  # fmt: skip
def test_a_study_that_cannot_be_read_is_told_in_words(
    site: Site, page: Page, status: int, said: str
) -> None:
    site.ours.instead["/fhir/ImagingStudy/is-1"] = lambda: page
    answer = site.launched(site.ours)
    assert answer.status_code == status
    assert said in answer.text
    # Whoever it is has come all the same, and may search.
    assert site.get("/", cookies_of(answer)).status_code == 200


def test_a_study_that_is_not_here_or_of_another_tenant_is_told_in_words(site: Site) -> None:
    answer = site.launched(site.ours, "unknown")
    shown = site.get("/" + answer.headers["location"].removeprefix("../"), cookies_of(answer))
    assert shown.status_code == 404
    assert "1.2.9.9" in shown.text
    theirs = site.launched(site.theirs)
    assert theirs.headers["location"] == f"../?study={STUDY}"
    hidden = site.get(f"/?study={STUDY}", cookies_of(theirs))
    never = site.get("/?study=1.2.9.9", cookies_of(theirs))
    assert hidden.status_code == never.status_code == 404
    assert "<article" not in hidden.text


def test_two_launches_in_one_browser_go_on_side_by_side(site: Site) -> None:
    one, cookies = site.begun(site.ours)
    begins = site.page.get(
        site.ours.launch("other").removeprefix(PAGE),
        headers={"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())},
    )
    site.page.cookies.clear()
    both = cookies | cookies_of(begins)
    assert len(both) == 2
    other = httpx.get(begins.headers["location"], timeout=60).headers["location"]
    for back, study in ((other, ANOTHER), (one, STUDY)):
        answer = site.get(back, both)
        assert answer.headers["location"] == f"../?study={study}"
        dropped = re.findall(rf'({LAUNCH}\w+)="";', str(answer.headers))
        assert set(dropped) == {name for name in both if name[len(LAUNCH) :] in back}


def test_launches_do_not_fill_a_browser(site: Site) -> None:
    kept = {f"{LAUNCH}{n:016}": f"{n}.ours.{'x' * 43}" for n in range(9)}
    sent = "; ".join(f"{name}={value}" for name, value in kept.items())
    answer = site.page.get(site.ours.launch("study").removeprefix(PAGE), headers={"Cookie": sent})
    site.page.cookies.clear()
    dropped = set(re.findall(rf'({LAUNCH}\d+)="";', str(answer.headers)))
    assert dropped == {*list(kept)[: 9 - MOST_AT_ONCE + 1]}


def test_a_launch_ends_in_time(site: Site) -> None:
    now = time.time()
    with closing(Ehrs({"ours": of(site.ours)}, lambda: now)) as ehrs:
        begun = ehrs.begin(site.ours.iss, "study")
        state = dict(parse_qsl(urlsplit(begun.url).query))["state"]
        now += 601
        with pytest.raises(NotAuthenticated, match="too long"):
            ehrs.finish(begun.secret, {"state": state, "code": "x"})


def test_somebody_begins_on_our_page(site: Site) -> None:
    shown = site.get("/login").text
    (link,) = re.findall(r'href="(smart/launch[^"]*)"', shown)
    assert "Sign in with the &lt;EHR&gt;" in shown
    site.ours.context[""] = {"imagingstudy": "is-2"}
    begins = site.get("/" + link.replace("&amp;", "&"))
    asked = dict(parse_qsl(urlsplit(begins.headers["location"]).query))
    assert asked["scope"] == STANDALONE
    back = httpx.get(begins.headers["location"], timeout=60).headers["location"]
    answer = site.get(back, cookies_of(begins))
    assert answer.headers["location"] == f"../?study={ANOTHER}"
    # Another EHR opens the page itself, or not at all.
    assert site.get(site.theirs.launch()).status_code == 403


def test_a_session_of_an_ehr_ends_when_somebody_signs_out(site: Site) -> None:
    mine = cookies_of(site.launched(site.ours))
    csrf = re.search(r'name="csrf" value="(\w+)"', site.get("/", mine).text)
    assert csrf is not None
    headers = {"Cookie": f"{SESSION}={mine[SESSION]}"}
    assert site.page.post("/logout", headers=headers, data={"csrf": csrf[1]}).status_code == 303
    site.page.cookies.clear()
    assert site.get("/", mine).headers["location"].startswith("login")
    # An EHR that may not open the page any more takes its sessions with it.
    mine = cookies_of(site.launched(site.ours))
    fewer = {name: one for name, one in site.settings.smart.items() if name != "ours"}
    settings = site.settings.model_copy(update={"smart": fewer})
    with LoopbackClient(create_service(settings), follow_redirects=False) as page:
        answer = page.get("/", headers={"Cookie": f"{SESSION}={mine[SESSION]}"})
        assert answer.headers["location"].startswith("login")


def test_in_a_frame_the_cookies_are_the_frames_own(site: Site) -> None:
    back, cookies = site.begun(site.framed)
    answer = site.get(back, cookies)
    mine = cookies_of(answer)
    assert [*mine] == [FRAMED]
    lines = answer.headers.get_list("set-cookie")
    assert any(one.startswith(f"{FRAMED}=") and "Partitioned" in one for one in lines)
    # Of two sessions the frame's counts, and a form still needs its token.
    both = {**cookies_of(site.launched(site.theirs)), **mine}
    assert site.get("/v1/whoami", both).json()["tenant"] == "default"
    headers = {"Cookie": f"{FRAMED}={mine[FRAMED]}"}
    assert site.page.post("/logout", headers=headers).status_code == 403
    assert f"frame-ancestors {site.framed.origin}" in site.get("/").headers.get(
        "content-security-policy", ""
    )
    # Who signs in outside of it, in the same browser, is not taken for the one in the frame.
    plain = site.launched(site.ours)
    assert any(one.startswith(f'{FRAMED}=""') for one in plain.headers.get_list("set-cookie"))


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (Page(200, b"{}" + b" " * 600_000), "too much"),
        (Page(302, b"", {"Location": "http://localhost:1/elsewhere"}), "answered 302"),
        (Page(200, b"no JSON"), "no JSON"),
        (Page(200, b"[]"), "no object"),
        (Page(500, b"{}"), "answered 500"),
        (Page(200, b"{}", after=2), "does not answer"),
    ],
)
def test_a_configuration_that_is_none_leads_nowhere(site: Site, page: Page, said: str) -> None:
    site.ours.instead["/fhir/.well-known/smart-configuration"] = lambda: page
    started = time.monotonic()
    patience = 1 if page.after else 20
    with closing(Ehrs({"ours": of(site.ours, timeout_seconds=patience)})) as ehrs:
        with pytest.raises(ProviderUnavailable, match=said):
            ehrs.begin(site.ours.iss, "study")
        # Nobody waits for it again at once.
        with pytest.raises(ProviderUnavailable):
            ehrs.begin(site.ours.iss, "study")
    assert time.monotonic() - started < 30
    assert site.ours.asked[-1].endswith("smart-configuration")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"token_endpoint": "http://169.254.169.254/token"}, "no https address"),
        ({"token_endpoint": "https://evil.example/token"}, "not asked"),
        ({"jwks_uri": "file:///etc/passwd"}, "no https address"),
        ({"jwks_uri": None}, "lacks an address"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "no https address"),
        ({"authorization_endpoint": "https://user:x@localhost/auth"}, "no https address"),
        ({"issuer": None}, "does not say which issuer"),
        ({"code_challenge_methods_supported": ["plain"]}, "S256"),
    ],
)
def test_a_configuration_leads_to_no_other_host(
    site: Site, told: dict[str, Any], said: str
) -> None:
    site.ours.configuration = told
    with (
        closing(Ehrs({"ours": of(site.ours)})) as ehrs,
        pytest.raises(ProviderUnavailable, match=said),
    ):
        ehrs.begin(site.ours.iss, "study")


def test_an_ehr_that_is_down_is_told_on_a_page(indexed, tmp_path: Path) -> None:
    with ehr(PAGE) as gone:
        smart = {"gone": of(gone)}
    settings = indexed.copy(tmp_path / "data").model_copy(update={"smart": smart})
    with LoopbackClient(create_service(settings), follow_redirects=False) as page:
        assert "Open this page from your EHR" in page.get("/login").text
        answer = page.get(gone.launch("study").removeprefix(PAGE))
        assert answer.status_code == 503
        assert "does not answer as it should" in answer.text
        assert "set-cookie" not in answer.headers


def pem(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_the_page_says_who_it_is_by_a_secret_or_a_key(site: Site, tmp_path: Path) -> None:
    key = generate_private_key(SECP384R1())
    (tmp_path / "key.pem").write_bytes(pem(key))
    (tmp_path / "secret").write_text("of+our/registration-alone\n")
    by_key = {"private_key_file": tmp_path / "key.pem", "key_id": "ours"}
    by_secret = {"client_secret_file": tmp_path / "secret"}
    for given, secret, public in (
        (by_key, None, key.public_key()),
        (by_secret, "of+our/registration-alone", None),
    ):
        site.ours.secret, site.ours.public = secret, public
        try:
            for registered in (given, {}):
                with closing(Ehrs({"ours": of(site.ours, **registered)})) as ehrs:
                    begun = ehrs.begin(site.ours.iss, "study")
                    back = httpx.get(begun.url, timeout=60).headers["location"]
                    answer = dict(parse_qsl(urlsplit(back).query))
                    if registered:
                        assert ehrs.finish(begun.secret, answer).study == STUDY
                        continue
                    with pytest.raises((ProviderUnavailable, NotAuthenticated)):
                        ehrs.finish(begun.secret, answer)
        finally:
            site.ours.secret = site.ours.public = None


def test_what_cannot_be_used_is_told_when_the_service_starts(site: Site, tmp_path: Path) -> None:
    (tmp_path / "short.pem").write_bytes(pem(generate_private_key(SECP256R1())))
    (tmp_path / "none.pem").write_text("none")
    (tmp_path / "empty").write_text("")
    for wrong, said in (
        ({"private_key_file": tmp_path / "short.pem", "key_id": "k"}, "neither RSA"),
        ({"private_key_file": tmp_path / "none.pem", "key_id": "k"}, "no PEM key"),
        ({"private_key_file": tmp_path / "gone.pem", "key_id": "k"}, "No such file"),
        ({"client_secret_file": tmp_path / "empty"}, "placeholder"),
        ({"client_secret_file": tmp_path / "gone"}, "cannot be read"),
    ):
        with pytest.raises(SettingsError, match=said):
            Ehrs({"ours": of(site.ours, **wrong)})
    with pytest.raises(SettingsError, match="is that of"):
        Ehrs({"one": of(site.ours), "two": of(site.ours)})
    alone = site.settings.model_copy(
        update={"server": site.settings.server.model_copy(update={"frame_ancestors": ()})}
    )
    with pytest.raises(SettingsError, match="frame_ancestors is empty"):
        create_service(alone)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"issuer": "http://ehr.example/fhir"}, "https"),
        ({"issuer": "https://u:p@ehr.example/fhir"}, "no address"),
        ({"issuer": "https://ehr.example/fhir?x=1"}, "no address"),
        ({"scopes": ("index",)}, "lacks search"),
        ({"request_scope": "launch"}, "openid or fhirUser"),
        ({"standalone_scope": "openid"}, "openid or fhirUser"),
        ({"key_id": "k"}, "belong together"),
        ({"client_secret_file": "a", "private_key_file": "b", "key_id": "k"}, "exclude each other"),
        ({"algorithms": ("HS256",)}, "algorithms"),
        ({"users": ()}, "users"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    usual = {"issuer": "https://ehr.example/fhir", "client_id": CLIENT, "page_url": PAGE}
    with pytest.raises(ValidationError, match=said):
        SmartSettings(**{**usual, "tenant": "default", **wrong})


def test_nobody_else_is_believed(site: Site) -> None:
    with closing(Ehrs({})) as none, pytest.raises(NotAllowed):
        none.begin(site.ours.iss, "study")
