# SPDX-License-Identifier: Apache-2.0
"""The rules of the configuration reader, one at a time: tokens, values, inheritance, host matching, views."""

from __future__ import annotations

from pathlib import Path

import pytest

from repl.config import Config, NodeView, dump, load, resource_for_node, resources_of_node
from repl.config.model import AddressFamily, MetaDiskKind, names_match
from repl.config.options import TABLES, Kind, Support, Unit, ValueRefused, parse_number, parse_value
from repl.errors import ConfigError, UsageError
from repl.limits import CONFIG_FILE_BYTES_MAX, CONFIG_INCLUDE_DEPTH_MAX

FILE = Path("test.res")
VOLUME = "device minor 1; disk /dev/vg/x; meta-disk internal;"
HOSTS = "on alpha { address 192.0.2.1:7001; } on beta { address 192.0.2.2:7001; }"


def read(text: str) -> Config:
    return load(FILE, text=text)


def resource(body: str, *, before: str = "", volume: str = VOLUME, hosts: str = HOSTS) -> str:
    return f"{before}\nresource x {{\n{body}\n{volume}\n{hosts}\n}}\n"


def view(
    body: str, *, before: str = "", node: str = "alpha", volume: str = VOLUME, hosts: str = HOSTS
) -> NodeView:
    return resource_for_node(read(resource(body, before=before, volume=volume, hosts=hosts)), "x", node)


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return caught.value


# ---------------------------------------------------------------------------------------------- tokens


def test_empty_file_is_an_empty_configuration() -> None:
    config = read("")
    assert (dict(config.resources), config.common, config.warnings) == ({}, None, ())
    assert dump(config, "alpha") == "# test.res\n"


def test_comment_and_crlf_and_missing_spaces_are_white_space() -> None:
    assert read(resource("net{timeout 50;}#glued\r\n\r")) == read(resource("net { timeout 50; }"))


def test_line_numbers_count_newlines_in_comments_and_skipped_sections() -> None:
    assert refused('# one\nskip x {\n # } brace\n "}" \n}\n\nnonsense;').line == 7


def test_escaped_quotes_and_backslashes_are_taken_literally() -> None:
    assert view(r'net { shared-secret "a\"b\\c\n"; }').net.shared_secret == 'a"b\\cn'


@pytest.mark.parametrize("word", ["disk", "port", "host", "minor", "on", "yes", "path", "volume"])
def test_keyword_as_a_name_without_quotes_is_refused_with_the_remedy(word: str) -> None:
    error = refused(resource("").replace("resource x", f"resource {word}"))
    assert error.line == 2
    assert f'"{word}"' in error.advice


def test_our_own_section_names_are_no_keywords() -> None:
    assert "nbd" in read(resource("").replace("resource x", "resource nbd")).resources


def test_nine_digit_word_as_minor_is_refused() -> None:
    assert "minor" in refused(resource("", volume=VOLUME.replace("minor 1", "minor 123456789"))).text


def test_quoted_usage_count_is_refused() -> None:
    assert refused('global { usage-count "no"; }').line == 1


def test_word_of_128_characters_is_accepted() -> None:
    read(resource("").replace("resource x", "resource " + "x" * 128))


def test_quoted_word_of_256_characters_is_refused() -> None:
    assert "Token too long" in refused(resource(f'handlers {{ split-brain "{"x" * 256}"; }}')).text


def test_unexpected_character_is_refused_on_its_line() -> None:
    error = refused("global {\n usage-count no; @ }")
    assert (error.line, "'@'" in error.text) == (2, True)


def test_stray_closing_brace_is_refused() -> None:
    assert refused("global { }\n}").line == 2


def test_deep_nesting_is_refused() -> None:
    assert "nested" in refused("{" * 100_000).text


def test_deep_nesting_in_a_skipped_section_is_accepted() -> None:
    read("skip a " + "{" * 10_000 + "}" * 10_000)


def test_skipped_statement_inside_a_host_is_left_out() -> None:
    hosts = HOSTS.replace("7001; }", "7001; skip volume 7 { what ever; } }", 1)
    assert read(resource("", hosts=hosts)) == read(resource(""))


# ----------------------------------------------------------------------------------------------- files


def test_file_of_one_mebibyte_is_accepted_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.res"
    path.write_text("#" * CONFIG_FILE_BYTES_MAX)
    load(path)
    path.write_text("#" * (CONFIG_FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="larger than"):
        load(path)


def test_text_larger_than_the_limit_is_refused() -> None:
    assert "larger than" in refused("#" * (CONFIG_FILE_BYTES_MAX + 1)).text


def test_missing_main_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Failed to open"):
        load(tmp_path / "absent.conf")


def test_files_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text('include "b.conf"; include "./a.conf";' + resource(""))
    (tmp_path / "b.conf").write_text('include "a.conf";')
    config = load(tmp_path / "a.conf")
    assert list(config.resources) == ["x"]
    assert config.files == (str(tmp_path / "a.conf"), str(tmp_path / "b.conf"))


def write_chain(directory: Path, length: int) -> Path:
    for index in range(length):
        (directory / f"{index}.conf").write_text(f"include {index + 1}.conf;")
    (directory / f"{length}.conf").write_text("")
    return directory / "0.conf"


def test_includes_to_the_depth_limit_are_accepted(tmp_path: Path) -> None:
    assert len(load(write_chain(tmp_path, CONFIG_INCLUDE_DEPTH_MAX)).files) == CONFIG_INCLUDE_DEPTH_MAX + 1


def test_includes_beyond_the_depth_limit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nested"):
        load(write_chain(tmp_path, CONFIG_INCLUDE_DEPTH_MAX + 1))


def test_include_inside_a_section_is_refused() -> None:
    assert refused(resource('include "a";')).line == 3


def test_error_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("\ninclude b.conf;")
    (tmp_path / "b.conf").write_text("\n\nnonsense;")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "a.conf")
    assert (caught.value.file, caught.value.line) == (str(tmp_path / "b.conf"), 3)


# ---------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "unit", "number"),
    [
        ("4096", Unit.KIB_PER_SECOND, 4096),
        ("1s", Unit.KIB_PER_SECOND, 1),
        ("3s", Unit.KIB_PER_SECOND, 2),
        ("40M", Unit.KIB_PER_SECOND, 40 * 1024),
        ("1G", Unit.KIB_PER_SECOND, 1 << 20),
        ("20G", Unit.SECTORS, 20 << 21),
        ("2048s", Unit.SECTORS, 2048),
        ("1k", Unit.SECTORS, 2),
        ("512k", Unit.BYTES, 512 << 10),
        ("2M", Unit.BYTES, 2 << 20),
        ("50", Unit.TENTHS, 50),
        ("2K", Unit.NONE, 2048),
    ],
)
def test_number_with_a_suffix_is_turned_into_the_unit_of_the_option(
    text: str, unit: Unit, number: int
) -> None:
    assert parse_number(text, unit) == number


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5", "1T", "10kB", "0x10", "\u0661"])
def test_text_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueRefused, match="not a number"):
        parse_number(text, Unit.NONE)


NUMBERS = [spec for table in TABLES.values() for spec in table.values() if spec.kind is Kind.NUMBER]


@pytest.mark.parametrize("spec", NUMBERS, ids=lambda spec: f"{spec.section}-{spec.name}")
def test_number_option_accepts_its_limits_and_refuses_the_next_value(spec) -> None:  # type: ignore[no-untyped-def]
    assert parse_value(spec, str(spec.minimum)) == spec.minimum
    assert parse_value(spec, str(spec.maximum)) == spec.maximum
    assert spec.minimum <= spec.default <= spec.maximum
    if spec.is_clamped:
        assert parse_value(spec, str(spec.maximum + 1)) == spec.maximum
    else:
        with pytest.raises(ValueRefused, match="too big"):
            parse_value(spec, str(spec.maximum + 1))


def test_every_enum_default_is_a_value_of_the_option() -> None:
    for table in TABLES.values():
        for spec in table.values():
            if spec.kind is Kind.ENUM and spec.default != "":
                assert spec.default in spec.values


def test_protocol_in_lower_case_is_accepted() -> None:
    assert view("protocol b;").net.protocol == "B"


def test_secret_of_64_bytes_is_refused_without_being_shown() -> None:
    error = refused(resource(f"net {{ shared-secret {'s' * 64}; }}"))
    assert "too long" in error.text
    assert "ssss" not in str(error)


def test_secret_is_not_in_the_representation_of_a_view() -> None:
    assert "hunter2" not in repr(view("net { shared-secret hunter2; }"))


@pytest.mark.parametrize(
    ("text", "value"),
    [("use-rle;", True), ("use-rle yes;", True), ("use-rle no;", False), ("no-use-rle;", False)],
)
def test_boolean_spellings(text: str, value: bool) -> None:
    assert view(f"net {{ {text} }}").net.use_rle is value


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ("disk { resync-rte 1; }", "(section disk) Did you mean 'resync-rate'?"),
        ("options { auto-promot; }", "(section options) Did you mean 'auto-promote'?"),
        ("nbd { max-client 3; }", "(section nbd) Did you mean 'max-clients'?"),
        ("handlers { splitbrain x; }", "Did you mean 'split-brain'?"),
        ("nett { }", "Did you mean 'net'?"),
        ("disk { zzzzz 1; }", "(section disk)"),
    ],
)
def test_unknown_word_gets_a_hint(body: str, hint: str) -> None:
    error = refused(resource(body))
    assert error.line == 3
    assert hint in error.advice


def test_repeated_option_takes_the_last_value_and_warns() -> None:
    config = read(resource("net { timeout 40; timeout 50; }"))
    assert resource_for_node(config, "x", "alpha").net.timeout_ms == 5000
    assert ["repeated" in str(warning) for warning in config.warnings] == [True]


# --------------------------------------------------------------------------------------------- support


def test_option_without_effect_is_reported_once() -> None:
    text = resource(
        "net { unplug-watermark 2; } disk { max-bio-bvecs 1; }",
        before="common { net { unplug-watermark 3; } }",
    )
    texts = [warning.text for warning in read(text).warnings]
    assert len(texts) == 2
    assert all("no effect" in text for text in texts)


def test_option_for_later_is_reported_with_its_place() -> None:
    (warning,) = read(resource("net { socket-check-timeout 5; }")).warnings
    assert str(warning) == "test.res:3: 'socket-check-timeout 5' (net) is not implemented yet and has no effect."


def test_quorum_says_why_it_has_no_effect() -> None:
    text = resource("options { quorum majority; } handlers { quorum-lost /bin/true; disconnected /bin/true; }")
    texts = [str(warning) for warning in read(text).warnings]
    assert len(texts) == 2 and "'quorum majority' (options) has no effect: quorum is DRBD 9's" in texts[0]
    assert "'quorum-lost' (handlers) has no effect: quorum is DRBD 9's" in texts[1]


def test_option_for_later_with_its_default_is_not_reported() -> None:
    body = "net { after-sb-0pri disconnect; fencing dont-care; tcp-cork; } disk { on-io-error detach; }"
    assert read(resource(body)).warnings == ()


def test_supported_options_are_not_reported() -> None:
    body = """
        net { protocol C; timeout 60; ping-int 10; ping-timeout 5; connect-int 10; ko-count 7;
              max-epoch-size 20;
              max-buffers 32; sndbuf-size 1M; rcvbuf-size 1M; cram-hmac-alg sha1; shared-secret a; use-rle;
              strict-flush no; }
        disk { size 1G; on-io-error detach; disk-flushes no; disk-drain no; md-flushes no; al-extents 127;
               resync-rate 1M; c-plan-ahead 1; c-delay-target 2; c-fill-target 3; c-max-rate 4M;
               c-min-rate 5; io direct; }
        options { on-no-data-accessible suspend-io; auto-promote no; }
        nbd { listen 127.0.0.1:10809; max-clients 3; }
    """
    assert read(resource(body)).warnings == ()


@pytest.mark.parametrize("text", ["tls yes"])
def test_option_that_would_break_the_wire_is_refused_only_when_the_resource_is_used(text: str) -> None:
    config = read(resource(f"net {{ {text}; }}"))
    with pytest.raises(ConfigError, match="not supported yet") as caught:
        resource_for_node(config, "x", "alpha")
    assert caught.value.line == 3


@pytest.mark.parametrize(
    "net",
    [
        "fencing resource-and-stonith; protocol A",
        "on-congestion pull-ahead; protocol C",
        "allow-two-primaries; protocol B",
    ],
)
def test_combination_the_module_refuses_is_refused_when_the_resource_is_used(net: str) -> None:
    config = read(resource(f"net {{ {net}; }}"))
    with pytest.raises(ConfigError, match="needs protocol"):
        resource_for_node(config, "x", "alpha")


def test_timeout_not_below_ping_int_is_a_warning() -> None:
    texts = [warning.text for warning in read(resource("net { timeout 200; }")).warnings]
    assert [("below connect-int" in texts[0]), ("below ping-int" in texts[1])] == [True, True]


def test_every_option_has_a_support_level() -> None:
    assert {spec.support for table in TABLES.values() for spec in table.values()} == set(Support)


# ----------------------------------------------------------------------------------------- inheritance


def test_most_specific_level_of_a_disk_option_wins() -> None:
    text = """
        common { disk { al-extents 101; c-min-rate 1; resync-rate 1; c-max-rate 1; } }
        resource x {
            disk { c-min-rate 2; resync-rate 2; c-max-rate 2; }
            volume 0 { device minor 1; disk /dev/a; disk { resync-rate 3; c-max-rate 3; } }
            on alpha { address 192.0.2.1:7001; volume 0 { disk { c-max-rate 4; } } }
            on beta { address 192.0.2.2:7001; }
        }"""
    config = read(text)
    mine = resource_for_node(config, "x", "alpha").volumes[0].options
    other = resource_for_node(config, "x", "beta").volumes[0].options
    assert (mine.al_extents, mine.c_min_rate_kib_s, mine.resync_rate_kib_s, mine.c_max_rate_kib_s) == (
        101,
        2,
        3,
        4,
    )
    assert other.c_max_rate_kib_s == 3


def test_connection_options_win_over_resource_options() -> None:
    hosts = HOSTS.replace("{ address 192.0.2.1", "{ node-id 0; address 192.0.2.1").replace(
        "{ address 192.0.2.2", "{ node-id 1; address 192.0.2.2"
    )
    body = """net { timeout 40; ping-int 9; } disk { c-max-rate 7; }
        connection { host alpha port 7100; host beta address 198.51.100.2:7200; net { timeout 50; }
                     disk { c-max-rate 8; } volume 0 { disk { c-max-rate 9; } } }"""
    found = view(body, hosts=hosts)
    assert (found.net.timeout_ms, found.net.ping_int_ms) == (5000, 9000)
    assert found.volumes[0].options.c_max_rate_kib_s == 9
    assert (found.my_address.endpoint, found.peer_address.endpoint) == ("192.0.2.1:7100", "198.51.100.2:7200")


def test_template_replaces_the_common_section(tmp_path: Path) -> None:
    (tmp_path / "slow.tmpl").write_text("common { net { timeout 20; } }")
    text = resource("template-file slow.tmpl;", before="common { net { timeout 30; ko-count 1; } }")
    net = resource_for_node(load(tmp_path / "main.res", text=text), "x", "alpha").net
    assert (net.timeout_ms, net.ko_count) == (2000, 7)


def test_volume_statements_of_the_host_win_over_those_of_the_resource() -> None:
    hosts = HOSTS.replace("7001; }", "7001; disk /dev/own; }", 1)
    assert view("", hosts=hosts).volumes[0].disk_path == "/dev/own"
    assert view("", hosts=hosts, node="beta").volumes[0].disk_path == "/dev/vg/x"


def test_missing_meta_disk_means_internal() -> None:
    found = view("", volume="device minor 1; disk /dev/x;")
    assert found.volumes[0].meta_disk.kind is MetaDiskKind.INTERNAL


def test_handlers_and_startup_are_inherited() -> None:
    found = view(
        "startup { degr-wfc-timeout 90; become-primary-on alpha; }",
        before='common { startup { wfc-timeout 60; } handlers { outdate-peer "/bin/true x"; } }',
    )
    assert (found.startup.wfc_timeout_s, found.startup.degr_wfc_timeout_s) == (60, 60)
    assert found.startup.become_primary_on == ("alpha",)
    assert found.handlers == {"fence-peer": "/bin/true x"}


def test_view_without_options_has_the_defaults_in_engine_units() -> None:
    found = view("")
    net, disk = found.net, found.volumes[0].options
    assert (net.protocol, net.timeout_ms, net.ping_int_ms, net.ping_timeout_ms) == ("C", 6000, 10000, 500)
    assert (net.connect_int_ms, net.ko_count, net.max_epoch_size, net.max_buffers_pages) == (
        10000,
        7,
        2048,
        2048,
    )
    assert (net.strict_flush, net.use_rle, net.shared_secret, net.cram_hmac_alg) == (True, True, "", "")
    assert (disk.size_sectors, disk.al_extents, disk.resync_rate_kib_s, disk.io) == (0, 1237, 250, "")
    assert (disk.c_plan_ahead_ms, disk.c_delay_target_ms, disk.c_fill_target_sectors) == (2000, 1000, 100)
    assert (disk.c_max_rate_kib_s, disk.c_min_rate_kib_s, disk.on_io_error) == (102400, 250, "detach")
    assert (found.options.on_no_data_accessible, found.options.auto_promote) == ("io-error", True)
    assert (found.options.handler_timeout_s, found.options.busy_poll_us) == (0, 200)
    assert (found.nbd.listen, found.nbd.max_clients) == ((), 64)


def test_view_has_sizes_and_rates_in_engine_units() -> None:
    found = view("net { sndbuf-size 2M; } disk { size 1G; resync-rate 40M; c-fill-target 1M; io buffered; }")
    disk = found.volumes[0].options
    assert found.net.sndbuf_size_bytes == 2 << 20
    assert (disk.size_sectors, disk.resync_rate_kib_s, disk.c_fill_target_sectors) == (
        1 << 21,
        40 << 10,
        2048,
    )
    assert disk.io == "buffered"


# ----------------------------------------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("name", "node", "matches"),
    [
        ("alpha", "alpha", True),
        ("Alpha", "aLPHA", True),
        ("alpha", "alpha.example.org", True),
        ("alpha.example.org", "alpha", True),
        ("alpha.example.org", "alpha.example.com", False),
        ("alpha", "alpha2", False),
    ],
)
def test_host_name_rule(name: str, node: str, matches: bool) -> None:
    assert names_match(name, node) is matches


def test_resource_of_other_hosts_is_ignored_on_this_node() -> None:
    config = read(resource(""))
    assert resources_of_node(config, "gamma") == ()
    assert [found.name for found in resources_of_node(config, "ALPHA.example.org")] == ["x"]


def test_resource_of_other_hosts_by_name_is_a_usage_error_that_lists_them() -> None:
    with pytest.raises(UsageError) as caught:
        resource_for_node(read(resource("")), "x", "gamma")
    assert "alpha, beta" in caught.value.advice


def test_unknown_resource_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'y' not defined"):
        resource_for_node(read(resource("")), "y", "alpha")


def test_floating_host_is_found_by_an_own_address() -> None:
    hosts = "floating 192.0.2.1:7001; floating ipv6 [2001:db8::2]:7001;"
    found = resource_for_node(read(resource("", hosts=hosts)), "x", "gamma", addresses=["2001:db8::2"])
    assert found.my_address.family is AddressFamily.IPV6
    assert found.peer_address.endpoint == "192.0.2.1:7001"


def test_two_nodes_on_one_loopback_address_get_different_ids() -> None:
    hosts = "on alpha { address 127.0.0.1:7001; } on beta { address 127.0.0.1:7002; }"
    mine, other = view("", hosts=hosts), view("", hosts=hosts, node="beta")
    assert {mine.my_node_id, mine.peer_node_id} == {0, 1}
    assert mine.my_node_id == other.peer_node_id


def test_loopback_address_may_be_used_by_two_resources() -> None:
    hosts = "on alpha { address 127.0.0.1:7001; } on beta { address 127.0.0.1:7002; }"
    second = resource("", hosts=hosts, volume="device minor 2; disk /dev/y;").replace(
        "resource x", "resource y"
    )
    assert len(read(resource("", hosts=hosts) + second).resources) == 2


def test_both_ends_on_the_same_loopback_endpoint_are_refused() -> None:
    hosts = "on alpha { address 127.0.0.1:7001; } on beta { address 127.0.0.1:7001; }"
    assert "conflicting use of IP" in refused(resource("", hosts=hosts)).text


def test_shared_meta_disk_index_is_refused() -> None:
    second = resource("", volume="device minor 2; disk /dev/y; meta-disk /dev/m[0];").replace(
        "resource x", "resource y"
    )
    second = second.replace(":7001", ":7002")
    text = resource("", volume="device minor 1; disk /dev/x; meta-disk /dev/m[0];") + second
    assert "conflicting use of meta-disk" in refused(text).text


def test_more_than_one_peer_is_refused_when_the_resource_is_used() -> None:
    hosts = " ".join(f"on h{i} {{ node-id {i}; address 192.0.2.{i}:7001; }}" for i in range(1, 4))
    config = read(resource("connection-mesh { hosts h1 h2 h3; }", hosts=hosts))
    with pytest.raises(ConfigError, match="2 peers"):
        resource_for_node(config, "x", "h1")


def test_stacked_resource_lies_on_the_device_of_the_lower_one() -> None:
    text = (
        resource("")
        + """resource top {
        stacked-on-top-of x { device minor 9; address 203.0.113.1:7009; }
        on gamma { device minor 9; disk /dev/g; address 203.0.113.9:7009; } }"""
    )
    config = read(text)
    assert resource_for_node(config, "top", "alpha").volumes[0].disk_path == "lower:x/0"
    assert resource_for_node(config, "top", "gamma").peer_address.host == "203.0.113.1"


def test_unsafe_resource_name_is_refused_when_the_resource_is_used() -> None:
    config = read(resource("").replace("resource x", 'resource "../x"'))
    with pytest.raises(ConfigError, match="cannot be used"):
        resource_for_node(config, "../x", "alpha")


def test_peer_behind_a_proxy_is_reached_through_the_own_proxy() -> None:
    hosts = " ".join(
        f"on {name} {{ address 127.0.0.1:7250; "
        f"proxy on {name} {{ inside 127.0.0.1:7251; outside 192.0.2.{i}:7252; }} }}"
        for i, name in enumerate(("alpha", "beta"), 1)
    )
    assert view("", hosts=hosts).peer_address.endpoint == "127.0.0.1:7251"


def test_discard_node_becomes_local_or_remote() -> None:
    body = "net { after-sb-0pri discard-node-beta; }"
    assert view(body).net.after_sb_0pri == "discard-remote"
    assert view(body, node="beta").net.after_sb_0pri == "discard-local"


def test_resync_after_a_resource_of_two_volumes_is_ambiguous() -> None:
    second = """resource y { volume 0 { device minor 2; disk /dev/y0; }
        volume 1 { device minor 3; disk /dev/y1; }
        on alpha { address 192.0.2.1:7002; } on beta { address 192.0.2.2:7002; } }"""
    error = refused(resource("disk { resync-after y; }") + second)
    assert (error.line, error.advice) == (3, "Write 'y/0'.")


# ------------------------------------------------------------------------------------------------- nbd


def test_nbd_section_takes_several_listeners() -> None:
    nbd = view(
        "nbd { listen 127.0.0.1:10809; listen ipv6 [::1]:10810; listen unix /run/x.sock; max-clients 3;"
        " negotiation-timeout 2; }"
    ).nbd
    assert [str(listen) for listen in nbd.listen] == ["127.0.0.1:10809", "[::1]:10810", "unix /run/x.sock"]
    assert (nbd.max_clients, nbd.negotiation_timeout_s) == (3, 2.0)


def test_nbd_listeners_of_the_resource_replace_those_of_common() -> None:
    before = "common { nbd { listen 127.0.0.1:1; max-clients 5; } }"
    nbd = view("nbd { listen 127.0.0.1:2; }", before=before).nbd
    assert ([str(listen) for listen in nbd.listen], nbd.max_clients) == (["127.0.0.1:2"], 5)


def test_nbd_socket_path_must_be_absolute() -> None:
    assert "absolute" in refused(resource("nbd { listen unix x.sock; }")).text


def test_arbiter_section_is_kept_and_reported() -> None:
    config = read(resource("arbiter { address somewhere; }"))
    assert "arbiter" in config.warnings[0].text
    assert load(FILE, text=dump(config, "alpha")) == config
