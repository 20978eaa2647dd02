/* SPDX-License-Identifier: Apache-2.0 */
/* A resync target's requests: which blocks, of what kind, and their place in the range lock (see resync_target.c).
 *
 * Three kinds: the data; with a digest of the own block; thin, where the answer may be "zeroes".  A DRBD source takes
 * thin requests of exactly rs-discard-granularity.  One of our kind answers any thin request in parts, from its
 * beginning on: holes and data as they come.
 */
#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

struct ask {
    uint64_t bits;
    bool thin, by_digest;
};

/* What an old peer's packets carry: 32 KiB with the short header, 128 KiB before version 100. */
static uint64_t version_bits_max(uint32_t version)
{
    return version < 95 ? 8 : version < 100 ? 32 : RESYNC_THIN_BYTES_MAX / BLOCK_BYTES;
}

/* The run of dirty bits at `bit`, at most `most`: aligned to its own size, so within a 16 MiB extent. */
static uint64_t run_length(const struct volume *v, uint64_t bit, uint64_t most)
{
    uint64_t aligned = bit ? bit & (~bit + 1) : most;
    uint64_t end = u64_min(bit + u64_min(aligned, most), v->bitmap->bits);
    return u64_min(end, bitmap_next_clear(v->bitmap, bit)) - bit;
}

static bool uses_digests(const struct volume *v)
{
    const struct re_link *o = &v->core->link.options;
    return v->resync_options.use_csums && o->version >= 89 && digest_bytes((enum digest_alg)o->csums_alg) > 0;
}

static struct ask plan(const struct volume *v, uint64_t bit)
{
    const struct resync_target *t = &v->target;
    const struct re_link *o = &v->core->link.options;
    uint64_t most = u64_min(version_bits_max(o->version), RESYNC_REQUEST_BYTES_MAX / BLOCK_BYTES);
    uint64_t allowed = (uint64_t)t->allowed_sectors / BLOCK_SECTORS;
    if (uses_digests(v))
        return (struct ask){.bits = run_length(v, bit, u64_min(most, RESYNC_CSUM_BYTES_MAX / BLOCK_BYTES)),
                            .by_digest = true};
    /* A Primary's own writes wait behind its requests, so none may be cut in parts (resync_request_shrink). */
    bool thin = (o->features & FEATURE_THIN_RESYNC) && v->state.role != ROLE_PRIMARY;
    if (thin && link_peer_is_ours(v->core)) {
        /* Holes cost nothing: where there were only holes, the controller has no say. */
        most = u64_min(t->thin_bytes / BLOCK_BYTES, version_bits_max(o->version));
        if (t->thin_bytes == RESYNC_REQUEST_BYTES_MAX && allowed < most)
            most = allowed ? allowed : 1;
        return (struct ask){.bits = run_length(v, bit, most), .thin = true};
    }
    uint64_t granule = v->resync_options.discard_granularity / BLOCK_BYTES;
    if (thin && granule && granule <= version_bits_max(o->version) && bit % granule == 0 &&
        bit + granule <= v->bitmap->bits && bitmap_next_clear(v->bitmap, bit) >= bit + granule)
        return (struct ask){.bits = granule, .thin = true};
    if (allowed < most)
        most = allowed ? allowed : 1;
    if (thin && granule)    /* up to the next granule, which may be all dirty */
        most = u64_min(most, granule - bit % granule);
    return (struct ask){.bits = run_length(v, bit, most)};
}

/* ---- sending ---- */

static void send_plain(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    sender_resync_request(v, rq->thin ? P_RS_THIN_REQ : P_RS_DATA_REQUEST, rq->offset, rq->bytes);
}

static void send_digest(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    enum digest_alg alg = (enum digest_alg)v->core->link.options.csums_alg;
    uint8_t digest[DIGEST_BYTES_MAX];
    digest_compute(alg, rq->buf->data, rq->bytes, digest);
    buf_put(rq->buf);
    rq->buf = NULL;
    sender_csum_request(v, rq->offset, rq->bytes, digest, digest_bytes(alg));
}

static void send_request(struct resync_request *rq)
{
    struct resync_target *t = &rq->volume->target;
    rq->stage = RESYNC_ASKED;
    rq->since_ns = rq->volume->core->now_ns;
    t->in_flight_bytes += rq->bytes;
    t->unanswered_bytes += rq->bytes;
    if (rq->by_digest)
        send_digest(rq);
    else
        send_plain(rq);
}

static void begin(struct resync_request *rq);

/* Behind what waits for it.  True: nothing does, it is held. */
static bool step_back(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    rq->stepped_back = rq->stage == RESYNC_ASKED;
    volume_unlock_range(v, &rq->lock);
    bool held = volume_lock_range(v, &rq->lock, rq->offset, rq->bytes, RANGE_EXCLUSIVE, resync_ask_granted);
    if (rq->stage == RESYNC_ASKED && v->core->link.options.two_primaries)
        conflict_stay_behind(v, &rq->lock.range);
    return held;
}

/* Two Primaries: one that is not sent yet keeps its place, or it would never have its turn between the writes of both.
 * When it is sent, it goes behind those of the peer that had to wait for it; the flag holder's peer need not wait. */
static enum range_mode waiting_mode(const struct core *core)
{
    return conflict_mode(core) == RANGE_PASSING ? RANGE_YIELDING : RANGE_EXCLUSIVE;
}

static void send_in_turn(struct resync_request *rq)
{
    range_firm(&rq->volume->ranges, &rq->lock.range);
    send_request(rq);
    if (rq->peer_waits)
        (void)step_back(rq);
    rq->peer_waits = false;
}

static void own_block_read(struct disk_op *op)
{
    struct resync_request *rq = op->owner;
    struct volume *v = rq->volume;
    volume_disk_finished(v, op);
    v->look.usage.disk_ns += v->core->now_ns - rq->since_ns;
    if (op->error)
        volume_disk_error(v, op, RE_DISK_READ);
    if (!resync_request_is_current(rq) || !volume_disk_usable(v)) {
        resync_request_forget(rq);
        return;
    }
    v->stats.resync_disk_bytes += rq->bytes;
    v->target.unwritten_bytes -= rq->bytes;
    rq->stage = RESYNC_LOCKING;
    if (op->error || rq->peer_waits)    /* what cannot be read is overwritten; a write comes before the answer */
        rq->by_digest = false;
    if (rq->stepped_back) {
        rq->stepped_back = false;
        buf_put(rq->buf);
        rq->buf = NULL;
        volume_unlock_range(v, &rq->lock);
        if (volume_lock_range(v, &rq->lock, rq->offset, rq->bytes, RANGE_EXCLUSIVE, resync_ask_granted))
            begin(rq);
        return;
    }
    if (!rq->by_digest) {
        buf_put(rq->buf);
        rq->buf = NULL;
    }
    send_in_turn(rq);
}

/* Its range is locked. */
static void begin(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    uint64_t first = rq->offset / BLOCK_BYTES, last = (rq->offset + rq->bytes - 1) / BLOCK_BYTES;
    if (!resync_request_is_current(rq) || !volume_disk_usable(v) || !bitmap_any_in(v->bitmap, first, last)) {
        resync_request_forget(rq);     /* a write of the application has covered it meanwhile */
        return;
    }
    rq->buf = rq->by_digest ? buf_take(&v->core->peer_buffers, rq->bytes) : NULL;
    if (!rq->buf) {
        rq->by_digest = false;
        send_in_turn(rq);
        return;
    }
    rq->stage = RESYNC_READING;
    rq->since_ns = v->core->now_ns;
    v->target.unwritten_bytes += rq->bytes;
    rq->op = (struct disk_op){.kind = DISK_READ,
                              .fd = v->disk.data_fd,
                              .offset = rq->offset,
                              .length = rq->bytes,
                              .data = rq->buf->data};
    volume_disk_submit(v, &rq->op, own_block_read, rq);
}

void resync_ask_granted(struct range_item *item)
{
    struct resync_request *rq = container_of(item, struct resync_request, lock);
    if (rq->stage == RESYNC_LOCKING)
        begin(rq);
    else if (rq->stage == RESYNC_RECEIVED)
        resync_answer_write(rq);
}

static struct resync_request *request_new(struct volume *v, uint64_t offset, uint32_t bytes)
{
    struct core *core = v->core;
    struct list_head *link = list_pop(&core->resync_free);
    if (!link)
        return NULL;
    struct resync_request *rq = list_entry(link, struct resync_request, link);
    *rq = (struct resync_request){.volume = v,
                                  .stage = RESYNC_LOCKING,
                                  .link_generation = core->link.generation,
                                  .run = v->target.run,
                                  .offset = offset,
                                  .bytes = bytes};
    list_init(&rq->link);
    list_init(&rq->op.link);
    list_init(&rq->lock.range.ready);
    list_add_tail(&v->target.requests, &rq->link);
    v->target.in_flight++;
    return rq;
}

bool resync_ask_next(struct volume *v)
{
    struct resync_target *t = &v->target;
    uint64_t bit = bitmap_next_set(v->bitmap, t->cursor_bit);
    if (bit == UINT64_MAX)
        return false;
    struct ask ask = plan(v, bit);
    uint64_t offset = bit * BLOCK_BYTES;
    struct resync_request *rq =
        request_new(v, offset, (uint32_t)u64_min(ask.bits * BLOCK_BYTES, v->size_bytes - offset));
    if (!rq)
        return false;
    rq->thin = ask.thin;
    rq->by_digest = ask.by_digest;
    t->cursor_bit = bit + ask.bits;
    t->allowed_sectors -= rq->bytes / SECTOR_BYTES;
    if (volume_lock_range(v, &rq->lock, rq->offset, rq->bytes, waiting_mode(v->core), resync_ask_granted))
        begin(rq);
    return true;
}

/* ---- requests that are under way ---- */

void resync_target_yield(struct volume *v, const struct range *write)
{
    struct range *next;
    for (struct range *range = range_first_overlap(&v->ranges, write->begin, write->end); range; range = next) {
        next = range_next_overlap(range, write->begin, write->end);
        struct range_item *item = container_of(range, struct range_item, range);
        if (item->granted != resync_ask_granted || range->ticket > write->ticket)
            continue;
        struct resync_request *rq = container_of(item, struct resync_request, lock);
        bool held = false;
        if (rq->stage == RESYNC_ASKED)
            held = step_back(rq);
        else if (v->core->link.options.two_primaries)
            rq->peer_waits = true;
        else if (rq->stage == RESYNC_READING)
            rq->stepped_back = true;    /* when it has been read: its digest would be of old data */
        else if (rq->stage == RESYNC_LOCKING)
            held = step_back(rq);
        CHECK(!held);   /* the write is before it now */
    }
}

struct resync_request *resync_target_find(struct volume *v, uint64_t sector, uint32_t bytes)
{
    uint64_t offset = sector * SECTOR_BYTES;
    bool in_parts = link_peer_is_ours(v->core);
    for (struct range *range = range_first_overlap(&v->ranges, offset, offset + bytes); range;
         range = range_next_overlap(range, offset, offset + bytes)) {
        struct range_item *item = container_of(range, struct range_item, range);
        if (item->granted != resync_ask_granted)
            continue;
        struct resync_request *rq = container_of(item, struct resync_request, lock);
        if (rq->stage != RESYNC_ASKED || rq->offset != offset)
            continue;
        if (rq->bytes == bytes)
            return rq;
        if (!in_parts || !rq->thin || bytes > rq->bytes || bytes % BLOCK_BYTES)
            continue;
        if (v->state.role != ROLE_PRIMARY)
            return rq;
        v->target.again = true;     /* asked for before we were promoted: our own writes may wait behind it now */
        resync_request_forget(rq);
        return NULL;
    }
    return NULL;
}

/* Its first `bytes` are answered; the rest waits for its answer as a request of its own.  False: no entry is free. */
bool resync_request_shrink(struct resync_request *rq, uint32_t bytes)
{
    struct volume *v = rq->volume;
    if (rq->bytes == bytes)
        return true;
    struct resync_request *rest = request_new(v, rq->offset + bytes, rq->bytes - bytes);
    if (!rest)
        return false;
    rest->stage = RESYNC_ASKED;
    rest->thin = true;
    rest->stepped_back = rq->stepped_back;
    rest->since_ns = v->core->now_ns;
    rq->bytes = bytes;
    /* Both go behind the writes that came before this answer: it is as new as they are. */
    volume_unlock_range(v, &rq->lock);
    volume_lock_range(v, &rq->lock, rq->offset, rq->bytes, RANGE_EXCLUSIVE, resync_ask_granted);
    volume_lock_range(v, &rest->lock, rest->offset, rest->bytes, RANGE_EXCLUSIVE, resync_ask_granted);
    return true;
}
