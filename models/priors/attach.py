"""Giving any restoration network a prior: its first convolution becomes conv(x) + prior_conv(features)."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from samdeblur.models.priors.base import Prior
from samdeblur.models.priors.families import Intake, noise, recognise
from samdeblur.models.priors.pooling import AtomBatch

Align = Callable[[Tensor, Tensor], Tensor]  # features (B, S, H, W), what reached the convolution -> (B, S', h, w)

# Sizes of the image of the dry run, until the network takes one. The first shows how a network pads.
_SIZES = ((61, 47), (64, 64), (128, 128), (256, 256))

# Input channels of convolutions that are looked at when none is named: an image, beside others, or unshuffled.
_CHANNELS = (3, 4, 6, 12, 48)


class PriorConv(nn.Conv2d):
    """The input channels that a convolution is widened by: what it makes of the features is added to its output.

    The features are there for the time of one call of the network.
    """

    def __init__(self, first: nn.Conv2d, name: str, channels: int, align: Align) -> None:
        super().__init__(
            channels,
            first.out_channels,
            first.kernel_size,  # type: ignore[arg-type]
            first.stride,  # type: ignore[arg-type]
            first.padding,  # type: ignore[arg-type]
            first.dilation,  # type: ignore[arg-type]
            bias=False,
            padding_mode=first.padding_mode,
        )
        self.first_name = name
        self.align = align
        self.features: Tensor | None = None
        self.reached: tuple[int, ...] | None = None  # size of what reached the convolution last
        first.register_forward_hook(self._add)

    def offer(self, features: Tensor | None) -> None:
        self.features, self.reached = features, None

    def _add(self, first: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if self.features is None:
            if torch._C._current_graph_task_id() != -1:  # a backward pass is under way
                raise RuntimeError(
                    f"the convolution {self.first_name!r} runs again in the backward pass, when its prior is gone: "
                    "checkpoint the whole Deblurrer, or what comes after this convolution"
                )
            return output
        reached = tuple(inputs[0].shape[-2:])
        if isinstance(self.align, Intake) and self.reached not in (None, reached):
            raise ValueError(
                f"the convolution {self.first_name!r} is called at sizes {self.reached} and {reached} for one image: "
                "give with_prior align=, a function that brings features to each of them"
            )
        self.reached = reached
        return output + self(self.align(self.features, inputs[0]))


class Deblurrer(nn.Module):
    """A restoration network and the prior attached to it, if any; made by `with_prior`.

    Called with image (B, 3, H, W), RGB in [0, 1], and atoms, an AtomBatch of the same size, ignored without a prior.
    Without atoms a prior sees one background region and a warning is given once. Returns (B, 3, H, W).

    The features reach the first convolution through a hook for the time of one call, so a Deblurrer serves one
    thread at a time.
    """

    recognised: str = ""  # what load_network took the file for
    train_size: int | None = None  # side of the crops it was trained on, for local_pooling; None where nobody said
    provenance: Mapping[str, Any] | None = None  # step and run of its weights, where they say: see docs/training.md
    local_means: bool = False  # whether its weights ask for local_pooling at that size, whatever the image

    def __init__(
        self,
        network: nn.Module,
        prior: Prior | None,
        first: str | Sequence[str] | None = None,
        align: Align | None = None,
        output: int | str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.prior = prior
        self.prior_conv: PriorConv | None = None
        self.more_prior_convs = nn.ModuleList()  # of networks that take the image in at several places
        self.output = output
        self._warned = False
        if prior is not None:
            convs = [_prior_conv(network, inlet, prior.channels) for inlet in find_inlets(network, first, align)]
            self.prior_conv = convs[0]
            self.more_prior_convs.extend(convs[1:])
            prior.to(convs[0].weight)

    @property
    def prior_convs(self) -> list[PriorConv]:
        return [] if self.prior_conv is None else [self.prior_conv, *self.more_prior_convs]

    def forward(self, image: Tensor, atoms: AtomBatch | None = None) -> Tensor:
        if self.prior is None:
            return self._result(self.network(image), image)
        if atoms is None:
            atoms = self._background(image)
        features = self.prior(image, atoms)
        convs = self.prior_convs
        for conv in convs:
            conv.offer(features)
        try:
            outputs = self.network(image)
            for conv in convs:
                if conv.reached is None:
                    raise RuntimeError(
                        f"{type(self.network).__name__} did not call the convolution {conv.first_name!r} that has the "
                        "prior; if it was replaced, attach the prior again"
                    )
        finally:
            for conv in convs:
                conv.offer(None)
        return self._result(outputs, image)

    def _background(self, image: Tensor) -> AtomBatch:
        if not self._warned:
            warnings.warn("no atoms given: the prior sees one background region", stacklevel=5)
            self._warned = True
        batch, _, height, width = image.shape
        return AtomBatch.background(batch, height, width).to(image.device)

    def _result(self, outputs: Any, image: Tensor) -> Any:
        """The output asked for, or the only one of the size of the image."""
        if isinstance(outputs, Tensor) or self.output == "all":
            return outputs
        if self.output is not None:
            return outputs[self.output]
        of_size = outputs.values() if isinstance(outputs, Mapping) else outputs
        of_size = [output for output in of_size if isinstance(output, Tensor) and output.shape == image.shape]
        if len(of_size) != 1:
            raise ValueError(
                f"{type(self.network).__name__} gives {len(outputs)} outputs, {len(of_size)} of the size of the image: "
                'say with_prior(..., output=) which, by its place or key, or "all"'
            )
        return of_size[0]


def with_prior(
    network: nn.Module,
    prior: Prior | None,
    init: Literal["zero", "default"] = "zero",
    *,
    first: str | Sequence[str] | None = None,
    align: Align | None = None,
    output: int | str | None = None,
) -> Deblurrer:
    """Attach a prior to a restoration network; the network is used, not copied.

    Adding prior_conv(f) to the first convolution is the same as widening it by S input channels, while the network
    still sees three channels, which most of them add to their output.

    The convolution is found by a dry run on noise, which ends there: the first one called that the image reaches,
    alone or beside other channels, and padded, reduced or unshuffled if the network does so; the features then are too.

    Args:
        network: maps (B, 3, H, W) to (B, 3, H, W). A Deblurrer without a prior stands for its network.
        prior: for instance MAPUnit(), moved to the device and type of the network; None attaches nothing.
        init: "zero" leaves the output of the network unchanged, for fine-tuning; "default" draws the widened
            convolution anew, as training from scratch would.
        first: name of the convolution (as in `network.named_modules()`), or the names of several, where the network
            takes the image in at several scales. Each is widened.
        align: function (features (B, S, H, W), what reached the convolution (B, C, h, w)) -> (B, any, h, w), for
            networks that do something else with the image.
        output: which of several outputs is the result, by its place or key; "all" returns what the network returns.
            By default the only one of the size of the image.

    Raises:
        ValueError: no such convolution, or the image does not reach it in a way known here.
        TypeError: the network is not a torch module.
    """
    if not isinstance(network, nn.Module):
        advice = "; pass its .model" if isinstance(getattr(network, "model", None), nn.Module) else ""
        raise TypeError(f"{type(network).__name__} is not a torch module{advice}")
    if isinstance(network, Deblurrer):
        if network.prior is not None:
            raise ValueError("this Deblurrer has a prior already; pass its .network")
        output = network.output if output is None else output
        network = network.network
    deblurrer = Deblurrer(network, prior, first, align, output)
    for conv in deblurrer.prior_convs:
        if init == "zero":
            nn.init.zeros_(conv.weight)
        else:
            _draw_widened(network, conv)
    return deblurrer


def _draw_widened(network: nn.Module, conv: PriorConv) -> None:
    first = network.get_submodule(conv.first_name)
    assert isinstance(first, nn.Conv2d)
    if "weight" not in first._parameters:
        raise ValueError(
            f"the convolution {conv.first_name!r} of {type(network).__name__} has a weight that is computed from "
            'others: use init="zero"'
        )
    widened = nn.Conv2d(
        first.in_channels + conv.in_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    with torch.no_grad():
        first.weight.copy_(widened.weight[:, : first.in_channels])
        conv.weight.copy_(widened.weight[:, first.in_channels :])
        if first.bias is not None and widened.bias is not None:
            first.bias.copy_(widened.bias)


@dataclass(frozen=True)
class Inlet:
    """A convolution that the image reaches, and how it went in the dry run."""

    name: str
    conv: nn.Conv2d
    align: Align
    image: Tensor
    reached: Tensor
    output: Tensor


def _prior_conv(network: nn.Module, inlet: Inlet, channels: int) -> PriorConv:
    what = f"the convolution {inlet.name!r} of {type(network).__name__}"
    with torch.no_grad():
        aligned = inlet.align(inlet.image.new_zeros(1, channels, *inlet.image.shape[-2:]), inlet.reached)
        if aligned.shape[-2:] != inlet.reached.shape[-2:]:
            raise ValueError(
                f"align= gave features of {tuple(aligned.shape[-2:])} where {tuple(inlet.reached.shape[-2:])} "
                f"reached {what}"
            )
        conv = PriorConv(inlet.conv, inlet.name, aligned.shape[1], inlet.align).to(inlet.reached)
        if conv(aligned).shape != inlet.output.shape:
            raise ValueError(
                f"{what} is a {type(inlet.conv).__name__} that pads inside: put a plain Conv2d in its place"
            )
    return conv


class _Known(BaseException):
    """Ends a dry run; no network catches it."""


def find_inlets(
    network: nn.Module, first: str | Sequence[str] | None = None, align: Align | None = None
) -> list[Inlet]:
    """The named convolutions, or the first one called that the image reaches, by a dry run. Raises ValueError."""
    kind = type(network).__name__
    if hasattr(network, "_orig_mod"):
        raise ValueError("attach the prior before torch.compile, then compile the Deblurrer")
    convs = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    names = [first] if isinstance(first, str) else list(first or [])
    for name in names:
        _check_name(kind, name, convs)
    watched = {n: convs[n] for n in names} or {
        n: conv for n, conv in convs.items() if conv.groups == 1 and conv.in_channels in _CHANNELS
    }
    found: dict[str, Inlet] = {}
    strange: dict[str, tuple[int, ...]] = {}
    trouble: Exception | None = None

    def look(name: str, image: Tensor) -> Callable[..., None]:
        def hook(conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
            if name in found or (name in strange and not names):
                return
            how = align or recognise(image, inputs[0])
            if how is None:
                strange[name] = tuple(inputs[0].shape[1:])
                return
            found[name] = Inlet(name, conv, how, image, inputs[0], output)
            if len(found) == max(len(names), 1):
                raise _Known

        return hook

    for size in _SIZES if watched else ():
        strange.clear()
        image = noise(*size).to(next(iter(watched.values())).weight)
        with _dry(network), ExitStack() as hooks:
            for name, conv in watched.items():
                hooks.callback(conv.register_forward_hook(look(name, image), prepend=True).remove)
            try:
                network(image)
                trouble = None
                break
            except _Known:
                return [found[name] for name in names or found]
            except Exception as error:  # whatever a network raises at an image it does not like
                trouble = error
    raise ValueError(_why_not(kind, names, found, strange, trouble))


@contextmanager
def _dry(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no warnings, and afterwards random numbers and modes as if nothing had been."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module in training:
            module.training = True


def _check_name(kind: str, name: str, convs: Mapping[str, nn.Conv2d]) -> None:
    if name not in convs:
        near = difflib.get_close_matches(name, convs, 1) or list(convs)[:1]
        advice = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{kind} has no Conv2d named {name!r}{advice}")
    if convs[name].groups != 1:
        raise ValueError(
            f"the convolution {name!r} of {kind} has {convs[name].groups} groups and cannot be widened: name another"
        )


def _why_not(
    kind: str,
    names: Sequence[str],
    found: Mapping[str, Inlet],
    strange: Mapping[str, tuple[int, ...]],
    trouble: Exception | None,
) -> str:
    if trouble is not None:
        reason = " ".join(str(trouble).split())[:160]
        return (
            f"{kind} does not take an image (1, 3, height, width) alone, so no convolution can be found "
            f"({type(trouble).__name__}: {reason}): wrap it in a module that adds or pads what it needs"
        )
    changed = "the image as it is, padded, reduced or unshuffled"
    advice = "give align=, a function (features, what reached the convolution) -> features of its height and width"
    for name in names:
        if name in strange:
            return f"what reaches the convolution {name!r} of {kind} is not {changed}: {advice}"
        if name not in found:
            return f"{kind} does not call the convolution {name!r} on an image: name another"
    return (
        f"{kind} has no convolution with {', '.join(map(str, _CHANNELS))} input channels and one group that is called "
        f"on {changed}: name one with first= and {advice}"
    )
