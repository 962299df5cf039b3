"""What reading a store costs behind real servers, and what those that cannot be read from are told: docs/sharing.md.

    python -m benchmarks.storage.servers STORE [--write] [--train]

STORE is a store with images, a folder. Servers that are not installed are left out, and said to be.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import obstore
import tensorstore as ts
import urllib3

from benchmarks.common.figures import RESULTS, ROOT, size_of
from samdeblur.storage import MaskStore, StoreError, Unreachable, open_store
from samdeblur.storage.access import buckets, direct, files, web
from samdeblur.storage.access.location import Location
from samdeblur.storage.sharing.export import export_zip
from samdeblur.storage.sharing.verify import verify_store

sys.path.insert(0, str(ROOT / "tests"))
import hub_server
import servers

PAGE = ROOT / "docs" / "sharing.md"
MARKS = "<!-- table of benchmarks/storage/servers.py -->", "<!-- end of the table -->"
CROPS = 20
TURNS = 9
TINY = (
    "--config tiny --set width=4 --set enc_blk_nums=[1] --set dec_blk_nums=[1] --set middle_blk_num=1 "
    "--set batch_size=2 --steps 2"
)


class Counted:
    """Requests made and bytes received by the byte layer, and the parts it asked for."""

    def __init__(self) -> None:
        self.requests = self.bytes = 0
        request, body, read = urllib3.PoolManager.request, web._body, buckets.Bucket._read

        def counted_request(*args: Any, **options: Any) -> Any:
            self.requests += 1
            return request(*args, **options)

        def counted_body(response: Any) -> bytes:
            content = body(response)
            self.bytes += len(content)
            return content

        def counted_read(bucket: Any, key: str, part: Any) -> bytes:
            self.requests += 1
            content = read(bucket, key, part)
            self.bytes += len(content)
            return content

        short = direct.Direct._get

        def counted_short(client: direct.Direct, part: tuple[str, int, int]) -> bytes | None:
            self.requests += 1
            content = short(client, part)
            self.bytes += len(content or b"")
            return content

        direct.Direct._get = counted_short  # type: ignore[method-assign]
        urllib3.PoolManager.request = counted_request  # type: ignore[method-assign]
        web._body = counted_body
        buckets.Bucket._read = counted_read  # type: ignore[method-assign]

    def of(self, work: Callable[[], Any]) -> tuple[int, int]:
        before = self.requests, self.bytes
        work()
        return self.requests - before[0], self.bytes - before[1]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(command: list[str], port: int, here: Path) -> Iterator[str]:
    """A program that serves on a port, until the block ends."""
    with open(here / "said", "wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=here)
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None:
                raise RuntimeError((here / "said").read_text()[-400:])
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def real_servers(folder: Path, here: Path) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Name -> program, and what starts it and gives its address."""
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = " ".join(
        f"{kind}_temp_path {here}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (here / "nginx.conf").write_text(
        f"daemon off; {user} pid {here}/pid; error_log {here}/log; events {{ }} "
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; root {folder}; }} }}"
    )
    (here / "lighttpd.conf").write_text(
        f'server.document-root = "{folder}"\nserver.port = {port}\nserver.bind = "127.0.0.1"\n'
    )
    serve = {
        "nginx": ["nginx", "-p", str(here), "-c", str(here / "nginx.conf")],
        "caddy": ["caddy", "file-server", "--root", str(folder), "--listen", f"127.0.0.1:{port}"],
        "lighttpd": ["lighttpd", "-D", "-f", str(here / "lighttpd.conf")],
        "rclone": ["rclone", "serve", "http", "--copy-links", "--addr", f"127.0.0.1:{port}", str(folder)],
        "python -m http.server": [
            sys.executable,
            "-m",
            "http.server",
            str(port),
            "--bind",
            "127.0.0.1",
            "-d",
            str(folder),
        ],
    }
    return {name: (command[0], lambda command=command: started(command, port, here)) for name, command in serve.items()}


def crop(store: MaskStore, rng: np.random.Generator) -> None:
    key = store.ready_keys[rng.integers(len(store.ready_keys))]
    height, width = store.shape(key)
    window = int(rng.integers(0, height - 255)), int(rng.integers(0, width - 255)), 256, 256
    store.atoms(key, window)


def measure(counted: Counted, address: str, size: int, train: bool) -> dict[str, Any]:
    """One row: what opening, crops and verification take, or why there is nothing to take."""
    row: dict[str, Any] = {}
    opened: list[MaskStore] = []

    def begin() -> None:
        opened.append(open_store(address))
        assert opened[0].keys

    try:
        row["open"] = counted.of(begin)
        rng = np.random.default_rng(0)
        row["first crop"] = counted.of(lambda: crop(opened[0], rng))
        total = counted.of(lambda: [crop(opened[0], rng) for _ in range(CROPS)])
        row["crop"] = total[0] / CROPS, total[1] / CROPS
        problems: list[str] = []
        verified = counted.of(lambda: problems.extend(verify_store(address)))
        row["verify"] = problems[0] if problems else "sound", verified[0], verified[1] / size
    except (Unreachable, StoreError) as error:
        row["refused"] = str(error).replace(address, "...")
        return row
    if train:
        with tempfile.TemporaryDirectory() as out:
            command = [
                "samdeblur-train",
                address,
                "--method",
                "map",
                *TINY.split(),
                "--steps",
                "2",
                "--out",
                f"{out}/run",
            ]
            done = subprocess.run(
                [Path(sys.executable).parent / command[0], *command[1:]], capture_output=True, text=True
            )
        row["train"] = "2 steps" if done.returncode == 0 else done.stderr.strip()
    return row


def layers(address: str, store: MaskStore) -> dict[str, dict[str, float]]:
    """Crops a second of the parts of CROPS crops, fetched one crop after the other, by three layers in turns."""
    spec = store.header.arrays["atoms"]
    rng, wanted = np.random.default_rng(1), []
    for _ in range(CROPS):
        row = int(rng.integers(len(store)))
        path = f"atoms/{spec.part_path(row // store.header.block_size)}"
        size = (store.path.path / path).stat().st_size
        first = int(rng.integers(0, max(1, size - 16000)))
        wanted.append([(path, first, first + 8000), (path, first + 9000, first + 16000)])
    ours = web.Web(Location(address))
    ours.get_all([(wanted[0][0][0], slice(0, 4))])  # it is careful until it has seen one answer
    theirs = obstore.store.HTTPStore.from_url(address, client_options={"allow_http": True})
    kvstore = ts.KvStore.open({"driver": "http", "base_url": f"{address}/"}).result()
    ways: dict[str, Callable[[list[Any]], Any]] = {
        "this layer, merged": lambda parts: files.fetch_spans(ours, parts),
        "this layer, not merged": lambda parts: ours.get_all([(path, slice(a, b)) for path, a, b in parts]),
        "obstore get_ranges": lambda parts: obstore.get_ranges(
            theirs, parts[0][0], starts=[a for _, a, _ in parts], ends=[b for _, _, b in parts]
        ),
        "TensorStore key-value store": lambda parts: [
            read.result() for read in [kvstore.read(path, byte_range=slice(a, b)) for path, a, b in parts]
        ],
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(TURNS):
        for name, way in list(ways.items())[:: 1 if turn % 2 else -1]:
            wall, processor = time.perf_counter(), time.process_time()
            for parts in wanted:
                way(parts)
            found[name].append((CROPS / (time.perf_counter() - wall), 1e3 * (time.process_time() - processor) / CROPS))
    return {
        name: {"crops_per_second": statistics.median(a for a, _ in turns), "ms": statistics.median(b for _, b in turns)}
        for name, turns in found.items()
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| server | store | open | first crop | a crop | verify | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        server, kind = name.split(", ")
        if "refused" in row:
            lines.append(f"| {server} | {kind} | refused: {row['refused']} | | | | |")
            continue
        cells = [f"{row[part][0]:.3g} requests, {row[part][1] / 1e3:.0f} kB" for part in ("open", "first crop", "crop")]
        said, requests, share = row["verify"]
        cells += [f"{said}; {requests} requests, {share:.2f} of the bytes", row.get("train", "")]
        lines.append(f"| {server} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.argument("store", type=click.Path(exists=True, path_type=Path))
@click.option("--write", is_flag=True, help="Put the table into docs/sharing.md.")
@click.option("--train", is_flag=True, help="Also train for two steps from each zip.")
def main(store: Path, write: bool, train: bool) -> None:
    counted, rows, missing = Counted(), {}, []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=store.parent)))
        folder = scratch / "served"
        folder.mkdir()
        (folder / "s.zarr").symlink_to(store.resolve())
        export_zip(store, folder / "s.zip", images=True)
        sizes = {"folder": size_of(store), "zip": (folder / "s.zip").stat().st_size}
        names = {"folder": "s.zarr", "zip": "s.zip"}

        def add(server: str, url: str) -> None:
            for kind, name in names.items():
                rows[f"{server}, {kind}"] = measure(counted, f"{url}/{name}", sizes[kind], train and kind == "zip")
                click.echo(f"{server}, {kind}: {rows[f'{server}, {kind}']}", err=True)

        for name in ("nginx", "caddy", "lighttpd", "rclone", "python -m http.server"):
            here = scratch / name.replace(" ", "-")
            here.mkdir()
            program, start = real_servers(folder, here)[name]
            if shutil.which(program) is None:
                missing.append(name)
                continue
            with start() as url:
                add(name, url)
                if name == "nginx":
                    compared = layers(f"{url}/s.zarr", open_store(store))
        with servers.bucket_server(folder) as served:
            add("S3 (moto)", served.url)
        with hub_server.hub_server() as hub:
            os.environ |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub_server.TOKEN}
            content = (folder / "s.zip").read_bytes()
            hub.large["0" * 64] = content
            hub.repositories["someone/masks"] = {"s.zip": b"lfs:" + b"0" * 64}
            address = "hf://datasets/someone/masks/s.zip"
            rows["Hugging Face Hub (stand-in), zip"] = measure(counted, address, sizes["zip"], train)
    text = table(rows)
    click.echo(text)
    layer_lines = ["| layer | crops per second | processor time of a crop |", "|---|---|---|"]
    layer_lines += [
        f"| {name} | {one['crops_per_second']:.0f} | {one['ms']:.2f} ms |" for name, one in compared.items()
    ]
    click.echo("\n".join(layer_lines))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "servers.json").write_text(json.dumps({"rows": rows, "layers": compared, "missing": missing}, indent=1))
    if write:
        page = PAGE.read_text(encoding="utf-8")
        start, end = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
        both = f"\n\n{text}\n\n" + "\n".join(layer_lines) + "\n\n"
        PAGE.write_text(page[:start] + both + page[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
