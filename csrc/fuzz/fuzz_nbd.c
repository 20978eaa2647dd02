/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzing of an NBD session: six bytes choose the situation, the rest is what the client sends.
 *
 * Checked: nothing is lost in the pools, every submitted request is well formed (fake_submit), parsing never
 * stalls without a reason (fake_turn), and the session ends once the client is gone.
 */
#include "nbd/fake_host.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct fake_host fake;   /* large: the logs */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fake_client client;
    struct prng shuffle;
    enum re_nbd_end end;

    if (size < 6)
        return 0;
    bool tight = data[1] & 1, shut = data[1] & 2, ahead = data[1] & 4, breaks = data[1] & 8;
    size_t arrive = data[2] ? data[2] * 13u : SIZE_MAX, room = data[3] ? data[3] * 29u : SIZE_MAX;
    uint32_t hold_every = data[4] & 3;
    prng_init(&shuffle, data[5]);
    fake_host_init(&fake, tight ? 3 : 256, tight ? 1 << 20 : 64 << 20, 1 << 16);
    fake.shuffle = &shuffle;
    fake.fail_index = data[4] >> 2;
    fake.fail_error = EIO;
    fake.extents[0] = (struct disk_extent){.length = 5000, .hole = data[5] & 1};
    fake.extents[1] = (struct disk_extent){.length = UINT64_MAX, .hole = data[5] & 2};
    fake.extents_count = data[5] & 3;
    data += 6;
    size -= 6;
    size_t leftover = ahead ? size_min(size / 2, 4096) : 0;
    fake_client_open(&client, &fake, data[-6] & 7, 1 << 20, data, leftover);
    fake_append(&client.input, data + leftover, size - leftover);
    client.eof = true;
    for (uint32_t turn = 0; !nbd_session_is_finished(client.session, &end); turn++) {
        CHECK(turn < 1000000);
        size_t left = client.input.length - client.input_at;
        client.input_ready = client.input_at + size_min(left, arrive);
        client.output_room = room;
        client.send_fails = breaks && turn > 10;
        fake.hold = hold_every && turn % (hold_every + 1);
        if (shut && turn == 5)
            nbd_session_shut(client.session);
        fake_turn(&client);
        bool gave;
        if (data[-6] & 8)       /* somebody else waits for buffers, for longer and longer */
            (void)nbd_session_reclaim(client.session, turn * UINT64_C(70000000), &gave);
    }
    fake_client_close(&client);
    fake_host_destroy(&fake);
    return 0;
}
