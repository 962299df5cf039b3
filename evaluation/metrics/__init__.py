"""Numbers for one image: PSNR and SSIM, structural similarity, perceptual metrics, alignment before them.

Means over images and how sure they are: `evaluation.tables`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
