"""Local means at test time in place of means over the whole image: TLC (Chu et al., ECCV 2022, arXiv 2112.04491).

A network trained on crops learns from means over a crop; on a larger image a mean over everything says something
else. So each global pool becomes a mean over a window of 1.5 times what it saw in training, sliding over the image.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from samdeblur.models.priors.attach import Deblurrer
from samdeblur.models.priors.pooling import AtomBatch

Network = TypeVar("Network", bound=nn.Module)

# Numbers worked on at a time, if that is more than one channel: what stays in the cache of a core; elsewhere so many
# that an image takes few launches.
CHUNKS = {"cpu": 1 << 20}
CHUNK = 1 << 24


class LocalAveragePool(nn.Module):
    """The mean of a window around each pixel: (B, C, H, W) -> the same shape, or (B, C, 1, 1) where the window
    covers the image.

    Args:
        kernel: height and width of the window, in pixels of this layer.
    """

    def __init__(self, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.kernel = kernel

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}"

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.kernel[0] >= height and self.kernel[1] >= width:
            return F.adaptive_avg_pool2d(x, 1)
        return local_mean(x, self.kernel)


def local_mean(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Means of windows that slide inside the image: (..., C, H, W) -> the same shape.

    A window is k = min(side, kernel) wide, so it has k - 1 places fewer than there are pixels; the outermost means are
    repeated to make up, floor((k - 1) / 2) times at the top and left, ceil((k - 1) / 2) times below and right. So the
    window of pixel y starts at y - floor((k - 1) / 2), moved inside the image.

    Running sums along the columns, then along the rows, in float64 (float32 on Apple's GPUs, which have no other):
    they run over the whole side, so in float32 large features take digits from small ones far away. Memory beside the
    result: some 32 bytes for each of the numbers worked on at a time, or of one channel where that is more. Where
    running sums are not repeatable (`torch.use_deterministic_algorithms` on a GPU) neighbours are added pair by pair.
    """
    height, width = x.shape[-2:]
    rows, columns = min(kernel[0], height), min(kernel[1], width)
    border = ((columns - 1) // 2, columns // 2, (rows - 1) // 2, rows // 2)
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    channels = x.shape[-3]
    step = max(1, CHUNKS.get(x.device.type, CHUNK) * channels // x.numel())
    means = torch.empty_like(x)
    for start in range(0, channels, step):
        count = min(step, channels - start)
        some = x.narrow(-3, start, count).to(wide, memory_format=torch.contiguous_format)
        sums = _sliding_sum(_sliding_sum(some, rows, -2), columns, -1)
        means.narrow(-3, start, count).copy_(F.pad(sums / (rows * columns), border, mode="replicate"))
    return means


def _sliding_sum(x: Tensor, size: int, dim: int) -> Tensor:
    """Sums of `size` neighbours along a dimension, which gets size - 1 shorter."""
    if torch.are_deterministic_algorithms_enabled() and x.device.type != "cpu":
        return _sliding_sum_by_doubling(x, size, dim)
    total, places = x.cumsum(dim), x.shape[dim] - size
    first = total.narrow(dim, size - 1, 1)
    return torch.cat([first, total.narrow(dim, size, places) - total.narrow(dim, 0, places)], dim)


def _sliding_sum_by_doubling(x: Tensor, size: int, dim: int) -> Tensor:
    """The same without a running sum: sums of 1, 2, 4, ... neighbours, joined by the binary digits of `size`."""
    places = x.shape[dim] - size + 1
    total, done, length = torch.zeros_like(x.narrow(dim, 0, places)), 0, 1
    while True:
        if size & length:
            total = total + x.narrow(dim, done, places)
            done += length
        if 2 * length > size:
            return total
        x = x.narrow(dim, 0, x.shape[dim] - length) + x.narrow(dim, length, x.shape[dim] - length)
        length *= 2


def local_pooling(network: Network, train_size: int = 256) -> Network:
    """A copy of a network whose global average pools are means of sliding windows; the network itself is untouched.

    One pass over an image of `train_size` fixes the window of every pool at int(1.5 * train_size) / train_size times
    the size it is given there (so 384, 192, 96, ... by depth for 256), whatever is deblurred later. Where a window
    covers both sides of the image the pool stays global, so at the size of training nothing changes, to the bit.
    Parameters and names are those of the network.

    Converted are modules `nn.AdaptiveAvgPool2d(1)`, wherever they are. A warning names what looks at the whole image
    otherwise: means and sums that a `forward` takes over both sides of a tensor, pools used at several sizes, pools
    the pass does not come by. Means over pixels flattened into one dimension are not seen.

    Args:
        network: a `Deblurrer`, or any module called with an image (B, 3, H, W).
        train_size: side of the crops it was trained on.

    Raises:
        ValueError: the network needs one number per channel from a pool, so it cannot use local means.
    """
    if train_size < 1:
        raise ValueError(f"train_size must be at least 1, got {train_size}")
    converted = copy.deepcopy(network)
    modes = {module: module.training for module in converted.modules()}
    converted.eval()
    pools = {module: name for name, module in converted.named_modules() if _is_global_pool(module)}
    image = torch.rand(1, 3, train_size, train_size, generator=torch.Generator().manual_seed(0))

    with _recording_pool_sizes(converted) as (sizes, left):
        expected = _call(converted, image)
    kernels = {}
    for pool, name in pools.items():
        if len(sizes.get(pool, ())) == 1:
            height, width = next(iter(sizes[pool]))
            base = int(1.5 * train_size)
            kernels[pool] = (height * base // train_size, width * base // train_size)
        else:
            left[f"{name} (a pool {'used at several sizes' if pool in sizes else 'the network did not use'})"] = None

    spread = {pool: _MeanAtEveryPixel() for pool in kernels}
    _replace(converted, spread)
    try:
        got = _call(converted, image)
    except Exception as error:
        raise ValueError(f"{_refusal(network)}: {type(error).__name__}: {error}") from error
    if len(got) != len(expected) or not all(map(_alike, got, expected)):
        raise ValueError(f"{_refusal(network)}: its output changes")
    _replace(converted, {spread[pool]: LocalAveragePool(kernel) for pool, kernel in kernels.items()})

    for module in converted.modules():
        module.training = modes.get(module, network.training)
    if left:
        warnings.warn(
            f"these still average over the whole image: {', '.join(left)}; only modules nn.AdaptiveAvgPool2d(1), one "
            "for each place, become local means",
            stacklevel=2,
        )
    return converted


def _is_global_pool(module: nn.Module) -> bool:
    return type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1), [1, 1])


class _MeanAtEveryPixel(nn.Module):
    """The global mean at every pixel: a network that works with it works with local means."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1).expand_as(x)


def _refusal(network: nn.Module) -> str:
    return f"{type(network).__name__} cannot use a mean at every pixel in place of a global one"


def _replace(network: nn.Module, others: Mapping[nn.Module, nn.Module]) -> None:
    for module in network.modules():
        for name, child in module._modules.items():
            if child is not None and child in others:
                module._modules[name] = others[child]


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and not (one - other).abs().max() > 1e-2 * other.abs().max()  # NaN is like NaN


def _call(network: nn.Module, image: Tensor) -> list[Tensor]:
    """The outputs, of networks with several too."""
    weight = next(network.parameters(), image)
    image = image.to(weight.device, weight.dtype)
    with torch.no_grad():
        if isinstance(network, Deblurrer):
            outputs = network(image, AtomBatch.background(1, *image.shape[-2:]).to(image.device))
        else:
            outputs = network(image)
    return [output for output in tree_leaves(outputs) if isinstance(output, Tensor)]


@contextmanager
def _recording_pool_sizes(
    network: nn.Module,
) -> Iterator[tuple[dict[nn.Module, set[tuple[int, int]]], dict[str, None]]]:
    """While open, notes what (height, width) each pool is given, and by name what else sums over whole images."""
    sizes: dict[nn.Module, set[tuple[int, int]]] = {}
    found: dict[str, None] = {}
    inside: list[tuple[str, nn.Module]] = []

    def enter(module: nn.Module, inputs: tuple[Any, ...], name: str) -> None:
        inside.append((name, module))
        if _is_global_pool(module):
            height, width = inputs[0].shape[-2:]
            sizes.setdefault(module, set()).add((height, width))

    def leave(*_: object) -> None:
        inside.pop()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if inside and not _is_global_pool(inside[-1][1]) and _sums_image(function, args):
                name, module = inside[-1]
                operation = function.overloadpacket.__name__.lstrip("_")
                found[f"{name or 'the network'} ({operation} in {type(module).__name__})"] = None
            return function(*args, **(kwargs or {}))

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, name=name)))
        handles.append(module.register_forward_hook(leave))
    try:
        with Watch():
            yield sizes, found
    finally:
        for handle in handles:
            handle.remove()


_SUMS = {
    torch.ops.aten.mean.default,
    torch.ops.aten.mean.dim,
    torch.ops.aten.sum.default,
    torch.ops.aten.sum.dim_IntList,
    torch.ops.aten.var.correction,
    torch.ops.aten.std.correction,
    torch.ops.aten.var_mean.correction,
}
_POOLS = {torch.ops.aten.adaptive_avg_pool2d.default, torch.ops.aten._adaptive_avg_pool2d.default}


def _sums_image(function: Any, args: Sequence[Any]) -> bool:
    """Whether an operation adds up both sides of the image in a (B, C, H, W) tensor; a side of 1 needs no sum."""
    if function in _POOLS:
        return tuple(args[1]) == (1, 1) and args[0].shape[-2:].numel() > 1
    if function == torch.ops.aten.avg_pool2d.default:
        return tuple(args[1]) == args[0].shape[-2:] and args[0].shape[-2:].numel() > 1
    if function not in _SUMS or args[0].dim() != 4:
        return False
    x, dims = args[0], args[1] if len(args) > 1 and args[1] else range(4)
    summed = {dim % 4 for dim in dims}
    sides = [dim for dim in (2, 3) if x.shape[dim] > 1]
    return bool(sides) and summed.issuperset(sides)
