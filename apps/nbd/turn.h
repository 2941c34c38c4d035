/* Turns at the disks. A disk has so many pieces of requests at a time; when it has enough, further
 * requests stay unread, and those who wait take turns of several requests each. So the requests of
 * a client come to the disk side by side, its replies fill frames, nobody's few requests wait
 * behind all that others have asked for, and what waits takes no memory. */
#ifndef APPS_NBD_TURN_H
#define APPS_NBD_TURN_H

#include <stdbool.h>

#include "apps/nbd/line.h"
#include "blk/block.h"

struct nbd_connection;

/* Of one disk, whatever its exports: their clients share it. */
struct nbd_turns {
    const struct block_device *disk;
    struct nbd_line line;
    unsigned had; /* pieces of requests, when the round began */
};

/* From when on requests wait: `depth` pieces of them on one disk. Before any connection is there.
 */
void nbd_turns_init(unsigned depth);

/* The turns at the disk that `device` is or lies on. Their count is bounded by that of disks. */
struct nbd_turns *nbd_turns_at(const struct block_device *device);

/* Whether the connection, which has no turn, gets one now: it may begin `turn_left` requests, in
 * this run. If not, it waits until nbd_turns_next names it. */
bool nbd_turn_begins(struct nbd_connection *connection);

/* The next who waits at a disk that has room, with its turn; NULL when there is none. */
struct nbd_connection *nbd_turns_next(void);

/* A round begins, in which each disk gets NBD_ROUND_PIECES more at most. */
void nbd_turns_begin_round(void);

/* Somebody waits for a turn. */
bool nbd_turns_are_awaited(void);

/* And may have it in the next round, whether a disk answers until then or not. */
bool nbd_turns_go_on(void);

/* It does not wait any more. */
void nbd_turn_leave(struct nbd_connection *connection);

/* How often somebody had to wait, for each disk, through log_text. */
void nbd_turns_dump(void);

#endif
