/* Limits per export. See limit.h. */
#include "apps/nbd/limit.h"

#include "apps/nbd/connection.h"
#include "core/task/scheduler.h"

static void turn_has_come(void *arg) {
    struct nbd_limit *limit = arg;
    if (limit->first != NULL) {
        nbd_schedule(limit->first);
    }
}

static void join(struct nbd_limit *limit, struct nbd_connection *connection) {
    if (connection->is_limited) {
        return;
    }
    connection->is_limited = true;
    connection->next_limited = NULL;
    if (limit->last != NULL) {
        limit->last->next_limited = connection;
    } else {
        limit->first = connection;
    }
    limit->last = connection;
    limit->waits++;
}

void nbd_limit_leave(struct nbd_connection *connection) {
    if (!connection->is_limited) {
        return;
    }
    struct nbd_limit *limit = connection->export->limit;
    struct nbd_connection *before = NULL;
    struct nbd_connection **link = &limit->first;
    while (*link != connection) {
        before = *link;
        link = &before->next_limited;
    }
    *link = connection->next_limited;
    if (limit->last == connection) {
        limit->last = before;
    }
    connection->is_limited = false;
    turn_has_come(limit);
}

bool nbd_limit_allows(struct nbd_connection *connection) {
    struct nbd_limit *limit = connection->export->limit;
    if (limit == NULL) {
        return true;
    }
    if (limit->first != NULL && limit->first != connection) {
        join(limit, connection);
        return false;
    }
    uint64_t now_ns = scheduler_now_ns();
    uint64_t bytes_ns = rate_wait_ns(&limit->bytes, now_ns);
    uint64_t requests_ns = rate_wait_ns(&limit->requests, now_ns);
    uint64_t wait_ns = bytes_ns > requests_ns ? bytes_ns : requests_ns;
    if (wait_ns > 0) {
        join(limit, connection);
        timer_set(&limit->timer, now_ns + wait_ns, turn_has_come, limit);
        return false;
    }
    return true;
}

void nbd_limit_charge(struct nbd_connection *connection, const struct nbd_request_header *header) {
    struct nbd_limit *limit = connection->export->limit;
    if (limit == NULL) {
        return;
    }
    bool has_bytes = header->command == NBD_CMD_READ || header->command == NBD_CMD_WRITE;
    uint64_t now_ns = scheduler_now_ns();
    rate_charge(&limit->requests, now_ns, 1);
    rate_charge(&limit->bytes, now_ns, has_bytes ? header->length : 0);
    nbd_limit_leave(connection);
}
