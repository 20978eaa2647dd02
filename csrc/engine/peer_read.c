/* SPDX-License-Identifier: Apache-2.0 */
/* Reads for an application of the peer that has no good disk of its own (those of a resync: resync_source.c). */
#include "engine/internal.h"

static void read_finished(struct peer_request *pr, bool ok)
{
    struct volume *v = pr->volume;
    struct core *core = v->core;
    if (core->link.phase == LINK_UP && core->link.generation == pr->link_generation) {
        if (ok)
            sender_reply(v, P_DATA_REPLY, pr);
        else
            sender_ack(v, P_NEG_DREPLY, pr->sector, pr->block_id, pr->bytes);
    }
    v->stats.unacked--;
    volume_unlock_range(v, &pr->lock);
    peer_request_free(core, pr);
}

static void read_done(struct disk_op *op)
{
    struct peer_request *pr = op->owner;
    struct volume *v = pr->volume;
    volume_disk_finished(v, op);
    if (op->error)
        volume_disk_error(v, op, RE_DISK_READ);
    read_finished(pr, op->error == 0);
}

/* pass_on: known here as soon as the operation failed, in the disk's state a little later. */
static bool touches_lost_blocks(const struct volume *v, const struct peer_request *pr)
{
    return v->bad_blocks && volume_differs_in(v, pr->sector * SECTOR_BYTES, pr->bytes);
}

static void read_start(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    if (!volume_disk_usable(v) || v->state.disk != D_UP_TO_DATE || touches_lost_blocks(v, pr)) {
        read_finished(pr, false);
        return;
    }
    pr->op = (struct disk_op){.kind = DISK_READ,
                              .fd = v->disk.data_fd,
                              .offset = pr->sector * SECTOR_BYTES,
                              .length = pr->bytes,
                              .data = pr->buf->data};
    volume_disk_submit(v, &pr->op, read_done, pr);
}

static void read_granted(struct range_item *item)
{
    read_start(container_of(item, struct peer_request, lock));
}

void peer_read_received(struct core *core, struct peer_request *pr)
{
    struct volume *v = pr->volume;
    (void)core;
    v->stats.unacked++;
    if (volume_lock_range(v, &pr->lock, pr->sector * SECTOR_BYTES, pr->bytes, RANGE_SHARED, read_granted))
        read_start(pr);
}
