"""Records what commands have access to: in a row of the audit log, before any of it is shown."""

import functools
import io
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

from api.cli.exit_codes import FAILED, INTERRUPTED
from engine.errors import AuditError, PrecedentError

if TYPE_CHECKING:
    from api.audit.log import AuditLog
    from api.security.seen import Seen
    from engine.settings import Settings

__all__ = ["RECORDED", "UNRECORDED", "accessed", "note", "record_before", "recorded"]

RECORDED = frozenset(
    {
        *("search", "recommend", "duplicates", "evaluate"),
        *("report", "key-objects", "send"),
        *("sendings list", "sendings show", "sendings retry", "sendings cancel"),
        *("index", "receive", "worker", "reencode", "adapt", "restore", "snapshot"),
        *("delete", "erase", "retention"),
        *("jobs submit", "jobs pause", "jobs resume", "jobs cancel", "jobs retry", "jobs report"),
        *("keys create", "keys revoke"),
        *("backup create", "backup restore"),
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
        # They look at the installation, and show nothing of an image.
        *("doctor", "settings", "upgrade"),
        # It tells of counts, and the other one makes a pair of keys of its own.
        *("backup verify", "backup key"),
        # They look into no archive, or into a synthetic one.
        *("plan", "sample", "demo", "train", "calibrate"),
    }
)
"""The others. Every command is in one of the two."""
_AT_THEIR_END = frozenset({"index", "receive", "worker", "reencode", "adapt"})
"""Commands that go on for long, and tell of counts alone: their row is written when they end."""


class _Access:
    """What a command has access to, as far as it went, and its rows.

    Args:
        settings: of the archive. action: the command.
    """

    def __init__(self, settings: "Settings", action: str) -> None:
        self._settings = settings
        self._action = action
        self._log: AuditLog | None = None
        self._seen: list[Seen] = []
        self._about: dict[str, Any] = {}
        self._has_news = True

    def note(self, seen: "Seen | None", about: dict[str, Any]) -> None:
        if seen is not None:
            self._seen.append(seen)
        self._about |= about
        self._has_news = self._has_news or seen is not None or bool(about)

    def record_news(self) -> None:
        """Commits a row of what was noted since the last one, if anything was, or there is none
        yet.

        Raises:
            AuditError: it cannot be.
        """
        if self._has_news:
            self.record(0)

    def record(self, status: int) -> None:
        """Commits a row of what was noted since the last one.

        Raises:
            AuditError: it cannot be.
        """
        if not _is_there(self._settings):
            return
        from api.audit.log import open_log, system_user
        from api.audit.rows import BEGUN, Entry
        from api.security.seen import Seen

        entry = Entry(
            system_user(),
            self._action,
            status,
            "ok" if status in (0, BEGUN) else "failed",
            Seen.joined(self._seen),
            socket.gethostname(),
            about=dict(self._about),
        )
        if self._log is None:
            self._log = open_log(self._settings)
        self._log.add_command(entry)
        self._seen, self._has_news = [], False

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


class _Withheld(io.TextIOBase):
    """Standard output that shows nothing before there is a row of it.

    Args:
        shown: where the text goes then.
    """

    def __init__(self, shown: TextIO, access: _Access) -> None:
        self._shown = shown
        self._access = access

    def write(self, text: str) -> int:
        """Shows the text. Raises AuditError: it cannot be recorded, and is not shown."""
        if text:
            try:
                self._access.record_news()
            except AuditError as error:
                raise AuditError(f"nothing is shown that cannot be recorded: {error}") from None
        return self._shown.write(text)

    def flush(self) -> None:
        self._shown.flush()

    def fileno(self) -> int:
        return self._shown.fileno()

    def isatty(self) -> bool:
        return self._shown.isatty()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._shown.encoding


_CURRENT: ContextVar[_Access | None] = ContextVar("access", default=None)


def note(seen: "Seen | None" = None, **about: Any) -> None:
    """Notes what the command that runs is about to show, or does: for its row, if it gets one.
    What is printed next has that row.

    about: identifiers, such as that of a key that was made; nothing that was asked for.
    """
    access = _CURRENT.get()
    if access is not None:
        access.note(seen, {name: one for name, one in about.items() if one is not None})


def record_before(seen: "Seen | None" = None, **about: Any) -> None:
    """Notes it, and commits a row of what the command is about to do and cannot undo, or is about
    to write into a file: for the case that it is killed, or the log fails, before its end.

    Raises:
        AuditError: the row cannot be committed; nothing must be done then.
    """
    note(seen, **about)
    access = _CURRENT.get()
    if access is not None:
        from api.audit.rows import BEGUN

        access.record(BEGUN)


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
        early = name not in _AT_THEIR_END
        with accessed(settings, f"precedent {name}", early=early) as ended:
            code = run(*arguments, **options)
            ended(code if isinstance(code, int) else 0)
        return code

    return run_and_record


@contextmanager
def accessed(
    settings: "Settings", action: str, *, early: bool = True
) -> Iterator[Callable[[int], None]]:
    """Records what is done inside as accesses of the system's user; gives a function that takes
    the exit code.

    What is noted inside has a row before anything is printed after it. At the end another one
    follows of what has none yet, or of the failure.

    Args:
        early: False = one row, at the end.

    Raises:
        AuditError: the log cannot be written. It is looked at before anything is done.
    """
    if not settings.audit.enabled:
        yield lambda _: None
        return
    if _is_there(settings):
        from api.audit.log import open_log

        with open_log(settings) as log:
            log.check()
    access, status = _Access(settings, action), 0
    token = _CURRENT.set(access)

    def ended(code: int) -> None:
        nonlocal status
        status = code

    gate = redirect_stdout(_Withheld(sys.stdout, access)) if early else nullcontext()
    try:
        with gate:
            yield ended
    except BaseException as error:
        try:
            if not isinstance(error, AuditError):
                _record_end(access, _code_of(error))
        except PrecedentError as failure:
            # What the command failed of is what its user has to know first.
            print(f"precedent: {failure}", file=sys.stderr)  # noqa: T201
        raise
    else:
        _record_end(access, status)
    finally:
        _CURRENT.reset(token)
        access.close()


def _record_end(access: _Access, status: int) -> None:
    if status:
        access.record(status)
    else:
        access.record_news()


def _is_there(settings: "Settings") -> bool:
    """Whether there is an archive, whose log a row belongs to: a mistyped folder gets no file."""
    if settings.ledger.url is not None:
        return True
    from indexer.datadir.layout import DataDir

    return DataDir(settings.data_dir).exists


def _code_of(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    code = getattr(error, "exit_code", getattr(error, "code", FAILED))
    return code if isinstance(code, int) else FAILED
