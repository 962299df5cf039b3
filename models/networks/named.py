"""Networks by name: `unet`, `spandrel:Restormer` (a class of spandrel or spandrel-extra-arches), `package.module:make`.

A network of others is called through `Foreign`, which pads images to the sizes it takes; those are found by trying.
Code of your own that a file of weights names is not run unless this process was asked for it, or the environment allows
it: SAMDEBLUR_NETWORKS=package.module:factory, several joined by commas.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from samdeblur.models.networks.nafnet import NAFNet
from samdeblur.models.networks.unet import UNet
from samdeblur.storage.own_code import CodeError, load_code
from samdeblur.storage.reasons import error_in_a_line

OWN: dict[str, Callable[..., NAFNet | UNet]] = {"nafnet": NAFNet, "unet": UNet}
LIBRARIES = ("spandrel", "spandrel_extra_arches")
ALLOWED = "SAMDEBLUR_NETWORKS"
_asked: set[str] = set()  # factories this process was asked for by who runs it

_SIDE = 40  # images that sizes are tried with are at least as high
_MULTIPLES = (1, 2, 4, 7, 8, 12, 14, 16, 24, 28, 32, 48, 64, 96, 128)  # of halvings and of windows


class NetworkError(ValueError):
    """A network that is not there, or is none for restoration."""


class Foreign(nn.Module):
    """A network of others for images of any size: they are continued by their last row and column to what it takes.

    Attributes:
        config: name, options, and the sizes found, from which `build_network` makes it again.
        multiple: what sides have to be multiples of.
        square: whether images have to be square.
    """

    def __init__(self, network: nn.Module, name: str, options: Mapping[str, Any], multiple: int, square: bool) -> None:
        super().__init__()
        self.network, self.multiple, self.square = network, multiple, square
        self.config = {"options": dict(options), "multiple": multiple, "square": square}
        self.name = name

    def forward(self, image: Tensor) -> Any:
        height, width = image.shape[-2:]
        rows, columns = (-(-side // self.multiple) * self.multiple for side in (height, width))
        if self.square:
            rows = columns = max(rows, columns)
        if (rows, columns) == (height, width):
            return self.network(image)
        outputs = self.network(F.pad(image, (0, columns - width, 0, rows - height), mode="replicate"))

        def cut(output: Any) -> Any:
            whole = isinstance(output, Tensor) and output.shape[-2:] == (rows, columns)
            return output[..., :height, :width] if whole else output

        return tree_map(cut, outputs)


def name_of(network: nn.Module) -> str | None:
    """The name a network is built again by; None for one that was not built by name."""
    if isinstance(network, Foreign):
        return network.name
    return next((name for name, kind in OWN.items() if type(network) is kind), None)


def build_network(name: str, options: Mapping[str, Any], asked: bool = True) -> nn.Module:
    """A network with random weights.

    Args:
        name: one of `OWN`, `spandrel:CLASS` or `package.module:factory`, something called with the options that
            gives a module from images (B, 3, H, W) in [0, 1] to such.
        options: keyword arguments.
        asked: whether who runs this process named it; False for names that come out of a file.

    Raises NetworkError.
    """
    if name in OWN:
        return _made(name, OWN[name], options)
    home, mark, thing = name.partition(":")
    if not mark or not home or not thing:
        near = difflib.get_close_matches(name, OWN, n=1)
        hint = (
            f"did you mean {near[0]}?" if near else f"it is {', '.join(OWN)}, spandrel:CLASS or package.module:factory"
        )
        raise NetworkError(f"no network {name!r}; {hint}")
    if home == "spandrel":
        network = _made(name, spandrel_class(thing), options)
    else:
        if asked:
            _asked.add(name)
        elif name not in _asked and name not in os.environ.get(ALLOWED, "").split(","):
            raise NetworkError(
                f"asks for the network {name}, which is code outside this package; code that a file names is not "
                f"run unless you trust it and set {ALLOWED}={name}"
            )
        network = _made(name, _factory(name), options)
    return Foreign(network, name, options, *_sizes(name, network))


def rebuild_network(name: str, options: Mapping[str, Any], multiple: int, square: bool) -> Foreign:
    """A network that a file names, with the sizes found when it was made. Raises NetworkError."""
    if type(multiple) is not int or not 1 <= multiple <= max(_MULTIPLES) or type(square) is not bool:
        raise NetworkError(f"sizes {multiple!r}, {square!r} are not those of a network")
    built = build_network(name, options, asked=False)
    if not isinstance(built, Foreign):
        raise NetworkError(f"{name} takes images of any size")
    return Foreign(built.network, name, options, multiple, square)


def spandrel_class(name: str) -> Callable[..., nn.Module]:
    """A network class of spandrel or spandrel-extra-arches, whatever the case of its letters. Raises NetworkError."""
    there = [library for library in LIBRARIES if find_spec(library)]
    if not there:
        raise NetworkError(f"spandrel:{name}: spandrel is not installed; pip install samdeblur[networks]")
    known: dict[str, ModuleType | str] = {}
    for library in there:
        package = importlib.import_module(f"{library}.architectures")
        for found in pkgutil.iter_modules(package.__path__):
            if found.ispkg and not found.name.startswith("_"):
                known[found.name] = f"{library}.architectures.{found.name}"
    # The module of that name first; classes of other names, such as KBNet_s, are looked for in all.
    for module in sorted(known, key=lambda module: module.lower() != name.lower()):
        for thing, kind in vars(importlib.import_module(str(known[module]))).items():
            if inspect.isclass(kind) and issubclass(kind, nn.Module) and thing.lower() == name.lower():
                return kind
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}."
    more = (
        "" if LIBRARIES[1] in there else " Restormer and others: pip install spandrel-extra-arches, mind their licences"
    )
    raise NetworkError(f"spandrel:{name}: no such network; {hint}{more}")


def _factory(name: str) -> Callable[..., Any]:
    try:
        found = load_code(name)
    except CodeError as error:
        raise NetworkError(f"{name}: {error}") from error
    if not callable(found):
        raise NetworkError(f"{name}: is not a class or function that returns a network")
    made: Callable[..., Any] = found
    return made


def _made(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries about libraries
            network = make(**options)
    except TypeError as error:
        takes = [parameter for parameter in _parameters(make) if parameter not in ("self", "kwargs")]
        raise NetworkError(f"{name}: {error}; its options are {', '.join(takes) or 'none'}") from error
    except Exception as error:  # whatever a class makes of values it does not like
        raise NetworkError(f"{name}: cannot be built with {dict(options)} ({type(error).__name__}: {error})") from error
    if not isinstance(network, nn.Module):
        advice = "; give one that returns its .model" if isinstance(getattr(network, "model", None), nn.Module) else ""
        raise NetworkError(f"{name}: returns a {type(network).__name__}, not a torch module{advice}")
    return network


def _parameters(make: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(make).parameters)
    except (TypeError, ValueError):
        return []


def _sizes(name: str, network: nn.Module) -> tuple[int, bool]:
    """The smallest multiple of sides a network takes and gives back, and whether images must be square."""
    trouble = ""
    for square in (False, True):
        for multiple in _MULTIPLES:
            odd = -(-_SIDE // multiple) | 1  # so that the sides are no multiples of twice as much
            height, width = odd * multiple, (odd if square else odd + 2) * multiple
            try:
                outputs = _dry(network, height, width)
            except Exception as error:
                trouble = error_in_a_line(error, 200)
                continue
            shapes = [tuple(output.shape) for output in tree_leaves(outputs) if isinstance(output, Tensor)]
            if (1, 3, height, width) in shapes:
                return multiple, square
            trouble = f"of an image of {width}x{height} it gives {' and '.join(map(str, shapes)) or 'no tensor'}"
            if not any(len(s) == 4 and s[1] == 3 and abs(s[2] - height) < multiple + height // 4 for s in shapes):
                raise NetworkError(f"{name}: restores no images: {trouble}")
    raise NetworkError(f"{name}: does not turn an image (1, 3, height, width) into one of the same size ({trouble})")


def _dry(network: nn.Module, height: int, width: int) -> Any:
    weight = next(network.parameters(), torch.empty(0))
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return network(torch.rand(1, 3, height, width).to(weight))
    finally:
        for module, mode in modes.items():
            module.training = mode
