"""A password, a signature and a token are in nothing that a command says or writes."""

from __future__ import annotations

import pytest
import servers

from samdeblur.storage.access.location import Location, without_secrets


@pytest.fixture
def address(store, tmp_path):
    with servers.folder_server(tmp_path) as served:
        yield served.url.replace("://", "://user:SECRETpassword@") + "/prepared.zarr?Signature=SECRETsignature"


def test_no_command_says_or_writes_them(samdeblur, address, tiny, tmp_path):
    said = [
        samdeblur("prep", "info", address),
        samdeblur("prep", "info", "--json", address),
        samdeblur("prep", "verify", address),
        samdeblur("prep", "status", address),
        samdeblur("prep", "export", address, tmp_path / "m.json", "--format", "coco-instances"),
        samdeblur("train", address, *tiny, "--out", tmp_path / "run"),
    ]
    assert [result.code for result in said] == [0] * len(said)
    said += [
        samdeblur("prep", "info", address.replace("prepared", "gone")),
        samdeblur("prep", "info", address.replace("http", "ftp")),
        samdeblur("prep", "--debug", "info", address.replace("prepared", "gone")),
        samdeblur("prep", "--debug", "info", address.replace("127.0.0.1:", "127.0.0.1:9")),  # nobody listens there
        samdeblur("prep", "export", address, tmp_path / "m.zip"),
        samdeblur("prep", "run", address, tmp_path / "x.zarr", "--split", "test"),
    ]
    for result in said:
        assert "SECRET" not in result.out + result.err
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://a:b@host/x.zarr", "https://host/x.zarr"),
        ("https://host/x.zip?X-Amz-Signature=abc&y=1", "https://host/x.zip?..."),
        ("from https://a:b@host/x and http://host/y?s=1 too", "from https://host/x and http://host/y?... too"),
        ("token hf_abcdefghijk was refused", "token hf_... was refused"),
        ("/data/a@b/x.zarr", "/data/a@b/x.zarr"),
        *((f"https://a:b{mark}c@host/x", "https://host/x") for mark in "@/?#"),
        ("https://host/x#access_token=abc", "https://host/x#access_token=..."),
        *((place, place) for place in ("http://host:80/a@b", "http://[::1]:80/a@b", "hf://datasets/u/r@main/x")),
        ("s3://bucket/x.zarr", "s3://bucket/x.zarr"),
    ],
)
def test_what_is_shown_of_an_address(text, shown):
    assert without_secrets(text) == shown


@pytest.mark.parametrize("text", ["https://a:SECRET/SECRET@host/x", "http://host:99999/x", "http://host:abc/x"])
def test_an_address_whose_port_is_none_is_refused_at_once(samdeblur, text):
    refused = samdeblur("prep", "info", text)
    assert (refused.code, "not a port" in refused.error, "SECRET" in refused.error) == (2, True, False)


def test_keys_of_a_bucket_are_taken_as_they_are():
    place = Location("s3://bucket/a#1/b?c.zip")
    assert (place.bucket, place.key, place.name, str(place)) == ("bucket", "a#1/b?c.zip", "b?c.zip", place.text)
    assert str(place.parent / "d e") == "s3://bucket/a#1/d e"
