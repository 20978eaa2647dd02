# SPDX-License-Identifier: Apache-2.0
"""The options of protocol/server."""

from __future__ import annotations

from repl.files.options import Kind, Option
from repl.files.rpc.tls import TLS_OPTIONS

DEFAULT_PORT = 24007

OPTIONS: tuple[Option, ...] = (
    Option("transport-type", Kind.CHOICE, "tcp", "tcp, or unix: a socket in the file system",
           choices=("tcp", "unix", "socket", "tcp/server", "unix/server")),
    Option("transport.socket.listen-port", Kind.INT, DEFAULT_PORT, "the TCP port; 0: any that is free", minimum=0,
           maximum=65535, aliases=("listen-port", "transport.listen-port")),
    Option("transport.socket.bind-address", Kind.LIST, ("127.0.0.1",),
           "addresses to listen on, separated by commas (* or 0.0.0.0: all).  differs: loopback unless told",
           aliases=("bind-address", "transport.bind-address")),
    Option("transport.socket.listen-path", Kind.PATH, "", "the socket of transport-type unix",
           aliases=("listen-path", "transport.unix.listen-path")),
    Option("transport.listen-backlog", Kind.INT, 1024, "connections that wait to be accepted.  differs: Gluster 10",
           minimum=1, aliases=("transport.socket.listen-backlog",)),
    Option("transport.socket.keepalive", Kind.BOOL, True, "ask silent clients whether they are there"),
    Option("transport.socket.keepalive-time", Kind.TIME, 5.0, "silence before the first question.  differs: 20 s",
           minimum=1, aliases=("transport.tcp-keepalive-time",)),
    Option("transport.socket.keepalive-interval", Kind.TIME, 2.0, "time between two questions", minimum=1),
    Option("transport.socket.keepalive-count", Kind.INT, 5, "unanswered questions that end the connection", minimum=1),
    Option("transport.tcp-user-timeout", Kind.TIME, 15.0,
           "how long sent data may stay unacknowledged (0: the system's own limit)", minimum=0),
    Option("auth.addr.*.allow", Kind.LIST, (), "addresses that may attach to the volume: with wildcards (10.0.0.*) or "
           "as a network (10.0.0.0/24); without any line for a volume nobody may", is_pattern=True,
           aliases=("auth.ip.*.allow",)),
    Option("auth.addr.*.reject", Kind.LIST, (), "addresses that may not, whatever else allows them", is_pattern=True,
           aliases=("auth.ip.*.reject",)),
    Option("auth.login.*.allow", Kind.LIST, (), "users who may attach to the volume with their password",
           is_pattern=True),
    Option("auth.login.*.password", Kind.STRING, "", "the password of a user", is_pattern=True),
    Option("auth.login.*.ssl-allow", Kind.LIST, (), "common names of certificates that may attach (* : any that the CA "
           "list knows); with TLS, in addition to auth.addr", is_pattern=True),
    Option("rpc-auth-allow-insecure", Kind.BOOL, True, "take clients that call from ports of 1024 and above",
           aliases=("rpc-auth.allow-insecure",)),
    Option("inode-lru-limit", Kind.INT, 16384, "accepted for Gluster's sake; there is no table of inodes", minimum=0),
    Option("root-squash", Kind.BOOL, False, "root of a client becomes anonuid and anongid",
           aliases=("server.root-squash",)),
    Option("all-squash", Kind.BOOL, False, "everybody becomes anonuid and anongid", aliases=("server.all-squash",)),
    Option("anonuid", Kind.INT, 65534, "user of those who are squashed", minimum=0, maximum=(1 << 32) - 2),
    Option("anongid", Kind.INT, 65534, "group of those who are squashed", minimum=0, maximum=(1 << 32) - 2),
    Option("rpc.outstanding-rpc-limit", Kind.INT, 64, "calls of one client that are worked on at a time (waiting for "
           "locks does not count)", minimum=1, maximum=65536),
    Option("manage-gids", Kind.BOOL, False, "look up the groups of a user here instead of trusting the client's list",
           aliases=("server.manage-gids",)),
    Option("gid-timeout", Kind.TIME, 300.0, "how long looked-up groups are remembered", minimum=0),
    Option("event-threads", Kind.INT, 2, "accepted for Gluster's sake; one event loop serves all", minimum=1,
           maximum=1024),
    Option("dynamic-auth", Kind.BOOL, True, "a changed volfile also ends connections that it no longer allows"),
    Option("statedump-path", Kind.PATH, "/run/repl", "folder of state dumps (SIGUSR1)"),
    *TLS_OPTIONS,
)  # fmt: skip
