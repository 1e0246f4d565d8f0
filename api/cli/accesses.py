"""Records what commands have access to: a row of the audit log for each, when it ends."""

import functools
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.errors import PrecedentError

if TYPE_CHECKING:
    from api.security.seen import Seen
    from engine.settings import Settings

__all__ = ["RECORDED", "UNRECORDED", "Access", "accessed", "note", "recorded"]

RECORDED = frozenset(
    {
        *("search", "recommend", "duplicates", "evaluate"),
        *("index", "receive", "worker", "reencode", "restore", "snapshot", "delete"),
        *("jobs submit", "jobs pause", "jobs resume", "jobs cancel", "jobs retry", "jobs report"),
        *("keys create", "keys revoke"),
        *("audit export", "audit search", "audit verify"),
    }
)
"""Commands that show images or change what others may see of them."""
UNRECORDED = frozenset(
    {
        # They tell of counts and names of files alone.
        *("info", "profile", "jobs list", "jobs show", "keys list"),
        # Its requests are recorded one by one, and this adds a row of its own.
        *("serve", "audit forget"),
        # They look into no archive, or into a synthetic one.
        *("plan", "sample", "demo", "train", "calibrate"),
    }
)
"""The others. Every command is in one of the two."""
_INTERRUPTED = 130


@dataclass(slots=True)
class Access:
    """What a command had access to, as far as it went. about: what else it concerned."""

    seen: "list[Seen]" = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


_CURRENT: ContextVar[Access | None] = ContextVar("access", default=None)


def note(seen: "Seen | None" = None, **about: Any) -> None:
    """Notes what the command that runs shows or does: for its row, if it gets one.

    about: identifiers, such as that of a key that was made; nothing that was asked for.
    """
    access = _CURRENT.get()
    if access is None:
        return
    if seen is not None:
        access.seen.append(seen)
    access.about |= {name: one for name, one in about.items() if one is not None}


def recorded(command: Any, name: str) -> Any:
    """The command, which from now on writes a row when it ends, if it is one of
    :data:`RECORDED`; of a group, all in it."""
    for inner, one in getattr(command, "commands", {}).items():
        recorded(one, f"{name} {inner}")
    if name in RECORDED:
        command.callback = _recording(command.callback, name)
    return command


def _recording(run: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(run)
    def run_and_record(*arguments: Any, **options: Any) -> Any:
        from engine.settings import load_settings

        settings = load_settings(data_dir=options.get("data_dir"))
        with accessed(settings, f"precedent {name}") as ended:
            code = run(*arguments, **options)
            ended(code if isinstance(code, int) else 0)
        return code

    return run_and_record


@contextmanager
def accessed(settings: "Settings", action: str) -> Iterator[Callable[[int], None]]:
    """Records what is done inside as one access of the system's user; gives a function that takes
    the exit code.

    Raises:
        AuditError: the log cannot be written. It is looked at before anything is done, and again
            when all is done.
    """
    if not settings.audit.enabled:
        yield lambda _: None
        return
    if _is_there(settings):
        from api.audit.log import open_log

        with open_log(settings) as log:
            log.check()
    access, status = Access(), 0
    token = _CURRENT.set(access)

    def ended(code: int) -> None:
        nonlocal status
        status = code

    try:
        yield ended
    except BaseException as error:
        try:
            _record(settings, action, _code_of(error), access)
        except PrecedentError as failure:
            # What the command failed of is what its user has to know first.
            print(f"precedent: {failure}", file=sys.stderr)  # noqa: T201
        raise
    else:
        _record(settings, action, status, access)
    finally:
        _CURRENT.reset(token)


def _record(settings: "Settings", action: str, status: int, access: Access) -> None:
    if not _is_there(settings):
        return
    from api.audit.log import open_log, system_user
    from api.audit.rows import Entry
    from api.security.seen import Seen

    entry = Entry(
        system_user(),
        action,
        status,
        "ok" if status == 0 else "failed",
        Seen.joined(access.seen),
        socket.gethostname(),
        about=access.about,
    )
    with open_log(settings) as log:
        log.add_command(entry)


def _is_there(settings: "Settings") -> bool:
    """Whether there is an archive, whose log a row belongs to: a mistyped folder gets no file."""
    if settings.ledger.url is not None:
        return True
    from indexer.datadir.layout import DataDir

    return DataDir(settings.data_dir).exists


def _code_of(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    code = getattr(error, "exit_code", getattr(error, "code", 1))
    return code if isinstance(code, int) else 1
