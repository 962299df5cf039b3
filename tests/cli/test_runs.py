"""What a training shows while it runs, and samdeblur-train status and plot."""

from __future__ import annotations

import io
import json
import socket

import numpy as np
import pytest
from PIL import Image

from samdeblur.cli.train import WIDTH, _ProgressText
from samdeblur.storage.writing.lease import held
from samdeblur.train.standing import read_log, standing

SMALL = (
    *("--config", "tiny", "--set", "width=4", "--set", "enc_blk_nums=[1]", "--set", "dec_blk_nums=[1]"),
    *("--set", "middle_blk_num=1", "--set", "crop_size=32", "--set", "batch_size=2", "--set", "log_every=1"),
    *("--set", "val_every=2", "--device", "cpu"),
)


@pytest.fixture
def run(samdeblur, prep_run, pairs, tmp_path):
    """(name, ...) -> Result of a training of four steps on five pairs, of which one is held out."""
    assert prep_run(pairs, tmp_path / "s.zarr").code == 0

    def call(name, *options):
        return samdeblur("train", tmp_path / "s.zarr", "--out", tmp_path / name, *SMALL, "--steps", 4, *options)

    return call


def test_the_first_line_says_what_is_trained_on(run):
    done = run("a")
    assert done.out.splitlines()[0] == "none on cpu: 4 images (1 more for validation), 4 crops per epoch"


class _Bar:
    total, n, initial, last_print_n = 200_000, 0, 0, 0
    text = ""

    def set_postfix_str(self, text, refresh):
        self.text = text

    def update(self, count):
        self.n += count


@pytest.mark.parametrize("total", [4, 200_000, 10_000_000])
def test_the_line_of_progress_fits_80_columns_whatever_the_numbers(total):
    bar = _Bar()
    bar.total = total
    shown = _ProgressText(bar, "map on cuda")
    shown({"step": 0, "images": 2103, "validation_images": 21, "crops_per_epoch": 2103})
    for loss, rate in ((-23.123456, 12.3456), (-123.456, 123456.789), (1e-12, 1e-7), (1e22, 1e9)):
        shown({"step": 3, "loss": loss, "samples_per_second": rate, "loader_wait": 1.0})
        shown({"step": 3, "val_psnr": 33.123456})
        shown({"step": 3, "validated": 1111.0, "of": 1111.0})
        line = f"{total}/{total} [999:59:59<999:59:59], {bar.text}"
        assert len(line) < WIDTH
        assert "1111/1111" in line
    shown({"step": 4, "loss": -23.1, "samples_per_second": 12.3, "loader_wait": 0.01})
    assert bar.text.startswith("loss -23.1, val 33.12, 12.3 crops/s")


def test_status_says_where_a_run_stands(samdeblur, run, tmp_path):
    run("a")
    done = samdeblur("train", "status", tmp_path / "a")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == f"{tmp_path}/a: nafnet, method none"
    assert lines[1:3] == ["state   done", "step    4 of 4 (100%)"]
    best = max(row["val_psnr"] for row in read_log(tmp_path / "a") if row["step"] and "val_psnr" in row)
    assert lines[3].startswith(f"best    {best:.2f} dB at step ")
    assert any(line.startswith("speed ") for line in lines)
    (line,) = samdeblur("train", "status", tmp_path / "a", "--json").out.splitlines()
    assert (json.loads(line)["step"], json.loads(line)["best"][0]) == (4, pytest.approx(best))


def test_status_names_the_process_and_the_host_of_a_run_at_work(samdeblur, run, tmp_path):
    run("a")
    with held(tmp_path / "a", "this run"):
        done = samdeblur("train", "status", tmp_path / "a")
        assert f"on {socket.gethostname()}" in done.out
        assert "state   training: process" in done.out


def test_status_says_what_a_run_failed_with_until_it_goes_on(samdeblur, run, tmp_path):
    done = run("a", "--set", "learning_rate=1e12", "--set", "grad_clip=0")
    assert done.code == 1
    failed = samdeblur("train", "status", tmp_path / "a")
    assert failed.code == 0
    assert "state   failed" in failed.out
    assert "error   " in failed.out
    assert "lower learning_rate" in failed.out
    assert standing(tmp_path / "a").step < 4


def test_status_of_a_run_that_is_being_written_reads_what_is_whole(samdeblur, run, tmp_path):
    run("a")
    log = tmp_path / "a/log.csv"
    log.write_bytes(log.read_bytes()[:-7])
    assert samdeblur("train", "status", tmp_path / "a").code == 0
    log.unlink()
    assert "step    0 of 4" in samdeblur("train", "status", tmp_path / "a").out


@pytest.mark.parametrize("command", ["status", "plot"])
def test_what_is_no_run_is_refused(samdeblur, prep_run, pairs, tmp_path, command):
    prep_run(pairs, tmp_path / "s.zarr")
    for place, words in (
        ("gone", "no such run"),
        ("s.zarr", "holds a mask store, not a training run"),
        (".", "not the"),
    ):
        done = samdeblur("train", command, tmp_path / place)
        assert (done.code, words in done.error) == (2, True), done


def test_a_plot_has_a_curve_for_each_run(samdeblur, run, tmp_path):
    run("a")
    run("b", "--seed", 1)
    images = []
    for runs in ("a", "b"), ("b", "a"), ("a",):
        out = tmp_path / f"{'-'.join(runs)}.png"
        done = samdeblur("train", "plot", *(tmp_path / run for run in runs), "--out", out)
        assert (done.code, f"curves of {len(runs)} run" in done.out) == (0, True), done
        images.append(np.asarray(Image.open(io.BytesIO(out.read_bytes())).convert("RGB")))
    both, _, alone = images
    assert both.shape == alone.shape
    assert len(np.unique(both.reshape(-1, 3), axis=0)) > len(np.unique(alone.reshape(-1, 3), axis=0))
