"""A Parquet file with a row per mask, as `datasets` and pandas load it: name and size of the image, RLE, records.

Images, those without masks too, and what the store says of itself are in the file's metadata.
"""

from __future__ import annotations

import json
import math
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from samdeblur.storage.exchange.annotations import LeftOut, Listing, read_annotations, sizes_of
from samdeblur.storage.exchange.coco import Progress
from samdeblur.storage.exchange.rle import ExchangeError, check_size, encode_masks
from samdeblur.storage.files import PARTIAL, fsync_path
from samdeblur.storage.format.layout import RECORD_COLUMNS
from samdeblur.storage.store import MaskStore

ABOUT = b"samdeblur"
NEEDED = ("image", "height", "width", "counts")


def export_parquet(store: MaskStore, target: Path, progress: Progress) -> list[str]:
    """Write the images of a store that are done; the file is replaced when it is there. Returns what is lost."""
    arrow, parquet = _pyarrow()
    header = store.header
    known = header.digest != "none"
    images = [[key, *store.shape(key), store.digest(key).hex() if known else ""] for key in store.ready_keys]
    about = {"dataset": header.dataset, "split": header.split, "recipe": header.recipe, "digest": header.digest}
    kinds = [arrow.string(), arrow.int32(), arrow.int32(), arrow.string(), *[arrow.float64()] * len(RECORD_COLUMNS)]
    schema = arrow.schema(
        list(zip((*NEEDED, *RECORD_COLUMNS), kinds, strict=True)),
        metadata={ABOUT: json.dumps(about | {"images": images}).encode()},
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)
    try:
        with parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
            for key in store.ready_keys:
                rles = encode_masks(store.atoms(key))
                height, width = store.shape(key)
                columns: dict[str, Any] = {
                    "image": [key] * len(rles),
                    "height": [height] * len(rles),
                    "width": [width] * len(rles),
                    "counts": [rle["counts"] for rle in rles],
                    **{name: np.asarray(column, float) for name, column in store.records(key).items()},
                }
                writer.write_table(arrow.table(columns, schema=schema))
                progress(1)
        fsync_path(partial)
        os.replace(partial, target)
        fsync_path(target.parent)
    finally:
        partial.unlink(missing_ok=True)
    return []


def list_parquet(path: Path, left_out: LeftOut | None = None) -> Listing:
    """Images in the order of the metadata, or else of their first rows. Raises ExchangeError."""
    arrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise ExchangeError(f"not a Parquet file that can be read ({' '.join(str(error).split())[:120]})") from error
    if missing := [name for name in NEEDED if name not in table.column_names]:
        raise ExchangeError(f"no column {missing[0]!r}; a row is a mask, with {', '.join(NEEDED)} (COCO's RLE)")
    try:
        about = json.loads((table.schema.metadata or {}).get(ABOUT, b"{}"))
        images = {str(key): (height, width, digest) for key, height, width, digest in about.get("images", [])}
    except (ValueError, TypeError, AttributeError) as error:
        raise ExchangeError("its metadata cannot be read") from error
    left_out = left_out or LeftOut(strict=True)
    rows: dict[str, list[int]] = {key: [] for key in images}
    names, counts = table.column("image").to_pylist(), table.column("counts").to_pylist()
    heights, widths = ([_whole(value) for value in table.column(name).to_pylist()] for name in ("height", "width"))
    columns = {name: table.column(name).to_pylist() for name in RECORD_COLUMNS if name in table.column_names}
    for row, name in enumerate(names):
        if not isinstance(name, str):
            left_out.add(f"row {row + 1} of {len(names)}: its image is not a text")
            continue
        rows.setdefault(name, []).append(row)
        images.setdefault(name, (heights[row], widths[row], ""))
    keys = list(rows)

    def annotation(row: int) -> dict[str, Any]:
        values = {name: _value(column[row]) for name, column in columns.items()}
        point = [values.get(f"point_{axis}") for axis in "xy"]
        crop_box = [values.get(f"crop_box_{side}") for side in "xywh"]
        return {
            "segmentation": {"size": [heights[row], widths[row]], "counts": counts[row]},
            "predicted_iou": values.get("predicted_iou"),
            "stability_score": values.get("stability_score"),
            "point_coords": [] if None in point else [point],
            "crop_box": None if None in crop_box else crop_box,
        }

    digests = [_digest(images[key][2]) for key in keys]
    known = about.get("digest") in ("pixels", "file") and all(digests)
    return Listing(
        keys,
        *sizes_of(len(keys), lambda position: check_size(*images[keys[position]][:2])),
        lambda position, shape: read_annotations(
            [annotation(row) for row in rows[keys[position]]], *shape, left_out, keys[position]
        ),
        digest_kind=about["digest"] if known else "none",
        digest=digests.__getitem__ if known else lambda position: bytes(32),
        claims=about.get("recipe"),
    )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ExchangeError("Parquet needs pyarrow: pip install 'samdeblur[parquet]'") from error
    return pyarrow, pyarrow.parquet


def _value(value: Any) -> Any:
    """A number as JSON has it, None where it is none; whatever else stands in a column stays, to be refused by name."""
    if isinstance(value, Decimal):
        value = float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole(value: Any) -> Any:
    """A number of pixels; pandas makes 20.0 of 20 where a column has gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digest(text: Any) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except (TypeError, ValueError):
        return b""
    return digest if len(digest) == 32 else b""
