"""Readers that nobody here wrote open a store: zarr-python, TensorStore, xarray, and zarrita in Node from nginx."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr

from samdeblur.storage import StoreError, open_store

ZARRITA = Path(os.environ.get("SAMDEBLUR_NODE_MODULES", Path(__file__).parents[3] / ".cache" / "node_modules"))
SCRIPT = """
import * as zarr from "file://%(modules)s/zarrita/dist/src/index.js";
const root = zarr.root(new zarr.FetchStore("%(url)s"));
const row = %(row)d;
const open = name => zarr.open(root.resolve(name), { kind: "array" });
const plane = await zarr.get(await open("atoms"), [row, zarr.slice(0, %(height)d), zarr.slice(0, %(width)d)]);
const counts = await zarr.get(await open("index/counts"), [row, null]);
const pairs = await zarr.get(await open("pairs"), [row, zarr.slice(0, counts.data[2]), null]);
const records = await zarr.get(await open("records"), [row, zarr.slice(0, counts.data[0]), 0]);
const list = (chunk, axis = 0, at = 0) => axis === chunk.shape.length
  ? [Number(chunk.data[at])]
  : Array.from({ length: chunk.shape[axis] }, (_, i) => list(chunk, axis + 1, at + i * chunk.stride[axis])).flat();
console.log(JSON.stringify({ plane: list(plane), pairs: list(pairs), areas: list(records) }));
"""
CONFIG = """
daemon off; pid {here}/pid; error_log {here}/error.log; events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {here}/1; proxy_temp_path {here}/2; fastcgi_temp_path {here}/3;
  uwsgi_temp_path {here}/4; scgi_temp_path {here}/5;
  server {{ listen 127.0.0.1:{port}; location / {{ root {root}; }} }}
}}
"""


@contextmanager
def nginx(root: Path, here: Path):
    """The address of a real nginx that serves a folder."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        pytest.skip("nginx is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    user = "user root;" if os.geteuid() == 0 else ""
    (here / "nginx.conf").write_text(user + CONFIG.format(here=here, port=port, root=root))
    process = subprocess.Popen([program, "-p", here, "-c", here / "nginx.conf"], stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None, (here / "error.log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def expected(whole_store):
    store = open_store(whole_store.path)
    key = "nuit/été_夜"
    return store, store.position(key), store.atoms(key), store.records(key)["area"]


def test_xarray_opens_the_arrays_by_their_axes(whole_store, expected):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    _, row, atoms, areas = expected
    found = xarray.open_zarr(whole_store.path)
    height, width = atoms.shape
    plane = found["atoms"].isel(image=row, y=slice(0, height), x=slice(0, width))
    assert np.array_equal(plane.values, atoms.atoms)
    area = found["records"].isel(image=row, mask=slice(0, len(areas)), column=0)
    assert np.array_equal(area.values, areas)
    assert set(found.sizes) >= {"image", "y", "x", "pair", "side", "mask", "column"}
    assert xarray.open_zarr(whole_store.path, group="index").sizes["image"] == found.sizes["image"]


def test_tensorstore_reads_a_plane(whole_store, expected):
    tensorstore = pytest.importorskip("tensorstore", reason="TensorStore is not installed")
    _, row, atoms, _ = expected
    kvstore = {"driver": "file", "path": f"{whole_store.path / 'atoms'}/"}
    array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    height, width = atoms.shape
    assert np.array_equal(array[row, :height, :width].read().result(), atoms.atoms)


def test_zarr_python_reads_a_plane_with_the_metadata_of_the_root_alone(whole_store, expected):
    _, row, atoms, _ = expected
    group = zarr.open_consolidated(whole_store.path)
    height, width = atoms.shape
    assert np.array_equal(group["atoms"][row, :height, :width], atoms.atoms)
    assert group["atoms"].metadata.dimension_names == ("image", "y", "x")


def test_our_reader_reads_from_nginx(whole_store, expected, tmp_path):
    store, *_ = expected
    with nginx(whole_store.path.parent, tmp_path) as url:
        found = open_store(f"{url}/{whole_store.path.name}")
        for key in store.ready_keys:
            assert found.atoms(key) == store.atoms(key)


def test_zarrita_in_node_reads_masks_from_nginx(whole_store, expected, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    if not (ZARRITA / "zarrita").exists():
        pytest.skip(f"zarrita is not in {ZARRITA}: npm install --prefix {ZARRITA.parent} zarrita")
    _, row, atoms, areas = expected
    with nginx(whole_store.path.parent, tmp_path) as url:
        about = {"modules": ZARRITA.resolve(), "url": f"{url}/{whole_store.path.name}", "row": row}
        (tmp_path / "read.mjs").write_text(SCRIPT % (about | dict(zip(("height", "width"), atoms.shape, strict=True))))
        done = subprocess.run(["node", tmp_path / "read.mjs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert np.array_equal(np.reshape(found["plane"], atoms.shape), atoms.atoms)
    assert np.array_equal(np.reshape(found["pairs"], (-1, 2)), atoms.pairs)
    assert found["areas"] == areas.tolist()


@pytest.mark.parametrize("name", ["s.zip", "S.ZIP", "content", "s.zarr"])
def test_a_zip_of_the_folder_opens_whatever_it_is_called(whole_store, expected, tmp_path, name):
    store, *_ = expected
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("__MACOSX/._s.zarr", b"x", zipfile.ZIP_DEFLATED)
        for file in sorted(whole_store.path.rglob("*")):
            archive.write(file, f"some/where/{file.relative_to(whole_store.path).as_posix()}")
    found = open_store(tmp_path / name)
    assert all(found.atoms(key) == store.atoms(key) for key in store.ready_keys)


def test_of_a_compressed_zip_the_line_says_where_the_store_lies(whole_store, tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(whole_store.path.rglob("*")):
            archive.write(file, f"s.zarr/{file.relative_to(whole_store.path).as_posix()}")
    with pytest.raises(StoreError, match=r"compressed.* use the folder s\.zarr"):
        open_store(tmp_path / "s.zip")
