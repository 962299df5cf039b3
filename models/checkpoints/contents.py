"""What a file of weights holds, read without running anything that is in it.

torch files are read with `weights_only=True`: classes they name are never imported. What is of such a class (the
arguments of a training, a whole pickled module) is an `Unread` in its place, which keeps what it was told and does
nothing; so files of other people's trainers can be read, and the tensors of pickled modules found.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from samdeblur.models.networks.sam import METADATA_KEY
from samdeblur.storage.files import in_utf8

# Files of other frameworks and tools by how they begin, for the message that refuses them.
_BEGINNINGS = {
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"version https://git-lfs": "the pointer of git-lfs; fetch the file with git lfs pull",
    b"<!DOCTYPE": "a web page, perhaps of a download that needs a login",
    b"<html": "a web page, perhaps of a download that needs a login",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"GGUF": "a GGUF file",
}


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or one of another network than expected."""


class Unread(dict[Any, Any]):
    """In the place of an object whose class is not loaded; its attributes, where it had some, are in `told`."""

    told: Any = None

    def __new__(cls, *_: Any, **__: Any) -> Unread:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.told = state

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...


def read_contents(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """What a torch or safetensors file holds, whatever its name, and the configuration this package wrote beside it.

    Raises CheckpointError.
    """
    with open(path, "rb") as file:
        head = file.read(32)
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    return read_torch(path, head), None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not a dict
            return state, json.loads(metadata) if metadata else None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint; safetensors cannot read it") from error


def tensor_names(path: Path) -> frozenset[str]:
    """Names of the tensors in a file, without those of the wrappers they are in; numbers are not read.

    Raises CheckpointError.
    """
    with open(path, "rb") as file:
        head = file.read(32)
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        try:
            with in_utf8(path) as name, safe_open(name, "pt") as tensors:
                return frozenset(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a checkpoint; safetensors cannot read it") from error
    return frozenset(_names(read_torch(path, head, place="meta")))


def _names(contents: Any, depth: int = 0) -> Iterator[str]:
    if (module := tensors_of_module(contents)) is not None:
        contents = module
    if isinstance(contents, Mapping) and depth < 6:
        for key, value in contents.items():
            if isinstance(value, Tensor):
                yield str(key)
            else:
                yield from _names(value, depth + 1)


def read_torch(path: Path, head: bytes = b"", place: str = "cpu") -> Any:
    """What a torch file holds. Never unpickles code. Raises CheckpointError.

    Args:
        place: where tensors are put; on "meta" their numbers are left in the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files that are refused anyway
            with torch.serialization.safe_globals([(Unread, name) for name in _unknown_classes(path)]):
                return torch.load(path, map_location=place, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler stumbles over
        known = (f": it is {what}" for begin, what in _BEGINNINGS.items() if head.startswith(begin))
        what = next(known, "; download it again")
        if _is_torchscript(path):
            what = ": it is a TorchScript archive; save the state_dict() of the network"
        raise CheckpointError(
            f"{path}: not a checkpoint; torch cannot read it ({type(error).__name__}){what}"
        ) from error


def _unknown_classes(path: Path) -> list[str]:
    """Names of the classes in a torch file that torch does not load by itself; none of files in the old format."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # torch.load says what is wrong with it
        return []


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def tensors_of_module(thing: Any) -> dict[str, Any] | None:
    """The state dict of a module that was pickled whole; None for anything else."""
    parts = thing.told if isinstance(thing, Unread) else None
    if not isinstance(parts, Mapping) or not isinstance(parts.get("_modules"), Mapping):
        return None
    left_out = parts.get("_non_persistent_buffers_set") or ()
    own = {**(parts.get("_parameters") or {}), **(parts.get("_buffers") or {})}
    found = {name: value for name, value in own.items() if value is not None and name not in left_out}
    for name, child in parts["_modules"].items():
        found |= {f"{name}.{key}": value for key, value in (tensors_of_module(child) or {}).items()}
    return {name: value.data if isinstance(value, nn.Parameter) else value for name, value in found.items()}
