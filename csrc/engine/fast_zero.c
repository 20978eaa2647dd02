/* SPDX-License-Identifier: Apache-2.0 */
/* NBD's FAST_ZERO with a peer: only what costs less than writing zeroes may be done.
 *
 * The peer's part is a single small packet instead of the data, or it is not sent at all.  Whether the own disk is
 * fast, only the disk knows: it zeroes the range first, alone; its refusal has changed nothing anywhere, and after
 * its success the request goes on as a plain one (the range is zeroed once more, which is as fast).  The activity log
 * covers the range all the time.
 */
#include <errno.h>

#include "engine/internal.h"

static void tried(struct disk_op *op)
{
    struct request *r = op->owner;
    r->local_pending = false;
    volume_disk_finished(r->volume, op);
    if (op->error != ENOTSUP) {
        r->flags &= (uint8_t)~REQUEST_FAST;     /* any other error shows itself again */
        request_start_write(r);
        return;
    }
    r->error = ENOTSUP;
    request_settle(r);
}

bool fast_zero_first(struct request *r, bool local)
{
    struct volume *v = r->volume;
    if (!(r->flags & REQUEST_FAST))
        return false;
    if (!local) {
        r->flags &= (uint8_t)~REQUEST_FAST;
        return false;
    }
    r->op = (struct disk_op){.kind = DISK_ZERO,
                             .flags = DISK_FAST | (r->flags & REQUEST_MAY_UNMAP ? DISK_MAY_UNMAP : 0u),
                             .fd = v->disk.data_fd,
                             .offset = r->offset,
                             .length = r->length};
    r->local_pending = true;
    volume_disk_submit(v, &r->op, tried, r);
    return true;
}
