# SPDX-License-Identifier: Apache-2.0
"""Host sections and the volumes in them or in the resource.

Input: statements.  Output: ``Host`` and ``Volume``.  Errors: ``ConfigError`` at the statement that is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from repl.config.connections import VOLUME_NUMBER_MAX, read_proxy_link
from repl.config.grammar import Position, Statement
from repl.config.model import (
    Address,
    Device,
    Disk,
    Host,
    HostKind,
    MetaDisk,
    MetaDiskKind,
    Option,
    ProxyLink,
    Volume,
)
from repl.config.reading import (
    Cursor,
    Draft,
    conflict,
    error_at,
    head,
    mixed_volumes,
    read_address,
)
from repl.config.sections import (
    section_options,
)
from repl.errors import ConfigError

MINOR_MAX = (1 << 20) - 1
NODE_ID_MAX = 31
META_INDEX_MAX = 65535
_DEVICE_NUMBER = re.compile(r"(?:/dev/)?drbd([0-9]{1,7})\Z")
_DEVICE_LINK = re.compile(r"(?:/dev/)?drbd_.+\Z")
_HOST_WORDS = (
    "address",
    "volume",
    "device",
    "disk",
    "meta-disk",
    "flexible-meta-disk",
    "node-id",
    "options",
    "proxy",
    "skip",
)
_VOLUME_WORDS = ("device", "disk", "meta-disk", "flexible-meta-disk", "tiebreaker", "skip")


# --------------------------------------------------------------------------------------------- volumes


@dataclass(slots=True)
class VolumesDraft:
    """The volumes of a resource or host section of the resource that is named."""

    resource: str
    resource_where: Position
    volumes: dict[int, Volume] = field(default_factory=dict)

    def implicit(self, where: Position) -> Volume:
        return self.volumes.get(0, Volume(0, is_implicit=True, where=where))

    def mixed(self, where: Position) -> ConfigError:
        """The error for both kinds of volumes, at the resource as the real tool has it."""
        return mixed_volumes(self.resource, self.resource_where, where)


def _volume_statement(draft: Draft, volume: Volume, cursor: Cursor, word: str) -> Volume:
    """One of device, disk PATH, meta-disk, tiebreaker; ``cursor`` stands behind the keyword."""
    where = cursor.where
    match word:
        case "device":
            _once(volume.device, word, volume, where)
            return replace(volume, device=_device(draft, cursor))
        case "disk":
            _once(volume.disk, word, volume, where)
            token = cursor.value("the path of the lower device")
            cursor.end_statement()
            return replace(volume, disk=Disk(None if token.text == "none" else token.text, where))
        case "tiebreaker":
            answer = cursor.expect_word("yes", "no")
            cursor.end_statement()
            return replace(volume, is_tiebreaker=answer == "yes")
        case _:
            _once(volume.meta_disk, "meta-disk", volume, where)
            return replace(volume, meta_disk=_meta_disk(cursor, is_flexible=word == "flexible-meta-disk"))


def _once(earlier: Device | Disk | MetaDisk | None, word: str, volume: Volume, where: Position) -> None:
    if earlier is not None:
        raise conflict(word, f"volume {volume.number}:{word}", first=earlier.where, second=where)


def _device(draft: Draft, cursor: Cursor) -> Device:
    where = cursor.where
    if cursor.take_word("minor"):
        minor = cursor.integer("minor", 0, MINOR_MAX)
        cursor.end_statement()
        return Device(minor, "", where)
    name = cursor.value("a device name or 'minor'").text
    explicit = cursor.integer("minor", 0, MINOR_MAX) if cursor.take_word("minor") else None
    cursor.end_statement()
    path = name if name.startswith("/") else f"/dev/{name}"
    number = _DEVICE_NUMBER.match(name)
    if number is not None:
        return Device(_device_minor(int(number[1]), explicit, where), path, where)
    if _DEVICE_LINK.match(name) is None:
        raise error_at(
            where,
            "device name must start with /dev/drbd (/dev/ is optional, but drbd is required).",
            advice='Write "device minor N;" or "device /dev/drbdN;".',
        )
    if explicit is None:
        raise error_at(
            where,
            "no minor given nor device name contains a minor number.",
            advice=f'Write "device {path} minor N;".',
        )
    draft.warn(f"'{path}' is only a name here; nothing creates the symbolic link.", where)
    return Device(explicit, path, where)


def _device_minor(from_name: int, explicit: int | None, where: Position) -> int:
    if explicit is not None and explicit != from_name:
        raise error_at(
            where,
            "explicit minor number must match with device name.",
            advice=f'Try "device /dev/drbd{explicit} minor {explicit};", or leave one of the two off.',
        )
    if from_name > MINOR_MAX:
        raise error_at(where, f"minor {from_name} => {from_name} out of range [0..{MINOR_MAX}].")
    return from_name


def _meta_disk(cursor: Cursor, *, is_flexible: bool) -> MetaDisk:
    where = cursor.where
    path = cursor.value("internal | <device>").text
    if path == "internal":
        cursor.end_statement()
        return MetaDisk(MetaDiskKind.INTERNAL, where=where)
    if is_flexible or cursor.at_end():
        cursor.end_statement()
        return MetaDisk(MetaDiskKind.FLEXIBLE, path, where=where)
    cursor.expect_operator("[")
    index = cursor.integer("index", 0, META_INDEX_MAX)
    cursor.expect_operator("]")
    cursor.end_statement()
    return MetaDisk(MetaDiskKind.INDEXED, path, index, where)


def volume_block(draft: Draft, volumes: VolumesDraft, cursor: Cursor) -> None:
    number = cursor.integer("volume", 0, VOLUME_NUMBER_MAX)
    statements = cursor.end_block()
    earlier = volumes.volumes.get(number)
    if earlier is not None and not earlier.is_implicit:
        raise conflict("volume", str(number), first=earlier.where, second=cursor.where)
    if any(volume.is_implicit for volume in volumes.volumes.values()):
        raise volumes.mixed(cursor.where)
    volume = Volume(number, where=cursor.where)
    options: dict[str, Option] | None = None
    for statement in statements:
        inner, word = head(statement, _VOLUME_WORDS, section=f"volume {number}")
        if word == "disk" and statement.body is not None:
            if options is not None:
                key = f"volume {number}:disk"
                raise conflict("disk section", key, first=volume.where, second=inner.where)
            options = section_options(draft, inner.end_block(), "disk", also=("fencing",))
        else:
            volume = _volume_statement(draft, volume, inner, word)
    volumes.volumes[number] = replace(volume, options=options or {})


def implicit_statement(draft: Draft, volumes: VolumesDraft, cursor: Cursor, word: str) -> None:
    volume = volumes.implicit(cursor.where)
    if not volume.is_implicit or any(number != 0 for number in volumes.volumes):
        raise volumes.mixed(cursor.where)
    volumes.volumes[0] = _volume_statement(draft, volume, cursor, word)


# ----------------------------------------------------------------------------------------------- hosts


@dataclass(slots=True)
class _HostDraft:
    """What the body of a host section says."""

    volumes: VolumesDraft
    address: Address | None = None
    node_id: int | None = None
    disk_options: dict[str, Option] | None = None
    options: dict[str, Option] | None = None
    proxy: ProxyLink | None = None


def read_host(draft: Draft, resource: str, resource_where: Position, cursor: Cursor, word: str) -> Host:
    kind = HostKind(word)
    names: tuple[str, ...] = ()
    lower = ""
    body = _HostDraft(VolumesDraft(resource, resource_where))
    if kind is HostKind.ON:
        names = cursor.names("a host name")
    elif kind is HostKind.STACKED:
        lower = cursor.name("the name of a resource")
    else:
        body.address = read_address(cursor)
    if kind is HostKind.FLOATING and cursor.statement.body is None:
        cursor.end_statement()
        statements: tuple[Statement, ...] = ()
    else:
        statements = cursor.end_block()
    label = f"{resource}:{lower or ' '.join(names) or (body.address and body.address.endpoint)}"
    for statement in statements:
        _host_statement(draft, body, label, statement)
    return Host(
        kind,
        names,
        body.address,
        body.node_id,
        body.volumes.volumes,
        lower,
        body.disk_options or {},
        body.options or {},
        body.proxy,
        cursor.where,
    )


def _host_statement(draft: Draft, body: _HostDraft, label: str, statement: Statement) -> None:
    cursor, word = head(statement, _HOST_WORDS, section=f"on {label.partition(':')[2]}")
    match word:
        case "address":
            if body.address is not None:
                raise conflict("address", label, first=body.address.where, second=cursor.where)
            body.address = read_address(cursor)
            cursor.end_statement()
        case "node-id":
            if body.node_id is not None:
                raise error_at(cursor.where, f"conflicting use of node-id '{label}': it is given twice.")
            body.node_id = cursor.integer("node-id", 0, NODE_ID_MAX)
            cursor.end_statement()
        case "volume":
            volume_block(draft, body.volumes, cursor)
        case "options":
            if body.options is not None:
                raise error_at(cursor.where, f"conflicting use of options section '{label}:options'.")
            body.options = section_options(draft, cursor.end_block(), "options")
        case "proxy":
            body.proxy = read_proxy_link(draft, cursor)
        case "disk" if statement.body is not None:
            if body.disk_options is not None:
                raise error_at(cursor.where, f"conflicting use of disk section '{label}:disk'.")
            body.disk_options = section_options(draft, cursor.end_block(), "disk")
        case _:
            implicit_statement(draft, body.volumes, cursor, word)
