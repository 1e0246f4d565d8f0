"""The data folder: where index, ledger, thumbnails and the pseudonym key lie."""

import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine import __version__
from engine.errors import SettingsError, StoreError
from engine.files import write_atomically
from engine.formats import later_format
from engine.settings import Settings
from engine.tenants import DEFAULT_TENANT, is_tenant

__all__ = ["FIRST_INDEX", "FORMAT", "DataDir", "InForce", "remove_folder"]

FORMAT = 1
"""Version of the data folder's layout."""
_KEY_BYTES = 32
_OURS_ALONE = 0o700
FIRST_INDEX = "index"
"""Name of the folder of the embedded index that none has replaced yet."""


@dataclass(frozen=True, slots=True)
class InForce:
    """An index that is in force (the one that searches use), or was before.

    index: name of its folder in the data folder, or of its collection on a server.
    model: folder below the data folder with the model that made it; None = the settings say
        which one that is.
    since: when it came into force, or got another calibration, UTC, ISO 8601; None = when it
        was made.
    until: of one that is not in force: when it was replaced; None = not known.
    previous: the index that was in force before it, as long as that is kept; None = none is.
    """

    index: str
    model: str | None = None
    since: str | None = None
    until: str | None = None
    previous: "InForce | None" = None


class DataDir:
    """The paths of a data folder, and the record of which index in it is in force.

    The file ``folder.json`` has the version of this layout; a folder without one has version 1.
    The file ``current.json`` says which index and which model are in force. Without one, it is
    the index in the folder ``index``. For an index on a server, ``served.json`` names the model,
    and the server says which collection is in force.

    Args:
        root: the folder; made when something is first written to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ledger = root / "ledger.sqlite"
        self.audit = root / "audit.sqlite"
        self.thumbnails = root / "thumbnails"
        self.models = root / "models"
        self.received = root / "received"
        self._tenants = root / "tenants"
        self._key = root / "pseudonym.key"
        self._embedding_key = root / "embedding.key"
        self._erasure_key = root / "erasure.key"
        self.erasures = root / "erasures"
        self.erasing_lock = root / "erasing.lock"
        self.about = root / "folder.json"

    def received_for(self, tenant: str) -> Path:
        """The folder of what was received for a tenant."""
        if tenant == DEFAULT_TENANT:
            return self.received
        return self._tenants / tenant / self.received.name

    def all_received(self) -> list[tuple[str, Path]]:
        """The tenants for whom something was received, and the folders of it, ordered."""
        names = {DEFAULT_TENANT}
        if self._tenants.is_dir():
            names |= {one.name for one in self._tenants.iterdir() if is_tenant(one.name)}
        folders = ((name, self.received_for(name)) for name in sorted(names))
        return [(name, folder) for name, folder in folders if folder.is_dir()]

    @property
    def exists(self) -> bool:
        """Whether the folder is one of ours, rather than another or none."""
        return any(one.is_file() for one in (self.about, self.ledger, self.audit))

    @property
    def index(self) -> Path:
        """The folder of the embedded index in force.

        Raises:
            StoreError: the file that names it cannot be read.
        """
        found = self.in_force()
        return self.root / (FIRST_INDEX if found is None else found.index)

    def model(self, settings: Settings) -> Path | None:
        """The folder of the model in force; None = the data folder has no copy of it.

        Raises:
            StoreError: the file that names it cannot be read.
        """
        found = self.in_force(served=settings.store.url is not None)
        return None if found is None or found.model is None else self.root / found.model

    def in_force(self, *, served: bool = False) -> InForce | None:
        """The index recorded as in force; None = no index was ever replaced.

        Args:
            served: the record for an index on a server, rather than for an embedded one.

        Raises:
            StoreError: the record cannot be read, or a later version made the folder.
        """
        self._check_format()
        path = self.pointer(served=served)
        try:
            noted = json.loads(path.read_bytes())
            if (later := later_format(noted, str(path))) is not None:
                raise StoreError(later)
            noted.pop("format", None)
            return _parsed(noted)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); restore it, or write the name of the index "
                'in force there, as in {"index": "index"}'
            ) from None

    def put_in_force(self, found: InForce, *, served: bool = False) -> None:
        """Records what is in force, atomically and so that it survives a power cut."""
        self.make()
        write_atomically(self.pointer(served=served), json.dumps(asdict(found)).encode())
        _sync(self.root)

    def pointer(self, *, served: bool) -> Path:
        """The file that says what is in force."""
        return self.root / ("served.json" if served else "current.json")

    def make(self) -> None:
        """Makes the folder, and notes the version of its layout.

        Raises:
            SettingsError: it cannot be made. StoreError: a later version made it.
        """
        self._check_format()
        try:
            # Thumbnails and the ledger are in it.
            self.root.mkdir(mode=_OURS_ALONE, parents=True, exist_ok=True)
            if not self.about.exists():
                about = {"format": FORMAT, "precedent": __version__}
                write_atomically(self.about, json.dumps(about).encode())
        except OSError as error:
            raise SettingsError(
                f"data folder {self.root} cannot be made ({error.strerror}); "
                "name another with --data-dir"
            ) from None

    def _check_format(self) -> None:
        try:
            found = json.loads(self.about.read_bytes())["format"]
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{self.about} cannot be read ({error}); remove it if this version of Precedent "
                "made the folder"
            ) from None
        if not isinstance(found, int) or found > FORMAT:
            raise StoreError(
                f"the data folder {self.root} was made by a later version of Precedent (its "
                f"format is {found}, this version knows up to {FORMAT}); install that version "
                "or a later one"
            )

    def pseudonym_key(self, settings: Settings) -> bytes:
        """The key of the patient HMAC: from the settings, or generated once and kept here.

        Raises:
            SettingsError: the key is so short that patient identifiers could be guessed.
        """
        if settings.pseudonym_key is not None:
            key = settings.pseudonym_key.get_secret_value().encode()
            if len(key) < _KEY_BYTES:
                raise SettingsError(
                    f"pseudonym_key has {len(key)} bytes; give at least {_KEY_BYTES}, "
                    "for example from `openssl rand -hex 32`"
                )
            return key
        return self._kept(
            self._key, "with another key, patients indexed before are no longer the same"
        )

    def embedding_key(self) -> bytes:
        """The key by which tokens for pages of other sites are signed, generated once and kept
        here.

        Raises:
            SettingsError: the file is damaged.
        """
        return self._kept(self._embedding_key, "or remove it: a new one is made")

    def erasure_key(self) -> bytes:
        """The private key by which reports of erasures are signed, generated once and kept here.

        Raises:
            SettingsError: the file is damaged.
        """
        return self._kept(
            self._erasure_key, "reports signed by another key are of another installation"
        )

    def _kept(self, path: Path, why: str) -> bytes:
        """The key in a file that nobody else may read; generated if there is no such file."""
        if path.exists():
            return _read_key(path, why)
        self.make()
        # Threads may come here at once.
        scratch = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(secrets.token_bytes(_KEY_BYTES))
            out.flush()
            os.fsync(out.fileno())
        try:
            # A link fails when the name exists: of two first runs at once, one key wins.
            os.link(scratch, path)
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
        return _read_key(path, why)


def _read_key(path: Path, why: str) -> bytes:
    key = path.read_bytes()
    if len(key) < _KEY_BYTES:
        raise SettingsError(f"{path} has {len(key)} bytes, not {_KEY_BYTES}; restore it: {why}")
    return key


def _parsed(noted: dict[str, Any]) -> InForce:
    before = noted.get("previous")
    found = InForce(**{**noted, "previous": None if before is None else _parsed(before)})
    if not isinstance(found.index, str) or not isinstance(found.model, str | None):
        raise TypeError("index and model are names")
    return found


def _sync(folder: Path) -> None:
    """Makes a rename in the folder survive a power cut: the index in force before may be removed
    next."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_folder(folder: Path) -> None:
    """Removes a folder of the data folder with all that is in it.

    Raises:
        StoreError: the system does not let it.
    """
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be removed ({error.strerror}); see to its permissions, and run the "
            "command again"
        ) from None
