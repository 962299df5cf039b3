"""Training on mask stores.

The loop and its settings are here; rooms: `data` (crops), `trackers`, `sam` (the small Segment Anything model),
`presets/`. Scores and reports: `samdeblur.evaluation`.
"""

from samdeblur.evaluation.evaluate import score_images
from samdeblur.evaluation.metrics.mode_collapse import mode_collapse_rate
from samdeblur.evaluation.metrics.psnr_ssim import psnr, ssim
from samdeblur.evaluation.results import Results, Score, read_results, summarise
from samdeblur.train.config import ConfigError, TrainConfig, read_config
from samdeblur.train.loop import Diverged, train
from samdeblur.train.start import build_network
from samdeblur.train.stopping import Stopped

__all__ = [
    "ConfigError",
    "Diverged",
    "Results",
    "Score",
    "Stopped",
    "TrainConfig",
    "build_network",
    "mode_collapse_rate",
    "psnr",
    "read_config",
    "read_results",
    "score_images",
    "ssim",
    "summarise",
    "train",
]
