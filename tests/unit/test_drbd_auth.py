# SPDX-License-Identifier: Apache-2.0
"""Shared-secret authentication: what is accepted and what is not."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from repl.drbd import auth
from repl.errors import ConfigError, ProtocolError

OWN, PEER = bytes(range(64)), bytes(range(64, 128))


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
def test_response_to_a_challenge_is_the_hmac_of_all_its_bytes(algorithm: str) -> None:
    challenge = PEER + b"more"
    response = auth.respond(algorithm, b"secret", challenge)
    assert response == hmac.new(b"secret", challenge, getattr(hashlib, algorithm)).digest()
    assert len(response) == auth.digest_bytes(algorithm)
    auth.check_response(algorithm, b"secret", challenge, response)


def test_own_challenge_sent_back_is_refused() -> None:
    auth.check_challenge(OWN, PEER)
    for reflected in (OWN, OWN + b"tail"):
        with pytest.raises(ProtocolError):
            auth.check_challenge(OWN, reflected)


@pytest.mark.parametrize("length", [0, 63, 129])
def test_challenge_of_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError):
        auth.check_challenge(OWN, bytes(length))


@pytest.mark.parametrize("response", [b"", bytes(19), bytes(20), bytes(21)])
def test_wrong_response_is_refused(response: bytes) -> None:
    with pytest.raises(ProtocolError):
        auth.check_response("sha1", b"secret", OWN, response)


@pytest.mark.parametrize("secret", [b"", bytes(3), b"x" * 64])
def test_unusable_secret_is_a_configuration_error(secret: bytes) -> None:
    with pytest.raises(ConfigError):
        auth.respond("sha1", secret, PEER)


def test_unknown_algorithm_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError):
        auth.respond("crc32c", b"secret", PEER)
