"""The audit log for reading, opened when a route first needs it, and how often at once."""

import threading

from fastapi import HTTPException

from api.audit.log import AuditLog, open_log
from api.http.shares import Shares
from engine.settings import Settings

__all__ = ["AuditAtHand"]

_WAIT = {"Retry-After": "10"}


class AuditAtHand:
    """Close it at the end.

    verifying, exporting: places for those who have all of the log read.

    Args:
        settings: of the archive whose log it is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._log: AuditLog | None = None
        self.verifying = Shares(2, 1, _verifying)
        self.exporting = Shares(4, 2, _exporting)

    def close(self) -> None:
        with self._lock:
            if self._log is not None:
                self._log.close()
            self._log = None

    def log(self) -> AuditLog:
        """The log.

        Raises:
            AuditError: it cannot be opened.
        """
        with self._lock:
            if self._log is None:
                self._log = open_log(self._settings)
            return self._log


def _verifying(own: bool) -> HTTPException:
    whose = "this tenant's" if own else "others'"
    return HTTPException(
        429 if own else 503,
        f"the audit log is being verified at {whose} request; try again when that is done",
        dict(_WAIT),
    )


def _exporting(own: bool) -> HTTPException:
    whose = "this tenant has" if own else "others have"
    return HTTPException(
        429 if own else 503,
        f"{whose} as many exports of the audit log under way as the service writes at a time; "
        "try again when one is done",
        dict(_WAIT),
    )
