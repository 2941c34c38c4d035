/* The server's memory: buffers for payload, ios, and how many requests a client may have.
 *
 * Memory for payload is one IoBuffer, taken at start, from which reads get contiguous buffers; it
 * and the ios are shared so that a client that asks for much and takes nothing cannot starve
 * another (share.h). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "apps/nbd/connection.h"
#include "apps/nbd/payload.h"
#include "apps/nbd/share.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/poison.h"
#include "core/panic.h"

enum {
    /* Of the heap that is free when the server starts: for payload, and for ios. */
    PAYLOAD_SHARE = 2,
    PAYLOAD_BYTES_MAX = 32 * 1024 * 1024,
    PAYLOAD_BYTES_MIN = 2 * 4096 * NBD_CONNECTIONS_MAX,
    IO_SHARE = 8,
    IOS_MIN = 2 * NBD_CONNECTIONS_MAX,
    IOS_MAX = 8192,
    /* Of what is left then, all clients that there may be get their parts; the rest is for headers
     * of segments, and for what does not fit into the ends of runs. */
    CLIENTS_EIGHTHS = 7,
    CLIENT_OBJECTS_BYTES = 1024, /* the connection, its stream, and what slabs round up */
};

static struct share payload_share; /* bytes */
static struct share io_share;
static unsigned requests_max; /* of one connection */
static struct nbd_io *ios;
static struct segment *io_pieces; /* BLOCK_SEGMENTS_MAX of each io: reads need none of them */
static unsigned io_count;
static struct nbd_io *free_ios;
static unsigned
    fresh_ios; /* of the array, never used so far: memory is touched when it is needed */
static unsigned free_io_count;
static unsigned free_io_least;
static unsigned spare_count; /* of all connections */
static bool somebody_waits;
static uint64_t waits;

unsigned nbd_requests_max(void) {
    return requests_max;
}

/* A contiguous buffer, smaller than asked when memory is in pieces or the share is small. Out of
 * line, as what nearly every request needs is there. */
__attribute__((noinline)) static void *buffer_take_less(const struct nbd_connection *connection,
                                                        size_t *bytes) {
    size_t wanted = align_up(*bytes, PAGE_BYTES) / PAGE_BYTES;
    size_t allowed =
        share_allowance(&payload_share, connection->buffer_bytes, nbd_connection_count()) /
        PAGE_BYTES;
    for (size_t pages = wanted < allowed ? wanted : allowed; pages > 0; pages /= 2) {
        void *buffer = nbd_payload_take(pages);
        if (buffer != NULL) {
            size_t got = pages * PAGE_BYTES;
            *bytes = got < *bytes ? got : *bytes;
            return buffer;
        }
    }
    return NULL;
}

static bool give_spares_back(void);

static void *buffer_take(const struct nbd_connection *connection, size_t *bytes) {
    size_t wanted = align_up(*bytes, PAGE_BYTES);
    void *buffer = NULL;
    do {
        if (share_allows(&payload_share, connection->buffer_bytes, nbd_connection_count(),
                         wanted)) {
            buffer = nbd_payload_take(wanted / PAGE_BYTES);
        }
    } while (buffer == NULL && give_spares_back());
    return buffer != NULL ? buffer : buffer_take_less(connection, bytes);
}

void nbd_io_wait(struct nbd_connection *connection) {
    connection->wants_memory = true;
    somebody_waits = true;
    waits++;
}

void nbd_io_give_spares(struct nbd_connection *connection) {
    for (unsigned kind = 0; kind < NBD_SPARE_KINDS; kind++) {
        while (connection->spare[kind] != NULL) {
            struct nbd_io *io = connection->spare[kind];
            connection->spare[kind] = io->next;
            spare_count--;
            nbd_io_put_back(connection, io);
        }
    }
}

/* False when there were none. */
static bool give_spares_back(void) {
    bool found = spare_count > 0;
    for (struct nbd_connection *connection = nbd_connections(); spare_count > 0;
         connection = connection->next) {
        ASSERT(connection != NULL);
        nbd_io_give_spares(connection);
    }
    return found;
}

/* An io that may be taken, if there is one. */
static struct nbd_io *find_io(const struct nbd_connection *connection) {
    bool may = share_allows(&io_share, connection->ios_held, nbd_connection_count(), 1);
    return !may                   ? NULL
           : free_ios != NULL     ? free_ios
           : fresh_ios < io_count ? &ios[fresh_ios]
                                  : NULL;
}

__attribute__((noinline)) static struct nbd_io *take_io(struct nbd_connection *connection,
                                                        size_t bytes) {
    struct nbd_io *io = find_io(connection);
    void *buffer = NULL;
    if (io == NULL && give_spares_back()) {
        io = find_io(connection);
    }
    if (io != NULL && bytes > 0) {
        buffer = buffer_take(connection, &bytes);
        io = find_io(connection); /* spares that were given back go first */
    }
    if (io == NULL || (bytes > 0 && buffer == NULL)) {
        nbd_io_wait(connection);
        return NULL;
    }
    if (io == free_ios) {
        free_ios = io->next;
    } else {
        io->pieces = &io_pieces[(size_t)fresh_ios * BLOCK_SEGMENTS_MAX];
        fresh_ios++;
    }
    free_io_count--;
    free_io_least = free_io_count < free_io_least ? free_io_count : free_io_least;
    share_take(&io_share, &connection->ios_held, 1);
    share_take(&payload_share, &connection->buffer_bytes, align_up(bytes, PAGE_BYTES));
    io->next = NULL;
    io->request = NULL;
    io->buffer = buffer;
    io->buffer_bytes = bytes;
    io->state = IO_IDLE;
    io->loan = (struct stream_loan){0};
    return io;
}

struct nbd_io *nbd_io_take(struct nbd_connection *connection, size_t buffer_bytes) {
    struct nbd_io **spare = &connection->spare[buffer_bytes > 0];
    struct nbd_io *io = *spare;
    if (io == NULL || buffer_bytes > PAGE_BYTES) {
        return take_io(connection, buffer_bytes);
    }
    *spare = io->next;
    spare_count--;
    if (buffer_bytes > 0) {
        poison_expect(io->buffer, PAGE_BYTES);
    }
    io->next = NULL;
    io->buffer_bytes = buffer_bytes;
    return io;
}

void nbd_io_put_back(struct nbd_connection *connection, struct nbd_io *io) {
    ASSERT(io->state != IO_ON_DISK && io->loan.stream == NULL);
    if (io->buffer != NULL) {
        size_t bytes = align_up(io->buffer_bytes, PAGE_BYTES);
        nbd_payload_give(io->buffer, bytes / PAGE_BYTES);
        share_give(&payload_share, &connection->buffer_bytes, bytes);
        io->buffer = NULL;
    }
    share_give(&io_share, &connection->ios_held, 1);
    io->next = free_ios;
    free_ios = io;
    free_io_count++;
}

__attribute__((noinline)) static void give_io(struct nbd_connection *connection,
                                              struct nbd_io *io) {
    nbd_io_put_back(connection, io);
    for (struct nbd_connection *other = nbd_connections(); somebody_waits && other != NULL;
         other = other->next) {
        if (other->wants_memory) {
            other->wants_memory = false;
            nbd_schedule(other);
        }
    }
    somebody_waits = false;
}

/* What a small request has used stays with its connection, for the next one, as long as nobody
 * lacks memory: it is still charged, and whoever finds none takes all of it back first. */
void nbd_io_give(struct nbd_connection *connection, struct nbd_io *io) {
    if (io->buffer_bytes > PAGE_BYTES || somebody_waits || connection->state != NBD_TRANSMISSION) {
        give_io(connection, io);
        return;
    }
    ASSERT(io->state != IO_ON_DISK && io->loan.stream == NULL);
    if (io->buffer != NULL) {
        poison_fill(io->buffer, PAGE_BYTES);
    }
    struct nbd_io **spare = &connection->spare[io->buffer != NULL];
    io->state = IO_IDLE;
    io->next = *spare;
    *spare = io;
    spare_count++;
}

/* As many for each client as there is memory for when all that there may be are there. */
static void size_clients(void) {
    struct heap_stats heap;
    heap_get_stats(&heap);
    size_t left = (heap.bytes_total - heap.bytes_used) / 8 * CLIENTS_EIGHTHS;
    size_t each = left / NBD_CONNECTIONS_MAX;
    size_t before = CLIENT_OBJECTS_BYTES + nbd_handshake_bytes();
    unsigned count =
        nbd_transmission_requests_in(each > before ? align_down(each - before, PAGE_BYTES) : 0);
    requests_max = count > NBD_REQUESTS_PER_CONNECTION       ? NBD_REQUESTS_PER_CONNECTION
                   : count < NBD_REQUESTS_PER_CONNECTION_MIN ? NBD_REQUESTS_PER_CONNECTION_MIN
                                                             : count;
}

int nbd_memory_take(void) {
    struct heap_stats heap;
    heap_get_stats(&heap);
    size_t room = heap.bytes_total - heap.bytes_used;
    size_t io_bytes =
        room / IO_SHARE < heap.largest_free_run ? room / IO_SHARE : heap.largest_free_run;
    size_t pieces_bytes = BLOCK_SEGMENTS_MAX * sizeof *io_pieces;
    size_t wanted_ios = io_bytes / (sizeof *ios + pieces_bytes);
    io_count = (unsigned)(wanted_ios > IOS_MAX   ? IOS_MAX
                          : wanted_ios < IOS_MIN ? IOS_MIN
                                                 : wanted_ios);
    ios = malloc(io_count * sizeof *ios);
    io_pieces = malloc(io_count * pieces_bytes);
    if (ios == NULL || io_pieces == NULL) {
        return log_error(-ENOMEM, "nbd: no memory for %u requests", io_count);
    }
    free_io_count = io_count;
    free_io_least = io_count;
    heap_get_stats(&heap);
    size_t bytes = (heap.bytes_total - heap.bytes_used) / PAYLOAD_SHARE;
    size_t zone = heap_checks ? PAGE_BYTES : 0; /* behind an IoBuffer */
    size_t longest = heap.largest_free_run > zone ? heap.largest_free_run - zone : 0;
    bytes = bytes > longest ? longest : bytes;
    bytes = bytes > PAYLOAD_BYTES_MAX ? PAYLOAD_BYTES_MAX : align_down(bytes, PAGE_BYTES);
    if (bytes < PAYLOAD_BYTES_MIN) {
        return log_error(-ENOMEM, "nbd: %zu bytes for payload are too few", bytes);
    }
    int error = nbd_payload_init(bytes);
    if (error) {
        return error;
    }
    share_init(&payload_share, nbd_payload_total(), PAGE_BYTES, NBD_CONNECTIONS_MAX);
    share_init(&io_share, io_count, 1, NBD_CONNECTIONS_MAX);
    size_clients();
    return 0;
}

void nbd_memory_tell(char *text, size_t bytes) {
    (void)snprintf(
        text, bytes,
        "ios %u of %u free (spare %u, least %u), payload %zu of %zu KiB free, waits %llu, "
        "at most %u requests each",
        free_io_count, io_count, spare_count, free_io_least, nbd_payload_free() / 1024,
        nbd_payload_total() / 1024, (unsigned long long)waits, requests_max);
}
