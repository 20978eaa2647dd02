/* SPDX-License-Identifier: Apache-2.0 */
/* For fuzz_peer: orders of a control plane that take more than one command, as repl/node gives them.
 *
 * Each order begins with a record; what follows begins when the engine's DONE comes.  The end of the run ends them all.
 */
#ifndef FUZZ_PEER_ORDERS_H
#define FUZZ_PEER_ORDERS_H

#include "fuzz/fake_world.h"

enum order_cookie { COOKIE_RESEND = 20, COOKIE_HOLD, COOKIE_RESIZE, COOKIE_CLEAN, COOKIE_UNDO, COOKIE_NO_UNDO };

enum order {
    ORDER_VERIFY,
    ORDER_VERIFY_STOP,
    ORDER_OPTIONS,
    ORDER_RESIZE,
    ORDER_WIPE,
    ORDER_UNDO,
    ORDER_NO_UNDO,
    ORDER_CLEAN_DETACH,
    ORDER_GIVE_UP,
    ORDER_SIZE,
    ORDER_SUSPEND,
    ORDER_RESUME,
    ORDER_PRIORITY,
    ORDERS,
};

struct orders {
    bool suspended;         /* by the operator */
    bool kept;              /* the engine keeps requests of an earlier link */
    bool resending;
    bool has_undo, undo_begins;
    uint32_t resize_step;   /* of those below that is under way, 0: none */
    uint32_t clean_step;
    uint64_t size;          /* what the disk is to become */
    uint32_t place;         /* where its metadata belongs */
};

static struct orders orders;

static inline void order_now(struct world *w, uint32_t type, uint64_t cookie, uint64_t value)
{
    world_command(w, (struct re_command){.type = type, .stream = -1, .cookie = cookie, .value = value}, NULL, 0);
}

static inline void order_superblock(struct world *w, uint64_t cookie)
{
    static const uint8_t superblock[RE_SUPERBLOCK_BYTES];
    world_command(w, (struct re_command){.type = RE_CMD_MD_WRITE, .stream = -1, .cookie = cookie}, superblock,
                  sizeof superblock);
}

/* ---- another size, metadata in another place ---- */

static inline void resize_next(struct world *w, bool went_well)
{
    if (!went_well || orders.resize_step == 5) {
        order_now(w, RE_CMD_AL_HOLD, 0, 0);
        orders.resize_step = 0;
        return;
    }
    switch (++orders.resize_step) {
    case 1: order_now(w, RE_CMD_AL_HOLD, COOKIE_RESIZE, 1); break;
    case 2:
        world_command(w,
                      (struct re_command){.type = RE_CMD_VOLUME_RESIZE, .stream = -1, .cookie = COOKIE_RESIZE,
                                          .attach = world_disk_at(orders.place, orders.size)},
                      NULL, 0);
        break;
    case 3: order_superblock(w, COOKIE_RESIZE); break;
    case 4: order_now(w, RE_CMD_AL_INITIALIZE, COOKIE_RESIZE, 0); break;
    default: order_now(w, RE_CMD_BITMAP_WRITE, COOKIE_RESIZE, 0); break;
    }
}

/* ---- an orderly detach: the state says already that the disk is not used any more ---- */

/* True when the disk may be let go. */
static inline bool clean_next(struct world *w, bool went_well)
{
    static const uint32_t steps[] = {RE_CMD_VOLUME_QUIESCE, RE_CMD_BITMAP_WRITE, RE_CMD_AL_INITIALIZE};
    if (!went_well || orders.clean_step > 3) {
        orders.clean_step = 0;
        return true;
    }
    if (orders.clean_step < 3)
        order_now(w, steps[orders.clean_step], COOKIE_CLEAN, 0);
    else
        order_superblock(w, COOKIE_CLEAN);
    orders.clean_step++;
    return false;
}

#endif
