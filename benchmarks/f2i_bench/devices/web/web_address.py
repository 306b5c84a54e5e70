"""Where the page can be opened: addresses of this machine, a QR code for the terminal, and a certificate for HTTPS."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

from f2i_runtime.errors import MissingPackageError, UsageError

LOOPBACK = "127.0.0.1"


def lan_address() -> str:
    """Returns this machine's address in the local network. Raises UsageError when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: chooses the route, sends nothing
            found = str(probe.getsockname()[0])
        except OSError:
            found = LOOPBACK
    if ipaddress.ip_address(found).is_loopback:
        raise UsageError("--lan: this machine is in no network; connect it to the phone's Wi-Fi, or use --adb with a cable")
    return found


def qr_lines(url: str) -> tuple[str, ...]:
    """Returns a QR code, two rows of modules in a line of text; dark modules are spaces, for a light colour on a dark ground.

    Raises MissingPackageError without segno.
    """
    try:
        import segno
    except ModuleNotFoundError as e:
        raise MissingPackageError("segno", "a QR code", "web") from e
    rows = [list(row) for row in segno.make(url, error="l", micro=False).matrix_iter(border=2)]
    rows += [[0] * len(rows[0])] * (len(rows) % 2)
    signs = {(0, 0): "█", (0, 1): "▀", (1, 0): "▄", (1, 1): " "}
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return tuple("".join(signs[bool(a), bool(b)] for a, b in zip(upper, lower, strict=True)) for upper, lower in pairs)


def own_certificate(host: str) -> tuple[ssl.SSLContext, str]:
    """Returns a TLS context with a new certificate of this machine for one day, and the certificate's SHA-256 fingerprint.

    Its key is in memory and, while it is loaded, in a file that only this user can read. Raises MissingPackageError without cryptography.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ModuleNotFoundError as e:
        raise MissingPackageError("cryptography", "--https", "web") from e
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "f2i bench on this machine")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host)), x509.DNSName("localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:  # of mode 0700
        path = Path(folder) / "both.pem"
        path.write_bytes(private + certificate.public_bytes(pem))
        context.load_cert_chain(path)
    return context, certificate.fingerprint(hashes.SHA256()).hex(":").upper()
