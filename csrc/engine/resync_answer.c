/* SPDX-License-Identifier: Apache-2.0 */
/* A resync target's answers: written, flushed, acknowledged (see resync_target.c). */
#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

/* An answer to a request that is not known any more: true if one may have been asked for on this link. */
bool resync_target_expects(struct volume *v, uint64_t bytes)
{
    struct resync_target *t = &v->target;
    if (bytes > t->unanswered_bytes)
        return false;
    t->unanswered_bytes -= bytes;
    t->owed_bytes -= u64_min(bytes, t->owed_bytes);
    return true;
}

/* Answers without data come on the other socket, so those of a run that the source has ended (it went Ahead) may come
 * in this one, before those of this run.  What they say of a block may be older than a write of it that was only
 * announced: such a block is asked for again. */
static bool is_of_earlier_run(struct volume *v, struct resync_request *rq, uint32_t bytes)
{
    struct resync_target *t = &v->target;
    if (!t->owed_bytes)
        return false;
    (void)resync_target_expects(v, bytes);
    if (rq) {
        t->again = true;
        resync_request_forget(rq);
    }
    return true;
}

static void note_answer(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    struct resync_look *look = &v->look;
    uint64_t took_ns = v->core->now_ns - rq->since_ns;
    look->usage.answer_ns += took_ns;
    look->usage.answers++;
    if (!look->quickest_ns || took_ns < look->quickest_ns)
        look->quickest_ns = took_ns;
}

/* ---- data ---- */

static void write_done(struct disk_op *op)
{
    struct resync_request *rq = op->owner;
    struct volume *v = rq->volume;
    volume_disk_finished(v, op);
    v->look.usage.disk_ns += v->core->io->now_ns(v->core->io_ctx) - rq->since_ns;
    volume_unlock_range(v, &rq->lock);
    if (op->error) {
        volume_disk_error(v, op, rq->zero ? RE_DISK_ZERO : RE_DISK_WRITE);
        if (resync_request_is_current(rq))
            sender_ack(v, P_NEG_ACK, rq->offset / SECTOR_BYTES, ID_SYNCER, rq->bytes);
        resync_request_forget(rq);
        return;
    }
    v->stats.resync_disk_bytes += rq->zero ? 0 : rq->bytes;
    if (!resync_request_is_current(rq)) {
        resync_request_release(rq);
        return;
    }
    if (rq->buf)
        buf_put(rq->buf);
    rq->buf = NULL;
    v->target.unwritten_bytes -= rq->bytes;
    rq->stage = RESYNC_WRITTEN;
    list_del(&rq->link);
    list_add_tail(&v->target.written, &rq->link);
}

void resync_answer_write(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    rq->stage = RESYNC_WRITING;
    rq->since_ns = v->core->io->now_ns(v->core->io_ctx);
    if (!volume_disk_usable(v)) {
        resync_request_forget(rq);
        return;
    }
    uint32_t unmap = v->disk.flags & RE_ATTACH_KEEP_ALLOCATED ? 0 : DISK_MAY_UNMAP;
    bool discard = rq->zero && unmap && v->resync_options.discard_granularity;
    rq->op = (struct disk_op){.kind = rq->zero ? DISK_ZERO : DISK_WRITE,
                              .flags = (rq->zero ? unmap : 0) | (discard ? DISK_DISCARD : 0),
                              .fd = v->disk.data_fd,
                              .offset = rq->offset,
                              .length = rq->bytes,
                              .data = rq->zero ? NULL : rq->buf->data,
                              .extents_max = discard ? v->disk.discard_granularity : 0};
    volume_disk_submit(v, &rq->op, write_done, rq);
}

static void answered(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    struct resync_target *t = &v->target;
    if (!resync_request_is_current(rq)) {
        resync_request_release(rq);
        return;
    }
    note_answer(rq);
    t->in_flight_bytes -= rq->bytes;
    t->unwritten_bytes += rq->bytes;
    rq->stage = RESYNC_RECEIVED;
    if (rq->lock.range.held)
        resync_answer_write(rq);
}

void resync_target_data(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    struct resync_target *t = &v->target;
    v->stats.received_bytes += rq->bytes;
    v->stats.resync_payload_bytes += rq->bytes;
    v->look.received_bytes += rq->bytes;
    t->unanswered_bytes -= u64_min(rq->bytes, t->unanswered_bytes);
    t->arrived_sectors += rq->bytes / SECTOR_BYTES;
    t->thin_bytes = RESYNC_REQUEST_BYTES_MAX;
    answered(rq);
}

void resync_target_zero(struct resync_request *rq)
{
    struct resync_target *t = &rq->volume->target;
    rq->zero = true;
    t->unanswered_bytes -= u64_min(rq->bytes, t->unanswered_bytes);
    t->allowed_sectors += rq->bytes / SECTOR_BYTES;     /* it was no traffic */
    if (rq->bytes >= t->thin_bytes && t->thin_bytes < RESYNC_THIN_BYTES_MAX)
        t->thin_bytes *= 2;
    answered(rq);
}

/* ---- other answers ---- */

void resync_target_equal(struct volume *v, uint64_t sector, uint32_t bytes)
{
    struct resync_target *t = &v->target;
    struct resync_request *rq = resync_target_find(v, sector, bytes);
    if (is_of_earlier_run(v, rq, bytes))
        return;
    if (!rq) {
        (void)resync_target_expects(v, bytes);
        return;
    }
    t->unanswered_bytes -= u64_min(rq->bytes, t->unanswered_bytes);
    t->arrived_sectors += rq->bytes / SECTOR_BYTES;
    note_answer(rq);
    if (rq->by_digest && !rq->stepped_back) {
        /* Stable it is: what was here when the run began was flushed first, and applications' writes have acks. */
        uint64_t before = v->stats.resync_done_bits;
        volume_clear_dirty(v, rq->offset, rq->bytes);
        v->stats.resync_equal_bits += v->stats.resync_done_bits - before;
        t->made_progress = true;
    } else
        t->again = true;    /* the block has changed since its digest was sent */
    resync_request_forget(rq);
}

void resync_target_failed(struct volume *v, uint64_t sector, uint32_t bytes)
{
    struct resync_request *rq = resync_target_find(v, sector, bytes);
    if (is_of_earlier_run(v, rq, bytes))
        return;
    (void)resync_target_expects(v, bytes);
    if (!rq)
        return;
    v->target.failed_bits += (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    resync_request_forget(rq);
}

void resync_target_again(struct volume *v, uint64_t sector, uint32_t bytes)
{
    struct resync_request *rq = resync_target_find(v, sector, bytes);
    (void)resync_target_expects(v, bytes);
    if (!rq)
        return;
    v->target.again = true;     /* still dirty: the next round asks for it */
    resync_request_forget(rq);
}

/* ---- flushes ---- */

static void flush_done(struct disk_op *op)
{
    struct volume *v = op->owner;
    struct resync_target *t = &v->target;
    volume_disk_finished(v, op);
    t->flush_in_flight = false;
    if (op->error)
        volume_disk_error(v, op, RE_DISK_FLUSH);
    else if (t->flush_run == t->run)
        t->flush_first = false;
    for (struct list_head *link; (link = list_first(&t->flushing));) {
        struct resync_request *rq = list_entry(link, struct resync_request, link);
        if (!op->error && resync_request_is_current(rq) && volume_disk_usable(v)) {
            /* A write of the application that came after ours was acknowledged and cleared on its own. */
            uint64_t before = v->stats.resync_done_bits;
            volume_clear_dirty(v, rq->offset, rq->bytes);
            if (rq->zero)
                v->stats.resync_deallocated_bits += v->stats.resync_done_bits - before;
            t->made_progress = true;
            sender_ack(v, P_RS_WRITE_ACK, rq->offset / SECTOR_BYTES, ID_SYNCER, rq->bytes);
        }
        resync_request_forget(rq);
    }
}

void resync_answer_flush(struct volume *v)
{
    struct resync_target *t = &v->target;
    list_splice_tail(&t->flushing, &t->written);
    t->flush_in_flight = true;
    t->flush_run = t->run;
    t->flush_op = (struct disk_op){.kind = DISK_FLUSH,
                                   .flags = v->disk.flags & RE_ATTACH_NO_DISK_FLUSHES ? DISK_NO_SYNC : 0,
                                   .fd = v->disk.data_fd};
    volume_disk_submit(v, &t->flush_op, flush_done, v);
}
