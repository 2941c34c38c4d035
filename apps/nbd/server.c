/* The NBD server's connections: who comes, who is run, and how it all ends. See server.h and
 * connection.h; memory.c has the memory. */
#include "apps/nbd/server.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "apps/nbd/connection.h"
#include "apps/nbd/limit.h"
#include "apps/nbd/turn.h"
#include "boot/arch.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/panic.h"
#include "core/task/scheduler.h"
#include "net/stack.h"
#include "net/tcp_stream.h"

enum { ALLOCATION_SHARE = 64 };

static struct nbd_connection *connections;
static unsigned connection_count;
static unsigned connection_peak;
static struct nbd_connection *run_first;
static struct nbd_connection *run_last;
static const struct nbd_server_config *config;
static uint64_t refused_total;
static bool is_shutting_down;
static bool is_working; /* whoever comes into the line, the round that has begun sees */
static uint64_t shutdown_deadline_ns;
static uint64_t served_total;

struct nbd_connection *nbd_connections(void) {
    return connections;
}

unsigned nbd_connection_count(void) {
    return connection_count;
}

bool nbd_is_shutting_down(void) {
    return is_shutting_down;
}

bool nbd_may_list(void) {
    return config->may_list;
}

/* --- Connections -------------------------------------------------------------------------------
 */

/* True when it was not in line before. */
static bool enqueue(struct nbd_connection *connection) {
    if (connection->has_work) {
        return false;
    }
    connection->has_work = true;
    connection->next_to_run = NULL;
    if (run_last != NULL) {
        run_last->next_to_run = connection;
    } else {
        run_first = connection;
    }
    run_last = connection;
    return true;
}

void nbd_schedule(struct nbd_connection *connection) {
    if (enqueue(connection) && !is_working) {
        net_wake();
    }
}

static void stream_changed(void *arg) {
    nbd_schedule(arg);
}

static void deadline_passed(void *arg) {
    struct nbd_connection *connection = arg;
    connection->is_late = true;
    nbd_schedule(connection);
}

void nbd_set_deadline(struct nbd_connection *connection, uint64_t timeout_ms) {
    timer_set(&connection->deadline, arch_clock_ns() + timeout_ms * NS_PER_MS, deadline_passed,
              connection);
}

void nbd_watch_idle(struct nbd_connection *connection) {
    connection->active_ns = scheduler_now_ns();
    connection->is_late = false; /* whatever it was late with is over */
    if (config->idle_ms > 0) {
        nbd_set_deadline(connection, config->idle_ms);
    }
}

/* The deadline of an open connection has passed: true when nothing was asked since it was set. */
static bool is_idle(struct nbd_connection *connection) {
    uint64_t idle_ns = config->idle_ms * NS_PER_MS;
    uint64_t silent_ns = scheduler_now_ns() - connection->active_ns;
    /* A request that waits for its turn, or for memory, is still unread. */
    bool waits_for_us = nbd_place_is_taken(&connection->limit_place) ||
                        nbd_place_is_taken(&connection->turn_place) || connection->wants_memory;
    connection->is_late = false;
    if (nbd_transmission_is_idle(connection) && !waits_for_us && silent_ns >= idle_ns) {
        return true;
    }
    uint64_t left_ms =
        silent_ns < idle_ns ? (idle_ns - silent_ns) / NS_PER_MS + 1 : config->idle_ms;
    nbd_set_deadline(connection, left_ms);
    return false;
}

void nbd_begin_draining(struct nbd_connection *connection) {
    connection->state = NBD_DRAINING;
    connection->awaits_requests = true;
    nbd_limit_leave(connection);
    nbd_turn_leave(connection);
    nbd_set_deadline(connection, NBD_DRAIN_TIMEOUT_MS);
}

static void let_go(struct nbd_connection *connection, bool abort) {
    struct stream *stream = connection->stream;
    connection->state = NBD_CLOSED;
    timer_cancel(&connection->deadline);
    /* The stream's memory ends when its marks and loans are back; ours after that. */
    stream->changed = NULL;
    nbd_limit_leave(connection);
    nbd_turn_leave(connection);
    nbd_replies_abandon(connection);
    nbd_io_give_spares(connection);
    stream->ops->close(stream, abort);
    nbd_transmission_drop(connection);
    nbd_schedule(connection);
}

void nbd_abort(struct nbd_connection *connection, const char *format, ...) {
    static struct log_rate rate;
    if (connection->state == NBD_CLOSED) {
        return;
    }
    if (log_rate_allows(&rate)) {
        char reason[128];
        va_list arguments;
        va_start(arguments, format);
        (void)vsnprintf(reason, sizeof reason, format, arguments); /* for people: may be cut */
        va_end(arguments);
        log_info("nbd: %s %s: closed", connection->stream->peer, reason);
    }
    let_go(connection, true);
}

/* Why a client is not served; NULL when it is. */
static const char *refusal(const struct stream *stream) {
    if (is_shutting_down) {
        return "shutting down";
    }
    if (config->allow.count > 0 && !access_list_has(&config->allow, stream->peer_address)) {
        return "not on the list of those allowed";
    }
    return connection_count >= NBD_CONNECTIONS_MAX ? "too many connections" : NULL;
}

static bool accept_client(struct stream *stream, void *unused) {
    static struct log_rate rate;
    (void)unused;
    const char *reason = refusal(stream);
    if (reason != NULL) {
        refused_total++;
        if (log_rate_allows(&rate)) {
            log_warning("nbd: %s refused: %s", stream->peer, reason);
        }
        return false;
    }
    struct nbd_connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL) {
        return false;
    }
    connection->stream = stream;
    connection->is_read_only = access_list_has(&config->readers, stream->peer_address);
    stream->arg = connection;
    if (nbd_handshake_begin(connection) != 0) {
        free(connection);
        return false;
    }
    stream->changed = stream_changed;
    connection->next = connections;
    connections = connection;
    connection_count++;
    connection_peak = connection_count > connection_peak ? connection_count : connection_peak;
    served_total++;
    log_debug("nbd: %s connects, %u connections", stream->peer, connection_count);
    return true;
}

static bool is_unused(const struct nbd_connection *connection) {
    bool has_mark = connection->handshake != NULL && connection->handshake->mark_is_placed;
    return connection->state == NBD_CLOSED && nbd_transmission_is_idle(connection) && !has_mark &&
           !connection->has_work;
}

static void destroy(struct nbd_connection *connection) {
    struct nbd_connection **link = &connections;
    while (*link != connection) {
        link = &(*link)->next;
    }
    *link = connection->next;
    connection_count--;
    ASSERT(connection->buffer_bytes == 0 && connection->ios_held == 0);
    nbd_handshake_end(connection);
    nbd_transmission_end(connection);
    free(connection);
}

/* What a connection that is to end still waits for: its requests, and the client taking the
 * answers. */
static void drain(struct nbd_connection *connection) {
    if (nbd_transmission_is_idle(connection) && nbd_handshake_flush(connection)) {
        let_go(connection, false);
    }
}

/* Bytes still to come of the request whose payload is being received; some may be here already and
 * wait for memory. */
static size_t payload_due(const struct nbd_connection *connection) {
    return connection->receiving != NULL ? connection->receiving->payload_left
                                         : connection->skip_bytes;
}

/* A client that has sent its last byte gets its answers, unless it stopped in the middle. */
static void follow_stream(struct nbd_connection *connection) {
    struct stream *stream = connection->stream;
    /* The stream of a closed one may be gone. */
    if (connection->state == NBD_CLOSED || (stream->state == STREAM_OPEN && !connection->is_late)) {
        return;
    }
    if (stream->state == STREAM_DEAD) {
        nbd_abort(connection, "lost");
    } else if (connection->is_late && connection->state == NBD_TRANSMISSION) {
        if (is_idle(connection)) {
            log_info("nbd: %s has been idle: closed", stream->peer);
            let_go(connection, false);
        }
    } else if (connection->is_late && connection->ios_on_disk > 0) {
        /* Draining: it is the disk that takes its time, not the client. */
        connection->is_late = false;
        nbd_set_deadline(connection, NBD_DRAIN_TIMEOUT_MS);
    } else if (connection->is_late) {
        nbd_abort(connection, connection->state == NBD_HANDSHAKE
                                  ? "does not finish its handshake in time"
                                  : "does not take its last replies in time");
    } else if (stream->state == STREAM_PEER_CLOSED && connection->state == NBD_HANDSHAKE) {
        let_go(connection, false);
    } else if (stream->state == STREAM_PEER_CLOSED && connection->state == NBD_TRANSMISSION &&
               stream->ops->received(stream) < payload_due(connection)) {
        nbd_abort(connection, "closes in the middle of a write");
    } else if (stream->state == STREAM_PEER_CLOSED && connection->state == NBD_TRANSMISSION &&
               connection->is_short) {
        log_info("nbd: %s closes without a disconnect", stream->peer);
        nbd_begin_draining(connection);
    }
}

/* Out of line: a round in which nobody has work saves no registers for it. */
__attribute__((noinline)) static bool run(struct nbd_connection *connection, bool takes_requests) {
    bool has_more = false;
    if (connection->state == NBD_HANDSHAKE) {
        nbd_handshake_run(connection);
    }
    bool is_begun = connection->requests != NULL && connection->state != NBD_HANDSHAKE;
    /* What the handshake has left to say goes before any reply. */
    if (is_begun && (connection->state == NBD_CLOSED || nbd_handshake_flush(connection))) {
        has_more = nbd_transmission_run(connection, takes_requests);
    }
    follow_stream(connection);
    if (connection->state == NBD_DRAINING) {
        drain(connection);
    }
    return has_more;
}

static void check_shutdown(void) {
    for (struct nbd_connection *connection = connections; connection != NULL;
         connection = connection->next) {
        bool is_late = scheduler_now_ns() > shutdown_deadline_ns;
        if (connection->state == NBD_CLOSED) {
            continue;
        }
        if (is_late) {
            nbd_abort(connection, "does not drain in time");
        } else if (connection->state == NBD_HANDSHAKE ||
                   (connection->state == NBD_TRANSMISSION && connection->receiving == NULL &&
                    connection->skip_bytes == 0 && nbd_transmission_is_idle(connection))) {
            let_go(connection, false);
        }
    }
}

/* When receive buffers run short, everybody who gathers a write hands on what is there, in this
 * round; whatever changes brings the next one. */
static void relieve_pressure(void) {
    if (!net_is_under_pressure()) {
        return;
    }
    for (struct nbd_connection *connection = connections; connection != NULL;
         connection = connection->next) {
        if (connection->state == NBD_TRANSMISSION && connection->receiving != NULL &&
            connection->stream->ops->is_under_pressure(connection->stream)) {
            (void)enqueue(connection); /* this round takes it */
        }
    }
}

/* All that are in line; true when one of them has more to do at once. */
static bool run_line(bool takes_requests) {
    struct nbd_connection *connection = run_first;
    run_first = NULL;
    run_last = NULL;
    bool has_more = false;
    while (connection != NULL) {
        struct nbd_connection *next = connection->next_to_run;
        connection->has_work = false;
        if (run(connection, takes_requests)) {
            (void)enqueue(connection); /* has_more says so */
            has_more = true;
        }
        if (is_unused(connection)) {
            destroy(connection);
        }
        connection = next;
    }
    return has_more;
}

/* And those whose turn it is. */
static bool run_all(void) {
    bool has_more = run_line(true);
    struct nbd_connection *next;
    while ((next = nbd_turns_next()) != NULL) {
        (void)enqueue(next); /* and runs now, if it was not in line already */
        has_more |= run_line(true);
    }
    return has_more;
}

static bool work(void *unused) {
    (void)unused;
    relieve_pressure();
    if (is_shutting_down) {
        check_shutdown();
    }
    /* What the clients ask for goes to the disks at once, and what these have at once back to the
     * clients, before these are asked what they want next: the next round gathers that. */
    is_working = true;
    block_gather();
    nbd_turns_begin_round();
    bool has_more = run_all();
    if (block_serve()) {
        has_more |= run_line(false) || nbd_turns_are_awaited();
    }
    has_more |= nbd_turns_go_on(); /* whether the disks have answered or not */
    is_working = false;
    if (run_first != NULL) {
        net_wake();
    }
    return has_more;
}

/* What is known of each disk, in the 64th part of the memory that is free. Without memory for it a
 * disk is data throughout, which is always right. */
static void keep_allocation(void) {
    struct heap_stats heap;
    heap_get_stats(&heap);
    unsigned count = 0;
    while (block_device_at(count) != NULL) {
        count++;
    }
    size_t room = (heap.bytes_total - heap.bytes_used) / ALLOCATION_SHARE;
    size_t each = room / (count > 0 ? count : 1) / sizeof(struct block_extent);
    unsigned extents = each > BLOCK_EXTENTS_MAX   ? BLOCK_EXTENTS_MAX
                       : each < BLOCK_EXTENTS_MIN ? BLOCK_EXTENTS_MIN
                                                  : (unsigned)each;
    for (unsigned i = 0; i < count; i++) {
        if (block_allocation_enable(block_device_at(i), extents) != 0) {
            log_warning("nbd: no memory to keep what is known of %s", block_device_at(i)->name);
        }
    }
}

int nbd_server_start(const struct nbd_server_config *server_config) {
    config = server_config;
    if (config->keeps_allocation) {
        keep_allocation();
    }
    nbd_turns_init(config->depth);
    int error = nbd_memory_take();
    if (!error) {
        error = tcp_stream_listen(config->port, accept_client, NULL);
    }
    if (error) {
        return error;
    }
    block_set_server(net_round());
    net_set_worker(work, NULL);
    net_wake();
    return 0;
}

void nbd_server_shut_down(void) {
    if (is_shutting_down) {
        return;
    }
    is_shutting_down = true;
    shutdown_deadline_ns = scheduler_now_ns() + NBD_DRAIN_TIMEOUT_MS * NS_PER_MS;
    log_info("nbd: shutting down, %u connections to drain", connection_count);
    net_wake();
}

bool nbd_server_is_down(void) {
    /* What a device in quarantine holds never comes back: after as long as any request may take,
     * power goes off without it. */
    uint64_t limit_ns = shutdown_deadline_ns + BLOCK_REQUEST_TIMEOUT_MS * NS_PER_MS;
    return is_shutting_down && (connection_count == 0 || scheduler_now_ns() > limit_ns);
}

/* How close each disk's map and each export's limit came to their ends. */
static void dump_bounds(void) {
    const struct block_device *device;
    for (unsigned i = 0; (device = block_device_at(i)) != NULL; i++) {
        const struct block_allocation *map = device->allocation;
        if (map != NULL) {
            log_text("  %s: ranges known %u of %u (peak %u), forgotten %llu", device->name,
                     map->count, map->extents_max, map->peak, (unsigned long long)map->forgotten);
        }
    }
    const struct nbd_export *export;
    for (unsigned i = 0; (export = nbd_export_at(i)) != NULL; i++) {
        if (export->limit != NULL) {
            log_text("  %s: limited to %llu bytes and %llu requests per second, waits %llu",
                     export->name, (unsigned long long)export->limit->bytes.per_s,
                     (unsigned long long)export->limit->requests.per_s,
                     (unsigned long long)export->limit->line.waits);
        }
    }
}

void nbd_server_dump(void) {
    char memory[160];
    nbd_memory_tell(memory, sizeof memory);
    log_text("nbd: %u connections (peak %u, total %llu, refused %llu), %s", connection_count,
             connection_peak, (unsigned long long)served_total, (unsigned long long)refused_total,
             memory);
    dump_bounds();
    nbd_turns_dump();
    for (const struct nbd_connection *connection = connections; connection != NULL;
         connection = connection->next) {
        if (connection->state != NBD_CLOSED) {
            log_text(
                "  %s: export \"%s\", %u in flight, %llu requests, %llu bytes read, %llu written",
                connection->stream->peer,
                connection->export != NULL ? connection->export->name : "",
                connection->requests_in_use, (unsigned long long)connection->requests_total,
                (unsigned long long)connection->bytes_read,
                (unsigned long long)connection->bytes_written);
        }
    }
}
