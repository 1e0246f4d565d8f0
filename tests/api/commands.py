"""Runs the command line in this process."""

from typer.testing import CliRunner

from api.cli.main import app

__all__ = ["run"]


def run(*arguments: object) -> str:
    """What the command prints; it has to succeed. Errors are raised as they are."""
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output
