# SPDX-License-Identifier: Apache-2.0
"""Volumes as administrators see them: what fits together, names that stay, volfiles that load, options."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from repl.errors import ConfigError, UsageError
from repl.files import volfile
from repl.files.graph import Graph
from repl.files.heal.main import prune
from repl.files.translator import Context
from repl.files.translators.posix.names import handle_path
from repl.files.values import ROOT_GFID, gfid_text
from repl.files.volume import graphs, model, settings, store
from repl.files.volume.brick_paths import path_on_brick
from repl.files.volume.gluster import read_gluster
from repl.files.volume.model import Place, Volume

INFO = """type=2
count=4
status=1
sub_count=2
replica_count=2
disperse_count=0
version=9
volume-id=99675eb3-a292-4b9c-be5a-35daf966cd0c
username=0747f3a5-17e5-4203-aea4-7b9d24878bcc
snap-max-hard-limit=256
parent_volname=N/A
performance.cache-size=1MB
cluster.self-heal-daemon=on
nfs.disable=on
features.quota=on
"""


def places(*names: str, host: str = "h") -> list[Place]:
    return [Place(host, f"/b/{name}") for name in names]


def make(names: str = "1234", *, replica: int = 2, arbiter: bool = False, host: str = "127.0.0.1") -> Volume:
    return model.create("v", places(*names, host=host), itertools.count(24009), replica=replica, arbiter=arbiter)


def graph_of(text: str) -> Graph:
    return Graph(volfile.parse(text), Context())


def test_volume_the_same_words_give_the_same_volume_on_every_host() -> None:
    assert make() == make()
    assert make().id != make("1243").id


@pytest.mark.parametrize(
    ("names", "replica", "arbiter", "kind", "count"),
    [("12", 1, False, "Distribute", "2"), ("12", 2, False, "Replicate", "1 x 2 = 2"),
     ("1234", 2, False, "Distributed-Replicate", "2 x 2 = 4"), ("123", 3, True, "Replicate", "1 x (2 + 1) = 3")],
)  # fmt: skip
def test_volume_kinds_are_called_as_gluster_calls_them(
    names: str, replica: int, arbiter: bool, kind: str, count: str
) -> None:
    volume = make(names, replica=replica, arbiter=arbiter)
    assert (volume.kind, volume.count_text) == (kind, count)


def test_volume_numbers_of_bricks_and_sets_are_never_given_twice() -> None:
    volume = make("123456")
    volume.drop_sets(volume.sets_of([Place("127.0.0.1", "/b/3"), Place("127.0.0.1", "/b/4")]))
    volume.add_sets(places("7", "8"), itertools.count(24100))
    assert [brick.number for brick in volume.bricks] == [0, 1, 4, 5, 6, 7]
    assert [volume.set_name(one) for one in volume.sets] == ["v-replicate-0", "v-replicate-2", "v-replicate-3"]


def test_volume_a_replaced_brick_keeps_its_name_in_the_counters() -> None:
    volume = make()
    before = volume.replace(Place("127.0.0.1", "/b/2"), Place("x", "/c"), 24100)
    assert (before.path, volume.bricks[1].number, str(volume.bricks[1])) == ("/b/2", 1, "x:/c")
    assert [brick.is_fresh for brick in volume.bricks] == [False, True, False, False]


def test_volume_copies_are_added_and_taken_away_in_every_set() -> None:
    volume = make()
    volume.add_copies(3, places("5", "6"), itertools.count(24100), arbiter=True)
    assert [brick.path for brick in volume.bricks] == ["/b/1", "/b/2", "/b/5", "/b/3", "/b/4", "/b/6"]
    assert [brick.is_arbiter for brick in volume.bricks] == [False, False, True] * 2
    assert [brick.is_fresh for brick in volume.bricks] == [False, False, True] * 2
    with pytest.raises(UsageError, match="arbiter has to go first"):
        volume.drop_copies(2, [Place("127.0.0.1", "/b/1"), Place("127.0.0.1", "/b/3")])
    volume.drop_copies(2, places("5", "6"))
    assert volume.count_text == "2 x 2 = 4" and not volume.has_arbiter


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: make("123"), "not a multiple of replica count"),
        (lambda: make("11"), "duplicate exports"),
        (lambda: make("1234", replica=4, arbiter=True), "arbiter needs replica 3"),
        (lambda: model.create("a/b", places("1"), itertools.count(1)), "cannot be the name"),
        (lambda: model.create("v", [Place("h", "/b"), Place("h", "/b/c")], itertools.count(1)), "inside another"),
        (lambda: make().sets_of([Place("127.0.0.1", "/b/1")]), "incorrect brick count of 1 for replica 2"),
        (lambda: make("12").drop_sets(make("12").sets), "not allowed"),
        (lambda: make("12", replica=1).replace(Place("127.0.0.1", "/b/1"), Place("x", "/c"), 1), "only copy"),
        (lambda: make().find(Place("x", "/b/1")), "no brick of volume v"),
    ],
)  # fmt: skip
def test_volume_what_does_not_fit_is_refused(work: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        work()  # type: ignore[operator]


def test_volume_description_survives_the_file(tmp_path: Path) -> None:
    folder = store.Store(tmp_path)
    volume = make("123", replica=3, arbiter=True)
    with folder.changing():
        folder.save(volume)
    assert folder.load("v") == volume and folder.names() == ["v"]
    with pytest.raises(store.NoVolume, match="Volume w does not exist"):
        folder.load("w")
    folder.path("v", "volume.json").write_text('{"format": 1}')
    with pytest.raises(ConfigError, match="does not describe a volume"):
        folder.load("v")


def test_volume_is_found_by_the_spellings_of_mount(tmp_path: Path) -> None:
    store.Store(tmp_path).save(make())
    expected = (tmp_path / "volumes/v/client.vol", "v")
    assert all(store.client_volfile(name, tmp_path) == expected for name in ("v", "h:/v", "h:v", "[::1]:/v"))
    assert store.client_volfile("/etc/x.vol", tmp_path) is None
    assert store.client_volfile("./x.vol", tmp_path) is None


# ---- volfiles ----


@pytest.mark.parametrize(("names", "replica", "arbiter"), [("12", 1, False), ("1234", 2, False), ("123456", 3, True)])
def test_volume_client_volfile_loads_with_glusters_names(names: str, replica: int, arbiter: bool) -> None:
    volume = make(names, replica=replica, arbiter=arbiter)
    found = volfile.parse(graphs.client_volfile(volume))
    graph = Graph(found, Context())
    assert graph.top.name == "v" and graph.top.TYPE == "debug/io-stats"
    assert graph.translators["v-dht"].TYPE == "cluster/distribute"
    if replica > 1:
        options = graph.translators["v-replicate-0"].options
        names_of_set = tuple(f"v-client-{k}" for k in range(replica))
        assert (options["afr-pending-xattr"], options["arbiter-count"]) == (names_of_set, int(arbiter))
        assert len(prune(found).volumes) == len(volume.bricks) + len(volume.sets)


def test_volume_brick_volfile_has_what_clients_attach_to() -> None:
    volume = make("123", replica=3, arbiter=True)
    kinds = [part.type for part in volfile.parse(graphs.brick_volfile(volume, volume.bricks[2], sharing=3)).volumes]
    assert kinds[:3] == ["storage/posix", "features/arbiter", "features/locks"]
    graph = graph_of(graphs.brick_volfile(volume, volume.bricks[0], sharing=3))
    server = graph.translators["v-server"]
    assert server.options.matching("auth.addr.*.allow") == {"/b/1": ("127.*", "::1")}
    assert server.options["transport.socket.listen-port"] == 24009
    assert graph.translators["v-posix"].options["shared-brick-count"] == 3


@pytest.mark.parametrize(
    ("host", "listens", "allows"),
    [("127.0.0.1", "127.0.0.1", "127.*,::1"), ("localhost", "127.0.0.1", "127.*,::1"),
     ("192.0.2.7", "192.0.2.7", "*"), ("node1", "*", "*")],
)  # fmt: skip
def test_volume_bricks_listen_where_their_host_says(host: str, listens: str, allows: str) -> None:
    volume = make("12", host=host)
    server = volfile.parse(graphs.brick_volfile(volume, volume.bricks[0])).top
    assert server.options["transport.socket.bind-address"] == listens
    assert server.options["auth.addr./b/1.allow"] == allows


def test_volume_options_reach_the_translators_they_are_of() -> None:
    volume = make()
    volume.options |= {"network.ping-timeout": "9", "cluster.quorum-type": "none", "cluster.min-free-disk": "5%",
                       "auth.allow": "192.0.2.*", "storage.reserve": "3", "server.root-squash": "on",
                       "cluster.subvols-per-directory": "1"}  # fmt: skip
    client = graph_of(graphs.client_volfile(volume)).translators
    assert client["v-client-0"].options["ping-timeout"] == 9.0
    assert client["v-replicate-1"].options["quorum-type"] == "none"
    assert client["v-dht"].options["directory-layout-spread"] == 1
    brick = graph_of(graphs.brick_volfile(volume, volume.bricks[0])).translators
    assert brick["v-server"].options.matching("auth.addr.*.allow") == {"/b/1": ("192.0.2.*",)}
    assert brick["v-server"].options["root-squash"] and brick["v-posix"].options["reserve"].value == 3.0


def test_volume_layers_that_are_there_can_be_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "is_there", lambda kind: True)

    def layers(volume: Volume) -> list[str]:
        parts = volfile.parse(graphs.client_volfile(volume)).volumes
        return [part.name for part in parts if part.type.startswith("performance/")]

    volume = make()
    assert layers(volume) == ["v-write-behind", "v-quick-read", "v-md-cache"]
    volume.options |= {"performance.stat-prefetch": "off", "performance.io-cache": "on", "performance.read-ahead": "1",
                       "performance.client-io-threads": "on"}  # fmt: skip
    assert layers(volume) == ["v-write-behind", "v-read-ahead", "v-io-cache", "v-quick-read", "v-io-threads"]


def test_volume_sets_that_leave_get_nothing_new() -> None:
    volume = make()
    volume.sets[1].is_leaving = True
    assert graph_of(graphs.client_volfile(volume)).translators["v-dht"].options["decommissioned-bricks"] == (
        "v-replicate-1"
    )


# ---- options ----


def test_settings_every_known_key_means_something() -> None:
    for key in settings.known():
        found = settings.need(key)
        assert found.targets or found.option or not found.has_effect, key


@pytest.mark.parametrize(
    ("key", "message"),
    [("network.ping-timeot", "Did you mean network.ping-timeout"), ("quorum-type", "Did you mean cluster.quorum-type"),
     ("storage.directory", "does not exist"), ("cluster.afr-pending-xattr", "does not exist")],
)  # fmt: skip
def test_settings_unknown_keys_are_refused_with_the_nearest(key: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings.need(key)
    assert message in str(caught.value)


def test_settings_values_are_checked() -> None:
    assert settings.check("cluster.favorite-child-policy", "mtime").targets[0][0] == "cluster/replicate"
    with pytest.raises(UsageError, match="option network.ping-timeout cannot be 'soon'"):
        settings.check("network.ping-timeout", "soon")
    with pytest.raises(UsageError, match="on or off"):
        settings.check("performance.write-behind", "maybe")
    assert not settings.check("nfs.disable", "on").has_effect


# ---- volumes of GlusterFS ----


def glusterd(folder: Path, info: str = INFO, *, names: str = "0123") -> Path:
    vols = folder / "vols/d1"
    (vols / "bricks").mkdir(parents=True)
    lines = ""
    for number, name in enumerate(names):
        text = f"vm:-data-my-brick{name}"
        (vols / "bricks" / text).write_text(
            f"hostname=vm\npath=/data/my-brick{name}\nlisten-port=0\nbrick-id=d1-client-{name}\n"
        )
        lines += f"brick-{number}={text}\n"
    (vols / "info").write_text(info + lines)
    return folder


def test_gluster_volume_is_read_from_glusterds_files(tmp_path: Path) -> None:
    found = read_gluster(glusterd(tmp_path), "d1")
    assert found.places == [Place("vm", f"/data/my-brick{n}") for n in range(4)]
    assert (found.id, found.replica, found.has_arbiter) == ("99675eb3-a292-4b9c-be5a-35daf966cd0c", 2, False)
    assert found.options == {"performance.cache-size": "1MB", "cluster.self-heal-daemon": "on"} or found.options == {
        "cluster.self-heal-daemon": "on"
    }
    assert {"nfs.disable", "features.quota"} <= set(found.left_out)


@pytest.mark.parametrize(
    ("info", "names", "message"),
    [(INFO.replace("disperse_count=0", "disperse_count=3"), "0123", "disperse_count=3"),
     (INFO, "0132", "in the counters on disk"), ("count=x", "0123", "not as glusterd writes it")],
)  # fmt: skip
def test_gluster_volume_that_cannot_be_taken_over_is_refused(
    tmp_path: Path, info: str, names: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_gluster(glusterd(tmp_path, info, names=names), "d1")


# ---- paths on bricks ----


def test_brick_paths_follow_handles_and_names(tmp_path: Path) -> None:
    directory, file, lost = (bytes([k]) * 16 for k in (0xA1, 0xA2, 0xA3))
    handle = tmp_path / handle_path(directory)
    handle.parent.mkdir(parents=True)
    handle.symlink_to(f"../../00/00/{gfid_text(ROOT_GFID)}/folder")
    other = tmp_path / handle_path(file)
    other.parent.mkdir(parents=True)
    other.touch()
    os.setxattr(other, "trusted.gfid2path.0123456789abcdef", f"{gfid_text(directory)}/name".encode())
    assert path_on_brick(tmp_path, ROOT_GFID) == "/"
    assert path_on_brick(tmp_path, directory) == "/folder"
    assert path_on_brick(tmp_path, file) == "/folder/name"
    assert path_on_brick(tmp_path, lost) == f"<gfid:{gfid_text(lost)}>"
