# SPDX-License-Identifier: Apache-2.0
"""The options of protocol/client."""

from __future__ import annotations

from repl.files.options import Kind, Option
from repl.files.rpc.tls import TLS_OPTIONS

DEFAULT_PORT = 24007

OPTIONS: tuple[Option, ...] = (
    Option("transport-type", Kind.CHOICE, "tcp", "tcp, or unix: a socket in the file system",
           choices=("tcp", "unix", "socket", "tcp/client", "unix/client")),
    Option("remote-host", Kind.STRING, "", "the server's name or address; of a name with several addresses each is "
           "tried in turn"),
    Option("remote-port", Kind.INT, DEFAULT_PORT, "the server's TCP port", minimum=1, maximum=65535,
           aliases=("transport.socket.remote-port", "transport.remote-port")),
    Option("remote-subvolume", Kind.STRING, "", "the volume of the server's graph to attach to"),
    Option("transport.socket.connect-path", Kind.PATH, "", "the server's socket, with transport-type unix",
           aliases=("connect-path", "transport.unix.connect-path")),
    Option("transport.address-family", Kind.CHOICE, "", "addresses of one kind only",
           choices=("", "inet", "inet6", "unix", "unspec"), aliases=("address-family",)),
    Option("ping-timeout", Kind.TIME, 5.0, "silence that makes the link count as dead; 0: only the system notices.  "
           "differs: Gluster 42 s", minimum=0, maximum=1013, aliases=("transport.ping-timeout",)),
    Option("frame-timeout", Kind.TIME, 1800.0, "a call that is not answered for so long fails with ENOTCONN; waiting "
           "for locks has no limit", minimum=0, maximum=86400),
    Option("username", Kind.STRING, "", "for auth.login of the server"),
    Option("password", Kind.STRING, "", "for auth.login of the server"),
    Option("event-threads", Kind.INT, 2, "accepted for Gluster's sake; one event loop serves all", minimum=1,
           maximum=1024),
    Option("send-gids", Kind.BOOL, True, "send the caller's groups (off: the server looks them up, manage-gids)"),
    Option("filter-O_DIRECT", Kind.BOOL, False, "open files on the server without O_DIRECT, whatever was asked for",
           aliases=("filter-o_direct",)),
    Option("strict-locks", Kind.BOOL, False, "a file whose locks were lost with the link answers EBADF until it is "
           "opened again"),
    Option("tcp-window-size", Kind.SIZE, 0, "the socket's buffers; 0: the system's choice", minimum=0,
           aliases=("transport.socket.window-size", "transport.tcp-window-size")),
    Option("client-bind-insecure", Kind.BOOL, True, "call from any port; off: from one below 1024"),
    Option("transport.tcp-user-timeout", Kind.TIME, 0.0, "how long sent data may stay unacknowledged; 0: ping-timeout "
           "decides", minimum=0),
    Option("transport.socket.keepalive", Kind.BOOL, True, "let the system ask a silent server, too"),
    *TLS_OPTIONS,
)  # fmt: skip
