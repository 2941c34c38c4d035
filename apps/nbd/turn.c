/* Turns at the disks. See turn.h. */
#include "apps/nbd/turn.h"

#include <stddef.h>

#include "apps/nbd/connection.h"
#include "config/limits.h"
#include "core/log.h"
#include "core/panic.h"

_Static_assert(NBD_TURN_REQUESTS_MAX <= NBD_ROUND_PIECES, "a round has room for a turn");

static struct nbd_turns disks[BLOCK_DEVICES_MAX];
static unsigned disk_count;
static unsigned depth;
static unsigned turn_requests;
static unsigned waiting_count; /* at all disks */

void nbd_turns_init(unsigned pieces) {
    unsigned share = pieces / NBD_TURNS_PER_DEPTH;
    depth = pieces;
    turn_requests = share < 1 ? 1 : share > NBD_TURN_REQUESTS_MAX ? NBD_TURN_REQUESTS_MAX : share;
}

struct nbd_turns *nbd_turns_at(const struct block_device *device) {
    const struct block_device *disk = device->parent != NULL ? device->parent : device;
    for (unsigned i = 0; i < disk_count; i++) {
        if (disks[i].disk == disk) {
            return &disks[i];
        }
    }
    ASSERT(disk_count < BLOCK_DEVICES_MAX);
    disks[disk_count] = (struct nbd_turns){.disk = disk};
    return &disks[disk_count++];
}

/* For a whole turn: what requests of several pieces take beyond that may be more than `depth`. */
static bool has_room(const struct nbd_turns *turns) {
    return turns->disk->stats.in_flight + turn_requests <= depth;
}

/* And in this round. */
static bool may_begin(const struct nbd_turns *turns) {
    unsigned in_flight = turns->disk->stats.in_flight;
    return has_room(turns) && in_flight + turn_requests <= turns->had + NBD_ROUND_PIECES;
}

void nbd_turns_begin_round(void) {
    for (unsigned i = 0; i < disk_count; i++) {
        disks[i].had = disks[i].disk->stats.in_flight;
    }
}

bool nbd_turn_begins(struct nbd_connection *connection) {
    struct nbd_turns *turns = connection->turns;
    if (turns->line.first == NULL && may_begin(turns)) {
        connection->turn_left = turn_requests;
        return true;
    }
    waiting_count += !nbd_place_is_taken(&connection->turn_place);
    nbd_line_join(&turns->line, &connection->turn_place, connection);
    return false;
}

static void leave(struct nbd_turns *turns, struct nbd_place *place) {
    nbd_line_leave(&turns->line, place);
    waiting_count--;
}

struct nbd_connection *nbd_turns_next(void) {
    for (unsigned i = 0; waiting_count > 0 && i < disk_count; i++) {
        struct nbd_place *place = disks[i].line.first;
        if (place != NULL && may_begin(&disks[i])) {
            struct nbd_connection *connection = place->connection;
            leave(&disks[i], place);
            connection->turn_left = turn_requests;
            return connection;
        }
    }
    return NULL;
}

bool nbd_turns_are_awaited(void) {
    return waiting_count > 0;
}

bool nbd_turns_go_on(void) {
    for (unsigned i = 0; waiting_count > 0 && i < disk_count; i++) {
        if (disks[i].line.first != NULL && has_room(&disks[i])) {
            return true;
        }
    }
    return false;
}

void nbd_turn_leave(struct nbd_connection *connection) {
    if (nbd_place_is_taken(&connection->turn_place)) {
        leave(connection->turns, &connection->turn_place);
    }
}

void nbd_turns_dump(void) {
    for (unsigned i = 0; i < disk_count; i++) {
        log_text("  %s: at most %u pieces of requests at a time, has %u, waits %llu",
                 disks[i].disk->name, depth, disks[i].disk->stats.in_flight,
                 (unsigned long long)disks[i].line.waits);
    }
}
