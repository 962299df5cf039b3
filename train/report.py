"""Reports people look at: one self-contained HTML page, readable offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_SIDE = 960  # pixels of an embedded picture
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Strip:
    """Pictures of one image side by side.

    Attributes:
        pictures: name -> (H, W, 3) uint8, or the bytes of a JPEG or PNG.
        notes: name -> a few words under the picture.
        compare: name of the picture that the slider shows first against the first picture.
    """

    title: str
    pictures: Mapping[str, NDArray[np.uint8] | bytes]
    notes: Mapping[str, str]
    compare: str


@dataclass(frozen=True)
class Table:
    """A table of text; the first column is a heading. `best` marks cells (row, column) to be set in bold."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()


def render_report(
    title: str,
    facts: Iterable[str],
    tables: Sequence[Table],
    sections: Mapping[str, Sequence[Strip]],
    figures: Mapping[str, bytes] | None = None,
) -> str:
    """The page as HTML.

    Args:
        facts: lines under the title.
        sections: heading -> strips, in the order in which they are shown.
        figures: caption -> PNG bytes.
    """
    source = files("samdeblur.train").joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["embed"] = embed
    return environment.from_string(source).render(
        title=title, facts=list(facts), tables=tables, sections=sections, figures=figures or {}
    )


def embed(picture: NDArray[np.uint8] | bytes) -> str:
    """A picture as a data address: PNG and JPEG bytes as they are, arrays as JPEG."""
    data = picture if isinstance(picture, bytes) else encode_picture(picture)
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encode_picture(picture: NDArray[np.uint8]) -> bytes:
    """JPEG bytes of an (H, W, 3) uint8 picture, shrunk to MAX_SIDE."""
    image = Image.fromarray(picture)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def number(value: Any, digits: int = 2) -> str:
    """A number for a table; a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"
