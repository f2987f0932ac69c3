"""MACs of large files: AES-256-GMAC, each under a key that is used for this one file.

GMAC costs as much as xxh3, because CPUs have instructions for it; SHA-256 costs ten times as much.
Who does not have the key makes another file with the same MAC with a chance below 2^-90 a try, for
a file of a terabyte. Who has the key could, but he may write whatever he likes anyway.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_TEXT: Final = re.compile(r"gmac:([0-9a-f]{16}):([0-9a-f]{32}):([0-9a-f]{32})")
_NONCE: Final = bytes(12)  # the key is used once, so the nonce may be fixed
_AT_ONCE: Final = 64 << 20  # bytes; OpenSSL takes less than 2 GiB
SALT: Final = 16  # bytes


class Parts(NamedTuple):
    """A stored MAC, taken apart: the id of the key, the salt, and the tag in hex."""

    key: str
    salt: bytes
    tag: str


def parts(text: str) -> Parts | None:
    """Return the parts of a MAC as manifests write it; None if it is no such MAC."""
    found = _TEXT.fullmatch(text)
    return found and Parts(found[1], bytes.fromhex(found[2]), found[3])


class FileMac:
    """Computes the MAC of a file that is given in pieces.

    Args:
        key: The id of the key in the key file.
        salt: 16 random bytes, new for each file.
        file_key: The 32 bytes that were made of the key and the salt. No other file may use them.
    """

    def __init__(self, key: str, salt: bytes, file_key: bytes) -> None:
        # Imported here: only a job with a key needs it.
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._head = f"gmac:{key}:{salt.hex()}:"
        cipher = Cipher(algorithms.AES(file_key), modes.GCM(_NONCE))
        self._cipher = cipher.encryptor()
        self._tag: bytes | None = None

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        """Add the next piece."""
        view = memoryview(piece)
        for start in range(0, len(view), _AT_ONCE):
            self._cipher.authenticate_additional_data(view[start : start + _AT_ONCE])

    def hexdigest(self) -> str:
        """Return the MAC of all pieces, as manifests write it. No other piece may follow."""
        if self._tag is None:
            self._cipher.finalize()
            self._tag = self._cipher.tag
        return self._head + self._tag.hex()
