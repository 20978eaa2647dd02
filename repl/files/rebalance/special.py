# SPDX-License-Identifier: Apache-2.0
"""Moves what has no data: symbolic links, devices, pipes, sockets.

It is made again where it belongs, with a new gfid (decision 0065), under a hidden name, and takes the place of the link
file in one step; until its mark goes it counts as a link file itself, so that the old one is the one that is found.
"""

from __future__ import annotations

import errno
import stat

from repl.files.answers import GONE
from repl.files.rebalance.mover import Moved, Outcome, of_users
from repl.files.translators.distribute import Distribute
from repl.files.translators.distribute.links import name_of, of_file
from repl.files.translators.distribute.marks import FILE_WANT, LINKTO, is_link, linkto_value
from repl.files.translators.distribute.renames import NOREPLACE
from repl.files.values import Caller, FopError, Loc, Looked, SetAttr


async def move_special(dht: Distribute, loc: Loc, source: int, target: int) -> Moved:
    loc, caller = name_of(loc), dht.owner()
    async with dht.locked_names((target, loc)):
        answers = await dht.ask((source, target), lambda i, c: c.lookup(caller, loc, want=FILE_WANT))
        found, there = answers[source], answers[target]
        for answer in (found, there):
            if isinstance(answer, OSError) and answer.errno not in GONE:
                raise answer
        if isinstance(found, OSError):
            return Moved(Outcome.GONE)
        if is_link(found.xattrs) or found.iatt.is_regular or found.iatt.is_directory:
            return Moved(Outcome.GONE)
        if found.iatt.nlink > 1:
            return Moved(Outcome.SKIPPED, reason="it has several names")
        if isinstance(there, Looked) and not is_link(there.xattrs):
            return Moved(Outcome.SKIPPED, reason="something else is where it belongs")
        new = Loc(dht.context.new_gfid(), loc.parent, dht.hidden_name(found.iatt.gfid))
        await _make(dht, new, found, source, target)
        # Neither what a client has put in the place of the link file meanwhile goes, nor what it has put on its own.
        place, flags = (of_file(loc, there.iatt.gfid), 0) if isinstance(there, Looked) else (loc, NOREPLACE)
        try:
            await dht.subvolumes[target].rename(caller, new, place, flags=flags)
        except FopError as error:
            await dht.undo(dht.subvolumes[target].unlink(caller, new))
            if error.errno not in (errno.ESTALE, errno.EEXIST):
                raise
            return Moved(Outcome.GONE, reason=str(error))
        await dht.subvolumes[target].removexattr(caller, Loc(gfid=new.gfid), LINKTO)
        await dht.undo(dht.subvolumes[source].unlink(caller, of_file(loc, found.iatt.gfid)))
        dht.files.drop(found.iatt.gfid)
        dht.known_names.drop((loc.parent, loc.name))
        return Moved(Outcome.MOVED)


async def _make(dht: Distribute, new: Loc, found: Looked, source: int, target: int) -> None:
    iatt, gfid, hidden, ours = found.iatt, new.gfid, name_of(new), dht.owner()
    caller = Caller(uid=iatt.uid, gid=iatt.gid, client=ours.client, is_internal=True)
    child, file = dht.subvolumes[target], Loc(gfid=iatt.gfid)
    extra = {**of_users(await dht.subvolumes[source].getxattr(ours, file)), LINKTO: linkto_value(dht.names[source])}
    attributes = SetAttr(uid=iatt.uid, gid=iatt.gid, atime_ns=iatt.atime_ns, mtime_ns=iatt.mtime_ns)
    if stat.S_ISLNK(iatt.mode):
        text = await dht.subvolumes[source].readlink(ours, file)
        await child.symlink(caller, hidden, target=text, gfid=gfid, extra=extra)
    else:
        await child.mknod(caller, hidden, mode=iatt.mode, rdev=iatt.rdev, gfid=gfid, extra=extra)
        attributes.mode = stat.S_IMODE(iatt.mode)
    await child.setattr(ours, Loc(gfid=gfid), attributes)
