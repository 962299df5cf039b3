"""Buckets of Google Cloud and Azure, behind stand-ins that answer as their servers do; S3 is in test_remote.py."""

from __future__ import annotations

import pytest
from answering import serving

from samdeblur.storage import Unreachable, open_store
from samdeblur.storage.access.files import open_files
from samdeblur.storage.access.location import Location
from samdeblur.storage.sharing.export import export_zip
from samdeblur.storage.sharing.verify import verify_store

ABOUT = {"Last-Modified": "Sun, 29 Nov 2026 12:00:00 GMT", "ETag": '"1"'}


@pytest.fixture(scope="module")
def root(whole_store, tmp_path_factory):
    """A folder with the container of an account in it, which is also a bucket."""
    path = tmp_path_factory.mktemp("cloud")
    bucket = path / "account/masks"
    (bucket / "a b").mkdir(parents=True)
    (path / "masks").symlink_to(bucket)
    (bucket / "s.zarr").symlink_to(whole_store.path)
    export_zip(whole_store.path, bucket / "a b/s.zip", images=True)
    return path


@pytest.fixture(params=["gs", "az"])
def cloud(request, root, monkeypatch):
    """(address of the bucket, requests)"""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.delenv(name, raising=False)
    suffixes = request.param == "gs"  # which Azure does not know

    def answer(asked):
        return asked.sound(**ABOUT) if suffixes or not asked.suffix else (400, {}, b"")

    with serving(root, answer) as (url, asked):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"{url}/")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{url}/account")
        yield f"{request.param}://masks", asked


@pytest.mark.parametrize("name", ["s.zarr", "a b/s.zip"])
def test_a_store_in_a_bucket_is_the_store_on_the_disk(cloud, name, whole_store):
    url, _ = cloud
    store, key = open_store(f"{url}/{name}"), "nuit/été_夜"
    assert store.atoms(key, (10, 10, 30, 30)) == open_store(whole_store.path).atoms(key, (10, 10, 30, 30))
    assert list(verify_store(f"{url}/{name}")) == []


def test_what_is_not_there_is_not_found(cloud):
    with pytest.raises(FileNotFoundError, match="no such store"):
        open_store(f"{cloud[0]}/other.zarr")


def test_parts_past_the_end_are_short(cloud, root):
    (root / "masks/data.bin").write_bytes(b"0123456789")
    parts = open_files(Location(cloud[0])).get_all([("data.bin", slice(8, 20)), ("data.bin", slice(20, 30))])
    assert parts == [b"89", b""]


@pytest.mark.parametrize(("status", "words"), [(403, "refuses it .HTTP 403 Forbidden.*credentials"), (401, "HTTP 401")])
@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_refusal_says_so_in_a_line_without_details(root, monkeypatch, scheme, status, words):
    with serving(root, lambda asked: (status, {}, b"<Error>details</Error>")) as (url, _):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{url}/account")
        with pytest.raises(Unreachable, match=words) as refusal:
            open_store(f"{scheme}://masks/s.zarr")
    assert "details" not in str(refusal.value)
    assert url not in str(refusal.value)


def test_a_container_without_an_account_says_what_to_set(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(Unreachable, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://masks/s.zarr")


def test_an_endpoint_may_end_in_a_slash(root, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(root / "none"))
    with serving(root, lambda asked: asked.sound(**ABOUT)) as (url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"{url}/")
        open_store("s3://masks/s.zarr")
        assert all("//" not in request.path for request in asked)
