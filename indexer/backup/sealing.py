"""Encryption of backups to public keys of age, and decryption, with bounded memory."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.errors import BackupError
from engine.extras import install_command
from indexer.backup.container import AT_ONCE, Readable

if TYPE_CHECKING:
    from pyrage.x25519 import Identity, Recipient

__all__ = ["is_sealed", "make_key", "opened", "read_identities", "read_recipients", "sealed"]

_MAGIC = b"age-encryption.org/"
_SECRET, _PUBLIC = "AGE-SECRET-KEY-", "age1"
_LARGEST_FILE = 1024**2


def _age() -> Any:
    try:
        import pyrage
    except ImportError:
        raise BackupError(
            "encryption of backups needs the package pyrage, which is not installed; "
            + install_command("backup")
        ) from None
    return pyrage


def is_sealed(path: Path) -> bool:
    """Whether a file is encrypted.

    Raises:
        BackupError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise BackupError(f"{path} cannot be read ({error.strerror}); name a backup") from None


def make_key(file: Path) -> str:
    """Writes a new secret key to a file that is its owner's alone; returns its public key.

    Raises:
        BackupError: the file is there already, or cannot be written.
    """
    key = _age().x25519.Identity.generate()
    text = f"# public key: {key.to_public()}\n{key}\n"
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
    except FileExistsError:
        raise BackupError(f"{file} is there already, and may be a key; name another file") from None
    except OSError as error:
        raise BackupError(
            f"{file} cannot be written ({error.strerror}); name another file"
        ) from None
    return str(key.to_public())


def read_recipients(named: Sequence[str]) -> "list[Recipient]":
    """Public keys, each given as such (age1…) or by a file with one in each line.

    Raises:
        BackupError: one is no public key, or the file cannot be read.
    """
    found = []
    for one in named:
        if one.upper().startswith(_SECRET):
            raise BackupError(
                "--to was given a secret key, which by now others may have seen; make a new pair "
                "with `precedent backup key FILE`, and give the public one"
            )
        texts = [one] if one.startswith(_PUBLIC) else _lines(Path(one), "--to")
        for text in texts:
            try:
                found.append(_age().x25519.Recipient.from_str(text))
            except ValueError:
                raise BackupError(
                    f"--to {one}: there is something that is no public key of age; they begin "
                    f"with {_PUBLIC}"
                ) from None
    return found


def read_identities(files: Sequence[Path]) -> "list[Identity]":
    """The secret keys in files.

    Raises:
        BackupError: one is none, or cannot be read.
    """
    found = []
    for file in files:
        if str(file).upper().startswith(_SECRET):
            raise BackupError(
                "--identity was given a secret key, which by now others may have seen; write it "
                "into a file, name that, and make a new pair soon"
            )
        for text in _lines(file, "--identity"):
            try:
                found.append(_age().x25519.Identity.from_str(text))
            except ValueError:
                raise BackupError(
                    f"--identity {file}: there is something that is no secret key of age; they "
                    f"begin with {_SECRET}"
                ) from None
    return found


def _lines(file: Path, option: str) -> list[str]:
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise BackupError(f"{option} {file} is too large to be a file of keys; name another")
        text = file.read_text("utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise BackupError(f"{option} {file} cannot be read ({why}); name a file of keys") from None
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise BackupError(f"{option} {file} has no key; name a file of keys")
    return keys


class _Pulled:
    """Reads what an iterator of bytes gives."""

    def __init__(self, data: Iterator[bytes]) -> None:
        self._data = data
        self._some = memoryview(b"")
        self.failure: BaseException | None = None

    def read(self, size: int = -1, /) -> bytes:
        try:
            while not self._some:
                self._some = memoryview(next(self._data, None) or b"")
                if not self._some and self._is_at_end():
                    return b""
        except BaseException as error:
            # Of what is raised here the encrypting library keeps the text alone.
            self.failure = error
            raise
        taken = self._some if size < 0 else self._some[:size]
        self._some = self._some[len(taken) :]
        return bytes(taken)

    def _is_at_end(self) -> bool:
        following = next(self._data, None)
        self._some = memoryview(following or b"")
        return following is None


class _Kept:
    """Writes to a file, and keeps what it failed of."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: BaseException | None = None

    def write(self, data: bytes, /) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()


def sealed(data: Iterator[bytes], to: "Sequence[Recipient]", file: BinaryIO) -> None:
    """Writes the bytes, encrypted to each of the public keys.

    Raises:
        BackupError: it cannot be encrypted. Whatever ``data`` and ``file`` raise.
    """
    source, target = _Pulled(data), _Kept(file)
    try:
        _age().encrypt_io(source, target, list(to))
    except Exception as error:
        for failure in (source.failure, target.failure):
            if failure is not None:
                raise failure from None
        raise BackupError(f"the backup cannot be encrypted ({error})") from None


@contextmanager
def opened(path: Path, identities: "Sequence[Identity]") -> Iterator[Readable]:
    """The content of a backup, decrypted if it is encrypted.

    Raises, also while it is read:
        BackupError: it cannot be read, or not decrypted by any of these keys; it is cut short, or
            was changed.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise BackupError(f"{path} cannot be read ({error.strerror}); name a backup") from None
    with file:
        if not is_sealed(path):
            yield file
            return
        if not identities:
            raise BackupError(
                f"{path} is encrypted; name the file of a secret key that opens it with --identity"
            )
        with closing(_Decrypted(path, file, identities)) as stream:
            yield stream


class _Decrypted:
    """What is decrypted of a file, as it is read: a thread pushes it through a pipe."""

    def __init__(self, path: Path, file: BinaryIO, identities: "Sequence[Identity]") -> None:
        self._path = path
        self._age = _age()
        self._failure: Exception | None = None
        ours, theirs = os.pipe()
        self._stream = os.fdopen(ours, "rb", buffering=AT_ONCE)
        self._thread = threading.Thread(
            target=self._decrypt, args=(file, theirs, list(identities)), daemon=True
        )
        self._thread.start()

    def _decrypt(self, file: BinaryIO, pipe: int, identities: "list[Identity]") -> None:
        # Nobody may read to the end.
        with suppress(BrokenPipeError), os.fdopen(pipe, "wb") as out:
            try:
                self._age.decrypt_io(file, out, identities)
            except Exception as error:
                self._failure = error

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            self._thread.join()
            if self._failure is not None:
                raise self._told(self._failure)
        return data

    def _told(self, failure: Exception) -> BackupError:
        said = " ".join(str(failure).split())
        if isinstance(failure, self._age.DecryptError) and "key" in said.lower():
            return BackupError(
                f"{self._path} is not encrypted to this key, or its beginning is damaged; name the "
                "file of the right key with --identity"
            )
        return BackupError(
            f"{self._path} is damaged, or cut short: it cannot be decrypted ({said}); take "
            "another copy of it"
        )

    def close(self) -> None:
        self._stream.close()
        self._thread.join()
