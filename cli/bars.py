"""Bars that move on a terminal, and what stands for them in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

SECOND = 1.0  # what is refused within it is refused in one line, without a bar
# On a narrow terminal give way: the rate where there are words, the end of the name, the last words.
LEAST, NAME = 10, 12  # columns of the bar, and of the name
NARROW = 60  # columns of a terminal
WHOLE = "{l_bar}{bar}{r_bar}"
SHORT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


if TYPE_CHECKING:
    _Tqdm = tqdm[Any]
else:
    _Tqdm = tqdm


class Bar(_Tqdm):
    """A bar that is there after a second, whatever is done by then, and wide enough to be seen to move."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._first = threading.Timer(SECOND, self._begin)
        self._first.daemon = True
        options |= {"delay": SECOND, "dynamic_ncols": True, "file": Terminal()}
        super().__init__(*args, **options)
        if not self.disable:
            self._first.start()

    def _begin(self) -> None:
        with self.get_lock():
            if not self.disable and self.last_print_t < self.start_t + SECOND:
                self.last_print_t = time.time()
                self.refresh(nolock=True)

    def close(self) -> None:
        self._first.cancel()
        super().close()

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        shown = dict(super().format_dict)
        if not (shown["ncols"] and shown["total"]):
            return shown
        shown["bar_format"] = WHOLE
        room = shown["ncols"] - LEAST
        words = [word for word in (shown["postfix"] or "").split(", ") if word]
        if (words or shown["ncols"] < NARROW) and _width(shown) > room:
            shown["bar_format"] = SHORT
        over, name = _width(shown) - room, shown["prefix"].removesuffix(": ")
        if over > 0 and disp_len(name) > NAME:
            shown["prefix"] = f"{disp_trim(name, max(NAME, disp_len(name) - over) - 1)}\u2026: "
        while words and _width(shown) > room:
            words.pop()
            shown["postfix"] = ", ".join(words)
        return shown


def _width(shown: Mapping[str, Any]) -> int:
    """Columns of all but the bar."""
    return disp_len(
        Bar.format_meter(**{**shown, "ncols": None, "bar_format": shown["bar_format"].replace("{bar}", "")})
    )


class Terminal:
    """stderr, for what is not worth ending for when it cannot be said: a terminal may be closed at any time."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def fileno(self) -> int:
        return sys.stderr.fileno()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


class Lines(Terminal):
    """What a bar writes over and over, in lines of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            super().write(f"{line}\n")
