/* The words of the configuration: core/config.c. */
#include "core/config.h"

#include <string.h>

#include "config/limits.h"
#include "tests/unit/unit.h"

TEST(words_are_found_whatever_stands_between_them) {
    assert_int_equal(config_parse("  ip=10.0.2.15/24\tgw=10.0.2.2\r\nlog=debug \n bare  "), 0);
    assert_string_equal(config_text("ip"), "10.0.2.15/24");
    assert_string_equal(config_text("gw"), "10.0.2.2");
    assert_string_equal(config_text("log"), "debug");
    assert_string_equal(config_text("bare"), "");
    assert_null(config_text("port"));
    assert_null(config_text("i"));
}

TEST(nothing_is_no_word) {
    assert_int_equal(config_parse(""), 0);
    assert_int_equal(config_parse(" \t\n"), 0);
    config_report_unknown();
    assert_string_equal(unit_log(), "");
}

TEST(a_value_may_hold_more_equal_signs) {
    assert_int_equal(config_parse("a=b=c d="), 0);
    assert_string_equal(config_text("a"), "b=c");
    assert_string_equal(config_text("d"), "");
}

TEST(of_a_key_given_twice_the_last_counts) {
    assert_int_equal(config_parse("port=1 port=2"), 0);
    assert_int_equal(config_parse("port=3"), 0);
    assert_string_equal(config_text("port"), "3");
}

TEST(all_values_of_a_key_can_be_read_in_order) {
    assert_int_equal(config_parse("disk=a other=x disk=b disk"), 0);
    unsigned position = 0;
    assert_string_equal(config_next("disk", &position), "a");
    assert_string_equal(config_next("disk", &position), "b");
    assert_string_equal(config_next("disk", &position), "");
    assert_null(config_next("disk", &position));
}

TEST(numbers_keep_to_their_limits) {
    assert_int_equal(config_parse("low=9 least=10 most=20 high=21"), 0);
    assert_int_equal(config_number("low", 10, 20, 15), 15);
    assert_logged("config: low=9 refused: a number from 10 to 20 is wanted; using 15");
    assert_int_equal(config_number("least", 10, 20, 15), 10);
    assert_int_equal(config_number("most", 10, 20, 15), 20);
    assert_int_equal(config_number("high", 10, 20, 15), 15);
    unit_log_clear();
    assert_int_equal(config_number("absent", 10, 20, 15), 15);
    assert_string_equal(unit_log(), "");
}

TEST(what_is_no_number_is_named_and_not_used) {
    static const char *const words[] = {"n",      "n=",   "n=-1",
                                        "n=1x",   "n=x1", "n=18446744073709551616",
                                        "n=0x10", "n=1K", "n=99999999999999999999999"};
    for (size_t i = 0; i < ARRAY_COUNT(words); i++) {
        config_forget();
        unit_log_clear();
        assert_int_equal(config_parse(words[i]), 0);
        assert_int_equal(config_number("n", 0, UINT64_MAX, 77), 77);
        assert_logged("refused");
    }
}

TEST(the_largest_number_is_one) {
    assert_int_equal(config_parse("n=18446744073709551615"), 0);
    assert_int_equal(config_number("n", 0, UINT64_MAX, 0), UINT64_MAX);
}

TEST(bytes_come_with_units) {
    assert_int_equal(config_parse("b=7 k=3K m=5M g=2G"), 0);
    assert_int_equal(config_bytes("b", 0, UINT64_MAX, 0), 7);
    assert_int_equal(config_bytes("k", 0, UINT64_MAX, 0), 3072);
    assert_int_equal(config_bytes("m", 0, UINT64_MAX, 0), 5 << 20);
    assert_int_equal(config_bytes("g", 0, UINT64_MAX, 0), UINT64_C(2) << 30);
}

TEST(bytes_that_wrap_or_have_a_wrong_unit_are_refused) {
    static const char *const words[] = {"b=17179869184G", "b=1T", "b=1KK", "b=K", "b=1k"};
    for (size_t i = 0; i < ARRAY_COUNT(words); i++) {
        config_forget();
        unit_log_clear();
        assert_int_equal(config_parse(words[i]), 0);
        assert_int_equal(config_bytes("b", 0, UINT64_MAX, 5), 5);
        assert_logged("refused");
    }
}

TEST(switches_are_on_or_off_or_named) {
    assert_int_equal(config_parse("a=on b=off c d=yes"), 0);
    assert_true(config_switch("a", false));
    assert_false(config_switch("b", true));
    assert_true(config_switch("c", false));
    assert_true(config_switch("d", true));
    assert_logged("config: d=yes refused: on or off is wanted; using on");
    assert_true(config_switch("absent", true));
    assert_false(config_switch("absent", false));
}

TEST(a_key_that_nobody_asked_for_is_named) {
    assert_int_equal(config_parse("prot=10809 port=10809"), 0);
    (void)config_number("port", 1, 65535, 1);
    config_report_unknown();
    assert_logged("config: unknown key \"prot\" ignored");
    assert_not_logged("\"port\"");
}

TEST(one_word_too_many_takes_nothing) {
    char text[4 * CONFIG_WORDS_MAX + 1] = "";
    for (unsigned i = 0; i < CONFIG_WORDS_MAX; i++) {
        memcpy(&text[4 * (size_t)i], "a=1 ", sizeof "a=1 ");
    }
    assert_int_equal(config_parse(text), 0);
    assert_int_equal(config_parse("b=1"), -E2BIG);
    assert_null(config_text("b"));
    assert_logged("refused");
}

TEST(one_byte_too_many_takes_nothing) {
    static char text[COMMAND_LINE_MAX + 1];
    memset(text, 'x', sizeof text - 1);
    assert_int_equal(config_parse(text), -E2BIG);
    text[COMMAND_LINE_MAX - 1] = '\0';
    assert_int_equal(config_parse(text), 0);
    assert_string_equal(config_text(text), "");
    assert_int_equal(config_parse("a"), -E2BIG);
}
