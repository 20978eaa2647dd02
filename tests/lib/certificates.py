# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests of TLS, made by the program openssl: an authority and those it signs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def needs_openssl() -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")


class Authority:
    """``certificate`` is what goes into a CA list."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self._key, self.certificate = self.folder / "ca.key", self.folder / "ca.pem"
        _openssl("req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.certificate, "-subj", f"/CN={name}",
                 "-days", "2", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip

    def sign(self, name: str) -> dict[str, str]:
        """The options of a volfile for who is called so."""
        key, request, made = (self.folder / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
        _openssl("req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        _openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
                 "-out", made, "-days", "2")  # fmt: skip
        return tls_options(made, key, self.certificate)


def tls_options(certificate: Path, key: Path, authorities: Path) -> dict[str, str]:
    prefix = "transport.socket.ssl"
    return {
        f"{prefix}-enabled": "on", f"{prefix}-own-cert": str(certificate), f"{prefix}-private-key": str(key),
        f"{prefix}-ca-list": str(authorities),
    }  # fmt: skip


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
