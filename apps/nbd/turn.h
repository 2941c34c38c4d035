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

/* Somebody waits for a turn. */
bool nbd_turns_are_awaited(void);

/* It does not wait any more. */
void nbd_turn_leave(struct nbd_connection *connection);

/* How often somebody had to wait, for each disk, through log_text. */
void nbd_turns_dump(void);

#endif
