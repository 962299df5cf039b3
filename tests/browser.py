"""The system's Chromium without a window, driven by Playwright: pages as people see them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from playwright.sync_api import ConsoleMessage, Error, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next(filter(None, map(shutil.which, PROGRAMS)), None)
SECONDS = 60  # that an answer may take


class Browser:
    """One window, as a context. `problems` are errors and warnings of the console, `requests` all that was loaded."""

    def __init__(self, width: int = 1500, height: int = 950, dark: bool = False) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        with ExitStack() as stack:
            playwright = stack.enter_context(sync_playwright())
            browser = playwright.chromium.launch(
                executable_path=PROGRAM, chromium_sandbox=os.geteuid() != 0, timeout=1000 * SECONDS
            )
            stack.callback(browser.close)
            self.version = browser.version
            self.page = browser.new_page()
            self.page.set_default_timeout(1000 * SECONDS)
            self.page.on("pageerror", self._failed)
            self.page.on("console", self._said)
            self.page.on("request", lambda request: self.requests.append(request.url))
            self.show(width, height, dark)
            self._open = stack.pop_all()

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def show(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, and whether the person likes it dark."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme="dark" if dark else "light")

    def open(self, address: str | Path) -> None:
        """Load a page, and return when it and what it asks for at once are there."""
        self.page.goto(address.as_uri() if isinstance(address, Path) else address)

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        return self.page.evaluate(script)

    def until(self, script: str) -> None:
        """Wait until an expression is true: from here, for pages that forbid to evaluate text in them."""
        end = time.monotonic() + SECONDS
        while not self.run(script):
            assert time.monotonic() < end, f"not so after {SECONDS} s: {script}"
            self.run("new Promise(requestAnimationFrame)")

    def press(self, *keys: str) -> None:
        """Press keys one after another: a character, or a name such as ArrowLeft or Shift+ArrowLeft."""
        for key in keys:
            self.page.keyboard.press(key)

    def click(self, x: float, y: float) -> None:
        self.page.mouse.click(x, y)

    def hover(self, x: float, y: float) -> None:
        self.page.mouse.move(x, y)

    def wheel(self, x: float, y: float, down: float) -> None:
        """Turn the wheel over a place."""
        self.page.mouse.move(x, y)
        self.page.mouse.wheel(0, down)

    def drag(self, path: Sequence[tuple[float, float]]) -> None:
        """Press at the first place, move over the others, release at the last."""
        self.page.mouse.move(*path[0])
        self.page.mouse.down()
        for place in path[1:]:
            self.page.mouse.move(*place)
        self.page.mouse.up()

    def place(self, selector: str, u: float = 0.5, v: float = 0.5) -> tuple[float, float]:
        """Where the first such element is in the window; (u, v) is the place in it, from 0 to 1."""
        box = self.page.locator(selector).first.bounding_box()
        assert box is not None, f"{selector} is not shown"
        return box["x"] + u * box["width"], box["y"] + v * box["height"]

    def screenshot(self, whole: bool = False) -> bytes:
        """The window, or the whole page, as PNG."""
        return self.page.screenshot(full_page=whole)

    def _failed(self, error: Error) -> None:
        self.problems.append(str(error))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.problems.append(f"{message.text} {message.location.get('url', '')}")
