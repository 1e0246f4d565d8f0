"""Calls functions in another process, which may crash or hang: decoders do, over odd files."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self

__all__ = ["Isolated"]


class Isolated:
    """Calls functions of modules, one at a time. What they return is returned, and a text where
    there is nothing: "crashed", "too slow", or the kind of an error that they raise.

    Args:
        seconds: time limit of one call. preload: modules that the functions are of.
    """

    def __init__(self, seconds: float, *, preload: Sequence[str] = ()) -> None:
        self._seconds = seconds
        self._context = multiprocessing.get_context("forkserver")
        # What is loaded once need not be loaded again after a crash.
        self._context.set_forkserver_preload(list(preload))
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=self._context)
        try:
            return self._pool.submit(function, *arguments).result(timeout=self._seconds)
        except TimeoutError:
            self._end()
            return "too slow"
        except BrokenProcessPool:
            self._end()
            return "crashed"
        except Exception as error:
            return f"an error: {type(error).__name__}"

    def _end(self) -> None:
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)
