/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's core in the simulated world: one node alone, and two nodes with a link, without a control plane.
 *
 * The states are set by hand as a control plane would; setting up a connection and resync belong to tests/sim.
 * usage: test_engine [SEEDS [FIRST [TRACE]]]
 */
#include <inttypes.h>

#include "sim/internal.h"

enum { SIZE = 8 << 20, DISK = SIZE + (1 << 20), SUPERBLOCK = SIZE, AL = SIZE + 4096, BITMAP = SIZE + 65536 };
enum { PRIMARY = 1, SECONDARY = 2, STANDALONE = 0, CONNECTED = 10, UNKNOWN = 6, UP_TO_DATE = 8 };

struct world {
    re_sim *sim;
    int disks[2];
    int history, client;
    bool link_lost[2];
    bool keep_data;
    bool suspended;             /* node 0's I/O, by the next state() */
    uint64_t cookie, done;      /* last command, last RE_EV_DONE */
    int32_t status;             /* of the latter */
};

static void command(struct world *w, int node, struct re_command c)
{
    re_sim_command(w->sim, node, &c, NULL, 0);
}

static void attach(struct world *w, int node)
{
    command(w, node,
            (struct re_command){.type = RE_CMD_VOLUME_ATTACH,
                                .stream = -1,
                                .cookie = ++w->cookie,
                                .attach = {.data_fd = w->disks[node],
                                           .md_fd = w->disks[node],
                                           .flags = RE_ATTACH_BITMAP_EMPTY,
                                           .al_extents = 67,
                                           .al_stripes = 1,
                                           .al_stripe_size_4k = 8,
                                           .size_bytes = SIZE,
                                           .superblock_offset = SUPERBLOCK,
                                           .al_offset = AL,
                                           .bitmap_offset = BITMAP,
                                           .bitmap_bytes = 4096}});
}

static void state(struct world *w, int node, uint8_t role, uint8_t connection, uint8_t peer_disk)
{
    command(w, node,
            (struct re_command){.type = RE_CMD_VOLUME_STATE,
                                .stream = -1,
                                .state = {.role = role,
                                          .peer_role = (uint8_t)(role == PRIMARY ? SECONDARY : PRIMARY),
                                          .connection = connection,
                                          .disk = UP_TO_DATE,
                                          .peer_disk = peer_disk,
                                          .suspended = w->suspended && node == 0}});
}

/* Runs until a notice of this kind or until time is up (false). */
static bool run_to(struct world *w, uint32_t kind, uint64_t until, struct re_sim_notice *notice)
{
    static uint8_t blob[RE_EVENT_BLOB_MAX];
    struct re_event event;
    while (re_sim_step(w->sim, until, notice)) {
        if (notice->kind == RE_SIM_NOTICE_ENGINE)
            while (re_sim_event(w->sim, notice->node, &event, blob)) {
                if (event.type == RE_EV_DONE) {
                    w->done = event.cookie;
                    w->status = event.status;
                }
                if (event.type == RE_EV_LINK_LOST)
                    w->link_lost[notice->node] = true;
            }
        if (notice->kind == kind)
            return true;
    }
    return false;
}

static void add_client(struct world *w)
{
    int fd;
    w->client = re_sim_nbd_connect(w->sim, 0, w->history, &fd);
    command(w, 0, (struct re_command){.type = RE_CMD_NBD_ADD, .stream = 200 + w->client, .nbd = {.fd = fd}});
}

static struct world world(uint64_t seed, int nodes, const char *trace)
{
    struct world w = {.sim = re_sim_create(seed)};
    if (trace)
        CHECK(re_sim_trace_file(w.sim, trace) == 0);
    struct re_sim_engine_config config = {.requests = 256, .app_buffer_bytes = 8 << 20, .peer_buffer_bytes = 8 << 20};
    w.history = re_sim_history_create(w.sim, SIZE);
    for (int i = 0; i < nodes; i++) {
        w.disks[i] = re_sim_disk_create(w.sim, i, DISK);
        re_sim_engine_start(w.sim, i, &config);
        attach(&w, i);
        state(&w, i, i ? SECONDARY : PRIMARY, STANDALONE, UNKNOWN);
    }
    return w;
}

static int connect_socket(struct world *w, int port, int *accepted)
{
    struct re_sim_notice notice;
    int listener = re_sim_listen(w->sim, 1, port);
    CHECK(listener >= 0 && re_sim_dial(w->sim, 0, 1, port) >= 0);
    CHECK(run_to(w, RE_SIM_NOTICE_ACCEPTED, re_sim_now(w->sim) + 5 * SIM_SECOND, &notice));
    *accepted = notice.fd;
    CHECK(run_to(w, RE_SIM_NOTICE_DIALED, re_sim_now(w->sim) + 5 * SIM_SECOND, &notice) && !notice.error);
    re_sim_unlisten(w->sim, listener);
    return notice.fd;
}

static void link_up(struct world *w, uint32_t protocol, uint32_t version)
{
    for (int stream = 1; stream <= 2; stream++) {
        int fds[2];
        fds[0] = connect_socket(w, 7788, &fds[1]);
        for (int i = 0; i < 2; i++)
            command(w, i, (struct re_command){.type = RE_CMD_STREAM_ADD, .stream = stream, .fd = fds[i]});
    }
    for (int i = 0; i < 2; i++) {
        command(w, i,
                (struct re_command){.type = RE_CMD_LINK_UP,
                                    .stream = -1,
                                    .link = {.data_stream = 1,
                                             .meta_stream = 2,
                                             .version = version,
                                             .features = 15,
                                             .protocol = protocol,
                                             .timeout_ms = 6000,
                                             .ping_int_ms = 10000,
                                             .ping_timeout_ms = 500,
                                             .ko_count = 7,
                                             .max_epoch_size = 20,
                                             .max_buffers = 128,
                                             .strict_flush = 1,
                                             .resolve_conflicts = (uint8_t)i,
                                             .keep_data = w->keep_data}});
        state(w, i, i ? SECONDARY : PRIMARY, CONNECTED, UP_TO_DATE);
    }
}

static void start_load(struct world *w, uint64_t ops, uint32_t max_bytes)
{
    struct re_sim_workload_settings settings = {.ops = ops,
                                                .queue_depth = 16,
                                                .read_percent = 30,
                                                .flush_percent = 5,
                                                .zero_percent = 4,
                                                .trim_percent = 2,
                                                .fua_percent = 10,
                                                .hot_percent = 50,
                                                .align_bytes = 512,
                                                .min_bytes = 512,
                                                .max_bytes = max_bytes,
                                                .span_length = SIZE,
                                                .think_max_ns = 100 * SIM_US};
    re_sim_workload(w->sim, w->client, &settings);
}

static unsigned failures;

static void expect(struct world *w, bool good, const char *test, const char *what)
{
    if (good)
        return;
    failures++;
    fprintf(stderr, "seed %" PRIu64 ", %s: %s\n", w->sim->seed, test, what);
    for (uint32_t i = 0; i < 4 && re_sim_violation(w->sim, i); i++)
        fprintf(stderr, "    %s\n", re_sim_violation(w->sim, i));
}

static void expect_audit(struct world *w, int node, uint32_t modes, const char *test, const char *what)
{
    char report[600];
    if (re_sim_audit(w->sim, w->history, w->disks[node], 0, RE_SIM_CURRENT, modes, report, sizeof(report))) {
        expect(w, false, test, what);
        fprintf(stderr, "%s", report);
    }
}

static void run_all(struct world *w, const char *test)
{
    struct re_sim_notice notice;
    struct re_sim_client_stats stats;
    bool idle = run_to(w, RE_SIM_NOTICE_CLIENT_IDLE, re_sim_now(w->sim) + 600 * SIM_SECOND, &notice);
    expect(w, idle, test, "the workload does not end");
    re_sim_client_stats(w->sim, w->client, &stats);
    expect(w, stats.failed == 0 && stats.unknown == 0, test, "operations failed");
    expect(w, re_sim_violations(w->sim) == 0, test, "violations");
}

static void run_for(struct world *w, uint64_t ns)
{
    struct re_sim_notice notice;
    run_to(w, RE_SIM_NOTICE_NONE, re_sim_now(w->sim) + ns, &notice);
}

/* ---- tests ---- */

static uint64_t test_node_alone_serves_a_workload(uint64_t seed, const char *trace)
{
    struct world w = world(seed, 1, trace);
    add_client(&w);
    start_load(&w, 300, 128 << 10);
    run_all(&w, "alone");
    expect_audit(&w, 0, RE_SIM_AUDIT_STRICT, "alone", "the disk is wrong");
    uint64_t hash = re_sim_trace_hash(w.sim);
    re_sim_destroy(w.sim);
    return hash;
}

static void test_crash_of_node_alone_keeps_what_was_acknowledged(uint64_t seed, const char *trace)
{
    struct world w = world(seed, 1, trace);
    add_client(&w);
    start_load(&w, 0, 128 << 10);
    run_for(&w, 5 * SIM_MS + seed % 97 * SIM_MS / 4);
    re_sim_engine_crash(w.sim, 0);
    run_for(&w, SIM_SECOND);
    expect_audit(&w, 0, RE_SIM_AUDIT_STRICT, "crash alone", "an acknowledged write is missing");
    expect(&w, re_sim_violations(w.sim) == 0, "crash alone", "violations");
    re_sim_destroy(w.sim);
}

static void test_power_loss_of_node_alone_keeps_what_was_flushed(uint64_t seed, const char *trace)
{
    struct world w = world(seed, 1, trace);
    add_client(&w);
    start_load(&w, 0, 128 << 10);
    run_for(&w, 5 * SIM_MS + seed % 97 * SIM_MS / 4);
    re_sim_power_off(w.sim, 0);
    run_for(&w, SIM_SECOND);
    expect_audit(&w, 0, RE_SIM_AUDIT_FLUSHED, "power loss alone", "a flushed write is missing");
    expect(&w, re_sim_violations(w.sim) == 0, "power loss alone", "violations");
    re_sim_destroy(w.sim);
}

static void slow_link(struct world *w, uint64_t seed)
{
    struct re_sim_net_settings net;
    re_sim_net_settings_get(w->sim, 0, 1, &net);
    net.tiny_ppm = seed % 3 == 0 ? 50000 : 500;
    net.partial_ppm = seed % 2 ? 200000 : 20000;
    net.latency_max_ns = seed % 5 == 0 ? 5 * SIM_MS : 200 * SIM_US;
    net.buffer_bytes = seed % 7 == 0 ? 4096 : 128 << 10;
    re_sim_net_settings_set(w->sim, -1, -1, &net);
}

static uint32_t protocol_of(uint64_t seed)
{
    return 1 + (uint32_t)(seed % 3);
}

static uint32_t version_of(uint64_t seed)
{
    static const uint32_t versions[] = {101, 100, 96, 94, 86};
    return versions[seed / 3 % 5];
}

/* The oldest headers have 16 bits for the length; the control plane limits requests for such peers. */
static uint32_t max_bytes_of(uint64_t seed)
{
    return version_of(seed) < 95 ? 32 << 10 : 128 << 10;
}

static uint64_t test_two_nodes_become_equal(uint64_t seed, const char *trace)
{
    struct world w = world(seed, 2, trace);
    struct re_sim_notice notice;
    slow_link(&w, seed);
    link_up(&w, protocol_of(seed), version_of(seed));
    add_client(&w);
    start_load(&w, 300, max_bytes_of(seed));
    bool idle = run_to(&w, RE_SIM_NOTICE_CLIENT_IDLE, re_sim_now(w.sim) + 600 * SIM_SECOND, &notice);
    expect(&w, idle, "two nodes", "the workload does not end");
    struct re_sim_client_stats stats;
    re_sim_client_stats(w.sim, w.client, &stats);
    /* Peers older than the features cannot carry writes of zeroes. */
    expect(&w, stats.failed == 0 && stats.unknown == 0, "two nodes", "operations failed");
    command(&w, 0, (struct re_command){.type = RE_CMD_VOLUME_DRAIN, .stream = -1, .cookie = ++w.cookie});
    for (int i = 0; i < 600 && w.done != w.cookie; i++)
        run_for(&w, SIM_SECOND / 10);
    expect(&w, w.done == w.cookie, "two nodes", "the drain does not end");
    expect(&w, re_sim_violations(w.sim) == 0, "two nodes", "violations");
    expect(&w, !w.link_lost[0] && !w.link_lost[1], "two nodes", "the link was lost");
    uint64_t different = re_sim_disk_diff(w.sim, w.disks[0], 0, w.disks[1], 0, SIZE, RE_SIM_CURRENT, NULL);
    expect(&w, different == 0, "two nodes", "the disks differ");
    expect_audit(&w, 1, RE_SIM_AUDIT_STRICT | RE_SIM_AUDIT_CAUSAL, "two nodes", "the peer's disk is wrong");
    const struct re_volume_stats *volume = re_sim_volume_stats(w.sim, 0, 0);
    expect(&w, volume && volume->out_of_sync_bits == 0, "two nodes", "bits are set");
    uint64_t hash = re_sim_trace_hash(w.sim);
    re_sim_destroy(w.sim);
    return hash;
}

/* The primary ends abruptly: what the protocol promises is on the peer. */
static void test_peer_has_what_was_acknowledged(uint64_t seed, bool power, const char *trace)
{
    struct world w = world(seed, 2, trace);
    slow_link(&w, seed);
    link_up(&w, protocol_of(seed), version_of(seed));
    add_client(&w);
    start_load(&w, 0, max_bytes_of(seed));
    run_for(&w, 5 * SIM_MS + seed % 97 * SIM_MS / 2);
    if (power)
        re_sim_power_off(w.sim, 0);
    else
        re_sim_engine_crash(w.sim, 0);
    run_for(&w, 60 * SIM_SECOND);
    expect(&w, w.link_lost[1], "takeover", "the peer does not notice");
    w.cookie++;
    command(&w, 1, (struct re_command){.type = RE_CMD_LINK_RESOLVE, .stream = -1, .cookie = w.cookie});
    run_for(&w, 5 * SIM_SECOND);
    expect(&w, w.done == w.cookie, "takeover", "the peer's writes do not end");
    uint32_t modes = RE_SIM_AUDIT_CAUSAL;
    if (protocol_of(seed) > 1)
        modes |= RE_SIM_AUDIT_ACKED;
    expect_audit(&w, 1, modes, "takeover", "the peer lacks a write");
    expect(&w, re_sim_violations(w.sim) == 0, "takeover", "violations");
    re_sim_destroy(w.sim);
}

/* The link breaks under load: the primary goes on alone and knows which blocks the peer lacks. */
static void test_primary_goes_on_when_the_link_breaks(uint64_t seed, const char *trace)
{
    struct world w = world(seed, 2, trace);
    struct re_sim_notice notice;
    slow_link(&w, seed);
    link_up(&w, protocol_of(seed), version_of(seed));
    add_client(&w);
    start_load(&w, 400, max_bytes_of(seed));
    run_for(&w, 5 * SIM_MS + seed % 97 * SIM_MS / 4);
    if (seed % 2)
        re_sim_net_reset(w.sim, 0, 1);
    else
        re_sim_net_path(w.sim, seed % 4 == 0, seed % 4 != 0, RE_SIM_PATH_DROP);
    for (int i = 0; i < 1200 && !(w.link_lost[0] && w.link_lost[1]); i++)
        run_for(&w, SIM_SECOND / 10);
    expect(&w, w.link_lost[0] && w.link_lost[1], "link breaks", "it is not noticed");
    for (int i = 0; i < 2; i++) {
        state(&w, i, i ? SECONDARY : PRIMARY, STANDALONE, UNKNOWN);
        command(&w, i, (struct re_command){.type = RE_CMD_LINK_RESOLVE, .stream = -1, .cookie = ++w.cookie});
        run_for(&w, SIM_SECOND);
        expect(&w, w.done == w.cookie, "link breaks", "it is not resolved");
    }
    struct re_sim_client_stats stats;
    re_sim_client_stats(w.sim, w.client, &stats);
    if (stats.submitted < 400 || stats.in_flight)
        expect(&w, run_to(&w, RE_SIM_NOTICE_CLIENT_IDLE, re_sim_now(w.sim) + 60 * SIM_SECOND, &notice), "link breaks",
               "the workload does not end");
    re_sim_client_stats(w.sim, w.client, &stats);
    expect(&w, stats.failed == 0 && stats.unknown == 0, "link breaks", "operations failed");
    expect_audit(&w, 0, RE_SIM_AUDIT_STRICT, "link breaks", "the primary's disk is wrong");
    expect_audit(&w, 1, RE_SIM_AUDIT_CAUSAL, "link breaks", "the peer is not causally closed");
    run_for(&w, SIM_SECOND);
    uint64_t different = re_sim_disk_diff(w.sim, w.disks[0], 0, w.disks[1], 0, SIZE, RE_SIM_CURRENT, NULL);
    const struct re_volume_stats *volume = re_sim_volume_stats(w.sim, 0, 0);
    expect(&w, volume && different <= volume->out_of_sync_bits, "link breaks", "fewer bits than different blocks");
    expect(&w, re_sim_violations(w.sim) == 0, "link breaks", "violations");
    re_sim_destroy(w.sim);
}

static void run_command(struct world *w, int node, uint32_t type, const char *what)
{
    command(w, node, (struct re_command){.type = type, .stream = -1, .cookie = ++w->cookie});
    for (int i = 0; i < 600 && w->done != w->cookie; i++)
        run_for(w, SIM_SECOND / 10);
    expect(w, w->done == w->cookie, "frozen", what);
}

static uint64_t answered(struct world *w)
{
    struct re_sim_client_stats stats;
    re_sim_client_stats(w->sim, w->client, &stats);
    return stats.submitted - stats.in_flight;
}

/* The link breaks while I/O is suspended: nothing is completed until the same peer has got everything that it had not
 * confirmed (true), or until it all is marked (false: something was overwritten). */
static bool test_frozen_writes_are_sent_again(uint64_t seed, bool twice, const char *trace)
{
    struct world w = world(seed, 2, trace);
    struct re_sim_notice notice;
    slow_link(&w, seed);
    w.keep_data = seed % 4 < 2;
    link_up(&w, protocol_of(seed), version_of(seed));
    add_client(&w);
    start_load(&w, 400, seed % 2 ? 8 << 10 : max_bytes_of(seed));
    run_for(&w, 5 * SIM_MS + seed % 97 * SIM_MS / 4);
    bool sent = false;
    for (int round = 0; round < (twice ? 2 : 1) && !(round && !sent); round++) {
        if (round == 0 && seed % 3 == 0) {      /* an operator was first */
            w.suspended = true;
            state(&w, 0, PRIMARY, CONNECTED, UP_TO_DATE);
        }
        re_sim_net_reset(w.sim, 0, 1);
        w.link_lost[0] = w.link_lost[1] = false;
        for (int i = 0; i < 1200 && !(w.link_lost[0] && w.link_lost[1]); i++)
            run_for(&w, SIM_SECOND / 10);
        w.suspended = true;
        state(&w, 0, PRIMARY, STANDALONE, UNKNOWN);
        state(&w, 1, SECONDARY, STANDALONE, UNKNOWN);
        run_command(&w, 0, RE_CMD_LINK_KEEP, "the log is not kept");
        run_command(&w, 1, RE_CMD_LINK_RESOLVE, "the peer does not resolve");
        run_for(&w, SIM_SECOND);
        uint64_t before = answered(&w);
        run_for(&w, 100 * SIM_SECOND);
        expect(&w, answered(&w) == before, "frozen", "something was completed");
        if (seed % 5 == 0)                      /* a power failure of the peer takes what it had not flushed */
            re_sim_power_off(w.sim, 1);
        if (seed % 5 == 0) {
            struct re_sim_engine_config config = {.requests = 256};
            re_sim_power_on(w.sim, 1);
            re_sim_engine_start(w.sim, 1, &config);
            attach(&w, 1);
            run_for(&w, SIM_SECOND);
        }
        link_up(&w, protocol_of(seed), version_of(seed));
        run_command(&w, 0, RE_CMD_LINK_RESEND, "nothing is sent again");
        sent = w.status == RE_RESULT_OK;
        expect(&w, answered(&w) == before, "frozen", "something was completed early");
    }
    expect(&w, sent || !w.keep_data, "frozen", "the data was kept, but not sent again");
    if (!sent) {
        run_command(&w, 0, RE_CMD_LINK_DOWN, "the link does not go down");
        state(&w, 0, PRIMARY, STANDALONE, UNKNOWN);
        run_command(&w, 0, RE_CMD_LINK_RESOLVE, "the log is not given up");
    }
    w.suspended = false;
    state(&w, 0, PRIMARY, sent ? CONNECTED : STANDALONE, sent ? UP_TO_DATE : UNKNOWN);
    if (answered(&w) < 400)
        expect(&w, run_to(&w, RE_SIM_NOTICE_CLIENT_IDLE, re_sim_now(w.sim) + 600 * SIM_SECOND, &notice), "frozen",
               "the workload does not end");
    struct re_sim_client_stats stats;
    re_sim_client_stats(w.sim, w.client, &stats);
    expect(&w, stats.failed == 0 && stats.unknown == 0, "frozen", "operations failed");
    if (sent)
        run_command(&w, 0, RE_CMD_VOLUME_DRAIN, "the drain does not end");
    run_for(&w, SIM_SECOND);
    uint64_t different = re_sim_disk_diff(w.sim, w.disks[0], 0, w.disks[1], 0, SIZE, RE_SIM_CURRENT, NULL);
    const struct re_volume_stats *volume = re_sim_volume_stats(w.sim, 0, 0);
    expect(&w, volume && different <= volume->out_of_sync_bits, "frozen", "fewer bits than different blocks");
    expect(&w, !sent || (volume && volume->out_of_sync_bits == 0), "frozen", "bits are set");
    expect_audit(&w, 0, RE_SIM_AUDIT_STRICT, "frozen", "the primary's disk is wrong");
    expect_audit(&w, 1, RE_SIM_AUDIT_CAUSAL | (sent ? RE_SIM_AUDIT_STRICT : 0u), "frozen", "the peer's disk is wrong");
    expect(&w, re_sim_violations(w.sim) == 0, "frozen", "violations");
    re_sim_destroy(w.sim);
    return sent;
}

/* Both machines lose power: what was flushed (strictly, protocol C) is on the peer, and it is causally closed. */
static void test_power_loss_of_both_keeps_what_was_flushed(uint64_t seed, const char *trace)
{
    struct world w = world(seed, 2, trace);
    slow_link(&w, seed);
    link_up(&w, 3, version_of(seed));
    add_client(&w);
    start_load(&w, 0, max_bytes_of(seed));
    run_for(&w, 5 * SIM_MS + seed % 97 * SIM_MS / 2);
    re_sim_power_off(w.sim, 0);
    re_sim_power_off(w.sim, 1);
    run_for(&w, SIM_SECOND);
    expect_audit(&w, 0, RE_SIM_AUDIT_FLUSHED, "power of both", "the primary lacks a flushed write");
    expect_audit(&w, 1, RE_SIM_AUDIT_FLUSHED, "power of both", "the peer lacks a flushed write");
    expect_audit(&w, 1, RE_SIM_AUDIT_CAUSAL, "power of both", "the peer is not causally closed");
    expect(&w, re_sim_violations(w.sim) == 0, "power of both", "violations");
    re_sim_destroy(w.sim);
}

int main(int argc, char **argv)
{
    uint64_t seeds = argc > 1 ? strtoull(argv[1], NULL, 0) : 40;
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    const char *trace = argc > 3 ? argv[3] : NULL;
    uint64_t sent_again = 0;
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        uint64_t hash = test_node_alone_serves_a_workload(seed, trace);
        test_crash_of_node_alone_keeps_what_was_acknowledged(seed, trace);
        test_power_loss_of_node_alone_keeps_what_was_flushed(seed, trace);
        uint64_t hash2 = test_two_nodes_become_equal(seed, trace);
        test_peer_has_what_was_acknowledged(seed, false, trace);
        test_peer_has_what_was_acknowledged(seed, true, trace);
        test_primary_goes_on_when_the_link_breaks(seed, trace);
        test_power_loss_of_both_keeps_what_was_flushed(seed, trace);
        sent_again += test_frozen_writes_are_sent_again(seed, seed % 4 == 0, trace);
        if (seed % 8 == 0) {
            CHECK(test_node_alone_serves_a_workload(seed, NULL) == hash);
            CHECK(test_two_nodes_become_equal(seed, NULL) == hash2);
        }
    }
    CHECK(seeds < 10 || (sent_again > seeds / 2 && sent_again < seeds));
    if (failures)
        fprintf(stderr, "%u failures\n", failures);
    else
        puts("engine: all tests passed");
    return failures != 0;
}
