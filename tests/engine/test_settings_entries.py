"""Entries of settings that are there in part, and secrets that lie in files."""

import os
from pathlib import Path

import pytest

from engine import environment
from engine.errors import SettingsError
from engine.settings import load_settings

SECRET = "correct-horse-battery"
PACS = '[sources.pacs]\nkind = "dicomweb"\nurl = "https://pacs.example"\n'


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """No settings of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("PRECEDENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "_told", set())


def message() -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    text = str(caught.value)
    assert SECRET not in text
    assert "tag" not in text  # pydantic's word
    assert "\n" not in text
    return text


# Entries


@pytest.mark.parametrize(
    ("group", "kinds"),
    [("SOURCES", '"folder" or "dicomweb"'), ("DESTINATIONS", '"dicom" or "stow"')],
)
def test_a_password_without_its_entry_names_the_variable_and_the_way_out(monkeypatch, group, kinds):
    variable = f"PRECEDENT_{group}__PACS__PASSWORD"
    monkeypatch.setenv(variable, SECRET)
    text = message()
    assert text.startswith(f"{variable} is set, and there is no [{group.lower()}.pacs]")
    assert f"add it to precedent.toml with kind = {kinds}, or unset the variable" in text


def test_a_password_reaches_an_entry_of_the_file(monkeypatch):
    Path("precedent.toml").write_text(PACS)
    monkeypatch.setenv("PRECEDENT_SOURCES__PACS__PASSWORD", SECRET)
    assert load_settings().sources["pacs"].password.get_secret_value() == SECRET


def test_a_password_cannot_reach_a_name_in_capitals_and_says_so(monkeypatch):
    Path("precedent.toml").write_text(PACS.replace("pacs]", "PACS]"))
    monkeypatch.setenv("PRECEDENT_SOURCES__PACS__PASSWORD", SECRET)
    text = message()
    assert "PRECEDENT_SOURCES__PACS__PASSWORD cannot reach [sources.PACS]" in text
    assert "call it [sources.pacs]" in text


def test_an_entry_without_a_kind_is_told_which_there_are():
    Path("precedent.toml").write_text('[sources.pacs]\nurl = "https://pacs.example"\n')
    assert message() == (
        'sources.pacs has no kind; give it kind = "folder" or "dicomweb" in precedent.toml'
    )


def test_what_an_entry_lacks_is_named_by_its_variable(monkeypatch):
    monkeypatch.setenv("PRECEDENT_SOURCES__PACS__KIND", "dicomweb")
    assert "PRECEDENT_SOURCES__PACS__URL" in message()


# Secrets by file


@pytest.fixture
def secret() -> Path:
    path = Path("secret")
    path.write_text(f"{SECRET}\n")
    return path.absolute()


def test_secrets_are_read_from_files_that_variables_name(monkeypatch, secret, caplog):
    Path("precedent.toml").write_text(PACS)
    for name in ("PSEUDONYM_KEY", "STORE__API_KEY", "LEDGER__URL", "SOURCES__PACS__TOKEN"):
        monkeypatch.setenv(f"PRECEDENT_{name}_FILE", str(secret))
    settings = load_settings()
    found = (
        settings.pseudonym_key,
        settings.store.api_key,
        settings.ledger.url,
        settings.sources["pacs"].token,
    )
    assert [one.get_secret_value() for one in found] == [SECRET] * 4
    assert caplog.records == []


def test_a_variable_with_a_file_beats_the_settings_file(monkeypatch, secret):
    Path("precedent.toml").write_text('[store]\napi_key = "of-the-file"\nshards = 3\n')
    monkeypatch.setenv("PRECEDENT_STORE__API_KEY_FILE", str(secret))
    store = load_settings().store
    assert (store.api_key.get_secret_value(), store.shards) == (SECRET, 3)


def test_a_setting_that_is_called_so_is_that(monkeypatch, secret):
    for name, value in {
        "ISSUER": "https://login.example", "AUDIENCE": "a", "TENANT": "default",
        "SCOPES": '{"search": ["a"]}', "CLIENT_SECRET_FILE": str(secret),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"PRECEDENT_OIDC__{name}", value)
    oidc = load_settings().oidc
    assert (oidc.client_secret, oidc.client_secret_file) == (None, secret)


def test_a_file_of_what_is_no_secret_is_no_setting(monkeypatch, secret):
    monkeypatch.setenv("PRECEDENT_SEARCH__K_FILE", str(secret))
    assert "PRECEDENT_SEARCH__K_FILE" in message()


@pytest.mark.parametrize("content", [None, "", "\n", b"\xff\xfe"])
def test_a_file_without_a_secret_is_named(monkeypatch, tmp_path, content):
    path = tmp_path / "of-nobody"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("PRECEDENT_STORE__API_KEY_FILE", str(path))
    text = message()
    assert "PRECEDENT_STORE__API_KEY_FILE" in text
    assert str(path) in text


def test_a_secret_that_is_given_twice_is_refused(monkeypatch, secret):
    monkeypatch.setenv("PRECEDENT_STORE__API_KEY", "another")
    monkeypatch.setenv("PRECEDENT_STORE__API_KEY_FILE", str(secret))
    assert "PRECEDENT_STORE__API_KEY and PRECEDENT_STORE__API_KEY_FILE" in message()
