"""Certificates of a SuperLink and key pairs of SuperNodes, for a rehearsal on one machine.

At real sites the operator's own authority signs the SuperLink's certificate, and every hospital
makes its own key pair: a private key never leaves the machine that uses it.
"""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAYS = datetime.timedelta(days=30)


def make_certificates(folder: Path) -> None:
    """Write ca.crt, server.crt and server.key, valid for 127.0.0.1 and localhost and 30 days."""
    ca_key, key = _new_key(), _new_key()
    ca_name, name = _name("fedkd rehearsal CA"), _name("localhost")
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
    ca = (
        _certificate(ca_name, ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        _certificate(name, ca_name, key)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    for file, certificate in (("ca.crt", ca), ("server.crt", server)):
        (folder / file).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_private(folder / "server.key", key, serialization.PrivateFormat.TraditionalOpenSSL)


def make_key_pair(file: Path) -> Path:
    """Write a private key for SuperNode authentication; the public key's file is returned."""
    key = _new_key()
    _write_private(file, key, serialization.PrivateFormat.OpenSSH)
    public = file.with_suffix(".pub")
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )
    return public


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + _DAYS)
    )


def _write_private(
    file: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat
) -> None:
    file.unlink(missing_ok=True)  # one that is there keeps its permissions
    file.touch(mode=0o600, exist_ok=False)
    plain = serialization.NoEncryption()
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
