"""Results of evaluations that never took place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from samdeblur.evaluation.results import Conventions, Inference, Results, Score, SetResult

WHOLE, USUAL = Inference(), Conventions()


def scores(
    before: Mapping[str, float], gains: Sequence[float], ssim: float | Sequence[float] = 0.5
) -> tuple[Score, ...]:
    """Images by key with their PSNR before, the dB won on each, and `wang` SSIM; `nafnet` reads 0.08 more."""
    ssims = np.broadcast_to(ssim, len(gains)).tolist()
    return tuple(
        Score(
            key,
            {
                "psnr_blurred": psnr,
                "psnr": psnr + gain,
                "ssim_wang_blurred": 0.25,
                "ssim_wang": wang,
                "ssim_nafnet_blurred": 0.375,
                "ssim_nafnet": wang + 0.08,
            },
        )
        for (key, psnr), gain, wang in zip(before.items(), gains, ssims, strict=True)
    )


def one_set(
    gains: Sequence[float],
    name: tuple[str, str] = ("toy", "test"),
    recipe: str = "1" * 64,
    inference: Inference = WHOLE,
    ssim: float | Sequence[float] = 0.5,
) -> SetResult:
    """A set whose images start at 20 dB."""
    return SetResult(*name, recipe, scores({f"{n:04d}": 20.0 for n in range(len(gains))}, gains, ssim), inference)


def results(method: str, *sets: SetResult, run: str = "", conventions: Conventions = USUAL) -> Results:
    """Of weights that differ for each method and run."""
    run = run or method
    sha256 = hashlib.sha256(f"{method}/{run}".encode(errors="replace")).hexdigest()
    return Results(method, f"runs/{run}/best.safetensors", sha256, sets, conventions)


UNSCORED = SetResult("holiday", "blurred", "", (Score("x"), Score("y")))
