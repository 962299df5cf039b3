"""How long a command takes to say something, and how much memory: cold processes, commands that need no network.

    python benchmarks/cli/startup.py [--old PYTHON]

PYTHON is an interpreter of another checkout to compare with, run in turns with this one. Two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "startup.json"
TURNS = 5
MAKE = [
    "run",
    "sample",
    "STORE",
    "--split",
    "test",
    "--segmenter",
    "superpixels",
    "--workers",
    "1",
    "--progress",
    "none",
]
COMMANDS = {
    "prep --help": ["prep", "--help"],
    "prep --version": ["prep", "--version"],
    "prep run --help": ["prep", "run", "--help"],
    "train --help": ["train", "--help"],
    "eval run --help": ["eval", "run", "--help"],
    "prep status": ["prep", "status", "STORE"],
    "prep info": ["prep", "info", "STORE"],
    "prep verify": ["prep", "verify", "STORE"],
    "prep export": ["prep", "export", "STORE", "OUT.zip", "--overwrite"],
    "prep view": ["prep", "view", "STORE", "OUT.html", "--overwrite"],
}


def measure(python: str, arguments: list[str]) -> tuple[float, float]:
    """Seconds and megabytes (largest resident size) of a command in a process of its own."""
    program, *rest = arguments
    start = time.perf_counter()
    process = subprocess.Popen(
        [python, "-m", f"samdeblur.cli.{program}", *rest], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", help="interpreter of another checkout")
    pythons = {"now": sys.executable} | ({"before": old} if (old := parser.parse_args().old) else {})
    with tempfile.TemporaryDirectory() as folder:
        places = {}
        for name, python in pythons.items():  # formats may differ
            places[f"{name} STORE"] = f"{folder}/{name}.zarr"
            made = [part.replace("STORE", places[f"{name} STORE"]) for part in MAKE]
            subprocess.run([python, "-m", "samdeblur.cli.prep", *made], check=True, stdout=subprocess.DEVNULL)
        rows = {}
        for title, arguments in COMMANDS.items():
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in pythons}
            for _ in range(TURNS):
                for name, python in pythons.items():
                    filled = [part.replace("STORE", places[f"{name} STORE"]) for part in arguments]
                    filled = [part.replace("OUT", f"{folder}/{name}") for part in filled]
                    found[name].append(measure(python, filled))
            rows[title] = {
                name: {"seconds": round(min(s for s, _ in runs), 3), "megabytes": round(max(m for _, m in runs), 1)}
                for name, runs in found.items()
            }
            print(f"{title:<18}", "   ".join(f"{name}: {v['seconds']:.2f} s, {v['megabytes']:.0f} MB"
                                            for name, v in rows[title].items()), flush=True)  # fmt: skip
    RESULTS.write_text(json.dumps({"load": os.getloadavg()[0], "commands": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
