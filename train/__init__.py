"""Training and evaluation on mask stores."""

from samdeblur.train.config import ConfigError, TrainConfig, read_config
from samdeblur.train.evaluate import score_images
from samdeblur.train.loop import Diverged, train
from samdeblur.train.metrics import mode_collapse_rate, psnr, ssim
from samdeblur.train.results import Results, Score, read_results, summarise
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
