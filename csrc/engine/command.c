/* SPDX-License-Identifier: Apache-2.0 */
/* Commands of the control plane: each one is carried out at once or starts something that ends with RE_EV_DONE. */
#include <stdlib.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

static void invalid(struct core *core, const struct re_command *c)
{
    core_done(core, c->cookie, c->volume, RE_RESULT_INVALID, 0);
}

static struct peer_stream *peer_of(struct core *core, int number)
{
    if (number < 0 || number >= RE_STREAMS_MAX || core->streams[number].owner != STREAM_PEER)
        return NULL;
    return core->streams[number].peer;
}

static void note_stream(struct core *core, int number)
{
    if (core->streams_end <= number)
        core->streams_end = number + 1;
}

static void stream_add(struct core *core, const struct re_command *c)
{
    if (c->stream < 0 || c->stream >= RE_STREAMS_MAX || core->streams[c->stream].owner != STREAM_UNUSED) {
        invalid(core, c);
        return;
    }
    struct peer_stream *peer = calloc(1, sizeof(*peer));
    CHECK(peer);
    CHECK(stream_init(&peer->stream, c->stream, core->io, core->io_ctx, STREAM_RX_BYTES) == RE_OK);
    core->streams[c->stream].owner = STREAM_PEER;
    note_stream(core, c->stream);
    core->streams[c->stream].peer = peer;
    core->io->stream_open(core->io_ctx, c->stream, c->fd);
}

static void stream_send(struct core *core, const struct re_command *c, const uint8_t *blob, size_t length)
{
    struct peer_stream *peer = peer_of(core, c->stream);
    if (peer && peer->stream.number >= 0)
        stream_queue_bytes(&peer->stream, blob, length);
}

static void stream_resume(struct core *core, const struct re_command *c)
{
    struct peer_stream *peer = peer_of(core, c->stream);
    if (!peer || !peer->paused)
        return;
    peer->paused = false;
    receiver_parse(core, peer);
}

static void stream_drop(struct core *core, const struct re_command *c)
{
    struct peer_stream *peer = peer_of(core, c->stream);
    if (!peer)
        return;
    if (peer->in_link)
        return;     /* LINK_DOWN closes those */
    (void)stream_flush(&peer->stream);      /* a last packet may explain why */
    stream_close(&peer->stream);
    free(peer);
    core->streams[c->stream].owner = STREAM_UNUSED;
}

static void nbd_add(struct core *core, const struct re_command *c, const uint8_t *blob, size_t length)
{
    struct volume *v = volume_get(core, c->volume);
    if (!v || c->stream < 0 || c->stream >= RE_STREAMS_MAX || core->streams[c->stream].owner != STREAM_UNUSED) {
        invalid(core, c);
        return;
    }
    core->io->stream_open(core->io_ctx, c->stream, c->nbd.fd);
    struct nbd_session *session = nbd_session_create(&core->nbd_host, core->io, core->io_ctx, c->stream, c->volume,
                                                     v->size_bytes, &c->nbd, blob, length);
    CHECK(session);
    core->streams[c->stream].owner = STREAM_NBD;
    note_stream(core, c->stream);
    core->streams[c->stream].session = session;
    core->stats.nbd_clients++;
    core->payloads_due_ns = u64_min(core->payloads_due_ns, core->now_ns + NBD_PAYLOAD_CHECK_NS);
    nbd_session_ready(session, length > 0, false);
}

static void nbd_close(struct core *core, const struct re_command *c)
{
    if (c->stream >= 0 && c->stream < RE_STREAMS_MAX && core->streams[c->stream].owner == STREAM_NBD)
        nbd_session_shut(core->streams[c->stream].session);
}

static void metadata(struct core *core, const struct re_command *c, struct volume *v, const uint8_t *blob,
                     size_t length)
{
    enum md_job_kind kind = MD_BITMAP_WRITE;
    if (!v->attached || v->detaching) {
        invalid(core, c);
        return;
    }
    switch (c->type) {
    case RE_CMD_MD_WRITE:
        if (length != RE_SUPERBLOCK_BYTES) {
            invalid(core, c);
            return;
        }
        kind = MD_SUPERBLOCK;
        break;
    case RE_CMD_BITMAP_SET_ALL:
        bitmap_set_all(v->bitmap);
        break;
    case RE_CMD_BITMAP_CLEAR_ALL:
        bitmap_clear_all(v->bitmap);
        break;
    case RE_CMD_AL_INITIALIZE:
        kind = MD_AL_INITIALIZE;
        break;
    default:
        break;
    }
    if (volume_md_job(v, kind, c->cookie, kind == MD_SUPERBLOCK ? blob : NULL) != RE_OK)
        invalid(core, c);
}

static void volume_command(struct core *core, const struct re_command *c, const uint8_t *blob, size_t length)
{
    struct volume *v = volume_get(core, c->volume);
    if (!v) {
        invalid(core, c);
        return;
    }
    switch (c->type) {
    case RE_CMD_VOLUME_ATTACH:
        volume_attach(v, &c->attach, c->cookie);
        break;
    case RE_CMD_VOLUME_DETACH:
        volume_detach(v, c->cookie);
        break;
    case RE_CMD_VOLUME_QUIESCE:
        volume_quiesce(v, c->cookie);
        break;
    case RE_CMD_VOLUME_GIVE_UP:
        volume_disk_give_up(v, (uint32_t)c->value);
        core_done(core, c->cookie, c->volume, RE_RESULT_OK, 0);
        break;
    case RE_CMD_AL_HOLD:
        volume_al_hold(v, c->value != 0, c->cookie);
        break;
    case RE_CMD_VOLUME_RESIZE:
        volume_resize(v, &c->attach, c->cookie);
        break;
    case RE_CMD_MD_WIPE:
        volume_md_wipe(v, c->attach.superblock_offset, c->value, c->cookie);
        break;
    case RE_CMD_VOLUME_SIZE:
        if (!v->attached)
            volume_set_size(v, c->value);
        core_done(core, c->cookie, c->volume, v->attached ? RE_RESULT_INVALID : RE_RESULT_OK, 0);
        break;
    case RE_CMD_VOLUME_STATE:
        volume_set_state(v, &c->state);
        core_done(core, c->cookie, c->volume, RE_RESULT_OK, 0);
        break;
    case RE_CMD_VOLUME_RESYNC:
        v->resync_options = c->resync;
        break;
    case RE_CMD_UNDO_START:
        undo_start(v, &c->undo, c->cookie);
        break;
    case RE_CMD_UNDO_STOP:
        undo_stop(v, c->cookie);
        break;
    case RE_CMD_UNDO_CANCEL:
        undo_cancel(v);
        core_done(core, c->cookie, c->volume, RE_RESULT_OK, 0);
        break;
    case RE_CMD_VOLUME_DRAIN:
        volume_drain(v, c->cookie);
        break;
    case RE_CMD_VERIFY_ORDER:
        verify_order(v, &c->verify);
        break;
    case RE_CMD_VERIFY_STOP:
        verify_stop(v);
        break;
    case RE_CMD_BITMAP_SEND:
        bitmap_send_start(v, c->cookie);
        break;
    default:
        metadata(core, c, v, blob, length);
        break;
    }
}

void core_command(struct core *core, const struct re_command *c, const uint8_t *blob, size_t length)
{
    core->now_ns = core->io->now_ns(core->io_ctx);
    switch (c->type) {
    case RE_CMD_NONE:
        break;
    case RE_CMD_STREAM_ADD:
        stream_add(core, c);
        break;
    case RE_CMD_STREAM_SEND:
        stream_send(core, c, blob, length);
        break;
    case RE_CMD_STREAM_RESUME:
        stream_resume(core, c);
        break;
    case RE_CMD_STREAM_CLOSE:
        stream_drop(core, c);
        break;
    case RE_CMD_LINK_UP:
        link_up(core, &c->link);
        break;
    case RE_CMD_LINK_DOWN:
        if (core->link.phase == LINK_UP) {      /* an answer that is queued should still leave */
            (void)stream_flush(&core->link.data->stream);
            (void)stream_flush(&core->link.meta->stream);
        }
        link_lost(core, RE_LOST_NONE, 0, 0, false);
        core_done(core, c->cookie, -1, RE_RESULT_OK, 0);
        break;
    case RE_CMD_LINK_RESOLVE:
        link_resolve(core, c->cookie, false);
        break;
    case RE_CMD_LINK_KEEP:
        link_resolve(core, c->cookie, true);
        break;
    case RE_CMD_LINK_RESEND:
        freeze_resend(core, c->cookie);
        break;
    case RE_CMD_LINK_OPTIONS: {
        int32_t data = core->link.options.data_stream, meta = core->link.options.meta_stream;
        if (length && core->link.phase == LINK_UP)
            stream_queue_bytes(&core->link.data->stream, blob, length);
        core->link.options = c->link;
        core->link.options.data_stream = data;
        core->link.options.meta_stream = meta;
        break;
    }
    case RE_CMD_PING:
        link_ping(core, c->cookie);
        break;
    case RE_CMD_NBD_ADD:
        nbd_add(core, c, blob, length);
        break;
    case RE_CMD_NBD_CLOSE:
        nbd_close(core, c);
        break;
    case RE_CMD_STOP:
        core->stopped = true;
        core_emit(core, &(struct re_event){.type = RE_EV_STOPPED, .volume = -1, .stream = -1}, NULL, 0);
        break;
    default:
        volume_command(core, c, blob, length);
        break;
    }
}
