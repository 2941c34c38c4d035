/* Limits per export. See limit.h. */
#include "apps/nbd/limit.h"

#include "apps/nbd/connection.h"
#include "core/task/scheduler.h"

static void turn_has_come(void *arg) {
    struct nbd_limit *limit = arg;
    if (limit->line.first != NULL) {
        nbd_schedule(limit->line.first->connection);
    }
}

void nbd_limit_leave(struct nbd_connection *connection) {
    if (nbd_place_is_taken(&connection->limit_place)) {
        nbd_line_leave(&connection->export->limit->line, &connection->limit_place);
        turn_has_come(connection->export->limit);
    }
}

bool nbd_limit_allows(struct nbd_connection *connection) {
    struct nbd_limit *limit = connection->export->limit;
    if (limit == NULL) {
        return true;
    }
    if (limit->line.first != NULL && limit->line.first != &connection->limit_place) {
        nbd_line_join(&limit->line, &connection->limit_place, connection);
        return false;
    }
    uint64_t now_ns = scheduler_now_ns();
    uint64_t bytes_ns = rate_wait_ns(&limit->bytes, now_ns);
    uint64_t requests_ns = rate_wait_ns(&limit->requests, now_ns);
    uint64_t wait_ns = bytes_ns > requests_ns ? bytes_ns : requests_ns;
    if (wait_ns > 0) {
        nbd_line_join(&limit->line, &connection->limit_place, connection);
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
