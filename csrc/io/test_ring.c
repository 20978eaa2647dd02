/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the queue between two threads. */
#include "base/check.h"
#include "base/ring.h"

static uint32_t pop_number(struct ring *ring)
{
    struct ring_message *message = ring_pop(ring, NULL);
    uint32_t number;
    CHECK(message && message->fixed_length == sizeof(number));
    memcpy(&number, ring_fixed(message), sizeof(number));
    free(message);
    return number;
}

static enum ring_result push_number(struct ring *ring, uint32_t number)
{
    return ring_push(ring, &number, sizeof(number), NULL, 0);
}

static void test_ring_only_the_push_into_an_empty_queue_wakes(void)
{
    struct ring ring;
    ring_init(&ring, 8, 1000);
    CHECK(push_number(&ring, 1) == RING_WAKE);
    CHECK(push_number(&ring, 2) == RING_QUEUED);
    CHECK(pop_number(&ring) == 1);
    CHECK(push_number(&ring, 3) == RING_QUEUED);
    CHECK(pop_number(&ring) == 2 && pop_number(&ring) == 3 && ring_pop(&ring, NULL) == NULL);
    CHECK(push_number(&ring, 4) == RING_WAKE);
    ring_destroy(&ring);
}

static void test_ring_full_refuses_and_the_next_pop_tells_of_room(void)
{
    struct ring ring;
    bool room;
    ring_init(&ring, 2, 1000);
    CHECK(push_number(&ring, 1) == RING_WAKE && push_number(&ring, 2) == RING_QUEUED);
    CHECK(push_number(&ring, 3) == RING_FULL && !ring_has_room(&ring, 4));
    free(ring_pop(&ring, &room));
    CHECK(room && ring_has_room(&ring, 4));
    free(ring_pop(&ring, &room));
    CHECK(!room);
    ring_destroy(&ring);
}

static void test_ring_blob_is_copied_aligned_and_bounded(void)
{
    static uint8_t blob[200];
    struct ring ring;
    struct list_head taken;
    ring_init(&ring, 8, 256);
    memset(blob, 7, sizeof(blob));
    CHECK(ring_push(&ring, "abc", 3, blob, sizeof(blob)) == RING_WAKE);
    CHECK(ring_push(&ring, "abc", 3, blob, sizeof(blob)) == RING_FULL);
    CHECK(ring_push(&ring, "abc", 3, blob, 257) == RING_FULL);
    memset(blob, 0, sizeof(blob));
    list_init(&taken);
    ring_take_all(&ring, &taken);
    struct ring_message *message = list_entry(list_pop(&taken), struct ring_message, link);
    CHECK(list_empty(&taken) && memcmp(ring_fixed(message), "abc", 3) == 0);
    CHECK(message->blob_length == 200 && ring_blob(message)[0] == 7 && ring_blob(message)[199] == 7);
    CHECK((uintptr_t)ring_blob(message) % 16 == 0);
    free(message);
    CHECK(ring_push(&ring, "abc", 3, blob, sizeof(blob)) == RING_WAKE);
    ring_destroy(&ring);
}

int main(void)
{
    test_ring_only_the_push_into_an_empty_queue_wakes();
    test_ring_full_refuses_and_the_next_pop_tells_of_room();
    test_ring_blob_is_copied_aligned_and_bounded();
    return 0;
}
