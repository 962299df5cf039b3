"""Workers end with the process they work for."""

from __future__ import annotations

import subprocess
import sys

WORKER = """
import sys
from samdeblur.train.data.crops import _serve
_serve(int(sys.argv[1]), 0)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_worker_ends_when_its_process_is_killed():
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(process.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as worker,
    ):
        assert worker.stdout.readline() == "ready\n"
        process.kill()
        assert worker.wait() == 1
