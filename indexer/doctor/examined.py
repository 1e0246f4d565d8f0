"""The installation that is examined: what several checks look at is looked at once."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from sqlalchemy import URL

from engine.errors import LedgerError, ModelError, PrecedentError
from engine.model.manifest import Manifest, read_manifest
from engine.ood.calibration import OodGate
from engine.settings import Settings
from engine.store.base import Collection
from engine.store.check import Check
from indexer.datadir.layout import DataDir
from indexer.datadir.models import model_directory
from indexer.ledger.database import Database

__all__ = ["Examined"]


def _now() -> datetime:
    return datetime.now(UTC)


class Examined:
    """An installation, as its settings describe it. Nothing in it is made, repaired or locked.

    Args:
        settings: of the installation.
        last: over how many of the latest queries drift is looked for.
        destinations: whether those of the settings may be asked.
        clock: the time, UTC.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        last: int = 1000,
        destinations: bool = False,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self.settings = settings
        self.last = last
        self.destinations = destinations
        self.clock = clock
        self.data_dir = DataDir(settings.data_dir)

    @property
    def is_served(self) -> bool:
        """Whether the index is on a Qdrant server."""
        return self.settings.store.url is not None

    @property
    def is_there(self) -> bool:
        """Whether anything was ever written, here or into the databases of the settings."""
        return self.data_dir.exists or self.settings.ledger.url is not None

    @cached_property
    def model_folder(self) -> Path:
        """Raises StoreError: what names it cannot be read."""
        return model_directory(self.settings)

    @cached_property
    def manifest(self) -> Manifest | None:
        """The model's; None = there is none that can be read, as the check of the model tells."""
        try:
            return read_manifest(self.model_folder)
        except PrecedentError:
            return None

    @property
    def collection(self) -> Collection | None:
        """The kind of points that the model makes; None = there is no model."""
        made = self.manifest
        if made is None:
            return None
        return Collection(made.fingerprint, made.dim, made.bits, words=made.words_dim)

    @cached_property
    def gate(self) -> OodGate | None:
        """The calibrated gate of the model; None = there is none that can be used."""
        made = self.manifest
        try:
            return None if made is None else OodGate.load(self.model_folder, made.fingerprint)
        except ModelError:
            return None

    @cached_property
    def index(self) -> tuple[tuple[Check, ...], int | None]:
        """The checks of the index, and how many points it has; None = that is not known."""
        # Imported here, as each loads a large library.
        if self.is_served:
            from engine.store.checks import check_server, count_points

            store = self.settings.store
            found = check_server(store, self.collection)
            usable = not any(one.name in ("server", "index") for one in found)
            return tuple(found), count_points(store) if usable else None
        from engine.store.edge_checks import look_at_embedded

        seen = look_at_embedded(self.data_dir.index, self.collection)
        return seen.checks, seen.points

    @property
    def ledger_file(self) -> Path | None:
        """The file of the ledger; None = it is on a database server, or elsewhere."""
        return self.data_dir.ledger if self.settings.ledger.url is None else None

    @cached_property
    def ledger(self) -> Database:
        """The ledger's database, for looking alone.

        Raises:
            LedgerError: there is none, or its address is no address.
        """
        url = self.settings.ledger.url
        if url is not None:
            return Database(url.get_secret_value(), reads_only=True)
        if not self.data_dir.ledger.is_file():
            raise LedgerError(f"there is no ledger {self.data_dir.ledger}; index something first")
        return Database(URL.create("sqlite", database=str(self.data_dir.ledger)), reads_only=True)

    def close(self) -> None:
        if "ledger" in self.__dict__:
            self.ledger.close()
