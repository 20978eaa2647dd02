/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzing of the session with a peer: the real core, a peer that says anything, an application that goes on working.
 *
 * The test plays the control plane: it goes on after every packet, resolves a lost link and brings up the next one.
 * Checked (with fake_world.h): nothing is written outside the device, nothing illegal is sent, there are never more
 * acks than writes, and afterwards the node, alone again, has answered every request of its application, serves it,
 * and has every buffer back.
 */
#include "fuzz/fake_world.h"
#include "fuzz/peer_orders.h"
#include "fuzz/peer_records.h"

enum { TURNS_MAX = 20000, REPLY_BYTES_MAX = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct world world;
static struct re_link options;
static bool hold_disk, is_attached, is_busy;
static struct re_state state;   /* of the volume */
static uint64_t nbd_requests;

/* What a control plane may set while the link is up. */
static const struct re_state connected_states[] = {
    {.role = 1, .peer_role = 2, .connection = 10, .disk = 8, .peer_disk = 8},
    {.role = 2, .peer_role = 1, .connection = 10, .disk = 8, .peer_disk = 8},
    {.role = 2, .peer_role = 2, .connection = 10, .disk = 4, .peer_disk = 4},
    {.role = 1, .peer_role = 2, .connection = 13, .disk = 8, .peer_disk = 5},
    {.role = 2, .peer_role = 1, .connection = 14, .disk = 5, .peer_disk = 8},
    {.role = 2, .peer_role = 1, .connection = 15, .disk = 5, .peer_disk = 8},
    {.role = 1, .peer_role = 2, .connection = 16, .disk = 8, .peer_disk = 4},
    {.role = 2, .peer_role = 1, .connection = 17, .disk = 4, .peer_disk = 8},
    {.role = 1, .peer_role = 2, .connection = 17, .disk = 4, .peer_disk = 8},
    {.role = 1, .peer_role = 2, .connection = 20, .disk = 8, .peer_disk = 4},
    {.role = 2, .peer_role = 1, .connection = 21, .disk = 4, .peer_disk = 8},
    {.role = 1, .peer_role = 2, .connection = 10, .disk = 0, .peer_disk = 8},
    {.role = 2, .peer_role = 1, .connection = 10, .disk = 8, .peer_disk = 0},
    {.role = 1, .peer_role = 2, .connection = 10, .disk = 8, .peer_disk = 0},
    {.role = 1, .peer_role = 2, .connection = 10, .disk = 8, .peer_disk = 8, .suspended = 1},
    {.role = 1, .peer_role = 1, .connection = 10, .disk = 8, .peer_disk = 8},
    {.role = 1, .peer_role = 2, .connection = 22, .disk = 8, .peer_disk = 7},
    {.role = 2, .peer_role = 1, .connection = 23, .disk = 5, .peer_disk = 8},
    {.role = 1, .peer_role = 2, .connection = 18, .disk = 8, .peer_disk = 8},
    {.role = 2, .peer_role = 1, .connection = 19, .disk = 8, .peer_disk = 8},
};
static const struct re_state alone = {.role = 1, .connection = 0, .disk = 8, .peer_disk = 6};

static void set_state(struct re_state wanted)
{
    state = wanted;
    if (!is_attached)
        state.disk = 0;
    if (is_attached && orders.clean_step)
        state.disk = 2;     /* on the way out: whatever else happens */
    state.suspended = orders.suspended || wanted.suspended;
    world_state(&world, state);
}

static void open_peer_stream(int stream)
{
    if (!world.streams[stream].open)
        world_command(&world, (struct re_command){.type = RE_CMD_STREAM_ADD, .stream = stream, .fd = stream}, NULL, 0);
}

static void link_up(void)
{
    open_peer_stream(0);
    open_peer_stream(1);
    world.sent_count = world.epoch_writes = 0;
    world.writes_taken = world.acks_got = world.barriers_taken = world.barrier_acks_got = 0;
    world_command(&world, (struct re_command){.type = RE_CMD_LINK_UP, .stream = -1, .link = options}, NULL, 0);
    set_state(connected_states[0]);
    orders.resending = orders.kept;
    if (orders.kept)
        order_now(&world, RE_CMD_LINK_RESEND, COOKIE_RESEND, 0);
}

/* While I/O is suspended what the peer did not confirm is kept. */
static void link_resolve(void)
{
    set_state(alone);
    orders.kept = orders.suspended;
    order_now(&world, orders.kept ? RE_CMD_LINK_KEEP : RE_CMD_LINK_RESOLVE, 9, 0);
    is_busy = true;     /* until DONE */
}

static void link_down(void)
{
    order_now(&world, RE_CMD_LINK_DOWN, 0, 0);
    link_resolve();
}

static void detach(void)
{
    if (is_attached)
        order_now(&world, RE_CMD_VOLUME_DETACH, 0, 0);
    is_attached = orders.has_undo = orders.undo_begins = false;
    orders.clean_step = orders.resize_step = 0;
}

static void clean_detach(bool went_well)
{
    if (!is_attached || !clean_next(&world, went_well))
        return;
    detach();
    set_state(state);
}

static void order_done(uint64_t cookie, bool went_well)
{
    switch ((enum order_cookie)cookie) {
    case COOKIE_RESEND:
        orders.resending = false;
        orders.kept = orders.kept && !went_well;
        if (orders.kept && world.streams[0].open && world.streams[1].open && !is_busy)
            link_down();
        break;
    case COOKIE_RESIZE:
        if (orders.resize_step)
            resize_next(&world, went_well);
        break;
    case COOKIE_CLEAN:
        if (orders.clean_step)
            clean_detach(went_well);
        break;
    case COOKIE_UNDO:
        orders.has_undo = went_well && orders.undo_begins;
        orders.undo_begins = false;
        break;
    case COOKIE_HOLD:
    case COOKIE_NO_UNDO: break;
    }
}

/* What the control plane does with its events. */
static void take_events(void)
{
    static uint8_t blob[RE_EVENT_BLOB_MAX];
    struct re_event event;
    while (core_event(world.core, &event, blob)) {
        if (event.type == RE_EV_PACKET && event.stream == 0)
            world_command(&world, (struct re_command){.type = RE_CMD_STREAM_RESUME, .stream = 0}, NULL, 0);
        else if (event.type == RE_EV_LINK_LOST)
            link_resolve();
        else if (event.type == RE_EV_DONE && event.cookie == 9)
            is_busy = false;
        else if (event.type == RE_EV_DONE && event.cookie == 1)
            is_attached = event.status == RE_RESULT_OK;
        else if (event.type == RE_EV_DONE && event.cookie >= COOKIE_RESEND)
            order_done(event.cookie, event.status == RE_RESULT_OK);
        else if (event.type == RE_EV_UNDO_FAILED && orders.has_undo) {
            orders.has_undo = false;
            order_now(&world, event.value & 1 ? RE_CMD_UNDO_CANCEL : RE_CMD_UNDO_STOP, 0, 0);
        } else if (event.type == RE_EV_CONGESTED && state.connection == 10)
            set_state(connected_states[16]);
        else if (event.type == RE_EV_DISK_ERROR) {
            detach();
            set_state(state);
        }
    }
}

static void run(void)
{
    for (int turn = 0; world_turn(&world, !hold_disk); turn++) {
        CHECK(turn < TURNS_MAX);
        take_events();
    }
    take_events();
}

static bool link_stands(void)
{
    return world.streams[0].open && world.streams[1].open && !is_busy;
}

/* ---- records ---- */

/* No fewer writes and barriers than the peer can have put into these bytes. */
static void count_packets(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i + 8 <= count; i++) {
        bool long_header = be32_get(bytes + i) == 0x8620ec20u;
        bool short_header = be32_get(bytes + i) == 0x83740267u, middle = be16_get(bytes + i) == 0x835a;
        unsigned command = long_header ? be16_get(bytes + i + 6) : be16_get(bytes + i + (short_header ? 4 : 2));
        if (!long_header && !short_header && !middle)
            continue;
        world.writes_taken += command == P_DATA || command == P_TRIM || command == P_ZEROES;
        world.barriers_taken += command == P_BARRIER;
    }
}

static void peer_sends(int stream, const uint8_t *bytes, size_t count)
{
    if (is_busy)
        return;     /* the next connection waits until the last one is resolved */
    if (!link_stands())
        link_up();
    struct world_stream *s = &world.streams[stream];
    if (!s->open)
        return;
    if (stream == 0)
        count_packets(bytes, count);
    world_append(&s->in, bytes, count);
}

static void answer(const struct record *record)
{
    static uint8_t packet[PACKET_HEADER_MAX + PACKET_DATA_SUB + REPLY_BYTES_MAX];
    static const uint16_t writes[] = {P_WRITE_ACK, P_RECV_ACK, P_RS_WRITE_ACK, P_NEG_ACK, P_SUPERSEDED, P_RETRY_WRITE};
    static const uint16_t reads[] = {P_DATA_REPLY, P_NEG_DREPLY};
    static const uint16_t resyncs[] = {P_RS_DATA_REPLY, P_NEG_RS_DREPLY, P_RS_CANCEL, P_RS_IS_IN_SYNC};
    uint32_t back = record_u8(record, 0) % 16, with = record_u8(record, 1), wrong = record_u8(record, 2);
    if (back >= world.sent_count || !link_stands())
        return;
    struct world_sent sent = world.sent[(world.sent_count - 1 - back) % WORLD_SENT_MAX];
    unsigned command = sent.command == P_BARRIER           ? P_BARRIER_ACK
                       : sent.command == P_DATA_REQUEST    ? reads[with % 2]
                       : sent.command == P_RS_DATA_REQUEST ? resyncs[with % 4]
                                                           : writes[with % 6];
    sent.sub.sector += wrong == 1;
    sent.sub.block_id ^= wrong == 2 ? UINT64_C(1) << (with % 64) : 0;
    sent.bytes += wrong == 3 ? 512 : 0;
    sent.count += wrong == 4;
    bool has_data = command == P_DATA_REPLY || command == P_RS_DATA_REPLY;
    if (has_data && sent.bytes > REPLY_BYTES_MAX)
        return;
    size_t body = command == P_BARRIER_ACK ? 8 : has_data ? PACKET_DATA_SUB + sent.bytes : PACKET_ACK_BODY;
    size_t header = packet_header_put(packet, options.version, command, 0, (uint32_t)body);
    memset(packet + header, 0x5a, body);
    be64_put(packet + header, sent.sub.sector);
    if (command == P_BARRIER_ACK) {
        memcpy(packet + header, sent.barrier, 4);
        be32_put(packet + header + 4, sent.count);
    } else {
        be64_put(packet + header + 8, sent.sub.block_id);
        be32_put(packet + header + 16, sent.bytes);
        be32_put(packet + header + 20, with);
    }
    peer_sends(has_data ? 0 : 1, packet, header + body);
}

static void application(const struct record *record)
{
    static const uint16_t commands[] = {NBD_CMD_WRITE, NBD_CMD_READ, NBD_CMD_FLUSH, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES};
    static const uint8_t payload[64 * 512];
    uint8_t request[NBD_REQUEST_BYTES];
    unsigned command = commands[record_u8(record, 0) % 5];
    uint64_t offset = record_u16(record, 1) % 2400 * UINT64_C(4096) + record_u8(record, 4) % 8 * 512;
    uint32_t length = (1u + record_u8(record, 3) % 64u) * 512;
    bool flush = command == NBD_CMD_FLUSH;
    be32_put(request, NBD_REQUEST_MAGIC);
    be16_put(request + 4, record_u8(record, 0) & 0x80 && command != NBD_CMD_READ ? NBD_CMD_FLAG_FUA : 0);
    be16_put(request + 6, (uint16_t)command);
    be64_put(request + 8, command == NBD_CMD_READ ? UINT64_C(1) << 63 | length : ++nbd_requests);
    nbd_requests += command == NBD_CMD_READ;
    be64_put(request + 16, flush ? 0 : offset);
    be32_put(request + 24, flush ? 0 : length);
    world_append(&world.streams[WORLD_NBD].in, request, sizeof request);
    if (command == NBD_CMD_WRITE)
        world_append(&world.streams[WORLD_NBD].in, payload, length);
}

static void command_of(uint8_t which)
{
    static const uint32_t types[] = {RE_CMD_BITMAP_SEND,      RE_CMD_PING,        RE_CMD_VOLUME_DRAIN,
                                     RE_CMD_BITMAP_SET_ALL,   RE_CMD_BITMAP_WRITE, RE_CMD_BITMAP_CLEAR_ALL};
    switch (which % 10) {
    case 6:
        detach();
        set_state(state);
        break;
    case 7:
        if (!is_attached)
            world_attach(&world, which & 0x80 ? RE_ATTACH_BITMAP_ALL_SET : 0);
        break;
    case 8:
        if (!link_stands())
            break;
        link_down();
        break;
    case 9:
        if (is_attached)
            order_superblock(&world, 0);
        break;
    default:
        if (is_attached || which % 10 == 1 || which % 10 == 2)
            world_command(&world, (struct re_command){.type = types[which % 10], .stream = -1, .cookie = 5}, NULL, 0);
    }
}

/* The blob is what the peer is told; the digest of everything behind it is another. */
static void link_options(uint8_t how)
{
    uint8_t packet[PACKET_HEADER_MAX + 26] = {0};
    options.protocol = 1 + how % 3;
    options.verify_alg = how >> 2 & 1;
    options.csums_alg = how >> 3 & 1;
    options.ko_count = how >> 4 & 3;
    options.two_primaries = how >> 6 & 1;
    options.integrity_alg = how >> 7;
    size_t header = packet_header_put(packet, options.version, P_PROTOCOL_UPDATE, 0, 26);
    packet[header + 24] = options.integrity_alg ? 4 : 0;
    world_command(&world, (struct re_command){.type = RE_CMD_LINK_OPTIONS, .stream = -1, .link = options}, packet,
                  header + 26);
}

static void verify(uint64_t begin, uint64_t sectors)
{
    struct re_verify what = {.start_sector = begin, .stop_sector = sectors ? begin + sectors : UINT64_MAX};
    if (!link_stands() || !is_attached)
        return;
    world_command(&world, (struct re_command){.type = RE_CMD_VERIFY_ORDER, .stream = -1, .verify = what}, NULL, 0);
    set_state(connected_states[18]);
}

static void resume(void)
{
    orders.suspended = false;
    if (orders.kept && !link_stands() && !is_busy) {
        orders.kept = false;
        order_now(&world, RE_CMD_LINK_RESOLVE, 9, 0);
        is_busy = true;
    }
    set_state(state);
}

static void order(const struct record *record)
{
    uint64_t value = record_u16(record, 2);
    uint8_t how = record_u8(record, 1);
    bool is_leaving = orders.clean_step || orders.resize_step;
    switch ((enum order)(record_u8(record, 0) % ORDERS)) {
    case ORDER_VERIFY: verify(value, how); break;
    case ORDER_VERIFY_STOP: order_now(&world, RE_CMD_VERIFY_STOP, 0, 0); break;
    case ORDER_OPTIONS:
        if (link_stands() && options.version >= 100)
            link_options(how);
        break;
    case ORDER_RESIZE:
        if (!is_attached || is_leaving)
            break;
        orders.size = WORLD_DEVICE - how % 4 * UINT64_C(1310720);
        orders.place = (uint32_t)value;
        resize_next(&world, true);
        break;
    case ORDER_WIPE:
        if (is_attached && !is_leaving && orders.place % WORLD_PLACES == 0)
            world_command(&world,
                          (struct re_command){.type = RE_CMD_MD_WIPE, .stream = -1, .value = WORLD_METADATA,
                                              .attach = world_disk_at(1, WORLD_DEVICE)},
                          NULL, 0);
        break;
    case ORDER_UNDO:
        if (!is_attached || orders.has_undo || orders.undo_begins || is_leaving)
            break;
        orders.undo_begins = true;
        world_command(&world,
                      (struct re_command){.type = RE_CMD_UNDO_START, .stream = -1, .cookie = COOKIE_UNDO,
                                          .undo = {.overlay_fd = WORLD_OVERLAY_FD, .map_fd = WORLD_MAP_FD}},
                      NULL, 0);
        break;
    case ORDER_NO_UNDO:
        if (orders.has_undo)
            order_now(&world, RE_CMD_UNDO_STOP, COOKIE_NO_UNDO, 0);
        orders.has_undo = false;
        break;
    case ORDER_CLEAN_DETACH:
        if (!is_attached || is_leaving)
            break;
        state.disk = 2;
        world_state(&world, state);
        clean_detach(true);
        break;
    case ORDER_GIVE_UP:
        if (!is_attached)
            break;
        order_now(&world, RE_CMD_VOLUME_GIVE_UP, 0, how & 1 ? value : 0);
        detach();
        set_state(state);
        break;
    case ORDER_SIZE:
        if (!is_attached)
            order_now(&world, RE_CMD_VOLUME_SIZE, 0, u64_min(value * 512, WORLD_DEVICE));
        break;
    case ORDER_SUSPEND:
        orders.suspended = true;
        set_state(state);
        break;
    case ORDER_RESUME: resume(); break;
    case ORDER_PRIORITY:
        world_command(&world,
                      (struct re_command){.type = RE_CMD_VOLUME_RESYNC, .stream = -1,
                                          .resync = {.resync_rate_kib = 250, .plan_ahead = how % 30,
                                                     .fill_target = (uint32_t)value, .max_rate_kib = 1 << 20,
                                                     .min_rate_kib = how, .use_csums = how & 1,
                                                     .discard_granularity = how & 2 ? 1 << 20 : 0}},
                      NULL, 0);
        break;
    case ORDERS: break;
    }
}

static void disk(const struct record *record)
{
    hold_disk = record_u8(record, 0) & 1;
    if (record_u8(record, 3) && record_u8(record, 0) & 2)
        world.fail_in = record_u8(record, 3);
    for (uint32_t left = record_u8(record, 1); left && world.pending_count; left--)
        world_disk_done(&world, record_u8(record, 2) % world.pending_count);
}

static void wire(const struct record *record)
{
    struct world_stream *s = &world.streams[record_u8(record, 0) & 1];
    uint16_t value = record_u16(record, 2);
    if (!s->open)
        return;
    switch (record_u8(record, 1) % 5) {
    case 0: s->room = value == 0xffff ? SIZE_MAX : value; break;
    case 1: s->piece = value ? value : SIZE_MAX; break;
    case 2: s->eof = true; break;
    case 3: s->reset = true; break;
    default: s->room = SIZE_MAX; break;
    }
}

static void carry_out(const struct record *record)
{
    switch (record->kind) {
    case RECORD_DATA:
    case RECORD_META: peer_sends(record->kind == RECORD_META, record->payload, record->length); break;
    case RECORD_TICK: world.now += record_u16(record, 0) * UINT64_C(1000000); break;
    case RECORD_STATE:
        if (link_stands())
            set_state(connected_states[record_u8(record, 0) % (sizeof connected_states / sizeof connected_states[0])]);
        break;
    case RECORD_NBD: application(record); break;
    case RECORD_ANSWER: answer(record); break;
    case RECORD_DISK: disk(record); break;
    case RECORD_COMMAND: command_of(record_u8(record, 0)); break;
    case RECORD_WIRE: wire(record); break;
    case RECORD_METADATA:
        if (record->length > 2)
            memcpy(world.disk + WORLD_AL + record_u16(record, 0) % (9 * 4096 - 1), record->payload + 2,
                   size_min(record->length - 2, WORLD_DISK - WORLD_AL - record_u16(record, 0) % (9 * 4096 - 1)));
        break;
    case RECORD_ORDER: order(record); break;
    case RECORD_KINDS: break;
    }
}

/* ---- the end ---- */

static void nbd_must_work(unsigned kind, uint8_t block)
{
    const uint8_t payload[] = {(uint8_t)kind, block, 0, 8, 0};
    application(&(struct record){.kind = RECORD_NBD, .payload = payload, .length = sizeof payload});
    run();
    CHECK(world.nbd_replies == nbd_requests && world.nbd_last_error == 0);
}

/* The peer is gone; the node goes on alone with a disk that works. */
static void settle(void)
{
    hold_disk = false;
    world.fail_in = 0;
    run();
    orders.suspended = false;
    if (link_stands())
        link_down();
    else
        resume();
    run();
    CHECK(!is_busy && !orders.kept);
    detach();
    run();
    world_attach(&world, RE_ATTACH_BITMAP_ALL_SET);
    run();
    CHECK(is_attached);
    set_state(alone);
    run();
    CHECK(world.nbd_replies == nbd_requests);
    nbd_must_work(0, 3);
    nbd_must_work(1, 3);
    nbd_must_work(2, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t versions[] = {101, 101, 100, 99, 96, 94};
    if (size < SETTINGS_BYTES)
        return 0;
    world_init(&world);
    hold_disk = is_attached = is_busy = false;
    orders = (struct orders){0};
    nbd_requests = 0;
    options = (struct re_link){.data_stream = 0, .meta_stream = 1, .version = versions[data[0] % 6],
                               .features = data[2] & 15, .protocol = 1 + data[1] % 3, .timeout_ms = 1000,
                               .ping_int_ms = 2000, .ping_timeout_ms = 300, .ko_count = data[3] & 7,
                               .max_epoch_size = 1 + (data[3] >> 3), .max_buffers = 64, .use_rle = data[1] & 0x80,
                               .strict_flush = !(data[1] & 0x40), .resolve_conflicts = !!(data[1] & 0x20),
                               .integrity_alg = data[2] >> 4 & 1, .peer_integrity_alg = data[2] >> 5 & 1,
                               .verify_alg = data[2] >> 6 & 1, .csums_alg = data[2] >> 7,
                               .keep_data = data[0] >> 4 & 1, .two_primaries = data[0] >> 5 & 1,
                               .peer_is_ours = data[0] >> 6 & 1, .on_congestion = data[0] >> 7,
                               .congestion_fill_bytes = 65536, .congestion_extents = 2};
    world.version = options.version;
    world.digest_bytes = options.integrity_alg ? 4 : 0;
    world_attach(&world, RE_ATTACH_BITMAP_EMPTY);
    world_command(&world,
                  (struct re_command){.type = RE_CMD_VOLUME_RESYNC, .stream = -1,
                                      .resync = {.resync_rate_kib = 1 << 20, .max_rate_kib = 1 << 20}},
                  NULL, 0);
    run();
    set_state(alone);
    world_command(&world, (struct re_command){.type = RE_CMD_NBD_ADD, .stream = WORLD_NBD, .nbd = {.fd = WORLD_NBD}},
                  NULL, 0);
    run();
    struct record record;
    size_t at = SETTINGS_BYTES;
    for (int count = 0; count < RECORDS_MAX && record_next(data, size, &at, &record); count++) {
        carry_out(&record);
        run();
    }
    settle();
    CHECK(core_stats(world.core)->requests_free == core_stats(world.core)->requests_total);
    CHECK(core_stats(world.core)->peer_buffers_used_bytes == 0);
    CHECK(core_stats(world.core)->app_buffers_used_bytes == 0);
    world_destroy(&world);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    struct prng prng;
    prng_init(&prng, seed);
    if (!LLVMFuzzerMutate)
        return size;
    if (size < SETTINGS_BYTES || prng_below(&prng, 20) == 0)
        return LLVMFuzzerMutate(data, size, max);
    for (uint64_t left = 1 + prng_below(&prng, 4); left; left--)
        size = mutate_records(data, size, max, &prng);
    return size;
}
