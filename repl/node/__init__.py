# SPDX-License-Identifier: Apache-2.0
"""The resource's state machine on one node: events in, actions out, no I/O.

A shell (``repl.daemon`` in production, the simulator in tests) feeds :class:`repl.node.node.Node` and carries
out what it asks for.  Nothing here reads a clock, a socket, a file or the system's random source.
"""
