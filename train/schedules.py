"""What changes from step to step by a rule: the learning rate."""

from __future__ import annotations

import math

from samdeblur.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Cosine annealing from learning_rate to min_learning_rate over the run."""
    low, high = config.min_learning_rate, config.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * step / config.steps)) / 2
