"""The page of a report: one HTML file with everything in it but the originals of images, which lie beside it."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from PIL import Image

from samdeblur.evaluation.report.images import address
from samdeblur.evaluation.results import Score
from samdeblur.evaluation.tables.cells import BLURRED, Table, metric_digits, metric_label, metric_names

SCRIPTS = ("data", "charts", "list", "zoom", "masks", "viewer", "main")


@dataclass(frozen=True)
class ShownResult:
    """What one network made of an image.

    Attributes:
        thumbnail: JPEG bytes of the result.
        file: of the result.
    """

    score: Score
    thumbnail: bytes | None = None
    file: Path | None = None


@dataclass(frozen=True)
class ShownImage:
    """An image, and a result or None for each network of the set.

    Attributes:
        files: by the names "blurred", "sharp" and "masks", below the folder of the page.
    """

    key: str
    results: Sequence[ShownResult | None]
    files: Mapping[str, Path]


@dataclass(frozen=True)
class ShownSet:
    """A set of images.

    Attributes:
        networks: positions among those of the page.
        collapse_db: for each of them.
        notes: lines about the set.
    """

    name: str
    networks: Sequence[int]
    collapse_db: Sequence[float]
    notes: Sequence[str]
    images: Sequence[ShownImage]


@dataclass(frozen=True)
class Example:
    """An image at the top of the page.

    Attributes:
        title: which one it is.
        words: its numbers.
        strip: JPEG bytes, its images beside each other.
        labels: what they are.
        place: of the image in the page: number of its set, key.
    """

    title: str
    words: str
    strip: bytes
    labels: Sequence[str]
    place: tuple[int, str]


def render_page(
    folder: Path,
    title: str,
    facts: Iterable[str],
    tables: Sequence[Table],
    figures: Mapping[str, bytes],
    networks: Sequence[str],
    sets: Sequence[ShownSet],
    lead: str = "",
    beware: Sequence[str] = (),
    examples: Sequence[Example] = (),
) -> str:
    """The page as HTML.

    Args:
        folder: where the page will be.
        facts: lines about how the numbers were made.
        tables: the first is shown, the others are folded.
        figures: caption -> PNG bytes.
        networks: what they are called, each in another way.
        lead: what was evaluated, in a line.
        beware: what the reader should know first.
    """
    web = files("samdeblur.evaluation.report").joinpath("web")
    scripts = [
        files("samdeblur.storage.sharing").joinpath("paint.js"),
        *(web.joinpath(f"{name}.js") for name in SCRIPTS),
    ]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["route"] = lambda place: f"#{place[0]}/{quote(_text(place[1]))}"
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.from_string(web.joinpath("report.html.j2").read_text(encoding="utf-8")).render(
        title=title,
        facts=list(facts),
        lead=lead,
        beware=list(beware),
        examples=examples,
        tables=tables,
        figures=figures,
        style=web.joinpath("report.css").read_text(encoding="utf-8"),
        scripts=[script.read_text(encoding="utf-8") for script in scripts],
        data={"networks": [_text(name) for name in networks], "sets": [_set_data(folder, shown) for shown in sets]},
    )


def _set_data(folder: Path, shown: ShownSet) -> dict[str, Any]:
    """A set as the scripts of the page take it; what is empty is left out."""
    metrics = metric_names(n for image in shown.images for found in image.results if found for n in found.score.metrics)
    return {
        "name": _text(shown.name),
        "notes": list(shown.notes),
        "networks": list(shown.networks),
        "collapse": list(shown.collapse_db),
        "metrics": [{"name": n, "label": metric_label(n), "digits": metric_digits(n)} for n in metrics],
        "images": [_image_data(folder, image, metrics) for image in shown.images],
    }


def _image_data(folder: Path, image: ShownImage, metrics: Sequence[str]) -> dict[str, Any]:
    data: dict[str, Any] = {"key": _text(image.key)}
    if image.files:
        with Image.open(image.files["blurred"]) as blurred:
            data["size"] = list(blurred.size)
        data |= {name: address(path, folder) for name, path in image.files.items()}
    data["results"] = [_result_data(folder, found, metrics) if found else None for found in image.results]
    return data


def _result_data(folder: Path, found: ShownResult, metrics: Sequence[str]) -> dict[str, Any]:
    score = found.score
    data: dict[str, Any] = {}
    if score.metrics:
        data["before"] = [_value(score.metrics.get(name + BLURRED)) for name in metrics]
        data["after"] = [_value(score.metrics.get(name)) for name in metrics]
    if score.flags:
        data["flags"] = list(score.flags)
    if score.fallback:
        data["fallback"] = score.fallback
    if found.file is not None:
        data["file"] = address(found.file, folder)
    if found.thumbnail is not None:
        data["thumbnail"] = base64.b64encode(found.thumbnail).decode()
    return data


def _text(text: str) -> str:
    """Without the half characters that stand for bytes of file names and that browsers put into no address."""
    return text.encode(errors="replace").decode()


def _value(number: float | None) -> float | str | None:
    """For JSON: infinity as the word that JavaScript reads as a number."""
    if number is None or math.isnan(number):
        return None
    return number if math.isfinite(number) else f"{'-' if number < 0 else ''}Infinity"
