/* The payload pool: apps/nbd/payload.c. */
#include "apps/nbd/payload.h"

#include <string.h>

#include "config/limits.h"
#include "core/mem/addr.h"
#include "core/mem/poison.h"
#include "tests/unit/unit.h"

enum { PAGES = 256 };

static size_t begin(void) {
    assert_int_equal(nbd_payload_init((PAGES + 1) * PAGE_BYTES), 0); /* one for the page words */
    assert_int_equal(nbd_payload_free(), nbd_payload_total());
    return nbd_payload_total() / PAGE_BYTES;
}

TEST(a_piece_serves_the_next_request_of_its_size) {
    size_t total = begin();
    void *piece = nbd_payload_take(1);
    void *other = nbd_payload_take(32);
    assert_int_equal(nbd_payload_free(), (total - 33) * PAGE_BYTES);
    nbd_payload_give(piece, 1);
    nbd_payload_give(other, 32);
    assert_int_equal(nbd_payload_free(), total * PAGE_BYTES);
    assert_ptr_equal(nbd_payload_take(32), other);
    assert_ptr_equal(nbd_payload_take(1), piece);
}

TEST(what_is_kept_joins_when_a_larger_piece_is_wanted) {
    size_t total = begin();
    void *pieces[PAGES + 2];
    size_t count = 0;
    while ((pieces[count] = nbd_payload_take(1)) != NULL) {
        count++;
    }
    assert_int_equal(count, total);
    assert_int_equal(nbd_payload_free(), 0);
    for (size_t i = 0; i < count; i++) {
        nbd_payload_give(pieces[i], 1);
    }
    void *all = nbd_payload_take(total);
    assert_non_null(all);
    assert_null(nbd_payload_take(1));
    nbd_payload_give(all, total);
}

TEST(sizes_that_are_not_kept_come_and_go_too) {
    size_t total = begin();
    void *odd = nbd_payload_take(3);
    void *large = nbd_payload_take(64);
    nbd_payload_give(odd, 3);
    nbd_payload_give(large, 64);
    assert_int_equal(nbd_payload_free(), total * PAGE_BYTES);
}

TEST(a_piece_of_another_size_or_given_twice_panics) {
    (void)begin();
    heap_checks = true;
    void *piece = nbd_payload_take(2);
    assert_panics("pages", nbd_payload_give(piece, 1));
    nbd_payload_give(piece, 2);
    assert_panics("piece", nbd_payload_give(piece, 2));
}

TEST(mixed_use_loses_nothing) {
    enum { SLOTS = 24, ROUNDS = 20000 };
    static struct {
        void *piece;
        size_t pages;
    } slots[SLOTS];
    size_t total = begin();
    heap_checks = true;
    for (unsigned round = 0; round < ROUNDS; round++) {
        unsigned slot = (unsigned)unit_random_below(SLOTS);
        if (slots[slot].piece != NULL) {
            memset(slots[slot].piece, (int)round, slots[slot].pages * PAGE_BYTES);
            nbd_payload_give(slots[slot].piece, slots[slot].pages);
            slots[slot].piece = NULL;
        } else {
            slots[slot].pages = 1 + unit_random_below(40);
            slots[slot].piece = nbd_payload_take(slots[slot].pages);
        }
    }
    for (unsigned i = 0; i < SLOTS; i++) {
        if (slots[i].piece != NULL) {
            nbd_payload_give(slots[i].piece, slots[i].pages);
            slots[i].piece = NULL;
        }
    }
    assert_int_equal(nbd_payload_free(), total * PAGE_BYTES);
    assert_non_null(nbd_payload_take(total));
}
