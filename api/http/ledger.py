"""The ledger's database, opened when a route first needs it: there may be none yet."""

import threading

from engine.errors import LedgerError
from engine.settings import Settings
from indexer.datadir.layout import DataDir
from indexer.ledger.database import Database, open_database

__all__ = ["LedgerAtHand"]


class LedgerAtHand:
    """Close it at the end.

    Args:
        settings: of the archive whose ledger it is.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._database: Database | None = None

    def close(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = None

    def database(self) -> Database | None:
        """The database; None = nothing was ever indexed, and so there is none.

        Raises:
            LedgerError: it cannot be opened.
        """
        with self._lock:
            if self._database is None:
                file = DataDir(self.settings.data_dir).ledger
                if self.settings.ledger.url is None and not file.is_file():
                    return None
                self._database = open_database(self.settings, file)
            return self._database

    def check(self) -> None:
        """Checks that the database answers. Raises LedgerError."""
        database = self.database()
        if database is None:
            raise LedgerError("there is no ledger yet; `precedent index PATH…` makes it")
        with database.begin(read=True) as connection:
            connection.exec_driver_sql("SELECT 1")
