"""Networks on whole images: restoring, scoring, comparing, reporting.

`evaluate` runs a network over the images of `sets` and keeps `results`; numbers are made in `metrics`, compared in
`tables` and shown in `report`. Nothing here trains: see `samdeblur.train`.
"""

from samdeblur.evaluation.evaluate import score_images
from samdeblur.evaluation.metrics import mode_collapse_rate, psnr, ssim
from samdeblur.evaluation.results import Results, Score, read_results, summarise

__all__ = ["Results", "Score", "mode_collapse_rate", "psnr", "read_results", "score_images", "ssim", "summarise"]
