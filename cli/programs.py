"""The console scripts. They import what they run only when they are called, so that Ctrl-C is one line even then."""

from __future__ import annotations

import importlib
import sys

INTERRUPTED = 130


def prep() -> None:
    _run("prep")


def train() -> None:
    _run("train")


def evaluate() -> None:
    _run("eval")


def _run(program: str) -> None:
    try:
        importlib.import_module(f"samdeblur.cli.{program}").main()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
