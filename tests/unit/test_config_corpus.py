# SPDX-License-Identifier: Apache-2.0
"""The configuration reader against the answers of the real tools (tests/vectors/res-corpus).

Every file that drbdadm accepts must be accepted and dumped like drbdadm 9.34 does; every file that all
flavours refuse must be refused on the line that one of them names.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from repl.config import Config, dump, load, resource_for_node, resources_of_node
from repl.config.model import Host, disk_options_of, net_options_of
from repl.errors import ConfigError

CORPUS = Path(__file__).resolve().parent.parent / "vectors" / "res-corpus"
FILES = sorted(CORPUS.glob("*.res"))
ACCEPTED_MISTAKES = (
    "e04-too-small",
    "e12-global-late",
    "e22-eof",
    "e27-resync-after-unknown",
    "e34-reserved-name",
)
VALID = [path for path in FILES if path.stem.startswith("v") or path.stem in ACCEPTED_MISTAKES]
REFUSED = [path for path in FILES if path not in VALID]

# Where our dump deliberately differs: lines that only we print, and the reason.
EXTRA_LINES = {
    # The real tool loses the device of a stacked section and what it ignores itself.
    "v14-stacked": ["device minor 149;"],
    "v15-handlers-startup": ["become-primary-on alpha;"],
    "v15b-fencing-in-net": ["become-primary-on both;"],
    "v16-dual-primary": ["startup {", "become-primary-on alpha beta;", "}"],
    # It leaves these out of the global section.
    "v24-global-options": [
        "usage-count ask;",
        "udev-always-use-vnr;",
        "cmd-timeout-short 5;",
        "cmd-timeout-medium 121;",
        "cmd-timeout-long 600;",
    ],
}
# Keywords used as names: the dump of the real tool cannot be read back.
REPLACED_LINES = {
    "v09-keyword-as-name": {"resource disk {": 'resource "disk" {', "    on host {": '    on "host" {'},
}
# Only the 8.4 flavour accepts it, and that dump has another layout.
NO_DUMP = ("v23-discard-node",)

# Lines for which no flavour's answer is taken, and why.
LINES = {
    "e11-dup-disk": 11,  # 9 says line 0, 8.4 the line of the host section; the disk statement is at 11
    "e15-mixed-volumes": 3,
}


def node_of(path: Path) -> str:
    first = path.read_text().splitlines()[0]
    return first.removeprefix("# node: ") if first.startswith("# node: ") else "alpha"


def relative(text: str) -> str:
    # The corpus has the tools' own directory cut off everywhere, even in the handlers' commands.
    return text.replace(f"{CORPUS}/", "").replace("/usr/lib/drbd/", "")


def wanted_dump(path: Path) -> str:
    new = path.with_suffix(".dump934")
    text = (new if new.exists() else path.with_suffix(".dump9")).read_text()
    for old, ours in REPLACED_LINES.get(path.stem, {}).items():
        assert old in text
        text = text.replace(old, ours)
    return text


@pytest.mark.parametrize(
    "path", [path for path in VALID if path.stem not in NO_DUMP], ids=lambda path: path.stem
)
def test_dump_of_a_valid_file_equals_the_dump_of_the_real_tool(path: Path) -> None:
    lines = relative(dump(load(path), node_of(path))).splitlines()
    wanted = wanted_dump(path).splitlines()
    extra = EXTRA_LINES.get(path.stem, [])
    if extra:
        position = next(
            i for i in range(len(lines)) if " ".join(lines[i].split()) == extra[0] and lines[i] != wanted[i]
        )
        found = [" ".join(line.split()) for line in lines[position : position + len(extra)]]
        assert found == extra
        del lines[position : position + len(extra)]
    assert lines == wanted


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_dump_of_a_valid_file_reads_back_to_the_same_configuration(path: Path) -> None:
    config = load(path)
    text = dump(config, node_of(path))
    again = load(path, text=text)
    assert again == config
    assert relative(dump(again, node_of(path))).split("\n", 1)[1].count("\n") == relative(text).split(
        "\n", 1
    )[1].count("\n")


def lines_of_the_tools(path: Path) -> set[int]:
    lines: set[int] = set()
    for suffix in (".err84", ".err9", ".err934"):
        answer = path.with_suffix(suffix)
        if answer.exists():
            found = re.findall(rf"^{re.escape(path.name)}:(\d+): ", answer.read_text(), re.MULTILINE)
            lines.update(int(line) for line in found)
    return lines


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_mistake_is_refused_on_the_line_the_real_tool_names(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(path)
    error = caught.value
    assert error.exit_status == 10
    assert str(error).startswith(f"{path}:{error.line}: ")
    if path.stem in LINES:
        assert error.line == LINES[path.stem]
    else:
        assert error.line in lines_of_the_tools(path)


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        (
            "e01-unknown-option",
            ["'an option keyword' expected", "'protocl'", "section net", "Did you mean 'protocol'?"],
        ),
        ("e02-missing-semicolon", ["';' expected", "'timeout'"]),
        ("e03-out-of-range", ["('700')", "for timeout", "too big"]),
        ("e05-bad-enum", ["('discard-all')", "after-sb-0pri", "Allowed values are: disconnect |"]),
        ("e06-bad-bool", ["('maybe')", "allow-two-primaries", "not 'yes' or 'no'"]),
        ("e07-unterminated-string", ["Unterminated"]),
        (
            "e08-dup-resource",
            ["conflicting use of resource section 'x'", "e08-dup-resource.res:3", "first used here"],
        ),
        ("e09-dup-minor", ["device-minor:alpha:1", "e09-dup-minor.res:4"]),
        ("e10-dup-address", ["192.0.2.1:7001", "e10-dup-address.res:6"]),
        ("e11-dup-disk", ["disk:alpha:/dev/vg/x"]),
        ("e13-three-hosts", ["resource x", "connection-mesh"]),
        ("e14-no-address", ["on beta", "'address' keyword missing"]),
        ("e15-mixed-volumes", ["resource x", "implicit and explicit"]),
        ("e16-bad-device-name", ["/dev/drbd"]),
        ("e17-minor-mismatch", ["minor", "/dev/drbd5 minor 5"]),
        ("e18-port-range", ["port 70000", "[1..65535]"]),
        ("e19-include-missing", ["no-such-file.conf"]),
        ("e20-discard-unknown-node", ["discard-node-zeta", "after-sb-0pri"]),
        ("e21-token-too-long", ["Token too long"]),
        ("e23-stacked-unknown", ["resource top", "'nothere' not defined"]),
        ("e24-volume-sets-differ", ["on alpha", "volume 1 missing (present on beta)"]),
        ("e25-host-in-common", ["no host sections allowed"]),
        ("e26-ipv6-no-family", ["<ipv4 address>", "but got '['"]),
        ("e28-dup-net", ["conflicting use of net section 'x:net'"]),
        ("e29-missing-disk", ["on alpha", "'disk' keyword missing"]),
        ("e30-missing-device", ["on alpha", "'device' keyword missing"]),
        ("e31-bad-number", ["('ten')", "ping-int", "not a number"]),
        ("e32-mesh-unknown-host", ["resource x", "'omega'", "connection-mesh"]),
        ("e33-dup-node-id", ["node-id 'x:1'"]),
        ("e35-stray-token", ["global | common | resource | skip | include", "'hello'"]),
        ("e36-same-endpoint", ["192.0.2.1:7001"]),
        ("e37-no-hosts", ["resource x", "is missing"]),
        ("e38-module-version", ["9.0.16"]),
    ],
)
def test_mistake_is_named_in_the_message(stem: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(CORPUS / f"{stem}.res")
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("stem", "line", "word"),
    [
        ("e04-too-small", 5, "al-extents 5 is out of range; 67 is used"),
        ("e12-global-late", 7, "in front of any resource"),
        ("e22-eof", 3, "not closed"),
        ("e27-resync-after-unknown", 5, "'nowhere' mentioned in 'resync-after' option is not known"),
        ("e34-reserved-name", 3, "'all'"),
    ],
)
def test_tolerated_mistake_is_a_warning(stem: str, line: int, word: str) -> None:
    warnings = load(CORPUS / f"{stem}.res").warnings
    assert [warning.where.line for warning in warnings if word in warning.text] == [line]


@pytest.mark.parametrize("stem", ["e22-eof", "e34-reserved-name"])
def test_tolerated_mistake_when_strict_is_refused(stem: str) -> None:
    with pytest.raises(ConfigError):
        load(CORPUS / f"{stem}.res", strict=True)


def called_options(line: str) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in shlex.split(line) if word.startswith("--"))


UP = [
    path
    for path in VALID
    if path.with_suffix(".up84").exists() and path.stem != "v05b-volume-option-conflict"
]


@pytest.mark.parametrize("path", UP, ids=lambda path: path.stem)
def test_inherited_options_equal_those_the_8_4_tool_applies(path: Path) -> None:
    """`up84` holds the effective options: of the connection at `connect`, of each volume at `attach`."""
    config, node = load(path), node_of(path)
    minors: dict[str, tuple[str, int]] = {}
    for line in path.with_suffix(".up84").read_text().splitlines():
        words = line.split()
        if words[1] == "new-minor":
            minors[words[3]] = (words[2], int(words[4]))
        elif words[1] == "attach":
            name, number = minors[words[2]]
            me, _ = ends(config, name, node)
            options = disk_options_of(config, config.resources[name], me, number)
            wanted = called_options(line)
            for translated in ("resync-after", "fencing"):  # a minor there; a net option here
                wanted.pop(translated, None)
            assert {key: o.text for key, o in options.items() if key != "resync-after"} == wanted
        elif words[1] == "connect":
            me, peer = ends(config, words[2], node)
            net = net_options_of(config, config.resources[words[2]], me, peer)
            wanted = called_options(line)
            if wanted.get("after-sb-0pri") == "discard-remote":
                wanted["after-sb-0pri"] = "discard-node-beta"
            assert {key: o.text for key, o in net.items() if key != "fencing"} == wanted


def ends(config: Config, name: str, node: str) -> tuple[Host, Host]:
    resource = config.resources[name]
    hosts = resource.hosts
    mine = resources_of_node(config, node)
    assert resource in mine
    me = next(host for host in hosts if node in (*host.names, host.label))
    return me, next(host for host in hosts if host is not me)


RUNNABLE = [
    path
    for path in FILES
    if path in VALID and not path.stem.startswith(("v14", "v16", "v17", "v30", "v31", "v35", "e34"))
]


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_resource_of_a_valid_file_gives_a_view_for_its_node(path: Path) -> None:
    config, node = load(path), node_of(path)
    for resource in resources_of_node(config, node):
        view = resource_for_node(config, resource.name, node)
        assert view.me is not view.peer
        assert view.my_node_id != view.peer_node_id
        assert [volume.number for volume in view.volumes] == sorted(volume.number for volume in view.volumes)
