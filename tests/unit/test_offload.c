/* Offload headers: what the device completes must be what a peer accepts. */
#include <string.h>

#include "net/checksum.h"
#include "net/offload.h"
#include "tests/unit/unit.h"

enum { FRAME_BYTES = 14 + 20 + 20 + 1001 };

static uint8_t frame[FRAME_BYTES];

/* An Ethernet frame with IPv4 and a transport header, content of no meaning. */
static void make_frame(uint8_t protocol) {
    for (unsigned i = 0; i < sizeof frame; i++) {
        frame[i] = (uint8_t)(i * 7 + 3);
    }
    frame[12] = 0x08;
    frame[13] = 0x00;
    uint8_t *ip = &frame[14];
    ip[0] = 0x45;
    ip[2] = (FRAME_BYTES - 14) >> 8;
    ip[3] = (FRAME_BYTES - 14) & 0xff;
    ip[9] = protocol;
    ip[20 + 12] = 5 << 4;
}

/* What the device does: the sum from checksum_start on goes where checksum_offset says. */
static void complete(const struct net_header *header) {
    uint8_t *start = &frame[header->checksum_start];
    uint16_t sum = (uint16_t)~net_checksum(start, FRAME_BYTES - header->checksum_start);
    memcpy(start + header->checksum_offset, &sum, sizeof sum);
}

/* What the peer does: everything under the checksum and the pseudo header sums to all ones. */
static bool peer_accepts(void) {
    uint8_t pseudo[12] = {[9] = frame[14 + 9]};
    memcpy(pseudo, &frame[14 + 12], 8);
    pseudo[10] = (FRAME_BYTES - 34) >> 8;
    pseudo[11] = (FRAME_BYTES - 34) & 0xff;
    uint32_t sum = net_checksum(pseudo, sizeof pseudo);
    sum += net_checksum(&frame[34], FRAME_BYTES - 34);
    sum = (sum >> 16) + (sum & 0xffff);
    return ((sum >> 16) + (sum & 0xffff)) == 0xffff;
}

TEST(a_tcp_checksum_completed_by_the_device_is_right) {
    struct net_offload offload = {.checksums = true, .segment_bytes = 1460};
    struct net_header header;
    make_frame(6);
    net_offload_fill(&offload, frame, sizeof frame, &header);
    assert_int_equal(header.flags, NET_HEADER_NEEDS_CHECKSUM);
    assert_int_equal(header.gso_type, NET_HEADER_GSO_NONE);
    complete(&header);
    assert_true(peer_accepts());
}

TEST(a_udp_checksum_completed_by_the_device_is_right) {
    struct net_offload offload = {.checksums = true, .segment_bytes = 1460};
    struct net_header header;
    make_frame(17);
    net_offload_fill(&offload, frame, sizeof frame, &header);
    assert_int_equal(header.checksum_offset, 6);
    complete(&header);
    assert_true(peer_accepts());
}

TEST(a_payload_longer_than_a_segment_is_cut_by_the_device) {
    struct net_offload offload = {.checksums = true, .segments = true, .segment_bytes = 1000};
    struct net_header header;
    make_frame(6);
    net_offload_fill(&offload, frame, sizeof frame, &header);
    assert_int_equal(header.gso_type, NET_HEADER_GSO_TCPV4);
    assert_int_equal(header.gso_size, 1000);
    assert_int_equal(header.header_bytes, 14 + 20 + 20);
}

TEST(a_payload_of_one_segment_is_not_cut) {
    struct net_offload offload = {.checksums = true, .segments = true, .segment_bytes = 1001};
    struct net_header header;
    make_frame(6);
    net_offload_fill(&offload, frame, sizeof frame, &header);
    assert_int_equal(header.gso_type, NET_HEADER_GSO_NONE);
}

TEST(without_the_features_nothing_is_left_to_the_device) {
    struct net_offload offload = {.segment_bytes = 1000};
    struct net_header header;
    uint8_t before[FRAME_BYTES];
    make_frame(6);
    memcpy(before, frame, sizeof frame);
    net_offload_fill(&offload, frame, sizeof frame, &header);
    assert_int_equal(header.flags, 0);
    assert_memory_equal(before, frame, sizeof frame);
}

TEST(what_is_not_tcp_or_udp_over_ipv4_is_left_alone) {
    struct net_offload offload = {.checksums = true, .segments = true, .segment_bytes = 1000};
    struct net_header header;
    make_frame(1);
    net_offload_fill(&offload, frame, sizeof frame, &header);
    assert_int_equal(header.flags, 0);
    make_frame(6);
    frame[12] = 0x86;
    frame[13] = 0xdd;
    net_offload_fill(&offload, frame, sizeof frame, &header);
    assert_int_equal(header.flags, 0);
}

TEST(headers_that_are_not_all_there_are_left_alone) {
    struct net_offload offload = {.checksums = true, .segments = true, .segment_bytes = 1000};
    struct net_header header;
    make_frame(6);
    for (size_t bytes = 0; bytes < 14 + 20 + 20; bytes++) {
        net_offload_fill(&offload, frame, bytes, &header);
        assert_int_equal(header.flags, 0);
    }
}
