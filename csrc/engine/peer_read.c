/* SPDX-License-Identifier: Apache-2.0 */
/* Reads for the peer: of an application without a good local disk, and of a resync target.
 *
 * Invariant: a resync reply stands on the data socket before any later write of the same blocks (its range is released
 * only when the reply is queued), so that it never overwrites newer data at the target.
 */
#include <string.h>

#include "engine/internal.h"

static bool all_zero(const uint8_t *data, size_t bytes)
{
    return data[0] == 0 && memcmp(data, data + 1, bytes - 1) == 0;
}

static void read_finished(struct peer_request *pr, bool ok)
{
    struct volume *v = pr->volume;
    struct core *core = v->core;
    bool resync = pr->kind == PEER_RESYNC_READ;
    if (core->link.phase == LINK_UP && core->link.generation == pr->link_generation) {
        if (!ok)
            sender_ack(v, resync ? P_NEG_RS_DREPLY : P_NEG_DREPLY, pr->sector, pr->block_id, pr->bytes);
        else if (pr->thin && all_zero(pr->buf->data, pr->bytes))
            sender_deallocated(v, pr);
        else
            sender_reply(v, resync ? P_RS_DATA_REPLY : P_DATA_REPLY, pr);
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

static void read_start(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    bool source = v->state.connection == C_SYNC_SOURCE || v->state.connection == C_PAUSED_SYNC_S;
    if (!volume_disk_usable(v) || v->state.disk != D_UP_TO_DATE || (pr->kind == PEER_RESYNC_READ && !source)) {
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
    if (volume_lock_range(v, &pr->lock, pr->sector * SECTOR_BYTES, pr->bytes, false, read_granted))
        read_start(pr);
}
