"""A private certificate authority, and a server's certificate that it signed."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import pytest


def make_authority(directory: Path, address: str = "127.0.0.1") -> tuple[Path, Path]:
    """Write the authority's certificate, and the certificate and key of a server at an address, as PEM.

    Returns:
        The files of the authority and of the server. The server does not send the authority's certificate.
    """
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now, pem = datetime.datetime.now(datetime.UTC), serialization.Encoding.PEM
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("test authority", "server")]
    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def certificate(name, public_key, extension):
        builder = x509.CertificateBuilder(names[0], name, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(hours=1))
        return builder.add_extension(extension, critical=True).sign(root, hashes.SHA256()).public_bytes(pem)

    place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    authority, server = directory / "authority.pem", directory / "server.pem"
    authority.write_bytes(certificate(names[0], root.public_key(), x509.BasicConstraints(ca=True, path_length=0)))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    server.write_bytes(certificate(names[1], key.public_key(), place) + private)
    return authority, server
