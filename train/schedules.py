"""What changes from step to step by a rule: the learning rate, the sizes of crops and batches."""

from __future__ import annotations

import math

from samdeblur.train.config import TrainConfig
from samdeblur.train.data.phases import Phases


def learning_rate(step: int, config: TrainConfig) -> float:
    """Of the step after `step` steps: a warm-up times the schedule, from learning_rate to min_learning_rate."""
    length = config.schedule_steps or config.steps
    done = min(step, length)
    if config.schedule == "restarts":
        length = config.restart_steps
        done = step % length
    low, high = config.min_learning_rate, config.learning_rate
    share = {
        "cosine": (1 + math.cos(math.pi * done / length)) / 2,
        "restarts": (1 + math.cos(math.pi * done / length)) / 2,
        "linear": 1 - done / length,
        "constant": 1.0,
    }[config.schedule]
    return (low + (high - low) * share) * min(1.0, (step + 1) / (config.warmup_steps + 1))


def phases_of(config: TrainConfig) -> Phases:
    crops, batches = (*config.progressive_crops, config.crop_size), (*config.progressive_batches, config.batch_size)
    return Phases.of(config.progressive_steps, crops, batches)
