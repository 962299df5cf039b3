"""The weights of one network among what a file holds: in wrappers (`params_ema`, `state_dict`), under prefixes
(`module.`, `model.`), one of several.

A place in a file is a part: the keys of its wrappers and its prefix joined by dots, such as `state_dict.model`, "" for
a bare state dict. Of an average of weights (EMA) and the weights themselves the average is taken, and that is said; of
several of another kind nothing is guessed.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samdeblur.models.checkpoints.contents import CheckpointError, Unread, tensors_of_module

Prefixes = Callable[[Mapping[str, Any]], Sequence[str]]  # names of tensors -> the prefixes a network is found under

DEPTH = 4  # of wrappers in wrappers
_INSIDE = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # never of the network itself
_WORDS = r"module|(?:online_|ema_)?model(?:_ema)?|net(?:_?g)?|network|generator|student|teacher|ema"
_AVERAGES = {"ema", "swa", "average", "averaged"}
_PROFILED = ("total_ops", "total_params")  # what a profiler (thop) leaves in a network


class SeveralNetworks(UserWarning):
    """Said where a file holds weights and their average, which was taken."""


@dataclass(frozen=True)
class FoundState:
    """The weights of a network as a file has them: names without prefix, tensors, and the part they were in."""

    state: dict[str, Tensor]
    part: str = ""


def find_state(contents: Any, prefixes: Prefixes, path: Path, part: str = "") -> FoundState | None:
    """The weights of a kind of network in a file; None where there are none of it.

    Args:
        part: the one that is wanted: its name, or some of it in a row.

    Raises CheckpointError: no such part, or several and no rule which, or values that are no weights. Warns with
    SeveralNetworks where there was a choice and nobody made it.
    """
    found = {
        name: {key.removeprefix(prefix): value for key, value in state.items()}
        for place, whole in _state_dicts(contents)
        for prefix, state in _split_by_prefix(whole, prefixes(whole)).items()
        for name in [_joined(place, prefix)]
    }
    if not found:
        return None
    name = _chosen(found, path, part)
    _require_weights(found[name], path)
    others = [f"{path}#{other}" for other in found if not _same(found[other], found[name])]
    if others and not part:
        warnings.warn(
            f"{path}: holds weights and their moving average; takes {name}; to take the other, "
            f"name {', '.join(others[:6])}",
            SeveralNetworks,
            stacklevel=2,
        )
    elif not part and not any(map(_is_average, found)) and (unread := _averages_unread(contents)):
        warnings.warn(
            f"{path}: its {unread} looks like an average of the weights, in a form that is not read; takes "
            "the weights themselves",
            SeveralNetworks,
            stacklevel=2,
        )
    return FoundState(found[name], name)


def _is_average(name: str) -> bool:
    return bool(_AVERAGES & set(re.split(r"[^a-z]+", name.lower())))


def _averages_unread(contents: Any) -> str:
    """What in a file is called an average of weights and holds tensors; "" for nothing."""
    named = dict(contents) if isinstance(contents, Mapping) else {}
    for place, state in _state_dicts(contents):
        named |= {_joined(place, key): value for key, value in state.items()}
    return next((name for name, value in named.items() if _is_average(str(name)) and _holds_weights(value)), "")


def _holds_weights(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_weights, value.values()))
    return value.ndim > 0 if isinstance(value, Tensor) else isinstance(value, list | tuple) and _of_tensors(value)


def largest_state(contents: Any, path: Path, part: str = "") -> FoundState:
    """The state dict with most tensors, without the prefix all its names have, for who asks what it may be.

    Raises CheckpointError where no names and tensors are to be found, or there is no such part.
    """
    dicts = dict(_state_dicts(contents))
    if not dicts:
        raise CheckpointError(
            f"{path}: not a checkpoint of a network, which maps names to tensors{_what_it_holds(contents)}"
        )
    named = [name for name in dicts if _matches(part, name)] if part else [*dicts]
    if not named:
        raise _no_such_part(path, part, dicts)
    name = max(named, key=lambda place: len(dicts[place]))
    _require_weights(dicts[name], path)
    prefix = common_prefix(dicts[name])
    return FoundState({key.removeprefix(prefix): value for key, value in dicts[name].items()}, _joined(name, prefix))


def prefixes_before(pattern: str) -> Prefixes:
    """Those that come before names which the pattern matches, whole segments of a name, as often as they do."""
    inside = re.compile(rf"^(.*?\.)??(?:{pattern})")

    def prefixes(state: Mapping[str, Any]) -> list[str]:
        return list(dict.fromkeys(match[1] or "" for name in state if (match := inside.match(name))))

    return prefixes


def common_prefix(names: Mapping[str, Any]) -> str:
    """The segments that all names begin with, as far as they are what trainers call a network in them."""
    shared = ""
    for segment in next(iter(names), "").split(".")[:-1]:
        longer = f"{shared}{segment}."
        if not re.fullmatch(_WORDS, segment, re.IGNORECASE) or not all(name.startswith(longer) for name in names):
            break
        shared = longer
    return shared


def _state_dicts(contents: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping of names to tensors, with its place. What is not a tensor beside them stays, to be refused."""
    if (module := tensors_of_module(contents)) is not None:
        contents = module
    if not isinstance(contents, Mapping) or depth > DEPTH:
        return
    named = {key: value for key, value in contents.items() if isinstance(key, str)}
    if any(isinstance(value, Tensor) for value in named.values()):
        plain = {_INSIDE.sub("", key): value for key, value in named.items() if not key.endswith(_PROFILED)}
        yield place, {key: value for key, value in plain.items() if not key.endswith("_extra_state")}
    for key, value in named.items():
        yield from _state_dicts(value, _joined(place, key), depth + 1)


def _split_by_prefix(state: Mapping[str, Any], prefixes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By prefix, the names that have it and no longer one of the others."""
    parts: dict[str, dict[str, Any]] = {prefix: {} for prefix in prefixes}
    for name, value in state.items():
        if mine := [prefix for prefix in prefixes if name.startswith(prefix)]:
            parts[max(mine, key=len)][name] = value
    if "" in parts and len(parts) == 1:
        return {"": {k: v for k, v in parts[""].items() if not isinstance(v, Mapping) or isinstance(v, Unread)}}
    return parts


def _joined(*parts: str) -> str:
    return ".".join(part.strip(".") for part in parts if part.strip("."))


def _chosen(found: Mapping[str, Mapping[str, Any]], path: Path, part: str) -> str:
    """The name of the part to take. Raises CheckpointError."""
    names = [name for name in found if _matches(part, name)] if part else [*found]
    if not names:
        raise _no_such_part(path, part, found)
    if part in found:
        return part
    names = [name for name in names if _is_average(name)] or names
    if any(not _same(found[name], found[names[0]]) for name in names[1:]):
        listed = ", ".join(f"{path}#{name}" for name in names[:6])
        raise CheckpointError(f"{path}: holds several networks with different weights; name one: {listed}")
    return names[0]


def _no_such_part(path: Path, part: str, found: Mapping[str, Any]) -> CheckpointError:
    names = [name for name in found if name]
    near = difflib.get_close_matches(part, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names[:6]) or 'one network, and no parts'}"
    return CheckpointError(f"{path}: no part {part!r} with such a network; {hint}")


def _matches(part: str, name: str) -> bool:
    """Whether a part is named by some of its segments in a row."""
    return f".{part.strip('.')}." in f".{name}."


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        value is other[key]
        or (isinstance(value, Tensor) and isinstance(other[key], Tensor) and _equal(value, other[key]))
        for key, value in one.items()
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    comparable = no_weights(one) is None and no_weights(other) is None and one.dtype == other.dtype
    return comparable and torch.equal(one, other)


def _require_weights(state: Mapping[str, Any], path: Path) -> None:
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: not a checkpoint of a network: {name[:80]!r} is not a tensor")
        if (problem := no_weights(tensor)) is not None:
            raise CheckpointError(f"{path}: {name[:80]!r} {problem}; save the weights as plain dense tensors")


def require_numbers(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError for weights of which one is not a number."""
    for name, tensor in state.items():
        if name.endswith("weight") and tensor.ndim > 1 and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: {name[:80]!r} is of {kind}; save the weights as floating-point numbers")
        if tensor.is_floating_point() and torch.isnan(tensor).any():
            raise CheckpointError(f"{path}: {name[:80]!r} holds NaN: its training failed; take weights saved before")


def no_weights(tensor: Tensor) -> str | None:
    """Why a tensor cannot be weights: its numbers are not there one by one, whatever it says of its size."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantised" if tensor.is_quantized else "without data" if tensor.is_meta else "sparse"
        return f"is {kind}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"claims {tensor.numel():,} numbers and holds fewer"
    return None


def _what_it_holds(contents: Any) -> str:
    """What a file holds where it holds no names and tensors."""
    if isinstance(contents, Mapping):
        lists = [key for key, value in contents.items() if isinstance(value, list | tuple) and _of_tensors(value)]
        if lists:
            return f"; its {lists[0]!r} are tensors without names, which do not say where they belong"
        return f"; it holds {', '.join(repr(key)[:40] for key in list(contents)[:6]) or 'nothing'}"
    return ""


def _of_tensors(values: Sequence[Any]) -> bool:
    return Counter(isinstance(value, Tensor) for value in values)[True] == len(values) > 0
