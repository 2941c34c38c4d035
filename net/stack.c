/* The network task and lwIP's bring-up. See stack.h.
 *
 * One round: take in what has arrived (bounded), let timers fire, let the worker answer, send what
 * was gathered, give buffers back, tell the device once. When a round had nothing to do,
 * acknowledge what nobody will answer soon, and wait. */
#include "net/stack.h"

#include <errno.h>
#include <lwip/dhcp.h>
#include <lwip/etharp.h>
#include <lwip/init.h>
#include <lwip/ip4.h>
#include <lwip/prot/tcp.h>
#include <lwip/stats.h>
#include <lwip/timeouts.h>
#include <netif/ethernet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "config/limits.h"
#include "core/config.h"
#include "core/lib/unaligned.h"
#include "core/log.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "core/task/timer.h"
#include "net/counters.h"
#include "net/tcp_stream.h"
#include "net/virtio_net.h"

enum {
    HEADERS_BYTES = 40, /* IPv4 and TCP without options */
    ETHERNET_BYTES = 14,
    PROBE_BYTES = 1, /* of payload, when a peer is asked whether its window is still closed */
    ACKNOWLEDGEMENT_BYTES_MAX = 14 + 20 + 60, /* with as many TCP options as there can be */
    /* What a connection is promised at first, as a share of all receive buffers; what it gets later
     * depends on how many there are (tcp_stream.c). */
    WINDOW_SHARE = 16,
    WINDOW_MAX = 4 * 1024 * 1024 - 64, /* what the window scale can say */
    RETRIES = 3,
    UNCUT = UINT16_MAX, /* the frame is no longer than any wire's */
};

uint32_t net_window_extra_bytes;

static struct netif interface;
static struct virtio_net *device;
static struct event round_event;
static struct timer round_timer;
static uint64_t round_deadline_ms;
static bool (*worker)(void *arg);
static void *worker_arg;
static uint8_t our_mac[6];
static struct pbuf *kept[NET_KEPT_FRAMES]; /* for when the send ring has room, the oldest first */
static unsigned kept_count;
static unsigned first_retry; /* of those in retry() */

/* lwIP's clock, in milliseconds. The scheduler's is exact enough and costs nothing. */
u32_t sys_now(void);
u32_t sys_now(void) {
    return (u32_t)(scheduler_now_ns() / NS_PER_MS);
}

struct event *net_round(void) {
    return &round_event;
}

void net_wake(void) {
    event_signal(&round_event);
}

void net_expect_headers(size_t bytes) {
    virtio_net_begin_page(device, ETHERNET_BYTES + HEADERS_BYTES + bytes);
}

bool net_is_under_pressure(void) {
    return virtio_net_is_short_of_buffers(device);
}

void net_set_worker(bool (*work)(void *arg), void *arg) {
    worker = work;
    worker_arg = arg;
}

bool net_is_up(void) {
    return !ip4_addr_isany_val(*netif_ip4_addr(&interface));
}

/* TCP keeps what it sends until it is acknowledged. ARP's packets and resets are sent once, and a
 * peer that misses one stands still for seconds; and of a bare acknowledgement lwIP's timer thinks
 * that it has gone, whatever became of it. Probes of a closed window it counts whether they have
 * gone or not, and tries a refused one again at each tick: a peer would be given up within a second
 * that has never been asked. A probe's byte is a copy, so it is the one payload in a frame's first
 * buffer. */
enum sent_once { SENT_AGAIN, SENT_ONCE, SENT_ONCE_AS_ACK };

static enum sent_once how_often(const struct pbuf *frame) {
    const uint8_t *ethernet = frame->payload;
    const uint8_t *ip = ethernet + ETHERNET_BYTES;
    if (frame->len < ETHERNET_BYTES + HEADERS_BYTES || ethernet[12] != 0x08 ||
        ethernet[13] != 0x00) {
        bool is_arp = frame->len > ETHERNET_BYTES && ethernet[12] == 0x08 && ethernet[13] == 0x06;
        return is_arp ? SENT_ONCE : SENT_AGAIN;
    }
    uint8_t flags = ip[9] == IP_PROTO_TCP ? ip[IP_HLEN + 13] : 0;
    bool is_ack = flags == TCP_ACK && frame->tot_len == ETHERNET_BYTES + HEADERS_BYTES;
    bool is_probe = flags != 0 && frame->next == NULL &&
                    frame->tot_len == ETHERNET_BYTES + HEADERS_BYTES + PROBE_BYTES;
    return (flags & TCP_RST) != 0 || is_probe ? SENT_ONCE : is_ack ? SENT_ONCE_AS_ACK : SENT_AGAIN;
}

/* Of two acknowledgements of a connection only the newer has something to say. */
static bool replace_kept(struct pbuf *frame) {
    enum { ADDRESSES_AT = ETHERNET_BYTES + 12, ADDRESSES_BYTES = 12 }; /* and ports */
    for (unsigned i = 0; i < kept_count; i++) {
        if (how_often(kept[i]) == SENT_ONCE_AS_ACK &&
            memcmp((const uint8_t *)kept[i]->payload + ADDRESSES_AT,
                   (const uint8_t *)frame->payload + ADDRESSES_AT, ADDRESSES_BYTES) == 0) {
            pbuf_free(kept[i]);
            pbuf_ref(frame);
            kept[i] = frame;
            return true;
        }
    }
    return false;
}

/* For a frame that the full ring has refused; false when there are too many of them, too. */
static bool keep_frame(struct pbuf *frame) {
    enum sent_once often = how_often(frame);
    if (often == SENT_ONCE_AS_ACK && replace_kept(frame)) {
        return true;
    }
    if (kept_count == NET_KEPT_FRAMES || often == SENT_AGAIN) {
        return false;
    }
    pbuf_ref(frame);
    kept[kept_count++] = frame;
    return true;
}

static void send_kept(void) {
    unsigned sent = 0;
    while (sent < kept_count && virtio_net_send(device, kept[sent], UNCUT) != -EAGAIN) {
        pbuf_free(kept[sent++]); /* gone, or the device is */
    }
    kept_count -= sent;
    memmove(kept, kept + sent, kept_count * sizeof(struct pbuf *));
}

/* Where the ring is full again and again, who comes first takes all the room, so they take turns:
 * whoever finds none left is first the next time, until something of it has gone. Each stops at the
 * first refusal. */
static void retry(void) {
    static void (*const retries[RETRIES])(void) = {send_kept, tcp_streams_retry_closed,
                                                   tcp_streams_retry};
    uint64_t sent_before = virtio_net_sent(device);
    for (unsigned i = 0; i < RETRIES; i++) {
        unsigned at = (first_retry + i) % RETRIES;
        retries[at]();
        if (virtio_net_wants_room(device)) {
            bool had_turn = i == 0 && virtio_net_sent(device) != sent_before;
            first_retry = had_turn ? (at + 1) % RETRIES : at;
            return;
        }
    }
}

/* Only in TCP's are the hints TCP's. */
static bool is_tcp(const struct pbuf *frame) {
    const uint8_t *ip = (const uint8_t *)frame->payload + ETHERNET_BYTES;
    return frame->len >= ETHERNET_BYTES + HEADERS_BYTES && ip[9] == IP_PROTO_TCP;
}

/* Only TCP's are cut. */
static uint16_t cut_bytes(const struct netif *netif, const struct pbuf *frame) {
    return is_tcp(frame) ? tcp_stream_cut_bytes(netif->hints) : UNCUT;
}

static err_t link_output(struct netif *netif, struct pbuf *frame) {
    /* Behind a frame that was refused all wait for their turn, also those that would find room: it
     * may need more of the ring than they leave in it. */
    int error = -EAGAIN;
    if (virtio_net_wants_room(device)) {
        net_counters.send_ring_full++;
    } else {
        error = virtio_net_send(device, frame, cut_bytes(netif, frame));
    }
    if (error == 0 && is_tcp(frame)) {
        bool device_sums = (netif->chksum_flags & NETIF_CHECKSUM_GEN_TCP) == 0;
        tcp_stream_has_sent(netif->hints, frame, device_sums);
    }
    bool has_gone = error == 0 || (error == -EAGAIN && keep_frame(frame));
    return has_gone ? ERR_OK : error == -EAGAIN ? ERR_MEM : ERR_IF;
}

static err_t interface_init(struct netif *netif) {
    struct virtio_net_info info;
    virtio_net_get_info(device, &info);
    netif->name[0] = 'v';
    netif->name[1] = 'n';
    netif->mtu = info.mtu;
    netif->hwaddr_len = sizeof info.mac;
    memcpy(netif->hwaddr, info.mac, sizeof info.mac);
    memcpy(our_mac, info.mac, sizeof our_mac);
    netif->flags = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET;
    netif->output = etharp_output;
    netif->linkoutput = link_output;
    netif->hostname = "platter";
    u16_t flags = NETIF_CHECKSUM_ENABLE_ALL;
    if (info.sends_checksums) {
        flags &= (u16_t) ~(NETIF_CHECKSUM_GEN_TCP | NETIF_CHECKSUM_GEN_UDP);
    }
    NETIF_SET_CHECKSUM_CTRL(netif, flags);
    return ERR_OK;
}

static void set_checksum_checks(bool wanted) {
    const u16_t checks = NETIF_CHECKSUM_CHECK_TCP | NETIF_CHECKSUM_CHECK_UDP;
    u16_t flags = interface.chksum_flags;
    NETIF_SET_CHECKSUM_CTRL(&interface, wanted ? flags | checks : flags & (u16_t)~checks);
}

/* More than headers: an acknowledgement, a SYN or an ARP packet is shorter. */
static bool carries_payload(const struct pbuf *frame) {
    return frame->tot_len > ACKNOWLEDGEMENT_BYTES_MAX;
}

static bool is_our_address(const uint8_t *mac) {
    return ((unaligned_load32(mac) ^ unaligned_load32(our_mac)) |
            (uint32_t)(unaligned_load16(mac + 4) ^ unaligned_load16(our_mac + 4))) == 0;
}

/* IPv4 for our address goes straight to IP; everything else (ARP, broadcast) through lwIP's
 * Ethernet layer. Besides saving a few instructions this takes the Ethernet header off before
 * anyone sums up a frame of 65535 + 14 bytes in 16 bits. */
static void take_in(struct pbuf *frame, bool checksum_ok) {
    const uint8_t *bytes = frame->payload;
    if (virtio_net_is_out_of_buffers(device) && carries_payload(frame)) {
        net_counters.receive_shed++;
        pbuf_free(frame);
        return;
    }
    bool is_ours = frame->len > ETHERNET_BYTES + IP_HLEN && bytes[12] == 0x08 &&
                   bytes[13] == 0x00 && is_our_address(bytes);
    if (!is_ours) {
        set_checksum_checks(!checksum_ok);
        if (frame->len > ETHERNET_BYTES && bytes[12] == 0x08 && bytes[13] == 0x06) {
            tcp_streams_forget_ways(); /* ARP: a neighbour may be another */
        }
        if (frame->next != NULL || ethernet_input(frame, &interface) != ERR_OK) {
            net_counters.receive_dropped++;
            pbuf_free(frame);
        }
        return;
    }
    frame->payload = (uint8_t *)frame->payload + ETHERNET_BYTES;
    frame->len = (u16_t)(frame->len - ETHERNET_BYTES);
    frame->tot_len = (u16_t)(frame->tot_len - ETHERNET_BYTES);
    if (tcp_input_continue(frame, &interface, checksum_ok)) {
        return;
    }
    frame->if_idx = netif_get_index(&interface);
    set_checksum_checks(!checksum_ok);
    tcp_streams_before_packet(frame->payload, frame->len);
    (void)ip4_input(frame, &interface); /* takes the frame in any case */
    tcp_streams_after_packet();
}

static unsigned take_in_batch(void) {
    unsigned taken = 0;
    bool checksum_ok = false;
    struct pbuf *frame;
    while (taken < NET_RX_BUDGET && (frame = virtio_net_receive(device, &checksum_ok)) != NULL) {
        take_in(frame, checksum_ok);
        taken++;
    }
    return taken;
}

static void follow_link(void) {
    bool is_up = virtio_net_link_is_up(device);
    if (is_up && !netif_is_link_up(&interface)) {
        netif_set_link_up(&interface);
    } else if (!is_up && netif_is_link_up(&interface)) {
        netif_set_link_down(&interface);
    }
}

static void link_changed(struct netif *netif) {
    tcp_streams_forget_ways();
    log_info("net: link is %s", netif_is_link_up(netif) ? "up" : "down");
}

static void status_changed(struct netif *netif) {
    tcp_streams_forget_ways();
    if (net_is_up()) {
        char address[IP4ADDR_STRLEN_MAX];
        char mask[IP4ADDR_STRLEN_MAX];
        char gateway[IP4ADDR_STRLEN_MAX];
        log_info("net: address %s, mask %s, gateway %s",
                 ip4addr_ntoa_r(netif_ip4_addr(netif), address, sizeof address),
                 ip4addr_ntoa_r(netif_ip4_netmask(netif), mask, sizeof mask),
                 ip4addr_ntoa_r(netif_ip4_gw(netif), gateway, sizeof gateway));
        net_wake();
    }
}

static uint64_t next_deadline_ms(void) {
    uint64_t now_ms = scheduler_now_ns() / NS_PER_MS;
    uint64_t wait_ms = sys_timeouts_sleeptime();
    bool has_frames_out = virtio_net_sent(device) != virtio_net_reclaimed(device);
    if (has_frames_out && wait_ms > NET_RECLAIM_MS) {
        wait_ms = NET_RECLAIM_MS;
    }
    return now_ms + wait_ms;
}

static void time_is_up(void *unused) {
    (void)unused;
    net_wake();
}

/* For the event, or until lwIP has something to do. That is the same in most rounds, so the timer
 * stays set. */
static void wait_for_round(void) {
    uint64_t deadline_ms = next_deadline_ms();
    if (deadline_ms != round_deadline_ms || !round_timer.is_set) {
        timer_set(&round_timer, deadline_ms * NS_PER_MS, time_is_up, NULL);
        round_deadline_ms = deadline_ms;
    }
    (void)task_wait(&round_event, DEADLINE_NEVER); /* the timer signals it, too */
}

static void net_task(void *unused) {
    (void)unused;
    for (;;) {
        unsigned taken = take_in_batch();
        if (virtio_net_take_link_change(device)) {
            follow_link();
        }
        sys_check_timeouts();
        /* Whatever was signalled until now, this round sees: also that there is room, for which
         * those that were refused come before anybody else (link_output). */
        event_clear(&round_event);
        if (virtio_net_take_room(device)) {
            retry();
        }
        bool has_more = worker != NULL && worker(worker_arg);
        tcp_streams_run();
        if (virtio_net_is_short_of_buffers(device)) {
            tcp_streams_free_out_of_order();
        }
        virtio_net_flush(device);
        if (taken == NET_RX_BUDGET || has_more) {
            task_yield();
            continue;
        }
        if (tcp_streams_acknowledge()) {
            virtio_net_flush(device);
        }
        virtio_net_let_acks_wait(device, tcp_streams_await_no_acks());
        wait_for_round();
    }
}

/* "10.0.2.15/24" */
static bool parse_network(const char *text, ip4_addr_t *address, ip4_addr_t *mask) {
    char host[IP4ADDR_STRLEN_MAX];
    const char *slash = strchr(text, '/');
    if (slash == NULL || (size_t)(slash - text) >= sizeof host) {
        return false;
    }
    memcpy(host, text, (size_t)(slash - text));
    host[slash - text] = '\0';
    char *end = NULL;
    unsigned long bits = strtoul(slash + 1, &end, 10);
    if (end == slash + 1 || *end != '\0' || bits < 1 || bits > 32) {
        return false;
    }
    ip4_addr_set_u32(mask, lwip_htonl((u32_t)(UINT32_MAX << (32 - bits))));
    return ip4addr_aton(host, address) != 0 && !ip4_addr_isany(address);
}

static int read_addresses(ip4_addr_t *address, ip4_addr_t *mask, ip4_addr_t *gateway) {
    const char *ip = config_text("ip");
    const char *gw = config_text("gw");
    ip4_addr_set_zero(address);
    ip4_addr_set_zero(mask);
    ip4_addr_set_zero(gateway);
    if (ip != NULL && !parse_network(ip, address, mask)) {
        return log_error(-EINVAL, "config: ip=%s refused: ADDRESS/BITS is wanted", ip);
    }
    if (gw != NULL && ip4addr_aton(gw, gateway) == 0) {
        return log_error(-EINVAL, "config: gw=%s refused: an address is wanted", gw);
    }
    return 0;
}

/* How much of the receive memory one connection may fill, and how large its segments may be. */
static void size_connections(void) {
    struct virtio_net_info info;
    virtio_net_get_info(device, &info);
    size_t window = info.receive_bytes / WINDOW_SHARE;
    window = window > WINDOW_MAX ? WINDOW_MAX : window;
    net_window_extra_bytes =
        window > NET_WINDOW_MIN_BYTES ? (uint32_t)(window - NET_WINDOW_MIN_BYTES) : 0;
    uint16_t wire_segment = (uint16_t)(info.mtu - HEADERS_BYTES);
    /* With segmentation offload the device cuts. Without, some networks (QEMU's user network) take
     * packets far above their MTU from us: only the user can know. */
    uint16_t fallback = info.sends_large ? NET_SEGMENT_BYTES_MAX : wire_segment;
    uint64_t segment = config_number("segment", 536, NET_SEGMENT_BYTES_MAX, fallback);
    uint64_t keep_alive_s = config_number("keepalive", 1, 7200, TCP_KEEPIDLE_DEFAULT / 1000);
    uint64_t user_timeout_s =
        config_number("user-timeout", 0, NET_USER_TIMEOUT_S_MAX, NET_USER_TIMEOUT_S);
    struct tcp_stream_sizes sizes = {.wire_segment_bytes = wire_segment,
                                     .large_segment_bytes = (uint16_t)segment,
                                     .device_cuts = info.sends_large,
                                     .receive_bytes = info.receive_bytes,
                                     .keep_alive_ms = (uint32_t)keep_alive_s * 1000,
                                     .user_timeout_ms = (uint32_t)user_timeout_s * 1000};
    tcp_stream_set_sizes(&sizes);
    log_debug("net: window %u, segments of %u on a wire of %u", (unsigned)TCP_WND,
              (unsigned)segment, wire_segment);
}

int net_start(void) {
    ip4_addr_t address;
    ip4_addr_t mask;
    ip4_addr_t gateway;
    device = virtio_net_first();
    if (device == NULL) {
        return log_error(-ENODEV, "net: no network interface found");
    }
    int error = read_addresses(&address, &mask, &gateway);
    if (error) {
        return error;
    }
    size_connections();
    lwip_init();
    if (netif_add(&interface, &address, &mask, &gateway, NULL, interface_init, ethernet_input) ==
        NULL) {
        return log_error(-ENOMEM, "net: lwIP refuses the interface");
    }
    netif_set_link_callback(&interface, link_changed);
    netif_set_status_callback(&interface, status_changed);
    netif_set_default(&interface);
    netif_set_up(&interface);
    virtio_net_set_event(device, &round_event);
    follow_link();
    if (!net_is_up() && dhcp_start(&interface) != ERR_OK) {
        return log_error(-ENOMEM, "net: no memory for DHCP");
    }
    if (task_create("net", net_task, NULL, 0) == NULL) {
        return -ENOMEM;
    }
    return 0;
}

void net_dump(void) {
    log_text("net: connections %u (accepted %llu, refused %llu), bytes copied %llu, header bytes "
             "%llu, acks at idle %llu",
             tcp_streams_count(), (unsigned long long)net_counters.connections_accepted,
             (unsigned long long)net_counters.connections_refused,
             (unsigned long long)net_counters.bytes_copied,
             (unsigned long long)net_counters.header_bytes_copied,
             (unsigned long long)net_counters.acks_at_idle);
    log_text("  tcp: sent %u, received %u, dropped %u, checksum errors %u, memory errors %u, "
             "retransmissions %u",
             (unsigned)lwip_stats.tcp.xmit, (unsigned)lwip_stats.tcp.recv,
             (unsigned)lwip_stats.tcp.drop, (unsigned)lwip_stats.tcp.chkerr,
             (unsigned)lwip_stats.tcp.memerr, (unsigned)lwip_stats.tcp.rterr);
    if (device != NULL) {
        virtio_net_dump(device);
    }
}

#ifdef PLATTER_HOST
void net_forget(void) {
    while (kept_count > 0) {
        pbuf_free(kept[--kept_count]);
    }
    dhcp_stop(&interface);
    dhcp_cleanup(&interface);
    netif_remove(&interface);
    first_retry = 0;
    timer_cancel(&round_timer);
    round_event = (struct event){0};
    worker = NULL;
    device = NULL;
}
#endif
