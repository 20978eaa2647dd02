/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bounded queue of messages (a fixed part and a blob, both copied) from one thread to another.
 * Invariants: order is kept; `count` and `bytes` never exceed their limits; a push that finds the queue empty
 * says so, and only that push needs to wake the reader, provided that the reader pops until the queue is
 * empty once woken. Meant for rare messages (commands, events): every message is an allocation.
 */
#ifndef BASE_RING_H
#define BASE_RING_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/list.h"

struct ring_message {
    struct list_head link;          /* in the queue, or in the reader's own list */
    size_t fixed_length;            /* bytes of the fixed part; the blob begins at the next multiple of 16 */
    size_t blob_length;             /* bytes of the blob */
    _Alignas(16) uint8_t payload[]; /* fixed part, padding, blob */
};

struct ring {
    pthread_mutex_t lock;      /* over everything below */
    struct list_head messages; /* oldest first */
    size_t count;              /* messages waiting */
    size_t bytes;              /* their payloads */
    size_t count_max;          /* most messages */
    size_t bytes_max;          /* most bytes */
    bool refused;              /* a push failed since the queue was last emptied or popped from */
};

enum ring_result {
    RING_FULL,   /* nothing was queued: no room, or no memory */
    RING_QUEUED, /* the reader knows already that something waits */
    RING_WAKE,   /* the queue was empty: wake the reader */
};

static inline void ring_init(struct ring *ring, size_t count_max, size_t bytes_max)
{
    *ring = (struct ring){.count_max = count_max, .bytes_max = bytes_max};
    pthread_mutex_init(&ring->lock, NULL);
    list_init(&ring->messages);
}

static inline size_t ring_blob_offset(size_t fixed_length)
{
    return (fixed_length + 15) & ~(size_t)15;
}

static inline const void *ring_fixed(const struct ring_message *message)
{
    return message->payload;
}

static inline const uint8_t *ring_blob(const struct ring_message *message)
{
    return message->payload + ring_blob_offset(message->fixed_length);
}

/* Thread: any. */
static inline enum ring_result ring_push(struct ring *ring, const void *fixed, size_t fixed_length,
                                         const void *blob, size_t blob_length)
{
    size_t blob_offset = ring_blob_offset(fixed_length);
    enum ring_result result = RING_FULL;
    struct ring_message *message = NULL;

    if (blob_length <= ring->bytes_max)
        message = malloc(sizeof(*message) + blob_offset + blob_length);
    if (message != NULL) {
        message->fixed_length = fixed_length;
        message->blob_length = blob_length;
        memcpy(message->payload, fixed, fixed_length);
        memset(message->payload + fixed_length, 0, blob_offset - fixed_length);
        if (blob_length != 0)
            memcpy(message->payload + blob_offset, blob, blob_length);
    }
    pthread_mutex_lock(&ring->lock);
    /* A message alone always fits, so that a large blob is not refused for ever. */
    if (message != NULL && ring->count < ring->count_max &&
        (ring->count == 0 || ring->bytes + blob_offset + blob_length <= ring->bytes_max)) {
        result = ring->count == 0 ? RING_WAKE : RING_QUEUED;
        list_add_tail(&ring->messages, &message->link);
        ring->count++;
        ring->bytes += blob_offset + blob_length;
        message = NULL;
    } else {
        ring->refused = true;
    }
    pthread_mutex_unlock(&ring->lock);
    free(message);
    return result;
}

/* True when a push of `blob_length` bytes would succeed now (memory aside).  Only the writer may rely on it;
 * when it is false the next ring_pop() says that there is room again. */
static inline bool ring_has_room(struct ring *ring, size_t payload_bytes)
{
    pthread_mutex_lock(&ring->lock);
    bool room =
        ring->count < ring->count_max && (ring->count == 0 || ring->bytes + payload_bytes <= ring->bytes_max);
    if (!room)
        ring->refused = true;
    pthread_mutex_unlock(&ring->lock);
    return room;
}

/* The oldest message, which the caller frees, or NULL.  `*room` (may be NULL) becomes true when a writer was
 * refused before and may try again. */
static inline struct ring_message *ring_pop(struct ring *ring, bool *room)
{
    pthread_mutex_lock(&ring->lock);
    struct list_head *link = list_pop(&ring->messages);
    struct ring_message *message = NULL;
    if (link != NULL) {
        message = list_entry(link, struct ring_message, link);
        ring->count--;
        ring->bytes -= ring_blob_offset(message->fixed_length) + message->blob_length;
    }
    bool refused = ring->refused;
    ring->refused = false;
    pthread_mutex_unlock(&ring->lock);
    if (room != NULL)
        *room = refused;
    return message;
}

/* Move every message to `to` (an initialized list of ring_message.link; the caller frees them). */
static inline void ring_take_all(struct ring *ring, struct list_head *to)
{
    pthread_mutex_lock(&ring->lock);
    list_splice_tail(to, &ring->messages);
    ring->count = 0;
    ring->bytes = 0;
    ring->refused = false;
    pthread_mutex_unlock(&ring->lock);
}

/* Frees what is still queued; no thread may use the queue any more. */
static inline void ring_destroy(struct ring *ring)
{
    for (struct list_head *link; (link = list_pop(&ring->messages)) != NULL;)
        free(list_entry(link, struct ring_message, link));
    pthread_mutex_destroy(&ring->lock);
}

#endif
