"""The Unix socket of an index: where it lies, who may reach it, and who is at its other end.

It lies beside the folder of the index, as `index.sock`, and only its owner may connect to it. Both
ends also ask the system whose process the other one is, so that a folder that others can write to
lets nobody in.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import StoreError

__all__ = ["connected", "limited", "listening", "may_ask", "pid_of", "socket_path"]

_LONGEST = 103
"""Bytes of the longest path that every system takes as an address."""
_CONNECT_SECONDS = 5.0
_OURS_ALONE = 0o600
_BACKLOG = 128


def socket_path(directory: Path) -> Path:
    """The socket of the index in ``directory``."""
    return directory.with_name(f"{directory.name}.sock")


def listening(path: Path) -> socket.socket:
    """A socket that others can connect to. A file that is there is of a process that has ended.

    To be called only by the process that has the lock of the index.

    Raises:
        OSError: the file system knows no sockets, or the folder is not writable.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        # Before the file is there: nobody may connect to it in between.
        os.fchmod(listener.fileno(), _OURS_ALONE)
        with _address(path) as address:
            listener.bind(address)
        path.chmod(_OURS_ALONE)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def connected(path: Path) -> socket.socket | None:
    """A connection to the process that listens; None = none does.

    Raises:
        StoreError: one does, and is of another user.
    """
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        asking.settimeout(_CONNECT_SECONDS)
        with _address(path) as address:
            asking.connect(address)
        asking.settimeout(None)
        peer = _uid_of(asking)
        if peer not in (None, 0, os.geteuid(), path.parent.stat().st_uid):
            raise StoreError(
                f"{path} belongs to a process of another user (uid {peer}), which is told nothing; "
                "see to the permissions of its folder"
            )
    except PermissionError:
        asking.close()
        raise StoreError(
            f"the index is open in a process of another user, whose socket {path} you may not use; "
            "run the command as that user"
        ) from None
    except OSError:
        # Nobody listens: the file is not there, or of a process that has ended.
        asking.close()
        return None
    except BaseException:
        asking.close()
        raise
    return asking


def may_ask(connection: socket.socket) -> bool:
    """Whether the process at the other end is of the same user, or of root."""
    return _uid_of(connection) in (None, 0, os.geteuid())


def limited(connection: socket.socket, seconds: float) -> None:
    """Makes each reading and sending that takes longer raise BlockingIOError."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, limit)


def pid_of(connection: socket.socket) -> int | None:
    """The process at the other end, as this one may call it; None = it cannot be told, as from
    within another container."""
    return _peer(connection)[0] or None


def _uid_of(connection: socket.socket) -> int | None:
    """The user of the process at the other end; None = this system does not tell, and the
    permissions of the file alone decide."""
    return _peer(connection)[1]


def _peer(connection: socket.socket) -> tuple[int | None, int | None]:
    """Process and user at the other end; None = this system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None, None
    pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, 12))
    return int(pid), int(uid)


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """What the socket is called towards the system, which takes short names alone."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        with suppress(OSError):
            os.close(folder)
