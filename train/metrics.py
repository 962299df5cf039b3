"""What training takes from `samdeblur.evaluation`, under the name it had before that was a package of its own."""

from samdeblur.evaluation.evaluate import score_images
from samdeblur.evaluation.metrics.mode_collapse import mode_collapse_rate
from samdeblur.evaluation.metrics.psnr_ssim import psnr, ssim
from samdeblur.evaluation.results import Results, Score, read_results, summarise

__all__ = ["Results", "Score", "mode_collapse_rate", "psnr", "read_results", "score_images", "ssim", "summarise"]
