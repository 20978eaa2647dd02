# SPDX-License-Identifier: Apache-2.0
"""A split-brain seen and ended from a mount, by three virtual extended attributes with GlusterFS's names.

``getfattr -n replica.split-brain-status FILE`` tells of what it is and whose copies there are;
``setfattr -n replica.split-brain-choice -v CHILD FILE`` makes that copy readable here for ``spb-choice-timeout``
(``none`` ends that); ``setfattr -n replica.split-brain-heal-finalize -v CHILD FILE`` makes it the good one.
differs (decision 0068): finalize answers when the file is healed, or with an error.
"""

from __future__ import annotations

import errno

from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.changelog import Kind
from repl.files.translators.replicate.heal import BackgroundHeals, Healer
from repl.files.translators.replicate.healing import How, Status
from repl.files.translators.replicate.inodes import UNKNOWN, InodeState
from repl.files.translators.replicate.locking import Locking
from repl.files.values import Caller, FopError, Target, Xattrs

STATUS = b"replica.split-brain-status"
CHOICE = b"replica.split-brain-choice"
FINALIZE = b"replica.split-brain-heal-finalize"
_NO_SPLIT = b"The file is not under data or metadata split-brain"


class SplitXattrs(Locking):
    healer: Healer
    heals: BackgroundHeals

    async def getxattr(self, caller: Caller, target: Target, name: bytes | None = None) -> Xattrs:
        if name == STATUS:
            return {STATUS: await self._split_status(self.inodes.get(target.gfid))}
        return await super().getxattr(caller, target, name)

    async def setxattr(self, caller: Caller, target: Target, values: Xattrs, *, flags: int = 0) -> None:
        if values.keys() & {CHOICE, FINALIZE}:
            if caller.uid:
                raise FopError(errno.EPERM, "a split-brain is for root to end")
            for key, value in values.items():
                await self._set_split(self.inodes.get(target.gfid), key, value)
            return
        await super().setxattr(caller, target, values, flags=flags)

    async def _split_status(self, inode: InodeState) -> bytes:
        await self.settled()
        await self.refresh(inode)
        is_data, is_metadata = inode.is_split[Kind.DATA], inode.is_split[Kind.METADATA]
        if not (is_data or is_metadata):
            return _NO_SPLIT
        words = [b"no", b"yes"]
        choices = b",".join(self.names[i].encode() for i in bits(inode.found & ~self.arbiters))
        return b"data-split-brain:%s    metadata-split-brain:%s    Choices:%s" % (
            words[is_data], words[is_metadata], choices,
        )  # fmt: skip

    async def _set_split(self, inode: InodeState, key: bytes, value: bytes) -> None:
        name = value.rstrip(b"\0").decode(errors="replace")
        if key == CHOICE and name == "none":
            inode.choice = -1
            return
        if name not in self.names:
            raise FopError(errno.EINVAL, f"{name!r} is none of {', '.join(self.names)}")
        index = self.names.index(name)
        if key == CHOICE:
            await self.refresh(inode)
            if not inode.found >> index & 1:
                raise FopError(errno.ENOTCONN, f"{name} has no copy that answers")
            inode.choice, inode.choice_until = index, self.context.now() + self.options["spb-choice-timeout"]
        elif key == FINALIZE:
            outcome = await self.healer.heal(inode.gfid, How(winner=index))
            inode.choice, inode.generation = -1, UNKNOWN
            if outcome.status not in (Status.HEALED, Status.CLEAN):
                raise FopError(errno.EIO, str(outcome))
        else:
            raise FopError(errno.EINVAL, f"{key!r} cannot be set together with the choice")
