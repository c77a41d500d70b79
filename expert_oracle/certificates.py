"""When a certificate ends, read from its file: what a service that hangs up on it does not say."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime

PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
VERSION, UTC_TIME = 0xA0, 0x17  # tags of DER


def expiry(pem: bytes) -> datetime | None:
    """The last moment of the first certificate in a PEM file (RFC 5280, 4.1.2.5); None if it has none."""
    found = PEM.search(pem.decode("ascii", "replace"))
    if found is None:
        return None
    certificate = _parts(ssl.PEM_cert_to_DER_cert(found[0]))[0][1]
    fields = _parts(_parts(certificate)[0][1])
    if fields[0][0] == VERSION:  # absent in the first version
        del fields[0]
    _, (tag, ends) = _parts(fields[3][1])  # after serial number, algorithm and issuer: not before, not after
    form = "%y%m%d%H%M%SZ" if tag == UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(ends.decode(), form).replace(tzinfo=UTC)


def _parts(der: bytes) -> list[tuple[int, bytes]]:
    """What stands in a row, each as its tag and content."""
    parts = []
    while der:
        tag, length, start = der[0], der[1], 2
        if length > 127:  # so many bytes of length follow
            start += length - 128
            length = int.from_bytes(der[2:start], "big")
        parts.append((tag, der[start : start + length]))
        der = der[start + length :]
    return parts
