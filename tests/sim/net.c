/* See net.h.
 *
 * Frames are read from the sender's memory some time after they were fetched, and that memory is
 * given back some time after that: who reuses it early sends somebody else's bytes. */
#include "tests/sim/net.h"

#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "tests/network_words.h"
#include "tests/sim/device.h"
#include "tests/sim/peer.h"

enum {
    QUEUE_RECEIVE = 0,
    QUEUE_SEND = 1,
    HEADER_BYTES = 12,
    FLAG_NEEDS_CSUM = 1,
    FLAG_DATA_VALID = 2,
    GSO_TCPV4 = 1,
    CONFIG_STATUS = 6,
    CONFIG_MTU = 10,
    MTU_UNSAID = 1500, /* Ethernet's */
    IP_BYTES = 20,
    TCP_PUSH = 8,
    TCP_FIN = 1,
    LEAST_FRAME = 60,
    BACKLOG_MAX = 256,
    HELD_MAX = 64,
};

const uint8_t net_mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};

struct frame {
    struct frame *next;
    size_t bytes;
    unsigned segment_bytes; /* a large TCP segment, to be cut so; 0 for none */
    bool is_spoiled;        /* its checksum cannot be right */
    uint8_t data[];
};

struct sending {
    struct chain chain;
    uint64_t epoch;
};

static struct device interface = {
    .name = "simulated interface", .id = VIRTIO_ID_NET, .queues = DEVICE_QUEUES};
static bool has_told_mtu; /* what is on the wire when it is reset keeps to that */
static bool is_looking;
static uint64_t last_read_ns;
static uint64_t last_done_ns;
static struct frame *backlog[BACKLOG_MAX];
static unsigned backlog_count;
/* Receive buffers that are taken and not used yet. */
static struct {
    struct chain chain;
    struct piece pieces[4];
} held[HELD_MAX];
static unsigned held_count;
static uint32_t held_bytes;
static bool link_is_up = true;
static uint64_t still_until_ns;
static bool is_broken;
static unsigned on_their_way;

/* --- Checksums ---------------------------------------------------------------------------------
 */

uint32_t checksum_add(uint32_t sum, const uint8_t *data, size_t bytes) {
    uint64_t wide = sum;
    for (; bytes >= 4; data += 4, bytes -= 4) {
        wide += (uint32_t)data[0] << 8 | data[1];
        wide += (uint32_t)data[2] << 8 | data[3];
    }
    if (bytes >= 2) {
        wide += (uint32_t)data[0] << 8 | data[1];
        data += 2;
        bytes -= 2;
    }
    if (bytes > 0) {
        wide += (uint32_t)data[0] << 8;
    }
    while (wide >> 32 != 0) {
        wide = (wide & UINT32_MAX) + (wide >> 32);
    }
    return (uint32_t)wide;
}

uint16_t checksum_fold(uint32_t sum) {
    while (sum >> 16 != 0) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint16_t)sum;
}

static uint32_t pseudo_sum(const uint8_t *ip, size_t bytes) {
    return checksum_add((uint32_t)(6 + bytes), ip + 12, 8);
}

uint16_t checksum_tcp(const uint8_t *ip, const uint8_t *segment, size_t bytes) {
    return (uint16_t)~checksum_fold(checksum_add(pseudo_sum(ip, bytes), segment, bytes));
}

/* --- The wire ----------------------------------------------------------------------------------
 */

static void receive(struct frame *frame);

static void arrive(void *arg, uint64_t is_to_appliance) {
    struct frame *frame = arg;
    on_their_way--;
    if (!link_is_up) {
        free(frame);
    } else if (is_to_appliance) {
        receive(frame);
    } else {
        peers_receive(frame->data, frame->bytes);
        free(frame);
    }
}

static struct frame *frame_copy(const uint8_t *data, size_t bytes, unsigned segment_bytes) {
    size_t room = bytes < LEAST_FRAME ? LEAST_FRAME : bytes;
    struct frame *frame = malloc(sizeof *frame + room);
    SIM_CHECK(frame != NULL && bytes <= FRAME_BYTES_MAX);
    *frame = (struct frame){.bytes = bytes, .segment_bytes = segment_bytes};
    memcpy(frame->data, data, bytes);
    if (bytes < LEAST_FRAME && luck_has(500)) {
        memset(frame->data + bytes, (int)luck_below(256), LEAST_FRAME - bytes);
        frame->bytes = LEAST_FRAME;
    }
    return frame;
}

/* Ethernet's own checksum finds what hits anything but IP and what is in it; of the rest one burst
 * of bits, which an Internet checksum always finds. */
static bool corrupt(struct frame *frame) {
    if (frame->bytes < ETHERNET_BYTES + IP_BYTES + 20 || get16(frame->data + 12) != 0x0800) {
        return false;
    }
    size_t end = ETHERNET_BYTES + (size_t)get16(frame->data + ETHERNET_BYTES + 2);
    size_t at = luck_between(ETHERNET_BYTES + IP_BYTES, end - 1);
    frame->data[at] ^= (uint8_t)(1u << luck_below(8));
    frame->is_spoiled = true;
    return true;
}

static void trace_frame(const struct frame *frame, bool is_to_appliance) {
    const uint8_t *ip = frame->data + ETHERNET_BYTES;
    if (get16(frame->data + 12) != 0x0800) {
        trace(is_to_appliance ? "wire: ▶ %llu bytes" : "wire: ◀ %llu bytes", frame->bytes, 0, 0, 0);
        return;
    }
    uint64_t bytes = get16(ip + 2) - (uint64_t)IP_BYTES - 4 * (uint64_t)(ip[IP_BYTES + 12] >> 4);
    uint64_t flags_and_window = (uint64_t)ip[IP_BYTES + 13] << 16 | get16(ip + IP_BYTES + 14);
    if (is_to_appliance) {
        trace("wire: ▶ from host %llu: sequence %llu, %llu bytes, flags and window 0x%llx", ip[15],
              get32(ip + IP_BYTES + 4), bytes, flags_and_window);
    } else {
        trace("wire: ◀ to host %llu: sequence %llu, %llu bytes, flags and window 0x%llx", ip[19],
              get32(ip + IP_BYTES + 4), bytes, flags_and_window);
    }
}

static void put_on_wire(struct frame *frame, bool is_to_appliance) {
    const struct net_faults *faults = &plan.net_faults;
    uint64_t delay_ns = plan.wire_ns;
    trace_frame(frame, is_to_appliance);
    if (world_now_ns() < still_until_ns) {
        free(frame);
        return;
    }
    if (fault_strikes(faults->lost) || (fault_strikes(faults->corrupted) && !corrupt(frame))) {
        trace("wire: a frame of %llu bytes is lost, to the appliance %llu", frame->bytes,
              is_to_appliance, 0, 0);
        free(frame);
        return;
    }
    if (fault_strikes(faults->twice)) {
        struct frame *again = frame_copy(frame->data, frame->bytes, frame->segment_bytes);
        again->is_spoiled = frame->is_spoiled;
        on_their_way++;
        world_after(delay_ns + luck_spread(0, 10 * NS_PER_MS), arrive, again, is_to_appliance);
    }
    if (fault_strikes(faults->delayed)) {
        delay_ns += luck_spread(NS_PER_US, NS_PER_S);
    } else if (fault_strikes(faults->reordered)) {
        delay_ns += luck_spread(100, 4 * plan.wire_ns + 1000);
    }
    on_their_way++;
    world_after(delay_ns, arrive, frame, is_to_appliance);
}

void net_send_to_appliance(const uint8_t *data, size_t bytes, unsigned segment_bytes) {
    put_on_wire(frame_copy(data, bytes, segment_bytes), true);
}

bool net_is_idle(void) {
    return on_their_way == 0 && backlog_count == 0;
}

/* --- Receiving ---------------------------------------------------------------------------------
 */

bool net_takes_large_segments(void) {
    return (interface.accepted & NET_F_GUEST_TSO4) != 0 &&
           (interface.accepted & NET_F_MRG_RXBUF) != 0 && device_is_live(&interface);
}

unsigned net_mtu(void) {
    return has_told_mtu ? plan.mtu : MTU_UNSAID;
}

static bool may_merge(void) {
    return (interface.accepted & NET_F_MRG_RXBUF) != 0;
}

/* Takes buffers until `bytes` fit. False when there are not as many; those taken stay held. */
static bool hold_buffers(uint32_t bytes) {
    while (held_bytes < bytes && held_count < HELD_MAX) {
        static struct piece pieces[CHAIN_PIECES_MAX]; /* too much for a task's stack */
        struct chain chain = {.pieces = pieces};
        if (!ring_take(&interface, QUEUE_RECEIVE, &chain)) {
            return false;
        }
        SIM_CHECK(chain.out_count == 0 && chain.in_count >= 1 && chain.in_count <= 4 &&
                  chain.in_bytes >= HEADER_BYTES + ETHERNET_BYTES);
        held[held_count].chain = chain;
        memcpy(held[held_count].pieces, pieces, chain.in_count * sizeof pieces[0]);
        held[held_count].chain.pieces = held[held_count].pieces;
        held_bytes += chain.in_bytes;
        held_count++;
        if (!may_merge()) {
            break;
        }
    }
    return held_bytes >= bytes;
}

static void fill_header(uint8_t header[HEADER_BYTES], struct frame *frame, unsigned buffers) {
    memset(header, 0, HEADER_BYTES);
    uint16_t count = (uint16_t)buffers;
    memcpy(header + 10, &count, 2);
    uint8_t *ip = frame->data + ETHERNET_BYTES;
    bool is_tcp = get16(frame->data + 12) == 0x0800 && ip[9] == 6;
    if (!is_tcp || (interface.accepted & NET_F_GUEST_CSUM) == 0 || frame->is_spoiled) {
        return;
    }
    if (frame->segment_bytes != 0 || luck_has(300)) {
        /* As from a neighbour on the same host: nobody has summed it up. */
        uint16_t start = ETHERNET_BYTES + IP_BYTES;
        uint16_t offset = 16;
        header[0] = FLAG_NEEDS_CSUM;
        memcpy(header + 6, &start, 2);
        memcpy(header + 8, &offset, 2);
        put16(ip + IP_BYTES + 16, checksum_fold(pseudo_sum(ip, get16(ip + 2) - (size_t)IP_BYTES)));
    } else if (luck_has(700)) {
        header[0] = FLAG_DATA_VALID;
    }
    if (frame->segment_bytes != 0) {
        uint16_t header_bytes =
            (uint16_t)(ETHERNET_BYTES + IP_BYTES + 4 * (ip[IP_BYTES + 12] >> 4));
        uint16_t segment = (uint16_t)frame->segment_bytes;
        header[1] = GSO_TCPV4;
        memcpy(header + 2, &header_bytes, 2);
        memcpy(header + 4, &segment, 2);
    }
}

/* The frame goes into the held buffers; what is not needed of them stays held. */
static void fill_buffers(struct frame *frame) {
    uint8_t header[HEADER_BYTES];
    unsigned used = 0;
    for (uint32_t room = 0; room < frame->bytes + HEADER_BYTES; used++) {
        room += held[used].chain.in_bytes;
    }
    fill_header(header, frame, used); /* without MRG_RXBUF: one (5.1.6.4.1) */
    size_t done = 0;
    for (unsigned i = 0; i < used; i++) {
        const struct chain *chain = &held[i].chain;
        uint32_t at = i == 0 ? chain_copy_in(chain, 0, header, HEADER_BYTES) : 0;
        size_t left = frame->bytes - done;
        uint32_t room = chain->in_bytes - at;
        uint32_t run = left < room ? (uint32_t)left : room;
        (void)chain_copy_in(chain, at, frame->data + done, run);
        done += run;
        held_bytes -= chain->in_bytes;
        ring_fill(&interface, QUEUE_RECEIVE, chain->head, at + run);
    }
    ring_publish(&interface, QUEUE_RECEIVE);
    held_count -= used;
    memmove(held, held + used, held_count * sizeof held[0]);
    for (unsigned i = 0; i < held_count; i++) {
        held[i].chain.pieces = held[i].pieces;
    }
}

/* True when the frame is dealt with, in whatever way. */
static bool give_frame(struct frame *frame) {
    uint32_t need = (uint32_t)frame->bytes + HEADER_BYTES;
    if (!device_is_live(&interface)) {
        return true;
    }
    if (hold_buffers(need)) {
        fill_buffers(frame);
        return true;
    }
    return !may_merge() && held_count > 0; /* too long for any buffer: dropped */
}

static void drain_backlog(void) {
    unsigned done = 0;
    while (done < backlog_count && give_frame(backlog[done])) {
        free(backlog[done]);
        done++;
    }
    backlog_count -= done;
    memmove(backlog, backlog + done, backlog_count * sizeof(struct frame *));
}

static void receive(struct frame *frame) {
    if (backlog_count == plan.backlog || !device_is_live(&interface)) {
        trace("interface: drops a frame of %llu bytes, no buffers", frame->bytes, 0, 0, 0);
        free(frame);
        return;
    }
    backlog[backlog_count++] = frame;
    drain_backlog();
    if (backlog_count > 0) {
        ring_want_notification(&interface, QUEUE_RECEIVE);
        drain_backlog();
    } else if (plan.net_polls) {
        ring_want_no_notification(&interface, QUEUE_RECEIVE);
    }
}

/* --- Sending -----------------------------------------------------------------------------------
 */

/* One frame of the wire's size, whole and summed up. */
static void emit(const uint8_t *data, size_t bytes) {
    if (bytes > ETHERNET_BYTES + net_mtu()) {
        sim_fail("the appliance sends a frame of %zu bytes on a wire of %u", bytes, net_mtu());
    }
    put_on_wire(frame_copy(data, bytes, 0), false);
}

static void cut(uint8_t *frame, size_t bytes, unsigned segment_bytes) {
    static uint8_t piece[FRAME_BYTES_MAX];
    uint8_t *ip = frame + ETHERNET_BYTES;
    size_t tcp_bytes = 4 * (size_t)(ip[IP_BYTES + 12] >> 4);
    size_t headers = ETHERNET_BYTES + IP_BYTES + tcp_bytes;
    SIM_CHECK(ip[0] == 0x45 && ip[9] == 6 && segment_bytes > 0 && bytes > headers);
    uint32_t sequence = get32(ip + IP_BYTES + 4);
    uint16_t identification = get16(ip + 4);
    for (size_t at = headers; at < bytes; at += segment_bytes) {
        size_t run = bytes - at < segment_bytes ? bytes - at : segment_bytes;
        bool is_last = at + run == bytes;
        memcpy(piece, frame, headers);
        memcpy(piece + headers, frame + at, run);
        uint8_t *out = piece + ETHERNET_BYTES;
        put16(out + 2, (uint16_t)(IP_BYTES + tcp_bytes + run));
        put16(out + 4, identification++);
        put16(out + 10, 0);
        put16(out + 10, (uint16_t)~checksum_fold(checksum_add(0, out, IP_BYTES)));
        put32(out + IP_BYTES + 4, sequence + (uint32_t)(at - headers));
        if (!is_last) {
            out[IP_BYTES + 13] &= (uint8_t) ~(TCP_PUSH | TCP_FIN);
        }
        put16(out + IP_BYTES + 16, 0);
        put16(out + IP_BYTES + 16, checksum_tcp(out, out + IP_BYTES, tcp_bytes + run));
        emit(piece, headers + run);
    }
}

static void send_frame(const struct chain *chain) {
    static uint8_t frame[HEADER_BYTES + FRAME_BYTES_MAX];
    SIM_CHECK(chain->in_count == 0 && chain->out_bytes > HEADER_BYTES + ETHERNET_BYTES &&
              chain->out_bytes <= sizeof frame);
    (void)chain_copy_out(chain, 0, frame, chain->out_bytes);
    uint8_t *data = frame + HEADER_BYTES;
    size_t bytes = chain->out_bytes - HEADER_BYTES;
    uint16_t segment = shared_get16(frame + 4);
    if (frame[1] != 0) {
        trace("interface: cuts %llu bytes into segments of %llu", bytes, segment, 0, 0);
    }
    if ((frame[0] & FLAG_NEEDS_CSUM) != 0) {
        uint16_t start = shared_get16(frame + 6);
        uint16_t offset = shared_get16(frame + 8);
        SIM_CHECK((interface.accepted & NET_F_CSUM) != 0 && (size_t)start + offset + 2 <= bytes);
        uint32_t sum = checksum_add(0, data + start, bytes - start);
        put16(data + start + offset, (uint16_t)~checksum_fold(sum));
    }
    if (frame[1] == GSO_TCPV4) {
        SIM_CHECK((interface.accepted & NET_F_HOST_TSO4) != 0 && (frame[0] & FLAG_NEEDS_CSUM) != 0);
        cut(data, bytes, segment);
    } else {
        SIM_CHECK(frame[1] == 0);
        emit(data, bytes);
    }
}

static void send_done(void *arg, uint64_t unused) {
    struct sending *sending = arg;
    (void)unused;
    if (sending->epoch == interface.epoch) {
        uint32_t id = sending->chain.head;
        if (fault_strikes(plan.net_faults.breaks)) {
            trace("interface: breaks its ring", 0, 0, 0, 0);
            is_broken = true;
            id = interface.rings[QUEUE_SEND].size + 1;
        }
        ring_give(&interface, QUEUE_SEND, id, 0);
    }
    free(sending->chain.pieces);
    free(sending);
}

static void read_memory(void *arg, uint64_t unused) {
    struct sending *sending = arg;
    (void)unused;
    if (sending->epoch == interface.epoch) {
        send_frame(&sending->chain);
    }
    uint64_t at_ns = world_now_ns() + luck_below(plan.send_done_ns + 1);
    at_ns = at_ns > last_done_ns ? at_ns : last_done_ns;
    last_done_ns = at_ns;
    world_after(at_ns - world_now_ns(), send_done, sending, 0);
}

static void look(void *arg, uint64_t epoch) {
    static struct piece pieces[CHAIN_PIECES_MAX];
    (void)arg; /* there is one */
    if (epoch != interface.epoch) {
        return;
    }
    is_looking = false;
    while (device_is_live(&interface)) {
        struct chain chain = {.pieces = pieces};
        if (!ring_take(&interface, QUEUE_SEND, &chain)) {
            ring_want_notification(&interface, QUEUE_SEND);
            if (!ring_has_more(&interface, QUEUE_SEND)) {
                return;
            }
            continue;
        }
        struct sending *sending = malloc(sizeof *sending);
        SIM_CHECK(sending != NULL);
        *sending = (struct sending){.chain = chain, .epoch = interface.epoch};
        sending->chain.pieces = chain_keep(&chain);
        uint64_t at_ns = world_now_ns() + luck_below(plan.net_fetch_ns + 1);
        at_ns = at_ns > last_read_ns ? at_ns : last_read_ns;
        last_read_ns = at_ns;
        world_after(at_ns - world_now_ns(), read_memory, sending, 0);
    }
}

static void notified(struct device *device, unsigned index) {
    if (index == QUEUE_RECEIVE) {
        drain_backlog();
        if (backlog_count > 0) {
            ring_want_notification(device, QUEUE_RECEIVE);
            drain_backlog();
        }
        return;
    }
    if (is_looking) {
        return;
    }
    is_looking = true;
    if (plan.net_polls) {
        ring_want_no_notification(device, QUEUE_SEND);
    }
    world_after(luck_below(plan.net_fetch_ns + 1), look, NULL, device->epoch);
}

static void started(struct device *device) {
    uint64_t needs_csum = NET_F_HOST_TSO4;
    has_told_mtu = (device->accepted & NET_F_MTU) != 0;
    SIM_CHECK((device->accepted & needs_csum) == 0 || (device->accepted & NET_F_CSUM) != 0);
    SIM_CHECK((device->accepted & NET_F_GUEST_TSO4) == 0 ||
              (device->accepted & NET_F_GUEST_CSUM) != 0);
    ring_want_notification(device, QUEUE_SEND);
    ring_want_notification(device, QUEUE_RECEIVE);
}

static void stopped(struct device *device) {
    (void)device; /* there is one */
    while (backlog_count > 0) {
        free(backlog[--backlog_count]);
    }
    held_count = 0;
    held_bytes = 0;
    is_looking = false;
}

/* --- What happens to it ------------------------------------------------------------------------
 */

static void set_link(bool is_up) {
    trace("interface: link is up %llu", is_up, 0, 0, 0);
    link_is_up = is_up;
    device_config16(&interface, CONFIG_STATUS, is_up ? 1 : 0);
    device_config_changed(&interface);
}

static void link_comes_back(void *arg, uint64_t word) {
    (void)arg;
    (void)word;
    set_link(true);
}

static void fate(void *arg, uint64_t word) {
    (void)arg;
    (void)word;
    if (!plan_has_faults()) {
        return;
    }
    if (link_is_up && fault_strikes(plan.net_faults.link_down)) {
        set_link(false);
        world_after(luck_spread(NS_PER_MS, 3 * NS_PER_S), link_comes_back, NULL, 0);
    }
    if (world_now_ns() >= still_until_ns && fault_strikes(plan.net_faults.still)) {
        still_until_ns = world_now_ns() + luck_spread(100 * NS_PER_MS, 3 * NS_PER_S);
        trace("wire: stands still until %llu", still_until_ns, 0, 0, 0);
    }
    world_after(luck_spread(100 * NS_PER_US, 100 * NS_PER_MS), fate, NULL, 0);
}

void net_set_up(void) {
    static const struct device_ops ops = {
        .notified = notified, .started = started, .stopped = stopped};
    interface.ops = &ops;
    interface.offered = plan.net_features;
    interface.ring_max[QUEUE_RECEIVE] = plan.receive_ring;
    interface.ring_max[QUEUE_SEND] = plan.send_ring;
    interface.config_bytes = 12;
    memcpy(interface.config, net_mac, sizeof net_mac);
    device_config16(&interface, CONFIG_STATUS, 1);
    device_config16(&interface, CONFIG_MTU, (uint16_t)plan.mtu);
    device_set_up(&interface);
    world_after(10 * NS_PER_MS, fate, NULL, 0);
}

bool net_is_broken(void) {
    return is_broken;
}
