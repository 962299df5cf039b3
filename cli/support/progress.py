"""Where a preparation stands, while it runs: a bar for a terminal, lines for a log, JSON for a program."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, Literal

import click
from tqdm import tqdm

from samdeblur.cli.messages import progress_bar
from samdeblur.storage.plurals import counted

Style = Literal["auto", "json", "none"]
INTERVAL = 15.0  # seconds between two lines


class Progress:
    """SignalledToEnd about images that are done, it says so now and then.

    Args:
        style: "auto" moves a bar on a terminal and writes a line every INTERVAL elsewhere, both to stderr; "json"
            writes an object per line to stdout.
        name: of what is prepared.
        total, done: images in all, and done before.
    """

    def __init__(self, style: Style, name: str, total: int, done: int) -> None:
        self._style, self._name, self._total, self._before, self._done = style, name, total, done, done
        self._quarantined = 0
        self._start = time.monotonic()
        self._said = self._start
        self._bar: tqdm[Any] | None = None
        if style == "auto" and sys.stderr.isatty():
            self._bar = progress_bar(total=total, initial=done, unit="img", desc=name)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, images: int, quarantined: int) -> None:
        self._done += images
        self._quarantined += quarantined
        if self._bar is not None:
            self._bar.update(images)
            if quarantined:
                self._bar.set_postfix_str(f"{self._quarantined} quarantined")
        elif time.monotonic() - self._said >= (1.0 if self._style == "json" else INTERVAL):
            self._said = time.monotonic()
            self.say()

    def say(self) -> None:
        """Write a line."""
        seconds = time.monotonic() - self._start
        rate = (self._done - self._before) / seconds if seconds else 0.0
        left = (self._total - self._done) / rate if rate else None
        if self._style == "json":
            self.event(
                "progress",
                done=self._done,
                images=self._total,
                quarantined=self._quarantined,
                images_per_second=round(rate, 4),
                seconds=round(seconds, 1),
                seconds_left=None if left is None else round(left, 1),
            )
        elif self._style == "auto":
            remaining = "" if left is None else f", {tqdm.format_interval(left)} left"
            speed = f", {rate:.2f} images/s" if rate else ""
            bad = f", {self._quarantined} quarantined" if self._quarantined else ""
            click.echo(f"{self._name}: {self._done}/{counted(self._total, 'image')}{speed}{remaining}{bad}", err=True)

    def event(self, kind: str, **values: Any) -> None:
        """Write an object to stdout when the style is JSON."""
        if self._style == "json":
            click.echo(json.dumps({"event": kind, "name": self._name, "time": round(time.time(), 3), **values}))
