"""The scripts of docs/recipes prepare a store, with processes in the place of hosts and of SLURM."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import ROOT

from samdeblur.pipeline import PrepSettings, StoreOptions, open_source, prepare

RECIPES = ROOT / "docs" / "recipes"
SECONDS = 120  # after which something hangs
OPTIONS = ["--split", "test", "--segmenter", "superpixels", "--block-size", "1", "--progress", "none"]
FAKES = {
    "sbatch": """
        set -m
        cp "$1" "$JOBS/$$.sh"
        (SLURM_JOB_ID=$$ bash "$JOBS/$$.sh" "${@:2}"; echo $? >"$JOBS/$$.code") >"$JOBS/$$.log" 2>&1 &
        echo $! >"$JOBS/$$.pid"
        echo "Submitted batch job $$"
    """,
    "scancel": """
        kill -- -$(cat "$JOBS/$1.pid")
    """,
    "srun": """
        mkdir node && cd node && exec "$@"
    """,
    "nvidia-smi": """
        printf '0\\n1\\n'
    """,
    "dask": """
        echo "$@" >>"$CALLS/$CUDA_VISIBLE_DEVICES"
    """,
}

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, write_pairs: Callable[..., Path]) -> Path:
    return write_pairs(tmp_path_factory.mktemp("recipes") / "pairs", {f"{n:03d}": (40 + n, 60) for n in range(6)})


@pytest.fixture(scope="module")
def expected(pairs: Path) -> dict[str, bytes]:
    """The files of a store prepared here, in one process."""
    store = pairs.with_name("undisturbed.zarr")
    prepare(open_source(str(pairs), "test"), store, PrepSettings(), StoreOptions(block_size=1), workers=1)
    return contents(store)


def contents(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., Path]:
    """fake(name, ...) -> a folder with commands of these names, to be put into PATH."""

    def write(*names: str) -> Path:
        (tmp_path / "bin").mkdir()
        for name in names:
            command = tmp_path / "bin" / name
            command.write_text("#!/usr/bin/env bash\n" + inspect.cleandoc(FAKES[name]) + "\n")
            command.chmod(0o755)
        return tmp_path / "bin"

    return write


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(name, command, ..., VARIABLE=value) -> a process in a folder of that name, without a GPU.

    Its output is in `log` there. What is left of it in the end is killed, and of the SLURM jobs of the test.
    """
    started: list[subprocess.Popen[bytes]] = []
    (tmp_path / "jobs").mkdir()

    def call(name: str, *command: object, **variables: str) -> subprocess.Popen[bytes]:
        (tmp_path / name).mkdir()
        environment = os.environ | {"JOBS": str(tmp_path / "jobs"), "CUDA_VISIBLE_DEVICES": ""} | variables
        environment["PATH"] = os.pathsep.join(
            [str(tmp_path / "bin"), str(Path(sys.executable).parent), environment["PATH"]]
        )
        with open(tmp_path / name / "log", "wb") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=tmp_path / name,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield call
    groups = [process.pid for process in started]
    groups += [int(file.read_text()) for file in (tmp_path / "jobs").glob("*.pid")]
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for process in started:
        process.wait()


def wait_until(condition: Callable[[], object], folder: Path) -> None:
    """Poll a condition; when it does not become true, fail with the logs in a folder."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            logs = [*folder.rglob("log"), *folder.rglob("*.log")]
            pytest.fail("\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in logs))
        time.sleep(0.02)


def test_scheduler_and_workers_on_several_hosts(
    pairs: Path, expected: dict[str, bytes], start: Start, tmp_path: Path
) -> None:
    file, store = tmp_path / "scheduler.json", tmp_path / "store.zarr"
    hosts = [start("host0", RECIPES / "scheduler.sh", file, "--host", "127.0.0.1", "--port", "0", "--no-dashboard")]
    hosts += [start(f"host{n}", RECIPES / "workers.sh", file, "2GB", "--no-dashboard") for n in (1, 2)]
    wait_until(lambda: file.exists() and file.stat().st_size, tmp_path)
    job = start("host3", sys.executable, "-m", "samdeblur.cli.prep", "run", pairs, store, *OPTIONS, "--scheduler", file)
    wait_until(lambda: job.poll() is not None, tmp_path)
    assert job.returncode == 0, (tmp_path / "host3" / "log").read_text()
    assert contents(store) == expected

    hosts[0].terminate()  # the workers see that its file is gone
    wait_until(lambda: all(host.poll() is not None for host in hosts), tmp_path)
    assert not file.exists()


def test_each_gpu_of_a_host_gets_a_worker_that_sees_it_alone(
    start: Start, fake: Callable[..., Path], tmp_path: Path
) -> None:
    file, calls = tmp_path / "scheduler.json", tmp_path / "calls"
    calls.mkdir()
    file.touch()
    fake("nvidia-smi", "dask")
    script = f"unset CUDA_VISIBLE_DEVICES; exec {RECIPES / 'workers.sh'} {file} 16GB --interface ib0"
    host = start("host", "bash", "-c", script, CALLS=str(calls))
    wait_until(lambda: len(list(calls.iterdir())) == 2, tmp_path)
    file.unlink()
    wait_until(lambda: host.poll() is not None, tmp_path)
    for gpu in ("0", "1"):
        call = (calls / gpu).read_text().splitlines()[0]
        assert f"worker --scheduler-file {file} " in call
        assert "--nworkers 1 --nthreads 2 --memory-limit 16GB" in call
        assert call.endswith("--interface ib0")


@pytest.mark.skipif(find_spec("dask_jobqueue") is None, reason='needs dask-jobqueue: pip install "samdeblur[slurm]"')
def test_slurm_jobs_of_one_gpu_each(
    pairs: Path, expected: dict[str, bytes], start: Start, fake: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    fake("sbatch", "scancel")
    options = ["--jobs", 2, "--queue", "long", "--walltime", "01:00:00", "--memory", "2GB", "--interface", "lo"]
    run = start("host", sys.executable, RECIPES / "slurm.py", *options, "--", pairs, store, *OPTIONS)
    wait_until(lambda: run.poll() is not None, tmp_path)
    assert run.returncode == 0, (tmp_path / "host" / "log").read_text()
    assert contents(store) == expected

    assert "dashboard: http://" in (tmp_path / "host" / "log").read_text()
    scripts = [script.read_text() for script in (tmp_path / "jobs").glob("*.sh")]
    assert len(scripts) == 2
    for script in scripts:
        directives = set(re.findall("^#SBATCH (.*)", script, re.MULTILINE))
        assert {"--gres=gpu:1", "-t 01:00:00", "-p long", "-n 1", "--cpus-per-task=4", "--mem=2G"} <= directives
        assert "--lifetime 55m --lifetime-stagger 4m" in script
        assert "--nthreads 2" in script


def test_all_in_one_slurm_job(
    pairs: Path, expected: dict[str, bytes], start: Start, fake: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    fake("sbatch", "srun")
    submit = start("host", "sbatch", RECIPES / "slurm.sbatch", pairs, store, *OPTIONS, MEMORY="2GB")
    wait_until(lambda: submit.poll() is not None, tmp_path)
    wait_until(lambda: list((tmp_path / "jobs").glob("*.code")), tmp_path)
    (job,) = (tmp_path / "jobs").glob("*.sh")
    assert job.with_suffix(".code").read_text() == "0\n", job.with_suffix(".log").read_text()
    assert contents(store) == expected


def test_dask_cuda_is_given_options_that_it_has() -> None:
    dask_cuda = pytest.importorskip("dask_cuda", reason="needs an environment of its own", exc_type=ImportError)
    cli = pytest.importorskip("dask_cuda.cli")
    tree = ast.parse((RECIPES / "local_cuda.py").read_text())
    (call,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "LocalCUDACluster"]
    assert {keyword.arg for keyword in call.keywords} <= inspect.signature(dask_cuda.LocalCUDACluster).parameters.keys()
    commands = re.findall("^dask cuda worker ([^#]*)", RECIPES.with_name("clusters.md").read_text(), re.MULTILINE)
    known = {name for parameter in cli.worker.params for name in parameter.opts}
    assert {option for command in commands for option in re.findall("--[a-z-]+", command)} <= known
    assert commands


@pytest.mark.parametrize("recipe", sorted(RECIPES.iterdir()), ids=lambda path: path.name)
def test_recipes_are_whole(recipe: Path) -> None:
    if recipe.suffix == ".py":
        compile(recipe.read_text(), recipe, "exec")
    else:
        assert subprocess.run([shutil.which("bash") or "bash", "-n", recipe]).returncode == 0
