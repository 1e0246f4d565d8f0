"""The exit codes of the commands, and what 1 means where it is an answer and no error."""

from collections.abc import Mapping

__all__ = ["ANSWERS", "EXIT_CODES", "FAILED", "INTERRUPTED", "MISUSED", "SUCCEEDED"]

SUCCEEDED, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

EXIT_CODES: Mapping[int, tuple[str, str]] = {
    SUCCEEDED: (
        "it succeeded; refused instances of an archive are accounted for, and no failure",
        "nothing",
    ),
    FAILED: (
        "it failed, or what was asked is not so; one line on standard error says what, and the way "
        "out",
        "what that line says; the same command again goes on where it stopped",
    ),
    MISUSED: (
        "it was called wrongly: an unknown command or option, a value that it does not take",
        "`precedent COMMAND -h`",
    ),
    INTERRUPTED: (
        "it was interrupted by Ctrl-C; what was done is kept",
        "the same command again, which goes on",
    ),
}
"""By code: what it means, and what to do."""

ANSWERS: Mapping[str, str] = {
    "search": "an image could not be read; the others are answered",
    "recommend": "an image could not be read; nothing is answered",
    "delete": "there was nothing to remove",
    "erase": "there was nothing to erase, or something is left, or a report cannot be believed",
    "retention": "something is left of what was to go",
    "send": "not all of it is stored at the destination",
    "sendings retry": "not all of it is stored at the destination",
    "audit verify": "a row was changed, removed or added",
    "backup verify": "the backup is not whole",
    "doctor": "there are errors; with `--strict` also if there are warnings",
    "upgrade": "with `--dry-run`: a later version wrote something, or it cannot be read",
    "adapt": "with `--yes`: the new model is not better, and was not put in force",
}
"""Commands whose 1 is an answer, and which."""
