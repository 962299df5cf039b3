"""How the commands speak: one line for what went wrong, and the exit codes.

0 done, 1 failed while working, 2 refused before working (the command, its paths or its settings are wrong),
3 finished with quarantined images, 75 stopped with its state saved (run it again), 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterable
from typing import Any

import click
from tqdm import tqdm

from samdeblur.evaluation.evaluate import NoImages
from samdeblur.evaluation.metrics.perceptual import PerceptualError
from samdeblur.evaluation.results import ResultsError
from samdeblur.models import CheckpointError, DeviceError, NotFinite, OutOfMemory
from samdeblur.pipeline import ClusterLost, DeviceFailed, SettingsError, SourceError, Unusable, WorkerKilled
from samdeblur.storage import ImageNotReady, PictureError, StoreDamaged, StoreError
from samdeblur.storage.files import printable
from samdeblur.storage.folders import NotItsFolder
from samdeblur.storage.listing import ListingError
from samdeblur.storage.writing.lease import StoreBusy
from samdeblur.train.config import ConfigError
from samdeblur.train.loop import Diverged
from samdeblur.train.stopping import Stopped

FAILED, WRONG_USAGE, QUARANTINED, REQUEUE, INTERRUPTED = 1, 2, 3, 75, 130

REFUSALS = (
    SettingsError,
    SourceError,
    StoreError,
    ImageNotReady,
    ListingError,
    CheckpointError,
    ConfigError,
    DeviceError,
    ResultsError,
    PerceptualError,
    NotItsFolder,
)
FAILURES = (
    StoreDamaged,
    PictureError,
    StoreBusy,
    Diverged,
    ClusterLost,
    WorkerKilled,
    OutOfMemory,
    NotFinite,
    NoImages,
    DeviceFailed,
    Unusable,
)


def run_command(command: click.Command, interrupted: str = "") -> None:
    """Run a click command as a program: report errors in one line (--debug adds the traceback) and exit.

    Args:
        interrupted: what to say, after "interrupted", to someone who stops it.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = command.main(arguments, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as help_text:
        help_text.show()
        code = WRONG_USAGE
    except (click.Abort, KeyboardInterrupt) as stopped:
        if isinstance(stopped.__cause__, EOFError):  # click takes the end of a file for the end of what is typed
            code = _complain(*_explain(stopped.__cause__))
        else:
            code = _complain(f"interrupted{stopped.__cause__ or stopped}{interrupted}", INTERRUPTED)
    except Stopped as stopped:
        code = _complain(
            f"{stopped}; run the same command again to go on", INTERRUPTED if stopped.by == signal.SIGINT else REQUEUE
        )
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        code = _complain(*_explain(error))
    sys.exit(code or 0)


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """A bar on stderr with rate and time left; on a terminal it moves, elsewhere it writes a line now and then.

    It waits a second before it shows, so that what is refused at once is refused in one line.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, delay=1, dynamic_ncols=True, **options)
    return tqdm(iterable, delay=1, ncols=0, mininterval=15, file=_Lines(), **options)


class _Lines:
    """What a bar writes over and over, in lines of its own on stderr."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, click.ClickException):
        return error.format_message(), WRONG_USAGE
    if isinstance(error, FAILURES):
        return str(error), FAILED
    if isinstance(error, REFUSALS) or (isinstance(error, FileNotFoundError) and error.errno is None):
        return str(error), WRONG_USAGE
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", FAILED
    if isinstance(error, RecursionError):
        return "something given is nested too deeply to be read", WRONG_USAGE
    if isinstance(error, ValueError) and "null byte" in str(error):
        return "a path with a NUL character in it", WRONG_USAGE
    if isinstance(error, EOFError):
        return f"a file ends too early: {error or 'nothing is left to read'}", FAILED
    return f"{type(error).__name__}: {error} (run with --debug for the traceback)", FAILED


def _complain(message: str, code: int) -> int:
    click.echo(f"error: {printable(' '.join(message.split()))}", err=True)
    return code


def harmless(line: str) -> str:
    """A line without characters that a terminal would act on, such as those that a file's name may hold."""
    return "".join(c if c.isprintable() else "?" for c in line)
