"""``precedent settings``: what is in force, from where, and what it means; never a secret."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from commands import run

from api.cli.main import app
from engine import environment
from engine.errors import QueryError

SECRET = "correct-horse-battery"


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """No settings of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("PRECEDENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "_told", set())


def told(*arguments: object) -> dict[str, dict[str, Any]]:
    found = json.loads(run("settings", "--json", *arguments))["settings"]
    by_name = {one["name"]: one for one in found}
    assert len(by_name) == len(found)
    return by_name


def test_each_value_says_where_it_comes_from(monkeypatch):
    Path("precedent.toml").write_text(
        '[search]\nk = 3\nmin_candidates = 11\n[sources.ct]\nkind = "folder"\npaths = ["/ct"]\n'
    )
    monkeypatch.setenv("PRECEDENT_SEARCH__MIN_CANDIDATES", "7")
    monkeypatch.setenv("PRECEDENT_STORE", '{"urls": ["http://a:6333", "http://b:6333"]}')
    found = told("--data-dir", "elsewhere")
    assert (found["search.k"]["value"], found["search.k"]["from"]) == (3, "file")
    assert found["search.k"]["place"] == "precedent.toml"
    assert found["search.min_candidates"]["value"] == 7
    assert found["search.min_candidates"]["place"] == "PRECEDENT_SEARCH__MIN_CANDIDATES"
    assert found["search.max_counted"]["from"] == "default"
    assert (found["data_dir"]["value"], found["data_dir"]["from"]) == ("elsewhere", "argument")
    assert found["store.urls"]["place"] == "PRECEDENT_STORE"
    assert found["store.shards"]["from"] == "default"
    assert (found["store.url"]["value"], found["store.url"]["from"]) == (
        "http://a:6333",
        "other settings",
    )
    assert found["sources.ct.paths"]["value"] == ["/ct"]
    assert found["sources.ct.paths"]["from"] == "file"
    assert all(one["meaning"] for one in found.values())
    assert {*told("--changed")} == {
        "search.k", "search.min_candidates", "store.url", "store.urls", "sources.ct.kind",
        "sources.ct.paths",
    }  # fmt: skip


def test_secrets_are_never_printed(monkeypatch, tmp_path):
    (tmp_path / "key").write_text(SECRET)
    Path("precedent.toml").write_text(
        f'[sources.pacs]\nkind = "dicomweb"\nurl = "https://me:{SECRET}@pacs.example/dicom"\n'
    )
    for name, value in {
        "PSEUDONYM_KEY_FILE": str(tmp_path / "key"),
        "STORE__API_KEY": SECRET,
        "STORE__URL": f"https://me:{SECRET}@qdrant.example:6333",
        "LEDGER__URL": f"postgresql://me:{SECRET}@db.example/precedent",
        "JOBS__BROKER": f"redis://:{SECRET}@broker.example",
        "SOURCES__PACS__PASSWORD": SECRET,
        "SERVER__TRACES_URL": f"https://collector.example/v1?api_key={SECRET}",
    }.items():
        monkeypatch.setenv(f"PRECEDENT_{name}", value)
    assert SECRET not in run("settings", "--json")
    text = run("settings")
    assert SECRET not in text
    assert "store.api_key = (set, not shown)    [environment PRECEDENT_STORE__API_KEY]" in text
    found = told()
    assert found["pseudonym_key"]["set"]
    assert found["pseudonym_key"]["place"] == "PRECEDENT_PSEUDONYM_KEY_FILE"
    assert found["sources.pacs.url"]["value"] == "https://…@pacs.example/dicom"
    assert found["sources.pacs.token"]["set"] is False


def test_of_one_group_or_one_setting():
    assert {name.partition(".")[0] for name in told("search", "fhir")} == {"search", "fhir"}
    assert list(told("store.url")) == ["store.url"]
    text = run("settings", "search.k")
    assert text.splitlines()[0] == "search.k = 10    [default]"
    assert text.splitlines()[1].startswith("    Hits of an answer")


def test_a_name_that_is_none_is_answered_with_the_nearest():
    with pytest.raises(QueryError, match=r"is search\.k meant"):
        app(["settings", "serch.k"], standalone_mode=False)
