/* The network as the appliance has it (driver, lwIP, streams, its task) over a fake card, and at
 * the other end of the wire clients whose every segment a test makes itself. */
#ifndef TESTS_UNIT_NET_WORLD_H
#define TESTS_UNIT_NET_WORLD_H

#include "net/stream.h"
#include "tests/unit/fake_card.h"

enum {
    WORLD_PORT = 10809,
    WORLD_STREAMS = 96,
    WORLD_HEARD_MAX = 1024,
    WORLD_TEXT_BYTES = 128 * 1024,
    FRAME_MAX = 14 + 60 + 60 + 1460,
    IP_AT = 14, /* where a frame's headers begin */
    TCP_AT = 34,
    FIN = 1,
    SYN = 2,
    RST = 4,
    PSH = 8,
    ACK = 16,
    URG = 32,
};

#define WORLD_GUEST  UINT32_C(0x0a00020f) /* 10.0.2.15 */
#define WORLD_CLIENT UINT32_C(0x0a000264) /* 10.0.2.100 */

/* A segment that came from the guest. */
struct heard {
    uint16_t port; /* of the client */
    uint8_t flags;
    uint16_t window;
    uint32_t seq;
    uint32_t ack;
    size_t bytes;
    uint16_t cut;       /* how much of them the device puts into each segment; 0: it does not cut */
    uint8_t data[1460]; /* how they begin, if it does */
};

struct client {
    uint16_t port;
    uint16_t window; /* as its segments say it */
    uint32_t at;     /* the sequence number of its next byte */
    uint32_t due;    /* that of the guest's next, which its segments acknowledge */
    struct stream *stream;
};

/* What a client sends; zero means nothing out of the ordinary. */
struct spoken {
    uint8_t flags; /* 0: ACK */
    uint32_t seq_skew;
    uint32_t ack_skew;
    const void *options;    /* of TCP */
    size_t option_bytes;    /* a multiple of four */
    size_t ip_option_bytes; /* NOPs */
    const void *data;
    size_t bytes;
};

struct net_world {
    bool refuses;                          /* the listener accepts nobody */
    bool is_silent;                        /* nobody answers to ARP */
    bool is_deaf;                          /* the card reads nothing before it has to */
    size_t greeting;                       /* bytes of world_text that the listener sends at once */
    uint16_t window;                       /* of clients that connect; 0: as large as can be */
    struct stream *streams[WORLD_STREAMS]; /* accepted and not closed, in their order */
    unsigned stream_count;
    struct heard heard[WORLD_HEARD_MAX];
    unsigned heard_count;
    unsigned arp_answers;  /* of the guest */
    unsigned mss_told;     /* in the guest's last SYN */
    bool hears_beginnings; /* of segments longer than is kept of one */
};

extern struct net_world world;

/* A card of these features, which has as much memory as the appliance of `heap_bytes` (0: plenty)
 * gives it; net_start with `config`, and a listener on WORLD_PORT if `listens`. Then `body` in a
 * task of its own. In the end all streams are closed, and nothing may be kept of them. */
struct world_options {
    uint64_t features;
    size_t heap_bytes;
    unsigned ring; /* entries of both rings; 0: plenty */
    uint16_t mtu;  /* that the card tells; 0: 1500 */
    const char *config;
    bool hears_beginnings; /* segments may be longer than `heard` keeps */
    bool is_mute;          /* nobody listens: the test does, or the server under test */
};
void world_run(const struct world_options *options, void (*body)(void));

/* For tests that need no more than net_start, and what it says; net_forget in the end. */
int world_start_network(void);

/* Lets the network do all that it can do at once; what it sends is in world.heard then. With a card
 * that is deaf, what is in the ring stays there. */
void world_settle(void);
/* The card reads so many of the frames that are in the ring, if there are; how many there were. It
 * does not wake the network. */
unsigned world_listen(unsigned most);
/* The same, and time passes. */
void world_pass_ms(uint64_t ms);
void world_forget_heard(void);
/* The last segment heard; there must be one. */
const struct heard *world_last_heard(void);

/* Connects; the handshake is done when it returns. `options` of the SYN. */
void client_connect(struct client *client, uint16_t port, const void *options, size_t bytes);
/* The frame of what a client says, with right checksums; its length. */
size_t client_frame(const struct client *client, const struct spoken *spoken, uint8_t *frame);
/* Says it, and settles. The client's numbers stay as they are. */
void client_say(const struct client *client, const struct spoken *spoken);
/* The next bytes of its stream. */
void client_send(struct client *client, const void *data, size_t bytes);
/* Acknowledges so many bytes more. */
void client_acknowledge(struct client *client, size_t bytes);
/* What was heard since it was forgotten last is the client's, follows what it has acknowledged, and
 * is world_text from `at` on: so much, which it acknowledges. */
size_t client_take_in(struct client *client, size_t at);
/* Delivers a frame, and settles. */
void world_deliver(const uint8_t *frame, size_t bytes);
/* Makes the checksums of an IPv4 frame right again. */
void world_mend(uint8_t *frame);

/* Which way the appliance took the segment in a frame: the one of net/tcp_input.c or lwIP's. */
enum way { NO_WAY, SHORT_WAY, LONG_WAY };
enum way way_of(const uint8_t *frame, size_t bytes);
enum way way_of_spoken(const struct client *client, const struct spoken *spoken);

/* The owner's side of a client's stream. What it sends is of world_text, from a place in it. */
extern uint8_t world_text[WORLD_TEXT_BYTES];
struct tcp_pcb *pcb_of(const struct client *client);
size_t client_received(const struct client *client);
/* Exactly so many bytes are there, and they are those of world_text at this place. */
void client_expect(const struct client *client, size_t at, size_t bytes);
/* The last segment heard is the next that the client is due: so many bytes, world_text's first. */
void client_expect_heard(const struct client *client, size_t bytes);
/* Reads all that is there. */
void client_drop(const struct client *client);
void client_reply(const struct client *client, size_t at, size_t bytes);
/* Replies with so many bytes from its beginning; which way all of them left, past lwIP or not. */
enum way way_of_reply(const struct client *client, size_t bytes);
void client_close(struct client *client, bool abort);

#endif
