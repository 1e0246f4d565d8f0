"""docker/prometheus and docker/grafana: valid, and each alert fires, does not, and is explained."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import DOCKER, ROOT
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from services.needed import program
from typer.testing import CliRunner

from api.cli.main import app

RULES = DOCKER / "prometheus" / "precedent.rules.yml"
TESTS = Path(__file__).parent / "precedent.rules.test.yml"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
DASHBOARD = json.loads((DOCKER / "grafana" / "precedent.json").read_text())


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    binary = program("promtool", "prometheus")
    return subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=250)


def test_rules_and_configuration_are_valid(tmp_path: Path) -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    # The key lies beside them.
    for name in ("prometheus.yml", RULES.name):
        (tmp_path / name).write_bytes((RULES.parent / name).read_bytes())
    (tmp_path / "precedent.key").write_text("key")
    done = promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_each_alert_fires_and_does_not_as_it_should() -> None:
    done = promtool("test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_both_ways() -> None:
    cases = [
        case
        for group in yaml.safe_load(TESTS.read_text())["tests"]
        for case in group.get("alert_rule_test", [])
    ]
    for fires in (True, False):
        assert {one["alertname"] for one in cases if bool(one["exp_alerts"]) is fires} == set(
            ALERTS
        )


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_has_its_section_to_which_it_points(name: str) -> None:
    rule = ALERTS[name]
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    assert rule["labels"]["severity"] in ("critical", "warning")
    section = re.search(rf"^## {name}\n(.+?)(?=^## )", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section is not None
    for word in ("Readers", "Do"):
        assert f"*{word}:*" in section[1], word


def test_every_section_is_of_an_alert() -> None:
    sections = set(re.findall(r"^## (Precedent\w+)$", RUNBOOK, re.MULTILINE))
    assert sections == set(ALERTS)
    shown = set(re.findall(r"Precedent[A-Z]\w+", json.dumps(DASHBOARD)))
    assert shown <= set(ALERTS)


def test_links_within_the_runbook_lead_somewhere() -> None:
    pages = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
    for page, anchor in re.findall(r"\]\(([\w-]*\.?\w*)#([\w-]+)\)", RUNBOOK):
        titles = re.findall(r"^#+ (.+)$", pages[page or "runbook.md"], re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in titles}
        assert anchor in anchors, f"{page}#{anchor}"


def test_commands_of_the_runbook_exist() -> None:
    shown = set(re.findall(r"`(?:sudo )?precedent ((?:[a-z]+ )*[a-z]+)", RUNBOOK))
    shown |= set(re.findall(r"^precedent ((?:[a-z]+ ?)+)", RUNBOOK, re.MULTILINE))
    assert {"doctor", "settings", "jobs list", "calibrate", "keys list"} <= {
        one.strip() for one in shown
    }
    for words in shown:
        first = words.split()[0]
        names = words.split()[:2] if first in ("jobs", "keys", "audit") else [first]
        assert CliRunner().invoke(app, [*names, "--help"]).exit_code == 0, words


def lost(ours: Any, read: Any, at: str = "") -> list[str]:
    """Where something of ours is not in what was read of it."""
    if isinstance(ours, dict) and isinstance(read, dict):
        return [
            one
            for name, value in ours.items()
            for one in (
                lost(value, read[name], f"{at}.{name}") if name in read else [f"{at}.{name}"]
            )
        ]
    if isinstance(ours, list) and isinstance(read, list) and len(ours) == len(read):
        return [
            one
            for number, pair in enumerate(zip(ours, read, strict=True))
            for one in lost(*pair, f"{at}[{number}]")
        ]
    return [] if ours == read else [at]


def read_back(dashboard: dict[str, Any]) -> Any:
    """The dashboard as Grafana's own types of it have it: what they do not know is not there."""
    register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))


def test_the_dashboard_has_nothing_that_grafana_does_not_know() -> None:
    assert lost(DASHBOARD, read_back(DASHBOARD)) == []
    misspelt = json.loads(json.dumps(DASHBOARD).replace('"legendFormat"', '"legendformat"'))
    assert any(one.endswith("legendformat") for one in lost(misspelt, read_back(misspelt)))


def test_panels_lie_beside_each_other_and_say_what_they_show() -> None:
    panels = DASHBOARD["panels"]
    assert len({one["id"] for one in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for one in panels:
        place = one["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, one["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if one["type"] != "row":
            assert one["description"]
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert all('job=~"$job"' in target["expr"] for target in one["targets"])
