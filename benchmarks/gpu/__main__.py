"""Everything worth knowing of a GPU in under eight minutes: whether it computes what it should, and how fast.

python -m benchmarks.gpu [--device cuda|cpu] [--small] [--out FILE] [--only NAME]    (make gpu)

For who has a GPU for ten minutes. What was measured is in the file at once; run the same command again to go on where
it was stopped, or where something failed. On another machine, or with other versions, it begins anew.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import traceback
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.common.figures import RESULTS
from benchmarks.gpu.correctness import CHECKS
from benchmarks.gpu.figures import figures
from benchmarks.gpu.scenes import FULL, SMALL, Size
from samdeblur.models import device_facts, pick_device
from samdeblur.pipeline.job.blame import Blame, blame

BUDGET = 450.0  # seconds after which nothing more is begun


def hardware(device: torch.device, size: Size) -> dict[str, Any]:
    """What figures are of; those of anything else do not mix."""
    found: dict[str, Any] = {
        **{name: metadata.version(name) for name in ("samdeblur", "torch", "torchvision", "segment-anything")},
        "python": platform.python_version(),
        "size": size.name,
        **device_facts(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"memory, GB": round(properties.total_memory / 1e9), "processors": properties.multi_processor_count}
    return found


def run(device: torch.device, size: Size, out: Path, only: str = "", budget: float = BUDGET) -> dict[str, Any]:
    """Measure what is not in the file yet; returns what is in it then."""
    known = json.loads(out.read_text()) if out.exists() else {}
    facts = hardware(device, size)
    results: dict[str, Any] = known if known.get("hardware") == facts else {"hardware": facts, "rows": {}}
    rows, start = results["rows"], time.monotonic()
    work = {f"correct: {name}": check for name, check in CHECKS.items()}
    work |= {f"speed: {name}": figure for name, figure in figures(size).items()}
    for name, measure in work.items():
        if only not in name or "failed" not in rows.get(name, {"failed": ""}):
            continue
        if time.monotonic() - start > budget:
            print("out of time; run the same command again for the rest")
            break
        began = time.monotonic()
        try:
            with warnings.catch_warnings(), _compiler(device):
                warnings.simplefilter("ignore")
                rows[name] = measure(device, size)
        except Exception as error:
            rows[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            traceback.print_exc()
            if blame(error) is Blame.DEVICE:
                print("the device cannot be used by this process any more; run the same command again")
                break
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
            if name in rows:
                rows[name]["took, s"] = round(time.monotonic() - began, 1)
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(results, indent=1, default=float) + "\n")
        print(f"{name:32} {_cells(rows[name])}", flush=True)
    return results


def _compiler(device: torch.device) -> AbstractContextManager[Any]:
    """On a CPU without the part of torch.compile that takes minutes to write machine code."""
    if device.type != "cpu":
        return nullcontext()
    return mock.patch.object(torch, "compile", partial(torch.compile, backend="aot_eager"))


def _cells(row: dict[str, Any]) -> str:
    short = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in row.items()}
    return "; ".join(f"{name} {value}" for name, value in short.items())


def table(results: dict[str, Any]) -> str:
    """What is known, as Markdown."""
    facts = ", ".join(f"{name} {value}" for name, value in results["hardware"].items())
    rows = [f"| {name} | {_cells(row)} |" for name, row in results["rows"].items()]
    return "\n".join([facts, "", "| | |", "|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="small images and networks: to try it without a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--only", default="", help="those alone whose name contains this")
    options = parser.parse_args()
    results = run(pick_device(options.device), SMALL if options.small else FULL, options.out, options.only)
    print("\n" + table(results))
    wrong = [name for name, row in results["rows"].items() if row.get("verdict", "right") != "right" or "failed" in row]
    if wrong:
        print(f"\nwrong or failed: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
