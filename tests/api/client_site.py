"""A service with keys and a source to index, for programs that ask it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.running import served

from api.security.keys import Keys
from api.security.policy import Scope
from api.service import create_service
from engine.settings import FolderSettings
from indexer.ledger.database import Database

__all__ = ["ClientSite", "client_site"]

SOURCE = "archive"


@dataclass(frozen=True)
class ClientSite:
    """The address of the service, a key for everything, and one only to search."""

    address: str
    key: str
    search_key: str


@contextmanager
def client_site(indexed: Any, root: Path) -> Iterator[ClientSite]:
    """The service over a copy of the archive in a folder, while it runs; its source `archive` has
    one image."""
    (root / "more").mkdir()
    (root / "more" / "one.dcm").write_bytes(indexed.files["ct"][0].read_bytes())
    sources = {SOURCE: FolderSettings(kind="folder", paths=(root / "more",))}
    settings = indexed.copy(root / "data").model_copy(update={"sources": sources})
    with Database(f"sqlite:///{settings.data_dir / 'ledger.sqlite'}") as database:
        _, every = Keys(database).create("every", list(Scope))
        _, search = Keys(database).create("search", [Scope.SEARCH])
    with served(create_service(settings)) as address:
        yield ClientSite(address, every, search)
