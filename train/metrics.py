"""The metrics of `samdeblur.evaluation.metrics`, under the name they had before."""

from samdeblur.evaluation.metrics import mode_collapse_rate, psnr, ssim

__all__ = ["mode_collapse_rate", "psnr", "ssim"]
