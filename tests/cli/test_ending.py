"""Programs that are asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from samdeblur.cli.ending import SignalledToEnd, ends_when_signalled
from samdeblur.cli.messages import run_command

STUCK = """
import ctypes, signal
from samdeblur.cli.ending import SignalledToEnd, ends_when_signalled
mutex = ctypes.create_string_buffer(256)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
with ends_when_signalled(0.05, 42, "what was committed is safe"):
    try:
        print("ready", flush=True)
        signal.pause()
    except SignalledToEnd:
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        ctypes.CDLL(None).pthread_mutex_lock(mutex)  # for ever, and no signal interrupts it
"""
LATE = """
import threading
from concurrent.futures import ThreadPoolExecutor
from samdeblur.cli.ending import leave
ThreadPoolExecutor(1).submit(threading.Event().wait)  # Python waits for it
leave(5, 0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_in_a_library_that_never_returns_ends_all_the_same(number):
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout.readline() == "ready\n"
        program.send_signal(number)
        err = program.communicate()[1]
    assert program.returncode == 42, err
    assert err == "error: asked to stop, but still busy after 0 s; what was committed is safe\n"


def test_a_program_whose_threads_do_not_end_ends_all_the_same():
    assert subprocess.run([sys.executable, "-c", LATE], check=False).returncode == 5


def test_who_is_told_twice_cleans_up_in_peace():
    cleaned = []

    def work():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(SignalledToEnd), ends_when_signalled(60, 1, ""):
        work()
    assert cleaned


def test_handlers_are_put_back_and_what_nohup_ignores_stays_ignored():
    def theirs(number, frame):
        raise AssertionError(number)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, theirs), signal.SIGHUP: signal.signal(signal.SIGHUP, 1)}
    try:
        with ends_when_signalled(60, 1, ""):
            assert signal.getsignal(signal.SIGTERM) != theirs
            signal.raise_signal(signal.SIGHUP)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == (theirs, signal.SIG_IGN)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_thread_leaves_signals_alone():
    seen = []
    before = signal.getsignal(signal.SIGTERM)

    def run():
        with ends_when_signalled(60, 1, ""):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_command_that_is_told_ends_with_its_own_code(capsys, monkeypatch):
    import click

    monkeypatch.setattr(sys, "argv", ["program"])
    command = click.Command("program", callback=lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run_command(command, "; run it again", signalled_code=75)
    assert (ended.value.code, capsys.readouterr().err) == (75, "\ninterrupted; run it again\n")


def test_a_closed_terminal_does_not_end_a_program():
    """Its bar is written to nowhere, and so is its last line."""
    script = """
import os, signal, sys
from samdeblur.cli.messages import progress_bar, run_command
import click

def work():
    print("ready", flush=True)
    sys.stdin.readline()
    with progress_bar(range(3)) as bar:
        bar.delay = 0
        for item in bar:
            bar.refresh()
    os.write(int(sys.argv[2]), b"done")

sys.argv = ["program", *sys.argv[1:]]
arguments = [click.Argument(["x"]), click.Argument(["y"])]
run_command(click.Command("program", params=arguments, callback=lambda **_: work()))
"""
    master, terminal = os.openpty()
    told, tells = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", script, "x", str(tells)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=terminal, text=True, pass_fds=[tells],
    ) as program:  # fmt: skip
        os.close(terminal)
        os.close(tells)
        assert program.stdout.readline() == "ready\n"
        os.close(master)
        program.stdin.write("\n")
        program.stdin.flush()
        assert os.read(told, 4) == b"done"
    os.close(told)
    assert program.returncode == 0
