"""Servers that speak TLS with a certificate of their own authority, and those that speak none."""

from __future__ import annotations

import datetime
import ipaddress
import ssl

import pytest
from answering import Request, serving
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from samdeblur.storage import Unreachable
from samdeblur.storage.access import web
from samdeblur.storage.access.location import Location
from samdeblur.storage.access.web import Web


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file with a certificate for this machine, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a laboratory")])
    now = datetime.datetime.now(datetime.UTC)
    found = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = tmp_path_factory.mktemp("tls") / "authority.pem"
    file.write_bytes(found.public_bytes(serialization.Encoding.PEM) + key.private_bytes(*form))
    return file


@pytest.fixture
def server(certificate, tmp_path, monkeypatch):
    (tmp_path / "data.bin").write_bytes(b"0123456789" * 100)
    for name in web.AUTHORITIES:
        monkeypatch.delenv(name, raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    web._pool.cache_clear()
    with serving(tmp_path, Request.sound, context) as (url, _):
        yield url
    web._pool.cache_clear()


def test_a_certificate_that_nobody_knows_names_the_variable_at_once(server):
    with pytest.raises(Unreachable, match=r"certificate is not trusted.*set SSL_CERT_FILE"):
        Web(Location(server)).get_all([("data.bin", slice(0, 5))])


@pytest.mark.parametrize("name", web.AUTHORITIES)
def test_each_of_the_usual_variables_names_the_authority(server, certificate, monkeypatch, name):
    monkeypatch.setenv(name, str(certificate))
    client = Web(Location(server))
    for first in (0, 10, 20):  # carefully, then by the short way as far as it trusts the authority too
        assert client.get_all([("data.bin", slice(first, first + 5))]) == [b"01234"]


def test_a_server_without_tls_is_named(tmp_path):
    with serving(tmp_path, Request.sound) as (url, _), pytest.raises(Unreachable, match="write http:// for it"):
        Web(Location(url.replace("http:", "https:"))).get_all([("data.bin", None)])
