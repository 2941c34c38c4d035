/* The NBD protocol's formats: apps/nbd/wire.c. */
#include "apps/nbd/wire.h"

#include <string.h>

#include "tests/unit/unit.h"

TEST(numbers_are_big_endian_at_any_address) {
    uint8_t bytes[16] = {0};
    nbd_put16(bytes + 1, 0x0102);
    nbd_put32(bytes + 3, 0x03040506);
    nbd_put64(bytes + 7, UINT64_C(0x0708090a0b0c0d0e));
    for (unsigned i = 1; i < 15; i++) {
        assert_int_equal(bytes[i], i);
    }
    assert_int_equal(nbd_get16(bytes + 1), 0x0102);
    assert_int_equal(nbd_get32(bytes + 3), 0x03040506);
    assert_int_equal(nbd_get64(bytes + 7), UINT64_C(0x0708090a0b0c0d0e));
}

TEST(the_largest_numbers_survive) {
    uint8_t bytes[8];
    nbd_put64(bytes, UINT64_MAX);
    assert_int_equal(nbd_get64(bytes), UINT64_MAX);
    assert_int_equal(nbd_get32(bytes), UINT32_MAX);
    assert_int_equal(nbd_get16(bytes), UINT16_MAX);
}

TEST(a_request_is_decoded_field_by_field) {
    static const uint8_t bytes[NBD_REQUEST_BYTES] = {
        0x25, 0x60, 0x95, 0x13,                         /* magic */
        0x00, 0x01,                                     /* flags: FUA */
        0x00, 0x06,                                     /* write zeroes */
        0xde, 0xad, 0xbe, 0xef, 0x01, 0x02, 0x03, 0x04, /* cookie */
        0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x02, 0x00, /* offset */
        0x80, 0x00, 0x10, 0x00,                         /* length */
    };
    struct nbd_request_header header;
    nbd_decode_request(bytes, NBD_SIMPLE, &header);
    assert_int_equal(header.magic, NBD_REQUEST_MAGIC);
    assert_int_equal(header.flags, NBD_CMD_FLAG_FUA);
    assert_int_equal(header.command, NBD_CMD_WRITE_ZEROES);
    assert_memory_equal(&header.cookie, bytes + 8, sizeof header.cookie);
    assert_int_equal(header.offset, UINT64_C(0x100000200));
    assert_int_equal(header.length, UINT32_C(0x80001000));
}

TEST(a_simple_reply_is_encoded_field_by_field) {
    static const uint8_t expected[NBD_SIMPLE_REPLY_BYTES] = {0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28,
                                                             0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4};
    uint8_t bytes[NBD_SIMPLE_REPLY_BYTES];
    uint64_t cookie = 0;
    memcpy(&cookie, expected + 8, sizeof cookie);
    nbd_encode_simple_reply(bytes, NBD_ENOSPC, cookie);
    assert_memory_equal(bytes, expected, sizeof bytes);
}

TEST(the_magics_spell_their_words) {
    uint8_t bytes[8];
    nbd_put64(bytes, NBD_MAGIC);
    assert_memory_equal(bytes, "NBDMAGIC", 8);
    nbd_put64(bytes, NBD_OPTION_MAGIC);
    assert_memory_equal(bytes, "IHAVEOPT", 8);
}

TEST(every_error_has_the_protocol_s_number) {
    static const struct {
        int error;
        uint32_t number;
    } cases[] = {{0, 0},          {-EPERM, 1},   {-EROFS, 1},   {-EIO, 5},
                 {-ENOMEM, 12},   {-EINVAL, 22}, {-ENOSPC, 28}, {-ESHUTDOWN, 108},
                 {-ETIMEDOUT, 5}, {-EPROTO, 5},  {-9999, 5}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        assert_int_equal(nbd_error_of(cases[i].error, NBD_CMD_READ), cases[i].number);
        assert_int_equal(nbd_error_of(cases[i].error, NBD_CMD_WRITE), cases[i].number);
    }
}

TEST(only_a_zeroing_is_told_that_it_is_not_supported) {
    assert_int_equal(nbd_error_of(-ENOTSUP, NBD_CMD_WRITE_ZEROES), NBD_ENOTSUP);
    assert_int_equal(nbd_error_of(-ENOTSUP, NBD_CMD_TRIM), NBD_EINVAL);
    assert_int_equal(nbd_error_of(-ENOTSUP, NBD_CMD_READ), NBD_EINVAL);
}

/* NBD protocol: ENOSPC for writes past the end, EINVAL for other requests. */
TEST(past_the_end_means_no_space_to_what_writes) {
    assert_int_equal(nbd_error_of(-ERANGE, NBD_CMD_WRITE), NBD_ENOSPC);
    assert_int_equal(nbd_error_of(-ERANGE, NBD_CMD_WRITE_ZEROES), NBD_ENOSPC);
    assert_int_equal(nbd_error_of(-ERANGE, NBD_CMD_READ), NBD_EINVAL);
    assert_int_equal(nbd_error_of(-ERANGE, NBD_CMD_TRIM), NBD_EINVAL);
    assert_int_equal(nbd_error_of(-ERANGE, NBD_CMD_CACHE), NBD_EINVAL);
}

TEST(an_extended_request_has_a_length_of_64_bits) {
    static const uint8_t bytes[NBD_EXTENDED_REQUEST_BYTES] = {
        0x21, 0xe4, 0x1c, 0x71,                         /* magic */
        0x00, 0x20,                                     /* flags: PAYLOAD_LEN */
        0x00, 0x07,                                     /* block status */
        0xde, 0xad, 0xbe, 0xef, 0x01, 0x02, 0x03, 0x04, /* cookie */
        0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x02, 0x00, /* offset */
        0x00, 0x00, 0x00, 0x02, 0x80, 0x00, 0x10, 0x00, /* length */
    };
    struct nbd_request_header header;
    nbd_decode_request(bytes, NBD_EXTENDED, &header);
    assert_int_equal(header.magic, NBD_EXTENDED_REQUEST_MAGIC);
    assert_int_equal(header.flags, NBD_CMD_FLAG_PAYLOAD_LEN);
    assert_int_equal(header.command, NBD_CMD_BLOCK_STATUS);
    assert_memory_equal(&header.cookie, bytes + 8, sizeof header.cookie);
    assert_int_equal(header.offset, UINT64_C(0x100000200));
    assert_int_equal(header.length, UINT64_C(0x280001000));
}

TEST(a_chunk_is_encoded_field_by_field) {
    static const uint8_t structured[NBD_STRUCTURED_REPLY_BYTES] = {
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 14};
    static const uint8_t extended[NBD_EXTENDED_REPLY_BYTES] = {
        0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 9,
        0,    0,    0,    3,    0, 0, 2,    0, 0, 0, 0, 0, 0, 0, 0, 14};
    struct nbd_request_header request = {.offset = UINT64_C(0x300000200)};
    memcpy(&request.cookie, structured + 8, sizeof request.cookie);
    uint8_t bytes[NBD_EXTENDED_REPLY_BYTES];
    assert_int_equal(nbd_encode_chunk(bytes, NBD_STRUCTURED, NBD_REPLY_FLAG_DONE,
                                      NBD_REPLY_TYPE_ERROR_OFFSET, &request, 14),
                     sizeof structured);
    assert_memory_equal(bytes, structured, sizeof structured);
    assert_int_equal(nbd_encode_chunk(bytes, NBD_EXTENDED, NBD_REPLY_FLAG_DONE,
                                      NBD_REPLY_TYPE_ERROR_OFFSET, &request, 14),
                     sizeof extended);
    assert_memory_equal(bytes, extended, sizeof extended);
}

TEST(with_compact_headers_only_a_write_brings_data) {
    for (uint16_t command = 0; command < 20; command++) {
        const struct nbd_request_header header = {
            .command = command, .flags = NBD_CMD_FLAG_PAYLOAD_LEN, .length = 7};
        uint64_t bytes = command == NBD_CMD_WRITE ? 7 : 0;
        assert_int_equal(nbd_payload_bytes(NBD_SIMPLE, &header), bytes);
        assert_int_equal(nbd_payload_bytes(NBD_STRUCTURED, &header), bytes);
    }
}

TEST(with_extended_headers_a_flag_says_that_there_is_data) {
    for (uint16_t command = 0; command < 20; command++) {
        struct nbd_request_header header = {.command = command, .length = UINT64_MAX};
        assert_int_equal(nbd_payload_bytes(NBD_EXTENDED, &header), 0);
        header.flags = NBD_CMD_FLAG_PAYLOAD_LEN;
        assert_int_equal(nbd_payload_bytes(NBD_EXTENDED, &header), UINT64_MAX);
    }
}

TEST(every_error_has_words) {
    static const uint32_t errors[] = {NBD_EPERM,  NBD_EIO,     NBD_ENOMEM,   NBD_EINVAL,
                                      NBD_ENOSPC, NBD_ENOTSUP, NBD_ESHUTDOWN};
    for (size_t i = 0; i < ARRAY_COUNT(errors); i++) {
        assert_true(strlen(nbd_error_text(errors[i])) > 0);
        assert_true(strlen(nbd_error_text(errors[i])) < NBD_STRING_MAX);
    }
}
