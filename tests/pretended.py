"""An accelerator that is not there: tensors that say they lie on `cuda:0` and are worked on by the CPU.

Unlike torch's fake tensors they hold numbers, so that paths whose shapes depend on values run from end to end, and what
they find can be compared with what a CPU finds. What a GPU would refuse is refused: operands of two devices, and numpy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

# A GPU takes indices from the host, at the price of a copy, and copies are what goes between.
_MAY_MIX = {Tensor.__getitem__, Tensor.__setitem__, Tensor.copy_, Tensor.to, Tensor.index_put_}
_AS_IT_IS = {Tensor.requires_grad.__get__, Tensor.grad_fn.__get__, Tensor.is_leaf.__get__}  # type: ignore[attr-defined]


class Pretended(Tensor):
    """A tensor of the pretended device."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            twin = there(self.detach().clone())
            memo[id(self)] = nn.Parameter(twin, self.requires_grad) if isinstance(self, nn.Parameter) else twin
        return memo[id(self)]


def there(tensor: Tensor) -> Tensor:
    """The same numbers on the pretended device."""
    return tensor if isinstance(tensor, Pretended) else tensor.as_subclass(Pretended)


def _here(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def _asked(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device | None:
    """The device that a call names."""
    if function is Tensor.cpu:
        return CPU
    if function is Tensor.cuda:
        return CUDA
    named = [kwargs["device"]] if kwargs.get("device") is not None else []
    if function is Tensor.to:
        named += [x for x in [*args[1:], *kwargs.values()] if isinstance(x, torch.device | Tensor)]
        named += [x for x in args[1:] if isinstance(x, str)]
    if not named:
        return None
    if isinstance(named[0], Tensor):
        return CUDA if isinstance(named[0], Pretended) else CPU
    return torch.device(named[0])


def _run(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    mine = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    if function == Tensor.device.__get__:  # type: ignore[attr-defined]
        return CUDA if mine else CPU
    if function == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
        return bool(mine)
    with torch._C.DisableTorchFunctionSubclass():
        if mine and function in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        others = [t for t in tensors if not isinstance(t, Pretended) and t.dim() and t.numel()]
        if mine and others and function not in _MAY_MIX:
            raise RuntimeError(f"{function}: expected all tensors to be on the same device, found cuda:0 and cpu")
        device = _asked(function, args, kwargs)
        on_cuda = bool(mine) if device is None else device.type == "cuda"
        if device is not None and device.type == "cuda":
            if function is Tensor.cuda:
                function, args = Tensor.to, (args[0],)

            def cpu(value: Any) -> Any:
                return CPU if isinstance(value, torch.device | str) else value

            first = args[:1] if function is Tensor.to else ()
            args = [*first, *(x if isinstance(x, Tensor) else cpu(x) for x in args[len(first) :])]
            kwargs = {name: cpu(x) if name == "device" else x for name, x in kwargs.items()}
        kwargs = {name: x for name, x in kwargs.items() if name != "pin_memory"}
        found = function(*args, **kwargs) if function is not Tensor.to or args[1:] or kwargs else args[0]
        if function in _AS_IT_IS:
            return found
        given = {id(tensor) for tensor in tensors}

        def placed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if on_cuda:
                return value if isinstance(value, Pretended) else value.as_subclass(Pretended)
            return value.as_subclass(Tensor) if isinstance(value, Pretended) else value

        if isinstance(found, Tensor) and id(found) in given and isinstance(found, Pretended) == on_cuda:
            return found
        return tree_map(placed, found)


class _Mode(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        self.seen.append(function)
        return _run(function, args, kwargs or {})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []


class _Event:
    def record(self, *_: object) -> None: ...
    def synchronize(self) -> None: ...


@contextmanager
def cuda() -> Iterator[_Mode]:
    """While open, `cuda:0` is a device of this process. `seen` lists what was called."""
    pretended: dict[str, Any] = {
        "_lazy_init": None, "is_available": True, "is_initialized": True, "current_device": 0, "device_count": 1,
        "empty_cache": None, "get_device_name": "a pretended GPU", "is_bf16_supported": True, "synchronize": None,
        "get_device_capability": (9, 0), "is_current_stream_capturing": False, "mem_get_info": (1 << 36, 1 << 36),
    }  # fmt: skip
    with ExitStack() as stack:
        for name, value in pretended.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=value))
        stack.enter_context(mock.patch.object(torch.cuda, "Event", _Event))
        stack.enter_context(mock.patch.object(nn.Module, "to", _module_to))
        yield stack.enter_context(_Mode())


def moved(module: Any) -> Any:
    """A copy of a module that lies on the pretended device."""
    return _place(copy.deepcopy(module))


_to = nn.Module.to


def _module_to(module: Any, *args: Any, **kwargs: Any) -> Any:
    """`nn.Module.to`, which changes parameters in place, where these become others."""
    rest = [arg for arg in args if not isinstance(arg, torch.device | str)]
    if len(rest) < len(args) and torch.device(next(arg for arg in args if arg not in rest)).type == "cuda":
        _place(module)
    return _to(module, *rest, **kwargs) if rest or kwargs else module


def _place(twin: Any) -> Any:
    for child in twin.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                child._parameters[name] = nn.Parameter(there(parameter.detach()), parameter.requires_grad)
        for name, buffer in list(child._buffers.items()):
            if buffer is not None:
                child._buffers[name] = there(buffer)
    return twin
