"""Repositories of the Hugging Face Hub: hf://datasets/USER/REPOSITORY[@REVISION]/PATH, or hf://USER/... of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from samdeblur.storage.access.location import Location

KINDS = {"datasets": "dataset", "models": "model", "spaces": "space"}
ADVICE = "set HF_TOKEN to a token that may read it, and accept the terms on its page if it has some"


@dataclass(frozen=True)
class HubPath:
    """What an hf:// address names."""

    kind: str  # "dataset", "model" or "space"
    repository: str  # USER/NAME
    revision: str  # "main" where none is named
    path: str


def hub_path(location: Location) -> HubPath:
    """Raises ValueError for an address without a repository."""
    parts = [part for part in f"{location.bucket}/{location.key}".split("/") if part]
    kind = KINDS[parts.pop(0)] if parts and parts[0] in KINDS else "model"
    if len(parts) < 2:
        raise ValueError("an hf:// address is hf://datasets/USER/REPOSITORY[@REVISION]/PATH")
    name, _, revision = parts[1].partition("@")
    path = parts[2:]
    if revision == "refs" and len(path) >= 2:  # refs/pr/1, as the Hub names proposals
        revision, path = "/".join(["refs", *path[:2]]), path[2:]
    return HubPath(kind, f"{parts[0]}/{name}", unquote(revision) or "main", "/".join(path))


def hub() -> Any:
    """huggingface_hub. Raises ValueError where it is missing."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise ValueError("hf:// addresses need huggingface_hub: pip install 'samdeblur[hub]'") from error
    return huggingface_hub


def hub_address(location: Location) -> tuple[Location, dict[str, str], str]:
    """The https:// address of a folder of a repository, the headers to ask for it with, and what to do when refused."""
    library, place = hub(), hub_path(location)
    start = "" if place.kind == "model" else f"{place.kind}s/"
    endpoint = library.constants.ENDPOINT.rstrip("/")
    address = f"{endpoint}/{start}{place.repository}/resolve/{quote(place.revision, safe='')}/{quote(place.path)}"
    return Location(address.rstrip("/")), library.utils.build_hf_headers(library_name="samdeblur"), ADVICE
