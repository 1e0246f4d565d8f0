"""What docs/deployment.md shows can be typed: commands with their options, settings, links."""

import re
import shlex
from itertools import pairwise
from typing import Any

import pytest
from deployed import COMPOSE_ONLY, ROOT, check_command, compose, example_variables, is_setting

from engine.search.query import parse_where
from engine.settings import Settings, load_settings

DOC = ROOT / "docs" / "deployment.md"
TEXT = DOC.read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
SHELL_LINES = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
TOML = [block for kind, block in BLOCKS if kind == "toml"]


def commands() -> list[str]:
    """What is shown to be typed after "precedent", without comments and variables before it."""
    found = set()
    for line in [*SHELL_LINES, *re.findall(r"`([^`\n]+)`", PROSE)]:
        typed = re.sub(r"\s+# .*", "", line)
        # A synopsis, as in "a|b" or "[--option]", is for reading alone.
        match = re.search(r"(?:^|\s)precedent ([a-z][^|\[]*)$", typed)
        if match:
            found.add(match[1])
    return sorted(found)


@pytest.mark.parametrize("typed", commands())
def test_commands_are_taken(typed):
    words = shlex.split(typed)
    for option, value in pairwise(words):
        if option == "--where":
            parse_where([value])
    in_prose_alone = not any(typed in line for line in SHELL_LINES)
    # In running text a command may be named without what has to follow it.
    check_command([*words, "--help"] if in_prose_alone else words)


def test_services_are_those_of_compose():
    services = set(compose()["services"])
    for line in SHELL_LINES:
        for words in re.findall(r"docker compose (?:stop|logs|up|restart) (.*)", line):
            assert {word for word in words.split() if not word.startswith("-")} <= services, line
        named = re.search(r"docker compose exec (?:-\S+ )*(\w+)", line)
        assert named is None or named[1] in services, line


def test_variables_are_settings():
    given, offered = example_variables()
    names = set(re.findall(r"PRECEDENT_\w+", TEXT))
    assert "PRECEDENT_STORE__URL" in names
    for name in names:
        assert (name in COMPOSE_ONLY) != is_setting(name), name
    others = set(re.findall(r"`([A-Z]+_[A-Z_]+)(?:=[^`]*)?`", PROSE)) - names
    assert others <= given.keys() | offered


def test_settings_are_there():
    for group, field in re.findall(r"`([a-z]+)\.([a-z_]+)`", PROSE):
        if group in Settings.model_fields:
            kind: Any = Settings.model_fields[group].annotation
            assert field in kind.model_fields, f"{group}.{field}"


@pytest.mark.parametrize("block", TOML)
def test_examples_of_settings_are_taken(block, tmp_path, monkeypatch):
    config = tmp_path / "precedent.toml"
    config.write_text(block)
    monkeypatch.setenv("PRECEDENT_CONFIG", str(config))
    assert load_settings() != Settings.model_construct()


def test_a_variable_adds_to_a_source_of_the_file(tmp_path, monkeypatch):
    block = next(block for block in TOML if "dicomweb" in block)
    (tmp_path / "precedent.toml").write_text(block)
    monkeypatch.setenv("PRECEDENT_CONFIG", str(tmp_path / "precedent.toml"))
    monkeypatch.setenv("PRECEDENT_SOURCES__PACS__TOKEN", "of-the-pacs")
    source = load_settings().sources["pacs"]
    assert source.token.get_secret_value() == "of-the-pacs"
    assert source.max_workers == 2


def test_what_it_points_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)", TEXT):
        assert target.startswith("https://") or (DOC.parent / target).exists(), target
    paths = set(re.findall(r"`((?:engine|docker)/[\w./]+)`", PROSE)) - {"docker/.env"}
    assert "docker/compose.yaml" in paths
    for path in paths:
        assert (ROOT / path).exists(), path
