/* The split virtqueue: core/virtio/queue.c, against a device that works on the ring's memory as the
 * specification says (VIRTIO 1.3, 2.7), knowing nothing of our structures. */
#include "tests/unit/fake_ring.h"

/* --- Creation --- */

TEST(the_size_is_the_largest_power_of_two_that_both_allow) {
    device.transport.ops = &ops;
    static const unsigned cases[][3] = {{256, 256, 256}, {256, 100, 64}, {100, 256, 64},
                                        {1, 256, 1},     {0, 256, 0},    {65535, 65535, 1024},
                                        {1024, 3, 2}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        device.ring.size = cases[i][0];
        assert_int_equal(virtqueue_usable_size(&device.transport, 0, cases[i][1]), cases[i][2]);
    }
    assert_int_equal(virtqueue_usable_size(&device.transport, 1, 256), 0);
}

TEST(a_size_that_is_no_power_of_two_or_too_large_is_refused) {
    static const unsigned sizes[] = {0, 3, 100, 2048};
    assert_int_equal(io_buffer_init(&memory, 1 << 20, 4096), 0);
    device.transport = (struct virtio_transport){.ops = &ops, .node = &node};
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        struct virtqueue_config config = config_of(sizes[i], 0);
        assert_null(virtqueue_create(&device.transport, &memory, &config));
    }
    assert_logged("fake: 100 is no size for queue test");
    io_buffer_release(&memory);
}

TEST(the_dma_memory_asked_for_is_enough_and_less_is_refused) {
    struct virtqueue_config config = config_of(256, TABLES);
    size_t bytes = virtqueue_dma_bytes(&config);
    device.transport =
        (struct virtio_transport){.ops = &ops, .node = &node, .features = VIRTIO_F_INDIRECT_DESC};
    assert_int_equal(io_buffer_init(&memory, bytes, 4096), 0);
    queue = virtqueue_create(&device.transport, &memory, &config);
    assert_non_null(queue);
    tear_down();
    assert_int_equal(io_buffer_init(&memory, bytes - 100, 4096), 0);
    assert_null(virtqueue_create(&device.transport, &memory, &config));
    assert_logged("io_buffer: no ");
    io_buffer_release(&memory);
}

TEST(a_queue_that_cannot_be_made_leaves_nothing) {
    struct virtqueue_config config = config_of(SIZE, TABLES);
    assert_int_equal(io_buffer_init(&memory, 1 << 16, 4096), 0);
    memset(&device, 0, sizeof device);
    device.transport = (struct virtio_transport){.ops = &ops, .node = &node};
    for (uint64_t successes = 0; successes < 3; successes++) {
        unit_allocations_until_failure(successes);
        assert_null(virtqueue_create(&device.transport, &memory, &config));
        unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    }
    assert_logged("fake: no memory for queue test");
    device.refuses = true;
    assert_null(virtqueue_create(&device.transport, &memory, &config));
    virtqueue_destroy(NULL);
    io_buffer_release(&memory);
}

/* --- The way of a chain --- */

TEST(a_chain_is_what_the_specification_says) {
    set_up(SIZE, 0);
    struct segment segments[] = {segment(0, 16), segment(16, 100), segment(116, 1)};
    assert_int_equal(virtqueue_add(queue, segments, 1, 2, &tokens[0]), 0);
    assert_false(device_sees_more());
    virtqueue_kick(queue);
    struct ring_descriptor chain[SIZE];
    assert_int_equal(device_ring_walk(&device.ring, device_take(), chain, SIZE), 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(chain[i].address, (uintptr_t)segments[i].data);
        assert_int_equal(chain[i].length, segments[i].length);
        assert_int_equal(chain[i].flags & RING_WRITE, i >= 1 ? RING_WRITE : 0);
    }
    assert_int_equal(virtqueue_room(queue, 1), SIZE - 3);
    assert_int_equal(virtqueue_in_flight(queue), 1);
    tear_down();
}

TEST(a_completion_brings_back_token_and_length_and_room) {
    uint32_t length = 0;
    set_up(SIZE, 0);
    struct segment segments[] = {segment(0, 16), segment(16, 100), segment(116, 1)};
    assert_int_equal(virtqueue_add(queue, segments, 1, 2, &tokens[0]), 0);
    virtqueue_kick(queue);
    assert_false(virtqueue_has_completed(queue));
    assert_null(take(&length));
    device_complete(device_take(), 101);
    assert_true(virtqueue_has_completed(queue));
    assert_ptr_equal(take(&length), &tokens[0]);
    assert_int_equal(length, 101);
    assert_null(take(&length));
    assert_int_equal(virtqueue_room(queue, 1), SIZE);
    assert_int_equal(virtqueue_in_flight(queue), 0);
    tear_down();
}

TEST(completions_in_another_order_find_their_tokens) {
    uint32_t length = 0;
    uint16_t heads[4];
    set_up(SIZE, 0);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(add_one(&tokens[i]), 0);
    }
    virtqueue_kick(queue);
    for (int i = 0; i < 4; i++) {
        heads[i] = device_take();
    }
    static const int order[] = {2, 0, 3, 1};
    for (int i = 0; i < 4; i++) {
        device_complete(heads[order[i]], (uint32_t)order[i]);
    }
    for (int i = 0; i < 4; i++) {
        assert_ptr_equal(take(&length), &tokens[order[i]]);
        assert_int_equal(length, order[i]);
    }
    tear_down();
}

TEST(a_full_ring_refuses_and_changes_nothing) {
    uint32_t length = 0;
    set_up(SIZE, 0);
    for (int i = 0; i < SIZE; i++) {
        assert_int_equal(add_one(&tokens[i]), 0);
    }
    assert_int_equal(add_one(&tokens[SIZE]), -ENOSPC);
    assert_int_equal(virtqueue_get_stats(queue)->full, 1);
    assert_int_equal(virtqueue_in_flight(queue), SIZE);
    virtqueue_kick(queue);
    device_complete(device_take(), 0);
    assert_ptr_equal(take(&length), &tokens[0]);
    assert_int_equal(add_one(&tokens[SIZE]), 0);
    assert_int_equal(virtqueue_get_stats(queue)->in_flight_peak, SIZE);
    tear_down();
}

TEST(a_chain_that_is_one_too_long_for_the_room_is_refused) {
    set_up(SIZE, 0);
    struct segment segments[SIZE];
    for (unsigned i = 0; i < SIZE; i++) {
        segments[i] = segment(i, 1);
    }
    assert_int_equal(add_one(&tokens[0]), 0);
    assert_int_equal(virtqueue_add(queue, segments, SIZE, 0, &tokens[1]), -ENOSPC);
    assert_int_equal(virtqueue_add(queue, segments, SIZE - 1, 0, &tokens[1]), 0);
    assert_int_equal(virtqueue_room(queue, 1), 0);
    tear_down();
}

/* 70,000 requests of one to three descriptors, up to four in flight: indices pass 65,535. */
TEST(indices_wrap_without_losing_a_request) {
    enum { REQUESTS = 70000 };
    uint32_t length = 0;
    int submitted = 0;
    int completed = 0;
    set_up(SIZE, VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC);
    struct segment segments[] = {segment(0, 1), segment(1, 2), segment(3, 4)};
    while (completed < REQUESTS) {
        while (submitted < REQUESTS && submitted - completed < 4 &&
               virtqueue_add(queue, segments, 1, (unsigned)submitted % 3,
                             &tokens[submitted % 1024]) == 0) {
            submitted++;
        }
        virtqueue_kick(queue);
        while (device_sees_more()) {
            device_complete(device_take(), 0);
        }
        int *token;
        while ((token = take(&length)) != NULL) {
            assert_ptr_equal(token, &tokens[completed % 1024]);
            completed++;
        }
    }
    assert_int_equal(virtqueue_in_flight(queue), 0);
    assert_int_equal(virtqueue_room(queue, 1), SIZE);
    assert_int_equal(virtqueue_get_stats(queue)->completed, REQUESTS);
    assert_false(virtqueue_is_broken(queue));
    tear_down();
}

/* --- Indirect tables --- */

TEST(a_long_chain_takes_one_entry_through_a_table) {
    uint32_t length = 0;
    set_up(SIZE, VIRTIO_F_INDIRECT_DESC);
    struct segment segments[12];
    for (unsigned i = 0; i < 12; i++) {
        segments[i] = segment(i, i + 1);
    }
    assert_int_equal(virtqueue_add(queue, segments, 5, 7, &tokens[0]), 0);
    assert_int_equal(virtqueue_room(queue, 1), SIZE - 1);
    assert_int_equal(virtqueue_get_stats(queue)->indirect, 1);
    virtqueue_kick(queue);
    uint16_t head = device_take();
    struct ring_descriptor chain[TABLE_SIZE];
    assert_int_equal(device_ring_descriptor(device.ring.descriptors, head).length, 12 * 16);
    assert_int_equal(device_ring_walk(&device.ring, head, chain, TABLE_SIZE), 12);
    for (unsigned i = 0; i < 12; i++) {
        assert_int_equal(chain[i].address, (uintptr_t)segments[i].data);
        assert_int_equal(chain[i].length, i + 1);
        assert_int_equal(chain[i].flags, (i >= 5 ? RING_WRITE : 0) | (i < 11 ? RING_NEXT : 0));
    }
    device_complete(head, 7);
    assert_ptr_equal(take(&length), &tokens[0]);
    assert_int_equal(virtqueue_room(queue, 1), SIZE);
    tear_down();
}

TEST(a_short_chain_on_an_empty_ring_goes_without_a_table) {
    set_up(SIZE, VIRTIO_F_INDIRECT_DESC);
    struct segment segments[] = {segment(0, 16), segment(16, 100), segment(116, 1)};
    assert_int_equal(virtqueue_add(queue, segments, 1, 2, &tokens[0]), 0);
    assert_int_equal(virtqueue_get_stats(queue)->indirect, 0);
    tear_down();
}

TEST(tables_are_not_used_unless_negotiated_and_run_out) {
    struct segment segments[TABLE_SIZE + 1];
    for (unsigned i = 0; i <= TABLE_SIZE; i++) {
        segments[i] = segment(i, 1);
    }
    set_up(SIZE, 0);
    assert_int_equal(virtqueue_add(queue, segments, 12, 0, &tokens[0]), -ENOSPC);
    tear_down();
    set_up(SIZE, VIRTIO_F_INDIRECT_DESC);
    assert_int_equal(virtqueue_add(queue, segments, TABLE_SIZE + 1, 0, &tokens[0]), -ENOSPC);
    for (int i = 0; i < TABLES; i++) {
        assert_int_equal(virtqueue_add(queue, segments, TABLE_SIZE, 0, &tokens[i]), 0);
    }
    assert_int_equal(virtqueue_add(queue, segments, TABLE_SIZE, 0, &tokens[5]), -ENOSPC);
    assert_int_equal(virtqueue_get_stats(queue)->indirect, TABLES);
    tear_down();
}

TEST(tables_come_back_with_their_chains) {
    uint32_t length = 0;
    struct segment segments[12];
    for (unsigned i = 0; i < 12; i++) {
        segments[i] = segment(i, 1);
    }
    set_up(SIZE, VIRTIO_F_INDIRECT_DESC);
    for (int i = 0; i < 50 * TABLES; i++) {
        assert_int_equal(virtqueue_add(queue, segments, 12, 0, &tokens[i]), 0);
        virtqueue_kick(queue);
        if (i % TABLES == TABLES - 1) {
            while (device_sees_more()) {
                device_complete(device_take(), 0);
            }
            while (take(&length) != NULL) {
            }
        }
    }
    assert_int_equal(virtqueue_get_stats(queue)->indirect, 50 * TABLES);
    tear_down();
}

TEST(a_table_of_the_caller_s_is_a_chain_of_three) {
    static _Alignas(VIRTQUEUE_TABLE_ALIGN) uint8_t table[VIRTQUEUE_TABLE_BYTES];
    uint32_t length = 0;
    set_up(SIZE, VIRTIO_F_INDIRECT_DESC);
    assert_true(virtqueue_takes_tables(queue));
    virtqueue_table_write(table, segment(0, 16), segment(200, 1));
    for (unsigned i = 0; i < 2 * SIZE; i++) {
        bool is_writable = i % 2 == 0;
        struct segment middle = segment(16 + i, 100);
        assert_int_equal(virtqueue_add_table(queue, table, middle, is_writable,
                                             is_writable ? 101 : 1, &tokens[i]),
                         0);
        assert_int_equal(virtqueue_room(queue, 1), SIZE - 1);
        virtqueue_kick(queue);
        uint16_t head = device_take();
        struct ring_descriptor chain[TABLE_SIZE];
        assert_int_equal(device_ring_descriptor(device.ring.descriptors, head).length,
                         VIRTQUEUE_TABLE_BYTES);
        assert_int_equal(device_ring_walk(&device.ring, head, chain, TABLE_SIZE), 3);
        assert_int_equal(chain[0].address, (uintptr_t)data);
        assert_int_equal(chain[0].length, 16);
        assert_int_equal(chain[0].flags, RING_NEXT);
        assert_int_equal(chain[1].address, (uintptr_t)middle.data);
        assert_int_equal(chain[1].length, 100);
        assert_int_equal(chain[1].flags, is_writable ? RING_NEXT | RING_WRITE : RING_NEXT);
        assert_int_equal(chain[2].address, (uintptr_t)data + 200);
        assert_int_equal(chain[2].length, 1);
        assert_int_equal(chain[2].flags, RING_WRITE);
        device_complete(head, is_writable ? 101 : 1);
        assert_ptr_equal(take(&length), &tokens[i]);
        assert_int_equal(virtqueue_room(queue, 1), SIZE);
    }
    assert_int_equal(virtqueue_get_stats(queue)->indirect, 2 * SIZE);
    tear_down();
}

TEST(a_table_of_the_caller_s_finds_the_ring_full_or_broken) {
    static _Alignas(VIRTQUEUE_TABLE_ALIGN) uint8_t table[VIRTQUEUE_TABLE_BYTES];
    set_up(SIZE, VIRTIO_F_INDIRECT_DESC);
    virtqueue_table_write(table, segment(0, 16), segment(200, 1));
    for (int i = 0; i < SIZE; i++) {
        assert_int_equal(add_one(&tokens[i]), 0);
    }
    assert_int_equal(virtqueue_add_table(queue, table, segment(16, 8), false, 1, &tokens[SIZE]),
                     -ENOSPC);
    assert_int_equal(virtqueue_get_stats(queue)->full, 1);
    virtqueue_kick(queue);
    device_complete(SIZE, 0);
    expect_broken("completion of what is not in flight");
    assert_int_equal(virtqueue_add_table(queue, table, segment(16, 8), false, 1, &tokens[SIZE]),
                     -EIO);
    tear_down();
}

TEST(what_a_table_offers_for_writing_is_a_bound) {
    static _Alignas(VIRTQUEUE_TABLE_ALIGN) uint8_t table[VIRTQUEUE_TABLE_BYTES];
    set_up(SIZE, VIRTIO_F_INDIRECT_DESC);
    virtqueue_table_write(table, segment(0, 16), segment(200, 1));
    assert_int_equal(virtqueue_add_table(queue, table, segment(16, 8), false, 1, &tokens[0]), 0);
    virtqueue_kick(queue);
    device_complete(device_take(), 2);
    expect_broken("more bytes written than offered");
    tear_down();
}

TEST(tables_of_the_caller_s_are_for_who_has_negotiated_them) {
    set_up(SIZE, 0);
    assert_false(virtqueue_takes_tables(queue));
    tear_down();
}

/* --- Notifications --- */

TEST(a_batch_is_notified_once) {
    set_up(SIZE, 0);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(add_one(&tokens[i]), 0);
    }
    virtqueue_kick(queue);
    assert_int_equal(device.notifies, 1);
    virtqueue_kick(queue);
    assert_int_equal(device.notifies, 1);
    assert_int_equal(virtqueue_get_stats(queue)->kicks, 1);
    tear_down();
}

TEST(a_device_that_says_no_notify_gets_none) {
    set_up(SIZE, 0);
    store16(device.ring.used, 1);
    assert_int_equal(add_one(&tokens[0]), 0);
    virtqueue_kick(queue);
    assert_int_equal(device.notifies, 0);
    assert_int_equal(device.barriers, 1); /* it looked again behind a barrier that holds */
    store16(device.ring.used, 0);
    assert_int_equal(add_one(&tokens[1]), 0);
    virtqueue_kick(queue);
    assert_int_equal(device.notifies, 1);
    tear_down();
}

TEST(kicked_twice_a_device_is_notified_twice_even_if_it_wants_none) {
    set_up(SIZE, 0);
    store16(device.ring.used, 1);
    virtqueue_kick_twice(queue);
    assert_int_equal(device.notifies, 0); /* nothing was added */
    assert_int_equal(add_one(&tokens[0]), 0);
    assert_int_equal(add_one(&tokens[1]), 0);
    virtqueue_kick_twice(queue);
    assert_int_equal(device.notifies, 2);
    (void)device_take();
    (void)device_take();
    virtqueue_kick_twice(queue);
    assert_int_equal(device.notifies, 2);
    assert_int_equal(virtqueue_get_stats(queue)->kicks, 1);
    assert_int_equal(virtqueue_get_stats(queue)->notifies, 2);
    tear_down();
}

/* The device asks to be told when the index passes `event`; also across the wrap. */
TEST(with_event_indices_a_notify_comes_when_the_index_passes_the_event) {
    static const uint16_t starts[] = {0, 5, 65530, 65533};
    for (size_t s = 0; s < ARRAY_COUNT(starts); s++) {
        for (unsigned distance = 0; distance < 6; distance++) {
            uint32_t length = 0;
            set_up(SIZE, VIRTIO_F_EVENT_IDX);
            for (unsigned i = 0; i < starts[s]; i++) {
                assert_int_equal(add_one(&tokens[0]), 0);
                virtqueue_kick(queue);
                device_complete(device_take(), 0);
                assert_non_null(take(&length));
            }
            device.notifies = 0;
            set_avail_event((uint16_t)(starts[s] + distance));
            for (int i = 0; i < 3; i++) {
                assert_int_equal(add_one(&tokens[i]), 0);
            }
            virtqueue_kick(queue);
            assert_int_equal(device.notifies, distance < 3);
            tear_down();
        }
    }
}

/* Would a device that publishes its entry number `new_index - 1` interrupt? (VIRTIO 1.3, 2.7.10) */
static bool device_would_interrupt(uint16_t old_index, uint16_t new_index) {
    uint16_t event = used_event();
    return (uint16_t)(new_index - event - 1) < (uint16_t)(new_index - old_index);
}

TEST(with_event_indices_interrupts_come_only_while_armed) {
    uint32_t length = 0;
    set_up(SIZE, VIRTIO_F_EVENT_IDX);
    for (unsigned i = 0; i < 70000; i += 5) {
        for (unsigned j = 0; j < 5; j++) {
            assert_int_equal(add_one(&tokens[j]), 0);
        }
        virtqueue_kick(queue);
        virtqueue_arm(queue);
        assert_true(device_would_interrupt((uint16_t)i, (uint16_t)(i + 1)));
        assert_true(device_would_interrupt((uint16_t)i, (uint16_t)(i + 5)));
        virtqueue_disarm(queue);
        assert_false(device_would_interrupt((uint16_t)i, (uint16_t)(i + 1)));
        assert_false(device_would_interrupt((uint16_t)i, (uint16_t)(i + 5)));
        while (device_sees_more()) {
            device_complete(device_take(), 0);
        }
        while (take(&length) != NULL) {
        }
    }
    tear_down();
}

TEST(without_event_indices_a_flag_says_whether_to_interrupt) {
    set_up(SIZE, 0);
    assert_int_equal(load16(device.ring.available), 1);
    virtqueue_arm(queue);
    assert_int_equal(load16(device.ring.available), 0);
    virtqueue_disarm(queue);
    assert_int_equal(load16(device.ring.available), 1);
    tear_down();
}

TEST(a_poll_source_sees_what_came_and_what_was_taken) {
    uint32_t length = 0;
    struct poll_source source = {0};
    set_up(SIZE, 0);
    virtqueue_watch(queue, &source);
    for (unsigned i = 1; i <= 70000; i++) {
        assert_int_equal(add_one(&tokens[0]), 0);
        virtqueue_kick(queue);
        device_complete(device_take(), 0);
        assert_int_equal(*source.written, (uint16_t)i);
        assert_int_equal(*source.taken, (uint16_t)(i - 1));
        assert_non_null(take(&length));
        assert_int_equal(*source.taken, (uint16_t)i);
    }
    tear_down();
}

TEST(a_poll_source_says_where_to_interrupt_where_the_device_reads_that) {
    struct poll_source source = {0};
    set_up(SIZE, VIRTIO_F_EVENT_IDX);
    virtqueue_watch(queue, &source);
    assert_non_null(source.event_index);
    virtqueue_arm(queue);
    assert_int_equal(*source.event_index, 0);
    *source.event_index = 4711;
    assert_int_equal(used_event(), 4711);
    tear_down();
    set_up(SIZE, 0);
    virtqueue_watch(queue, &source);
    assert_null(source.event_index); /* it reads a flag */
    tear_down();
}

/* --- A hostile device --- */

TEST(a_buffer_to_write_into_is_refused_by_a_full_ring_and_by_a_broken_one) {
    static uint8_t buffers[SIZE][16];
    uint32_t length = 0;
    set_up(SIZE, 0);
    for (int i = 0; i < SIZE; i++) {
        assert_int_equal(virtqueue_add_writable(queue, buffers[i], sizeof buffers[i], &tokens[i]),
                         0);
    }
    assert_int_equal(virtqueue_add_writable(queue, buffers[0], 16, &tokens[SIZE]), -ENOSPC);
    assert_int_equal(virtqueue_get_stats(queue)->full, 1);
    assert_int_equal(virtqueue_in_flight(queue), SIZE);
    virtqueue_kick(queue);
    device_complete(device_take(), 16);
    assert_ptr_equal(take(&length), &tokens[0]);
    assert_int_equal(length, 16);
    assert_int_equal(virtqueue_add_writable(queue, buffers[0], 16, &tokens[SIZE]), 0);
    device_complete(SIZE, 0);
    assert_null(take(&length));
    assert_int_equal(virtqueue_add_writable(queue, buffers[0], 16, &tokens[SIZE]), -EIO);
    tear_down();
}

TEST(an_identifier_out_of_range_breaks_the_queue) {
    static const uint32_t ids[] = {SIZE, 0x10000, UINT32_MAX};
    for (size_t i = 0; i < ARRAY_COUNT(ids); i++) {
        set_up(SIZE, 0);
        assert_int_equal(add_one(&tokens[0]), 0);
        virtqueue_kick(queue);
        device_complete(ids[i], 0);
        expect_broken("completion of what is not in flight");
        tear_down();
    }
}

TEST(an_identifier_not_in_flight_breaks_the_queue) {
    set_up(SIZE, 0);
    assert_int_equal(add_one(&tokens[0]), 0);
    virtqueue_kick(queue);
    device_complete(device_take() + 1u, 0);
    expect_broken("completion of what is not in flight");
    tear_down();
}

TEST(the_middle_of_a_chain_is_no_identifier) {
    set_up(SIZE, 0);
    struct segment segments[] = {segment(0, 16), segment(16, 100), segment(116, 1)};
    assert_int_equal(virtqueue_add(queue, segments, 1, 2, &tokens[0]), 0);
    virtqueue_kick(queue);
    device_complete(device_ring_descriptor(device.ring.descriptors, device_take()).next, 0);
    expect_broken("completion of what is not in flight");
    tear_down();
}

TEST(a_chain_completed_twice_breaks_the_queue) {
    uint32_t length = 0;
    set_up(SIZE, 0);
    assert_int_equal(add_one(&tokens[0]), 0);
    assert_int_equal(add_one(&tokens[1]), 0);
    virtqueue_kick(queue);
    uint16_t head = device_take();
    device_complete(head, 0);
    device_complete(head, 0);
    assert_ptr_equal(take(&length), &tokens[0]);
    expect_broken("completion of what is not in flight");
    tear_down();
}

TEST(a_length_above_what_was_offered_breaks_the_queue) {
    uint32_t length = 0;
    set_up(SIZE, 0);
    struct segment segments[] = {segment(0, 50), segment(50, 100)};
    assert_int_equal(virtqueue_add(queue, segments, 1, 1, &tokens[0]), 0);
    assert_int_equal(virtqueue_add(queue, segments, 1, 1, &tokens[1]), 0);
    virtqueue_kick(queue);
    device_complete(device_take(), 100);
    assert_ptr_equal(take(&length), &tokens[0]);
    device_complete(device_take(), 101);
    expect_broken("more bytes written than offered");
    tear_down();
}

TEST(a_used_index_that_jumps_ahead_breaks_the_queue) {
    static const uint16_t jumps[] = {2, SIZE, SIZE + 1, 0x8000, UINT16_MAX};
    for (size_t i = 0; i < ARRAY_COUNT(jumps); i++) {
        set_up(SIZE, 0);
        assert_int_equal(add_one(&tokens[0]), 0);
        virtqueue_kick(queue);
        store16(device.ring.used + 2, jumps[i]);
        expect_broken("more completions than requests");
        tear_down();
    }
}

TEST(a_completion_with_nothing_in_flight_breaks_the_queue) {
    set_up(SIZE, 0);
    device_complete(0, 0);
    expect_broken("more completions than requests");
    tear_down();
}

/* What the device scribbles over our part of the ring is never read back. */
TEST(descriptors_overwritten_by_the_device_change_nothing) {
    uint32_t length = 0;
    set_up(SIZE, VIRTIO_F_INDIRECT_DESC);
    for (int round = 0; round < 100; round++) {
        struct segment segments[] = {segment(0, 16), segment(16, 100), segment(116, 1)};
        assert_int_equal(virtqueue_add(queue, segments, 1, 2, &tokens[0]), 0);
        assert_int_equal(virtqueue_add(queue, segments, 1, 2, &tokens[1]), 0);
        virtqueue_kick(queue);
        uint16_t first = device_take();
        uint16_t second = device_take();
        memset(device.ring.descriptors, 0xff, (size_t)16 * SIZE);
        device_complete(second, 0);
        device_complete(first, 0);
        assert_ptr_equal(take(&length), &tokens[1]);
        assert_ptr_equal(take(&length), &tokens[0]);
        assert_int_equal(virtqueue_room(queue, 1), SIZE);
    }
    tear_down();
}

/* Whatever the device writes, wherever: each token comes back at most once, or the queue breaks. */
TEST(random_nonsense_never_gets_past_the_checks) {
    for (int round = 0; round < 2000; round++) {
        bool in_flight[SIZE] = {false};
        uint32_t length = 0;
        set_up(SIZE, unit_random_below(2) == 0 ? 0 : VIRTIO_F_INDIRECT_DESC);
        for (int step = 0; step < 30 && !virtqueue_is_broken(queue); step++) {
            int token = (int)unit_random_below(SIZE);
            if (!in_flight[token] && add_one(&tokens[token]) == 0) {
                in_flight[token] = true;
            }
            virtqueue_kick(queue);
            store16(device.ring.used, (uint16_t)unit_random());
            for (unsigned i = 0; i < SIZE; i++) {
                store32(device.ring.used + 4 + 8 * (size_t)i,
                        (uint32_t)unit_random_below(SIZE + 1));
                store32(device.ring.used + 8 + 8 * (size_t)i, (uint32_t)unit_random_below(18));
            }
            device_ring_publish(&device.ring, (uint16_t)unit_random_below(2));
            int *taken;
            while ((taken = take(&length)) != NULL) {
                assert_true(in_flight[taken - tokens]);
                assert_true(length <= 16);
                in_flight[taken - tokens] = false;
            }
        }
        tear_down();
    }
}

TEST(after_a_reset_every_token_is_given_up_once) {
    set_up(SIZE, VIRTIO_F_INDIRECT_DESC);
    struct segment segments[] = {segment(0, 16), segment(16, 100), segment(116, 1)};
    assert_int_equal(virtqueue_add(queue, segments, 1, 2, &tokens[0]), 0);
    assert_int_equal(virtqueue_add(queue, segments, 1, 2, &tokens[1]), 0);
    assert_int_equal(add_one(&tokens[2]), 0);
    bool seen[3] = {false};
    int *token;
    while ((token = virtqueue_abandon(queue)) != NULL) {
        assert_false(seen[token - tokens]);
        seen[token - tokens] = true;
    }
    assert_true(seen[0] && seen[1] && seen[2]);
    assert_int_equal(virtqueue_in_flight(queue), 0);
    tear_down();
}

TEST(a_dump_tells_the_state_of_the_queue) {
    set_up(SIZE, 0);
    assert_int_equal(add_one(&tokens[0]), 0);
    virtqueue_dump(queue);
    assert_logged(
        "fake status 0x04, queue test: size 8, in flight 1, free 7, available 1 (published 0)");
    assert_int_equal(virtqueue_size(queue), SIZE);
    tear_down();
}

TEST(a_request_without_a_token_or_a_segment_panics) {
    set_up(SIZE, 0);
    struct segment one = segment(0, 1);
    assert_panics("token != NULL", (void)virtqueue_add(queue, &one, 0, 1, NULL));
    assert_panics("count > 0", (void)virtqueue_add(queue, &one, 0, 0, &tokens[0]));
    tear_down();
}

TEST(a_panic_shows_every_queue) {
    set_up(SIZE, 0);
    struct segment segments[] = {segment(0, 16), segment(16, 100)};
    assert_int_equal(virtqueue_add(queue, segments, 1, 1, &tokens[0]), 0);
    virtqueue_kick(queue);
    assert_panics("  fake status 0x04, queue test: size 8, in flight 1, free 6, available 1 "
                  "(published 1), used 0 (seen 0)",
                  panic("look"));
}
