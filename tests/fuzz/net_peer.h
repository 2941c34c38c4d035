/* The other ends of a fuzzed network: TCP clients that know what they say and what they must hear,
 * a DHCP server, and neighbours that answer ARP. Each byte of a connection's stream follows from
 * the connection and its place, both ways, so that a byte that is not what it should be is seen
 * wherever it turns up. What clients know ends where the input has made them break TCP
 * (is_trusted). */
#ifndef TESTS_FUZZ_NET_PEER_H
#define TESTS_FUZZ_NET_PEER_H

#include "net/offload.h"
#include "tests/fuzz/fuzz.h"

enum {
    NET_PEERS = 3,
    NET_GUEST_PORT = 10809,
    NET_FRAME_BYTES_MAX = 9000 + 14 + 60 + 60,
    NET_WIRE_SEGMENT = 1460,
    FLAG_FIN = 1,
    FLAG_SYN = 2,
    FLAG_RST = 4,
    FLAG_PUSH = 8,
    FLAG_ACK = 16,
};

#define NET_GUEST_ADDRESS UINT32_C(0x0a00020f) /* 10.0.2.15 */

struct net_peer {
    uint32_t address;
    uint16_t port;
    bool is_used;
    bool is_established;
    bool is_trusted;  /* what the input had it say was TCP */
    bool is_finished; /* it has said FIN */
    bool has_gaps;    /* it has said what lies beyond a gap */
    uint32_t isn;
    uint32_t guest_isn;
    uint32_t sent;     /* places of its stream that it has said so far, without gaps */
    uint32_t said;     /* the farthest place that it has ever said */
    uint32_t received; /* heard without gaps */
    uint32_t edge;     /* the guest may say what lies before this place */
    uint16_t mss;      /* as it has told; 536 when it has not */
    uint8_t scale_told;
    uint8_t scale;
    bool scales;
};

extern struct net_peer net_peers[NET_PEERS];

/* What the stream of the connection from this address and port has from `at` on. */
void net_content_copy(uint8_t *to, uint32_t address, uint16_t port, uint32_t at, size_t bytes);
bool net_content_is(const uint8_t *data, uint32_t address, uint16_t port, uint32_t at,
                    size_t bytes);
/* The connection of a peer that is there now; NULL for others. */
struct net_peer *net_peer_of(uint32_t address, uint16_t port);

void net_peers_begin(const uint8_t *guest_mac, uint16_t mtu);

/* A segment of the peer's with a right checksum: `at` is a place of its stream, `bytes` of the
 * stream from there are in it. Returns the frame's length. */
struct net_segment {
    uint8_t flags;
    uint32_t at;
    uint32_t ack_skew; /* added to the right acknowledgement */
    uint16_t window;
    uint16_t bytes;
    const uint8_t *options;
    size_t option_bytes; /* up to 40; rounded up to words with zeroes */
};
size_t net_peer_segment(struct net_peer *peer, const struct net_segment *segment, uint8_t *frame);

/* A new connection of the peer's, from the same port as the last if `again`: the frame with its
 * SYN. The port says what the server does. */
size_t net_peer_connect(struct net_peer *peer, unsigned kind, bool again, uint16_t window,
                        const uint8_t *options, size_t option_bytes, uint8_t *frame);

/* A DHCP reply to the last question heard, with these options behind the magic cookie. */
size_t net_dhcp_reply(const uint8_t *options, size_t option_bytes, uint8_t *frame);

/* What the guest has sent: checks it, and lets the peers know. Answers to ARP are made through
 * `answer`. */
typedef void net_answer(const uint8_t *frame, size_t bytes);
void net_peers_hear(const struct net_header *header, const uint8_t *frame, size_t bytes,
                    net_answer *answer);

/* Makes the checksums of an IPv4 frame right, where it looks like one. */
void net_mend_checksums(uint8_t *frame, size_t bytes);

/* A frame of anybody's own making that claims to be from a peer: it is not trusted any more. */
void net_peers_doubt(const uint8_t *frame, size_t bytes);

#endif
