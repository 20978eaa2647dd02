# SPDX-License-Identifier: Apache-2.0
"""Listing directories ahead of the lookups in them (decision 0154).

A directory in which names are looked up one after another is listed in the background, with attributes (and with
contents, if quick-read below finds that worth while); where directory after directory is walked like this, with its
first lookup, and the next ones wait for that.  What is listed is remembered by whoever inherits this (``readdir``).
"""

from __future__ import annotations

from collections.abc import Sequence

from repl.files.dropping import Dropping
from repl.files.options import Options
from repl.files.translator import Context, Translator
from repl.files.translators.md_cache.names import Folder, Names
from repl.files.values import Caller, Fd, Loc
from repl.limits import MD_CACHE_LISTING_BYTES, MD_CACHE_NAMES_MAX

_MISSES = 3  # so many lookups in a directory before it is listed
_PER_MISS = 64  # names that are listed for each lookup that had to ask
_HITS = 8  # so many lookups in a listed directory, or half of its names, make the listing worth while
_WALKS_MAX = 4  # directories in which that was so, less those in which it was not
_WALKS = 2  # from here on directories are walked: each is listed with its first lookup, or its own if it is the most


class ListingAhead(Dropping):
    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._names = Names()
        self._is_partial = False  # some names are not to be seen
        self._valid_s = 0.0  # how long what is remembered is trusted
        self._walks = _WALKS - 1

    @property
    def is_walking(self) -> bool:
        """Directories are listed as soon as they have been looked up."""
        return self._walks >= _WALKS_MAX

    def _missed(self, caller: Caller, parent: bytes, now: float, *, is_listed: bool) -> None:
        """``is_listed``: a listing would have told.  Where all names are known that is all it can tell."""
        folder = self._names.folder(parent, now, self._valid_s, MD_CACHE_NAMES_MAX)
        if folder.is_whole and not is_listed:
            return
        folder.misses += 1
        if is_listed and self._walks >= _WALKS and not folder.is_whole:
            self._walk(caller, parent, folder)
        elif folder.misses >= _MISSES:
            self._begin_listing(caller, parent, folder)

    def _walk_into(self, caller: Caller, gfid: bytes, now: float) -> None:
        """Of a directory that has been looked up the names come next."""
        folder = self._names.folder(gfid, now, self._valid_s, MD_CACHE_NAMES_MAX)
        if not folder.entries and not folder.is_whole:
            self._walk(caller, gfid, folder)

    def _walk(self, caller: Caller, gfid: bytes, folder: Folder) -> None:
        """It is listed because others were worth it."""
        if self._begin_listing(caller, gfid, folder):
            folder.is_walk = True
            self._walks -= 1

    def _begin_listing(self, caller: Caller, gfid: bytes, folder: Folder) -> bool:
        if folder.is_listing or not self.options["list-ahead"]:
            return False
        folder.is_listing, folder.is_walk, folder.hits = True, False, 0
        self.context.spawn(self._list_ahead(caller, gfid, folder), f"{self.name}: listing ahead")
        return True

    def _hit(self, folder: Folder) -> None:
        """A lookup was answered in a directory that was listed ahead."""
        folder.hits += 1
        if folder.hits >= min(_HITS, 1 + len(folder.entries) // 2):
            folder.hits = -1
            self._walks = min(_WALKS_MAX, self._walks + 2)

    async def _list_ahead(self, caller: Caller, parent: bytes, folder: Folder) -> None:
        fd = Fd(parent, is_directory=True)
        try:
            await self.child.opendir(caller, Loc(gfid=parent), fd)
            await self._list(caller, fd, folder)
        except OSError:
            folder.misses = 0
        finally:
            folder.is_listing = False
            folder.tell()
            await self.child.release(fd)

    async def _list(self, caller: Caller, fd: Fd, folder: Folder) -> None:
        """As much as the lookups so far make likely; the next ones go on from there.  Only a listing from end to end
        of one open directory tells that it is whole."""
        began_at, losses = folder.next, folder.losses
        listed = 0
        while listed < _PER_MISS * max(folder.misses, _MISSES):
            entries = await self.readdir(caller, fd, size=MD_CACHE_LISTING_BYTES, offset=folder.next, is_plus=True)
            if not entries:
                is_whole = began_at == 0 and losses == folder.losses and not self._is_partial
                folder.is_whole = is_whole and self._names.find(fd.gfid, self.context.now()) is folder
                folder.next = folder.misses = 0
                return
            listed += len(entries)
            folder.next = entries[-1].offset
            folder.tell()
