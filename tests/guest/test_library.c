/* What we ask of the C library, as it was built for this machine. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "config/limits.h"
#include "core/dev/fwcfg.h"
#include "core/symbols.h"
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

/* A function of which the image knows that it keeps where it returns to: it calls another. */
__attribute__((noinline)) static void keeps_its_return(unsigned count) {
    guest_say("%u", count);
    guest_say("%u", count + 1);
}

/* A stack as the function leaves it, with somebody else's return address where its own is to be. */
static void a_backtrace_knows_whether_a_function_has_its_frame(void) {
    static uintptr_t stack[64];
    uintptr_t low = (uintptr_t)stack;
    uintptr_t high = low + sizeof stack;
    uintptr_t in = (uintptr_t)keeps_its_return + 1;
    uintptr_t caller = (uintptr_t)guest_say + 2;
    uintptr_t other = (uintptr_t)guest_random + 2;
    struct symbol_frame known = symbols_frame(in);
    struct arch_frame frame = {.behind = in, .at = low};
    keeps_its_return(1);
    EXPECT(known.return_at != 0 && known.bytes > known.return_at && known.bytes < sizeof stack);
    stack[known.return_at / sizeof stack[0]] = caller;
    /* The register says the same, points into the function itself, or is not the newest's. */
    const uintptr_t registers[] = {caller, in + 1, 0};
    for (unsigned i = 0; i < sizeof registers / sizeof registers[0]; i++) {
        frame = (struct arch_frame){.behind = in, .at = low};
        EXPECT(arch_frame_leave(&frame, registers[i], low, high));
        EXPECT(frame.behind == caller && frame.at == low + known.bytes);
    }
    /* It says something else: there is no frame yet, or no more. */
    frame = (struct arch_frame){.behind = in, .at = low};
    EXPECT(arch_frame_leave(&frame, other, low, high));
    EXPECT(frame.behind == other && frame.at == low);
    /* The frame that the stack had no room for is behind it all the same. */
    frame = (struct arch_frame){.behind = in, .at = low};
    EXPECT(arch_frame_leave(&frame, other, low + known.bytes, high));
    EXPECT(frame.behind == other && frame.at == low + known.bytes);
    /* What is no address of code, or not all in the stack, ends it. */
    const struct arch_frame begun = {.behind = in, .at = low};
    frame = begun;
    EXPECT(!arch_frame_leave(&frame, 0, low, low + known.bytes - 1));
    frame.at = low + 1;
    EXPECT(!arch_frame_leave(&frame, 0, low, high));
    frame.at = high + 8;
    EXPECT(!arch_frame_leave(&frame, other, low, high));
    stack[known.return_at / sizeof stack[0]] = low;
    frame = begun;
    EXPECT(!arch_frame_leave(&frame, 0, low, high));
    EXPECT(frame.behind == begun.behind && frame.at == begun.at);
}

const struct guest_test guest_library_tests[] = {
    {"printf_speaks_64_bit_numbers", printf_speaks_64_bit_numbers},
    {"printf_speaks_widths_and_strings", printf_speaks_widths_and_strings},
    {"printf_cuts_and_tells_the_whole_length", printf_cuts_and_tells_the_whole_length},
    {"memory_functions_agree_with_bytes", memory_functions_agree_with_bytes},
    {"the_checksum_agrees_with_pairs_of_bytes", the_checksum_agrees_with_pairs_of_bytes},
    {"a_file_that_the_host_did_not_give_is_absent", a_file_that_the_host_did_not_give_is_absent},
    {"a_file_of_the_host_is_read_whole_or_refused", a_file_of_the_host_is_read_whole_or_refused},
    {"a_backtrace_knows_whether_a_function_has_its_frame",
     a_backtrace_knows_whether_a_function_has_its_frame},
    {NULL, NULL},
};
