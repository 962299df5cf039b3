"""What training minimises. Images are (B, 3, H, W) in [0, 1]; each loss is a mean over images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samdeblur.train.settings import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]

CHARBONNIER = 1e-3  # where the loss bends from a parabola into a line
BINOMIAL = (1 / 20, 1 / 4, 2 / 5, 1 / 4, 1 / 20)  # Burt and Adelson's kernel of 1983, a = 0.4


def psnr_loss(output: Tensor, sharp: Tensor) -> Tensor:
    """Negative PSNR in dB, mean over the batch: 10 / ln 10 * log(mse + 1e-8)."""
    error = (output - sharp).square().mean(dim=(1, 2, 3))
    return 10 / math.log(10) * torch.log(error + 1e-8).mean()


def l1_loss(output: Tensor, sharp: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (output - sharp).abs().mean()


def mse_loss(output: Tensor, sharp: Tensor) -> Tensor:
    """Mean squared difference."""
    return (output - sharp).square().mean()


def charbonnier_loss(output: Tensor, sharp: Tensor) -> Tensor:
    """Mean of sqrt(difference^2 + 1e-6), a smooth L1 (Charbonnier et al., ICIP 1994)."""
    return ((output - sharp).square() + CHARBONNIER**2).sqrt().mean()


def fft_loss(output: Tensor, sharp: Tensor) -> Tensor:
    """Mean absolute difference of the real and imaginary parts of the plain Fourier transforms (Cho et al., MIMO-UNet,
    ICCV 2021, equation 5, which weighs it by 0.1)."""
    difference = torch.fft.rfft2(output - sharp)
    return torch.view_as_real(difference).abs().mean()


def edge_loss(output: Tensor, sharp: Tensor) -> Tensor:
    """Charbonnier of the finest level of Laplacian pyramids (Zamir et al., MPRNet, CVPR 2021, which weighs it 0.05)."""
    return charbonnier_loss(_finest_level(output), _finest_level(sharp))


def _finest_level(image: Tensor) -> Tensor:
    """What an image of half its size lacks of it."""
    small = _smooth(image)[..., ::2, ::2]
    spread = torch.zeros_like(image)
    spread[..., ::2, ::2] = 4 * small
    return image - _smooth(spread)


def _smooth(image: Tensor) -> Tensor:
    channels, row = image.shape[1], torch.tensor(BINOMIAL, device=image.device, dtype=image.dtype)
    kernel = torch.outer(row, row).expand(channels, 1, 5, 5)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), kernel, groups=channels)


def lpips_loss(output: Tensor, sharp: Tensor) -> Tensor:
    """LPIPS with VGG-16 (Zhang et al., CVPR 2018), of torchmetrics, which fetches the weights of its network."""
    network = _lpips(output.device)
    scores: Tensor = network(output.float() * 2 - 1, sharp.float() * 2 - 1)
    return scores.mean().to(output.dtype)


@lru_cache(maxsize=1)
def _lpips(device: torch.device) -> nn.Module:
    try:
        from torchmetrics.functional.image.lpips import _LPIPS
    except ImportError as error:
        raise ConfigError("loss lpips: not installed; pip install samdeblur[perceptual]") from error
    try:
        network: nn.Module = _LPIPS(pretrained=True, net="vgg").to(device).eval().requires_grad_(False)
    except (OSError, RuntimeError) as error:  # no internet
        raise ConfigError(f"loss lpips: the weights of VGG-16 could not be loaded ({error})") from error
    return network


LOSSES: dict[str, Loss] = {
    "psnr": psnr_loss,
    "l1": l1_loss,
    "mse": mse_loss,
    "charbonnier": charbonnier_loss,
    "fft": fft_loss,
    "edge": edge_loss,
    "lpips": lpips_loss,
}


def loss_of(setting: str | Mapping[str, float], output: Tensor, sharp: Tensor) -> Tensor:
    """A loss by name, or the sum of several with weights."""
    if isinstance(setting, str):
        return LOSSES[setting](output, sharp)
    return torch.stack([weight * LOSSES[name](output, sharp) for name, weight in setting.items()]).sum()


def in_decibels(setting: str | Mapping[str, float], value: float) -> float:
    """A loss as dB, so that 10 more is the same disaster for each: an error over three times as large.

    A sum with PSNR in it is in dB already, times the weight of PSNR.
    """
    weights = {setting: 1.0} if isinstance(setting, str) else setting
    if "psnr" in weights:
        return value / weights["psnr"]
    return (10 if set(weights) == {"mse"} else 20) * math.log10(max(value, 1e-12))
