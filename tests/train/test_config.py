from __future__ import annotations

from dataclasses import fields, replace

import pytest
import yaml

from samdeblur.models import METHODS
from samdeblur.train import ConfigError, TrainConfig, read_config
from samdeblur.train.config import PRESETS, parse_assignment


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_presets_load(name):
    assert TrainConfig.of(read_config(name)).to_yaml()


def test_the_defaults_are_the_preset_of_the_paper():
    assert TrainConfig.of(read_config("paper")) == TrainConfig()


def test_the_papers_settings_are_those_of_its_section_4():
    paper = TrainConfig.of(read_config("paper"))
    assert (paper.width, paper.steps, paper.batch_size, paper.crop_size) == (32, 200_000, 32, 256)
    assert (paper.learning_rate, paper.min_learning_rate, paper.betas, paper.weight_decay) == (
        1e-3,
        1e-6,
        (0.9, 0.9),
        1e-3,
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("widht", "widht: no such setting; did you mean width?"),
        ("learning-rate", "did you mean learning_rate?"),
        ("Steps", "did you mean steps?"),
        ("xyz", "xyz: no such setting; known: method, semantics"),
        (1, "1: no such setting"),
        (None, "None: no such setting"),
    ],
    ids=str,
)
def test_unknown_settings_are_refused_with_the_nearest_known_one(name, said):
    with pytest.raises(ConfigError) as caught:
        TrainConfig.of({"width": 8, name: 3})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "ten"),
        ("steps", 1.5),
        ("steps", True),
        ("steps", None),
        ("steps", "10"),
        ("method", 3),
        ("device", None),
        ("learning_rate", True),
        ("learning_rate", "fast"),
        ("learning_rate", [1e-3]),
        ("learning_rate", None),
        ("betas", [0.9, "high"]),
        ("enc_blk_nums", [1.5]),
        ("enc_blk_nums", "many"),
        ("enc_blk_nums", {"a": 1}),
    ],
    ids=str,
)
def test_values_of_another_type_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        TrainConfig.of({name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"method": "magic"},
        {"semantics": "old"},
        {"device": "tpu"},
        {"width": 0},
        {"steps": 0},
        {"batch_size": -1},
        {"crop_size": 0},
        {"val_every": 0},
        {"log_every": 0},
        {"prior_channels": 0},
        {"middle_blk_num": -1},
        {"enc_blk_nums": [1, -1], "dec_blk_nums": [1, 1]},
        {"enc_blk_nums": [1, 1], "dec_blk_nums": [1]},
        {"betas": [0.9]},
        {"betas": [0.9, 1.0]},
        {"betas": [-0.1, 0.9]},
        {"mask_dropout": 1},
        {"mask_dropout": -0.5},
        {"val_share": 1},
        {"learning_rate": -1e-3},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"min_learning_rate": -1},
        {"weight_decay": -1},
        {"grad_clip": -1},
        {"seed": -1},
        {"loader_workers": -2},
        {"loss": "l2"},
        {"precision": "fp16"},
        {"ema": 1.0},
        {"accumulate": 0},
        {"subimage_size": 100},
        {"freeze_backbone": 5},
        {"statistics": "mean+std", "aggregate": "attention"},
        {"mask_shift": -1, "method": "map"},
        {"mask_shift": 17, "method": "map"},
        {"mask_shift": 2},
    ],
    ids=str,
)
def test_values_a_run_cannot_have_are_refused(values):
    name = next(iter(values))
    with pytest.raises(ConfigError, match=name):
        TrainConfig.of(values)


def test_numbers_pass_as_yaml_reads_them():
    read = yaml.safe_load(
        "{learning_rate: 1e-3, weight_decay: 0, betas: [0.5, 1e-1], enc_blk_nums: 3, dec_blk_nums: 3}"
    )
    assert read["learning_rate"] == "1e-3"  # YAML asks for 1.0e-3
    config = TrainConfig.of(read)
    assert (config.learning_rate, config.weight_decay, config.betas) == (1e-3, 0.0, (0.5, 0.1))
    assert type(config.weight_decay) is float
    assert (config.enc_blk_nums, config.dec_blk_nums) == ((3,), (3,))


def test_a_configuration_survives_being_written(tmp_path):
    changed = TrainConfig(
        method="map-dropout", enc_blk_nums=(1, 2), dec_blk_nums=(3, 4), learning_rate=3e-7, betas=(0.8, 0.999), seed=7
    )
    for config in (changed, TrainConfig(), TrainConfig.of(read_config("tiny"))):
        path = tmp_path / "config.yaml"
        path.write_text(config.to_yaml())
        assert TrainConfig.of(read_config(str(path))) == config
    assert list(yaml.safe_load(changed.to_yaml())) == [field.name for field in fields(TrainConfig)]


@pytest.mark.parametrize(
    "text",
    [
        b"steps: [1, 2",
        b"steps: 1\n  width: 2",
        b"\x80\x81",
        b"a\x00b",
        b"- steps\n- 3",
        b"just words",
        b"steps: !!python/object/apply:os.mkdir [made]",
        b"steps: !!python/name:os.system",
    ],
    ids=str,
)
def test_files_that_are_no_configuration_are_refused_by_name_in_one_line(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml") as caught:
        read_config(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]  # nothing was executed


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "mine.yaml").write_text("# nothing\n")
    assert read_config(str(tmp_path / "mine.yaml")) == {}


def test_a_file_names_another_it_is_based_on_beside_it_or_a_preset(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: lab.yaml\nsteps: 7\n")
    (tmp_path / "lab.yaml").write_text("base: tiny\nsteps: 9\nbatch_size: 3\n")
    assert read_config(str(tmp_path / "mine.yaml")) == read_config("tiny") | {"steps": 7, "batch_size": 3}


def test_a_base_that_leads_back_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a.yaml leads back to itself"):
        read_config(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("method", METHODS)
def test_the_rows_of_table_1_are_the_paper_and_the_released_code(method):
    paper = TrainConfig.of(read_config(f"gopro-{method}"))
    assert paper == replace(TrainConfig(), method=method)
    released = TrainConfig.of(read_config(f"gopro-{method}-released"))
    changes = {"semantics": "released", "min_learning_rate": 1e-7, "subimage_size": 512}
    assert released == replace(paper, **changes)


@pytest.mark.parametrize(
    ("name", "value", "near"), [("method", "map_dropout", "map-dropout"), ("loss", "charbonier", "charbonnier")]
)
def test_a_value_that_is_none_of_the_choices_is_refused_with_the_nearest(name, value, near):
    with pytest.raises(ConfigError, match=f"{name}: no '{value}'; did you mean {near}"):
        TrainConfig.of({name: value})


@pytest.mark.parametrize("location", ["papr", ".", "", "mine.yaml"])
def test_a_configuration_that_is_not_there_is_refused_with_the_presets(tmp_path, monkeypatch, location):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nor a preset \(fftformer, gopro-cat, .*, paper, .*, worlds\)"):
        read_config(location)


@pytest.mark.parametrize(
    ("text", "assignment"),
    [
        ("steps=5", ("steps", 5)),
        ("betas=[0.9, 0.99]", ("betas", [0.9, 0.99])),
        ("method=map-dropout", ("method", "map-dropout")),
        ("a=b=c", ("a", "b=c")),
        ("seed=", ("seed", None)),
    ],
)
def test_assignments_take_yaml_values(text, assignment):
    assert parse_assignment(text) == assignment


@pytest.mark.parametrize("text", ["steps", "=5", "steps=[", "steps=!!python/name:os.system"])
def test_other_assignments_are_refused(text):
    with pytest.raises(ConfigError):
        parse_assignment(text)
