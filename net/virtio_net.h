/* The virtio-net driver (VIRTIO 1.3, 5.1): packet buffers in, packet chains out, no copies. */
#ifndef NET_VIRTIO_NET_H
#define NET_VIRTIO_NET_H

#include "core/task/event.h"
#include "core/virtio/transport.h"

struct pbuf;
struct virtio_net;

extern const struct virtio_driver virtio_net_driver;

/* The first interface found; NULL when there is none. */
struct virtio_net *virtio_net_first(void);

struct virtio_net_info {
    const char *name;
    uint8_t mac[6];
    uint16_t mtu;
    bool sends_checksums; /* the device completes TCP and UDP checksums */
    bool checks_checksums;
    bool sends_large; /* TCP segments up to 64 KiB, cut by the device */
    bool receives_large;
    size_t receive_bytes; /* payload that all receive buffers hold together, at a cautious guess */
};
void virtio_net_get_info(const struct virtio_net *net, struct virtio_net_info *info);

/* False when the device says that the cable is out. */
bool virtio_net_link_is_up(struct virtio_net *net);

/* `event` is signalled when packets arrive, room to send appears, or the link changes. */
void virtio_net_set_event(struct virtio_net *net, struct event *event);

/* Takes the next received frame: a chain of the driver's own buffers, which return when it is
 * freed.
 * `*checksum_ok` says that the device vouches for the TCP or UDP checksum. NULL when there is none.
 */
struct pbuf *virtio_net_receive(struct virtio_net *net, bool *checksum_ok);

/* Whether acknowledgements without anything else may stay in the ring, a few of them, without the
 * event, until something else comes or virtio_net_receive is called for another reason. */
void virtio_net_let_acks_wait(struct virtio_net *net, bool may_wait);

/* Where buffers have two pages or more: in those that the device gets from now on a page begins so
 * many bytes behind a frame's beginning, NET_RX_PAGE_BEHIND_MAX or 4 less. */
void virtio_net_begin_page(struct virtio_net *net, size_t behind_bytes);

/* As pbuf_free of a packet that is no chain; cheaper for what came from the ring. */
void virtio_net_free(struct pbuf *packet);

/* For pbuf_custom.custom_free_function: the memory is its owner's, and freeing is nothing. */
void virtio_net_note_freed(struct pbuf *note);
/* As pbuf_free, of a frame that was sent; cheaper for one with such notes in it. */
void virtio_net_free_sent(struct pbuf *frame);

/* Bytes that the buffer of a received packet still has behind what it holds. */
size_t virtio_net_tail_room(const struct pbuf *packet);

/* Sends a frame by reference: the chain is referenced until the device has read it. When it is
 * longer than the wire allows it is a TCP segment that the device cuts into pieces of
 * `segment_bytes`. -EAGAIN when the ring is full: nothing happened. */
int virtio_net_send(struct virtio_net *net, struct pbuf *frame, uint16_t segment_bytes);

/* The same for a TCP segment over IPv4 without options, with room for the virtio header in front of
 * its first byte; with checksum offload its checksum is that of the pseudo header. `cut_bytes` is 0
 * when it is not to be cut. False, and nothing happened, when there is no room: virtio_net_send
 * says more. */
bool virtio_net_send_tcp(struct virtio_net *net, struct pbuf *frame, uint16_t cut_bytes);

/* After a batch: releases what was sent, gives free buffers back to the device, and notifies it
 * once for each direction. */
void virtio_net_flush(struct virtio_net *net);

/* True since a frame was refused for lack of room, until virtio_net_take_room. */
bool virtio_net_wants_room(const struct virtio_net *net);
/* True once after a frame was refused for lack of room and there may be some again. */
bool virtio_net_take_room(struct virtio_net *net);

/* True once after the link may have changed. */
bool virtio_net_take_link_change(struct virtio_net *net);

/* Frames given to the device, and those of them that it has read: free-running. */
uint64_t virtio_net_sent(const struct virtio_net *net);
uint64_t virtio_net_reclaimed(const struct virtio_net *net);
/* Looks which frames the device has read since it was last looked. */
void virtio_net_reclaim(struct virtio_net *net);

/* True when fewer receive buffers are left than the limits ask for. */
bool virtio_net_is_short_of_buffers(const struct virtio_net *net);
/* True when only the reserve is left. */
bool virtio_net_is_out_of_buffers(const struct virtio_net *net);

void virtio_net_dump(const struct virtio_net *net);

#ifdef PLATTER_HOST
/* Fuzzers start anew. The device is no more: what it has not read of what was sent comes back. */
void virtio_net_abandon(struct virtio_net *net);
/* There is no interface, and no packet of it anywhere. */
void virtio_net_forget(void);
#endif

#endif
