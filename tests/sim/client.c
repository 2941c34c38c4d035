/* See client.h.
 *
 *   waiting ──▶ greeting ──▶ options ──GO, EXPORT_NAME──▶ working ──▶ leaving ──▶ waiting or done
 *      ▲                        every one of these may end at any byte  │
 *      └─────────────────────────────────────────────────────────────────
 */
#include "tests/sim/client.h"

#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "tests/sim/client_private.h"
#include "tests/sim/disk.h"
#include "tests/sim/net.h"

#define SINNERS_WAIT_NS (30 * NS_PER_S)

enum { LONGEST_ANSWERS = 20 };

struct client_totals client_totals;

static struct client clients[CLIENTS_MAX];
static bool is_finishing;
static bool is_shutdown_expected;

bool client_may_lose(const struct client *client) {
    const struct plan *p = &plan;
    return !p->is_sound || is_shutdown_expected || client->has_sinned;
}

bool clients_expected_to_lose(void) {
    return is_shutdown_expected;
}

/* --- Bytes -------------------------------------------------------------------------------------
 */

void client_send(struct client *client, const void *data, size_t bytes) {
    if (client->cut_sent != UINT64_MAX && client->sent + bytes >= client->cut_sent) {
        bytes = client->cut_sent - client->sent;
        client->is_cut = true;
    }
    client->sent += bytes;
    if (bytes > 0 && client->peer != NULL) {
        peer_send(client->peer, data, bytes);
    }
}

static void append(struct client *client, const uint8_t *data, size_t bytes) {
    if (client->in_first > 65536 && client->in_first > client->in_bytes) {
        memmove(client->in, client->in + client->in_first, client->in_bytes);
        client->in_first = 0;
    }
    size_t end = client->in_first + client->in_bytes;
    if (end + bytes > client->in_room) {
        client->in_room = 2 * (end + bytes);
        client->in = realloc(client->in, client->in_room);
        SIM_CHECK(client->in != NULL);
    }
    memcpy(client->in + end, data, bytes);
    client->in_bytes += bytes;
}

const uint8_t *client_have(const struct client *client, size_t bytes) {
    return client->in_bytes >= bytes ? client->in + client->in_first : NULL;
}

void client_take(struct client *client, size_t bytes) {
    client->in_first += bytes;
    client->in_bytes -= bytes;
}

/* --- Beginning and end -------------------------------------------------------------------------
 */

static void changed(void *arg);
static void connect_again(void *arg, uint64_t number);

static void abandon_requests(struct client *client) {
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        client->pending[i].is_used = false;
    }
    client->pending_count = 0;
}

/* The connection is over. What it had asked for may still be done. */
static void over(struct client *client) {
    client->peer = NULL;
    client->in_first = 0;
    client->in_bytes = 0;
    abandon_requests(client);
    bool is_wanted = !is_shutdown_expected || luck_has(300);
    bool goes_on =
        client->requests_left > 0 && !is_finishing && client->tries_left > 0 && is_wanted;
    client->state = goes_on ? CLIENT_WAITING : CLIENT_DONE;
    client->since_ns = world_now_ns();
    if (goes_on) {
        client->tries_left--;
        world_after(luck_spread(10 * NS_PER_US, 500 * NS_PER_MS), connect_again, client,
                    ++client->number_of_wait);
    }
}

static void lost(struct client *client) {
    client_totals.lost++;
    trace("client %llu: its connection is lost, state %llu, %llu requests open", client->number,
          client->state, client->pending_count, 0);
    /* Before the appliance listens, connections are refused. */
    bool is_early = client->state == CLIENT_CONNECTING && client_totals.connections == 0;
    /* There may be as many as are served, with those who left without a word. */
    bool is_one_too_many = client->state <= CLIENT_GREETING && plan.clients >= 32;
    if (!client_may_lose(client) && !is_early && !is_one_too_many) {
        sim_fail("client %u: the appliance ends its connection, and nothing was wrong",
                 client->number);
    }
    peer_let_go(client->peer);
    over(client);
}

/* Leaves in a way that no client should. */
static void leave_badly(struct client *client) {
    client->has_sinned = true;
    bool vanishes = luck_has(plan.vanishes);
    trace("client %llu: leaves in the middle, vanishing %llu, with %llu requests open",
          client->number, vanishes, client->pending_count, 0);
    /* Behind GO or EXPORT_NAME it would be an ordinary client that asks for nothing. */
    bool agrees = client->state == CLIENT_GREETING ||
                  (client->state == CLIENT_OPTIONS && !client_has_chosen(client));
    if (agrees && luck_has(300)) {
        peer_let_go(client->peer); /* is there, and says nothing more */
    } else if (vanishes) {
        peer_vanish(client->peer);
    } else if (luck_has(500)) {
        peer_reset(client->peer);
    } else {
        peer_finish(client->peer);
        peer_let_go(client->peer);
    }
    over(client);
}

void client_leave(struct client *client) {
    trace("client %llu: leaves, %llu requests open", client->number, client->pending_count, 0, 0);
    if (client->state == CLIENT_WORKING && luck_has(700)) {
        client_send_request(client, NBD_DISC, 0, 0, 0, 0);
        if (luck_has(300)) {
            peer_finish(client->peer);
        }
    } else {
        peer_finish(client->peer);
    }
    client->state = CLIENT_LEAVING;
    client->since_ns = world_now_ns();
    /* Who leaves and does not take what it has asked for is cut off after a while. */
    client->has_sinned |= peer_is_stalled(client->peer);
}

static void connect_again(void *arg, uint64_t number) {
    struct client *client = arg;
    if (number != client->number_of_wait || client->state != CLIENT_WAITING) {
        return;
    }
    if (is_finishing) {
        client->state = CLIENT_DONE;
        return;
    }
    client->state = CLIENT_CONNECTING;
    client->since_ns = world_now_ns();
    client->has_sinned = false;
    client->is_cut = false;
    client->option = 0;
    client->sent = 0;
    client->received = 0;
    client->cut_sent = UINT64_MAX;
    client->cut_received = UINT64_MAX;
    if (luck_has(plan.misbehaves)) {
        /* Already in the handshake. */
        if (luck_has(500)) {
            client->cut_sent = luck_below(200);
        } else {
            client->cut_received = luck_below(200);
        }
    }
    client->peer = peer_open(&client->options, changed, client);
}

/* --- What it does ------------------------------------------------------------------------------
 */

static void end_stall(void *arg, uint64_t number) {
    struct client *client = arg;
    if (number == client->number_of_stall && client->peer != NULL) {
        client->since_ns = world_now_ns();
        peer_stall(client->peer, false);
    }
}

static void maybe_stall(struct client *client) {
    if (luck_has(plan.stalls) && !peer_is_stalled(client->peer)) {
        uint64_t ns = luck_has(500) ? luck_spread(100 * NS_PER_US, 20 * NS_PER_S)
                                    : luck_between(NS_PER_S, 20 * NS_PER_S);
        trace("client %llu: takes nothing for %llu us", client->number, ns / 1000, 0, 0);
        client->stalled_until_ns = world_now_ns() + ns;
        peer_stall(client->peer, true);
        world_after(ns, end_stall, client, ++client->number_of_stall);
    }
}

static void work(struct client *client) {
    while (client->state == CLIENT_WORKING && client->pending_count < client->depth &&
           client->requests_left > 0 && !is_finishing && !client->is_cut) {
        if (luck_has(plan.misbehaves)) {
            if (luck_has(500)) {
                client->cut_sent = client->sent + luck_below(luck_has(500) ? 40 : 20000);
            } else {
                client->cut_received = client->received + luck_below(luck_has(500) ? 40 : 20000);
            }
        }
        if (luck_has(plan.ends_garbled)) {
            client_send_garbage(client);
            return;
        }
        client->requests_left--;
        client_ask(client);
        maybe_stall(client);
        client->depth = 1 + (unsigned)luck_below(client->depth_max);
    }
    bool wants_to_leave =
        client->requests_left == 0 || is_finishing || luck_has(plan.is_sound ? 2 : 5);
    bool is_patient = client->pending_count > 0 && luck_has(900);
    if (client->state == CLIENT_WORKING && wants_to_leave && !is_patient && !client->is_cut) {
        client_leave(client);
    }
}

static void step(struct client *client) {
    bool goes_on = true;
    while (goes_on && client->peer != NULL) {
        switch (client->state) {
        case CLIENT_CONNECTING:
        case CLIENT_GREETING:
        case CLIENT_OPTIONS:
            goes_on = client_agree(client);
            break;
        case CLIENT_WORKING:
        case CLIENT_LEAVING:
            goes_on = client_read_reply(client);
            break;
        default:
            goes_on = false;
            break;
        }
    }
    if (client->state == CLIENT_WORKING) {
        work(client);
    }
}

static void changed(void *arg) {
    struct client *client = arg;
    if (client->peer == NULL || peer_is_stalled(client->peer) || client->is_stepping) {
        return;
    }
    client->is_stepping = true;
    enum peer_state state = peer_state(client->peer);
    const uint8_t *data;
    size_t bytes = peer_received(client->peer, &data);
    if (bytes > 0) {
        append(client, data, bytes);
        client->received += bytes;
        client->since_ns = world_now_ns();
        peer_take(client->peer, bytes);
    }
    if (state != PEER_CONNECTING) {
        step(client);
    }
    if (client->peer != NULL && (client->is_cut || client->received >= client->cut_received)) {
        leave_badly(client);
    } else if (client->peer != NULL && (state == PEER_DEAD || state == PEER_ENDED)) {
        bool is_in_order = client->state == CLIENT_LEAVING && state == PEER_ENDED;
        if (is_in_order && client->pending_count > 0 && !client_may_lose(client)) {
            sim_fail("client %u: %u requests are not answered though it left in order",
                     client->number, client->pending_count);
        }
        if (is_in_order) {
            peer_finish(client->peer);
            peer_let_go(client->peer);
            over(client);
        } else {
            lost(client);
        }
    }
    client->is_stepping = false;
}

static void look_again(void *arg, uint64_t unused) {
    (void)unused;
    changed(arg);
}

/* After something that was done outside of `changed`. */
void client_look_again(struct client *client) {
    world_after(0, look_again, client, 0);
}

/* --- All of them -------------------------------------------------------------------------------
 */

static void set_up(struct client *client, unsigned number) {
    static const uint16_t sizes[] = {536, 1000, 1220, 1400, 1448, 1460};
    uint64_t sectors = plan.sectors;
    uint64_t blocks_each = sectors * SECTOR_BYTES / plan.block_bytes / plan.clients;
    client->number = number;
    client->state = CLIENT_WAITING;
    client->requests_left = plan.requests;
    client->tries_left = 20;
    client->depth_max = 1 + (unsigned)luck_below(plan.depth_max);
    client->depth = client->depth_max;
    client->options = (struct peer_options){
        .host = number,
        .mss = luck_has(600) ? 1460 : sizes[luck_below(ARRAY_COUNT(sizes))],
        .window_bytes = (uint32_t)luck_spread(2920, 512 * 1024),
        .window_shift = (uint8_t)luck_below(8),
        .has_window_scale = luck_has(800),
        .may_sack = luck_has(700),
        .ack_delay_ns = luck_has(500) ? 0 : luck_spread(NS_PER_US, 40 * NS_PER_MS),
        .congestion_bytes_max = (uint32_t)luck_spread(4096, 1024 * 1024),
        .sends_large = luck_has(700),
    };
    uint32_t most = plan.mtu - 40;
    if (plan.mtu > 1500 && luck_has(700)) {
        client->options.mss = (uint16_t)most; /* the others' are behind a router, say */
    }
    client->options.mss = client->options.mss < most ? client->options.mss : (uint16_t)most;
    if (client->options.window_bytes < 2u * client->options.mss) {
        client->options.window_bytes = 2u * client->options.mss; /* as every host has */
    }
    if (!client->options.has_window_scale && client->options.window_bytes > UINT16_MAX) {
        client->options.window_bytes = UINT16_MAX;
    }
    uint32_t block_sectors = plan.block_bytes / SECTOR_BYTES;
    bool has_own = !plan.clients_share && blocks_each > 0;
    client->first = has_own ? number * blocks_each * block_sectors : 0;
    client->sectors = has_own ? blocks_each * block_sectors : sectors;
    client->since_ns = world_now_ns();
    world_after(luck_spread(NS_PER_MS, 100 * NS_PER_MS), connect_again, client,
                ++client->number_of_wait);
}

void clients_begin(void) {
    for (unsigned i = 0; i < plan.clients; i++) {
        set_up(&clients[i], i);
    }
}

void clients_finish(void) {
    is_finishing = true;
    for (unsigned i = 0; i < plan.clients; i++) {
        struct client *client = &clients[i];
        client->requests_left = 0;
        if (client->state == CLIENT_WAITING) {
            client->state = CLIENT_DONE;
        } else if (client->peer != NULL && client->state == CLIENT_WORKING) {
            client_leave(client);
        } else if (client->peer != NULL && client->state != CLIENT_LEAVING) {
            client->has_sinned = true;
            peer_reset(client->peer);
            over(client);
        }
    }
}

bool clients_are_done(void) {
    for (unsigned i = 0; i < plan.clients; i++) {
        if (clients[i].state != CLIENT_DONE) {
            return false;
        }
    }
    return true;
}

void clients_expect_shutdown(void) {
    is_shutdown_expected = true;
}

static uint64_t latest(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

void clients_check_progress(uint64_t calm_ns, uint64_t bound_ns) {
    uint64_t now_ns = world_now_ns();
    for (unsigned i = 0; i < plan.clients; i++) {
        const struct client *client = &clients[i];
        uint64_t from_ns = latest(calm_ns, client->stalled_until_ns);
        /* Who has sinned may have to find out by asking that its connection was reset. */
        uint64_t patience_ns = bound_ns + (client->has_sinned ? SINNERS_WAIT_NS : 0);
        if (client->peer == NULL) {
            continue;
        }
        for (unsigned j = 0; j < DEPTH_MAX; j++) {
            const struct pending *pending = &client->pending[j];
            /* With a small window a long answer takes its time; but something must come. */
            uint64_t last_ns = latest(latest(from_ns, pending->begun_ns), client->since_ns);
            uint64_t most_ns = latest(from_ns, pending->begun_ns) + LONGEST_ANSWERS * patience_ns;
            if (pending->is_used && (now_ns > last_ns + patience_ns || now_ns > most_ns)) {
                sim_fail("client %u: command %u of %u sectors at %llu has waited for %llu ms",
                         client->number, pending->command, pending->sectors,
                         (unsigned long long)pending->sector,
                         (unsigned long long)((now_ns - pending->begun_ns) / NS_PER_MS));
            }
        }
        if (client->state != CLIENT_WORKING &&
            now_ns > latest(from_ns, client->since_ns) + patience_ns) {
            sim_fail("client %u: nothing happens in state %u for %llu ms", client->number,
                     client->state, (unsigned long long)((now_ns - client->since_ns) / NS_PER_MS));
        }
    }
}
