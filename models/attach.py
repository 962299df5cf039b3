"""Giving any restoration network a prior: its first convolution becomes conv(x) + prior_conv(features)."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from samdeblur.models.padding import pad_to
from samdeblur.models.pooling import AtomBatch
from samdeblur.models.priors import Prior


class Deblurrer(nn.Module):
    """A restoration network and the prior attached to it, if any; made by `with_prior`.

    Called with image (B, 3, H, W), RGB in [0, 1], and atoms, an AtomBatch of the same size, ignored without a prior.
    Without atoms a prior sees one background region and a warning is given once. Returns (B, 3, H, W).

    The features reach the first convolution through a hook for the time of one call, so a Deblurrer serves one
    thread at a time.
    """

    def __init__(self, network: nn.Module, prior: Prior | None) -> None:
        super().__init__()
        self.network = network
        self.prior = prior
        self.prior_conv: nn.Conv2d | None = None
        self._features: Tensor | None = None
        self._warned = False
        if prior is not None:
            first = first_convolution(network)
            self.prior_conv = nn.Conv2d(
                prior.channels,
                first.out_channels,
                first.kernel_size,  # type: ignore[arg-type]
                first.stride,  # type: ignore[arg-type]
                first.padding,  # type: ignore[arg-type]
                first.dilation,  # type: ignore[arg-type]
                bias=False,
                padding_mode=first.padding_mode,
            )
            first.register_forward_hook(self._add_features)

    def forward(self, image: Tensor, atoms: AtomBatch | None = None) -> Tensor:
        if self.prior is None:
            return self.network(image)
        if atoms is None:
            atoms = self._background(image)
        self._features = self.prior(image, atoms)
        try:
            return self.network(image)
        finally:
            self._features = None

    def _background(self, image: Tensor) -> AtomBatch:
        if not self._warned:
            warnings.warn("no atoms given: the prior sees one background region", stacklevel=5)
            self._warned = True
        batch, _, height, width = image.shape
        return AtomBatch.background(batch, height, width).to(image.device)

    def _add_features(self, conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if self._features is None or self.prior_conv is None:
            return output
        return output + self.prior_conv(pad_to(self._features, *inputs[0].shape[-2:]))


def with_prior(network: nn.Module, prior: Prior | None, init: Literal["zero", "default"] = "zero") -> Deblurrer:
    """Attach a prior to a restoration network; the network is used, not copied.

    Adding prior_conv(f) to the first convolution is the same as widening it to 3 + S input channels, while the network
    still sees three channels, which most of them add to their output.

    Args:
        network: maps (B, 3, H, W) to (B, 3, H, W); its first convolution with 3 input channels is the one widened.
        prior: for instance MAPUnit(); None attaches nothing.
        init: "zero" leaves the output of the network unchanged, for fine-tuning; "default" draws the widened
            convolution anew, as training from scratch would.

    Raises:
        ValueError: no convolution with three input channels.
    """
    deblurrer = Deblurrer(network, prior)
    if prior is None or deblurrer.prior_conv is None:
        return deblurrer
    if init == "zero":
        nn.init.zeros_(deblurrer.prior_conv.weight)
        return deblurrer
    first = first_convolution(network)
    widened = nn.Conv2d(
        3 + prior.channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    with torch.no_grad():
        first.weight.copy_(widened.weight[:, :3])
        deblurrer.prior_conv.weight.copy_(widened.weight[:, 3:])
        if first.bias is not None and widened.bias is not None:
            first.bias.copy_(widened.bias)
    return deblurrer


def first_convolution(network: nn.Module) -> nn.Conv2d:
    """The first registered convolution with three input channels. Raises ValueError without one."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            return module
    raise ValueError(f"{type(network).__name__} has no convolution with 3 input channels to attach a prior to")
