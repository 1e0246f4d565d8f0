"""Settings of OpenID Connect: what is refused, and what the refusal says."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.errors import SettingsError
from engine.oidc_settings import OidcSettings
from engine.settings import Settings, load_settings

GOOD: dict[str, Any] = {
    "issuer": "https://login.example/realms/hospital",
    "audience": "precedent",
    "scopes": {"search": ["radiology"]},
    "tenant": "default",
}
PAGE = {"client_id": "page", "page_url": "https://precedent.example"}


def test_without_an_issuer_it_is_off() -> None:
    assert OidcSettings().issuer is None


@pytest.mark.parametrize(
    "change",
    [
        {},
        PAGE,
        {**PAGE, "audience": None},
        {**PAGE, "client_secret": "gH7-pq2.Lx_9"},
        {"issuer": "http://localhost:8080"},
        {"tenant": None, "tenant_claim": "site", "tenants": {"north": "n"}},
        {"algorithms": ["EdDSA"]},
    ],
    ids=str,
)
def test_what_is_complete_is_taken(change: dict[str, Any]) -> None:
    assert OidcSettings(**{**GOOD, **change}).issuer


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"issuer": None}, "no use without oidc.issuer"),
        ({"issuer": "http://login.example"}, "no address that can be used"),
        ({"issuer": "https://user@login.example"}, "no address that can be used"),
        ({"issuer": "login.example"}, "no address that can be used"),
        ({"audience": None}, "oidc.audience"),
        ({**PAGE, "audience": "page"}, "is oidc.client_id"),
        ({"client_id": "page"}, "needs oidc.page_url"),
        ({"scopes": {}}, "nobody may do anything"),
        ({"scopes": {"search": []}}, "nobody may do anything"),
        ({"scopes": {"everything": ["radiology"]}}, "search"),
        ({"tenant": None}, "either oidc.tenant"),
        ({"tenant_claim": "site", "tenants": {"north": "n"}}, "either oidc.tenant"),
        ({"tenant": None, "tenant_claim": "site"}, "either oidc.tenant"),
        ({"tenants": {"north": "n"}}, "either oidc.tenant"),
        ({"tenant": "a b"}, "no tenant"),
        ({"algorithms": ["HS256"]}, "RS256"),
        ({"algorithms": ["none"]}, "RS256"),
        ({"algorithms": []}, "at least 1"),
        ({**PAGE, "client_secret": "changeme"}, "placeholder"),
        ({**PAGE, "client_secret": ""}, "placeholder"),
        ({**PAGE, "client_secret": "gH7-pq2.Lx_9", "client_secret_file": "/x"}, "keep one"),
        ({"skew_seconds": 3600}, "300"),
        ({"audiences": "x"}, "not permitted"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        OidcSettings(**{**GOOD, **change})
    # The name of the class and the values of other fields are in the error, and not in ours.
    secret = change.get("client_secret")
    assert not secret or secret not in refused.value.errors()[0]["msg"]


def test_the_secret_belongs_into_no_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "precedent.toml"
    lines = [
        "[oidc]",
        'issuer = "https://login.example"',
        'client_id = "page"',
        'page_url = "https://precedent.example"',
        'tenant = "default"',
        'scopes = {search = ["radiology"]}',
    ]
    file.write_text("\n".join(lines))
    monkeypatch.setenv("PRECEDENT_CONFIG", str(file))
    assert load_settings().oidc.secret() is None
    monkeypatch.setenv("PRECEDENT_OIDC__CLIENT_SECRET", "gH7-pq2.Lx_9")
    settings = load_settings()
    assert settings.oidc.secret() == "gH7-pq2.Lx_9"
    assert "gH7" not in repr(settings) + settings.model_dump_json()
    monkeypatch.setenv("PRECEDENT_OIDC__CLIENT_SECRET", "change-me")
    with pytest.raises(SettingsError, match="placeholder") as refused:
        load_settings()
    assert "change-me" not in str(refused.value)
    monkeypatch.delenv("PRECEDENT_OIDC__CLIENT_SECRET")
    file.write_text("\n".join([*lines, 'client_secret = "gH7-pq2.Lx_9"']))
    with pytest.raises(SettingsError, match="client_secret_file") as refused:
        load_settings()
    assert "gH7" not in str(refused.value)


def test_the_page_on_security_shows_settings_that_are_taken() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    found = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert found is not None
    settings = OidcSettings(**tomllib.loads(found[1])["oidc"])
    assert settings.scopes["admin"] == ("imaging-it",)


def test_variables_alone_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ISSUER": "https://login.example",
        "AUDIENCE": "precedent",
        "SCOPES": '{"search": ["radiology"], "index": ["pacs"]}',
        "TENANT": "default",
    }.items():
        monkeypatch.setenv(f"PRECEDENT_OIDC__{name}", value)
    assert load_settings().oidc.scopes["index"] == ("pacs",)


def test_settings_that_another_process_wrote_are_read(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert Settings.model_validate_json(settings.model_dump_json()).oidc == settings.oidc
