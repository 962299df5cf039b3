from .evaluate import score_images as score_images
from .metrics import mode_collapse_rate as mode_collapse_rate
from .metrics import psnr as psnr
from .metrics import ssim as ssim
from .results import Results as Results
from .results import Score as Score
from .results import read_results as read_results
from .results import summarise as summarise
