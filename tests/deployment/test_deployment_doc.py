"""docs/deployment.md says what is so: commands, settings, reasons and figures."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deployed import COMPOSE_ONLY, ROOT, check_command, compose, example_variables, is_setting

from engine.errors import RefusalReason
from engine.search.query import parse_where
from engine.settings import FolderSettings, Settings, load_settings

DOC = ROOT / "docs" / "deployment.md"
TEXT = DOC.read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
IN_LINES = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S))


def commands() -> list[str]:
    """Every command line of the text that begins with "precedent"."""
    lines = [line.removeprefix("$ ") for kind, block in BLOCKS if not kind
             for line in block.splitlines()]  # fmt: skip
    found = [line for line in lines + IN_LINES if line.startswith("precedent ")]
    for line in lines:
        inner = re.search(r"docker compose exec (?:-T )?(?:api|worker) (precedent .*)", line)
        if inner:
            found.append(inner[1])
        inner = re.search(r"docker compose run .* api (restore .*)", line)
        if inner:
            found.append(f"precedent {inner[1]}")
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_commands_are_real(line):
    words = shlex.split(line)[1:]
    for option, value in zip(words, words[1:], strict=False):
        if option == "--where":
            parse_where([value])
    if len(words) > 1 and words[-1].startswith("--") and words[0] == "delete":
        # Named without a value.
        words.append("1.2.3")
    if words != ["jobs"]:
        check_command(words)


def test_services_are_those_of_compose():
    services = set(compose()["services"])
    for _, block in BLOCKS:
        for line in block.splitlines():
            named = re.match(r"docker compose (?:exec|run) (?:-\S+ (?!\w+ )|-T )*(\w+)", line)
            assert not named or named[1] in services | {"rm"}, line
            for word in re.findall(r"docker compose (?:stop|logs|up) (.*)", line):
                plain = {w for w in word.split() if not w.startswith("-")}
                assert plain <= services, line


def test_every_reason_of_a_refusal_is_explained():
    rows = re.findall(r"^\| `([\w-]+)`( \*)? \| (.+) \| (.+) \|$", TEXT, re.MULTILINE)
    assert {row[0] for row in rows} == {reason.value for reason in RefusalReason}
    assert len(rows) == len(RefusalReason)


def test_the_reasons_that_pass_by_themselves_are_marked():
    from indexer.ledger import _TRANSIENT

    marked = re.findall(r"^\| `([\w-]+)` \* \|", TEXT, re.MULTILINE)
    assert set(marked) == {reason.value for reason in _TRANSIENT}


def test_variables_are_settings():
    given, offered = example_variables()
    for name in set(re.findall(r"PRECEDENT_\w+", TEXT)):
        assert (name in COMPOSE_ONLY) != is_setting(name), name
    for name in set(re.findall(r"`([A-Z]+_[A-Z_]+)(?:=\S*)?`", TEXT)):
        known = name in given.keys() | offered
        assert known or name.startswith("PRECEDENT_"), name


def test_settings_are_there():
    named = {word for word in IN_LINES if re.fullmatch(r"[a-z]+\.[a-z_]+", word)}
    named -= {word for word in named if word.endswith((".toml", ".conf", ".py", ".yaml"))}
    assert len(named) > 10
    for name in named:
        group, field = name.split(".")
        kind: Any = Settings.model_fields[group].annotation
        assert field in kind.model_fields, name


@pytest.mark.parametrize("block", [block for kind, block in BLOCKS if kind == "toml"])
def test_examples_of_settings_are_taken(block, tmp_path, monkeypatch):
    monkeypatch.setenv("PRECEDENT_CONFIG", str(tmp_path / "precedent.toml"))
    (tmp_path / "precedent.toml").write_text(block)
    settings = load_settings()
    assert settings.sources or settings.receive.allowed_ae_titles
    for source in settings.sources.values():
        assert source.window
        if isinstance(source, FolderSettings):
            assert all(path.is_absolute() for path in source.paths)


def test_a_variable_names_a_source_of_the_file(tmp_path, monkeypatch):
    block = next(block for kind, block in BLOCKS if kind == "toml" and "dicomweb" in block)
    (tmp_path / "precedent.toml").write_text(block)
    monkeypatch.setenv("PRECEDENT_CONFIG", str(tmp_path / "precedent.toml"))
    monkeypatch.setenv("PRECEDENT_SOURCES__PACS__TOKEN", "of-the-pacs")
    source = load_settings().sources["pacs"]
    assert source.token.get_secret_value() == "of-the-pacs"
    assert source.max_workers == 2


def test_defaults_are_as_told():
    jobs = load_settings().jobs
    assert f"`jobs.chunk` ({jobs.chunk:,} instances)" in TEXT
    assert f"`jobs.backoff_seconds` ({jobs.backoff_seconds:g})" in TEXT
    assert f"`jobs.attempts` ({jobs.attempts}) tries" in TEXT
    assert f"`jobs.queued`, {jobs.queued} chunks" in TEXT
    assert load_settings().server.max_upload_bytes == 64 * 1024**2


def test_the_plan_is_what_the_command_prints():
    command, _, output = next(
        block for _, block in BLOCKS if block.startswith("$ precedent plan")
    ).partition("\n")
    done = subprocess.run(
        [sys.executable, "-m", "api", *shlex.split(command)[2:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == output, "measured anew? put the output into docs/deployment.md"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert target.startswith("https://") or (DOC.parent / target).exists(), target
    for path in re.findall(r"`((?:engine|docker)/[\w./]*)`", TEXT):
        assert (Path(ROOT) / path).exists(), path
