"""samdeblur-prep doctor: this machine and environment in one table, with what would get in the way of a job."""

from __future__ import annotations

import importlib.metadata
import locale
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from samdeblur.cli.messages import FAILED
from samdeblur.cli.support.commands import Command
from samdeblur.cli.support.paths import PLACE
from samdeblur.storage.plurals import counted

PACKAGES = (
    "torch torchvision segment-anything numpy opencv-python-headless zarr tensorstore obstore h5py dask distributed"
)
EXTRAS = "huggingface-hub hdf5plugin pyarrow spandrel tensorboard torchmetrics transformers sam2 timm dask-jobqueue"
# Shown as they are; of others that matter it is only said that they are set, for they may hold secrets.
SETTINGS = (
    "CUDA_VISIBLE_DEVICES OMP_NUM_THREADS MKL_NUM_THREADS SAMDEBLUR_WEIGHTS TMPDIR MPLBACKEND PYTHONUTF8 LANG LC_ALL"
)
SECRETS = (
    "HF_TOKEN HF_ENDPOINT AWS_ACCESS_KEY_ID AWS_PROFILE AWS_ENDPOINT_URL GOOGLE_APPLICATION_CREDENTIALS "
    "AZURE_STORAGE_ACCOUNT_NAME SSL_CERT_FILE REQUESTS_CA_BUNDLE HTTP_PROXY HTTPS_PROXY http_proxy https_proxy"
)
SHARED_MEMORY = 1 << 30  # bytes of /dev/shm below which loader workers of usual batches get into trouble
OPEN_FILES = 1024
CGROUP = Path("/sys/fs/cgroup")
SOCKET_PATH = 60  # letters of a temporary folder, beyond which the sockets in it have names too long for the system
GPU_PATIENCE = 120  # seconds for torch to say which GPUs there are
LOOK_FOR_GPUS = """
import torch
found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
found = [f"{one.name}, {one.total_memory >> 30} GiB" for one in found]
print("; ".join(found) or f"none that torch {torch.__version__} can use")
"""


class Line(NamedTuple):
    """A row of the table, and what is wrong with it and what to do, if anything."""

    name: str
    value: str
    problem: str = ""


@click.command(cls=Command)
@click.argument("places", nargs=-1, type=PLACE)
@click.option("--no-gpu", is_flag=True, help="Do not ask torch for GPUs, which takes some seconds.")
def doctor(places: tuple[str, ...], no_gpu: bool) -> int:
    """Describe this machine and environment in a table to paste into an issue, and name what needs attention.

    PLACES are paths or addresses of a job: the table says whether each can be reached, read and written.
    Exit code 1 when something is wrong.
    """
    lines = [*_versions(), *_machine(), *_limits(), *_text(), *_environment()]
    if not no_gpu:
        lines.append(_gpus())
    lines += [_place(place) for place in places]
    click.echo("| | |\n|---|---|")
    for line in lines:
        click.echo(f"| {line.name} | {_cell(line.value)} |")
    problems = [line for line in lines if line.problem]
    for line in problems:
        click.echo(f"\n{line.name}: {line.problem.removeprefix(f'{line.name}: ')}")
    return FAILED if problems else 0


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _versions() -> Iterator[Line]:
    yield Line("samdeblur", f"{_version('samdeblur')}, Python {platform.python_version()} ({sys.executable})")
    yield Line("system", platform.platform())
    found = {package: _version(package) for package in PACKAGES.split()}
    missing = [package for package, version in found.items() if not version]
    yield Line(
        "packages",
        ", ".join(f"{package} {version or 'missing'}" for package, version in found.items()),
        f"{', '.join(missing)} missing; pip install -c constraints.txt samdeblur" if missing else "",
    )
    extras = [f"{package} {version}" for package in EXTRAS.split() if (version := _version(package))]
    yield Line("extras", ", ".join(extras) or "none")
    if plain := _version("opencv-python"):
        yield Line(
            "opencv-python",
            plain,
            "it overwrites files of opencv-python-headless; pip uninstall "
            "opencv-python opencv-python-headless, then install the headless one",
        )


def _machine() -> Iterator[Line]:
    import psutil

    cores, allowed = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    yield Line(
        "processor", f"{counted(cores, 'core')}, {allowed} of them for this process; load {os.getloadavg()[0]:.1f}"
    )
    memory = psutil.virtual_memory()
    limits = "".join(f"; {name} {size >> 20} MiB" for name, size in _memory_limits() if size < memory.total)
    yield Line(
        "memory",
        f"{memory.total >> 20} MiB, {memory.available >> 20} MiB free{limits or '; no limit found'}",
    )


def _memory_limits() -> Iterator[tuple[str, int]]:
    """What this process may take, by whom it is limited, in bytes."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # version 2 and 1
        try:
            yield "cgroup limit (container, batch job)", int((CGROUP / name).read_text())
        except (OSError, ValueError):  # no such group, or "max"
            continue
    for letter, what in (("v", resource.RLIMIT_AS), ("d", resource.RLIMIT_DATA)):
        if (size := resource.getrlimit(what)[0]) != resource.RLIM_INFINITY:
            yield f"ulimit -{letter}", size


def _limits() -> Iterator[Line]:
    try:
        shared = shutil.disk_usage("/dev/shm")
        yield Line(
            "/dev/shm",
            f"{shared.total >> 20} MiB, {shared.free >> 20} MiB free",
            "small: loader workers pass batches through it; give the container more (docker run --shm-size 8g), or "
            "train with --set loader_workers=0"
            if shared.total < SHARED_MEMORY
            else "",
        )
    except OSError:
        yield Line("/dev/shm", "not there")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Line(
        "open files", str(files), f"too few; raise the limit: ulimit -n {OPEN_FILES}" if 0 <= files < OPEN_FILES else ""
    )


def _text() -> Iterator[Line]:
    names = sys.getfilesystemencoding()
    yield Line(
        "text",
        f"names of files {names}, locale {locale.getpreferredencoding(False)}",
        "" if names == "utf-8" else "names of files are not UTF-8; set PYTHONUTF8=1",
    )


def _environment() -> Iterator[Line]:
    shown = [f"{name}={os.environ[name]}" for name in SETTINGS.split() if name in os.environ]
    shown += [f"{name} is set" for name in SECRETS.split() if name in os.environ]
    yield Line("environment", ", ".join(shown) or "nothing that matters")
    try:
        folder = tempfile.gettempdir()
        problem = (
            f"the path is too long for sockets; set TMPDIR to one of at most {SOCKET_PATH} characters"
            if len(folder) > SOCKET_PATH
            else ""
        )
        yield Line("temporary files", f"{folder}, {shutil.disk_usage(folder).free >> 20} MiB free", problem)
    except OSError as error:
        yield Line("temporary files", str(error), "no folder for them; set TMPDIR to one that can be written")
    home = Path(os.path.expanduser("~"))
    yield Line("home", f"{home}, {'writable' if os.access(home, os.W_OK) else 'not writable: caches go elsewhere'}")


def _gpus() -> Line:
    driver = shutil.which("nvidia-smi")
    try:
        asked = subprocess.run(
            [sys.executable, "-c", LOOK_FOR_GPUS], capture_output=True, text=True, timeout=GPU_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return Line(
            "GPU", "no answer", f"torch did not answer within {GPU_PATIENCE} s; look at the driver (nvidia-smi)"
        )
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
        return Line("GPU", "unknown", f"torch cannot be imported ({last}); install it again")
    found = asked.stdout.strip()
    blind = driver and found.startswith("none")
    return Line("GPU", found, "there is a driver; install the CUDA build of torch (pytorch.org)" if blind else "")


def _place(place: str) -> Line:
    from samdeblur.storage.access.files import Unreachable
    from samdeblur.storage.access.location import Location
    from samdeblur.storage.access.places import local_path, what_lies_at
    from samdeblur.storage.format.layout import StoreError

    where = Location(place)
    try:
        from samdeblur.storage import open_store

        store = open_store(place)
        what, problem = f"a mask store, {len(store.ready_keys)} of {counted(len(store), 'image')} done", ""
    except FileNotFoundError as error:
        what, problem = "not there", str(error)
    except (Unreachable, OSError) as error:
        what, problem = "out of reach", str(error)
    except (StoreError, ValueError) as error:
        what, problem = "no mask store", str(error) if where.remote else ""
        if not where.remote:
            what = what_lies_at(local_path(place)) or ("a folder" if where.path.is_dir() else "a file")
    if not where.remote and where.path.exists():
        free = shutil.disk_usage(where.path).free >> 20
        what += f"; {'writable' if os.access(where.path, os.W_OK) else 'not writable'}, {free} MiB free"
    return Line(str(where), what, problem)
