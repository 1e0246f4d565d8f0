"""Commands run in an environment in which others have set variables with our prefix."""

import pytest
from typer.testing import CliRunner

from api.cli.main import COMMANDS, app
from engine import environment
from engine.errors import PrecedentError, SettingsError

KUBERNETES = {
    "PRECEDENT_SERVICE_HOST": "10.0.171.239",
    "PRECEDENT_SERVICE_PORT": "8000",
    "PRECEDENT_PORT": "tcp://10.0.171.239:8000",
    "PRECEDENT_PORT_8000_TCP": "tcp://10.0.171.239:8000",
    "PRECEDENT_PORT_8000_TCP_PROTO": "tcp",
    "PRECEDENT_PORT_8000_TCP_PORT": "8000",
    "PRECEDENT_PORT_8000_TCP_ADDR": "10.0.171.239",
}
"""What Kubernetes sets for a service called "precedent" on port 8000."""

ARGUMENTS: dict[str, list[str]] = {
    "index": ["nowhere"],
    "search": ["nowhere.dcm"],
    "recommend": ["nowhere.dcm"],
    "duplicates": [],
    "report": ["1.2"],
    "key-objects": ["1.2"],
    "send": ["pacs", "--report", "1.2"],
    "sendings": ["list"],
    "info": [],
    "serve": ["--help"],
    "keys": ["list"],
    "audit": ["search"],
    "receive": ["--help"],
    "jobs": ["list"],
    "worker": ["--help"],
    "adapt": ["--help"],
    "train": ["--help"],
    "calibrate": ["--help"],
    "evaluate": ["--help"],
    "reencode": ["--help"],
    "profile": ["hash"],
    "snapshot": ["file"],
    "restore": ["nowhere.snapshot"],
    "backup": ["create", "nowhere.backup"],
    "delete": ["--study", "1.2", "--yes"],
    "erase": ["--study", "1.2", "--yes"],
    "retention": ["--dry-run"],
    "doctor": ["--help"],
    "upgrade": ["--dry-run"],
    "settings": ["search"],
    "plan": ["--images", "10"],
    "sample": ["--help"],
    "demo": ["--help"],
}
"""Of each command: arguments with which it soon says that there is nothing, or only help, where
it would go on for long."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs_beside_a_kubernetes_service(command, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "_told", set())
    variables = {**KUBERNETES, "PRECEDENT_DATA_DIR": str(tmp_path / "data")}
    result = CliRunner().invoke(app, [command, *ARGUMENTS[command]], env=variables)
    assert not isinstance(result.exception, SettingsError)
    assert isinstance(result.exception, PrecedentError | SystemExit | type(None)), result.exception
    assert result.exit_code != 2, result.output  # it was understood
    assert "PRECEDENT_" not in caplog.text
