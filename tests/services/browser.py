"""A real Chromium that a test drives: pages are opened, read, clicked and photographed.

It is spoken to over a pipe (the DevTools protocol), so that no port is open and nothing has to be
installed but the browser.
"""

import base64
import json
import os
import select
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from services.needed import package, program

__all__ = ["Browser", "Frame"]

_SECONDS = 60.0
_SWITCHES = (
    *("--headless", "--no-sandbox", "--hide-scrollbars", "--mute-audio", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # Pictures are drawn by the processor.
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
)
_TEXT = "document.body ? document.body.innerText : ''"


class Shown(ABC):
    """A document that a browser shows."""

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; None = it has none now."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        found = self._ask("Runtime.evaluate", **asked)
        return None if "exceptionDetails" in found else found["result"].get("value")

    def until(self, expression: str, seconds: float = _SECONDS) -> Any:
        """The value of an expression in the page, once it is neither empty nor false; else the test
        fails."""
        end = time.monotonic() + seconds
        while not (found := self.evaluate(expression)):
            if time.monotonic() > end:
                shown = str(self.evaluate(f"location.href + '\\n' + ({_TEXT})"))
                pytest.fail(f"{expression} did not come within {seconds:g} s:\n{shown[:3000]}")
            time.sleep(0.1)
        return found

    def until_text(self, text: str, seconds: float = _SECONDS) -> str:
        """All that the page says, once it says this; else the test fails."""
        said = f"({_TEXT}).includes({json.dumps(text)}) && ({_TEXT})"
        return str(self.until(said, seconds))

    @abstractmethod
    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers."""


class Browser(Shown):
    """A browser with one page; use it as a context manager.

    Args:
        folder: where its profile is.
        size: of the page, in pixels.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1600, 1000)) -> None:
        self._binary, self._shell = package("chromium"), program("bash", "bash")
        self._folder, self._size = folder, size
        self._process: subprocess.Popen[bytes] | None = None
        self._number, self._read, self._session = 0, bytearray(), ""

    def __enter__(self) -> Self:
        theirs, self._to = os.pipe()
        self._from, theirs_too = os.pipe()
        # It reads from 3 and writes to 4.
        line = f'exec "$@" 3<&{theirs} 4>&{theirs_too}'
        width, height = self._size
        self._process = subprocess.Popen(
            [
                *(self._shell, "-c", line, "browser", self._binary, "--remote-debugging-pipe"),
                *(*_SWITCHES, f"--user-data-dir={self._folder}", f"--window-size={width},{height}"),
            ],
            pass_fds=[theirs, theirs_too],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs)
        os.close(theirs_too)
        try:
            page = self._ask("Target.createTarget", url="about:blank")["targetId"]
            attached = self._ask("Target.attachToTarget", targetId=page, flatten=True)
            self._session = attached["sessionId"]
            self._ask("Page.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to)
        os.close(self._from)
        if self._process is not None:
            # With the processes that it started, which are of its session.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)

    def targets(self) -> list[dict[str, Any]]:
        """Pages, and frames of other sites, each with its ``type`` and ``url``."""
        found: list[dict[str, Any]] = self._ask("Target.getTargets")["targetInfos"]
        return found

    def frame(self, part: str) -> "Frame":
        """The frame of another site whose address has this part, once there is exactly one."""
        end = time.monotonic() + _SECONDS
        while True:
            found = [
                one for one in self.targets() if one["type"] == "iframe" and part in one["url"]
            ]
            if len(found) == 1:
                break
            if time.monotonic() > end:
                pytest.fail(f"{len(found)} frames have an address with {part!r}")
            time.sleep(0.1)
        attached = self._ask("Target.attachToTarget", targetId=found[0]["targetId"], flatten=True)
        return Frame(self, attached["sessionId"])

    def open(self, url: str) -> None:
        """Begins to load a page."""
        self._ask("Page.navigate", url=url)

    def click(self, element: str, times: int = 1) -> None:
        """Clicks in the middle of an element, once it is there. element: an expression."""
        x, y = self.until(
            f"(() => {{ const found = ({element}); if (!found) return null; "
            "found.scrollIntoView({block: 'center'}); const at = found.getBoundingClientRect(); "
            "return at.width && [at.x + at.width / 2, at.y + at.height / 2] })()"
        )
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                at = {"x": x, "y": y, "button": "left", "clickCount": count}
                self._ask("Input.dispatchMouseEvent", type=kind, **at)

    def photograph(self, path: Path) -> None:
        """Writes what the page looks like, as PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.ask(self._session, method, **parameters)

    def ask(self, session: str, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a command of its protocol. session: of which document; may be
        empty."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        if session:
            asked["sessionId"] = session
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            for message in self._messages(end - time.monotonic()):
                if message.get("id") == self._number:
                    return self._answer(method, message)
        pytest.fail(f"the browser did not answer {method} within {_SECONDS:g} s")

    def _answer(self, method: str, message: dict[str, Any]) -> dict[str, Any]:
        if "error" in message:
            # While a page is exchanged for another one there is nothing to ask.
            if method == "Runtime.evaluate":
                return {"result": {}}
            pytest.fail(f"the browser refused {method}: {message['error']}")
        return message.get("result", {})

    def _messages(self, seconds: float) -> Sequence[dict[str, Any]]:
        """Those that have come, waiting for one at most so long."""
        if not select.select([self._from], [], [], max(0.0, seconds))[0]:
            return []
        more = os.read(self._from, 1 << 20)
        if not more:
            pytest.fail("the browser has ended")
        self._read += more
        *whole, left = self._read.split(b"\0")
        self._read = bytearray(left)
        return [json.loads(one) for one in whole]


class Frame(Shown):
    """A frame of another site in a page. session: what the browser calls it."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.ask(self._session, method, **parameters)
