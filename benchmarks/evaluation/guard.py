"""How well the guard tells collapsed results: limits from some networks and images, figures from others.

python -m benchmarks.evaluation.guard --cache FOLDER      # -> benchmarks/results/guard.json

FOLDER keeps the nine small networks this trains. Without them it takes some 10 minutes of one core, with them some 5.
"""

from __future__ import annotations

import itertools
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.common.figures import RESULTS
from benchmarks.evaluation.collapses import BROKEN, IDEAL, Case, ImageArray, cases, to_image, to_tensor
from samdeblur.evaluation.guard import LIMITS, Findings, Limits, flags, inspect, rescue
from samdeblur.evaluation.metrics.mode_collapse import COLLAPSE_DB, mode_collapse_rate
from samdeblur.evaluation.metrics.psnr_ssim import psnr
from samdeblur.evaluation.tables.bootstrap import wilson
from samdeblur.models import NAFNet, forward_in_tiles, local_pooling

# Measuring


@dataclass(frozen=True)
class Row:
    """A case in figures; PSNR in dB against the sharp image."""

    side: str
    network: str
    condition: str
    image: int
    blurred: float
    result: float
    findings: Findings

    @property
    def collapsed(self) -> bool:
        return self.blurred - self.result > COLLAPSE_DB


def quality(output: Tensor, sharp: ImageArray) -> float:
    """PSNR as evaluations compute it; 0 for values that are not finite."""
    if not output.isfinite().all():
        return 0.0
    return psnr(to_image(output[0].permute(1, 2, 0).numpy()), sharp)


def measured(case: Case) -> Row:
    findings = inspect(to_tensor(case.blurred), case.output)[0]
    about = case.side, case.network, case.condition, case.image
    return Row(*about, psnr(case.blurred, case.sharp), quality(case.output, case.sharp), findings)


# Limits

QUANTILES = (0.95, 0.96, 0.97, 0.975, 0.98, 0.985, 0.99, 0.995, 1.0)
TARGETS = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05)
ALLOWED = 0.05


def best_limits(rows: Sequence[Row], target: float) -> Limits:
    """The limits with the highest recall on some cases at no more than a rate of false alarms."""
    values = np.array([list(asdict(row.findings).values()) for row in rows])
    collapsed = np.array([row.collapsed for row in rows])
    candidates = [np.append(np.quantile(column[~collapsed], QUANTILES), np.inf) for column in values.T]
    above = [column[:, None] > limits for column, limits in zip(values.T, candidates, strict=True)]
    best, chosen = (-1.0, 0.0), (0, 0, 0)
    for places in itertools.product(range(len(QUANTILES) + 1), repeat=3):
        flagged = np.any([found[:, place] for found, place in zip(above, places, strict=True)], axis=0)
        recall, alarms = float(flagged[collapsed].mean()), float(flagged[~collapsed].mean())
        if alarms <= target and (recall, -alarms) > best:
            best, chosen = (recall, -alarms), places
    return Limits(*(float(limits[place]) for limits, place in zip(candidates, chosen, strict=True)))


def fitted(rows: Sequence[Row]) -> tuple[Limits, list[dict[str, Any]]]:
    """Limits for the largest target that holds 5% of false alarms on trained networks left out in turn, to two digits.

    Returns:
        the limits, and for each target recall and rate of false alarms on the networks left out.
    """
    trials, chosen = [], TARGETS[0]
    for target in TARGETS:
        found: list[tuple[Row, bool]] = []
        for name in sorted({row.network for row in rows} - {IDEAL}):
            limits = best_limits([row for row in rows if row.network != name], target)
            found += [(row, bool(flags(row.findings, limits))) for row in rows if row.network == name]
        trial = rates(found)
        trials.append({"target": target, "recall": trial["recall"], "false_alarms": trial["false_alarms"]})
        if trial["false_alarms"] is not None and trial["false_alarms"] <= ALLOWED:
            chosen = target
    limits = best_limits(rows, chosen)
    return Limits(**{name: float(f"{value:.2g}") for name, value in asdict(limits).items()}), trials


def rates(found: Iterable[tuple[Row, bool]]) -> dict[str, Any]:
    """Recall, false alarms with Wilson's intervals, and false alarms among results better than their input."""
    pairs = list(found)
    collapsed = [flagged for row, flagged in pairs if row.collapsed]
    others = [flagged for row, flagged in pairs if not row.collapsed]
    better = [flagged for row, flagged in pairs if row.result > row.blurred]
    return {
        "cases": len(pairs),
        "flagged": sum(flagged for _, flagged in pairs),
        **_rate("collapsed", "recall", collapsed),
        **_rate("not_collapsed", "false_alarms", others),
        **_rate("better_than_input", "false_alarms_of_better", better),
    }


def _rate(counted: str, name: str, hits: Sequence[bool]) -> dict[str, Any]:
    if not hits:
        return {counted: 0, name: None}
    rate = sum(hits) / len(hits)
    low, high = wilson(rate, len(hits))
    return {counted: len(hits), name: round(rate, 4), f"{name}_interval": [round(low, 4), round(high, 4)]}


def by(rows: Sequence[Row], limits: Limits, group: Callable[[Row], str]) -> dict[str, Any]:
    """Rates of every group of cases."""
    found = [(row, bool(flags(row.findings, limits))) for row in rows]
    names = dict.fromkeys(group(row) for row in rows)
    return {name: rates((row, flagged) for row, flagged in found if group(row) == name) for name in names}


def quality_of(row: Row) -> str:
    """How bad a result is to look at."""
    return next((f"below {limit} dB" for limit in (15, 20, 25, 30) if row.result < limit), "30 dB and more")


def loss_of(row: Row) -> str:
    """How much worse than its input a result is."""
    return next((f"{low} to {high} dB" for low, high in ((3, 6), (6, 10)) if row.blurred - row.result <= high), "more")


def fault_of(row: Row) -> str:
    """Whether the network is as it was trained."""
    return "broken" if row.condition in BROKEN[row.side] else "as trained"


# What stands in place of suspicious results

TILE, OVERLAP, TRAIN_SIZE = 128, 64, 64


@dataclass(frozen=True)
class Rescued:
    """PSNR of the input, of the result as it came, and of what stands after a policy."""

    base: str
    policy: str
    blurred: float
    result: float
    after: float
    fallback: str
    flagged: bool


@torch.no_grad()
def rescued(case: Case, limits: Limits) -> Iterator[Rescued]:
    """What the policies make of a case: of the network as it is, and of every third NAFNet's with local means (TLC)."""
    image, blurred = to_tensor(case.blurred), psnr(case.blurred, case.sharp)

    def tiled() -> Tensor:
        assert case.run is not None
        return forward_in_tiles(case.run, image, tile=TILE, overlap=OVERLAP)

    if case.run is None:
        return
    tiles, same = ("tiles", cache(tiled)), ("input", lambda: image)
    bases = {"whole": (case.output, {"input": [same], "tiles, input": [tiles, same], "tiles": [tiles]})}
    if isinstance(case.run, NAFNet) and case.image % 3 == 0 and case.condition != "large":
        off = ("TLC off", lambda: case.output)
        local = local_pooling(case.run, TRAIN_SIZE)(image)
        bases["TLC"] = local, {"input": [same], "TLC off, tiles, input": [off, tiles, same]}
    for base, (output, policies) in bases.items():
        before = quality(output, case.sharp)
        for policy, alternatives in policies.items():
            guarded = rescue(image, output, alternatives, limits)
            after = quality(guarded.output, case.sharp) if guarded.fallback else before
            flagged = bool(guarded.flags)
            yield Rescued(base, policy, blurred, before, after, guarded.fallback, flagged)


def gains(found: Sequence[Rescued]) -> dict[str, Any]:
    """Mean PSNR and mode collapse rate without and with the guard, for each policy."""
    table = {}
    for base, policy in dict.fromkeys((one.base, one.policy) for one in found):
        rows = [one for one in found if (one.base, one.policy) == (base, policy)]
        blurred, before, after = np.array([(one.blurred, one.result, one.after) for one in rows]).clip(max=100).T
        names = [one.fallback for one in rows if one.flagged]
        table[f"{base}: {policy}"] = {
            "cases": len(rows),
            "flagged": len(names),
            "fallbacks": {name or "none": names.count(name) for name in sorted(set(names))},
            "psnr_blurred": round(float(blurred.mean()), 2),
            "psnr_without": round(float(before.mean()), 2),
            "psnr_with": round(float(after.mean()), 2),
            "mcr_without": round(mode_collapse_rate(blurred, before), 4),
            "mcr_with": round(mode_collapse_rate(blurred, after), 4),
            "flagged_psnr_without": round(float(before[[one.flagged for one in rows]].mean()), 2) if names else None,
            "flagged_psnr_with": round(float(after[[one.flagged for one in rows]].mean()), 2) if names else None,
        }
    return table


def cost(size: tuple[int, int] = (720, 1280)) -> float:
    """Milliseconds of processor time that looking at a 720p result takes on one thread."""
    image = torch.rand(1, 3, *size)
    output = image + 0.1 * torch.randn_like(image)
    inspect(image, output)
    start = time.process_time()
    for _ in range(5):
        inspect(image, output)
    return round(200 * (time.process_time() - start), 1)


def figures(rows: Sequence[Row], limits: Limits) -> dict[str, Any]:
    """Rates of a side, by what the cases have in common. Ideal results are counted by themselves."""
    trained, best = ([row for row in rows if (row.network == IDEAL) == ideal] for ideal in (False, True))
    collapsed = [row for row in trained if row.collapsed]
    return {
        "trained": by(trained, limits, lambda row: "all"),
        "faults": by(trained, limits, fault_of),
        "conditions": by(trained, limits, lambda row: row.condition),
        "networks": by(trained, limits, lambda row: row.network),
        "ideal": by(best, limits, lambda row: row.condition),
        "results": by(collapsed, limits, quality_of),
        "losses": by(collapsed, limits, loss_of),
        "single_flags": {
            name: rates((row, name in flags(row.findings, limits)) for row in trained) for name in asdict(limits)
        },
    }


@click.command()
@click.option("--cache", "folder", required=True, type=click.Path(path_type=Path), help="Where trained networks stay.")
@click.option("--thin", default=1, show_default=True, help="Only every so many images, for a quick look.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "guard.json")
def main(folder: Path, thin: int, out: Path) -> None:
    """Fix limits on one side, measure on the other."""
    torch.set_num_threads(1)
    start = time.process_time()
    fit = [measured(case) for case in cases("fit", folder, thin)]
    limits, trials = fitted(fit)
    click.echo(f"limits {limits}, in the package {LIMITS}; {time.process_time() - start:.0f} s")
    test, found = [], []
    for case in cases("test", folder, thin):
        test.append(measured(case))
        found += rescued(case, limits)
    document: dict[str, Any] = {
        "limits": asdict(limits),
        "fit": {"networks_left_out": trials, **figures(fit, limits)},
        "test": figures(test, limits),
        "rescue": gains(found),
        "milliseconds_720p": cost(),
        "processor_seconds": round(time.process_time() - start),
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
    }
    out.write_text(json.dumps(document, indent=1) + "\n")
    for side in ("fit", "test"):
        for part in ("trained", "faults", "conditions", "networks", "ideal", "results", "losses"):
            for name, row in document[side][part].items():
                counts = f"{row['collapsed']} of {row['cases']} collapsed"
                click.echo(f"{side}, {name}: {counts}, recall {row['recall']}, false alarms {row['false_alarms']}")
    click.echo(json.dumps(document["rescue"], indent=1))


if __name__ == "__main__":
    main()
