/* Limits on what all clients of an export together may do: bytes of READ and WRITE, and requests,
 * per second. Nothing is refused: a request that has to wait stays unread, and TCP pushes back.
 * Those who wait take turns, one request each. */
#ifndef APPS_NBD_LIMIT_H
#define APPS_NBD_LIMIT_H

#include "apps/nbd/line.h"
#include "apps/nbd/rate.h"
#include "core/task/timer.h"

struct nbd_connection;
struct nbd_request_header;

struct nbd_limit {
    struct rate bytes;
    struct rate requests;
    struct nbd_line line;
    struct timer timer;
};

/* Whether the connection may begin its next request now. If not, it is run again when it may. */
bool nbd_limit_allows(struct nbd_connection *connection);

/* It has begun it. */
void nbd_limit_charge(struct nbd_connection *connection, const struct nbd_request_header *header);

/* It does not wait any more. */
void nbd_limit_leave(struct nbd_connection *connection);

#endif
