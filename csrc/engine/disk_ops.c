/* SPDX-License-Identifier: Apache-2.0 */
/* Disk operations on their way: what a volume has asked of its disk, what a hung disk still holds.
 *
 * The shell gets a copy of each operation, so its owner can be told that the disk is given up while the disk still
 * works on the copy.
 * Invariants: `stats.lower_pending` counts the operations whose owners wait, `hung` those that were given up and have
 * not come back; a buffer that a hung operation may still read or fill is not reused before it comes back; the
 * descriptors are free when both are 0.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/check.h"
#include "engine/internal.h"

enum { OPS_PER_CHUNK = 256 };

struct volume_op {
    struct disk_op op;              /* what the shell sees */
    struct list_head in_flight;     /* the volume's list, oldest first; or the free list */
    struct volume *v;
    struct disk_op *origin;         /* its owner's; NULL once it was given up */
    struct buf *held;               /* a given up operation's buffer */
    uint64_t submitted_ns;
};

struct op_chunk {
    struct op_chunk *next;
    struct volume_op ops[OPS_PER_CHUNK];
};

void disk_ops_destroy(struct core *core)
{
    for (struct op_chunk *chunk = core->op_chunks; chunk;) {
        struct op_chunk *next = chunk->next;
        free(chunk);
        chunk = next;
    }
    core->op_chunks = NULL;
}

static struct volume_op *op_take(struct core *core)
{
    struct list_head *link = list_pop(&core->op_free);
    if (!link) {    /* only until the most that ever ran at once is reached */
        struct op_chunk *chunk = calloc(1, sizeof(*chunk));
        CHECK(chunk);
        chunk->next = core->op_chunks;
        core->op_chunks = chunk;
        for (int i = 0; i < OPS_PER_CHUNK; i++)
            list_add_tail(&core->op_free, &chunk->ops[i].in_flight);
        link = list_pop(&core->op_free);
    }
    return list_entry(link, struct volume_op, in_flight);
}

static void op_done(struct disk_op *op)
{
    struct volume_op *vop = op->owner;
    struct volume *v = vop->v;
    struct disk_op *origin = vop->origin;
    list_del(&vop->in_flight);
    list_add(&v->core->op_free, &vop->in_flight);
    if (origin) {
        origin->error = op->error;
        origin->lost = op->lost;
        origin->extents_count = op->extents_count;
        origin->done(origin);
        return;
    }
    if (vop->held)
        buf_put(vop->held);
    v->hung--;
    volume_check_idle(v);
}

/* Everything of a submission but the start of the disk; false: the disk is given up, the failure is on its way. */
static bool prepare(struct volume *v, struct disk_op *op, void (*done)(struct disk_op *), void *owner)
{
    op->done = done;
    op->owner = owner;
    op->error = 0;
    op->lost = false;
    v->stats.lower_pending++;
    list_init(&op->link);
    if (v->given_up) {
        op->error = EIO;
        list_add_tail(&v->core->done, &op->link);
    }
    return !v->given_up;
}

void volume_disk_submit(struct volume *v, struct disk_op *op, void (*done)(struct disk_op *), void *owner)
{
    if (!prepare(v, op, done, owner) || (v->undo && undo_takes(v, op)))
        return;
    volume_disk_start(v, op);
}

void volume_disk_submit_past_undo(struct volume *v, struct disk_op *op, void (*done)(struct disk_op *), void *owner)
{
    if (prepare(v, op, done, owner))
        volume_disk_start(v, op);
}

void volume_disk_start(struct volume *v, struct disk_op *op)
{
    struct core *core = v->core;
    bool on_disk = op->fd == v->disk.data_fd || op->fd == v->disk.md_fd;
    if ((v->disk.flags & RE_ATTACH_INLINE) && on_disk && op->kind != DISK_EXTENTS)
        op->flags |= DISK_INLINE;   /* looking for holes may take long in any file system */
    if ((v->disk.flags & RE_ATTACH_PAGE_CACHE) && op->fd == v->disk.data_fd)
        op->flags |= DISK_PAGE_CACHE;
    if (v->disk.flags & (op->fd == v->disk.data_fd ? RE_ATTACH_DATA_NBD : RE_ATTACH_MD_NBD))
        op->flags |= DISK_NBD;
    struct volume_op *vop = op_take(core);
    vop->op = *op;
    vop->op.done = op_done;
    vop->op.owner = vop;
    vop->v = v;
    vop->origin = op;
    vop->held = NULL;
    vop->submitted_ns = core->now_ns;
    list_add_tail(&v->in_flight, &vop->in_flight);
    list_init(&vop->op.link);
    list_add_tail(&core->submit, &vop->op.link);
}

static struct buf *buffer_of(struct core *core, const uint8_t *data)
{
    struct buf_pool *pools[] = {&core->app_buffers, &core->peer_buffers, &core->md_buffers};
    for (size_t i = 0; data && i < sizeof(pools) / sizeof(pools[0]); i++) {
        struct buf *buf = buf_of(pools[i], data);
        if (buf)
            return buf;
    }
    return NULL;
}

static bool is_overdue(const struct volume *v, uint32_t limit_ms)
{
    if (list_empty(&v->in_flight))
        return false;
    const struct volume_op *oldest = list_entry(list_first(&v->in_flight), struct volume_op, in_flight);
    return v->core->now_ns >= oldest->submitted_ns + limit_ms * NS_PER_MS;
}

/* Nobody waits for this disk any more: every operation in flight ends with an error for its owner. */
void volume_disk_give_up(struct volume *v, uint32_t older_than_ms)
{
    struct core *core = v->core;
    if (!v->attached || v->given_up || (older_than_ms && !is_overdue(v, older_than_ms)))
        return;
    v->given_up = true;
    v->disk_failed = true;
    undo_give_up(v);
    list_for_each(pos, &v->in_flight)
    {
        struct volume_op *vop = list_entry(pos, struct volume_op, in_flight);
        struct disk_op *origin = vop->origin;
        if (!origin)
            continue;
        vop->origin = NULL;
        vop->held = buffer_of(core, vop->op.data ? vop->op.data : (const uint8_t *)vop->op.extents);
        if (vop->held)
            buf_ref(vop->held);
        v->hung++;
        origin->error = EIO;
        origin->flags |= DISK_GIVEN_UP;
        list_add_tail(&core->done, &origin->link);
    }
}

/* When the oldest operation is overdue; UINT64_MAX: never. */
uint64_t volume_disk_deadline(const struct volume *v)
{
    if (!v->disk.disk_timeout_ms || !v->attached || v->disk_failed || list_empty(&v->in_flight))
        return UINT64_MAX;
    const struct volume_op *oldest = list_entry(list_first(&v->in_flight), struct volume_op, in_flight);
    return oldest->submitted_ns + v->disk.disk_timeout_ms * NS_PER_MS;
}

void volume_disk_check_timeout(struct volume *v)
{
    if (v->core->now_ns < volume_disk_deadline(v))
        return;
    const struct volume_op *oldest = list_entry(list_first(&v->in_flight), struct volume_op, in_flight);
    struct disk_op late = {.offset = oldest->op.offset, .error = ETIMEDOUT};
    volume_disk_error(v, &late, RE_DISK_TIMEOUT);
    volume_disk_give_up(v, 0);
}
