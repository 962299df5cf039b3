from .mode_collapse import mode_collapse_rate as mode_collapse_rate
from .psnr_ssim import psnr as psnr
from .psnr_ssim import ssim as ssim
