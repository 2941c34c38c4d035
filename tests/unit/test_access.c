/* Lists of networks: apps/nbd/access.c. */
#include "apps/nbd/access.h"

#include <string.h>

#include "tests/unit/unit.h"

#define ADDRESS(a, b, c, d) ((uint32_t)(a) << 24 | (b) << 16 | (c) << 8 | (d))

static struct access_list list;

static int add(const char *text) {
    memset(&list, 0, sizeof list);
    return access_list_add(&list, text);
}

TEST(an_empty_list_has_nobody) {
    memset(&list, 0, sizeof list);
    assert_false(access_list_has(&list, 0));
    assert_false(access_list_has(&list, UINT32_MAX));
}

TEST(one_address_is_that_address_only) {
    assert_int_equal(add("10.0.2.2"), 0);
    assert_true(access_list_has(&list, ADDRESS(10, 0, 2, 2)));
    assert_false(access_list_has(&list, ADDRESS(10, 0, 2, 1)));
    assert_false(access_list_has(&list, ADDRESS(10, 0, 2, 3)));
}

TEST(a_network_is_all_from_its_first_to_its_last) {
    assert_int_equal(add("192.168.4.0/22"), 0);
    assert_false(access_list_has(&list, ADDRESS(192, 168, 3, 255)));
    assert_true(access_list_has(&list, ADDRESS(192, 168, 4, 0)));
    assert_true(access_list_has(&list, ADDRESS(192, 168, 7, 255)));
    assert_false(access_list_has(&list, ADDRESS(192, 168, 8, 0)));
}

TEST(the_shortest_and_the_longest_networks) {
    assert_int_equal(add("0.0.0.0/0"), 0);
    assert_true(access_list_has(&list, 0));
    assert_true(access_list_has(&list, UINT32_MAX));
    assert_int_equal(add("255.255.255.255/32"), 0);
    assert_true(access_list_has(&list, UINT32_MAX));
    assert_false(access_list_has(&list, UINT32_MAX - 1));
}

TEST(several_are_separated_by_commas_and_lists_add_up) {
    assert_int_equal(add("10.0.0.1,10.0.0.3"), 0);
    assert_int_equal(access_list_add(&list, "172.16.0.0/12"), 0);
    assert_int_equal(list.count, 3);
    assert_true(access_list_has(&list, ADDRESS(10, 0, 0, 3)));
    assert_false(access_list_has(&list, ADDRESS(10, 0, 0, 2)));
    assert_true(access_list_has(&list, ADDRESS(172, 31, 255, 255)));
}

TEST(what_is_no_list_is_refused) {
    static const char *const texts[] = {"",
                                        ",",
                                        "10.0.0.1,",
                                        ",10.0.0.1",
                                        "10.0.0.1,,10.0.0.2",
                                        "10.0.0",
                                        "10.0.0.",
                                        "10.0.0.1.2",
                                        "10.0.0.256",
                                        "10.0.0.4294967297",
                                        "10.0.0.01",
                                        "10.0.0.-1",
                                        "10.0.0.1/",
                                        "10.0.0.0/33",
                                        "10.0.0.0/08",
                                        "10.0.0.0/8/8",
                                        "10.0.0.1/24",
                                        "0.0.0.1/0",
                                        "10.0.0.1 ",
                                        "localhost",
                                        "::1"};
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        assert_int_equal(add(texts[i]), -EINVAL);
    }
}

TEST(more_than_there_is_room_for_are_refused) {
    memset(&list, 0, sizeof list);
    for (unsigned i = 0; i < NBD_ACCESS_RULES_MAX; i++) {
        assert_int_equal(access_list_add(&list, "10.0.0.1"), 0);
    }
    assert_int_equal(access_list_add(&list, "10.0.0.2"), -ENOSPC);
    assert_false(access_list_has(&list, ADDRESS(10, 0, 0, 2)));
}
