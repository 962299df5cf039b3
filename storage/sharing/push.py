"""Publishing a store on the Hugging Face Hub: the zip, its checksum and a dataset card, in one commit."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace as replace_header
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from samdeblur.storage.access.hub import ADVICE, HubPath, hub, hub_path
from samdeblur.storage.access.location import Location, without_secrets
from samdeblur.storage.files import sha256_file
from samdeblur.storage.format.layout import Header, StoreError
from samdeblur.storage.sharing.export import export_zip, note
from samdeblur.storage.sharing.paint import paint_masks
from samdeblur.storage.store import MaskStore, open_store

MARK = "<!-- card of samdeblur -->"  # a card that has it may be replaced
LICENCES = (  # those that the Hub has a name for
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0"),
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "odbl", "odc-by", "pddl", "gpl-3.0"),
)
IMAGE_WIDTH = 960


class PushError(StoreError):
    """A push that the Hub, or the person asked, did not want."""


def push_store(
    store: Path,
    address: str,
    target: Path | None = None,
    images: bool = False,
    licence: str = "not stated",
    replace: Callable[[str], bool] = lambda what: False,
    private: bool = False,
) -> str:
    """Write a store as a zip and commit it to a repository of the Hub, which is made where there is none.

    What has arrived is not sent again when a push that was interrupted is run again.

    Args:
        store: as for `export_zip`.
        address: hf://datasets/USER/REPOSITORY[@REVISION][/PATH.zip].
        target: where the zip is kept; None for nowhere.
        replace: asked before another file of this name is replaced.
        private: whether a repository that is made is.

    Returns:
        The address that opens what was pushed.

    Raises:
        PushError: not such an address, no token, a refusal, or a file that is not to be replaced.
        StoreError, StoreDamaged: as `export_zip`.
    """
    try:
        library, place = hub(), hub_path(Location(address))
    except ValueError as error:
        raise PushError(f"{without_secrets(address)}: {error}") from error
    source = open_store(store)
    name = place.path or f"{_plain(source.header.dataset)}-{_plain(source.header.split)}-masks.zarr.zip"
    if not name.lower().endswith(".zip"):
        raise PushError(f"{address}: name a file that ends in .zip in the repository, or nothing")
    api = library.HfApi(library_name="samdeblur")
    where = {"repo_id": place.repository, "repo_type": place.kind}
    shown = f"hf://{_start(place)}{place.repository}{_revision(place)}/{name}"
    kept = _beside(store) if target is None else nullcontext("")
    with kept as folder:
        file = target or Path(folder) / PurePosixPath(name).name
        try:
            api.create_repo(**where, exist_ok=True, private=private or None)
            there = {
                found.path: found
                for found in api.get_paths_info(paths=[name, "README.md"], revision=place.revision, **where)
            }
            export_zip(store, file, images, licence)
            digest = sha256_file(file).hex()
            old = there.get(name)
            if old is not None and old.lfs is not None and old.lfs.sha256 == digest:
                return shown
            if old is not None and not replace(f"{shown} is there already, another file of {old.size / 1e6:.1f} MB"):
                raise PushError(f"{shown}: is there already; choose another name, or --overwrite it")
            add = library.CommitOperationAdd
            checksum = file.with_name(file.name + ".sha256").read_bytes().replace(file.name.encode(), name.encode())
            added = [add(name, file), add(f"{name}.sha256", checksum)]
            if "README.md" not in there or _is_ours(library, where, place.revision):
                preview = f"{name.removesuffix('.zip')}.jpg"
                added += [
                    add("README.md", card(source, shown, name, preview, licence, images).encode()),
                    add(preview, sample(source)),
                ]
            api.create_commit(
                operations=added,
                commit_message=f"Masks of {source.header.dataset} {source.header.split}",
                revision=place.revision,
                **where,
            )
        except library.errors.LocalTokenNotFoundError as error:
            raise PushError(f"{shown}: no token; set HF_TOKEN to one that may write") from error
        except library.errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            said = error.server_message or str(error).splitlines()[0]
            advice = f"; {ADVICE.replace('read', 'write')}" if status in (401, 403) else ""
            raise PushError(f"{shown}: the Hub refuses it (HTTP {status}: {without_secrets(said)}){advice}") from error
        except (library.errors.HFValidationError, OSError) as error:
            raise PushError(f"{shown}: {without_secrets(' '.join(str(error).split()))[:300]}") from error
    return shown


def card(source: MaskStore, address: str, name: str, preview: str, licence: str, images: bool) -> str:
    """The dataset card: what the Hub reads of it in YAML, and what people do."""
    plain = licence.strip().lower().replace(" ", "-")
    known = (
        {"license": plain}
        if plain in LICENCES
        else {"license": "unknown"}
        if licence == "not stated"
        else {"license": "other", "license_name": plain, "license_details": licence}
    )
    header = source.header
    about = {
        "pretty_name": f"Masks of {header.dataset} {header.split}",
        **known,
        "task_categories": ["image-segmentation", "image-to-image"],
        "tags": ["samdeblur", "deblurring", "segment-anything", "masks", "zarr"],
        "viewer": False,
    }
    lines = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in about.items())
    body = note(source, header if images else _bare(source), address, licence)
    return f"""---
{lines}
---
{MARK}
{body}
![masks of the first image]({preview})

The zip is read where it lies, by byte ranges: a crop takes a few requests.

```sh
pip install 'samdeblur[hub]'
samdeblur-prep info {address}
samdeblur-train {address} --images FOLDER-OF-THE-IMAGES --method map
```

`{name}.sha256` holds its checksum; `samdeblur-prep verify` checks every mask.
"""


def sample(source: MaskStore) -> bytes:
    """A JPEG of the masks of the first image that has some. The image under them is not shown: it stays at home."""
    ready = source.ready_keys
    key = next((key for key in ready if source.counts[source.position(key), 0]), ready[0] if ready else None)
    if key is None:
        preview = Image.new("RGB", (16, 16))
    else:
        atoms = source.atoms(key)
        grey = np.full((*atoms.shape, 3), 128, np.uint8)
        preview = Image.fromarray(paint_masks(grey, atoms))
    preview.thumbnail((IMAGE_WIDTH, IMAGE_WIDTH))
    buffer = io.BytesIO()
    preview.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _beside(store: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder for the zip until it is sent; it may be too large for the system's own."""
    return tempfile.TemporaryDirectory(dir=store.parent, prefix=f"{store.name}.push-")


def _bare(source: MaskStore) -> Header:
    return replace_header(source.header, images=False)


def _is_ours(library: Any, where: dict[str, str], revision: str) -> bool:
    """Whether the card that is there was written by a push."""
    file = library.hf_hub_download(filename="README.md", revision=revision, **where)
    return MARK in Path(file).read_text(encoding="utf-8", errors="replace")


def _start(place: HubPath) -> str:
    return "" if place.kind == "model" else f"{place.kind}s/"


def _revision(place: HubPath) -> str:
    return "" if place.revision == "main" else f"@{place.revision}"


def _plain(text: str) -> str:
    """A name as part of a file's."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in text).strip("-.") or "masks"
