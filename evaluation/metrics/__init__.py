"""Numbers for one image: PSNR and SSIM, structural similarity, perceptual metrics, alignment before them.

Means over images and how sure they are: `evaluation.tables`.
"""

from samdeblur.evaluation.metrics.mode_collapse import mode_collapse_rate
from samdeblur.evaluation.metrics.psnr_ssim import psnr, ssim

__all__ = ["mode_collapse_rate", "psnr", "ssim"]
