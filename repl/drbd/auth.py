# SPDX-License-Identifier: Apache-2.0
"""Shared-secret authentication of the peer (cram-hmac): challenge in, HMAC out.

All values are bytes; challenges come from the caller's random source.  Raises ``ConfigError`` for an unknown
algorithm or an unusable secret and ``ProtocolError`` for a peer that fails.
Facts: DRBD 8.4 handshake; HMACs of a real capture are recomputed in the tests.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from types import MappingProxyType

from repl.drbd.packets import CHALLENGE_BYTES, CHALLENGE_BYTES_MAX
from repl.errors import ConfigError, ProtocolError
from repl.limits import SECRET_BYTES_MAX

# Algorithm name of the configuration -> digest size in bytes.
HMAC_DIGEST_BYTES: Mapping[str, int] = MappingProxyType({"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64})


def digest_bytes(algorithm: str) -> int:
    """Size of the response."""
    if algorithm not in HMAC_DIGEST_BYTES:
        known = ", ".join(HMAC_DIGEST_BYTES)
        raise ConfigError(f"cram-hmac-alg {algorithm} is not supported.", advice=f"Use one of {known}.")
    return HMAC_DIGEST_BYTES[algorithm]


def check_secret(secret: bytes) -> None:
    """Refuse a secret that no DRBD node could be configured with."""
    if not 1 <= len(secret) <= SECRET_BYTES_MAX or b"\0" in secret:
        raise ConfigError(
            f"The shared-secret has {len(secret)} bytes or contains a NUL.",
            advice=f"Use 1 to {SECRET_BYTES_MAX} bytes.",
        )


def check_challenge(own: bytes, peer: bytes) -> None:
    """Refuse a challenge of wrong length or one that is our own, sent back."""
    if not CHALLENGE_BYTES <= len(peer) <= CHALLENGE_BYTES_MAX:
        raise ProtocolError(f"P_AUTH_CHALLENGE: the challenge has {len(peer)} bytes.")
    if hmac.compare_digest(own[:CHALLENGE_BYTES], peer[:CHALLENGE_BYTES]):
        raise ProtocolError("P_AUTH_CHALLENGE: the peer sent our own challenge back.")


def respond(algorithm: str, secret: bytes, peer_challenge: bytes) -> bytes:
    """The response to the peer's challenge (all of its bytes)."""
    digest_bytes(algorithm)
    check_secret(secret)
    return hmac.digest(secret, peer_challenge, algorithm)


def check_response(algorithm: str, secret: bytes, own_challenge: bytes, response: bytes) -> None:
    """Refuse a response that does not prove that the peer knows the secret."""
    expected = respond(algorithm, secret, own_challenge)
    if len(response) != len(expected):
        raise ProtocolError(
            f"P_AUTH_RESPONSE: the HMAC has {len(response)} bytes, {len(expected)} are expected."
        )
    if not hmac.compare_digest(expected, response):
        raise ProtocolError(
            "P_AUTH_RESPONSE: authentication of the peer failed.",
            advice="Compare shared-secret and cram-hmac-alg on both nodes.",
        )
