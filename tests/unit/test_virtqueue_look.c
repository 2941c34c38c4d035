/* Looking at what a queue's device has completed without taking it: core/virtio/queue.c. */
#include "tests/unit/fake_ring.h"

/* The device takes what is added from here on, and completes nothing of its own accord. */
static void take_heads(uint16_t *heads, int count) {
    for (int i = 0; i < count; i++) {
        assert_int_equal(add_one(&tokens[i]), 0);
    }
    virtqueue_kick(queue);
    for (int i = 0; i < count; i++) {
        heads[i] = device_take();
    }
}

static void expect_look(unsigned behind, const int *token, uint32_t length) {
    uint32_t seen = UINT32_MAX;
    assert_ptr_equal(virtqueue_look(queue, behind, &seen), token);
    assert_int_equal(seen, length);
}

static void expect_no_look(unsigned behind) {
    uint32_t seen = 0;
    assert_null(virtqueue_look(queue, behind, &seen));
}

/* Wherever in the ring they lie. */
TEST(a_look_sees_what_the_takes_will_bring_and_takes_nothing) {
    enum { COUNT = 5 };
    static const int order[COUNT] = {3, 1, 4, 2, 0};
    uint16_t heads[COUNT];
    uint32_t length = 0;
    set_up(SIZE, 0);
    for (unsigned round = 0; round < 4 * SIZE; round++) {
        take_heads(heads, COUNT);
        uint16_t taken = virtqueue_taken(queue);
        assert_int_equal(virtqueue_completed(queue), 0);
        for (unsigned i = 0; i < COUNT; i++) {
            expect_no_look(i);
            device_complete(heads[order[i]], i);
            assert_int_equal(virtqueue_completed(queue), i + 1);
        }
        for (unsigned i = 0; i < COUNT; i++) {
            for (unsigned behind = 0; behind < COUNT - i; behind++) {
                expect_look(behind, &tokens[order[i + behind]], i + behind);
            }
            expect_no_look(COUNT - i);
            assert_int_equal(virtqueue_completed(queue), COUNT - i);
            assert_int_equal(virtqueue_taken(queue), (uint16_t)(taken + i));
            assert_int_equal(virtqueue_in_flight(queue), COUNT - i);
            assert_ptr_equal(take(&length), &tokens[order[i]]);
        }
    }
    tear_down();
}

/* An entry that nobody has written names the first chain, which is in flight. */
TEST(a_look_goes_no_further_than_the_device_says) {
    uint16_t heads[3];
    set_up(SIZE, 0);
    take_heads(heads, 3);
    assert_int_equal(heads[0], 0);
    expect_no_look(0);
    device_complete(heads[1], 16);
    expect_look(0, &tokens[1], 16);
    expect_no_look(1);
    expect_no_look(SIZE);
    expect_no_look(UINT16_MAX);
    tear_down();
}

TEST(a_look_says_nothing_of_what_makes_no_sense_and_breaks_nothing) {
    static const struct {
        uint32_t id;
        uint32_t length;
    } nonsense[] = {{SIZE, 0},     {0x10000, 0}, {UINT32_MAX, 0},
                    {SIZE - 1, 0}, {1, 17},      {1, UINT32_MAX}};
    for (size_t i = 0; i < ARRAY_COUNT(nonsense); i++) {
        uint16_t heads[3];
        uint32_t length = 0;
        set_up(SIZE, 0);
        take_heads(heads, 3);
        device_complete(heads[0], 16);
        device_complete(nonsense[i].id, nonsense[i].length);
        device_complete(heads[2], 3);
        expect_look(0, &tokens[0], 16);
        expect_no_look(1);
        expect_look(2, &tokens[2], 3);
        assert_false(virtqueue_is_broken(queue));
        assert_ptr_equal(take(&length), &tokens[0]);
        expect_no_look(0);
        assert_null(take(&length));
        assert_true(virtqueue_is_broken(queue));
        tear_down();
    }
}

TEST(completions_are_counted_in_sixteen_bits_as_the_device_says) {
    uint16_t heads[3];
    set_up(SIZE, 0);
    take_heads(heads, 3);
    device_ring_publish(&device.ring, UINT16_MAX);
    assert_int_equal(virtqueue_completed(queue), UINT16_MAX);
    expect_broken("more completions than requests");
    tear_down();
}
