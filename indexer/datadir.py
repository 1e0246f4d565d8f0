"""The data folder: where index, ledger, thumbnails and the pseudonym key lie."""

import os
import secrets
from pathlib import Path

from engine.errors import SettingsError
from engine.settings import Settings

__all__ = ["DataDir"]

_KEY_BYTES = 32


class DataDir:
    """Paths below one folder.

    Args:
        root: the folder; made when something is first written to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index = root / "index"
        self.ledger = root / "ledger.sqlite"
        self.thumbnails = root / "thumbnails"
        self._key = root / "pseudonym.key"

    def make(self) -> None:
        """Makes the folder. Raises SettingsError when it cannot be made."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"data folder {self.root} cannot be made ({error.strerror}); "
                "name another with --data-dir"
            ) from None

    def pseudonym_key(self, settings: Settings) -> bytes:
        """The key of the patient HMAC: from the settings, or made once and kept here.

        Raises:
            SettingsError: the key given is too short to keep patients apart from guesses.
        """
        if settings.pseudonym_key is not None:
            key = settings.pseudonym_key.get_secret_value().encode()
            if len(key) < _KEY_BYTES:
                raise SettingsError(
                    f"pseudonym_key has {len(key)} bytes; give at least {_KEY_BYTES}, "
                    "for example from `openssl rand -hex 32`"
                )
            return key
        if self._key.exists():
            return self._read_key()
        self.make()
        scratch = self._key.with_name(f".{self._key.name}-{os.getpid()}")
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(secrets.token_bytes(_KEY_BYTES))
            out.flush()
            os.fsync(out.fileno())
        try:
            # A link fails when the name exists: of two first runs at once, one key wins.
            os.link(scratch, self._key)
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
        return self._read_key()

    def _read_key(self) -> bytes:
        key = self._key.read_bytes()
        if len(key) < _KEY_BYTES:
            raise SettingsError(
                f"{self._key} has {len(key)} bytes, not {_KEY_BYTES}; restore it: with another "
                "key, patients indexed before are no longer the same"
            )
        return key
