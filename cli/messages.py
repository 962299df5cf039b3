"""How the commands speak: one line for what went wrong, and the exit codes.

0 done, 1 failed while working, 2 refused before working (the command, its paths or its settings are wrong),
3 finished with quarantined images, 75 stopped with its state saved (run it again), 130 interrupted.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from samdeblur.cli.ending import SignalledToEnd, ends_when_signalled
from samdeblur.storage.access.location import without_secrets
from samdeblur.storage.files import printable

if TYPE_CHECKING:
    from tqdm import tqdm

FAILED, WRONG_USAGE, QUARANTINED, REQUEUE, INTERRUPTED = 1, 2, 3, 75, 130

# By name, so that nothing is loaded to say what went wrong: what can be raised is loaded already.
REFUSALS = frozenset({
    "samdeblur.pipeline.segmenters.base.SettingsError",
    "samdeblur.pipeline.segmenters.plugins.SegmenterError",
    "samdeblur.pipeline.segmenters.plugins.SegmenterMissing",
    "samdeblur.pipeline.job.local.MemoryTooSmall",
    "samdeblur.pipeline.sources.base.SourceError",
    "samdeblur.storage.format.layout.StoreError",
    "samdeblur.storage.store.ImageNotReady",
    "samdeblur.storage.listing.ListingError",
    "samdeblur.storage.folders.NotItsFolder",
    "samdeblur.models.checkpoints.contents.CheckpointError",
    "samdeblur.models.inference.deblur.DeviceError",
    "samdeblur.train.settings.ConfigError",
    "samdeblur.evaluation.results.ResultsError",
    "samdeblur.evaluation.metrics.perceptual.PerceptualError",
})  # fmt: skip
FAILURES = frozenset({
    "samdeblur.storage.store.StoreDamaged",
    "samdeblur.storage.store.ExternalImageError",
    "samdeblur.storage.writing.fence.StoreBusy",
    "samdeblur.train.running.Diverged",
    "samdeblur.train.data.loader.LoaderFailed",
    "samdeblur.pipeline.job.cluster.ClusterLost",
    "samdeblur.pipeline.job.cluster.WorkerKilled",
    "samdeblur.pipeline.job.blame.DeviceFailed",
    "samdeblur.pipeline.job.blame.Unusable",
    "samdeblur.models.inference.deblur.OutOfMemory",
    "samdeblur.models.inference.deblur.NotFinite",
    "samdeblur.evaluation.evaluate.NoImages",
})  # fmt: skip


ACTED_ON = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # codes; turns of direction

# Warnings that are notes for who runs a command.
NOTES = frozenset({
    "samdeblur.models.checkpoints.finding.SeveralNetworks",
    "samdeblur.train.resuming.RunMended",
    "samdeblur.train.trackers.base.TrackerFailed",
    "samdeblur.storage.processes.Note",
})  # fmt: skip


def is_one_of(error: BaseException, names: Collection[str]) -> bool:
    """Whether an exception is of one of these classes."""
    return any(f"{kind.__module__}.{kind.__qualname__}" in names for kind in type(error).__mro__)


def run_command(
    command: click.Command, interrupted: str = "", grace: float = 10.0, signalled_code: int = INTERRUPTED
) -> None:
    """Run a click command as a program: report errors in one line (--debug adds the traceback) and exit.

    Args:
        interrupted: what to say, after "interrupted", to someone who stops it.
        grace: seconds that it may take to end when SIGTERM or SIGHUP asks for it.
        signalled_code: the exit code then.
    """
    try:
        with (
            ends_when_signalled(grace, signalled_code, interrupted.lstrip("; ") or "run the same command again"),
            _printable_streams(),
        ):
            code = _run(command, interrupted, signalled_code)
    except SignalledToEnd:  # just before, or just after
        code = signalled_code
    sys.exit(code or 0)


@contextmanager
def _printable_streams() -> Iterator[None]:
    """What is printed in here does nothing to a terminal, whatever names it holds."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _PrintableStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _PrintableStream:
    """A stream of text without the characters that a terminal acts on; lines, tabs and returns to their start stay."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(ACTED_ON.sub("?", text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class NothingWritten(str):
    """The message of an interruption that came before anything was written: the whole of it."""


def _run(command: click.Command, interrupted: str, signalled_code: int) -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _printing_notes(warnings.showwarning)
            code = command.main(arguments, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as help_text:
        help_text.show()
        code = WRONG_USAGE
    except (click.Abort, KeyboardInterrupt) as stopped:
        if isinstance(stopped.__cause__, EOFError):  # click takes the end of a file for the end of what is typed
            message, code = _explain(stopped.__cause__)
            _print_line(f"error: {message}", code)
        else:
            by = signalled_code if isinstance(stopped.__cause__ or stopped, SignalledToEnd) else INTERRUPTED
            said = stopped.__cause__ or stopped
            more = "" if any(isinstance(part, NothingWritten) for part in said.args) else interrupted
            code = _print_line(f"interrupted{said}{more}", by)
    except BrokenPipeError:  # who read it, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except Exception as error:
        if "--debug" in sys.argv:
            from samdeblur.storage.access.location import without_secrets

            sys.stderr.write(without_secrets(traceback.format_exc()))
        stopped_by = getattr(error, "by", 0) if is_one_of(error, {"samdeblur.train.stopping.Stopped"}) else 0
        if stopped_by:
            message = f"{error}; run the same command again to go on"
            code = _print_line(message, INTERRUPTED if stopped_by == signal.SIGINT else REQUEUE)
        else:
            message, code = _explain(error)
            _print_line(f"error: {message}", code)
    return code or 0


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """A bar on stderr with rate and time left; on a terminal it moves, elsewhere it writes a line now and then.

    It waits a second before it shows, so that what is refused at once is refused in one line.
    """
    from samdeblur.cli.bars import SECOND, Bar, Lines, tqdm

    if sys.stderr.isatty():
        return Bar(iterable, **options)
    return tqdm(iterable, delay=SECOND, ncols=0, mininterval=15, file=Lines(), **options)


def _printing_notes(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Shows warnings that are `NOTES` in a line, others as before."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if isinstance(message, Warning) and is_one_of(message, NOTES):
            _print_line(f"note: {message}", 0)
        else:
            otherwise(message, category, *where, **more)

    return show


def _explain(error: Exception) -> tuple[str, int]:
    if near := getattr(error, "possibilities", None):  # the closest comes first
        return f"{getattr(error, 'message', error)} Did you mean {' or '.join(near)}?", WRONG_USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), WRONG_USAGE
    if is_one_of(error, FAILURES):
        return str(error), FAILED
    if is_one_of(error, REFUSALS) or (isinstance(error, FileNotFoundError) and error.errno is None):
        return str(error), WRONG_USAGE
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", FAILED
    if isinstance(error, RecursionError):
        return "something given is nested too deeply to be read", WRONG_USAGE
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a path with a NUL character in it", WRONG_USAGE
    if isinstance(error, EOFError):
        return f"a file ends too early: {error or 'nothing is left to read'}", FAILED
    return f"{type(error).__name__}: {error} (run with --debug for the traceback)", FAILED


def _print_line(message: str, code: int) -> int:
    with suppress(OSError):  # nobody listens any more
        click.echo(without_secrets(printable(" ".join(message.split()))), err=True)
    return code


def harmless(line: str) -> str:
    """A line without characters that a terminal would act on, such as those that a file's name may hold."""
    return "".join(c if c.isprintable() else "?" for c in line)
