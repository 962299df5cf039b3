"""The console scripts. They import what they run only when they are called, so that Ctrl-C is one line even then."""

from __future__ import annotations

import importlib
import sys

from samdeblur.cli.ending import leave
from samdeblur.cli.surroundings import settle, speak_utf8

FAILED, INTERRUPTED = 1, 130
LAST = 30.0  # seconds that the end of the interpreter may take


def prep() -> None:
    _run("prep")


def train() -> None:
    _run("train")


def evaluate() -> None:
    _run("eval")


def _run(program: str) -> None:
    try:
        speak_utf8()
        settle()
        importlib.import_module(f"samdeblur.cli.{program}").main()
    except SystemExit as ended:
        leave(ended.code if isinstance(ended.code, int) else FAILED, LAST)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ImportError, FileNotFoundError) as error:  # an environment that is not whole; no temporary folder
        if "--debug" in sys.argv:
            raise
        print(f"error: {' '.join(str(error).split())} (run with --debug for the traceback)", file=sys.stderr)
        sys.exit(FAILED)
