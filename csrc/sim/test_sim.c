/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the simulator itself, with a small fake core instead of the engine's.
 *
 * The fake serves NBD clients from one disk, one request after the other, and hands bytes of other streams up as
 * events. Planted bugs show that the checker is not blind.
 */
#include "nbd/wire.h"
#include "sim/internal.h"

/* ---- the fake core ---- */

enum bug { BUG_NONE, BUG_LOST_WRITE, BUG_EARLY_ACK, BUG_MISDIRECTED, BUG_NO_FLUSH, BUG_TORN, BUG_STALE_READ, BUG_SPIN };
static enum bug bug;

enum { FAKE_BYTES_MAX = 2 << 20 };

struct fake_stream {
    bool open, nbd, busy;
    uint8_t *in, *out;
    size_t in_count, out_count;
    struct disk_op op;
    uint8_t *payload;
    uint64_t cookie, writes;
    bool early;
    struct core *core;
    int number;
};

struct core {
    const struct io_ops *io;
    void *ctx;
    int disk;
    struct fake_stream streams[RE_STREAMS_MAX];
    struct list_head done, submit;
    struct re_event events[256];
    uint8_t blobs[256][RE_EVENT_BLOB_MAX];
    unsigned first_event, last_event;
};

struct core *core_create(const struct io_ops *io, void *io_ctx, const struct core_config *config)
{
    struct core *core = calloc(1, sizeof(*core));
    (void)config;
    CHECK(core);
    core->io = io;
    core->ctx = io_ctx;
    list_init(&core->done);
    list_init(&core->submit);
    return core;
}

static void fake_close(struct core *core, int stream)
{
    struct fake_stream *s = &core->streams[stream];
    if (!s->open)
        return;
    core->io->stream_close(core->ctx, stream);
    free(s->in);
    free(s->out);
    if (!s->busy) {
        free(s->payload);
        s->payload = NULL;
    }
    s->in = s->out = NULL;
    s->open = false;
}

void core_destroy(struct core *core)
{
    for (int i = 0; i < RE_STREAMS_MAX; i++) {
        fake_close(core, i);
        free(core->streams[i].payload);
    }
    free(core);
}

static void fake_emit(struct core *core, const struct re_event *event, const uint8_t *blob)
{
    CHECK(core->last_event - core->first_event < 256);
    unsigned at = core->last_event++ % 256;
    core->events[at] = *event;
    if (event->blob_length)
        memcpy(core->blobs[at], blob, event->blob_length);
    if (core->last_event - core->first_event == 1)
        core->io->event_wake(core->ctx);
}

bool core_event(struct core *core, struct re_event *event, uint8_t *blob)
{
    if (core->first_event == core->last_event)
        return false;
    unsigned at = core->first_event++ % 256;
    *event = core->events[at];
    if (event->blob_length)
        memcpy(blob, core->blobs[at], event->blob_length);
    return true;
}

static void fake_reply(struct fake_stream *s, uint32_t error, const uint8_t *data, size_t length)
{
    nbd_simple_reply_encode(s->out + s->out_count, s->cookie, error);
    s->out_count += NBD_SIMPLE_REPLY_BYTES;
    if (length)
        memcpy(s->out + s->out_count, data, length);
    s->out_count += length;
}

static void fake_done(struct disk_op *op)
{
    struct fake_stream *s = op->owner;
    s->busy = false;
    if (s->open && !s->early)
        fake_reply(s, nbd_error_from_errno(op->error), op->data, op->kind == DISK_READ ? op->length : 0);
    free(s->payload);
    s->payload = NULL;
}

static void fake_request(struct fake_stream *s)
{
    struct nbd_request r = nbd_request_decode(s->in);
    size_t payload = r.type == NBD_CMD_WRITE ? r.length : 0;
    if (r.type == NBD_CMD_DISC) {
        fake_close(s->core, s->number);
        return;
    }
    s->cookie = r.cookie;
    s->early = false;
    s->payload = calloc(1, r.length + 1u);
    CHECK(s->payload);
    memcpy(s->payload, s->in + NBD_REQUEST_BYTES, payload);
    s->in_count -= NBD_REQUEST_BYTES + payload;
    memmove(s->in, s->in + NBD_REQUEST_BYTES + payload, s->in_count);
    static const uint8_t kinds[] = {DISK_READ, DISK_WRITE, 0, DISK_FLUSH, DISK_ZERO, 0, DISK_ZERO};
    s->op = (struct disk_op){.kind = kinds[r.type],
                             .flags = r.flags & NBD_CMD_FLAG_FUA ? DISK_FUA : 0,
                             .fd = s->core->disk,
                             .offset = r.offset,
                             .length = r.length,
                             .data = s->payload,
                             .owner = s,
                             .done = fake_done};
    list_init(&s->op.link);
    bool write = r.type == NBD_CMD_WRITE;
    s->writes += write;
    if ((bug == BUG_LOST_WRITE && write && s->writes % 16 == 0) || (bug == BUG_NO_FLUSH && r.type == NBD_CMD_FLUSH)) {
        fake_reply(s, 0, NULL, 0);
        free(s->payload);
        s->payload = NULL;
        return;
    }
    if (bug == BUG_EARLY_ACK && write) {
        fake_reply(s, 0, NULL, 0);
        s->early = true;
    }
    if (bug == BUG_MISDIRECTED && write && s->writes % 16 == 0)
        s->op.offset = r.offset ? r.offset - SECTOR : r.offset + SECTOR;
    if (bug == BUG_TORN && write && s->writes % 16 == 0)
        memset(s->payload + 100, 0x55, 8);
    if (bug == BUG_STALE_READ && write && s->writes % 16 == 0 && r.length > SECTOR)
        s->op.length -= SECTOR;
    s->busy = true;
    list_add_tail(&s->core->submit, &s->op.link);
}

static void fake_bytes(struct fake_stream *s)
{
    struct core *core = s->core;
    if (!s->nbd) {
        if (!s->in_count || core->last_event - core->first_event == 256)
            return;
        struct re_event event = {.type = RE_EV_PACKET, .stream = s->number, .volume = -1};
        event.blob_length = (uint32_t)(s->in_count > 4096 ? 4096 : s->in_count);
        fake_emit(core, &event, s->in);
        s->in_count -= event.blob_length;
        memmove(s->in, s->in + event.blob_length, s->in_count);
        return;
    }
    while (s->open && !s->busy && s->in_count >= NBD_REQUEST_BYTES && s->out_count < FAKE_BYTES_MAX / 2) {
        struct nbd_request r = nbd_request_decode(s->in);
        if (s->in_count < NBD_REQUEST_BYTES + (r.type == NBD_CMD_WRITE ? r.length : 0))
            return;
        fake_request(s);
    }
}

void core_stream_ready(struct core *core, int stream, bool readable, bool writable)
{
    struct fake_stream *s = &core->streams[stream];
    (void)writable;
    if (!readable || bug == BUG_SPIN)
        return;
    struct iovec iov = {s->in + s->in_count, FAKE_BYTES_MAX - s->in_count};
    ssize_t got = core->io->stream_receive(core->ctx, stream, &iov, iov.iov_len ? 1 : 0);
    if (got > 0) {
        s->in_count += (size_t)got;
        return;
    }
    if (got == STREAM_IO_AGAIN)
        return;
    if (!s->nbd) {
        struct re_event event = {.type = RE_EV_STREAM_CLOSED, .stream = stream, .volume = -1};
        event.reason = got == STREAM_IO_EOF ? RE_LOST_EOF : RE_LOST_RESET;
        fake_emit(core, &event, NULL);
    }
    fake_close(core, stream);
}

void core_disk_done(struct core *core, struct disk_op *op)
{
    list_add_tail(&core->done, &op->link);
}

void core_command(struct core *core, const struct re_command *c, const uint8_t *blob, size_t length)
{
    struct fake_stream *s = c->stream >= 0 ? &core->streams[c->stream] : NULL;
    switch (c->type) {
    case RE_CMD_VOLUME_ATTACH:
        core->disk = c->attach.data_fd;
        break;
    case RE_CMD_STREAM_ADD:
    case RE_CMD_NBD_ADD:
        *s = (struct fake_stream){.open = true, .nbd = c->type == RE_CMD_NBD_ADD, .core = core, .number = c->stream};
        s->in = malloc(FAKE_BYTES_MAX);
        s->out = malloc(FAKE_BYTES_MAX);
        CHECK(s->in && s->out);
        core->io->stream_open(core->ctx, c->stream, s->nbd ? c->nbd.fd : c->fd);
        break;
    case RE_CMD_STREAM_SEND:
        if (s->open) {
            CHECK(s->out_count + length <= FAKE_BYTES_MAX);
            memcpy(s->out + s->out_count, blob, length);
            s->out_count += length;
        }
        break;
    case RE_CMD_STREAM_CLOSE:
        fake_close(core, c->stream);
        break;
    default:
        break;
    }
    if (c->cookie)
        fake_emit(core, &(struct re_event){.type = RE_EV_DONE, .cookie = c->cookie}, NULL);
}

static void fake_flush(struct fake_stream *s)
{
    size_t sent = 0;
    while (s->open && sent < s->out_count) {
        struct iovec iov = {s->out + sent, s->out_count - sent};
        ssize_t put = s->core->io->stream_send(s->core->ctx, s->number, &iov, 1);
        if (put <= 0)
            break;
        sent += (size_t)put;
    }
    if (!s->open)
        return;
    s->out_count -= sent;
    if (sent)
        memmove(s->out, s->out + sent, s->out_count);
    s->core->io->stream_want(s->core->ctx, s->number, true, s->out_count > 0);
}

uint64_t core_tick(struct core *core)
{
    for (struct list_head *link; (link = list_pop(&core->done));) {
        struct disk_op *op = list_entry(link, struct disk_op, link);
        op->done(op);
    }
    for (int i = 0; i < RE_STREAMS_MAX; i++)
        if (core->streams[i].open) {
            fake_bytes(&core->streams[i]);
            fake_flush(&core->streams[i]);
        }
    if (!list_empty(&core->submit)) {
        struct list_head ops;
        list_init(&ops);
        list_splice_tail(&ops, &core->submit);
        core->io->disk_submit(core->ctx, &ops);
    }
    for (int i = 0; i < RE_STREAMS_MAX; i++)
        if (core->streams[i].open && !core->streams[i].nbd && core->streams[i].in_count)
            return core->io->now_ns(core->ctx) + 100 * SIM_US;
    return UINT64_MAX;
}

bool core_is_stopped(const struct core *core)
{
    (void)core;
    return false;
}

const struct re_volume_stats *core_volume_stats(const struct core *core, int volume)
{
    (void)core;
    (void)volume;
    return NULL;
}

const struct re_engine_stats *core_stats(const struct core *core)
{
    (void)core;
    return NULL;
}

const struct bitmap *core_volume_bitmap(const struct core *core, int volume)
{
    (void)core;
    (void)volume;
    return NULL;
}

/* ---- helpers ---- */

enum { SIZE = 1 << 20 };

struct world {
    re_sim *sim;
    int disk, history, client, fd;
};

static void attach(re_sim *sim, int node, int disk)
{
    struct re_command c = {.type = RE_CMD_VOLUME_ATTACH, .stream = -1};
    c.attach.data_fd = disk;
    re_sim_command(sim, node, &c, NULL, 0);
}

static void add_client(struct world *w, int stream)
{
    w->client = re_sim_nbd_connect(w->sim, 0, w->history, &w->fd);
    struct re_command c = {.type = RE_CMD_NBD_ADD, .stream = stream};
    c.nbd.fd = w->fd;
    re_sim_command(w->sim, 0, &c, NULL, 0);
}

static struct world world(uint64_t seed)
{
    struct world w = {.sim = re_sim_create(seed)};
    w.disk = re_sim_disk_create(w.sim, 0, SIZE);
    w.history = re_sim_history_create(w.sim, SIZE);
    re_sim_engine_start(w.sim, 0, NULL);
    attach(w.sim, 0, w.disk);
    add_client(&w, 0);
    return w;
}

static struct re_sim_workload_settings load(uint64_t ops)
{
    return (struct re_sim_workload_settings){.ops = ops,
                                             .queue_depth = 8,
                                             .read_percent = 30,
                                             .flush_percent = 5,
                                             .zero_percent = 5,
                                             .trim_percent = 2,
                                             .fua_percent = 10,
                                             .hot_percent = 30,
                                             .align_bytes = 512,
                                             .min_bytes = 512,
                                             .max_bytes = 65536,
                                             .span_length = SIZE,
                                             .think_max_ns = 50 * SIM_US};
}

/* Until a notice of this kind; false: not before `until`. */
static bool run_to(re_sim *sim, uint32_t kind, uint64_t until, struct re_sim_notice *notice)
{
    uint8_t blob[RE_EVENT_BLOB_MAX];
    struct re_event event;
    while (re_sim_step(sim, until, notice)) {
        if (notice->kind == kind)
            return true;
        if (notice->kind == RE_SIM_NOTICE_ENGINE)
            while (re_sim_event(sim, notice->node, &event, blob))
                ;
    }
    return false;
}

static void run_load(struct world *w, uint64_t ops)
{
    struct re_sim_notice notice;
    struct re_sim_workload_settings settings = load(ops);
    re_sim_workload(w->sim, w->client, &settings);
    CHECK(run_to(w->sim, RE_SIM_NOTICE_CLIENT_IDLE, re_sim_now(w->sim) + 600 * SIM_SECOND, &notice));
}

static uint64_t audit(struct world *w, uint32_t modes)
{
    char report[4096];
    return re_sim_audit(w->sim, w->history, w->disk, 0, RE_SIM_CURRENT, modes, report, sizeof(report));
}

/* ---- tests ---- */

static void test_equal_seeds_give_equal_traces(void)
{
    uint64_t hashes[3];
    for (int i = 0; i < 3; i++) {
        struct world w = world(i == 2 ? 8 : 7);
        run_load(&w, 500);
        hashes[i] = re_sim_trace_hash(w.sim);
        re_sim_destroy(w.sim);
    }
    CHECK(hashes[0] == hashes[1] && hashes[0] != hashes[2]);
}

static void test_honest_core_gives_no_violation(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct world w = world(seed);
        run_load(&w, 300);
        struct re_sim_client_stats stats;
        re_sim_client_stats(w.sim, w.client, &stats);
        CHECK(stats.submitted == 300 && stats.completed == 300 && stats.in_flight == 0);
        if (re_sim_violations(w.sim))
            fprintf(stderr, "seed %llu: %s\n", (unsigned long long)seed, re_sim_violation(w.sim, 0));
        CHECK(re_sim_violations(w.sim) == 0);
        CHECK(audit(&w, RE_SIM_AUDIT_STRICT | RE_SIM_AUDIT_FLUSHED | RE_SIM_AUDIT_CAUSAL) == 0);
        re_sim_destroy(w.sim);
    }
}

static void test_planted_bug_is_found(enum bug planted)
{
    uint64_t found = 0;
    bug = planted;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct world w = world(seed);
        run_load(&w, 300);
        if (re_sim_violations(w.sim) || audit(&w, RE_SIM_AUDIT_STRICT))
            found++;
        re_sim_destroy(w.sim);
    }
    bug = BUG_NONE;
    CHECK(found >= 8);
}

/* Power fails under load; the machine comes back. */
static void power_cycle(struct world *w, uint64_t seed)
{
    struct re_sim_notice notice;
    struct re_sim_workload_settings settings = load(0);
    re_sim_workload(w->sim, w->client, &settings);
    run_to(w->sim, RE_SIM_NOTICE_NONE, re_sim_now(w->sim) + 20 * SIM_MS + seed * SIM_MS / 3, &notice);
    re_sim_power_off(w->sim, 0);
    CHECK(re_sim_disk_in_flight(w->sim, w->disk) == 0 && re_sim_disk_unflushed(w->sim, w->disk) == 0);
    CHECK(run_to(w->sim, RE_SIM_NOTICE_CLIENT_CLOSED, re_sim_now(w->sim) + SIM_SECOND, &notice));
    re_sim_power_on(w->sim, 0);
}

static void test_power_loss_keeps_what_was_flushed(void)
{
    uint64_t lost = 0, noticed = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct world w = world(seed);
        power_cycle(&w, seed);
        CHECK(audit(&w, RE_SIM_AUDIT_FLUSHED) == 0);
        lost += audit(&w, RE_SIM_AUDIT_STRICT) != 0;
        re_sim_destroy(w.sim);
    }
    CHECK(lost > 10);
    bug = BUG_NO_FLUSH;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct world w = world(seed);
        power_cycle(&w, seed);
        noticed += audit(&w, RE_SIM_AUDIT_FLUSHED) != 0;
        re_sim_destroy(w.sim);
    }
    bug = BUG_NONE;
    CHECK(noticed > 10);
}

static void test_process_crash_keeps_what_was_acknowledged(void)
{
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct world w = world(seed);
        struct re_sim_notice notice;
        struct re_sim_workload_settings settings = load(0);
        re_sim_workload(w.sim, w.client, &settings);
        run_to(w.sim, RE_SIM_NOTICE_NONE, re_sim_now(w.sim) + 10 * SIM_MS + seed * SIM_MS / 3, &notice);
        re_sim_engine_crash(w.sim, 0);
        CHECK(run_to(w.sim, RE_SIM_NOTICE_CLIENT_CLOSED, re_sim_now(w.sim) + SIM_SECOND, &notice));
        CHECK(audit(&w, RE_SIM_AUDIT_STRICT | RE_SIM_AUDIT_CAUSAL) == 0);
        re_sim_engine_start(w.sim, 0, NULL);
        attach(w.sim, 0, w.disk);
        add_client(&w, 5);
        run_load(&w, 200);
        CHECK(re_sim_violations(w.sim) == 0 && audit(&w, RE_SIM_AUDIT_STRICT) == 0);
        re_sim_destroy(w.sim);
    }
}

static void test_acknowledging_too_early_is_found_by_crashes(void)
{
    uint64_t found = 0;
    bug = BUG_EARLY_ACK;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct world w = world(seed);
        struct re_sim_notice notice;
        struct re_sim_workload_settings settings = load(0);
        re_sim_workload(w.sim, w.client, &settings);
        run_to(w.sim, RE_SIM_NOTICE_NONE, re_sim_now(w.sim) + 10 * SIM_MS + seed * SIM_MS / 3, &notice);
        re_sim_engine_crash(w.sim, 0);
        found += audit(&w, RE_SIM_AUDIT_STRICT) != 0;
        re_sim_destroy(w.sim);
    }
    bug = BUG_NONE;
    CHECK(found >= 5);
}

static void test_rebase_accepts_what_was_lost_and_nothing_else(void)
{
    for (uint64_t seed = 1; seed <= 30; seed++) {
        struct world w = world(seed);
        power_cycle(&w, seed);
        re_sim_history_rebase(w.sim, w.history, w.disk, 0, RE_SIM_CURRENT);
        CHECK(audit(&w, RE_SIM_AUDIT_STRICT | RE_SIM_AUDIT_FLUSHED | RE_SIM_AUDIT_CAUSAL) == 0);
        int snapshot = re_sim_disk_snapshot(w.sim, w.disk);
        re_sim_engine_start(w.sim, 0, NULL);
        attach(w.sim, 0, w.disk);
        add_client(&w, 5);
        run_load(&w, 200);
        CHECK(re_sim_violations(w.sim) == 0 && audit(&w, RE_SIM_AUDIT_STRICT | RE_SIM_AUDIT_CAUSAL) == 0);
        re_sim_engine_crash(w.sim, 0);
        re_sim_disk_restore(w.sim, w.disk, snapshot);
        CHECK(audit(&w, RE_SIM_AUDIT_STRICT) != 0);
        re_sim_destroy(w.sim);
    }
}

/* Operations by hand, as if a client had made them. */
static uint64_t by_hand(re_sim *sim, int history, uint32_t kind, uint64_t sector)
{
    sim->ops = sim_grow(sim->ops, sim->op_count, &sim->op_capacity, sizeof(*sim->ops));
    sim->ops[sim->op_count] = (struct nbd_op){
        .info = {.kind = kind, .offset = sector * SECTOR, .length = SECTOR}, .history = history};
    history_invoked(sim, &sim->ops[sim->op_count]);
    return sim->op_count++;
}

static uint64_t read_sees(re_sim *sim, int history, uint64_t read, int64_t write)
{
    uint8_t data[RE_SIM_SECTOR] = {0};
    uint64_t before = re_sim_violations(sim);
    (void)history;
    if (write >= 0)
        tag_fill(sim, data, sim->ops[read].info.offset / SECTOR, (uint64_t)write, 0, 0);
    history_completed(sim, read, RE_SIM_OP_DONE, data);
    return re_sim_violations(sim) - before;
}

static void test_register_rules_hold_read_by_read(void)
{
    re_sim *sim = re_sim_create(1);
    int h = re_sim_history_create(sim, 4096);
    uint64_t r = by_hand(sim, h, RE_SIM_NBD_READ, 0);
    CHECK(read_sees(sim, h, r, -1) == 0);
    uint64_t w1 = by_hand(sim, h, RE_SIM_NBD_WRITE, 0);
    uint64_t beside = by_hand(sim, h, RE_SIM_NBD_READ, 0);
    uint64_t beside2 = by_hand(sim, h, RE_SIM_NBD_READ, 0);
    history_completed(sim, w1, RE_SIM_OP_DONE, NULL);
    CHECK(read_sees(sim, h, beside, -1) == 0);      /* it began before w1 ended */
    CHECK(read_sees(sim, h, beside2, (int64_t)w1) == 0);
    CHECK(read_sees(sim, h, by_hand(sim, h, RE_SIM_NBD_READ, 0), -1) == 1);     /* (b) */
    /* (c): w2 without answer is seen, then w1 again. */
    uint64_t w2 = by_hand(sim, h, RE_SIM_NBD_WRITE, 0);
    CHECK(read_sees(sim, h, by_hand(sim, h, RE_SIM_NBD_READ, 0), (int64_t)w1) == 0);
    CHECK(read_sees(sim, h, by_hand(sim, h, RE_SIM_NBD_READ, 0), (int64_t)w2) == 0);
    CHECK(read_sees(sim, h, by_hand(sim, h, RE_SIM_NBD_READ, 0), (int64_t)w1) == 1);
    /* Two writes at once: either order, but one. */
    uint64_t a = by_hand(sim, h, RE_SIM_NBD_WRITE, 3), b = by_hand(sim, h, RE_SIM_NBD_WRITE, 3);
    history_completed(sim, a, RE_SIM_OP_DONE, NULL);
    history_completed(sim, b, RE_SIM_OP_DONE, NULL);
    CHECK(read_sees(sim, h, by_hand(sim, h, RE_SIM_NBD_READ, 3), (int64_t)a) == 0);
    CHECK(read_sees(sim, h, by_hand(sim, h, RE_SIM_NBD_READ, 3), (int64_t)b) == 1);
    /* A write that failed may still come, once. */
    uint64_t c = by_hand(sim, h, RE_SIM_NBD_WRITE, 5);
    history_completed(sim, c, RE_SIM_OP_FAILED, NULL);
    CHECK(read_sees(sim, h, by_hand(sim, h, RE_SIM_NBD_READ, 5), -1) == 0);
    CHECK(read_sees(sim, h, by_hand(sim, h, RE_SIM_NBD_READ, 5), (int64_t)c) == 0);
    CHECK(read_sees(sim, h, by_hand(sim, h, RE_SIM_NBD_READ, 5), -1) == 1);
    /* A write that was never made, and one of the future. */
    CHECK(read_sees(sim, h, by_hand(sim, h, RE_SIM_NBD_READ, 6), 4000) == 1);
    CHECK(read_sees(sim, h, by_hand(sim, h, RE_SIM_NBD_READ, 6), (int64_t)w1) == 1);
    re_sim_destroy(sim);
}

static void test_causal_audit_wants_what_came_before_the_visible(void)
{
    re_sim *sim = re_sim_create(1);
    int h = re_sim_history_create(sim, 4096);
    uint8_t image[4096] = {0};
    char report[512];
    uint64_t x = by_hand(sim, h, RE_SIM_NBD_WRITE, 0);
    history_completed(sim, x, RE_SIM_OP_DONE, NULL);
    uint64_t y = by_hand(sim, h, RE_SIM_NBD_WRITE, 1);
    CHECK(re_sim_audit_image(sim, h, image, 0, 4096, RE_SIM_AUDIT_CAUSAL, report, sizeof(report)) == 0);
    tag_fill(sim, image + SECTOR, 1, y, 0, 0);
    CHECK(re_sim_audit_image(sim, h, image, 0, 4096, RE_SIM_AUDIT_CAUSAL, report, sizeof(report)) == 1);
    CHECK(strstr(report, "sector 0") != NULL);
    tag_fill(sim, image, 0, x, 0, 0);
    CHECK(re_sim_audit_image(sim, h, image, 0, 4096, RE_SIM_AUDIT_CAUSAL, report, sizeof(report)) == 0);
    re_sim_destroy(sim);
}

/* Submits disk operations without an engine's help: the fake core is only there to own them. */
static void test_every_power_loss_is_among_the_images_of_the_log(void)
{
    enum { BYTES = 16384 };
    for (uint64_t seed = 1; seed <= 300; seed++) {
        re_sim *sim = re_sim_create(seed);
        int disk = re_sim_disk_create(sim, 0, BYTES);
        re_sim_engine_start(sim, 0, NULL);
        attach(sim, 0, disk);
        re_sim_disk_record(sim, disk, true);
        struct disk_op ops[9];
        uint8_t data[9][4096];
        struct prng rng;
        prng_init(&rng, seed);
        struct re_sim_notice notice;
        for (unsigned i = 0; i < 9; i++) {
            uint64_t kind = prng_below(&rng, 10);
            ops[i] = (struct disk_op){.kind = kind < 7 ? DISK_WRITE : kind < 9 ? DISK_FLUSH : DISK_ZERO,
                                      .flags = (uint32_t)prng_below(&rng, 4),
                                      .fd = disk,
                                      .offset = (i % 3 ? i : prng_below(&rng, 9)) * 1024,
                                      .length = 1024,
                                      .data = data[i],
                                      .owner = calloc(1, sizeof(struct fake_stream)),
                                      .done = fake_done};
            CHECK(ops[i].owner);
            memset(data[i], (int)i + 1, sizeof(data[i]));
            list_init(&ops[i].link);
            struct list_head list;
            list_init(&list);
            list_add_tail(&list, &ops[i].link);
            disk_submit(&sim->nodes[0], &list);
            re_sim_step(sim, re_sim_now(sim) + prng_below(&rng, 400) * SIM_US, &notice);
        }
        uint64_t point = re_sim_log_points(sim, disk);
        uint8_t actual[BYTES], image[BYTES];
        int snapshot = re_sim_disk_snapshot(sim, disk);
        (void)snapshot;
        uint32_t in_flight = re_sim_disk_in_flight(sim, disk);
        int count = re_sim_log_candidates(sim, disk, point, NULL, 0);
        CHECK(count >= (int)re_sim_disk_unflushed(sim, disk) && count <= 9 && in_flight <= 9);
        re_sim_power_off(sim, 0);
        memcpy(actual, re_sim_disk_content(sim, disk, RE_SIM_CURRENT), BYTES);
        CHECK(memcmp(actual, re_sim_disk_content(sim, disk, RE_SIM_STABLE), BYTES) == 0);
        /* Each sector as in some image: tearing of several writes at once goes beyond one image. */
        bool explained[BYTES / RE_SIM_SECTOR] = {0};
        uint64_t images = 0;
        for (uint64_t mask = 0; mask < UINT64_C(1) << count; mask++)
            for (int reverse = 0; reverse < 2; reverse++) {
                if (!re_sim_log_image(sim, disk, point, mask, -1, 0, reverse != 0, image))
                    continue;
                images++;
                for (unsigned s = 0; s < BYTES / RE_SIM_SECTOR; s++)
                    explained[s] |= memcmp(image + s * SECTOR, actual + s * SECTOR, SECTOR) == 0;
            }
        CHECK(images > 0);
        for (unsigned s = 0; s < BYTES / RE_SIM_SECTOR; s++)
            CHECK(explained[s]);
        re_sim_destroy(sim);
        for (unsigned i = 0; i < 9; i++)
            free(ops[i].owner);
    }
}

static void test_preflush_write_is_never_there_before_what_it_flushes(void)
{
    re_sim *sim = re_sim_create(3);
    int disk = re_sim_disk_create(sim, 0, 8192);
    uint8_t data[512], out[8192];
    uint32_t candidates[4];
    re_sim_disk_record(sim, disk, true);
    memset(data, 1, sizeof(data));
    CHECK(re_sim_disk_pwrite(sim, disk, 0, data, 512) == 0);
    struct disk *d = disk_get(sim, disk);
    memset(data, 2, sizeof(data));
    d->order++;
    disk_log_submit(sim, d, RE_SIM_OP_WRITE, RE_SIM_OP_PREFLUSH | RE_SIM_OP_FUA, 4096, 512, data);
    CHECK(re_sim_log_points(sim, disk) == 3);
    CHECK(re_sim_log_candidates(sim, disk, 1, candidates, 4) == 1);
    CHECK(re_sim_log_candidates(sim, disk, 3, candidates, 4) == 2 && candidates[0] == 0 && candidates[1] == 1);
    CHECK(!re_sim_log_image(sim, disk, 3, 2, -1, 0, false, out));
    CHECK(re_sim_log_image(sim, disk, 3, 3, -1, 0, false, out) && out[0] == 1 && out[4096] == 2);
    CHECK(re_sim_log_image(sim, disk, 3, 1, -1, 0, false, out) && out[0] == 1 && out[4096] == 0);
    CHECK(re_sim_log_image(sim, disk, 3, 0, -1, 0, false, out) && out[0] == 0);
    CHECK(!re_sim_log_image(sim, disk, 3, 3, 0, 0, false, out));
    d->order++;
    disk_log_complete(sim, d, 1, 0);
    CHECK(re_sim_log_candidates(sim, disk, 4, candidates, 4) == 0);
    CHECK(re_sim_log_image(sim, disk, 4, 0, -1, 0, false, out) && out[0] == 1 && out[4096] == 2);
    re_sim_destroy(sim);
}

static void ended(struct disk_op *op)
{
    *(bool *)op->owner = true;
}

static void test_failed_preflush_write_is_never_there_before_what_it_flushes(void)
{
    unsigned there = 0, missing = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        re_sim *sim = re_sim_create(seed);
        struct re_sim_notice notice;
        int disk = re_sim_disk_create(sim, 0, 8192);
        re_sim_engine_start(sim, 0, NULL);
        uint8_t data[512];
        memset(data, 1, sizeof(data));
        CHECK(re_sim_disk_pwrite(sim, disk, 0, data, 512) == 0);
        re_sim_disk_fail_next(sim, disk, RE_DISK_WRITE, 1, EIO);
        bool is_over = false;
        memset(data, 2, sizeof(data));
        struct disk_op op = {.kind = DISK_WRITE,
                             .flags = DISK_FUA | DISK_PREFLUSH,
                             .fd = disk,
                             .offset = 4096,
                             .length = 512,
                             .data = data,
                             .done = ended,
                             .owner = &is_over};
        struct list_head ops;
        list_init(&ops);
        list_init(&op.link);
        list_add_tail(&ops, &op.link);
        struct disk *d = disk_get(sim, disk);
        d->order += seed & 1;
        disk_submit(&sim->nodes[0], &ops);
        while (!is_over)
            (void)re_sim_step(sim, re_sim_now(sim) + SIM_SECOND, &notice);
        CHECK(op.error == EIO);
        bool is_there = d->layers[RE_SIM_CURRENT][4096] == 2;
        CHECK(!is_there || d->layers[RE_SIM_STABLE][0] == 1);
        there += is_there;
        missing += d->layers[RE_SIM_STABLE][0] == 0;
        re_sim_destroy(sim);
    }
    CHECK(there > 0 && missing > 0);
}

static void test_disk_faults_reach_the_client(void)
{
    struct world w = world(5);
    struct re_sim_notice notice;
    re_sim_notice_mask(w.sim, UINT32_MAX);
    re_sim_disk_fail_next(w.sim, w.disk, RE_DISK_WRITE, 1, ENOSPC);
    struct re_sim_nbd_op op = {.kind = RE_SIM_NBD_WRITE, .length = 4096};
    CHECK(re_sim_nbd_submit(w.sim, w.client, &op) == 0);
    CHECK(run_to(w.sim, RE_SIM_NOTICE_CLIENT_OP, 10 * SIM_SECOND, &notice) && notice.error == NBD_ENOSPC);
    re_sim_disk_hold(w.sim, w.disk);
    CHECK(re_sim_nbd_submit(w.sim, w.client, &op) == 1);
    CHECK(!run_to(w.sim, RE_SIM_NOTICE_CLIENT_OP, 20 * SIM_SECOND, &notice));
    re_sim_disk_release(w.sim, w.disk);
    CHECK(run_to(w.sim, RE_SIM_NOTICE_CLIENT_OP, 30 * SIM_SECOND, &notice) && notice.error == 0);
    CHECK(notice.value == 1);
    re_sim_destroy(w.sim);
}

static void test_timers_come_in_order_and_can_be_canceled(void)
{
    re_sim *sim = re_sim_create(1);
    struct re_sim_notice notice;
    uint64_t start = re_sim_now(sim);
    re_sim_timer(sim, start + 300, 3);
    re_sim_timer(sim, start + 100, 1);
    re_sim_timer(sim, start + 200, 2);
    re_sim_timer_cancel(sim, 2);
    CHECK(re_sim_step(sim, start + 1000, &notice) && notice.kind == RE_SIM_NOTICE_TIMER && notice.value == 1);
    CHECK(re_sim_now(sim) == start + 100);
    CHECK(re_sim_step(sim, start + 1000, &notice) && notice.value == 3);
    CHECK(!re_sim_step(sim, start + 1000, &notice) && re_sim_now(sim) == start + 1000);
    CHECK(!re_sim_step(sim, UINT64_MAX, &notice) && re_sim_now(sim) == start + 1000);
    re_sim_destroy(sim);
}

/* ---- network ---- */

struct link_world {
    re_sim *sim;
    int fds[2];         /* at node 0 and node 1 */
};

static struct link_world link_world(uint64_t seed)
{
    struct link_world w = {.sim = re_sim_create(seed), .fds = {-1, -1}};
    struct re_sim_notice notice;
    re_sim_engine_start(w.sim, 0, NULL);
    re_sim_engine_start(w.sim, 1, NULL);
    int listener = re_sim_listen(w.sim, 1, 7788);
    CHECK(listener >= 0 && re_sim_listen(w.sim, 1, 7788) == -EADDRINUSE);
    int dial = re_sim_dial(w.sim, 0, 1, 7788);
    CHECK(run_to(w.sim, RE_SIM_NOTICE_ACCEPTED, 5 * SIM_SECOND, &notice) && notice.id == listener);
    w.fds[1] = notice.fd;
    CHECK(run_to(w.sim, RE_SIM_NOTICE_DIALED, 5 * SIM_SECOND, &notice) && notice.id == dial && !notice.error);
    w.fds[0] = notice.fd;
    for (int i = 0; i < 2; i++)
        re_sim_command(w.sim, i, &(struct re_command){.type = RE_CMD_STREAM_ADD, .stream = 3, .fd = w.fds[i]}, NULL, 0);
    return w;
}

static void send_from(struct link_world *w, int node, const uint8_t *data, size_t length)
{
    re_sim_command(w->sim, node, &(struct re_command){.type = RE_CMD_STREAM_SEND, .stream = 3}, data, length);
}

/* Collects what node 1 gets; returns bytes, or -1 - reason when the stream has ended. */
static long collect(struct link_world *w, uint8_t *data, size_t wanted, uint64_t until)
{
    struct re_sim_notice notice;
    struct re_event event;
    uint8_t blob[RE_EVENT_BLOB_MAX];
    size_t have = 0;
    while (have < wanted && re_sim_step(w->sim, until, &notice))
        while (notice.kind == RE_SIM_NOTICE_ENGINE && re_sim_event(w->sim, notice.node, &event, blob)) {
            if (event.type == RE_EV_STREAM_CLOSED && notice.node == 1)
                return -1 - (long)event.reason;
            if (event.type != RE_EV_PACKET || notice.node != 1)
                continue;
            memcpy(data + have, blob, event.blob_length);
            have += event.blob_length;
        }
    return (long)have;
}

static void fill(uint8_t *data, size_t length)
{
    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)(i * 31 + i / 251);
}

static void test_stream_bytes_arrive_whole_and_in_order(void)
{
    static uint8_t sent[300000], got[400000];
    fill(sent, sizeof(sent));
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct link_world w = link_world(seed);
        struct re_sim_net_settings net;
        re_sim_net_settings_get(w.sim, 0, 1, &net);
        net.partial_ppm = 300000;
        net.tiny_ppm = 100000;
        net.bytes_per_second = seed % 2 ? 0 : 10000000;
        re_sim_net_settings_set(w.sim, -1, -1, &net);
        send_from(&w, 0, sent, sizeof(sent));
        CHECK(collect(&w, got, sizeof(sent), 60 * SIM_SECOND) == (long)sizeof(sent));
        CHECK(memcmp(sent, got, sizeof(sent)) == 0);
        re_sim_destroy(w.sim);
    }
}

static void test_line_that_becomes_faster_carries_what_waits_before_it(void)
{
    static uint8_t sent[60000], got[65536];
    fill(sent, sizeof(sent));
    struct link_world w = link_world(3);
    struct re_sim_net_settings net;
    re_sim_net_settings_get(w.sim, 0, 1, &net);
    net.bytes_per_second = 1000;
    re_sim_net_settings_set(w.sim, -1, -1, &net);
    send_from(&w, 0, sent, sizeof(sent));
    long early = collect(&w, got, sizeof(sent), 10 * SIM_SECOND);
    CHECK(early < 20000);
    net.bytes_per_second = 1000000;
    re_sim_net_settings_set(w.sim, -1, -1, &net);
    long late = collect(&w, got + early, sizeof(sent) - (size_t)early, 11 * SIM_SECOND);
    CHECK(early + late == (long)sizeof(sent) && memcmp(sent, got, sizeof(sent)) == 0);
    re_sim_destroy(w.sim);
}

static void test_cut_path_holds_bytes_until_it_heals(void)
{
    uint8_t sent[5000], got[8192];
    fill(sent, sizeof(sent));
    struct link_world w = link_world(2);
    re_sim_net_path(w.sim, 0, 1, RE_SIM_PATH_DROP);
    send_from(&w, 0, sent, sizeof(sent));
    CHECK(collect(&w, got, sizeof(sent), 30 * SIM_SECOND) == 0);
    re_sim_net_path(w.sim, 0, 1, RE_SIM_PATH_OPEN);
    CHECK(collect(&w, got, sizeof(sent), 40 * SIM_SECOND) == (long)sizeof(sent));
    CHECK(memcmp(sent, got, sizeof(sent)) == 0);
    re_sim_socket_hold(w.sim, w.fds[0], true);
    send_from(&w, 0, sent, sizeof(sent));
    CHECK(collect(&w, got, sizeof(sent), 50 * SIM_SECOND) == 0);
    re_sim_socket_hold(w.sim, w.fds[0], false);
    CHECK(collect(&w, got, sizeof(sent), 60 * SIM_SECOND) == (long)sizeof(sent));
    re_sim_destroy(w.sim);
}

static void test_ends_of_streams_are_told_apart(void)
{
    uint8_t got[64];
    struct link_world w = link_world(3);
    re_sim_command(w.sim, 0, &(struct re_command){.type = RE_CMD_STREAM_CLOSE, .stream = 3}, NULL, 0);
    CHECK(collect(&w, got, 1, 30 * SIM_SECOND) == -1 - RE_LOST_EOF);
    re_sim_destroy(w.sim);
    w = link_world(3);
    re_sim_net_reset(w.sim, 1, 0);
    CHECK(collect(&w, got, 1, 30 * SIM_SECOND) == -1 - RE_LOST_RESET);
    re_sim_destroy(w.sim);
    w = link_world(3);
    re_sim_engine_crash(w.sim, 0);
    CHECK(collect(&w, got, 1, 30 * SIM_SECOND) == -1 - RE_LOST_EOF);
    re_sim_destroy(w.sim);
    w = link_world(3);
    re_sim_power_off(w.sim, 0);
    CHECK(collect(&w, got, 1, 30 * SIM_SECOND) == 0);
    re_sim_power_on(w.sim, 0);
    send_from(&w, 1, (const uint8_t *)"x", 1);
    CHECK(collect(&w, got, 1, 60 * SIM_SECOND) == -1 - RE_LOST_RESET);
    re_sim_destroy(w.sim);
}

static void test_dial_fails_as_networks_do(void)
{
    re_sim *sim = re_sim_create(4);
    struct re_sim_notice notice;
    int dial = re_sim_dial(sim, 0, 1, 1);
    CHECK(run_to(sim, RE_SIM_NOTICE_DIALED, 5 * SIM_SECOND, &notice) && notice.id == dial);
    CHECK(notice.error == ECONNREFUSED);
    re_sim_net_path(sim, 0, 1, RE_SIM_PATH_DROP);
    dial = re_sim_dial(sim, 0, 1, 1);
    CHECK(run_to(sim, RE_SIM_NOTICE_DIALED, 30 * SIM_SECOND, &notice) && notice.id == dial);
    CHECK(notice.error == ETIMEDOUT);
    /* Only the way back is cut: the listener accepts, the dialer never hears of it. */
    re_sim_net_path(sim, 0, 1, RE_SIM_PATH_OPEN);
    re_sim_net_path(sim, 1, 0, RE_SIM_PATH_DROP);
    CHECK(re_sim_listen(sim, 1, 1) == 0);
    re_sim_dial(sim, 0, 1, 1);
    CHECK(run_to(sim, RE_SIM_NOTICE_ACCEPTED, 60 * SIM_SECOND, &notice));
    CHECK(run_to(sim, RE_SIM_NOTICE_DIALED, 60 * SIM_SECOND, &notice) && notice.error == ETIMEDOUT);
    re_sim_destroy(sim);
}

static void test_sniffer_counts_packets_of_all_header_forms(void)
{
    /* P_PING as h80, P_BITMAP with 4 bytes as h95, P_DATA with 2 bytes as h100. */
    static const uint8_t bytes[] = {0x83, 0x74, 0x02, 0x67, 0, 0x13, 0, 0, 0x83, 0x5a, 0, 4, 0, 0, 0, 4, 1, 2, 3, 4,
                                    0x86, 0x20, 0xec, 0x20, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 9, 9,
                                    0x83, 0x74, 0x02, 0x67, 0xff, 0xfe, 0, 0};
    uint8_t got[64];
    struct link_world w = link_world(6);
    send_from(&w, 0, bytes, sizeof(bytes));
    CHECK(collect(&w, got, sizeof(bytes), 30 * SIM_SECOND) == (long)sizeof(bytes));
    CHECK(re_sim_packets_sent(w.sim, 0, 0x13) == 1 && re_sim_packets_sent(w.sim, 0, 4) == 1);
    CHECK(re_sim_packets_sent(w.sim, 0, 0) == 1 && re_sim_packets_sent(w.sim, 0, 0xfffe) == 1);
    re_sim_destroy(w.sim);
}

static void test_frozen_node_goes_on_later(void)
{
    uint8_t sent[100], got[100];
    fill(sent, sizeof(sent));
    struct link_world w = link_world(7);
    CHECK(collect(&w, got, 1, re_sim_now(w.sim) + SIM_SECOND) == 0);
    re_sim_engine_freeze(w.sim, 1, true);
    send_from(&w, 0, sent, sizeof(sent));
    CHECK(collect(&w, got, sizeof(sent), 60 * SIM_SECOND) == 0);
    re_sim_engine_freeze(w.sim, 1, false);
    CHECK(collect(&w, got, sizeof(sent), 61 * SIM_SECOND) == (long)sizeof(sent));
    re_sim_destroy(w.sim);
}

static void test_spinning_engine_is_stopped(void)
{
    struct world w = world(9);
    struct re_sim_notice notice;
    struct re_sim_workload_settings settings = load(1);
    bug = BUG_SPIN;
    re_sim_workload(w.sim, w.client, &settings);
    CHECK(run_to(w.sim, RE_SIM_NOTICE_STUCK, 60 * SIM_SECOND, &notice) && notice.node == 0);
    bug = BUG_NONE;
    re_sim_destroy(w.sim);
}

int main(void)
{
    test_equal_seeds_give_equal_traces();
    test_timers_come_in_order_and_can_be_canceled();
    test_register_rules_hold_read_by_read();
    test_causal_audit_wants_what_came_before_the_visible();
    test_preflush_write_is_never_there_before_what_it_flushes();
    test_every_power_loss_is_among_the_images_of_the_log();
    test_honest_core_gives_no_violation();
    test_planted_bug_is_found(BUG_LOST_WRITE);
    test_planted_bug_is_found(BUG_MISDIRECTED);
    test_planted_bug_is_found(BUG_TORN);
    test_planted_bug_is_found(BUG_STALE_READ);
    test_power_loss_keeps_what_was_flushed();
    test_process_crash_keeps_what_was_acknowledged();
    test_acknowledging_too_early_is_found_by_crashes();
    test_rebase_accepts_what_was_lost_and_nothing_else();
    test_failed_preflush_write_is_never_there_before_what_it_flushes();
    test_disk_faults_reach_the_client();
    test_stream_bytes_arrive_whole_and_in_order();
    test_line_that_becomes_faster_carries_what_waits_before_it();
    test_cut_path_holds_bytes_until_it_heals();
    test_ends_of_streams_are_told_apart();
    test_dial_fails_as_networks_do();
    test_sniffer_counts_packets_of_all_header_forms();
    test_frozen_node_goes_on_later();
    test_spinning_engine_is_stopped();
    puts("sim: all tests passed");
    return 0;
}
