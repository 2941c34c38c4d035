/* lwIP's options: one page, each figure with its reason. lwIP's opt.h says what each means. */
#ifndef CONFIG_LWIPOPTS_H
#define CONFIG_LWIPOPTS_H

#include <stdint.h>

#include "config/limits.h"

/* Everything that touches lwIP runs in the network task: no threads, no locks, no sockets. */
#define NO_SYS               1
#define SYS_LIGHTWEIGHT_PROT 0
#define LWIP_NETCONN         0
#define LWIP_SOCKET          0
#define LWIP_RAW             0

#define LWIP_IPV4 1
#define LWIP_IPV6 0
#define LWIP_ICMP 1
#define LWIP_UDP  1
#define LWIP_TCP  1
#define LWIP_DNS  0
#define LWIP_IGMP 0
/* A server on one network: nothing is forwarded, and no client of NBD sends fragments. Without
 * IP_FRAG, segments larger than the wire's go to the device whole. */
#define IP_FORWARD    0
#define IP_REASSEMBLY 0
#define IP_FRAG       0

/* The address conflict check delays the start by seconds. */
#define LWIP_DHCP                  1
#define LWIP_DHCP_DOES_ACD_CHECK   0
#define LWIP_ACD                   0
#define LWIP_AUTOIP                0
#define LWIP_NETIF_HOSTNAME        1
#define LWIP_NETIF_LINK_CALLBACK   1
#define LWIP_NETIF_STATUS_CALLBACK 1

/* 64-bit pointers in packet structures. */
#define MEM_ALIGNMENT 8
/* Headers of sent segments and the like come from the heap, whose small size classes are a pop and
 * a push; fixed-size objects from pools. */
#define MEM_LIBC_MALLOC 1
#define MEMP_MEM_MALLOC 0

/* Received packets are the driver's own buffers: this pool only serves lwIP's internal needs. */
#define PBUF_POOL_SIZE    4
#define PBUF_POOL_BUFSIZE 1536
/* Room in front of a frame for the virtio-net header, so that it needs no descriptor of its own. */
#define PBUF_LINK_ENCAPSULATION_HLEN 12
#define ETH_PAD_SIZE                 0

/* One pcb for each client, and for those that are saying good-bye. */
#define MEMP_NUM_TCP_PCB        (NBD_CONNECTIONS_MAX + 32)
#define MEMP_NUM_TCP_PCB_LISTEN 4
#define MEMP_NUM_UDP_PCB        4
/* Segments and the references to data that they send, shared by all connections; when a pool is
 * empty the sender waits for acknowledgements. */
#define MEMP_NUM_TCP_SEG   2048
#define MEMP_NUM_PBUF      4096
#define MEMP_NUM_ARP_QUEUE 16
/* As many neighbours as clients: with lwIP's ten, the eleventh would push out the address of
 * another at every segment. */
#define ARP_TABLE_SIZE (NBD_CONNECTIONS_MAX + 32)
/* A connection remembers where in the table its peer is; and a frame that leaves can be told whose
 * it is (net/stack.c). */
#define LWIP_NETIF_HWADDRHINT 1

/* What a frame can carry whose length lwIP keeps in 16 bits: it is the device's MTU that bounds a
 * segment. Longer ones are made by raising a connection's mss after its handshake
 * (net/tcp_stream.c). */
#define TCP_MSS        65481
#define LWIP_WND_SCALE 1
/* Windows up to 4 MiB in steps of 64 bytes. */
#define TCP_RCV_SCALE 6
/* What a connection may have on its way to us: 8 KiB, and more when the receive pool is large
 * enough to back it (net/stack.c). lwIP's own checks cannot see the variable. */
#define NET_WINDOW_MIN_BYTES 8192
extern uint32_t net_window_extra_bytes;
#define TCP_WND                        (NET_WINDOW_MIN_BYTES + net_window_extra_bytes)
#define LWIP_DISABLE_TCP_SANITY_CHECKS 1
/* A quarter of the connection's window, which depends on whether the peer scales it and on how many
 * share the buffers (net/tcp_stream.c): lwIP's default sends an update every four small segments,
 * and with a share of the largest window a small one would never be told that it is open again.
 * Used where `pcb` is in scope. */
extern uint32_t net_window_update_bytes;
#define TCP_WND_UPDATE_THRESHOLD LWIP_MIN(TCP_WND_MAX(pcb) / 4, net_window_update_bytes)
/* Data on its way to a client is referenced, not copied: this bounds how long a list of segments
 * lwIP walks, not memory. */
#define TCP_SND_BUF      (1024 * 1024)
#define TCP_SND_QUEUELEN 2048
#define TCP_SNDLOWAT     (TCP_SND_BUF / 2)
/* Small writes are gathered by the server (headers lie side by side), never by copying here. */
#define TCP_OVERSIZE               0
#define TCP_QUEUE_OOSEQ            1
#define LWIP_TCP_SACK_OUT          1
#define TCP_LISTEN_BACKLOG         1
#define TCP_DEFAULT_LISTEN_BACKLOG 64
#define LWIP_TCP_TIMESTAMPS        0
/* Who is silent for so long is asked (watch_peer in net/tcp_stream.c). */
#define TCP_KEEPIDLE_DEFAULT 30000
/* lwIP's timer counts retransmission in ticks of twice this: 100 ms instead of 500. The shortest
 * time-out is three ticks. */
#define TCP_TMR_INTERVAL  50
#define LWIP_TCP_RTO_TIME 1000
/* A peer that acknowledges nothing is given up after about 80 s. */
#define TCP_MAXRTX 8
/* Closed connections are remembered for twice this long; there is no path here on which a packet
 * could wander for a minute. */
#define TCP_MSL 5000

/* Checksums: 64 bits at a time, and none where the device does them. */
uint16_t net_checksum(const void *data, int bytes);
#define LWIP_CHKSUM                  net_checksum
#define LWIP_CHECKSUM_CTRL_PER_NETIF 1

/* What lwIP would stumble over is dropped or mended before it looks at it (net/tcp_stream.c). */
struct pbuf;
struct tcp_pcb;
struct tcp_hdr;
void tcp_stream_before_input(struct tcp_pcb *pcb, const struct tcp_hdr *header,
                             const struct pbuf *payload);
int8_t tcp_stream_check_segment(const struct tcp_pcb *pcb, const struct tcp_hdr *header,
                                uint16_t option_bytes, uint16_t first_bytes, const uint8_t *rest,
                                const struct pbuf *payload);
#define LWIP_HOOK_TCP_INPACKET_PCB(pcb, header, option_bytes, first_bytes, rest, packet)           \
    (tcp_stream_before_input(pcb, header, packet),                                                 \
     tcp_stream_check_segment(pcb, header, option_bytes, first_bytes, rest, packet))

#define LWIP_STATS               1
#define LWIP_STATS_DISPLAY       0
#define LINK_STATS               0
#define MEM_STATS                0
#define LWIP_SUPPORT_CUSTOM_PBUF 1
/* A packet that waits for an answer to ARP is copied: what it refers to may be given back when it
 * is acknowledged, or when its connection is gone, and nobody would know of that one reference. */
#define PBUF_NEEDS_COPY(p) 1

#endif
