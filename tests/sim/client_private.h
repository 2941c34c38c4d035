/* One NBD client, between client.c (its life) and client_talk.c (what is said). */
#ifndef TESTS_SIM_CLIENT_PRIVATE_H
#define TESTS_SIM_CLIENT_PRIVATE_H

#include "tests/sim/model.h"
#include "tests/sim/peer.h"
#include "tests/sim/sim.h"

enum { CLIENTS_MAX = 80, DEPTH_MAX = 128 };

/* NBD protocol, "Values". */
enum {
    NBD_READ = 0,
    NBD_WRITE = 1,
    NBD_DISC = 2,
    NBD_FLUSH = 3,
    NBD_TRIM = 4,
    NBD_CACHE = 5,
    NBD_ZEROES = 6,
    NBD_STATUS = 7,
};

enum client_state {
    CLIENT_WAITING,
    CLIENT_CONNECTING,
    CLIENT_GREETING,
    CLIENT_OPTIONS,
    CLIENT_WORKING,
    CLIENT_LEAVING,
    CLIENT_DONE,
};

enum client_mode { MODE_SIMPLE, MODE_STRUCTURED, MODE_EXTENDED };

struct pending {
    bool is_used;
    bool must_fail;
    unsigned command;
    unsigned flags;
    uint64_t cookie;
    uint64_t sector;
    uint32_t sectors;
    uint64_t begun_ns;
    uint32_t request; /* the model's number; 0 when it changes nothing */
    uint32_t error;   /* met in a chunk */
    uint32_t covered; /* sectors of a read that were told so far */
    bool was_told;    /* a status was */
};

struct client {
    unsigned number;
    enum client_state state;
    struct peer *peer; /* NULL when there is no connection */
    struct peer_options options;
    uint64_t since_ns; /* of the last sign of life, or change of state */
    uint64_t asked_ns; /* when it sent its last option */
    uint64_t stalled_until_ns;
    uint64_t number_of_wait;
    uint64_t number_of_stall;
    bool is_stepping;
    bool has_sinned; /* did what ends a connection */
    bool is_cut;     /* has sent as much as it will */
    uint64_t sent;
    uint64_t received;
    uint64_t cut_sent; /* leaves badly when so much was sent, or received */
    uint64_t cut_received;
    uint8_t *in;
    size_t in_first;
    size_t in_bytes;
    size_t in_room;
    /* Agreed on. */
    enum client_mode mode;
    enum client_mode wanted_mode;
    bool wants_context;
    bool has_context;
    bool wants_list;
    bool has_no_zeroes;
    bool uses_export_name;
    uint32_t option; /* the one whose answer is awaited */
    bool knows_export;
    unsigned export_flags;
    /* Asked. */
    uint64_t first; /* its part of the disk */
    uint64_t sectors;
    unsigned requests_left;
    unsigned tries_left;
    unsigned depth_max;
    unsigned depth;
    uint64_t cookies;
    struct pending pending[DEPTH_MAX];
    unsigned pending_count;
};

/* client.c */
void client_send(struct client *client, const void *data, size_t bytes);
/* The next `bytes` received bytes; NULL when there are not as many. */
const uint8_t *client_have(const struct client *client, size_t bytes);
void client_take(struct client *client, size_t bytes);
void client_leave(struct client *client);
void client_look_again(struct client *client);
bool client_may_lose(const struct client *client);
bool clients_expected_to_lose(void);

/* client_talk.c: each step is false when it has to wait for more. */
bool client_agree(struct client *client);
bool client_read_reply(struct client *client);
/* It has asked for an export: with the answer the handshake is over. */
bool client_has_chosen(const struct client *client);
void client_ask(struct client *client);
void client_send_request(struct client *client, unsigned command, unsigned flags, uint64_t cookie,
                         uint64_t offset, uint64_t length);
void client_send_garbage(struct client *client);

#endif
