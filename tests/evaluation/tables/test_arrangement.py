from __future__ import annotations

import math
from dataclasses import replace

import pytest
from evaluations import UNSCORED, one_set, results, scores
from hypothesis import given
from hypothesis import strategies as st

from samdeblur.evaluation.results import Conventions, Inference, Score
from samdeblur.evaluation.tables.arrangement import NotComparable, arrange, distinct_labels
from samdeblur.storage.files import printable

TLC, GOPRO, REDS = Inference(tlc=256), ("GoPro", "test"), ("REDS", "val")
PLACES = ["results/a", "results/b"]


def labels(arrangement):
    return [group.label for group in arrangement.groups]


def names(arrangement):
    return [column.name for column in arrangement.columns]


def refusal(*runs, places=PLACES):
    with pytest.raises(NotComparable) as refused:
        arrange(runs, places[: len(runs)])
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("conventions", "words"),
    [
        (Conventions(align="ecc"), "align ecc instead of none"),
        (Conventions(collapse_db=2.0), "collapse_db 2.0 instead of 3.0"),
        (Conventions(ssim="wang"), "ssim wang instead of wang and nafnet"),
        (Conventions(psnr="of Y alone"), "psnr of Y alone instead of"),
    ],
)
def test_other_conventions_are_refused(conventions, words):
    said = refusal(results("none", one_set([1])), results("map", one_set([2]), conventions=conventions))
    assert all(part in said for part in (*PLACES, words))


def test_other_images_under_the_same_name_are_refused():
    said = refusal(results("none", one_set([1, 2])), results("map", one_set([1, 2, 3])))
    assert all(part in said for part in (*PLACES, "toy test", "2 and 3", "0002 only in results/b"))
    said = refusal(results("none", one_set([1, 2])), results("map", one_set([1])))
    assert "0001 only in results/a" in said


@pytest.mark.parametrize(("before", "same"), [(20.01, True), (20.2, False), (math.inf, False)])
def test_other_images_under_the_same_keys_are_refused(before, same):
    made = one_set([1, 2])
    other = replace(made, scores=(made.scores[0], *scores({"0001": before}, [1.0])))
    if same:  # another decoder of JPEG
        assert labels(arrange([results("none", made), results("map", other)])) == ["none", "map"]
    else:
        said = refusal(results("none", made), results("map", other))
        assert all(part in said for part in (*PLACES, "different images", "0001", "20.00"))


def test_perfect_images_are_the_same_images():
    made = replace(one_set([1]), scores=scores({"a": math.inf}, [0.0]))
    assert labels(arrange([results("none", made), results("map", made)])) == ["none", "map"]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ((UNSCORED,), "no sharp images"),
        ((one_set([1]), one_set([2])), "toy test (masks 11111111) is there twice"),
        ((replace(one_set([1]), scores=2 * one_set([1]).scores),), "toy test: 0000 is there twice"),
        ((replace(one_set([1]), scores=scores({"a": math.nan}, [1.0])),), "toy test: a: psnr is nan"),
        ((replace(one_set([1]), scores=scores({"a": 20.0}, [-math.inf])),), "toy test: a: psnr is -inf"),
        ((one_set([1], ssim=math.inf),), "toy test: 0000: ssim_wang is inf"),
    ],
)
def test_results_that_no_table_can_take_are_refused(sets, words):
    said = refusal(results("map", *sets))
    assert said.startswith("results/a: ")
    assert words in said


def test_sets_without_sharp_images_are_left_out_and_named():
    arrangement = arrange([results("map", one_set([1]), UNSCORED)], PLACES[:1])
    assert names(arrangement) == ["toy test"]
    assert any("holiday blurred is left out: results/a" in note for note in arrangement.notes)


def test_images_that_could_not_be_used_are_named():
    arrangement = arrange([results("map", replace(one_set([1]), unready=2))], PLACES[:1])
    assert any("2 images" in note and "results/a" in note for note in arrangement.notes)


def test_masks_of_other_recipes_are_other_sets():
    arrangement = arrange(
        [results("map", one_set([1], recipe="a" * 64)), results("cat", one_set([2, 3], recipe="b" * 64))]
    )
    assert sorted(names(arrangement)) == ["toy test (masks aaaaaaaa)", "toy test (masks bbbbbbbb)"]
    assert [list(group.networks[0].sets) for group in arrangement.groups] == [
        [("toy", "test", "b" * 64)],
        [("toy", "test", "a" * 64)],
    ]
    assert any("masks of several recipes" in note for note in arrangement.notes)


def test_results_that_looked_at_no_masks_stand_beside_those_of_any():
    runs = [results("none", one_set([1], recipe="")), results("map", one_set([2]), one_set([3], recipe="2" * 64))]
    arrangement = arrange(runs)
    none, masked = (group.networks[0].sets for group in arrangement.groups)
    assert list(none) == list(masked) == [("toy", "test", "1" * 64), ("toy", "test", "2" * 64)]
    assert names(arrange([runs[0]])) == ["toy test"]


def test_sets_and_methods_stand_in_the_order_of_the_paper():
    sets = [one_set([1], name) for name in [("mine", "test"), REDS, GOPRO]]
    arrangement = arrange([results(method, *sets) for method in ("net", "map-dropout", "cat", "map", "none")])
    assert labels(arrangement) == ["none", "cat", "map", "map-dropout", "net"]
    assert names(arrangement) == ["GoPro test", "REDS val", "mine test"]


def test_one_network_in_several_files_is_one_row():
    gopro, reds = one_set([1], GOPRO, inference=TLC), one_set([1], REDS)
    (first,) = arrange([results("map, TLC 256", gopro, run="r")]).groups
    assert (first.label, first.method) == ("map, TLC 256", "map")
    runs = [replace(results("map, TLC 256", gopro), sha256="a"), replace(results("map", reds), sha256="a")]
    (group,) = arrange(runs, PLACES).groups
    assert group.label == "map"
    assert group.networks[0].places == tuple(PLACES)
    assert [group.way(key) for key in (GOPRO, REDS) for key in [(*key, "1" * 64)]] == ["TLC 256", ""]


def test_a_network_evaluated_in_two_ways_is_a_row_for_each():
    runs = [
        results("map", one_set([1], GOPRO, inference=TLC)),
        results("map", one_set([1], GOPRO)),
        results("map", one_set([1], REDS)),
    ]
    arrangement = arrange(runs, ["a", "b", "c"])
    assert [(group.label, group.networks[0].places) for group in arrangement.groups] == [
        ("map, TLC 256", ("a",)),
        ("map", ("b", "c")),
    ]


def test_the_same_evaluation_twice_is_two_rows():
    made = results("map", one_set([1]))
    assert labels(arrange([made, made], ["here/map", "there/map"])) == ["map (here/map)", "map (there/map)"]
    assert len(set(labels(arrange([made, made])))) == 2


def test_weights_of_unknown_digest_are_never_taken_for_the_same():
    runs = [replace(results("map", one_set([1], name)), sha256="") for name in (GOPRO, REDS)]
    assert len(arrange(runs, PLACES).groups) == 2


def test_runs_of_one_method_are_told_apart_by_their_folders():
    runs = [results("map", one_set([1]), run=str(seed)) for seed in range(3)] + [results("none", one_set([1]))]
    places = ["r/map/seed1", "r/map/seed2", "r/map/seed3/results.json", "r/none"]
    assert labels(arrange(runs, places)) == ["none", "map (seed1)", "map (seed2)", "map (seed3)"]
    assert labels(arrange(runs[:2], ["seed1/map", "seed2/map"])) == ["map (seed1/map)", "map (seed2/map)"]


def test_runs_are_averaged_on_request():
    runs = [results("map", one_set([1]), run=str(seed)) for seed in range(3)] + [results("none", one_set([1]))]
    arrangement = arrange(runs, mean_runs=True)
    assert labels(arrangement) == ["none", "map (mean of 3 runs)"]
    assert [len(group.networks) for group in arrangement.groups] == [1, 3]


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (results("map", one_set([1], GOPRO)), "the same weights"),
        (results("map", one_set([1], GOPRO), one_set([1], REDS), run="2"), "other sets"),
    ],
)
def test_runs_that_are_no_runs_of_one_method_are_not_averaged(second, reason):
    arrangement = arrange([results("map", one_set([1], GOPRO)), second], PLACES, mean_runs=True)
    assert labels(arrangement) == ["map (a)", "map (b)"]
    assert any("not averaged" in note and reason in note for note in arrangement.notes)


def test_runs_with_other_inference_are_not_averaged():
    def of(run, gopro, reds):
        return results("map", one_set([1], GOPRO, inference=gopro), one_set([1], REDS, inference=reds), run=run)

    arrangement = arrange([of("1", TLC, Inference()), of("2", Inference(), TLC)], PLACES, mean_runs=True)
    assert labels(arrangement) == ["map (a)", "map (b)"]
    assert any("inference" in note for note in arrangement.notes)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "a #2", "a (x)", "b"]), st.sampled_from(["x", "y/x", "y"])), min_size=1)
)
def test_labels_are_distinct_and_begin_with_their_name(pairs):
    wanted, places = zip(*pairs, strict=True)
    made = distinct_labels(wanted, places)
    assert len(set(made)) == len(made)
    assert all(label.startswith(name) for label, name in zip(made, wanted, strict=True))


def test_names_that_would_act_on_a_terminal_are_made_plain():
    evil = "\x1b[31mred\nline\u202e \ud800"
    assert printable(evil) == "[31mred line"
    images = (Score(evil, one_set([1]).scores[0].metrics),)
    arrangement = arrange([results(evil, replace(one_set([1], (evil, evil)), scores=images))])
    assert [*labels(arrangement), *names(arrangement)] == ["[31mred line", "[31mred line [31mred line"]
