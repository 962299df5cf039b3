"""Models of the Hugging Face Hub by name, `facebook/sam2.1-hiera-large[@REVISION]`, fetched on request."""

from __future__ import annotations

import re
from pathlib import Path

from samdeblur.models.checkpoints.public import WeightsError, WeightsMissing

# What a model is made of; other files of a repository are not fetched.
PATTERNS = ["config.json", "*processor_config.json", "*.safetensors", "*.safetensors.index.json"]
_NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")


def is_hub_name(text: str) -> bool:
    """Whether this can only be meant as a repository of the Hub: USER/NAME, where no such file or folder is."""
    weights = text.endswith((".pt", ".pth", ".safetensors", ".bin", ".ckpt"))
    return bool(_NAME.fullmatch(text)) and not weights and not text.startswith(".") and not Path(text).exists()


def hub_folder(name: str, fetch: bool = False) -> tuple[Path, str]:
    """The folder of a repository in the Hub's cache, and which revision of it that is, REPOSITORY@COMMIT.

    Args:
        fetch: download what is not there, and look whether a branch has moved.

    Raises:
        WeightsMissing: not there, or no package huggingface_hub.
        WeightsError: it cannot be fetched.
    """
    match = _NAME.fullmatch(name)
    assert match is not None
    repository, revision = match.groups()
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise WeightsMissing(
            f"{name}: no such file; to load it from the Hugging Face Hub: pip install 'samdeblur[segmenters]'"
        ) from error
    try:
        found = snapshot_download(repository, revision=revision, allow_patterns=PATTERNS, local_files_only=not fetch)
    except LocalEntryNotFoundError as error:
        if fetch:
            raise WeightsError(f"{name}: the Hub cannot be reached: {_said(error)}") from error
        raise WeightsMissing(
            f"{name}: no such file or folder, and not fetched from the Hub; run samdeblur-prep weights fetch {name}"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise WeightsError(f"{name}: {_said(error)}") from error
    folder = Path(found)
    return folder, f"{repository}@{folder.name}"


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
