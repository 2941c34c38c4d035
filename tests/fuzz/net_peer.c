/* See net_peer.h. */
#include "tests/fuzz/net_peer.h"

#include <string.h>

#include "tests/network_words.h"

enum {
    ETHERNET = 14,
    IP_BYTES = 20,
    TCP_BYTES = 20,
    UDP_BYTES = 8,
    PROTOCOL_TCP = 6,
    PROTOCOL_UDP = 17,
    OPTIONS_MAX = 40,
    OPTION_MSS = 2,
    OPTION_SCALE = 3,
    MSS_DEFAULT = 536, /* RFC 9293, 3.7.1 */
    SCALE_MAX = 14,
    DHCP_BYTES = 240, /* with the magic cookie */
    DHCP_SERVER_PORT = 67,
    DHCP_CLIENT_PORT = 68,
    CONTENT_BYTES = 65521, /* a prime: no length that is used divides it */
};

struct net_peer net_peers[NET_PEERS];

static uint8_t guest_mac[6];
static uint16_t wire_mtu;
static uint8_t dhcp_xid[4];
static uint16_t generation;

static const uint8_t peer_mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x57};

/* All streams are pieces of one row of bytes, each from a place of its own; compared and copied as
 * memory, which the fuzzer need not watch byte by byte. */
static uint8_t content[CONTENT_BYTES];

static size_t content_at(uint32_t address, uint16_t port, uint32_t at, size_t bytes, size_t *run) {
    size_t place = ((size_t)address * 31 + port * 7919u + at) % CONTENT_BYTES;
    *run = bytes < CONTENT_BYTES - place ? bytes : CONTENT_BYTES - place;
    return place;
}

static void fill_content(void) {
    uint64_t state = 1;
    for (size_t i = 0; content[0] == 0 && i < CONTENT_BYTES; i++) {
        size_t at = CONTENT_BYTES - 1 - i; /* the first byte last: it tells that all is done */
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
        content[at] = (uint8_t)(state >> 56 | 1);
    }
}

void net_content_copy(uint8_t *to, uint32_t address, uint16_t port, uint32_t at, size_t bytes) {
    for (size_t run = 0; bytes > 0; bytes -= run, at += (uint32_t)run, to += run) {
        size_t place = content_at(address, port, at, bytes, &run);
        memcpy(to, content + place, run);
    }
}

bool net_content_is(const uint8_t *data, uint32_t address, uint16_t port, uint32_t at,
                    size_t bytes) {
    for (size_t run = 0; bytes > 0; bytes -= run, at += (uint32_t)run, data += run) {
        size_t place = content_at(address, port, at, bytes, &run);
        if (memcmp(data, content + place, run) != 0) {
            return false;
        }
    }
    return true;
}

struct net_peer *net_peer_of(uint32_t address, uint16_t port) {
    for (unsigned i = 0; i < NET_PEERS; i++) {
        if (net_peers[i].is_used && net_peers[i].address == address && net_peers[i].port == port) {
            return &net_peers[i];
        }
    }
    return NULL;
}

void net_peers_begin(const uint8_t *mac, uint16_t mtu) {
    memset(net_peers, 0, sizeof net_peers);
    memcpy(guest_mac, mac, sizeof guest_mac);
    memset(dhcp_xid, 0, sizeof dhcp_xid);
    wire_mtu = mtu;
    generation = 0;
    fill_content();
    for (unsigned i = 0; i < NET_PEERS; i++) {
        net_peers[i].address = (NET_GUEST_ADDRESS & ~0xffu) + 100 + i;
    }
}

/* --- Sums --- */

/* Not the appliance's own: what is wrong there must not be wrong here too. The fuzzer need not
 * watch. */
__attribute__((no_sanitize("coverage", "address"))) static uint32_t
sum_of(const uint8_t *p, size_t bytes, uint32_t sum) {
    for (size_t i = 0; i + 1 < bytes; i += 2) {
        sum += get16(p + i);
    }
    if (bytes % 2 != 0) {
        sum += (uint32_t)p[bytes - 1] << 8;
    }
    while (sum >> 16 != 0) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

static uint32_t pseudo_sum(const uint8_t *ip, uint32_t bytes) {
    return sum_of(ip + 12, 8, ip[9] + bytes);
}

void net_mend_checksums(uint8_t *frame, size_t bytes) {
    uint8_t *ip = frame + ETHERNET;
    if (bytes < ETHERNET + IP_BYTES || get16(frame + 12) != 0x0800) {
        return;
    }
    size_t header = (ip[0] & 0x0fu) * 4u;
    size_t total = get16(ip + 2);
    if (header < IP_BYTES || total < header || total > bytes - ETHERNET) {
        return;
    }
    put16(ip + 10, 0);
    put16(ip + 10, ~sum_of(ip, header, 0));
    size_t at = ip[9] == PROTOCOL_TCP ? 16 : ip[9] == PROTOCOL_UDP ? 6 : ip[9] == 1 ? 2 : SIZE_MAX;
    size_t rest = total - header;
    if (at == SIZE_MAX || rest < at + 2) {
        return;
    }
    put16(ip + header + at, 0);
    uint32_t begin = ip[9] == 1 ? 0 : pseudo_sum(ip, (uint32_t)rest);
    put16(ip + header + at, ~sum_of(ip + header, rest, begin));
}

static void put_ip(uint8_t *frame, uint32_t from, uint32_t to, uint8_t protocol, size_t bytes) {
    uint8_t *ip = frame + ETHERNET;
    memcpy(frame, guest_mac, 6);
    memcpy(frame + 6, peer_mac, 6);
    put16(frame + 12, 0x0800);
    memset(ip, 0, IP_BYTES);
    ip[0] = 0x45;
    put16(ip + 2, (uint32_t)(IP_BYTES + bytes));
    ip[8] = 64;
    ip[9] = protocol;
    put32(ip + 12, from);
    put32(ip + 16, to);
}

/* --- Speaking --- */

static uint32_t right_ack(const struct net_peer *peer) {
    return peer->guest_isn + 1 + peer->received;
}

static void allow(struct net_peer *peer, const struct net_segment *segment) {
    uint32_t window = segment->window;
    window <<= peer->scales && (segment->flags & FLAG_SYN) == 0 ? peer->scale : 0;
    uint32_t edge = peer->received + segment->ack_skew + window;
    if ((segment->flags & FLAG_ACK) != 0 && (int32_t)(edge - peer->edge) > 0) {
        peer->edge = edge;
    }
}

size_t net_peer_segment(struct net_peer *peer, const struct net_segment *segment, uint8_t *frame) {
    size_t option_bytes = segment->option_bytes < OPTIONS_MAX ? segment->option_bytes : OPTIONS_MAX;
    size_t header = TCP_BYTES + (option_bytes + 3) / 4 * 4;
    size_t bytes = ETHERNET + IP_BYTES + header + segment->bytes;
    uint8_t *tcp = frame + ETHERNET + IP_BYTES;
    FUZZ_CHECK(bytes <= NET_FRAME_BYTES_MAX);
    put_ip(frame, peer->address, NET_GUEST_ADDRESS, PROTOCOL_TCP, header + segment->bytes);
    memset(tcp, 0, header);
    put16(tcp, peer->port);
    put16(tcp + 2, NET_GUEST_PORT);
    put32(tcp + 4, (segment->flags & FLAG_SYN) != 0 ? peer->isn : peer->isn + 1 + segment->at);
    put32(tcp + 8, (segment->flags & FLAG_ACK) != 0 ? right_ack(peer) + segment->ack_skew : 0);
    tcp[12] = (uint8_t)(header / 4 << 4);
    tcp[13] = segment->flags;
    put16(tcp + 14, segment->window);
    if (option_bytes > 0) {
        memcpy(tcp + TCP_BYTES, segment->options, option_bytes);
    }
    net_content_copy(tcp + header, peer->address, peer->port, segment->at, segment->bytes);
    if ((int32_t)(segment->at + segment->bytes - peer->said) > 0) {
        peer->said = segment->at + segment->bytes;
    }
    /* lwIP believes the window of what comes behind a gap, and of nothing older afterwards. */
    peer->has_gaps |= (int32_t)(segment->at - peer->sent) > 0;
    allow(peer, segment);
    net_mend_checksums(frame, bytes);
    return bytes;
}

/* What the guest learns from the options of a SYN, as RFC 9293 3.1 and RFC 7323 2.2 have it read.
 */
static void note_options(struct net_peer *peer, const uint8_t *options, size_t bytes) {
    peer->mss = MSS_DEFAULT;
    for (size_t at = 0; at < bytes && options[at] != 0;) {
        if (options[at] == 1) {
            at++;
            continue;
        }
        if (at + 1 >= bytes || options[at + 1] < 2 || at + options[at + 1] > bytes) {
            peer->is_trusted = false; /* who knows how this is read */
            return;
        }
        if (options[at] == OPTION_MSS && options[at + 1] == 4) {
            uint32_t most = wire_mtu - (IP_BYTES + TCP_BYTES);
            uint32_t mss = get16(options + at + 2);
            peer->mss = (uint16_t)(mss == 0 || mss > most ? most : mss);
        } else if (options[at] == OPTION_SCALE && options[at + 1] == 3) {
            peer->scale_told = options[at + 2] < SCALE_MAX ? options[at + 2] : SCALE_MAX;
        } else if (options[at] <= OPTION_SCALE) {
            peer->is_trusted = false;
            return;
        }
        at += options[at + 1];
    }
}

size_t net_peer_connect(struct net_peer *peer, unsigned kind, bool again, uint16_t window,
                        const uint8_t *options, size_t option_bytes, uint8_t *frame) {
    uint32_t address = peer->address;
    uint16_t port_before = peer->port;
    generation++;
    again = again && peer->is_used;
    option_bytes = option_bytes < OPTIONS_MAX ? option_bytes : OPTIONS_MAX;
    *peer = (struct net_peer){.address = address,
                              .port = again ? port_before
                                            : (uint16_t)(20000 + 4 * generation + kind % 4),
                              .is_used = true,
                              /* The one before may still be there: who knows who is answered. */
                              .is_trusted = !again,
                              .isn = UINT32_C(10000000) * generation,
                              .edge = window,
                              .scale_told = UINT8_MAX};
    note_options(peer, options, option_bytes);
    struct net_segment syn = {
        .flags = FLAG_SYN, .window = window, .options = options, .option_bytes = option_bytes};
    return net_peer_segment(peer, &syn, frame);
}

size_t net_dhcp_reply(const uint8_t *options, size_t option_bytes, uint8_t *frame) {
    uint8_t *udp = frame + ETHERNET + IP_BYTES;
    uint8_t *dhcp = udp + UDP_BYTES;
    size_t bytes = UDP_BYTES + DHCP_BYTES + option_bytes;
    FUZZ_CHECK(bytes + IP_BYTES + ETHERNET <= NET_FRAME_BYTES_MAX);
    put_ip(frame, (NET_GUEST_ADDRESS & ~0xffu) + 2, UINT32_MAX, PROTOCOL_UDP, bytes);
    memset(udp, 0, UDP_BYTES + DHCP_BYTES);
    put16(udp, DHCP_SERVER_PORT);
    put16(udp + 2, DHCP_CLIENT_PORT);
    put16(udp + 4, (uint32_t)bytes);
    dhcp[0] = 2; /* RFC 2131, 2: a reply, on Ethernet */
    dhcp[1] = 1;
    dhcp[2] = 6;
    memcpy(dhcp + 4, dhcp_xid, sizeof dhcp_xid);
    put32(dhcp + 16, NET_GUEST_ADDRESS);
    memcpy(dhcp + 28, guest_mac, sizeof guest_mac);
    put32(dhcp + 236, UINT32_C(0x63825363));
    memcpy(dhcp + DHCP_BYTES, options, option_bytes);
    net_mend_checksums(frame, ETHERNET + IP_BYTES + bytes);
    return ETHERNET + IP_BYTES + bytes;
}

void net_peers_doubt(const uint8_t *frame, size_t bytes) {
    for (unsigned i = 0; bytes >= ETHERNET + IP_BYTES && i < NET_PEERS; i++) {
        if (get32(frame + ETHERNET + 12) == net_peers[i].address) {
            net_peers[i].is_trusted = false;
        }
    }
}

/* --- Hearing --- */

static void hear_arp(const uint8_t *frame, size_t bytes, net_answer *answer) {
    uint8_t reply[60] = {0};
    if (bytes < ETHERNET + 28 || get16(frame + ETHERNET + 6) != 1) {
        return;
    }
    const uint8_t *target = frame + ETHERNET + 24;
    if (get32(target) == NET_GUEST_ADDRESS) {
        return; /* it asks for itself */
    }
    memcpy(reply, guest_mac, 6);
    memcpy(reply + 6, peer_mac, 6);
    memcpy(reply + 12, frame + 12, 8);
    put16(reply + ETHERNET + 6, 2);
    memcpy(reply + ETHERNET + 8, peer_mac, 6);
    memcpy(reply + ETHERNET + 14, target, 4);
    memcpy(reply + ETHERNET + 18, frame + ETHERNET + 8, 10);
    answer(reply, sizeof reply);
}

/* Header and sum are what a network takes, or what the device is asked to make of them. */
static void check_sums(const struct net_header *header, const uint8_t *ip, size_t ip_header,
                       size_t rest) {
    FUZZ_CHECK(sum_of(ip, ip_header, 0) == 0xffff);
    const uint8_t *transport = ip + ip_header;
    if ((header->flags & NET_HEADER_NEEDS_CHECKSUM) != 0) {
        size_t at = ip[9] == PROTOCOL_TCP ? 16 : 6;
        FUZZ_CHECK(header->checksum_start == ETHERNET + ip_header && header->checksum_offset == at);
        FUZZ_CHECK(get16(transport + at) == pseudo_sum(ip, (uint32_t)rest));
        return;
    }
    if (ip[9] == PROTOCOL_TCP || (ip[9] == PROTOCOL_UDP && get16(transport + 6) != 0)) {
        FUZZ_CHECK(sum_of(transport, rest, pseudo_sum(ip, (uint32_t)rest)) == 0xffff);
    }
}

static void hear_syn(struct net_peer *peer, const uint8_t *tcp, size_t header_bytes) {
    if (!peer->is_established) {
        peer->is_established = true;
        peer->guest_isn = get32(tcp + 4);
        for (size_t at = TCP_BYTES; at < header_bytes && tcp[at] != 0;) {
            if (tcp[at] == OPTION_SCALE && peer->scale_told != UINT8_MAX) {
                peer->scales = true;
                peer->scale = peer->scale_told;
            }
            at += tcp[at] == 1 ? 1 : tcp[at + 1];
        }
    }
    FUZZ_CHECK(!peer->is_trusted || get32(tcp + 4) == peer->guest_isn);
}

/* Every byte is what it must be, wherever it comes and however often; within the window. */
static void hear_data(struct net_peer *peer, uint32_t at, const uint8_t *data, size_t bytes) {
    FUZZ_CHECK(net_content_is(data, peer->address, peer->port, at, bytes));
    /* One more: a question whether the window is still closed. */
    FUZZ_CHECK(bytes == 0 || peer->has_gaps || (int32_t)(at + (uint32_t)bytes - peer->edge) <= 1);
    if ((int32_t)(at - peer->received) <= 0 &&
        (int32_t)(at + (uint32_t)bytes - peer->received) > 0) {
        peer->received = at + (uint32_t)bytes;
    }
}

static void hear_tcp(const struct net_header *header, const uint8_t *ip, const uint8_t *tcp,
                     size_t bytes) {
    FUZZ_CHECK(bytes >= TCP_BYTES);
    size_t header_bytes = (tcp[12] >> 4) * 4u;
    FUZZ_CHECK(header_bytes >= TCP_BYTES && header_bytes <= bytes);
    struct net_peer *peer = net_peer_of(get32(ip + 16), get16(tcp + 2));
    if (peer == NULL || get16(tcp) != NET_GUEST_PORT) {
        return;
    }
    uint8_t flags = tcp[13];
    if ((flags & FLAG_SYN) != 0) {
        hear_syn(peer, tcp, header_bytes);
        return;
    }
    if (!peer->is_established || !peer->is_trusted || (flags & FLAG_RST) != 0) {
        return;
    }
    size_t payload = bytes - header_bytes;
    if (header->gso_type != NET_HEADER_GSO_NONE) {
        FUZZ_CHECK(header->gso_size > 0 && header->gso_size <= peer->mss);
        FUZZ_CHECK(header->header_bytes == header->checksum_start + header_bytes);
    } else {
        FUZZ_CHECK(payload <= peer->mss);
    }
    uint32_t heard = get32(tcp + 8) - peer->isn - 1;
    FUZZ_CHECK((int32_t)(heard - peer->said) <= (peer->is_finished ? 1 : 0));
    hear_data(peer, get32(tcp + 4) - peer->guest_isn - 1, tcp + header_bytes, payload);
}

void net_peers_hear(const struct net_header *header, const uint8_t *frame, size_t bytes,
                    net_answer *answer) {
    const uint8_t *ip = frame + ETHERNET;
    FUZZ_CHECK(bytes >= ETHERNET && memcmp(frame + 6, guest_mac, 6) == 0);
    if (header->gso_type == NET_HEADER_GSO_NONE) {
        FUZZ_CHECK(bytes <= ETHERNET + (size_t)wire_mtu);
    } else {
        FUZZ_CHECK(header->gso_type == NET_HEADER_GSO_TCPV4 &&
                   (header->flags & NET_HEADER_NEEDS_CHECKSUM) != 0);
    }
    if (get16(frame + 12) == 0x0806) {
        hear_arp(frame, bytes, answer);
        return;
    }
    FUZZ_CHECK(get16(frame + 12) == 0x0800 && bytes >= ETHERNET + IP_BYTES);
    size_t ip_header = (ip[0] & 0x0fu) * 4u;
    size_t total = get16(ip + 2);
    FUZZ_CHECK(ip_header >= IP_BYTES && total >= ip_header && total <= bytes - ETHERNET);
    check_sums(header, ip, ip_header, total - ip_header);
    if (ip[9] == PROTOCOL_TCP) {
        hear_tcp(header, ip, ip + ip_header, total - ip_header);
    } else if (ip[9] == PROTOCOL_UDP && total >= ip_header + UDP_BYTES + DHCP_BYTES &&
               get16(ip + ip_header + 2) == DHCP_SERVER_PORT) {
        memcpy(dhcp_xid, ip + ip_header + UDP_BYTES + 4, sizeof dhcp_xid);
    }
}
