# SPDX-License-Identifier: Apache-2.0
"""A configuration as text in normal form, as ``drbdadm dump`` of DRBD 9.34 prints it.

Input: ``Config`` and the name of the node (for the comments).  Output: text that reads back to an equal
``Config``.  Errors: none.  The text holds shared secrets, as the real tool's does.

differs: names that are keywords are quoted, so that the text can be read back; options that DRBD 9 drops
(become-primary-on, some of global, the device of a stacked section) are kept (decision 0044).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from repl.config import grammar
from repl.config.model import (
    Config,
    Connection,
    Endpoint,
    Host,
    HostKind,
    Mesh,
    MetaDisk,
    MetaDiskKind,
    Option,
    Options,
    Proxy,
    ProxyLink,
    Resource,
    Sections,
    Volume,
    find_host,
)
from repl.config.options import Kind

_INDENT = 4
_VALUE_COLUMN = 24
_FIXED_WIDTH = 16
_GLOBAL_FIRST = ("disable-ip-verification", "minor-count", "dialog-refresh")


def quote(text: str) -> str:
    """The text in double quotes, as the scanner reads it back."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def name_text(name: str) -> str:
    """A name, quoted where that is necessary."""
    return name if grammar.is_plain_name(name) else quote(name)


def value_text(value: str) -> str:
    """A value, quoted where that is necessary."""
    return value if grammar.is_plain_value(value) else quote(value)


class _Writer:
    """Collects lines; knows the indentation and the columns of the real tool."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.indent = 0

    def line(self, text: str) -> None:
        self.lines.append(" " * self.indent + text)

    def open(self, head: str) -> None:
        self.line(head + " {")
        self.indent += _INDENT

    def close(self) -> None:
        self.indent -= _INDENT
        self.line("}")

    def field(self, name: str, value: str, *, width: int | None = None) -> None:
        """``name   value;`` with the value in its column."""
        if width is None:
            width = max(0, _VALUE_COLUMN - self.indent)
        self.line(f"{name:<{width}} {value};")

    def option(self, option: Option) -> None:
        spec = option.spec
        if spec.kind is Kind.FLAG:
            self.line(f"{option.name};")
        elif spec.kind is Kind.HOSTS:
            self.field(option.name, " ".join(name_text(word) for word in option.words))
        elif spec.kind is Kind.BOOL:
            self.field(option.name, f"{option.text:>3}")
        else:
            self.field(option.name, f"{value_text(option.text):>3}")

    def options(self, head: str, options: Options | None) -> None:
        """A section; nothing if it was not written."""
        if options is None:
            return
        self.open(head)
        # DRBD 9 keeps the options of a peer device in a list of their own, which it prints last.
        for option in sorted(options.values(), key=lambda option: option.spec.is_peer_device):
            self.option(option)
        self.close()


def dump(config: Config, node: str, *, addresses: Iterable[str] = ()) -> str:
    """The whole configuration.  ``node`` and ``addresses`` only appear in comments."""
    own_addresses = tuple(addresses)
    writer = _Writer()
    writer.line(f"# {config.files[0] if config.files else '-'}")
    _write_global(writer, config.global_options)
    if config.common is not None:
        writer.line("")
        writer.open("common")
        _write_sections(writer, config.common)
        writer.close()
    for resource in config.resources.values():
        writer.line("")
        ignored = "ignored" if find_host(resource, node, own_addresses) is None else "not ignored"
        stacked = "stacked" if resource.is_stacked else "not stacked"
        writer.line(f"# resource {_comment(resource.name)} on {_comment(node)}: {ignored}, {stacked}")
        writer.line(f"# defined at {_comment(str(resource.where))}")
        _write_resource(writer, resource)
    return "\n".join(writer.lines) + "\n"


def dump_resource(resource: Resource) -> str:
    """One resource section, without comments above it."""
    writer = _Writer()
    _write_resource(writer, resource)
    return "\n".join(writer.lines) + "\n"


def _comment(text: str) -> str:
    return text.replace("\n", " ")


def _write_global(writer: _Writer, options: Options) -> None:
    if not options:
        return
    writer.open("global")
    names = [name for name in _GLOBAL_FIRST if name in options]
    for name in (*names, *(name for name in options if name not in _GLOBAL_FIRST)):
        option = options[name]
        writer.line(f"{name};" if option.spec.kind is Kind.FLAG else f"{name} {option.text};")
    writer.close()


def _write_sections(writer: _Writer, sections: Sections) -> None:
    writer.options("options", sections.options)
    writer.options("net", sections.net)
    writer.options("disk", sections.disk)
    writer.options("startup", sections.startup)
    if sections.proxy is not None:
        _write_proxy(writer, sections.proxy)
    writer.options("handlers", sections.handlers)
    if sections.nbd is not None:
        writer.open("nbd")
        for listen in sections.nbd_listen:
            target = f"unix {value_text(listen.unix_path)}" if listen.address is None else str(listen.address)
            writer.field("listen", target)
        for option in sections.nbd.values():
            writer.option(option)
        writer.close()
    if sections.arbiter is not None:
        writer.open("arbiter")
        for words in sections.arbiter:
            writer.line(" ".join(value_text(word) for word in words) + ";")
        writer.close()


def _write_proxy(writer: _Writer, proxy: Proxy) -> None:
    writer.open("proxy")
    for option in proxy.options.values():
        writer.option(option)
    if proxy.plugins:
        writer.open("plugin")
        for words in proxy.plugins:
            writer.line(" ".join(value_text(word) for word in words) + ";")
        writer.close()
    writer.close()


def _write_resource(writer: _Writer, resource: Resource) -> None:
    writer.open(f"resource {name_text(resource.name)}")
    if resource.template_file:
        writer.line(f"template-file {value_text(resource.template_file)};")
    _write_volumes(writer, resource.volumes)
    for host in resource.hosts:
        _write_host(writer, host)
    for connection in resource.connections:
        _write_connection(writer, connection)
    for mesh in resource.meshes:
        _write_mesh(writer, mesh)
    _write_sections(writer, resource.sections)
    writer.close()


def _write_volumes(writer: _Writer, volumes: Mapping[int, Volume]) -> None:
    for number in sorted(volumes):
        volume = volumes[number]
        if volume.is_implicit:
            _write_volume_body(writer, volume)
            continue
        writer.open(f"volume {number}")
        writer.options("disk", volume.options or None)
        _write_volume_body(writer, volume)
        writer.close()


def _write_volume_body(writer: _Writer, volume: Volume) -> None:
    if volume.device is not None:
        path = f"{value_text(volume.device.path)} " if volume.device.path else ""
        writer.field("device", f"{path}minor {volume.device.minor}")
    if volume.disk is not None:
        writer.field("disk", "none" if volume.disk.path is None else value_text(volume.disk.path))
    if volume.meta_disk is not None:
        _write_meta_disk(writer, volume.meta_disk)
    if volume.is_tiebreaker is not None:
        writer.field("tiebreaker", f"{'yes' if volume.is_tiebreaker else 'no':>3}")


def _write_meta_disk(writer: _Writer, meta: MetaDisk) -> None:
    if meta.kind is MetaDiskKind.INTERNAL:
        writer.field("meta-disk", "internal")
        return
    index = f" [{meta.index}]" if meta.kind is MetaDiskKind.INDEXED else ""
    writer.field("meta-disk", value_text(meta.path) + index, width=_FIXED_WIDTH)


def _write_host(writer: _Writer, host: Host) -> None:
    if host.kind is HostKind.FLOATING:
        writer.open(f"{'floating':<{_FIXED_WIDTH}} {host.address}")
    elif host.kind is HostKind.STACKED:
        writer.open(f"stacked-on-top-of {name_text(host.lower)}")
        writer.line(f"# on {' '.join(host.names)} ")
    else:
        writer.open("on " + " ".join(name_text(name) for name in host.names))
    if host.node_id is not None:
        writer.line(f"node-id {host.node_id};")
    writer.options("options", host.options or None)
    writer.options("disk", host.disk_options or None)
    _write_volumes(writer, host.volumes)
    if host.address is not None and host.kind is not HostKind.FLOATING:
        writer.field("address", str(host.address))
    if host.proxy is not None:
        _write_proxy_link(writer, host.proxy, head="proxy on")
    writer.close()


def _write_proxy_link(writer: _Writer, link: ProxyLink, *, head: str) -> None:
    writer.open(f"{head} " + " ".join(name_text(name) for name in link.hosts))
    writer.field("inside", str(link.inside), width=_FIXED_WIDTH)
    writer.field("outside", str(link.outside), width=_FIXED_WIDTH)
    writer.options("options", link.options or None)
    writer.close()


def _write_connection(writer: _Writer, connection: Connection) -> None:
    writer.open("connection" + (f" {name_text(connection.name)}" if connection.name else ""))
    for path in connection.paths:
        if connection.is_multipath:
            writer.open("path")
        for endpoint in path:
            _write_endpoint(writer, endpoint)
        if connection.is_multipath:
            writer.close()
    writer.options("net", connection.net or None)
    writer.options("disk", connection.disk or None)
    for number in sorted(connection.volumes):
        writer.open(f"volume {number}")
        writer.options("disk", connection.volumes[number])
        writer.close()
    writer.close()


def _write_endpoint(writer: _Writer, endpoint: Endpoint) -> None:
    text = f"host {name_text(endpoint.host)}" if endpoint.host else ""
    if endpoint.address is not None:
        # The gap is as wide as the indentation: so the real tool prints it.
        gap = " " * (writer.indent + 1) if text else ""
        text += f"{gap}{'address':<{_FIXED_WIDTH}}{endpoint.address}"
    elif endpoint.port_text:
        text += f" port {endpoint.port_text}"
    if endpoint.proxy is not None:
        _write_proxy_link(writer, endpoint.proxy, head=f"{text} via proxy on")
        return
    outside = f" via outside-address {endpoint.outside}" if endpoint.outside is not None else ""
    writer.line(f"{text}{outside};")


def _write_mesh(writer: _Writer, mesh: Mesh) -> None:
    writer.open("connection-mesh")
    writer.line(f"hosts {' '.join(name_text(name) for name in mesh.hosts)};")
    writer.options("net", mesh.net or None)
    writer.close()
