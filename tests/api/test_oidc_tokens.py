"""Access tokens of a real identity provider: those that are taken, and every kind that is not."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from fastapi.testclient import TestClient
from oidc_site import PEOPLE, PROGRAMS, SHORT, bearer, by_public_key, part, settings_of
from services.identity_provider import AUDIENCE, OTHER_AUDIENCE, IdentityProvider, SigningKey
from services.loopback import LoopbackClient

from api.audit.log import open_log
from api.security.keys import Keys
from api.security.oidc.identity import identity_of
from api.security.oidc.outbound import Outbound
from api.security.oidc.provider import Provider
from api.security.oidc.relying_party import RelyingParty
from api.security.oidc.tokens import access_token_claims
from api.security.policy import Scope
from api.service import create_service
from engine.errors import NotAllowed, NotAuthenticated, ProviderUnavailable, SettingsError
from engine.settings import Settings
from indexer.ledger.database import Database


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider(PROGRAMS, PEOPLE, lifetimes={SHORT: 3}) as running:
        yield running


@pytest.fixture(scope="module")
def service(provider: IdentityProvider, indexed, store_root: Path) -> Iterator[TestClient]:
    settings = indexed.copy(store_root / "data")
    settings = settings.model_copy(update={"oidc": settings_of(provider)})
    with LoopbackClient(create_service(settings), follow_redirects=False) as client:
        yield client


def test_a_token_is_as_good_as_a_key(service: TestClient, provider: IdentityProvider) -> None:
    headers = bearer(provider.token("right"))
    assert service.get("/v1/facets", headers=headers).json()["count"] == 35
    assert service.get("/healthz", headers=headers).json()["points"] == 35
    elsewhere = bearer(provider.token("other"))
    assert service.get("/v1/facets", headers=elsewhere).json()["count"] == 0


def test_a_service_with_a_provider_is_not_open(service: TestClient) -> None:
    refused = service.get("/v1/facets")
    assert (refused.status_code, refused.json()["code"]) == (401, "not-authenticated")
    assert service.get("/healthz").json() == {"status": "ok", "points": None, "model": None}


def test_keys_are_taken_beside_tokens(service: TestClient, store_root: Path) -> None:
    with Database(f"sqlite:///{store_root / 'data' / 'ledger.sqlite'}") as database:
        _, written = Keys(database).create("ward", [Scope.SEARCH])
    assert service.get("/v1/facets", headers=bearer(written)).status_code == 200


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("nothing", "nothing that gives a scope"),
        ("nowhere", "names none of the tenants"),
        ("everywhere", "names 2 of the tenants"),
        ("without-search", "scope 'search'"),
    ],
)
def test_what_no_setting_maps_gives_nothing(
    service: TestClient, provider: IdentityProvider, program: str, said: str
) -> None:
    refused = service.get("/v1/facets", headers=bearer(provider.token(program)))
    assert (refused.status_code, refused.json()["code"]) == (403, "not-allowed")
    assert said in refused.json()["detail"]


@pytest.mark.parametrize(
    ("program", "tenant"),
    [("nothing", None), ("nowhere", None), ("everywhere", None), ("without-search", "default")],
)
def test_who_may_do_nothing_is_named_in_the_audit(
    service: TestClient, provider: IdentityProvider, store_root: Path, program: str, tenant: str
) -> None:
    token = provider.token(program)
    subject = jwt.decode(token, options={"verify_signature": False})["sub"]
    service.get("/v1/facets", headers={**bearer(token), "X-Request-Id": program})
    with open_log(Settings(data_dir=store_root / "data")) as log:
        row = next(iter(log.between(latest_first=True))).document
    assert (row["who"]["kind"], row["who"]["id"], row["who"]["tenant"]) == (
        "token",
        subject,
        tenant,
    )
    assert (row["action"], row["request"]) == ("GET /v1/facets", program)
    assert (row["status"], row["outcome"]) == (403, "refused")


def test_who_forges_a_token_is_not_named_by_it(
    service: TestClient, provider: IdentityProvider, store_root: Path
) -> None:
    forged = with_changed_claims(provider)
    assert service.get("/v1/facets", headers=bearer(forged)).status_code == 401
    with open_log(Settings(data_dir=store_root / "data")) as log:
        row = next(iter(log.between(latest_first=True))).document
    assert (row["who"]["kind"], row["who"]["id"], row["status"]) == ("unknown", None, 401)


def claims(provider: IdentityProvider, **changed: Any) -> dict[str, Any]:
    """Those of a good token; None takes a claim away."""
    now = int(time.time())
    usual = {
        "iss": provider.issuer,
        "aud": AUDIENCE,
        "sub": "right",
        "iat": now,
        "exp": now + 60,
        **PROGRAMS["right"],
    }
    return {name: value for name, value in {**usual, **changed}.items() if value is not None}


def unsigned(provider: IdentityProvider, algorithm: str = "none") -> str:
    return f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(claims(provider))}."


def with_changed_claims(provider: IdentityProvider) -> str:
    head, _, signature = provider.token("nothing").split(".")
    return f"{head}.{part(claims(provider))}.{signature}"


def expired(provider: IdentityProvider) -> str:
    return provider.key.signed(claims(provider, iat=1, exp=int(time.time()) - 1))


def its_own_key(provider: IdentityProvider) -> str:
    """A token that brings the key by which it is to be checked."""
    other = SigningKey("first")
    public = {**other.jwk}
    for private in ("d", "p", "q", "dp", "dq", "qi"):
        public.pop(private)
    return other.signed(claims(provider), jwk=public, jku="http://127.0.0.1:9/jwks")


def other_curve(provider: IdentityProvider) -> str:
    key = generate_private_key(SECP256R1())
    return jwt.encode(claims(provider), key, "ES256", headers={"kid": provider.key.id})


DEFECTS: dict[str, tuple[str, Callable[[IdentityProvider], str]]] = {
    "none": ("algorithm", unsigned),
    "None": ("algorithm", lambda p: unsigned(p, "None")),
    "no signature": ("malformed|signature", lambda p: unsigned(p, "RS256")),
    "public key as secret": ("algorithm", lambda p: by_public_key(p.key, claims(p))),
    "RS512, not listed": (
        "algorithm",
        lambda p: jwt.encode(claims(p), p.key.private, "RS512", headers={"kid": "first"}),
    ),
    "other audience, real": ("audience", lambda p: p.token("right", OTHER_AUDIENCE)),
    "no audience": ("'aud'", lambda p: p.key.signed(claims(p, aud=None))),
    "other issuer": ("issuer", lambda p: p.key.signed(claims(p, iss=p.issuer + "/"))),
    "no issuer": ("'iss'", lambda p: p.key.signed(claims(p, iss=None))),
    "expired": ("expired", expired),
    "no end": ("'exp'", lambda p: p.key.signed(claims(p, exp=None))),
    "end is no number": ("malformed", lambda p: p.key.signed(claims(p, exp=None) | {"exp": "x"})),
    "not yet": ("yet to come", lambda p: p.key.signed(claims(p, nbf=int(time.time()) + 60))),
    "from the future": (
        "yet to come",
        lambda p: p.key.signed(claims(p, iat=int(time.time()) + 60)),
    ),
    "unknown kid": ("by no key", lambda p: SigningKey("stranger").signed(claims(p))),
    "other key, same kid": ("signature", lambda p: SigningKey("first").signed(claims(p))),
    "brings its key": ("signature", its_own_key),
    "other kind of key": ("by no key", other_curve),
    "changed": ("signature", with_changed_claims),
    "nobody": ("'sub'", lambda p: p.key.signed(claims(p, sub=None))),
    "kind of another use": ("another kind", lambda p: p.key.signed(claims(p), typ="logout+jwt")),
    "bound to a key": ("bound to a key", lambda p: p.key.signed(claims(p, cnf={"jkt": "x"}))),
    "critical": ("malformed", lambda p: p.key.signed(claims(p), crit=["http://x.example"])),
    "empty parts": ("malformed", lambda _: ".."),
    "nonsense": ("malformed", lambda _: "a.b.c"),
    "huge": ("malformed", lambda p: p.key.signed(claims(p, more="x" * 20_000))),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_token_with_a_defect_is_none(
    service: TestClient, provider: IdentityProvider, defect: str
) -> None:
    said, made = DEFECTS[defect]
    token = made(provider)
    refused = service.get("/v1/facets", headers=bearer(token))
    assert (refused.status_code, refused.json()["code"]) == (401, "not-authenticated")
    assert any(one in refused.json()["detail"] for one in said.split("|")), refused.json()
    assert 'error="invalid_token"' in refused.headers["www-authenticate"]
    assert token not in refused.text


@pytest.mark.slow
def test_a_real_token_ends(provider: IdentityProvider) -> None:
    settings = settings_of(provider, audience=SHORT)
    token = provider.token("right", SHORT)
    with_party = RelyingParty(settings)
    assert with_party.by_token(token).id == "right"
    time.sleep(3.1)
    with pytest.raises(NotAuthenticated, match="expired"):
        with_party.by_token(token)
    with_party.close()
    lenient = RelyingParty(settings_of(provider, audience=SHORT, skew_seconds=60))
    assert lenient.by_token(token).id == "right"
    lenient.close()


def test_clocks_may_differ_by_the_skew(provider: IdentityProvider) -> None:
    party = RelyingParty(settings_of(provider, skew_seconds=60))
    ahead = int(time.time()) + 50
    token = provider.key.signed(claims(provider, iat=ahead, nbf=ahead))
    assert party.by_token(token).tenant == "default"
    party.close()


class Watch:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Counted(Outbound):
    """Counts what it asks."""

    asked = 0

    def get(self, url: str) -> dict[str, Any]:
        self.asked += 1
        return super().get(url)

    def wait_for(self, asked: int) -> None:
        """Waits until so much was asked in all, and then for what is too much."""
        until = time.monotonic() + 30
        while self.asked < asked and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        assert self.asked == asked


def test_keys_rotate_and_an_unknown_one_asks_but_seldom() -> None:
    watch = Watch()
    with IdentityProvider(PROGRAMS) as mine:
        settings = settings_of(mine, refetch_seconds=10, keys_seconds=600)
        outbound = Counted(settings)
        provider = Provider(settings, outbound, watch)

        def taken(token: str) -> bool:
            try:
                access_token_claims(token, settings, provider)
            except NotAuthenticated:
                return False
            return True

        old = mine.token("right")
        assert taken(old)
        assert outbound.asked == 2
        watch.now = 11
        mine.rotate("second")
        new = mine.token("right")
        with ThreadPoolExecutor(8) as at_once:
            assert all(at_once.map(taken, [new] * 8)), "all wait for the one answer"
        assert not taken(old), "its key is withdrawn"
        asked = outbound.asked
        stranger = SigningKey("stranger").signed(claims(mine))
        for _ in range(20):
            assert not taken(stranger)
        assert outbound.asked == asked == 4
        watch.now = 22
        for _ in range(20):
            assert not taken(stranger)
        assert outbound.asked == 6
        assert taken(new)
        watch.now = 22 + 601
        assert taken(new)
        outbound.wait_for(8)
        outbound.close()


def test_an_outage_is_bridged_for_a_while_and_told_after_that() -> None:
    watch = Watch()
    with IdentityProvider(PROGRAMS) as mine:
        settings = settings_of(mine, keys_seconds=600, outage_seconds=3600, refetch_seconds=10)
        outbound = Counted(settings)
        provider = Provider(settings, outbound, watch)
        token = mine.token("right")
        access_token_claims(token, settings, provider)
        mine.stop()
        for watch.now, asked in ((599, 2), (601, 3), (605, 3), (4199, 4)):
            assert access_token_claims(token, settings, provider)["sub"] == "right"
            outbound.wait_for(asked)
        with pytest.raises(NotAuthenticated, match="by no key"):
            access_token_claims(SigningKey("new").signed(claims(mine)), settings, provider)
        for watch.now in (4201, 4202):
            with pytest.raises(ProviderUnavailable, match="does not answer"):
                access_token_claims(token, settings, provider)
        watch.now = 4300
        mine.start()
        assert access_token_claims(token, settings, provider)["sub"] == "right"
        outbound.close()


@pytest.mark.slow
def test_a_service_starts_without_its_provider_and_answers_503(indexed, tmp_path: Path) -> None:
    with IdentityProvider(PROGRAMS) as mine:
        token = mine.token("right")
        oidc = settings_of(mine, refetch_seconds=1)
        mine.stop()
        settings = indexed.copy(tmp_path / "data").model_copy(update={"oidc": oidc})
        with LoopbackClient(create_service(settings)) as client:
            refused = client.get("/v1/facets", headers=bearer(token))
            assert (refused.status_code, refused.json()["code"]) == (503, "identity-provider")
            assert "API key" in refused.json()["detail"]
            assert int(refused.headers["retry-after"]) > 0
            with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
                _, written = Keys(database).create("ward", [Scope.SEARCH])
            assert client.get("/v1/facets", headers=bearer(written)).status_code == 200
            mine.start()
            time.sleep(1.1)
            assert client.get("/v1/facets", headers=bearer(token)).status_code == 200


@pytest.mark.parametrize(
    ("answered", "said"),
    [
        ({"issuer": "https://other.example"}, "calls itself 'https://other.example'"),
        ({"jwks_uri": "http://169.254.169.254/keys"}, "no https address"),
        ({"jwks_uri": "https://169.254.169.254/keys"}, "oidc.allowed_hosts"),
        ({"jwks_uri": "https://login.example:8443/keys"}, "oidc.allowed_hosts"),
        ({"jwks_uri": "https://login.example@evil.example/keys"}, "no https address"),
        ({"jwks_uri": "http://127.0.0.1/keys"}, "no https address"),
        ({"jwks_uri": "file:///etc/passwd"}, "no https address"),
        ({"jwks_uri": None}, "lacks an address"),
        ({"token_endpoint": "https://evil.example/token"}, "'evil.example'"),
    ],
    ids=str,
)
def test_a_provider_leads_to_no_other_host(answered: dict[str, Any], said: str) -> None:
    issuer = "https://login.example"

    class Answers(Outbound):
        def get(self, url: str) -> dict[str, Any]:
            assert url == issuer + "/.well-known/openid-configuration"
            return {"issuer": issuer, "jwks_uri": issuer + "/keys", **answered}

    settings = settings_of(_at(issuer))
    outbound = Answers(settings)
    with pytest.raises(ProviderUnavailable, match=said):
        Provider(settings, outbound).configuration()
    outbound.close()


class _at:  # noqa: N801
    def __init__(self, issuer: str) -> None:
        self.issuer = issuer


@pytest.mark.parametrize(
    ("claims", "scopes", "tenant"),
    [
        ({"roles": ["r"]}, {"search"}, "one"),
        ({"realm": {"roles": ["r", "x"]}}, {"search"}, "one"),
        ({"roles": "x r"}, {"search"}, "one"),
        ({"roles": "two words"}, {"index"}, "one"),
        ({"roles": ["x r"]}, None, None),
        ({"roles": {"r": True}}, None, None),
        ({"roles": True}, None, None),
        ({}, None, None),
    ],
    ids=str,
)
def test_claims_give_what_the_settings_say(claims, scopes, tenant) -> None:
    claim = "realm.roles" if "realm" in claims else "roles"
    settings = settings_of(
        _at("https://login.example"),
        scope_claim=claim,
        scopes={"search": ("r",), "index": ("two words",)},
        tenant="one",
        tenant_claim=None,
        tenants={},
    )
    if scopes is None:
        with pytest.raises(NotAllowed):
            identity_of({"sub": "s", **claims}, settings)
        return
    found = identity_of({"sub": "s", **claims}, settings)
    assert (found.id, found.name, found.tenant, found.scopes) == ("s", "s", tenant, scopes)


def test_a_secret_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    def party(written: str | None) -> RelyingParty:
        file = tmp_path / "secret"
        if written is not None:
            file.write_text(written)
        return RelyingParty(
            settings_of(
                _at("https://login.example"),
                client_id="page",
                page_url="https://precedent.example",
                client_secret_file=file,
            )
        )

    with pytest.raises(SettingsError, match="cannot be read"):
        party(None)
    for written in ("", "\n", "changeme", "CHANGE-ME\n", "<secret>", "xxxxxxxxxxxxxxxx"):
        with pytest.raises(SettingsError, match="placeholder") as refused:
            party(written)
        assert not written.strip() or written.strip() not in str(refused.value)
    party("gH7-pq2.Lx_9\n").close()
