"""Public weights of networks of other people, recognised by spandrel where that is installed."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from samdeblur.models.checkpoints.finding import common_prefix
from samdeblur.models.networks.named import LIBRARIES, NetworkError, spandrel_class


def prefixes_of_others(state: Mapping[str, Any]) -> list[str]:
    """Prefixes under which spandrel knows a network; none where it is not installed."""
    registry = _registry()
    if registry is None:
        return []
    firsts = dict.fromkeys([common_prefix(state), *(f"{name.split('.')[0]}." for name in state if "." in name)])
    found = []
    for prefix in firsts:
        names = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if all(isinstance(value, Tensor) for value in names.values()) and _detected(registry, names) is not None:
            found.append(prefix)
    return found


def network_of(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]] | None:
    """Name and options of the network a state dict is of, as `build_network` takes them; None for an unknown one.

    Raises what spandrel raises at weights that do not fit, and NetworkError for a class that cannot be named.
    """
    registry = _registry()
    architecture = _detected(registry, state) if registry is not None else None
    if architecture is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = architecture.load(dict(state)).model
    name = type(model).__name__
    if spandrel_class(name) is not type(model):
        raise NetworkError(f"spandrel has several networks called {name}")
    defaults = inspect.signature(type(model).__init__).parameters
    options = {
        key: value
        for key, value in getattr(model, "hyperparameters", {}).items()
        if key not in defaults or defaults[key].default != value
    }
    return f"spandrel:{name}", json.loads(json.dumps(options))


def _registry() -> Any:
    if not find_spec(LIBRARIES[0]):
        return None
    from spandrel import MAIN_REGISTRY

    if find_spec(LIBRARIES[1]):
        from spandrel_extra_arches import install

        install(ignore_duplicates=True)
    return MAIN_REGISTRY


def _detected(registry: Any, state: Mapping[str, Any]) -> Any:
    for support in registry.architectures("detection"):
        try:
            if support.architecture.detect(state):
                return support.architecture
        except Exception:  # of names and shapes it did not expect
            continue
    return None
