"""Which results stand in which row and column of a table, and which must not stand in one."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from pathlib import Path

from samdeblur.evaluation.results import RESULTS, Conventions, Results, ResultsError, Score, SetResult, Trained
from samdeblur.evaluation.tables import published
from samdeblur.storage.files import printable
from samdeblur.storage.names import shared_names
from samdeblur.storage.plurals import counted

SAME_DB = 0.05  # blurred images whose PSNR differs by more are other images; decoders of JPEG differ by less
FROM_IMAGES = ("psnr", "ssim_wang", "ssim_nafnet")

SetKey = tuple[str, str, str]  # dataset, split, fingerprint of the masks


class NotComparable(ResultsError):
    """Results that must not stand in one table."""


@dataclass(frozen=True)
class Column:
    """A set of images with the masks of one recipe.

    Attributes:
        name: dataset and split; also the recipe, when there are several of that set.
        images: keys, in the order of the first results that have the set.
    """

    key: SetKey
    name: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Network:
    """The sets that one network was evaluated on, out of one file of results or several.

    Attributes:
        method: without words on inference.
        places: where the results were read from.
    """

    method: str
    sha256: str
    places: tuple[str, ...]
    sets: Mapping[SetKey, SetResult]
    trained: Trained | None = None

    @property
    def label(self) -> str:
        """The method, and how inference was done if that is unusual and the same everywhere."""
        ways = self.ways
        return f"{self.method}, {min(ways)}" if len(ways) == 1 and "" not in ways else self.method

    @property
    def ways(self) -> frozenset[str]:
        """How inference was done."""
        return frozenset(way(result) for result in self.sets.values())


@dataclass(frozen=True)
class Group:
    """What becomes a row: one network, or the runs of a method that are averaged."""

    label: str
    networks: tuple[Network, ...]

    @property
    def method(self) -> str:
        return self.networks[0].method

    def way(self, key: SetKey) -> str | None:
        """How inference was done on a set, which is the same in all networks; None for a set they were not run on."""
        result = self.networks[0].sets.get(key)
        return None if result is None else way(result)


@dataclass(frozen=True)
class Arrangement:
    """Rows and columns of a table.

    Attributes:
        places: where the results were read from.
        notes: sentences that a reader of the table should know.
    """

    conventions: Conventions
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    places: tuple[str, ...]
    notes: tuple[str, ...]


def arrange(runs: Sequence[Results], places: Sequence[str] = (), mean_runs: bool = False) -> Arrangement:
    """Arrange results, the sets and methods of the paper first, in its order.

    A set whose masks nobody looked at (of a method without masks) is in the column of every recipe. Results of the
    same weights on other sets are one row.

    Args:
        places: where each was read from, for labels and messages; by default its weights.
        mean_runs: average the networks of a method, if they are several.

    Raises:
        NotComparable: naming the places.
    """
    places = [printable(place) for place in places or [run.weights for run in runs]]
    conventions = _conventions(runs, places)
    notes: list[str] = []
    scored = [_with_metrics(run, place, notes) for run, place in zip(runs, places, strict=True)]
    keys = _column_keys(result for sets in scored for result in sets)
    found = [_in_columns(sets, keys, place) for sets, place in zip(scored, places, strict=True)]
    for key in keys:
        _share_names([sets for sets in found if key in sets], key)
    several = Counter(key[:2] for key in keys)
    columns = []
    for key in keys:
        images = _check_images([(sets[key], place) for sets, place in zip(found, places, strict=True) if key in sets])
        columns.append(Column(key, set_name(*key) if several[key[:2]] > 1 else set_name(*key[:2]), images))
        notes += _other_pixels([(sets[key], place) for sets, place in zip(found, places, strict=True) if key in sets])
    for dataset, split in (of for of, recipes in several.items() if recipes > 1):
        notes.append(f"{set_name(dataset, split)}: masks of several recipes, which are sets of their own.")
    networks = _merge(runs, places, found)
    groups = _group(networks, mean_runs, notes)
    return Arrangement(conventions, tuple(columns), tuple(groups), tuple(places), tuple(notes))


def way(result: SetResult) -> str:
    """How inference was done; empty for the usual way."""
    return printable(str(result.inference))


def has_metrics(result: SetResult) -> bool:
    """Whether there are sharp images to compare with."""
    return all("psnr" in score.metrics and "psnr_blurred" in score.metrics for score in result.scores)


def set_name(dataset: str, split: str, recipe: str = "") -> str:
    return printable(f"{dataset} {split}{f' (masks {recipe[:8]})' if recipe else ''}")


def distinct_labels(labels: Sequence[str], places: Sequence[str]) -> list[str]:
    """Labels, those that are there more than once with as much of their places as tells them apart."""
    wanted = defaultdict(list)
    for position, label in enumerate(labels):
        wanted[label].append(position)
    made = list(labels)
    for label, positions in wanted.items():
        if len(positions) > 1:
            for position, tail in zip(
                positions, _distinct_endings([places[position] for position in positions]), strict=True
            ):
                made[position] = f"{label} ({tail})"
    used: list[str] = []
    for label in made:
        numbered = chain([label], (f"{label} #{number}" for number in count(2)))
        used.append(next(name for name in numbered if name not in used))
    return used


def _distinct_endings(places: Sequence[str]) -> list[str]:
    """The last parts of paths, as many as make them differ."""
    paths = (Path(os.path.abspath(place)) for place in places)
    parts = [(path.parent if path.name == RESULTS else path).parts for path in paths]
    tails = [["/".join(of[-depth:]) for of in parts] for depth in range(1, max(map(len, parts)) + 1)]
    return next((found for found in tails if len(set(found)) == len(found)), tails[0])


def differing(conventions: Conventions, from_: Conventions) -> str:
    """In words, for instance "align ecc instead of none"; empty for equal ones."""
    mine, theirs = asdict(conventions), asdict(from_)
    return ", ".join(f"{name} {mine[name]} instead of {theirs[name]}" for name in mine if mine[name] != theirs[name])


def _conventions(runs: Sequence[Results], places: Sequence[str]) -> Conventions:
    first = runs[0].conventions
    for run, place in zip(runs, places, strict=True):
        if difference := differing(run.conventions, first):
            raise NotComparable(
                f"{place}: {printable(difference)} in {places[0]}; numbers of different conventions cannot be "
                "compared, make a table of each"
            )
    return first


def _with_metrics(run: Results, place: str, notes: list[str]) -> list[SetResult]:
    """The sets with sharp images."""
    scored = []
    for result in run.sets:
        name = set_name(result.dataset, result.split)
        if has_metrics(result):
            for score in result.scores:
                _check_numbers(score, f"{place}: {name}")
            scored.append(result)
            if result.unready:
                notes.append(f"{name}: {counted(result.unready, 'image')} could not be evaluated in {place}.")
        else:
            notes.append(f"{name} is left out: {place} has no metrics of it, as it has no sharp images.")
    if not scored:
        raise NotComparable(f"{place}: no metrics, since it has no sharp images; a table needs some")
    return scored


def _check_numbers(score: Score, where: str) -> None:
    for name in (*FROM_IMAGES, *(f"{metric}_blurred" for metric in FROM_IMAGES)):
        value = score.metrics.get(name, 0.0)
        if not math.isfinite(value) and not (value > 0 and name.startswith("psnr")):
            raise NotComparable(f"{where}: {printable(score.key)}: {name} is {value}; evaluate again")


def _column_keys(results: Iterable[SetResult]) -> list[SetKey]:
    recipes: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for result in results:
        recipes[result.dataset, result.split][result.recipe] = None
    keys = [(*of, recipe) for of, known in recipes.items() for recipe in (list(filter(None, known)) or [""])]
    paper = list(published.SETS)
    return sorted(keys, key=lambda key: paper.index(key[:2]) if key[:2] in paper else len(paper))


def _in_columns(sets: Sequence[SetResult], keys: Sequence[SetKey], place: str) -> dict[SetKey, SetResult]:
    exact: dict[SetKey, SetResult] = {}
    for result in sets:
        key = (result.dataset, result.split, result.recipe)
        if key in exact:
            raise NotComparable(
                f"{place}: {set_name(*key)} is there twice; evaluate each once, under a name of its own"
            )
        exact[key] = result
    found = ((key, exact.get(key) or exact.get((*key[:2], ""))) for key in keys)
    return {key: result for key, result in found if result is not None}


def _share_names(found: Sequence[dict[SetKey, SetResult]], key: SetKey) -> None:
    """Have all results of a set call an image what the first of them calls it."""
    for sets, names in zip(found, shared_names([s.key for s in sets[key].scores] for sets in found), strict=True):
        if any(own != name for own, name in names.items()):
            scores = tuple(replace(score, key=names[score.key]) for score in sets[key].scores)
            sets[key] = replace(sets[key], scores=scores)


def _check_images(results: Sequence[tuple[SetResult, str]]) -> tuple[str, ...]:
    """The keys of the images, which must be the same in all; so must be the blurred images."""
    first, first_place = results[0]
    name = set_name(first.dataset, first.split)
    expected = {score.key: score.metrics["psnr_blurred"] for score in first.scores}
    for result, place in results:
        found = {score.key: score.metrics["psnr_blurred"] for score in result.scores}
        if len(found) < len(result.scores):
            key = Counter(score.key for score in result.scores).most_common(1)[0][0]
            raise NotComparable(f"{place}: {name}: {printable(key)} is there twice; evaluate again")
        if odd := sorted(found.keys() ^ expected.keys()):
            raise NotComparable(
                f"{first_place} and {place}: {name} has different images: {len(expected)} and {len(found)}, and "
                f"{printable(odd[0])} only in {place if odd[0] in found else first_place}; evaluate both on the same"
            )
        for key, value in found.items():
            if value != expected[key] and not abs(value - expected[key]) <= SAME_DB:
                raise NotComparable(
                    f"{first_place} and {place}: {name} has different images under the same names: {printable(key)} "
                    f"before deblurring has {expected[key]:.2f} and {value:.2f} dB; evaluate both on the same"
                )
    return tuple(expected)


def _other_pixels(results: Sequence[tuple[SetResult, str]]) -> list[str]:
    """Which results are of images that look the same and are not, as decoders of JPEG give them."""
    first, first_place = results[0]
    pixels = {score.key: score.pixels for score in first.scores}
    notes = []
    for result, place in results[1:]:
        odd = sum(bool(s.pixels and pixels[s.key]) and s.pixels != pixels[s.key] for s in result.scores)
        if odd:
            notes.append(
                f"{set_name(first.dataset, first.split)}: {counted(odd, 'image')} with other pixels in {place} than in "
                f"{first_place}, though about as blurred."
            )
    return notes


def _merge(
    runs: Sequence[Results], places: Sequence[str], found: Sequence[Mapping[SetKey, SetResult]]
) -> list[Network]:
    """Results as networks: those of the same weights on other sets are one.

    Where the weights were evaluated twice on a set, only results with the same inference are put together.
    """
    made = [
        Network(_method(run), run.sha256, (place,), sets, run.trained)
        for run, place, sets in zip(runs, places, found, strict=True)
    ]
    times = Counter((network.method, network.sha256, key) for network in made for key in network.sets)
    repeated = {(method, sha256) for (method, sha256, _), count in times.items() if count > 1}
    networks: list[Network] = []
    for network in made:
        identity = network.method, network.sha256
        for position, other in enumerate(networks):
            if (
                network.sha256
                and (other.method, other.sha256) == identity
                and not other.sets.keys() & network.sets.keys()
                and (identity not in repeated or other.ways == network.ways)
            ):
                sets = {**other.sets, **network.sets}
                networks[position] = replace(other, places=other.places + network.places, sets=sets)
                break
        else:
            networks.append(network)
    return networks


def _method(run: Results) -> str:
    """The method without words on inference, which labels add where they are needed."""
    method = printable(run.method)
    for words in {way(result) for result in run.sets} - {""}:
        method = method.removesuffix(f", {words}")
    return method


def _group(networks: Sequence[Network], mean_runs: bool, notes: list[str]) -> list[Group]:
    """Networks as rows: the paper's methods in its order, then others; those of one label next to each other."""
    paper = [row.method for row in published.ROWS]
    same: dict[str, list[Network]] = defaultdict(list)
    for network in sorted(networks, key=lambda n: paper.index(n.method) if n.method in paper else len(paper)):
        same[network.label].append(network)
    groups: list[Group] = []
    for label, several in same.items():
        reason = _why_not_averaged(several) if mean_runs and len(several) > 1 else "not asked for"
        if not reason:
            groups.append(Group(f"{label} (mean of {len(several)} runs)", tuple(several)))
            continue
        if mean_runs and len(several) > 1:
            notes.append(f"{label}: the runs are not averaged, as {reason}.")
        groups += [Group(label, (network,)) for network in several]
    places = [group.networks[0].places[0] for group in groups]
    labels = distinct_labels([group.label for group in groups], places)
    return [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]


def _why_not_averaged(networks: Sequence[Network]) -> str:
    """Empty where the networks are runs of one method, evaluated in one way on the same sets."""
    if len({network.sha256 for network in networks}) < len(networks):
        return "some have the same weights"
    if len({frozenset(network.sets) for network in networks}) > 1:
        return "they were evaluated on other sets"
    if any(len({way(network.sets[key]) for network in networks}) > 1 for key in networks[0].sets):
        return "they were evaluated with different inference settings"
    return ""
