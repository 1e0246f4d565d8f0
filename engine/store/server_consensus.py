"""What the nodes of a cluster have to agree on: making, dropping and switching collections.

With too few nodes there to agree, or without one that leads, such a request fails after seconds and
may still be carried out, by itself, when the nodes agree again, however late. They carry out
everything in the order in which it was asked for.
"""

from collections.abc import Callable

from engine.errors import PrecedentError, StoreAway, StoreError
from engine.store.connection import Connection

__all__ = ["agreed"]


def agreed(
    connection: Connection, act: Callable[[], object], is_done: Callable[[], bool], what: str
) -> None:
    """Has the nodes do something, unless it is done already.

    Before each attempt, and after the last one, it is looked whether an earlier one was carried out
    after all.

    Args:
        act: one request. is_done: whether it is done; asks the client itself, and may raise an
            error of the tree where the request must not be sent any more.
        what: is done, as in "dropping 'a'", for the error.

    Raises:
        StoreAway: it could not be done in time; the message says that it may still happen.
        StoreError: as for ``Connection.ask``.
    """

    def attempt() -> None:
        if not is_done():
            act()

    try:
        connection.ask(attempt)
    except StoreError as error:
        if _is_done_now(is_done):
            return
        if not isinstance(error, StoreAway):
            raise
        raise StoreAway(
            f"{error}; {what} may still happen by itself once the nodes agree again, so look what "
            "is there before you do it again"
        ) from error


def _is_done_now(is_done: Callable[[], bool]) -> bool:
    try:
        return is_done()
    except PrecedentError:
        raise
    except Exception:  # of httpx, grpc and the client: what is there cannot be seen now
        return False
