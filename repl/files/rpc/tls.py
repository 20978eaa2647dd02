# SPDX-License-Identifier: Apache-2.0
"""TLS for both ends, with the options as Gluster spells them.

Both ends prove who they are: a client without a certificate of the CA list is refused, so is a server.  Names in
certificates are not compared with host names (as in Gluster): the server's auth.login.VOLUME.ssl-allow lists the
common names it takes, the CA list says whom a client trusts.  Errors: ``ConfigError``.
"""

from __future__ import annotations

import ssl
from typing import Any

from repl.errors import ConfigError
from repl.files.options import Kind, Option, Options

DEFAULT_CERTIFICATE = "/etc/ssl/glusterfs.pem"
DEFAULT_KEY = "/etc/ssl/glusterfs.key"
DEFAULT_CA = "/etc/ssl/glusterfs.ca"


def _option(word: str, kind: Kind, default: Any, text: str, **limits: Any) -> Option:
    aliases = (f"ssl-{word}", f"transport.ssl-{word}")
    return Option(f"transport.socket.ssl-{word}", kind, default, text, aliases=aliases, **limits)


TLS_OPTIONS: tuple[Option, ...] = (
    _option("enabled", Kind.BOOL, False, "TLS with certificates on both sides; the other end needs it too"),
    _option("own-cert", Kind.PATH, DEFAULT_CERTIFICATE, "this end's certificate (PEM)"),
    _option("private-key", Kind.PATH, DEFAULT_KEY, "the key of ssl-own-cert (PEM)"),
    _option("ca-list", Kind.PATH, DEFAULT_CA, "certificates of those who may sign the other end's"),
    _option("cert-depth", Kind.INT, 1, "accepted for Gluster's sake; every chain to ca-list is checked", minimum=0),
    _option("cipher-list", Kind.STRING, "", "OpenSSL's cipher list for TLS 1.2; empty: Python's choice"),
)


def tls_context(options: Options, *, is_server: bool) -> ssl.SSLContext | None:
    """What the options ask for, None without TLS."""
    if not options["transport.socket.ssl-enabled"]:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    certificate, key = options["transport.socket.ssl-own-cert"], options["transport.socket.ssl-private-key"]
    authorities = options["transport.socket.ssl-ca-list"]
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS: certificate {certificate} with key {key} cannot be used: {error}.",
                          advice="Set transport.socket.ssl-own-cert and ssl-private-key.") from error  # fmt: skip
    try:
        context.load_verify_locations(authorities)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS: the CA list {authorities} cannot be used: {error}.",
                          advice="Set transport.socket.ssl-ca-list.") from error  # fmt: skip
    ciphers = options["transport.socket.ssl-cipher-list"]
    if ciphers:
        try:
            context.set_ciphers(ciphers)
        except ssl.SSLError as error:
            raise ConfigError(f"TLS: the cipher list {ciphers!r} names no cipher.") from error
    return context


def common_name(certificate: Any) -> str:
    """CN of a certificate as ssl tells it, "" if there is none."""
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""
