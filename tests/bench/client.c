/* An NBD client that costs as little as one can, so that on few processors the server is what is
 * measured: whatever a piece of the stream has answered is asked anew in one piece.
 *
 *   client ADDRESS PORT EXPORT PATTERN BLOCK_BYTES DEPTH CONNECTIONS MILLISECONDS
 *
 * PATTERN is fio's word: randread, randwrite, read or write. DEPTH is that of each connection.
 * Prints
 *
 *   {"elapsed_ns": N, "operations": [of each connection]}
 *
 * It is strict: an error, a cookie that nobody waits for, or a silence ends it with what was wrong.
 * Numbers are those of the NBD protocol document (doc/proto.md of the NBD project). */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    OPTION_EXPORT_NAME = 1,
    HANDSHAKE_FLAGS = 1 | 2, /* fixed newstyle, no zeroes: the server's, and ours */
    GREETING_BYTES = 18,
    EXPORT_BYTES = 10, /* size and flags */
    REQUEST_MAGIC = 0x25609513,
    REPLY_MAGIC = 0x67446698,
    REPLY_BYTES = 16,
    COMMAND_READ = 0,
    COMMAND_WRITE = 1,
    COMMAND_DISC = 2,
    NAME_MAX_BYTES = 256,
    DEPTH_MAX = 512, /* two pieces each fit into one writev */
    CONNECTIONS_MAX = 256,
    BLOCK_MAX_BYTES = 32 * 1024 * 1024,
    PIECE_BYTES = 256 * 1024, /* read at once */
    SILENCE_S = 20,
};

#define NS_PER_S  UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

struct __attribute__((packed)) request {
    uint32_t magic;
    uint16_t flags;
    uint16_t command;
    uint64_t cookie;
    uint64_t offset;
    uint32_t length;
};

struct connection {
    int socket;
    uint64_t blocks; /* of the export */
    uint64_t random; /* state of the generator, not 0 */
    uint64_t next;   /* block of a sequential pattern */
    uint64_t operations;
    uint64_t payload_left; /* of the reply that is being read */
    uint32_t cookie;       /* of that */
    size_t head_bytes;     /* of the next reply, that have been read */
    uint8_t head[REPLY_BYTES];
    unsigned in_flight;
    unsigned idle_count;
    uint32_t idle[DEPTH_MAX]; /* cookies to be used next */
    bool is_pending[DEPTH_MAX];
};

struct work {
    bool is_write;
    bool is_random;
    uint32_t block_bytes;
    unsigned depth;
    uint64_t end_ns;
    uint8_t *payload; /* of every write */
};

static struct connection connections[CONNECTIONS_MAX];
static unsigned connection_count;
static struct work work;

/* Says what was wrong, and ends. */
static _Noreturn void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)fputs("client: ", stderr);
    (void)vfprintf(stderr, format, args);
    (void)fputc('\n', stderr);
    va_end(args);
    exit(EXIT_FAILURE);
}

static uint64_t now_ns(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* --- Bytes --- */

/* What has come, up to `bytes`; at least one. */
static size_t receive(const struct connection *connection, void *data, size_t bytes) {
    ssize_t count = recv(connection->socket, data, bytes, 0);
    if (count <= 0) {
        fail("nothing received: %s", count == 0 ? "closed" : strerror(errno));
    }
    return (size_t)count;
}

static void receive_whole(const struct connection *connection, void *data, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        at += receive(connection, (uint8_t *)data + at, bytes - at);
    }
}

/* Changes the pieces. */
static void send_whole(const struct connection *connection, struct iovec *pieces, unsigned count) {
    while (count > 0) {
        ssize_t sent = writev(connection->socket, pieces, (int)count);
        if (sent <= 0) {
            fail("nothing sent: %s", strerror(errno));
        }
        size_t left = (size_t)sent;
        while (count > 0 && left >= pieces->iov_len) {
            left -= pieces->iov_len;
            pieces++;
            count--;
        }
        if (count > 0) {
            pieces->iov_base = (uint8_t *)pieces->iov_base + left;
            pieces->iov_len -= left;
        }
    }
}

/* --- A connection --- */

static int connected(const char *address, uint16_t port) {
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(port)};
    const struct timeval silence = {.tv_sec = SILENCE_S};
    const int yes = 1;
    int number = socket(AF_INET, SOCK_STREAM, 0);
    if (number < 0 || inet_pton(AF_INET, address, &peer.sin_addr) != 1 ||
        setsockopt(number, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) != 0 ||
        setsockopt(number, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof silence) != 0 ||
        setsockopt(number, SOL_SOCKET, SO_SNDTIMEO, &silence, sizeof silence) != 0 ||
        connect(number, (const struct sockaddr *)&peer, sizeof peer) != 0) {
        fail("no connection to %s, port %u: %s", address, (unsigned)port, strerror(errno));
    }
    return number;
}

/* Fixed newstyle, and the oldest option, which every server knows. */
static void shake_hands(struct connection *connection, const char *name) {
    uint8_t greeting[GREETING_BYTES];
    receive_whole(connection, greeting, sizeof greeting);
    if (memcmp(greeting, "NBDMAGICIHAVEOPT", 16) != 0) {
        fail("not an NBD server");
    }
    if ((greeting[GREETING_BYTES - 1] & HANDSHAKE_FLAGS) != HANDSHAKE_FLAGS) {
        fail("the server does not know the fixed newstyle handshake without zeroes");
    }
    size_t name_bytes = strlen(name);
    uint32_t flags = htonl(HANDSHAKE_FLAGS);
    uint32_t option = htonl(OPTION_EXPORT_NAME);
    uint32_t length = htonl((uint32_t)name_bytes);
    char magic[8] = {'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T'};
    char copy[NAME_MAX_BYTES];
    memcpy(copy, name, name_bytes);
    struct iovec pieces[] = {{&flags, sizeof flags},
                             {magic, sizeof magic},
                             {&option, sizeof option},
                             {&length, sizeof length},
                             {copy, name_bytes}};
    send_whole(connection, pieces, sizeof pieces / sizeof pieces[0]);
    uint8_t export[EXPORT_BYTES];
    uint64_t size;
    receive_whole(connection, export, sizeof export);
    memcpy(&size, export, sizeof size);
    connection->blocks = be64toh(size) / work.block_bytes;
    if (connection->blocks == 0) {
        fail("the export is smaller than a block");
    }
}

static uint64_t next_block(struct connection *connection) {
    if (!work.is_random) {
        return connection->next++ % connection->blocks;
    }
    /* xorshift64 */
    connection->random ^= connection->random << 13;
    connection->random ^= connection->random >> 7;
    connection->random ^= connection->random << 17;
    return connection->random % connection->blocks;
}

/* Asks for as much as may be in flight, in one piece. */
static void ask(struct connection *connection) {
    static struct request requests[DEPTH_MAX];
    static struct iovec pieces[2 * DEPTH_MAX];
    unsigned count = 0;
    unsigned piece_count = 0;
    while (connection->idle_count > 0) {
        uint32_t cookie = connection->idle[--connection->idle_count];
        connection->is_pending[cookie] = true;
        requests[count] = (struct request){
            .magic = htobe32(REQUEST_MAGIC),
            .command = htobe16(work.is_write ? COMMAND_WRITE : COMMAND_READ),
            .cookie = htobe64(cookie),
            .offset = htobe64(next_block(connection) * work.block_bytes),
            .length = htobe32(work.block_bytes),
        };
        if (work.is_write) {
            pieces[piece_count++] = (struct iovec){&requests[count], sizeof requests[0]};
            pieces[piece_count++] = (struct iovec){work.payload, work.block_bytes};
        }
        count++;
    }
    if (!work.is_write) {
        pieces[piece_count++] = (struct iovec){requests, count * sizeof requests[0]};
    }
    connection->in_flight += count;
    if (count > 0) {
        send_whole(connection, pieces, piece_count);
    }
}

static void begin_reply(struct connection *connection) {
    uint32_t magic;
    uint32_t error;
    uint64_t cookie;
    memcpy(&magic, connection->head, sizeof magic);
    memcpy(&error, connection->head + 4, sizeof error);
    memcpy(&cookie, connection->head + 8, sizeof cookie);
    cookie = be64toh(cookie);
    if (be32toh(magic) != REPLY_MAGIC || cookie >= work.depth || !connection->is_pending[cookie]) {
        fail("not the reply to a request");
    }
    if (error != 0) {
        fail("request failed with error %u", (unsigned)be32toh(error));
    }
    connection->is_pending[cookie] = false;
    connection->cookie = (uint32_t)cookie;
    connection->payload_left = work.is_write ? 0 : work.block_bytes;
    connection->head_bytes = 0;
}

/* Only now another may take its place. */
static void end_reply(struct connection *connection) {
    connection->idle[connection->idle_count++] = connection->cookie;
    connection->in_flight--;
    connection->operations++;
}

static size_t least(size_t one, uint64_t other) {
    return one < other ? one : (size_t)other;
}

static void take_replies(struct connection *connection, const uint8_t *data, size_t bytes) {
    while (bytes > 0) {
        size_t taken;
        if (connection->payload_left > 0) {
            taken = least(bytes, connection->payload_left);
            connection->payload_left -= taken;
            if (connection->payload_left == 0) {
                end_reply(connection);
            }
        } else {
            taken = least(bytes, REPLY_BYTES - connection->head_bytes);
            memcpy(connection->head + connection->head_bytes, data, taken);
            connection->head_bytes += taken;
            if (connection->head_bytes == REPLY_BYTES) {
                begin_reply(connection);
                if (connection->payload_left == 0) {
                    end_reply(connection);
                }
            }
        }
        data += taken;
        bytes -= taken;
    }
}

/* Reads what has come and asks anew, until time is up. */
static void serve(struct connection *connection) {
    static uint8_t piece[PIECE_BYTES];
    take_replies(connection, piece, receive(connection, piece, sizeof piece));
    if (now_ns() < work.end_ns) {
        ask(connection);
    }
}

static void disconnect(struct connection *connection) {
    struct request last = {.magic = htobe32(REQUEST_MAGIC), .command = htobe16(COMMAND_DISC)};
    struct iovec piece = {&last, sizeof last};
    send_whole(connection, &piece, 1);
    (void)close(connection->socket);
}

/* --- All of them --- */

static bool is_anything_in_flight(void) {
    for (unsigned i = 0; i < connection_count; i++) {
        if (connections[i].in_flight > 0) {
            return true;
        }
    }
    return false;
}

static void serve_all(void) {
    static struct epoll_event events[CONNECTIONS_MAX];
    int poll = epoll_create1(0);
    if (poll < 0) {
        fail("epoll: %s", strerror(errno));
    }
    for (unsigned i = 0; i < connection_count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, connections[i].socket, &event) != 0) {
            fail("epoll: %s", strerror(errno));
        }
    }
    while (is_anything_in_flight()) {
        int count = epoll_wait(poll, events, CONNECTIONS_MAX, SILENCE_S * 1000);
        if (count <= 0) {
            fail("no reply in %d s", SILENCE_S);
        }
        for (int i = 0; i < count; i++) {
            serve(events[i].data.ptr);
        }
    }
    (void)close(poll);
}

static void open_all(const char *address, uint16_t port, const char *name) {
    for (unsigned i = 0; i < connection_count; i++) {
        struct connection *connection = &connections[i];
        connection->socket = connected(address, port);
        shake_hands(connection, name);
        connection->random = (now_ns() + i) | 1;
        for (unsigned cookie = 0; cookie < work.depth; cookie++) {
            connection->idle[connection->idle_count++] = cookie;
        }
    }
}

static uint64_t number(const char *text, uint64_t least_value, uint64_t most_value) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < least_value || value > most_value) {
        fail("%s: not a number from %llu to %llu", text, (unsigned long long)least_value,
             (unsigned long long)most_value);
    }
    return value;
}

static void understand_pattern(const char *pattern) {
    work.is_random = strncmp(pattern, "rand", 4) == 0;
    const char *word = pattern + (work.is_random ? 4 : 0);
    work.is_write = strcmp(word, "write") == 0;
    if (!work.is_write && strcmp(word, "read") != 0) {
        fail("%s: no such pattern", pattern);
    }
}

int main(int argc, char **argv) {
    if (argc != 9) {
        fail("say ADDRESS PORT EXPORT PATTERN BLOCK_BYTES DEPTH CONNECTIONS MILLISECONDS");
    }
    if (strlen(argv[3]) > NAME_MAX_BYTES) {
        fail("the name of the export is too long");
    }
    (void)signal(SIGPIPE, SIG_IGN); /* what is not sent is told */
    understand_pattern(argv[4]);
    work.block_bytes = (uint32_t)number(argv[5], 1, BLOCK_MAX_BYTES);
    work.depth = (unsigned)number(argv[6], 1, DEPTH_MAX);
    connection_count = (unsigned)number(argv[7], 1, CONNECTIONS_MAX);
    work.payload = malloc(work.block_bytes);
    if (work.payload == NULL) {
        fail("no memory");
    }
    memset(work.payload, 0xa5, work.block_bytes);
    open_all(argv[1], (uint16_t)number(argv[2], 1, UINT16_MAX), argv[3]);

    uint64_t begin_ns = now_ns();
    work.end_ns = begin_ns + number(argv[8], 1, UINT32_MAX) * NS_PER_MS;
    for (unsigned i = 0; i < connection_count; i++) {
        ask(&connections[i]);
    }
    if (connection_count == 1) {
        while (connections[0].in_flight > 0) {
            serve(&connections[0]); /* it waits for what comes next */
        }
    } else {
        serve_all();
    }
    (void)printf("{\"elapsed_ns\": %llu, \"operations\": [",
                 (unsigned long long)(now_ns() - begin_ns));
    for (unsigned i = 0; i < connection_count; i++) {
        (void)printf("%s%llu", i > 0 ? ", " : "", (unsigned long long)connections[i].operations);
        disconnect(&connections[i]);
    }
    (void)puts("]}");
    free(work.payload);
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
