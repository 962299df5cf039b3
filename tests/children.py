"""The commands in processes of their own; a training waits where it is told to."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120  # that a child which hangs may take

PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, negative for the signal it died of, and what it said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Child:
    """A running command."""

    process: ForkServerProcess
    line: Connection
    said: Path

    def waits(self) -> None:
        """Return when it is where it was told to wait."""
        assert self.line.poll(SECONDS), self.said.with_suffix(".err").read_text()
        self.line.recv()

    def goes_on(self) -> None:
        self.line.send(None)

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> Ended:
        self.process.join(SECONDS)
        assert self.process.exitcode is not None, "it hangs"
        return Ended(self.process.exitcode, *(self.said.with_suffix(end).read_text() for end in (".out", ".err")))


@contextmanager
def started(
    arguments: Sequence[object],
    said: Path,
    before_step: int | None = None,
    environment: Mapping[str, str] | None = None,
    program: str = "train",
) -> Iterator[Child]:
    """A child for the time of the context.

    Args:
        arguments: of the command.
        said: where its output is written, as NAME.out and NAME.err.
        before_step: step before which it waits.
        environment: variables it is given.
        program: train, eval or prep.
    """
    line, far = PROCESSES.Pipe()
    process = PROCESSES.Process(
        target=_run, args=(program, [*map(str, arguments)], said, far, before_step, environment or {})
    )
    process.start()
    far.close()
    try:
        yield Child(process, line, said)
    finally:
        process.kill()
        process.join()
        line.close()


@contextmanager
def started_together(
    arguments: Sequence[Sequence[object]],
    said: Path,
    before_step: Mapping[int, int] | None = None,
    program: str = "train",
) -> Iterator[list[Child]]:
    """The processes of one run, each with its arguments, as torchrun starts them."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # where they meet
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(len(arguments)),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                started(
                    mine,
                    said.with_name(f"{said.name}-{rank}"),
                    (before_step or {}).get(rank),
                    common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    program,
                )
            )
            for rank, mine in enumerate(arguments)
        ]


def _run(
    program: str,
    arguments: list[str],
    said: Path,
    line: Connection,
    before_step: int | None,
    environment: dict[str, str],
) -> None:
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(said.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    torch.set_num_threads(1)

    command = importlib.import_module(f"samdeblur.cli.{program}")
    if program == "train":
        from samdeblur.train import running, state

        state.draw_curves = lambda history: repr(history).encode()  # drawing takes longer than these runs
    if before_step is not None:
        running.Run.take_step = _waiting(running.Run.take_step, before_step, line)  # type: ignore[method-assign]
    sys.argv = [f"samdeblur-{program}", *arguments]
    command.main()


def _waiting(take_step: Callable[..., None], before: int, line: Connection) -> Callable[..., None]:
    def waiting(run: Any, step: int, batches: Any) -> None:
        if step == before:
            line.send(None)
            line.recv()
        take_step(run, step, batches)

    return waiting
