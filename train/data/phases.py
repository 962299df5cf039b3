"""Crops and batches of other sizes in the first phases of a run (progressive learning, as Restormer is trained)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Phase:
    """Steps in a row with crops and batches of one size. Steps are counted from 1, samples from 0."""

    first_step: int
    first_sample: int
    crop_size: int
    batch_size: int


@dataclass(frozen=True)
class Phases:
    """All phases of a run; the last has no end, so the sizes of any step and any sample are known from the start."""

    phases: tuple[Phase, ...]

    @classmethod
    def of(cls, steps: Sequence[int], crops: Sequence[int], batches: Sequence[int]) -> Phases:
        """From the lengths of all phases but the last, and the sizes of all."""
        firsts = list(accumulate(steps, initial=1))
        samples = list(accumulate((n * size for n, size in zip(steps, batches, strict=False)), initial=0))
        return cls(tuple(map(Phase, firsts, samples, crops, batches)))

    def at_step(self, step: int) -> Phase:
        return self.phases[bisect_right([phase.first_step for phase in self.phases], step) - 1]

    def at_sample(self, sample: int) -> Phase:
        return self.phases[bisect_right([phase.first_sample for phase in self.phases], sample) - 1]

    def first_sample(self, step: int) -> int:
        phase = self.at_step(step)
        return phase.first_sample + (step - phase.first_step) * phase.batch_size
