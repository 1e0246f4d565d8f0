"""Makes a backup: one file, complete or absent."""

import fcntl
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from engine.errors import BackupError
from engine.locks import is_held
from engine.settings import Settings
from engine.settings_origin import in_force
from indexer.backup.container import AT_ONCE, BLOCKS, FILES, HEAD, MANIFEST, Written
from indexer.backup.head import Head
from indexer.backup.manifest import Earlier, Entry, block_size
from indexer.backup.noted import Previous, note, previous
from indexer.backup.sealing import sealed
from indexer.backup.taking import Taken, check_kind, taken, versions

if TYPE_CHECKING:
    from pyrage.x25519 import Recipient

__all__ = ["Made", "Progress", "make"]

_PART = ".precedent-part"
_PART_SECONDS = 10.0
_NS = 10**9
_SETTLED_NS = 2 * _NS
"""A file that was changed so shortly before it was read may have been changed after it too."""

Progress = Callable[[int, int, str], None]
"""Called often with the files and bytes done so far, and with what is being done."""


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that was made. files, file_bytes: of the archive. stored_bytes: of these, in the
    backup; the others are in the ones before. size: of its file."""

    head: Head
    files: int
    file_bytes: int
    stored_bytes: int
    size: int
    unknown: tuple[str, ...]


@dataclass(slots=True)
class _Sums:
    files: int = 0
    bytes: int = 0
    stored: int = 0
    at_ns: int = 0


def make(
    settings: Settings,
    file: Path,
    *,
    since: Path | None = None,
    to: "Sequence[Recipient]" = (),
    received: bool = True,
    progress: Progress = lambda *_: None,
) -> Made:
    """Writes a backup of the archive of these settings to a file, which is its owner's alone.

    It is there when it is whole and on disk; an existing file is replaced then.

    Args:
        since: a backup that this one is an increment of; None = a full one.
        to: public keys to encrypt it to; empty = it is not encrypted, and no secret is in it.
        received: with what was received and is kept.

    Raises:
        BackupError: it cannot be made. StoreError, DiskFull, ModelError: as for ``taken``.
    """
    check_kind(settings)
    root = settings.data_dir
    with ExitStack() as opened:
        before = None if since is None else opened.enter_context(previous(since, root))
        known = {} if before is None else _known(before)
        known_index = None if before is None else before.head.index
        progress(0, 0, "index and ledger are copied")
        parts = opened.enter_context(
            taken(settings, known, known_index, secrets=bool(to), received=received)
        )
        head = _head(settings, parts, before, secrets=bool(to), received=received)
        spool = opened.enter_context(tempfile.TemporaryFile(dir=_staging_of(parts)))
        sums = _Sums(at_ns=int(parts.at.timestamp() * _NS))
        data = _bytes(head, parts, before, spool, sums, progress)
        with _written(file) as out:
            if to:
                sealed(data, to, out)
            else:
                for some in data:
                    out.write(some)
        spool.seek(0)
        note(root, head, file, spool, is_sealed=bool(to))
        size = file.stat().st_size
        return Made(head, sums.files, sums.bytes, sums.stored, size, parts.unknown)


def _staging_of(parts: Taken) -> Path:
    return parts.parts["current.json"].parent


def _known(before: Previous) -> dict[str, tuple[int, str]]:
    """The files of the index in the backup before, by their paths in its folder."""
    begin = f"{before.head.index}/"
    return {
        one.path.removeprefix(begin): (one.size, one.sha256)
        for one in before.entries()
        if before.head.index is not None and one.path.startswith(begin)
    }


def _head(
    settings: Settings, parts: Taken, before: Previous | None, *, secrets: bool, received: bool
) -> Head:
    own = uuid.uuid4().hex
    changed = {
        one.name: one.value
        for one in in_force(settings)
        if one.origin != "default" and not one.setting.is_secret
    }
    return Head(
        id=own,
        full=own if before is None else before.head.full,
        since=None if before is None else before.head.id,
        number=0 if before is None else before.head.number + 1,
        at=parts.at.isoformat(timespec="seconds"),
        versions=versions(),
        root=str(settings.data_dir.absolute()),
        index=parts.index,
        secrets=secrets,
        received=received,
        pseudonyms=parts.pseudonyms,
        pseudonyms_check=parts.pseudonyms_check,
        counts=parts.counts,
        settings=changed,
    )


def _bytes(
    head: Head,
    parts: Taken,
    before: Previous | None,
    spool: BinaryIO,
    sums: _Sums,
    progress: Progress,
) -> Iterator[bytes]:
    """The bytes of a backup. spool: takes the manifest."""
    written = Written()
    about = head.written()
    yield from written.member(HEAD, len(about), [about])
    earlier = Earlier(iter(()) if before is None else before.entries())
    digest = hashlib.sha256()
    for path, place, kind in _files(parts):
        known = earlier.of(path)
        progress(sums.files, sums.stored, path.partition("/")[0])
        if kind == "known":
            if known is None:
                raise BackupError(f"{path} is not in the backup before; make a full backup")
            entry = _as_before(known)
        else:
            made = yield from _stored(path, place, kind, known, written, sums, progress)
            if made is None:
                continue
            entry = made
        sums.files += 1
        sums.bytes += entry.size
        line = entry.line()
        digest.update(line)
        spool.write(line)
    size = spool.tell()
    spool.seek(0)
    lines = iter(lambda: spool.read(AT_ONCE), b"")
    member = written.member(MANIFEST, size, lines)
    yield next(member)
    at = written.count
    yield from member
    yield written.end(at, size, digest.hexdigest())


def _as_before(known: Entry) -> Entry:
    return replace(known, stored="none", parts=(), stored_sha256="")


_Kind = Literal["copy", "live", "known"]


def _files(parts: Taken) -> Iterator[tuple[str, Path, _Kind]]:
    """All files of a backup in the order of its manifest: path, place, and whether it is a copy,
    a file that others may replace, or one of the backup before."""
    staging = _staging_of(parts)
    for name, place in sorted(parts.parts.items(), key=lambda one: one[0].split("/")):
        kind: _Kind = "copy" if place.is_relative_to(staging) else "live"
        if name == parts.index:
            found = {path.relative_to(place).as_posix(): path for path in _under(place)}
            known = dict.fromkeys(parts.known, place)
            for inner in sorted({*found, *known}, key=lambda one: one.split("/")):
                is_known = inner in known
                yield f"{name}/{inner}", found.get(inner, place), "known" if is_known else "copy"
        elif place.is_dir():
            for path in _under(place, leaving_out=_passing):
                yield f"{name}/{path.relative_to(place).as_posix()}", path, kind
        else:
            yield name, place, kind


def _passing(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry of a folder is not there for good: files being written, and locks."""
    return entry.name.startswith(".") or entry.name in ("incoming", "lock")


def _under(
    folder: Path, leaving_out: "Callable[[os.DirEntry[str]], bool]" = lambda _: False
) -> Iterator[Path]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda one: one.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if leaving_out(entry):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _under(Path(entry.path), leaving_out)
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _stored(
    path: str,
    place: Path,
    kind: _Kind,
    known: Entry | None,
    written: Written,
    sums: _Sums,
    progress: Progress,
) -> Generator[bytes, None, Entry | None]:
    """The bytes of a file's member, if it gets one; its entry is returned, None = it has gone."""
    try:
        file = place.open("rb")
    except FileNotFoundError:
        return None  # it was removed since it was listed
    except OSError as error:
        raise BackupError(
            f"{place} cannot be read ({error.strerror}); run the command as the user of the service"
        ) from None
    with file:
        found = os.fstat(file.fileno())
        settled = sums.at_ns - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS
        seen = (found.st_dev, found.st_ino, found.st_ctime_ns)
        same = (found.st_size, found.st_mtime_ns)
        if (
            kind == "live"
            and known is not None
            and (known.seen, (known.size, known.mtime)) == (seen, same)
        ):
            return _as_before(known)
        block = block_size(path)
        looked = _Looked(file, place, known, block)
        entry = Entry(
            path,
            looked.size,
            looked.digest,
            found.st_mode & 0o777,
            found.st_mtime_ns,
            block=block,
            blocks=looked.blocks,
            zeros=looked.zeros,
            seen=seen if kind == "live" and settled else None,
        )
        if known is not None and (known.size, known.sha256) == (entry.size, entry.sha256):
            return replace(entry, stored="none", zeros=())
        if looked.blocks and len(looked.parts) < len(looked.blocks):
            entry = replace(entry, stored="some", parts=looked.parts)
        name = (FILES if entry.stored == "all" else BLOCKS) + path
        check = hashlib.sha256()
        content = _content(file, place, entry) if looked.only is None else iter([looked.only])
        counted = _hashed(content, check)
        member = written.member(name, entry.stored_size, counted, entry.mode, found.st_mtime)
        for some in member:
            sums.stored += len(some)
            progress(sums.files, sums.stored, path.partition("/")[0])
            yield some
        if entry.stored == "some":
            return replace(entry, stored_sha256=check.hexdigest())
        if check.hexdigest() != entry.sha256:
            raise BackupError(f"{place} changed while it was read; make the backup again")
        return entry


class _Looked:
    """What is found of a file by reading it once.

    Args:
        known: its entry in the backup before. block: bytes of its blocks.
    """

    def __init__(self, file: BinaryIO, place: Path, known: Entry | None, block: int) -> None:
        fits = known is not None and known.block == block
        before = known.blocks if known is not None and fits else ()
        whole = hashlib.sha256()
        blocks: list[str] = []
        zeros: list[int] = []
        parts: list[int] = []
        nothing = bytes(block)
        self.size = 0
        self.only: bytes | None = b""
        """The content of a file of one block."""
        for data in _blocks(file, place, block):
            whole.update(data)
            own = hashlib.sha256(data).hexdigest()[:32]
            at = len(blocks)
            blocks.append(own)
            if data == nothing[: len(data)]:
                zeros.append(at)
            elif at >= len(before) or before[at] != own:
                parts.append(at)
            self.size += len(data)
            self.only = data if at == 0 else None
        self.digest = whole.hexdigest()
        # A small file is stored as a whole.
        several = self.only is None
        self.blocks = tuple(blocks) if several else ()
        self.zeros = tuple(zeros) if several else ()
        self.parts = tuple(parts) if several else ()


def _blocks(file: BinaryIO, place: Path, size: int) -> Iterator[bytes]:
    try:
        file.seek(0)
        while data := file.read(size):
            yield data
    except OSError as error:
        raise BackupError(f"{place} cannot be read ({error.strerror}); see to its disk") from None


def _content(file: BinaryIO, place: Path, entry: Entry) -> Iterator[bytes]:
    """What is stored of a file, read again.

    Raises:
        BackupError: a block is another one than before.
    """
    if entry.stored == "some":
        yield entry.index
    parts = frozenset(entry.parts)
    for at, data in enumerate(_blocks(file, place, entry.block)):
        if entry.stored == "some" and at in parts:
            if hashlib.sha256(data).hexdigest()[:32] != entry.blocks[at]:
                raise BackupError(f"{place} changed while it was read; make the backup again")
            yield data
        elif entry.stored == "all":
            yield data


def _hashed(content: Iterable[bytes], check: "hashlib._Hash") -> Iterator[bytes]:
    for data in content:
        check.update(data)
        yield data


@contextmanager
def _written(file: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file when the block ends without an error. What killed
    processes left beside it is removed."""
    folder = file.absolute().parent
    for left in folder.glob(f".*{_PART}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _PART_SECONDS and not is_held(left):
                left.unlink()
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{file.name}-", suffix=_PART)
    except OSError as error:
        raise BackupError(
            f"{file} cannot be written ({error.strerror}); name a file in a folder that you may "
            "write to"
        ) from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb", buffering=AT_ONCE) as stream:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield stream
            stream.flush()
            os.fsync(handle)
            temporary.replace(file)
        inner = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(inner)
        finally:
            os.close(inner)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BackupError(
            f"{file} cannot be written ({error.strerror}); name a file in a folder that has room"
        ) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
