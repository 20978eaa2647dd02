# SPDX-License-Identifier: Apache-2.0
"""A client that makes, replaces, renames, links, changes and removes names in a folder of its own, and knows them.

For each name it knows what may be there: one thing, after an operation that failed two.  A name of which it is not
certain is only replaced or removed, which makes it certain again if that is acknowledged; ENOENT is no news of it
(decision 0070).  What a failed rename was to move must be under one of its two names.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak_files.worker import Failed, FileWorker, World, read_whole, write_whole

FOLDERS = ("", "s0/", "s1/")
NAMES = 5  # in each
DIRECTORIES = 5
SIZES = (1, 1, 20, 200, 3000)  # lines
ALWAYS = "always"  # a name that is replaced only
TAG = "user.soak"
MODES = (0o600, 0o640, 0o644, 0o755)
ABSENT = 0
PAGE_BYTES = 4096


@dataclass
class Thing:
    """A file, a symbolic link or a directory, for as long as it exists.  ``gone_s``: since when no name can have it."""

    id: int
    kind: int
    content: bytes = b""
    modes: set[int] = field(default_factory=lambda: {0o644})
    tags: set[bytes | None] = field(default_factory=lambda: {None})
    is_partial: bool = False
    gone_s: float | None = None
    inode: int = 0

    def may_be(self, data: bytes) -> bool:
        return data == self.content or (self.is_partial and is_part(data, self.content))

    def problems(self, name: str, path: Path, st: os.stat_result) -> list[str]:
        """Of what is there and is taken for this."""
        found = []
        if stat.S_ISREG(st.st_mode):
            data = read_whole(path)
            if not self.may_be(data):
                found.append(f"{name}: {short(data)}, not {short(self.content)}")
            elif st.st_size != len(data) and not self.is_partial:
                found.append(f"{name}: {len(data)} bytes, stat says {st.st_size}")
            if stat.S_IMODE(st.st_mode) not in self.modes:
                found.append(f"{name}: mode {oct(st.st_mode)}, not {sorted(map(oct, self.modes))}")
            if (tag := _tag_of(path)) not in self.tags:
                found.append(f"{name}: attribute {tag!r}, not one of {self.tags}")
        return found


Possible = set[int]


class Tree(FileWorker):
    def __init__(self, world: World, name: str, seed: int) -> None:
        super().__init__(world, name, seed)
        self.things: dict[int, Thing] = {}
        self.slots: dict[str, Possible] = {f"{d}f{k}": {ABSENT} for d in FOLDERS for k in range(NAMES)}
        self.slots[ALWAYS] = {ABSENT}
        self.directories: dict[str, Possible] = {f"d{k}": {ABSENT} for k in range(DIRECTORIES)}
        self.children: dict[int, Possible] = {}  # directory -> what its file may be
        self.halves: dict[int, tuple[str, str]] = {}  # thing -> the names of the rename that failed
        self.history: dict[str, list[str]] = {}
        self._count = 0
        self._start()

    def prepare(self, mount: Path) -> None:
        """Before the first fault."""
        for folder in FOLDERS:
            (mount / self.name / folder).mkdir()
        thing = self._new(stat.S_IFREG)
        write_whole(mount / self.name / ALWAYS, thing.content, os.O_CREAT | os.O_EXCL)
        self.slots[ALWAYS] = {thing.id}

    def path(self, name: str) -> Path:
        return self.root / self.name / name

    # ---- what is known ----

    def _new(self, kind: int) -> Thing:
        self._count += 1
        line = b"%s %08d 0123456789abcdef\n" % (self.name.encode(), self._count)
        thing = Thing(self._count, kind, line * self.chance.choice(SIZES))
        if kind == stat.S_IFLNK:
            thing.content = b"%s-%08d" % (self.name.encode(), self._count)
        self.things[thing.id] = thing
        return thing

    def _set(self, name: str, possible: Possible) -> None:
        """Of a file's name."""
        before = self.slots.get(name, set())
        self.slots[name] = possible
        now = time.monotonic()
        for id in before - possible - {ABSENT}:
            if not any(id in other for other in self.slots.values()):
                self.things[id].gone_s = now
        if name.startswith("new") and possible == {ABSENT}:
            del self.slots[name]

    def _note(self, name: str, what: str) -> None:
        row = self.history.setdefault(name, [])
        row.append(f"{time.strftime('%H:%M:%S')} {self.view.name if self.view else ''} {what}")
        del row[:-8]

    def _touched(self, *names: str) -> None:
        """A new operation on a name: what a failed rename left there is no more."""
        self.halves = {id: pair for id, pair in self.halves.items() if not set(pair) & set(names)}

    def certain(self, name: str) -> Thing | None:
        """The only thing that can be there."""
        possible = self.slots[name]
        return self.things[next(iter(possible))] if len(possible) == 1 and ABSENT not in possible else None

    def _pick(self, wanted: str) -> str | None:
        """A name that is ``there``, ``free`` or ``unsure``."""
        def fits(possible: Possible) -> bool:
            kind = "unsure" if len(possible) > 1 else "free" if possible == {ABSENT} else "there"
            return kind == wanted

        found = [name for name, possible in self.slots.items() if name != ALWAYS and fits(possible)]
        return self.chance.choice(found) if found else None

    # ---- turns ----

    def _arrive(self) -> None:
        """From here on this mount is asked, and must not show anything old."""
        view = self.view
        assert view is not None
        self.view = None  # it is not the one where the last changes were made
        try:
            self._look(view, self.final_problems)
        finally:
            self.view = view

    def _turn(self) -> None:
        work = self.chance.choices(
            (self._replace, self._resolve, self._unlink, self._rename, self._link, self._change, self._symlink,
             self._directory, self._check, self._list, self._check_elsewhere),
            (22, 10, 12, 12, 6, 8, 3, 14, 20, 4, 6),
        )[0]  # fmt: skip
        work()

    def _replace(self, name: str = "") -> None:
        """A new file under a name of its own takes the place of the old one."""
        name = name or self.chance.choice([ALWAYS, self._pick("there") or ALWAYS, self._pick("free") or ALWAYS])
        thing = self._new(stat.S_IFREG)
        new = f"new{thing.id}"
        is_synced = self.chance.random() < 0.3
        thing.is_partial = True
        self._set(new, {ABSENT, thing.id})
        self._note(new, "writing")
        self._attempt(f"write {new}", lambda: write_whole(self.path(new), thing.content, os.O_CREAT | os.O_EXCL,
                                                          is_synced=is_synced))  # fmt: skip
        thing.is_partial = False
        self._set(new, {thing.id})
        self._move(new, name)

    def _move(self, old: str, new: str) -> None:
        moved, replaced = set(self.slots[old]), set(self.slots[new])
        assert ABSENT not in moved and len(moved) == 1
        self._touched(old, new)
        self._set(new, replaced | moved)
        self._set(old, moved | {ABSENT})
        for name in (old, new):
            self._note(name, f"rename {old} {new} of {moved}")
        try:
            self._attempt(f"rename {old} {new}", lambda: os.rename(self.path(old), self.path(new)))
        except Failed:
            self.halves[next(iter(moved))] = (old, new)
            self._note(new, "failed")
            raise
        self._set(new, moved)
        self._set(old, {ABSENT})
        self._note(new, "renamed")

    def _rename(self) -> None:
        old, new = self._pick("there"), self._pick(self.chance.choice(("there", "free")))
        if old is None or new is None or self.slots[old] == self.slots[new]:
            return  # two names of one file: rename does nothing
        self._move(old, new)

    def _resolve(self) -> None:
        """A name of which nobody knows what it is."""
        name = self._pick("unsure")
        if name is None:
            return
        if self.chance.random() < 0.5 and not name.startswith("new"):
            self._replace(name)
        else:
            self._remove(name)

    def _unlink(self) -> None:
        name = self._pick("there")
        if name is not None:
            self._remove(name)

    def _remove(self, name: str) -> None:
        before = set(self.slots[name])
        self._touched(name)
        self._set(name, before | {ABSENT})
        self._note(name, f"unlink of {before}")
        try:
            self._attempt(f"unlink {name}", lambda: os.unlink(self.path(name)), answers=[errno.ENOENT])
        except FileNotFoundError:
            self._note(name, "was not there")
            if ABSENT not in before:
                self.problem(f"{name} was acknowledged and is not there: {self.history[name]}")
            return
        self._set(name, {ABSENT})
        self._note(name, "unlinked")

    def _link(self) -> None:
        old, new = self._pick("there"), self._pick("free")
        if old is None or new is None:
            return
        self._touched(old, new)
        (thing,) = self.slots[old]
        self._set(new, {thing, ABSENT})
        self._note(new, f"link {old} {new} of {thing}")
        self._attempt(f"link {old} {new}", lambda: os.link(self.path(old), self.path(new), follow_symlinks=False))
        self._set(new, {thing})
        self._note(new, "linked")

    def _symlink(self) -> None:
        name = self._pick("free")
        if name is None:
            return
        thing = self._new(stat.S_IFLNK)
        self._touched(name)
        self._set(name, {thing.id, ABSENT})
        self._note(name, f"symlink {thing.id}")
        self._attempt(f"symlink {name}", lambda: os.symlink(thing.content, self.path(name)))
        self._set(name, {thing.id})

    def _change(self) -> None:
        """Mode or attribute."""
        name = self._pick("there")
        thing = self.certain(name) if name else None
        if name is None or thing is None or thing.kind != stat.S_IFREG:
            return
        if self.chance.random() < 0.5:
            mode = self.chance.choice(MODES)
            thing.modes.add(mode)
            self._note(name, f"chmod {mode:o}")
            self._attempt(f"chmod {name}", lambda: os.chmod(self.path(name), mode))
            thing.modes = {mode}
        else:
            self._count += 1
            tag = b"%d" % self._count
            thing.tags.add(tag)
            self._note(name, f"setxattr {tag!r}")
            self._attempt(f"setxattr {name}", lambda: os.setxattr(self.path(name), TAG, tag))
            thing.tags = {tag}

    # ---- directories ----

    def _directory(self) -> None:
        name = self.chance.choice(list(self.directories))
        possible = self.directories[name]
        if possible == {ABSENT}:
            self._make_directory(name)
        elif len(possible) == 1 and self.chance.random() < 0.5:
            free = [other for other, what in self.directories.items() if what == {ABSENT}]
            if free:
                self._move_directory(name, self.chance.choice(free))
        else:
            self._remove_directory(name)

    def _make_directory(self, name: str) -> None:
        thing = self._new(stat.S_IFDIR)
        self.directories[name] = {ABSENT, thing.id}
        self.children[thing.id] = {ABSENT}
        self._note(name, f"mkdir {thing.id}")
        self._attempt(f"mkdir {name}", lambda: os.mkdir(self.path(name)))
        self.directories[name] = {thing.id}
        child = self._new(stat.S_IFREG)
        child.is_partial = True
        self.children[thing.id] = {ABSENT, child.id}
        self._note(name, f"child {child.id}")
        self._attempt(f"write {name}/c", lambda: write_whole(self.path(f"{name}/c"), child.content,
                                                             os.O_CREAT | os.O_EXCL))  # fmt: skip
        child.is_partial = False
        self.children[thing.id] = {child.id}
        self._note(name, "made")

    def _move_directory(self, old: str, new: str) -> None:
        (thing,) = self.directories[old]
        self._touched(old, new)
        self.directories[old] = {ABSENT, thing}
        self.directories[new] = {ABSENT, thing}
        for name in (old, new):
            self._note(name, f"rename {old} {new} of {thing}")
        try:
            self._attempt(f"rename {old} {new}", lambda: os.rename(self.path(old), self.path(new)))
        except Failed:
            self.halves[thing] = (old, new)
            raise
        self.directories[old], self.directories[new] = {ABSENT}, {thing}
        self._note(new, "renamed")

    def _remove_directory(self, name: str) -> None:
        before = set(self.directories[name])
        self._touched(name)
        inside = [self.children[id] for id in before if id]
        self._note(name, f"removing {before}, in it {inside}")
        for possible in inside:
            possible.add(ABSENT)
        try:
            self._attempt(f"unlink {name}/c", lambda: os.unlink(self.path(f"{name}/c")), answers=[errno.ENOENT])
            if len(before - {ABSENT}) == 1:
                self.children[next(iter(before - {ABSENT}))] = {ABSENT}
        except FileNotFoundError:
            if ABSENT not in before and all(len(possible) == 1 and ABSENT not in possible for possible in inside):
                self.problem(f"{name}/c was acknowledged and is not there: {self.history[name]}")
        self.directories[name] = before | {ABSENT}
        try:
            answers = [errno.ENOENT, *([errno.ENOTEMPTY] if any(len(possible) > 1 for possible in inside) else [])]
            self._attempt(f"rmdir {name}", lambda: os.rmdir(self.path(name)), answers=answers)
        except FileNotFoundError:
            self._note(name, "was not there")
            if ABSENT not in before:
                self.problem(f"directory {name} was acknowledged and is not there: {self.history[name]}")
            return
        except OSError:
            return  # what of its file nobody knew has come true meanwhile
        self.directories[name] = {ABSENT}
        self._note(name, "removed")

    # ---- looking ----

    def _check(self) -> None:
        name = self.chance.choice([*self.slots, *self.directories])
        assert self.view is not None
        self._look(self.view, lambda root: self._name_problems(root, name))

    def _check_elsewhere(self) -> None:
        if views := self.others():
            name = self.chance.choice([*self.slots, *self.directories])
            self._look(self.chance.choice(views), lambda root: self._name_problems(root, name))

    def _list(self) -> None:
        assert self.view is not None
        view = self.view if self.chance.random() < 0.5 else self.chance.choice([self.view, *self.others()])
        self._look(view, self._list_problems)

    def _list_problems(self, root: Path) -> list[str]:
        found = []
        for folder in FOLDERS:
            listed = os.listdir(root / self.name / folder)
            here = {name.removeprefix(folder): possible for name, possible in self.slots.items()
                    if name.startswith(folder) and "/" not in name.removeprefix(folder)}  # fmt: skip
            if not folder:
                here |= self.directories
                here |= {other.rstrip("/"): {1} for other in FOLDERS if other}
            if len(set(listed)) != len(listed):
                found.append(f"{folder or '.'}: listed twice: {sorted(n for n in listed if listed.count(n) > 1)}")
            for name in sorted({*listed, *here}):
                possible = here.get(name, {ABSENT})
                if name in listed and possible == {ABSENT}:
                    found.append(f"{folder}{name} is listed and was removed: {self.history.get(folder + name)}")
                if name not in listed and ABSENT not in possible:
                    found.append(f"{folder}{name} is not listed: {self.history.get(folder + name)}")
        return found

    def _name_problems(self, root: Path, name: str) -> list[str]:
        found = self._directory_problems(root, name) if name in self.directories else self._file_problems(root, name)
        return [f"{one}; {self.history.get(name)}" for one in found]

    def _file_problems(self, root: Path, name: str) -> list[str]:
        possible = self.slots.get(name, {ABSENT})
        path = root / self.name / name
        try:
            st = path.lstat()
            if stat.S_ISREG(st.st_mode):
                data = read_whole(path)
        except FileNotFoundError:
            return [] if ABSENT in possible else [f"{name} is not there, possible: {sorted(possible)}"]
        things = [self.things[id] for id in possible if id]
        if stat.S_ISLNK(st.st_mode):
            target = os.fsencode(os.readlink(path))
            return [] if any(thing.content == target for thing in things) else [f"{name}: link to {target!r}"]
        if not stat.S_ISREG(st.st_mode):
            return [f"{name}: type {oct(st.st_mode)}"]
        for thing in things:
            if thing.kind == stat.S_IFREG and thing.may_be(data):
                return thing.problems(name, path, st)
        wanted = [short(thing.content) for thing in things] + ["nothing"] * (ABSENT in possible)
        return [f"{name}: {short(data)}, not one of {wanted}"]

    def _directory_problems(self, root: Path, name: str) -> list[str]:
        possible = self.directories[name]
        path = root / self.name / name
        try:
            inside = os.listdir(path)
        except FileNotFoundError:
            return [] if ABSENT in possible else [f"directory {name} is not there"]
        if possible == {ABSENT}:
            return [f"directory {name} was removed and is there with {inside}"]
        if set(inside) - {"c"}:
            return [f"directory {name} has {inside}"]
        children = {child for id in possible if id for child in self.children[id]}
        try:  # what lies on bricks that are away is not listed; asked for by its name it is an error
            data = read_whole(path / "c")
        except FileNotFoundError:
            return [] if ABSENT in children else [f"{name}/c is not there"]
        things = [self.things[id] for id in children if id]
        if any(thing.may_be(data) for thing in things):
            return []
        return [f"{name}/c: {short(data)}, not one of {[short(t.content) for t in things]}"]

    def final_problems(self, root: Path) -> list[str]:
        found = self._list_problems(root)
        for name in [*self.slots, *self.directories]:
            found += self._name_problems(root, name)
        return found

    def half_problems(self, root: Path) -> list[str]:
        """What was to be renamed is under the old name or the new one."""
        found = []
        for names in self.halves.values():
            if not any(os.path.lexists(root / self.name / name) for name in names):
                found.append(f"{self.name}: neither {names[0]} nor {names[1]} is there: {self.history[names[0]]}")
        return found

    def settle(self, root: Path) -> None:
        """After an audit that found nothing: what is there now is what is known."""
        for name in list(self.slots):
            if len(self.slots[name]) > 1:
                self._set(name, self._seen(root / self.name / name, self.slots[name]))
        for name, possible in self.directories.items():
            if len(possible) > 1 and not (root / self.name / name).exists():
                self.directories[name] = {ABSENT}
        self.halves.clear()

    def _seen(self, path: Path, possible: Possible) -> Possible:
        if not os.path.lexists(path):
            return {ABSENT}
        data = os.fsencode(os.readlink(path)) if path.is_symlink() else read_whole(path)
        found = {id for id in possible if id and self.things[id].content == data}
        return found or possible - {ABSENT}


def is_part(data: bytes, whole: bytes) -> bool:
    """Of what was being written: a beginning, perhaps with holes of whole pages."""
    pieces = ((at, data[at : at + PAGE_BYTES]) for at in range(0, len(data), PAGE_BYTES))
    return len(data) <= len(whole) and all(p == whole[at : at + len(p)] or not any(p) for at, p in pieces)


def short(data: bytes) -> str:
    return f"{len(data)} bytes {data[:24]!r}"


def _tag_of(path: Path) -> bytes | None:
    try:
        return os.getxattr(path, TAG)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
