"""Code of the user's own, named as `package.module:thing`: segmenters, networks, layouts."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from samdeblur.storage.reasons import error_in_a_line


class CodeError(ImportError):
    """There is no such thing, or importing it fails; a line that says what to do."""


def load_code(name: str) -> Any:
    """What `package.module:thing`, or `package.module:thing.of.it`, names. Imports the module. Raises CodeError."""
    module, _, path = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            raise CodeError(f"no module {error.name!r}; install it, or put its folder on PYTHONPATH") from error
        raise CodeError(f"it needs the module {error.name!r}, which is not installed") from error
    except Exception as error:  # whatever a module does
        raise CodeError(f"cannot be imported ({error_in_a_line(error)})") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            near = difflib.get_close_matches(part, [known for known in dir(found) if known[:1] != "_"], n=1)
            raise CodeError(f"no {part!r} in it{f'; did you mean {near[0]}?' if near else ''}") from error
        except Exception as error:
            raise CodeError(f"{part!r} cannot be had of it ({error_in_a_line(error)})") from error
    return found
