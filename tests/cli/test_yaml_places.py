"""What is wrong in a YAML file is told with the file and the line."""

from __future__ import annotations

import pytest

from samdeblur.storage.documents import yaml_lines


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("steps: 3\nlerning_rate: 1\n", 2, "lerning_rate: no such setting; did you mean learning_rate?"),
        ("# a comment\n\nsteps: 0\n", 3, "steps: must be at least 1, is 0"),
        ("width: 8\nbatch_size: many\n", 2, "batch_size: 'many' is not of type int"),
        ("base: tiny\nprecision: bfloat15\n", 2, "precision: no 'bfloat15'; did you mean bfloat16?"),
        ("steps: 3\nbetas: [1\nloss: psnr\n", 3, "not YAML"),
        ("steps: 3\n\tloss: psnr\n", 2, "not YAML"),
    ],
)
def test_of_a_configuration(samdeblur, store, tmp_path, content, line, words):
    (tmp_path / "own.yaml").write_text(content)
    refused = samdeblur("train", store, "--out", tmp_path / "run", "--config", tmp_path / "own.yaml")
    assert refused.code == 2
    assert f"{tmp_path / 'own.yaml'}, line {line}: " in refused.err
    assert words in refused.err
    assert not (tmp_path / "run").exists()


def test_what_is_given_on_the_command_line_is_of_no_file(samdeblur, store, tmp_path):
    (tmp_path / "own.yaml").write_text("base: tiny\nsteps: 3\n")
    refused = samdeblur(
        "train", store, "--out", tmp_path / "run", "--config", tmp_path / "own.yaml", "--set", "steps=0"
    )
    assert "line" not in refused.err


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("stores:\n- source: sample\n  store: a.zarr\n  splt: test\n", 4, "store 1: splt: no such setting"),
        ("sam: bundled\nblock_size: many\nstores:\n- {source: a, store: b, split: c}\n", 2, "block_size: 'many'"),
        ("stores:\n- {source: a, store: b, split: c}\n- 5\n", 3, "store 2: not a mapping"),
        ("stores:\n- source: a\n  store: b\n", 2, "store 1: split is missing"),
        ("stores: [\n", 2, "not YAML"),
    ],
)
def test_of_a_job(samdeblur, tmp_path, content, line, words):
    (tmp_path / "job.yaml").write_text(content)
    refused = samdeblur("prep", "run", "--job", tmp_path / "job.yaml")
    assert refused.code == 2
    assert f"{tmp_path / 'job.yaml'}, line {line}: " in refused.err
    assert words in refused.err


def test_aliases_are_looked_at_once():
    many = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
    )
    assert len(yaml_lines(many)) < 100
    assert yaml_lines("a: &a [*a]\n")["a",] == 1
