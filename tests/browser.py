"""A headless Chromium, driven through a pair of pipes: pages as people see them."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next(filter(None, map(shutil.which, PROGRAMS)), None)
SECONDS = 60.0  # that an answer may take
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--mute-audio",
)
KEY_CODES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
SHIFT = 8


class BrowserError(RuntimeError):
    """The browser refused, or a script in the page failed."""


class Browser:
    """One window, as a context. `problems` are errors and warnings of the console, `requests` all that was loaded."""

    def __init__(self, width: int = 1500, height: int = 950, dark: bool = False) -> None:
        assert PROGRAM is not None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._events: list[dict[str, Any]] = []
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._profile = tempfile.mkdtemp(prefix="browser-")
        flags = [*FLAGS, f"--user-data-dir={self._profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        read_by_it, self._write = os.pipe()
        self._read, written_by_it = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(read_by_it), str(written_by_it), PROGRAM, *flags, "about:blank"],
            pass_fds=(read_by_it, written_by_it),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_by_it)
        os.close(written_by_it)
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            self.show(width, height, dark)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        try:
            self._process.wait(10)  # it ends when its pipes do
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def show(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, and whether the person likes it dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str | Path) -> None:
        """Load a page, and return when it and what it asks for at once are there."""
        self._events.clear()
        answer = self.call("Page.navigate", url=address.as_uri() if isinstance(address, Path) else address)
        if "loaderId" in answer:  # and not another place of the same page
            self._wait("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for.

        Raises:
            BrowserError: it threw.
        """
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.run(script):
            if time.monotonic() > end:
                raise BrowserError(f"not so after {SECONDS:g} s: {script}")
            self.run("new Promise(requestAnimationFrame)")

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys one after another: a character, or a name such as ArrowLeft."""
        for key in keys:
            code = KEY_CODES.get(key, ord(key.upper()) if len(key) == 1 else 0)
            typed = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            options = {"key": key, "windowsVirtualKeyCode": code, "modifiers": SHIFT if shift else 0}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=typed, **options)
            self.call("Input.dispatchKeyEvent", type="keyUp", **options)

    def mouse(self, kind: str, x: float, y: float, **options: Any) -> None:
        """One event: mouseMoved, mousePressed, mouseReleased, mouseWheel."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **options)

    def click(self, x: float, y: float) -> None:
        self.drag([(x, y)])

    def drag(self, path: Sequence[tuple[float, float]]) -> None:
        """Press at the first place, move over the others, release at the last."""
        button = {"button": "left", "clickCount": 1}
        self.mouse("mouseMoved", *path[0])
        self.mouse("mousePressed", *path[0], **button)
        for place in path[1:]:
            self.mouse("mouseMoved", *place, button="left", buttons=1)
        self.mouse("mouseReleased", *path[-1], **button)

    def place(self, selector: str, u: float = 0.5, v: float = 0.5) -> tuple[float, float]:
        """Where an element is in the window; (u, v) is the place in it, from 0 to 1."""
        box = self.run(f"(({_BOX}))({json.dumps(selector)})")
        if box is None:
            raise BrowserError(f"no element {selector}")
        return box[0] + u * box[2], box[1] + v * box[3]

    def screenshot(self, whole: bool = False) -> bytes:
        """The window, or the whole page, as PNG."""
        options = {"captureBeyondViewport": True} if whole else {}
        if whole:
            width, height = self.run("[innerWidth, document.documentElement.scrollHeight]")
            options |= {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **options)["data"])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        for answer in self._messages():
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return answer["result"]
        raise BrowserError(f"{method}: no answer")

    def _wait(self, event: str) -> None:
        """Wait for an event that no call has taken in yet."""
        for position, known in enumerate(self._events):
            if known["method"] == event:
                del self._events[: position + 1]
                return
        for message in self._messages():
            if message.get("method") == event:
                self._events.clear()
                return

    def _messages(self) -> Iterator[dict[str, Any]]:
        """Messages as they come; events are noted."""
        end = time.monotonic() + SECONDS
        while True:
            while b"\0" not in self._buffer:
                if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                    raise BrowserError(f"no answer within {SECONDS:g} s")
                data = os.read(self._read, 1 << 20)
                if not data:
                    raise BrowserError("the browser ended")
                self._buffer += data
            text, self._buffer = self._buffer.split(b"\0", 1)
            message = json.loads(text)
            if "method" in message:
                self._note(message)
            yield message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message["method"], message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self._events.append(message)


# The browser reads commands from descriptor 3 and answers on 4.
_LAUNCH = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD_CLOEXEC, 10) for number in sys.argv[1:3]]
for pipe, number in zip(pipes, (3, 4)):
    os.dup2(pipe, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
_BOX = """selector => {
  const box = document.querySelector(selector)?.getBoundingClientRect();
  return box ? [box.left, box.top, box.width, box.height] : null;
}"""
