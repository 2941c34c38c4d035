/* What we ask of the C library, as it was built for this machine. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/limits.h"
#include "core/dev/fwcfg.h"
#include "net/checksum.h"
#include "tests/guest/guest.h"

static void printf_speaks_64_bit_numbers(void) {
    char text[128];
    (void)snprintf(text, sizeof text, "%llu %zu %lld %llx %016llx", (unsigned long long)UINT64_MAX,
                   (size_t)SIZE_MAX, (long long)INT64_MIN, 0xfedcba9876543210ull, 0x1full);
    EXPECT(strcmp(text, "18446744073709551615 18446744073709551615 -9223372036854775808 "
                        "fedcba9876543210 000000000000001f") == 0);
}

static void printf_speaks_widths_and_strings(void) {
    char text[64];
    int length = snprintf(text, sizeof text, "[%5u.%06u] %.*s|%-4s|%4s|%p|%c%%", 7u, 42u, 3,
                          "abcdef", "x", "y", (void *)0x80200000, 'z');
    EXPECT(strcmp(text, "[    7.000042] abc|x   |   y|0x80200000|z%") == 0);
    EXPECT(length == (int)strlen(text));
}

static void printf_cuts_and_tells_the_whole_length(void) {
    char text[8] = "-------";
    EXPECT(snprintf(text, 5, "%s", "longer than that") == 16);
    EXPECT(strcmp(text, "long") == 0 && text[5] == '-');
}

/* Ours replace the library's; every alignment and the lengths around a word and a block. */
static void memory_functions_agree_with_bytes(void) {
    static unsigned char from[256];
    static unsigned char to[256];
    static unsigned char expected[256];
    for (unsigned i = 0; i < sizeof from; i++) {
        from[i] = (unsigned char)guest_random();
    }
    for (unsigned length = 0; length < 150; length++) {
        for (unsigned shift = 0; shift < 64; shift++) {
            unsigned a = shift % 8;
            unsigned b = 8 + shift / 8;
            for (unsigned i = 0; i < sizeof to; i++) {
                to[i] = 0xcc;
                expected[i] = i >= b && i < b + length ? from[a + i - b] : 0xcc;
            }
            memcpy(to + b, from + a, length);
            EXPECT(memcmp(to, expected, sizeof to) == 0);
            memmove(to + a, to + b, length);
            EXPECT(memcmp(to + a, from + a, length) == 0);
        }
    }
}

static void the_checksum_agrees_with_pairs_of_bytes(void) {
    static unsigned char data[320];
    for (unsigned i = 0; i < sizeof data; i++) {
        data[i] = (unsigned char)guest_random();
    }
    for (unsigned length = 0; length < 300; length++) {
        for (unsigned shift = 0; shift < 8; shift++) {
            uint32_t sum = 0;
            for (unsigned i = 0; i < length; i++) {
                sum += (uint32_t)data[shift + i] << (8 * (i % 2));
            }
            sum = (sum & 0xffff) + (sum >> 16);
            sum = (sum & 0xffff) + (sum >> 16);
            EXPECT(net_checksum(data + shift, (int)length) == sum);
        }
    }
}

static void a_file_that_the_host_did_not_give_is_absent(void) {
    char buf[16];
    EXPECT(fwcfg_read_file("opt/platter/no-such-file", buf, sizeof buf) == -ENOENT);
}

static void a_file_of_the_host_is_read_whole_or_refused(void) {
    static char buf[COMMAND_LINE_MAX];
    long length = fwcfg_read_file("etc/boot-fail-wait", buf, sizeof buf);
    EXPECT(length == 4);
    EXPECT(fwcfg_read_file("etc/boot-fail-wait", buf, 3) == -E2BIG);
}

const struct guest_test guest_library_tests[] = {
    {"printf_speaks_64_bit_numbers", printf_speaks_64_bit_numbers},
    {"printf_speaks_widths_and_strings", printf_speaks_widths_and_strings},
    {"printf_cuts_and_tells_the_whole_length", printf_cuts_and_tells_the_whole_length},
    {"memory_functions_agree_with_bytes", memory_functions_agree_with_bytes},
    {"the_checksum_agrees_with_pairs_of_bytes", the_checksum_agrees_with_pairs_of_bytes},
    {"a_file_that_the_host_did_not_give_is_absent", a_file_that_the_host_did_not_give_is_absent},
    {"a_file_of_the_host_is_read_whole_or_refused", a_file_of_the_host_is_read_whole_or_refused},
    {NULL, NULL},
};
