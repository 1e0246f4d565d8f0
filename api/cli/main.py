"""The command line: ``precedent COMMAND``; ``exit_codes`` has what it ends with."""

import gc
import logging
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from api.cli.accesses import recorded
from api.cli.exit_codes import FAILED, INTERRUPTED, SUCCEEDED
from engine import __version__
from engine.errors import PrecedentError

__all__ = ["COMMANDS", "GROUPS", "app", "main"]

GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Try it": {
        "demo": ("demo", "Calibrate on a sample archive, index it, search, serve."),
        "sample": ("sample", "Write a synthetic DICOM archive to try things on."),
    },
    "Fill the index": {
        "index": ("index", "Bring images into the index."),
        "receive": ("receive", "Take what a PACS pushes (C-STORE), and index it."),
        "jobs": ("jobs", "Index in bulk: jobs that workers share."),
        "worker": ("worker", "Work on jobs until stopped."),
        "delete": ("delete", "Remove a study, patient, instance, source or tenant."),
        "erase": ("erase", "Erase for good, in every file, with a signed report of it."),
        "retention": ("retention", "Erase what the rules of the settings do not keep."),
    },
    "Search": {
        "search": ("search", "Find the images that look like these."),
        "recommend": ("recommend", "Find the cases most like examples."),
        "duplicates": ("duplicates", "List images that are the same picture, or nearly."),
    },
    "Write documents of an answer": {
        "report": ("documents", "Write the report of a study as a DICOM file."),
        "key-objects": ("documents", "Write key objects of similar images as DICOM files."),
        "send": ("sendings", "Send a report or key objects to a PACS."),
        "sendings": ("sendings", "List, show, retry and cancel what is sent."),
    },
    "Serve others": {
        "serve": ("serve", "Answer searches over HTTP, with a page to try them on."),
        "keys": ("keys", "Make, list and revoke the API keys of the service."),
        "audit": ("audit", "Check, export and search the record of accesses."),
    },
    "Look after an archive": {
        "info": ("info", "What is in the index, and what was refused."),
        "doctor": ("doctor", "Look for what is wrong with this installation."),
        "settings": ("settings", "What is in force, from where, and what it means."),
        "plan": ("plan", "Say what an archive of some size will need."),
        "profile": ("storage", "Change how the index is arranged."),
        "upgrade": ("upgrade", "Say which version all that is stored has, and bring it up."),
        "backup": ("backup", "Make, verify and restore backups of an archive."),
        "snapshot": ("storage", "Write all points of the index to one file."),
        "restore": ("storage", "Add the points of a snapshot to the index."),
    },
    "Models": {
        "adapt": ("adapt", "Make a model of an archive, and use it if it is better."),
        "train": ("train", "Train a model on an archive, labelled or not."),
        "calibrate": ("calibrate", "Teach a model's OOD gate what is known."),
        "evaluate": ("evaluate", "Measure how well images find others of their class."),
        "reencode": ("reencode", "Encode the archive with another model."),
    },
}
"""Commands by what they are for, as the list of commands shows them, and by name: the module of
this package that defines a function of that name, and the summary in the list. A module is
imported only when its command is run, because some need libraries that load slowly."""

COMMANDS = {name: found for group in GROUPS.values() for name, found in group.items()}
"""The same without the groups."""

_PLAIN: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}


class _Commands(TyperGroup):
    """The group of all commands; imports only the module of the command that is run."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # For lists, suggestions and completion: names and summaries alone matter there.
        self.commands = {
            name: TyperCommand(name=name, help=summary) for name, (_, summary) in COMMANDS.items()
        }
        self._naming = False

    def get_command(self, _: Any, cmd_name: str) -> Any:
        """The command of this name, from its module: a function, or a group of commands."""
        if cmd_name not in COMMANDS:
            return None
        if self._naming:
            return self.commands[cmd_name]
        module = import_module(f"api.cli.{COMMANDS[cmd_name][0]}")
        found = getattr(module, cmd_name.replace("-", "_"))
        if not gc.isenabled():
            # What was imported stays: it is not searched for garbage, now or later.
            gc.freeze()
            gc.enable()
        group = typer.Typer(add_completion=False, **_PLAIN)
        if isinstance(found, typer.Typer):
            group.add_typer(found, name=cmd_name)
        else:
            group.command(cmd_name)(found)
        return recorded(typer.main.get_group(group).commands[cmd_name], cmd_name)

    def format_commands(self, _: Any, formatter: Any) -> None:
        # One column of summaries for all groups.
        width = max(map(len, COMMANDS))
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(f"{name:<{width}}", summary) for name, (_, summary) in group.items()]
                )

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """What may follow: names and summaries, for which no command's module is imported."""
        self._naming = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._naming = False


app = typer.Typer(
    name="precedent",
    cls=_Commands,
    help="Finds the earlier cases that look like this one.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    **_PLAIN,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"precedent {__version__}\n")
        raise typer.Exit


def main() -> None:
    """Runs the command line; reports errors as one line on standard error and an exit code."""
    gc.disable()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = app(standalone_mode=False)
    except PrecedentError as error:
        _fail(str(error), FAILED)
    except BrokenPipeError:
        # The reader of standard output has ended, as in `precedent search … | head`. What is still
        # buffered goes to the null device, or flushing it at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        from indexer.datadir.disk_space import is_full

        if not is_full(error):
            raise
        place = "" if error.filename is None else f" ({error.filename})"
        _fail(f"a disk is full{place}; make room, and the same command again goes on", FAILED)
    except typer.Abort:
        _fail("aborted; nothing was changed", FAILED)
    except Exception as error:  # click's usage errors print themselves
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        raise
    if code == INTERRUPTED:  # what typer returns after Ctrl-C
        _fail("interrupted; what was done is kept, the same command again goes on", code)
    sys.exit(code if isinstance(code, int) else SUCCEEDED)


def _fail(message: str, code: int) -> None:
    print(f"precedent: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)
