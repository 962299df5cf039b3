"""Restoring people's images: a file for each, under its own name, and each only once.

Below the folder OUT lie the results, `compare.html` where it is asked for, and in `.samdeblur` the journal that tells
what was restored from which file, how.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path, PurePosixPath

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray

from samdeblur.evaluation.journal import Entry, Journal
from samdeblur.evaluation.report.images import address
from samdeblur.evaluation.restore import Restored, Restorer
from samdeblur.evaluation.results import Inference, Score
from samdeblur.models.inference.memory import tile_for
from samdeblur.models.inference.release import let_go
from samdeblur.models.inference.tiles import TILE
from samdeblur.storage import AtomMap
from samdeblur.storage.decode import BadImage
from samdeblur.storage.files import PARTIAL, file_stamp, sha256_file, write_durably
from samdeblur.storage.names import bounded
from samdeblur.storage.photos import FORMS, Photo, as_8_bits, encode_photo, read_photo
from samdeblur.storage.suffixes import SUFFIXES

PAGE, BESIDE = "compare.html", "compare.files"
HIDDEN = ".samdeblur"
PREVIEW = ".jpg"  # behind the name of a result
NAME_BYTES = 255  # of a file name, where the file system does not say

Segment = Callable[[NDArray[np.uint8]], AtomMap]


@dataclass(frozen=True)
class Input:
    """A file to restore.

    Attributes:
        source: where it is.
        name: what to call the result: a relative path with the suffix of the source.
    """

    source: Path
    name: PurePosixPath


Named = tuple[Input, PurePosixPath]  # with the name of its result


@dataclass(frozen=True)
class Way:
    """How images are restored and written.

    Attributes:
        weights: SHA-256 of the network's.
        masks: fingerprint of the segmenter; empty for none.
        form: a key of FORMS.
        quality: of forms that lose something.
    """

    weights: str
    inference: Inference
    masks: str = ""
    form: str = "png"
    quality: int = 95

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        written: results, by their source.
        kept: those of them that were there before.
        left_out: sources that cannot be restored, and why.
        flagged: sources whose results the guard found suspicious, with what it found.
    """

    written: dict[Path, Path] = field(default_factory=dict)
    kept: int = 0
    left_out: dict[Path, str] = field(default_factory=dict)
    flagged: dict[Path, str] = field(default_factory=dict)


def restore_images(
    inputs: Sequence[Input],
    folder: Path,
    way: Way,
    restorer: Callable[[], Restorer],
    segment: Segment | None,
    compare: bool = False,
    say: Callable[[str], None] = print,
    bar: Callable[[Sequence[Named]], Iterable[Named]] = iter,
) -> Outcome:
    """Restore images into a folder of ours; those that are there already, made of the same in the same way, stay.

    Args:
        restorer: makes the network ready; asked when the first image needs it.
        segment: finds masks; None for a network that looks at none.
        compare: write a page with all results beside what they were made of.
        say: takes one line for a person.
        bar: shows how far it is.

    Raises:
        NotFinite, OutOfMemory: the network cannot do it; what was restored stays.
        OSError: the disk cannot take it.
    """
    journal = Journal(folder / HIDDEN, "restored", {"restored": 1})
    known = journal.read()
    outcome = Outcome()
    ready: Restorer | None = None
    for one, name in bar(list(_with_result_names(inputs, folder, FORMS[way.form], known, way, say))):
        target = folder / name
        source = one.source
        stamp, entry = f"{way.digest} {file_stamp(source)}", known.get(str(name))
        content = entry.content if entry is not None and entry.stamp == stamp else _content(way, source)
        if entry is not None and entry.saved == file_stamp(target) and entry.content == content:
            outcome.kept += 1
        else:
            start = time.perf_counter()
            try:
                photo = read_photo(source)
                ready = ready or restorer()
                restored, notes = _restore(photo, ready, segment)
                photo = _at_bit_depth_of_form(replace(photo, pixels=restored.image), way, notes)
                data = encode_photo(photo, way.form, way.quality)
            except BadImage as error:
                outcome.left_out[source] = str(error).removeprefix(f"{source}: ")
                say(f"{source}: left out: {outcome.left_out[source]}")
                continue
            write_durably(target, data)
            for note in (*photo.notes, *notes):
                say(f"{source}: {note}")
            score = Score(str(name), {}, restored.flags, restored.fallback)
            seconds = time.perf_counter() - start
            entry = Entry(score, seconds, stamp, content, file_stamp(target), os.path.abspath(source))
            journal.add(entry)
        outcome.written[source] = target
        if entry.score.flags:
            instead = f"; in its place {entry.score.fallback}" if entry.score.fallback else ""
            outcome.flagged[source] = ", ".join(entry.score.flags) + instead
        if compare and not (before := _before(folder, name)).exists():
            photo = read_photo(source)
            write_durably(before, encode_photo(photo, "jpg", 92))
    if compare and outcome.written:
        _write_page(folder, outcome)
    return outcome


def _restore(photo: Photo, restorer: Restorer, segment: Segment | None) -> tuple[Restored, list[str]]:
    """The result, and what a person should know of it."""
    height, width = photo.pixels.shape[:2]
    atoms = segment(as_8_bits(photo.pixels)) if segment is not None else None
    inference = restorer.inference
    tile = None if inference.tile else tile_for(restorer.plain, height, width, inference.precision)
    restored = None
    try:
        restored = restorer(photo.pixels, atoms, tile)
    except torch.OutOfMemoryError as error:
        if inference.tile or tile or max(height, width) <= TILE:
            raise
        let_go(error)
    if restored is None:  # outside the handler, where nothing holds on to the memory any more
        tile = TILE
        restored = restorer(photo.pixels, atoms, tile)
    return restored, [f"{width}x{height} pixels, restored in tiles of {tile} for lack of memory"] if tile else []


def _at_bit_depth_of_form(photo: Photo, way: Way, notes: list[str]) -> Photo:
    """The result with as many bits as the form holds and the precision gave; adds to the notes."""
    if photo.pixels.dtype == np.uint8:
        return photo
    if way.form == "png" and way.inference.precision == "float32":
        notes.append("16 bits per channel, in and out")
        return photo
    reason = f"{way.form} holds no more" if way.form != "png" else f"{way.inference.precision} gives no more"
    notes.append(f"16 bits per channel, written with 8: {reason}")
    return replace(photo, pixels=as_8_bits(photo.pixels))


def _content(way: Way, source: Path) -> str:
    """A digest of what a result depends on."""
    try:
        return hashlib.sha256(way.digest.encode() + sha256_file(source)).hexdigest()
    except OSError:
        return ""  # which is said when it is read


# Names


def _with_result_names(
    inputs: Sequence[Input],
    folder: Path,
    suffix: str,
    known: Mapping[str, Entry],
    way: Way,
    say: Callable[[str], None],
) -> Iterator[Named]:
    """Each image with the name of its result: no two alike, on any file system, and none too long."""
    room = _name_bytes(folder) - len(PARTIAL) - len(suffix) - len(PREVIEW)
    taken = {_folded(parent) for one in inputs for parent in one.name.parents}
    for one in inputs:
        whole = one.name.with_suffix("") if one.name.suffix.lower() in SUFFIXES else one.name
        plain = PurePosixPath(*(bounded(part, room) for part in whole.parts))
        if plain != whole:
            say(f"{one.source}: its name is too long; the result is called {plain}{suffix}")
        name = next(
            name
            for name in _numbered(plain, suffix, room)
            if _folded(name) not in taken and _is_free(folder, name, one.source, known.get(str(name)), way)
        )
        taken.add(_folded(name))
        yield one, name


def _numbered(plain: PurePosixPath, suffix: str, room: int) -> Iterator[PurePosixPath]:
    yield plain.with_name(plain.name + suffix)
    number = 2
    while True:
        yield plain.with_name(f"{bounded(plain.name, room - 8)}-{number}{suffix}")
        number += 1


def _is_free(folder: Path, name: PurePosixPath, source: Path, entry: Entry | None, way: Way) -> bool:
    """Whether a result may have a name: nothing has it, or what was made of the same file, or of the same content."""
    if entry is None or not (folder / name).exists():
        return not (folder / name).exists()
    return entry.source == os.path.abspath(source) or entry.content == _content(way, source)


def _folded(name: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(name)).casefold()


def _name_bytes(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        return NAME_BYTES


# The page


def _before(folder: Path, name: PurePosixPath) -> Path:
    return folder / BESIDE / name.with_name(name.name + PREVIEW)


def _write_page(folder: Path, outcome: Outcome) -> None:
    """A slider for each image."""
    shown = [
        {
            "name": str(target.relative_to(folder)).encode(errors="replace").decode(),
            "before": address(_before(folder, PurePosixPath(target.relative_to(folder))), folder),
            "after": address(target, folder),
        }
        for target in outcome.written.values()
    ]
    page = files("samdeblur.evaluation.report").joinpath("web", "compare.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    write_durably(folder / PAGE, environment.from_string(page).render(images=shown).encode())
