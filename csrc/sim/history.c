/* SPDX-License-Identifier: Apache-2.0 */
/* Tagged sectors, and what a sector may hold: every sector is a register that is read and written at once.
 *
 * Times are numbers of one sequence over all invocations and completions.  A write w and the reads that saw it form a
 * cluster: f(w) is its first completion, s(w) its last invocation.  Two clusters contradict each other exactly when
 * f(w) < s(v) and f(v) < s(w): each would have to come before the other.  So a read that sees w is wrong when some
 * other write v with f(v) before the read's invocation has s(v) > f(w).  A cell keeps the largest s of those, and the
 * largest of another write, since w itself does not count.
 * A write that failed or whose answer never came may take effect once, later, or never: its f is infinite until seen.
 * Zeroes carry no tag: any write of zeroes (or the beginning) that is legal makes them legal.
 */
#include "base/crc32c.h"
#include "sim/internal.h"

#define TAG_MAGIC UINT64_C(0x4d49534754504552)  /* "REPTGSIM" */
#define INFINITE UINT64_MAX

enum { TAG_RUN = 8, TAG_SECTOR = 16, TAG_OP = 24, TAG_GENERATION = 32, TAG_CLIENT = 40, TAG_CRC = 44, TAG_HEAD = 48 };
enum { REPORT_LINES_MAX = 40, OPS_MAX = 1 << 30 };

/* ---- tags ---- */

static uint32_t tag_crc(const uint8_t *p)
{
    return crc32c_raw(crc32c_raw(UINT32_MAX, p, TAG_CRC), p + TAG_HEAD, SECTOR - TAG_HEAD);
}

void tag_fill(const struct re_sim *sim, uint8_t *p, uint64_t sector, uint64_t op, uint64_t generation, uint32_t client)
{
    uint64_t pattern = splitmix64_mix(op << 32 ^ sector);
    le64_put(p, TAG_MAGIC);
    le64_put(p + TAG_RUN, sim->seed);
    le64_put(p + TAG_SECTOR, sector);
    le64_put(p + TAG_OP, op);
    le64_put(p + TAG_GENERATION, generation);
    le32_put(p + TAG_CLIENT, client);
    for (uint64_t i = TAG_HEAD; i < SECTOR; i += 8)
        le64_put(p + i, pattern * (2 * i + 1));
    le32_put(p + TAG_CRC, tag_crc(p));
}

static bool is_zero(const uint8_t *p)
{
    return p[0] == 0 && memcmp(p, p + 1, SECTOR - 1) == 0;
}

int re_sim_tag_parse(const re_sim *sim, const uint8_t *p, uint64_t *op, uint64_t *sector)
{
    if (is_zero(p))
        return 0;
    if (le64_get(p) != TAG_MAGIC || le64_get(p + TAG_RUN) != sim->seed || le32_get(p + TAG_CRC) != tag_crc(p))
        return 2;
    *op = le64_get(p + TAG_OP);
    *sector = le64_get(p + TAG_SECTOR);
    return 1;
}

/* ---- histories ---- */

int re_sim_history_create(re_sim *sim, uint64_t size_bytes)
{
    CHECK(size_bytes && size_bytes % SECTOR == 0);
    sim->histories = realloc(sim->histories, (sim->history_count + 1) * sizeof(struct history *));
    struct history *h = calloc(1, sizeof(*h));
    CHECK(sim->histories && h);
    h->size = size_bytes;
    h->cells = calloc(size_bytes / SECTOR, sizeof(*h->cells));
    CHECK(h->cells);
    sim->histories[sim->history_count] = h;
    return (int)sim->history_count++;
}

struct history *history_get(const struct re_sim *sim, int history)
{
    CHECK(history >= 0 && (size_t)history < sim->history_count);
    return sim->histories[history];
}

void history_free_all(struct re_sim *sim)
{
    for (size_t i = 0; i < sim->history_count; i++) {
        free(sim->histories[i]->cells);
        free(sim->histories[i]->base_ops);
        free(sim->histories[i]);
    }
    for (size_t i = 0; i < sim->op_count; i++)
        free(sim->ops[i].floor);
    free(sim->histories);
    free(sim->ops);
    free(sim->early);
}

/* ---- writes seen before their answer ---- */

static uint64_t early_key(uint64_t op, uint64_t sector)
{
    return (op + 1) << 34 ^ sector;
}

static struct early *early_slot(struct early *table, size_t capacity, uint64_t key)
{
    size_t i = (size_t)splitmix64_mix(key) & (capacity - 1);
    while (table[i].key && table[i].key != key)
        i = (i + 1) & (capacity - 1);
    return &table[i];
}

static void early_note(struct re_sim *sim, uint64_t op, uint64_t sector, uint64_t order)
{
    if (sim->early_count * 2 >= sim->early_capacity) {
        size_t capacity = sim->early_capacity ? sim->early_capacity * 2 : 256;
        struct early *grown = calloc(capacity, sizeof(*grown));
        CHECK(grown);
        for (size_t i = 0; i < sim->early_capacity; i++)
            if (sim->early[i].key)
                *early_slot(grown, capacity, sim->early[i].key) = sim->early[i];
        free(sim->early);
        sim->early = grown;
        sim->early_capacity = capacity;
    }
    struct early *slot = early_slot(sim->early, sim->early_capacity, early_key(op, sector));
    if (slot->key)
        return;
    *slot = (struct early){.key = early_key(op, sector), .order = order};
    sim->early_count++;
}

/* First completion in the cluster of this write. */
static uint64_t first_completion(const struct re_sim *sim, uint64_t op, uint64_t sector)
{
    const struct re_sim_op_info *info = &sim->ops[op].info;
    uint64_t f = info->state == RE_SIM_OP_DONE ? info->completed : INFINITE;
    if (sim->early_count) {
        const struct early *slot = early_slot(sim->early, sim->early_capacity, early_key(op, sector));
        if (slot->key && slot->order < f)
            f = slot->order;
    }
    return f;
}

/* ---- cells ---- */

static void cell_effect(struct cell *cell, uint64_t op, uint64_t s)
{
    uint32_t name = (uint32_t)op + 1;
    if (cell->best_op == name) {
        cell->best_s = u64_max(cell->best_s, s);
    } else if (s > cell->best_s) {
        cell->second_s = cell->best_s;
        cell->best_s = s;
        cell->best_op = name;
    } else
        cell->second_s = u64_max(cell->second_s, s);
}

static uint64_t zero_first(const struct cell *cell)
{
    return cell->zero_pending ? INFINITE : cell->zero_done;
}

static bool is_zeroing(const struct re_sim_op_info *info)
{
    return info->kind == RE_SIM_NBD_ZERO || info->kind == RE_SIM_NBD_TRIM;
}

void history_invoked(struct re_sim *sim, struct nbd_op *op)
{
    struct history *h = history_get(sim, op->history);
    op->info.invoked = ++sim->order;
    op->info.invoked_ns = sim->now;
    struct cell *cells = h->cells + op->info.offset / SECTOR;
    uint64_t count = op->info.length / SECTOR;
    if (op->info.kind == RE_SIM_NBD_READ) {
        op->floor = malloc(count * sizeof(*op->floor));
        CHECK(op->floor);
        memcpy(op->floor, cells, count * sizeof(*op->floor));
    } else if (is_zeroing(&op->info)) {
        for (uint64_t i = 0; i < count; i++)
            cells[i].zero_pending++;
    }
}

struct finding {
    const char *what;       /* NULL: all is well */
    uint64_t op;            /* the write that was found, UINT64_MAX: none */
};

/* Is this content whole, ours and in its place? */
static struct finding look(const struct re_sim *sim, int history, const uint8_t *data, uint64_t sector)
{
    struct finding found = {NULL, UINT64_MAX};
    uint64_t tag_sector = 0;
    int kind = re_sim_tag_parse(sim, data, &found.op, &tag_sector);
    if (kind == 0)
        return found;
    if (kind == 2) {
        if (le64_get(data) == TAG_MAGIC) {
            found.op = le64_get(data + TAG_OP);
            found.what = le64_get(data + TAG_RUN) == sim->seed ? "torn or corrupt tag" : "tag of another run";
        } else
            found.what = "bytes that nobody wrote";
        return found;
    }
    const struct nbd_op *op = found.op < sim->op_count ? &sim->ops[found.op] : NULL;
    if (!op || op->info.kind != RE_SIM_NBD_WRITE)
        found.what = "tag of a write that was never made";
    else if (op->history != history)
        found.what = "tag of another device";
    else if (tag_sector != sector)
        found.what = "misdirected write";
    else if (sector < op->info.offset / SECTOR || sector >= (op->info.offset + op->info.length) / SECTOR)
        found.what = "tag outside of its write";
    return found;
}

static uint64_t floor_for(const struct cell *cell, uint64_t op)
{
    uint32_t name = op == UINT64_MAX ? CELL_ZERO : (uint32_t)op + 1;
    return cell->best_op == name ? cell->second_s : cell->best_s;
}

/* May a read that was invoked at `invoked`, when the cell was `floor`, see this? */
static const char *check_seen(const struct re_sim *sim, const struct history *h, const struct cell *floor,
                              uint64_t op, uint64_t sector, uint64_t invoked)
{
    const struct cell *cell = &h->cells[sector];
    uint64_t f = op == UINT64_MAX ? zero_first(cell) : first_completion(sim, op, sector);
    if (f < floor_for(floor, op))
        return "is older than a write or read that had ended before";
    /* What has become known since the read was invoked. */
    if (op != UINT64_MAX && cell->best_op && cell->best_op != CELL_ZERO && cell->best_op != (uint32_t)op + 1 &&
        first_completion(sim, cell->best_op - 1u, sector) < invoked && f < cell->best_s)
        return "contradicts another read";
    return NULL;
}

static void read_completed(struct re_sim *sim, struct nbd_op *read, uint64_t number, const uint8_t *data)
{
    struct history *h = history_get(sim, read->history);
    uint64_t first = read->info.offset / SECTOR, count = read->info.length / SECTOR;
    sim->counters.reads_checked++;
    sim->counters.sectors_checked += count;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t sector = first + i;
        struct finding found = look(sim, read->history, data + i * SECTOR, sector);
        if (!found.what)
            found.what = check_seen(sim, h, &read->floor[i], found.op, sector, read->info.invoked);
        if (found.what) {
            sim_violation(sim, "read %llu of client %d, sector %llu: saw write %lld: %s (last: write %lld)",
                          (unsigned long long)number, read->info.client, (unsigned long long)sector,
                          (long long)found.op, found.what, (long long)read->floor[i].best_op - 1);
            continue;
        }
        if (found.op == UINT64_MAX)
            continue;
        if (first_completion(sim, found.op, sector) > read->info.completed)
            early_note(sim, found.op, sector, read->info.completed);
        cell_effect(&h->cells[sector], found.op,
                    u64_max(sim->ops[found.op].info.invoked, read->info.invoked));
    }
}

void history_completed(struct re_sim *sim, uint64_t number, uint32_t state, const uint8_t *data)
{
    struct nbd_op *op = &sim->ops[number];
    struct history *h = history_get(sim, op->history);
    op->info.state = state;
    op->info.completed = state == RE_SIM_OP_UNKNOWN ? 0 : ++sim->order;
    op->info.completed_ns = sim->now;
    sim_hash(sim, number << 8 ^ state);
    if (state == RE_SIM_OP_DONE) {
        struct cell *cells = h->cells + op->info.offset / SECTOR;
        uint64_t count = op->info.length / SECTOR;
        if (op->info.kind == RE_SIM_NBD_READ)
            read_completed(sim, op, number, data);
        else if (op->info.kind == RE_SIM_NBD_WRITE || op->info.kind == RE_SIM_NBD_ZERO) {
            for (uint64_t i = 0; i < count; i++)
                cell_effect(&cells[i], number, op->info.invoked);
        }
        if (is_zeroing(&op->info))
            for (uint64_t i = 0; i < count; i++) {
                cells[i].zero_pending--;
                cells[i].zero_done = op->info.completed;
            }
    }
    free(op->floor);
    op->floor = NULL;
}

bool re_sim_op_info(const re_sim *sim, int64_t op, struct re_sim_op_info *info)
{
    if (op < 0 || (uint64_t)op >= sim->op_count)
        return false;
    *info = sim->ops[op].info;
    return true;
}

int64_t re_sim_op_count(const re_sim *sim)
{
    return (int64_t)sim->op_count;
}

/* ---- audit ---- */

struct audit {
    struct re_sim *sim;
    int history;
    uint64_t first, count;      /* sectors */
    uint64_t violations;
    char *report;
    size_t report_bytes, report_used;
    int64_t *seen;              /* by sector: write found, -1 zeroes, -2 something broken */
};

static void finding_report(struct audit *a, uint64_t sector, int64_t found, const char *what, int64_t missing)
{
    char line[200];
    char found_text[32] = "zeroes", missing_text[64] = "";
    if (found >= 0)
        snprintf(found_text, sizeof(found_text), "write %lld", (long long)found);
    if (missing >= 0)
        snprintf(missing_text, sizeof(missing_text), " (missing: operation %lld)", (long long)missing);
    snprintf(line, sizeof(line), "sector %llu holds %s: %s%s", (unsigned long long)sector, found_text, what,
             missing_text);
    TRACE(a->sim, "audit: %s", line);
    if (a->violations++ >= REPORT_LINES_MAX || !a->report)
        return;
    size_t length = strlen(line);
    if (a->report_used + length + 2 > a->report_bytes)
        return;
    memcpy(a->report + a->report_used, line, length);
    a->report_used += length;
    a->report[a->report_used++] = '\n';
    a->report[a->report_used] = 0;
}

/* For every sector a write that must be there unless something not older is. */
struct demand {
    uint64_t s;         /* its invocation */
    int64_t op;
};

static void demand_check(struct audit *a, const struct demand *demands, const char *what)
{
    const struct history *h = history_get(a->sim, a->history);
    for (uint64_t i = 0; i < a->count; i++) {
        int64_t seen = a->seen[i];
        uint64_t sector = a->first + i;
        if (seen == -2 || seen == demands[i].op)
            continue;
        uint64_t f;
        if (seen >= 0)
            f = first_completion(a->sim, (uint64_t)seen, sector);
        else if (h->base_order && h->base_ops[sector] == 0)
            f = u64_max(zero_first(&h->cells[sector]), h->base_order);
        else
            f = zero_first(&h->cells[sector]);
        /* What a rebase has declared to be there is as new as the rebase. */
        if (seen >= 0 && h->base_order && h->base_ops[sector] == (uint32_t)seen + 1)
            f = u64_max(f, h->base_order);
        if (f < demands[i].s)
            finding_report(a, sector, seen, what, demands[i].op);
    }
}

static void demand_add(const struct audit *a, struct demand *demands, uint64_t number)
{
    const struct re_sim_op_info *info = &a->sim->ops[number].info;
    uint64_t begin = u64_max(info->offset / SECTOR, a->first);
    uint64_t end = u64_min((info->offset + info->length) / SECTOR, a->first + a->count);
    for (uint64_t sector = begin; sector < end; sector++)
        if (info->invoked > demands[sector - a->first].s)
            demands[sector - a->first] = (struct demand){info->invoked, (int64_t)number};
}

static bool is_effect(const struct nbd_op *op, int history)
{
    return op->history == history && op->info.state == RE_SIM_OP_DONE &&
           (op->info.kind == RE_SIM_NBD_WRITE || op->info.kind == RE_SIM_NBD_ZERO);
}

/* Writes that a completed flush or FUA covers. */
static void audit_flushed(struct audit *a, struct demand *demands)
{
    uint64_t flushed = 0, base = history_get(a->sim, a->history)->base_order;
    for (uint64_t n = 0; n < a->sim->op_count; n++) {
        const struct nbd_op *op = &a->sim->ops[n];
        uint64_t volume = op->info.offset / SECTOR;     /* it covers no other one */
        if (op->history == a->history && op->info.kind == RE_SIM_NBD_FLUSH && op->info.state == RE_SIM_OP_DONE &&
            volume >= a->first && volume < a->first + a->count)
            flushed = u64_max(flushed, op->info.invoked);
    }
    for (uint64_t n = 0; n < a->sim->op_count; n++) {
        const struct nbd_op *op = &a->sim->ops[n];
        if (is_effect(op, a->history) && op->info.invoked > base && (op->info.fua || op->info.completed < flushed))
            demand_add(a, demands, n);
    }
    demand_check(a, demands, "a flushed write is missing");
}

/* Writes that completed before something visible was invoked. */
static void audit_causal(struct audit *a, struct demand *demands)
{
    uint64_t latest = 0, base = history_get(a->sim, a->history)->base_order;
    for (uint64_t i = 0; i < a->count; i++)
        if (a->seen[i] >= 0)
            latest = u64_max(latest, a->sim->ops[a->seen[i]].info.invoked);
    for (uint64_t n = 0; n < a->sim->op_count; n++) {
        const struct nbd_op *op = &a->sim->ops[n];
        if (is_effect(op, a->history) && op->info.invoked > base && op->info.completed < latest)
            demand_add(a, demands, n);
    }
    demand_check(a, demands, "something later is visible, an earlier write is missing");
}

/* All completed writes. */
static void audit_acked(struct audit *a, struct demand *demands)
{
    uint64_t base = history_get(a->sim, a->history)->base_order;
    for (uint64_t n = 0; n < a->sim->op_count; n++)
        if (is_effect(&a->sim->ops[n], a->history) && a->sim->ops[n].info.invoked > base)
            demand_add(a, demands, n);
    demand_check(a, demands, "an acknowledged write is missing");
}

static void audit_strict(struct audit *a)
{
    const struct history *h = history_get(a->sim, a->history);
    for (uint64_t i = 0; i < a->count; i++) {
        uint64_t sector = a->first + i;
        if (a->seen[i] == -2)
            continue;
        const char *what = check_seen(a->sim, h, &h->cells[sector], (uint64_t)a->seen[i], sector, a->sim->order + 1);
        if (what) {
            uint32_t best = h->cells[sector].best_op;
            finding_report(a, sector, a->seen[i], what, best && best != CELL_ZERO ? (int64_t)best - 1 : -1);
        }
    }
}

static void audit_look(struct audit *a, const uint8_t *data)
{
    for (uint64_t i = 0; i < a->count; i++) {
        struct finding found = look(a->sim, a->history, data + i * SECTOR, a->first + i);
        a->seen[i] = found.what ? -2 : (int64_t)found.op;
        if (found.what)
            finding_report(a, a->first + i, (int64_t)found.op, found.what, -1);
    }
}

uint64_t re_sim_audit_image(re_sim *sim, int history, const uint8_t *data, uint64_t device_offset, uint64_t length,
                            uint32_t modes, char *report, size_t report_bytes)
{
    const struct history *h = history_get(sim, history);
    CHECK(device_offset % SECTOR == 0 && length % SECTOR == 0 && u64_range_inside(device_offset, length, h->size));
    struct audit a = {.sim = sim,
                      .history = history,
                      .first = device_offset / SECTOR,
                      .count = length / SECTOR,
                      .report = report_bytes ? report : NULL,
                      .report_bytes = report_bytes};
    if (a.report)
        a.report[0] = 0;
    a.seen = malloc((a.count + 1) * sizeof(*a.seen));
    CHECK(a.seen);
    audit_look(&a, data);
    if (modes & RE_SIM_AUDIT_STRICT)
        audit_strict(&a);
    for (uint32_t mode = RE_SIM_AUDIT_FLUSHED; mode <= RE_SIM_AUDIT_ACKED; mode <<= 1) {
        if (!(modes & mode))
            continue;
        struct demand *demands = calloc(a.count + 1, sizeof(*demands));
        CHECK(demands);
        for (uint64_t i = 0; i < a.count; i++)
            demands[i].op = -1;
        if (mode == RE_SIM_AUDIT_FLUSHED)
            audit_flushed(&a, demands);
        else if (mode == RE_SIM_AUDIT_CAUSAL)
            audit_causal(&a, demands);
        else
            audit_acked(&a, demands);
        free(demands);
    }
    free(a.seen);
    return a.violations;
}

uint64_t re_sim_audit(re_sim *sim, int history, int disk, uint64_t disk_offset, int layer, uint32_t modes, char *report,
                      size_t report_bytes)
{
    const struct history *h = history_get(sim, history);
    CHECK(u64_range_inside(disk_offset, h->size, re_sim_disk_size(sim, disk)));
    return re_sim_audit_image(sim, history, re_sim_disk_content(sim, disk, layer) + disk_offset, 0, h->size, modes,
                              report, report_bytes);
}

void re_sim_history_rebase_part(re_sim *sim, int history, int disk, uint64_t disk_offset, int layer,
                                uint64_t device_offset, uint64_t length)
{
    struct history *h = history_get(sim, history);
    CHECK(u64_range_inside(disk_offset, length, re_sim_disk_size(sim, disk)));
    CHECK(device_offset % SECTOR == 0 && length % SECTOR == 0 && u64_range_inside(device_offset, length, h->size));
    const uint8_t *data = re_sim_disk_content(sim, disk, layer) + disk_offset;
    uint64_t now = ++sim->order;
    if (!h->base_ops)
        h->base_ops = calloc(h->size / SECTOR, sizeof(*h->base_ops));
    CHECK(h->base_ops);
    h->base_order = now;
    for (uint64_t i = 0; i < length / SECTOR; i++) {
        uint64_t sector = device_offset / SECTOR + i;
        struct cell *cell = &h->cells[sector];
        struct finding found = look(sim, history, data + i * SECTOR, sector);
        bool zero = found.what || found.op == UINT64_MAX;
        *cell = (struct cell){.best_s = now,
                              .best_op = zero ? CELL_ZERO : (uint32_t)found.op + 1,
                              .zero_pending = cell->zero_pending,
                              .zero_done = cell->zero_done};
        h->base_ops[sector] = zero ? 0 : (uint32_t)found.op + 1;
    }
}

void re_sim_history_rebase(re_sim *sim, int history, int disk, uint64_t disk_offset, int layer)
{
    re_sim_history_rebase_part(sim, history, disk, disk_offset, layer, 0, history_get(sim, history)->size);
}
