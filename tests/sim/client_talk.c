/* What a client says and what it is told (NBD protocol, doc/proto.md of the NBD project). Numbers
 * are written down anew: the server's own header could be wrong. */
#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "tests/sim/client.h"
#include "tests/sim/client_private.h"
#include "tests/sim/disk.h"

#define MAGIC_GREETING   UINT64_C(0x4e42444d41474943)
#define MAGIC_OPTION     UINT64_C(0x49484156454f5054)
#define MAGIC_ANSWER     UINT64_C(0x0003e889045565a9)
#define MAGIC_REQUEST    UINT32_C(0x25609513)
#define MAGIC_EXTENDED   UINT32_C(0x21e41c71)
#define MAGIC_SIMPLE     UINT32_C(0x67446698)
#define MAGIC_STRUCTURED UINT32_C(0x668e33ef)
#define MAGIC_CHUNK      UINT32_C(0x6e8a278c)

enum {
    OPTION_EXPORT_NAME = 1,
    OPTION_LIST = 3,
    OPTION_GO = 7,
    OPTION_STRUCTURED = 8,
    OPTION_SET_CONTEXT = 10,
    OPTION_EXTENDED = 11,
    ANSWER_ACK = 1,
    ANSWER_INFO = 3,
    ANSWER_CONTEXT = 4,
    FLAG_FUA = 1,
    FLAG_NO_HOLE = 2,
    FLAG_DF = 4,
    FLAG_REQ_ONE = 8,
    FLAG_FAST_ZERO = 16,
    FLAG_PAYLOAD = 32,
    CAN_FLUSH = 4,
    CAN_FUA = 8,
    CAN_TRIM = 32,
    CAN_ZEROES = 64,
    CAN_DF = 128,
    CAN_CACHE = 1024,
    CAN_FAST_ZERO = 2048,
    CHUNK_DONE = 1,
    CHUNK_NONE = 0,
    CHUNK_DATA = 1,
    CHUNK_HOLE = 2,
    CHUNK_STATUS = 5,
    CHUNK_STATUS_EXT = 6,
    CHUNK_ERROR = 0x8001,
    CHUNK_ERROR_OFFSET = 0x8002,
    STATE_ZERO = 2,
    EXPORT_BYTES = 10,
    EXPORT_ZEROES = 124,
    ANSWER_BYTES_MAX = 16384,
};

#define RESET_NS_MAX (10 * NS_PER_S)

static uint64_t number(const uint8_t *at, unsigned bytes) {
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++) {
        value = value << 8 | at[i];
    }
    return value;
}

static void put(uint8_t **at, uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++) {
        (*at)[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
    }
    *at += bytes;
}

/* --- The handshake -----------------------------------------------------------------------------
 */

static void send_option(struct client *client, uint32_t option, const void *data, uint32_t bytes) {
    uint8_t message[16 + 64];
    uint8_t *at = message;
    put(&at, MAGIC_OPTION, 8);
    put(&at, option, 4);
    put(&at, bytes, 4);
    if (bytes > 0) {
        memcpy(at, data, bytes);
    }
    client->option = option;
    client->asked_ns = world_now_ns();
    client_send(client, message, 16 + bytes);
}

static void send_next_option(struct client *client) {
    uint8_t data[64] = {0};
    uint8_t *at = data;
    if (client->wants_list) {
        client->wants_list = false;
        send_option(client, OPTION_LIST, NULL, 0);
    } else if (client->wanted_mode != client->mode) {
        send_option(client,
                    client->wanted_mode == MODE_EXTENDED ? OPTION_EXTENDED : OPTION_STRUCTURED,
                    NULL, 0);
    } else if (client->wants_context) {
        client->wants_context = false;
        put(&at, 0, 4); /* the default export */
        put(&at, 1, 4);
        put(&at, 15, 4);
        memcpy(at, "base:allocation", 15);
        send_option(client, OPTION_SET_CONTEXT, data, 27);
    } else if (client->uses_export_name) {
        send_option(client, OPTION_EXPORT_NAME, NULL, 0);
    } else {
        send_option(client, OPTION_GO, data, 6);
    }
}

static void choose_agreement(struct client *client) {
    client->mode = MODE_SIMPLE;
    client->wanted_mode = (enum client_mode)luck_below(3);
    client->wants_context = client->wanted_mode != MODE_SIMPLE && luck_has(600);
    client->has_context = false;
    client->wants_list = luck_has(200);
    client->has_no_zeroes = luck_has(500);
    /* Which says nothing of extended headers, so it must not come with them. */
    client->uses_export_name = client->wanted_mode != MODE_EXTENDED && luck_has(250);
    client->knows_export = false;
}

static void take_export(struct client *client, const uint8_t *size_and_flags) {
    uint64_t bytes = number(size_and_flags, 8);
    client->export_flags = (unsigned)number(size_and_flags + 8, 2);
    client->knows_export = true;
    /* While a disk is reset its size is not asked for. */
    uint64_t before_ns = client->asked_ns < RESET_NS_MAX || disk_has_untold_size()
                             ? 0
                             : client->asked_ns - RESET_NS_MAX;
    if (disk_is_stuck()) {
        return;
    }
    if (bytes > disk_sectors_most(before_ns) * SECTOR_BYTES ||
        bytes < disk_sectors_least(0) * SECTOR_BYTES) {
        sim_fail("client %u: the export has %llu bytes", client->number, (unsigned long long)bytes);
    }
    SIM_CHECK((client->export_flags & 1) != 0);
    bool has_cache = (plan.disk_features & DISK_F_FLUSH) != 0;
    SIM_CHECK(!has_cache || (client->export_flags & CAN_FLUSH) != 0);
}

static void begin_work(struct client *client) {
    SIM_CHECK(client->knows_export);
    client->state = CLIENT_WORKING;
    client->since_ns = world_now_ns();
    client_totals.connections++;
    trace("client %llu: works, mode %llu, context %llu, flags 0x%llx", client->number, client->mode,
          client->has_context, client->export_flags);
}

static bool read_export_name(struct client *client) {
    size_t bytes = client->has_no_zeroes ? EXPORT_BYTES : EXPORT_BYTES + EXPORT_ZEROES;
    const uint8_t *answer = client_have(client, bytes);
    if (answer == NULL) {
        return false;
    }
    take_export(client, answer);
    client_take(client, bytes);
    begin_work(client);
    return true;
}

static void option_failed(struct client *client, uint32_t type) {
    trace("client %llu: option %llu fails: 0x%llx", client->number, client->option, type, 0);
    if (client->option != OPTION_GO && !clients_expected_to_lose()) {
        /* A disk that is out of service has no export, so no contexts either. */
        if (client->option != OPTION_SET_CONTEXT || !disk_has_misbehaved()) {
            sim_fail("client %u: option %u is answered with 0x%x", client->number, client->option,
                     type);
        }
        send_next_option(client);
        return;
    }
    if (!clients_expected_to_lose() && !disk_has_misbehaved()) {
        sim_fail("client %u: there is no export (0x%x)", client->number, type);
    }
    client->requests_left = 0;
    client_leave(client);
}

static bool read_answer(struct client *client) {
    const uint8_t *head = client_have(client, 20);
    if (head == NULL) {
        return false;
    }
    uint32_t type = (uint32_t)number(head + 12, 4);
    uint32_t bytes = (uint32_t)number(head + 16, 4);
    SIM_CHECK(number(head, 8) == MAGIC_ANSWER && number(head + 8, 4) == client->option &&
              bytes <= ANSWER_BYTES_MAX);
    const uint8_t *all = client_have(client, 20 + (size_t)bytes);
    if (all == NULL) {
        return false;
    }
    if (type == ANSWER_INFO && bytes == 12 && number(all + 20, 2) == 0) {
        take_export(client, all + 22);
    }
    if (type == ANSWER_CONTEXT) {
        SIM_CHECK(client->option == OPTION_SET_CONTEXT && bytes == 19);
        client->has_context = true;
    }
    client_take(client, 20 + (size_t)bytes);
    if (type >= UINT32_C(0x80000000)) {
        option_failed(client, type);
        return true;
    }
    if (type != ANSWER_ACK) {
        return true;
    }
    if (client->option == OPTION_STRUCTURED || client->option == OPTION_EXTENDED) {
        client->mode = client->wanted_mode;
    }
    if (client->option == OPTION_GO) {
        begin_work(client);
    } else {
        send_next_option(client);
    }
    return true;
}

bool client_has_chosen(const struct client *client) {
    return client->option == OPTION_GO || client->option == OPTION_EXPORT_NAME;
}

bool client_agree(struct client *client) {
    const uint8_t *greeting;
    uint8_t flags[4] = {0, 0, 0, 1};
    switch (client->state) {
    case CLIENT_CONNECTING:
        client->state = CLIENT_GREETING;
        client->since_ns = world_now_ns();
        return true;
    case CLIENT_GREETING:
        greeting = client_have(client, 18);
        if (greeting == NULL) {
            return false;
        }
        SIM_CHECK(number(greeting, 8) == MAGIC_GREETING &&
                  number(greeting + 8, 8) == MAGIC_OPTION && number(greeting + 16, 2) == 3);
        client_take(client, 18);
        choose_agreement(client);
        flags[3] |= client->has_no_zeroes ? 2 : 0;
        client_send(client, flags, sizeof flags);
        client->state = CLIENT_OPTIONS;
        send_next_option(client);
        return true;
    default:
        return client->option == OPTION_EXPORT_NAME ? read_export_name(client)
                                                    : read_answer(client);
    }
}

/* --- Requests ----------------------------------------------------------------------------------
 */

void client_send_request(struct client *client, unsigned command, unsigned flags, uint64_t cookie,
                         uint64_t offset, uint64_t length) {
    uint8_t message[32];
    uint8_t *at = message;
    bool is_extended = client->mode == MODE_EXTENDED;
    put(&at, is_extended ? MAGIC_EXTENDED : MAGIC_REQUEST, 4);
    put(&at, flags, 2);
    put(&at, command, 2);
    put(&at, cookie, 8);
    put(&at, offset, 8);
    put(&at, length, is_extended ? 8 : 4);
    client_send(client, message, (size_t)(at - message));
}

void client_send_garbage(struct client *client) {
    uint8_t message[32];
    for (unsigned i = 0; i < sizeof message; i++) {
        message[i] = (uint8_t)(luck() | 1);
    }
    trace("client %llu: sends garbage", client->number, 0, 0, 0);
    client->has_sinned = true;
    client->requests_left -= client->requests_left > 0;
    client_send(client, message, sizeof message);
    client->is_cut = luck_has(300);
}

static struct pending *new_pending(struct client *client, unsigned command) {
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        struct pending *pending = &client->pending[i];
        if (!pending->is_used) {
            *pending = (struct pending){.is_used = true,
                                        .command = command,
                                        .cookie = luck() << 16 | ++client->cookies,
                                        .begun_ns = world_now_ns()};
            client->pending_count++;
            client_totals.requests++;
            return pending;
        }
    }
    sim_fail("client %u: more in flight than it has room for", client->number);
}

static void send_stamps(struct client *client, uint64_t sector, uint32_t sectors,
                        uint32_t content) {
    static uint8_t data[4 * 1024 * 1024];
    size_t bytes = (size_t)sectors * SECTOR_BYTES;
    SIM_CHECK(bytes <= sizeof data);
    for (uint32_t i = 0; i < sectors; i++) {
        model_stamp(data + (size_t)i * SECTOR_BYTES, sector + i, content);
    }
    client_totals.bytes_written += bytes;
    client_send(client, data, bytes);
}

static unsigned choose_command(const struct client *client) {
    for (;;) {
        uint64_t dice = luck_below(100);
        unsigned can = client->export_flags;
        if (dice < 38) {
            return NBD_READ;
        }
        if (dice < 76) {
            return NBD_WRITE;
        }
        if (dice < 83 && (can & CAN_FLUSH) != 0) {
            return NBD_FLUSH;
        }
        if (dice >= 83 && dice < 87 && (can & CAN_TRIM) != 0) {
            return NBD_TRIM;
        }
        if (dice >= 87 && dice < 92 && (can & CAN_ZEROES) != 0) {
            return NBD_ZEROES;
        }
        if (dice >= 92 && dice < 97 && client->has_context) {
            return NBD_STATUS;
        }
        if (dice >= 97 && (can & CAN_CACHE) != 0) {
            return NBD_CACHE;
        }
    }
}

static unsigned choose_flags(const struct client *client, unsigned command) {
    unsigned flags = 0;
    unsigned can = client->export_flags;
    bool is_change = command == NBD_WRITE || command == NBD_TRIM || command == NBD_ZEROES;
    if (is_change && (can & CAN_FUA) != 0 && luck_has(150)) {
        flags |= FLAG_FUA;
    }
    if (command == NBD_WRITE && client->mode == MODE_EXTENDED) {
        flags |= FLAG_PAYLOAD;
    }
    if (command == NBD_READ && (can & CAN_DF) != 0 && luck_has(150)) {
        flags |= FLAG_DF;
    }
    if (command == NBD_ZEROES) {
        flags |= luck_has(400) ? FLAG_NO_HOLE : 0;
        flags |= (can & CAN_FAST_ZERO) != 0 && luck_has(100) ? FLAG_FAST_ZERO : 0;
    }
    if (command == NBD_STATUS) {
        flags |= luck_has(300) ? FLAG_REQ_ONE : 0;
    }
    return flags;
}

/* Some places are asked for again and again. */
static void choose_range(const struct client *client, struct pending *pending) {
    uint32_t block = plan.block_bytes / SECTOR_BYTES;
    uint64_t blocks = client->sectors / block;
    uint64_t most = plan.request_bytes_max / plan.block_bytes;
    most = most > 0 ? most : 1;
    bool is_free = pending->command == NBD_TRIM || pending->command == NBD_ZEROES ||
                   pending->command == NBD_STATUS;
    if (is_free && luck_has(200)) {
        most = blocks;
    }
    uint64_t length = luck_spread(1, most);
    length = length < blocks ? length : blocks;
    uint64_t places = blocks - length + 1;
    uint64_t at = luck_has(500) ? luck_below(places) : luck_below(places < 32 ? places : 32);
    pending->sector = client->first + at * block;
    pending->sectors = (uint32_t)(length * block);
}

static void ask_nonsense(struct client *client) {
    static const unsigned commands[] = {NBD_READ, NBD_WRITE, NBD_TRIM, NBD_ZEROES, NBD_CACHE, 9};
    unsigned command = commands[luck_below(ARRAY_COUNT(commands))];
    struct pending *pending = new_pending(client, command);
    uint64_t offset = client->first * SECTOR_BYTES;
    uint32_t sectors = plan.block_bytes / SECTOR_BYTES;
    unsigned flags = command == NBD_WRITE && client->mode == MODE_EXTENDED ? FLAG_PAYLOAD : 0;
    uint64_t length = (uint64_t)sectors * SECTOR_BYTES;
    pending->must_fail = true;
    switch (luck_below(4)) {
    case 0:
        offset = plan.sectors * SECTOR_BYTES - (luck_has(500) ? 0 : plan.block_bytes / 2);
        break;
    case 1:
        offset += 1 + luck_below(plan.block_bytes - 1);
        break;
    case 2:
        flags |= 1u << 9;
        break;
    default:
        length = 0;
        sectors = 0;
        break;
    }
    if (command == NBD_WRITE) {
        pending->request = model_request_begin(MODEL_WRITE, client->first, sectors, false, true);
    }
    trace("client %llu: asks nonsense: command %llu, %llu bytes at %llu", client->number, command,
          length, offset);
    client_send_request(client, command, flags, pending->cookie, offset, length);
    if (command == NBD_WRITE) {
        send_stamps(client, client->first, sectors, pending->request);
    }
}

void client_ask(struct client *client) {
    static const enum model_kind kinds[] = {
        [NBD_WRITE] = MODEL_WRITE, [NBD_TRIM] = MODEL_TRIM, [NBD_ZEROES] = MODEL_ZEROES};
    if (luck_has(plan.nonsense)) {
        ask_nonsense(client);
        return;
    }
    unsigned command = choose_command(client);
    struct pending *pending = new_pending(client, command);
    unsigned flags = choose_flags(client, command);
    pending->flags = flags;
    if (command != NBD_FLUSH) {
        choose_range(client, pending);
    }
    if (command == NBD_WRITE || command == NBD_TRIM || command == NBD_ZEROES) {
        pending->request = model_request_begin(kinds[command], pending->sector, pending->sectors,
                                               (flags & FLAG_FUA) != 0, false);
    }
    trace("client %llu: asks command %llu, %llu sectors at %llu", client->number,
          command | flags << 8, pending->sectors, pending->sector);
    client_send_request(client, command, flags, pending->cookie, pending->sector * SECTOR_BYTES,
                        (uint64_t)pending->sectors * SECTOR_BYTES);
    if (command == NBD_WRITE) {
        send_stamps(client, pending->sector, pending->sectors, pending->request);
    }
}

/* --- Replies -----------------------------------------------------------------------------------
 */

static struct pending *find(struct client *client, uint64_t cookie) {
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        if (client->pending[i].is_used && client->pending[i].cookie == cookie) {
            return &client->pending[i];
        }
    }
    sim_fail("client %u: an answer to 0x%016llx, which it did not ask or has got already",
             client->number, (unsigned long long)cookie);
}

static bool may_fail(const struct pending *pending, uint32_t error) {
    /* That it has grown may not have been told, or not yet. */
    bool is_told_badly = plan.interrupt_lost != 0 || plan.interrupt_late != 0;
    uint64_t since_ns =
        is_told_badly || pending->begun_ns < NS_PER_MS ? 0 : pending->begun_ns - NS_PER_MS;
    bool is_shrunk = pending->sector + pending->sectors > disk_sectors_least(since_ns);
    bool is_slow_zero = (pending->flags & FLAG_FAST_ZERO) != 0 && error == 95;
    return pending->must_fail || disk_has_misbehaved() || clients_expected_to_lose() || is_shrunk ||
           is_slow_zero;
}

static void check_error(const struct client *client, const struct pending *pending,
                        uint32_t error) {
    static const uint32_t known[] = {1, 5, 12, 22, 28, 75, 95, 108};
    bool is_known = error == 0;
    for (unsigned i = 0; i < ARRAY_COUNT(known); i++) {
        is_known |= known[i] == error;
    }
    SIM_CHECK(is_known);
    if (error == 0 && pending->must_fail) {
        sim_fail("client %u: command %u made no sense and was done", client->number,
                 pending->command);
    }
    if (error != 0 && !may_fail(pending, error)) {
        sim_fail("client %u: command %u of %u sectors at %llu fails with %u, and nothing was wrong",
                 client->number, pending->command, pending->sectors,
                 (unsigned long long)pending->sector, error);
    }
}

static void finish(struct client *client, struct pending *pending, uint32_t error) {
    error = error != 0 ? error : pending->error;
    trace("client %llu: command %llu at %llu is answered: %llu", client->number, pending->command,
          pending->sector, error);
    check_error(client, pending, error);
    client_totals.answers++;
    uint64_t waited_ns = world_now_ns() - pending->begun_ns;
    if (waited_ns > client_totals.longest_ns) {
        client_totals.longest_ns = waited_ns;
    }
    client_totals.errors += error != 0;
    if (error == 0 && pending->command == NBD_READ) {
        SIM_CHECK(pending->covered == pending->sectors);
    }
    if (error == 0 && pending->command == NBD_STATUS) {
        SIM_CHECK(pending->was_told);
    }
    if (pending->request != 0) {
        model_request_answered(pending->request, error != 0);
    }
    if (error == 0 && pending->command == NBD_FLUSH) {
        model_flush_answered(pending->begun_ns);
    }
    pending->is_used = false;
    client->pending_count--;
}

static void take_content(struct pending *pending, uint64_t offset, uint64_t length,
                         const uint8_t *data) {
    SIM_CHECK(pending->command == NBD_READ && offset % SECTOR_BYTES == 0 &&
              length % SECTOR_BYTES == 0 && length > 0);
    uint64_t sector = offset / SECTOR_BYTES;
    uint64_t sectors = length / SECTOR_BYTES;
    /* In order, as the server sends them; the protocol would not ask for it. */
    SIM_CHECK(sector == pending->sector + pending->covered &&
              sectors <= pending->sectors - pending->covered);
    model_check_read(sector, (uint32_t)sectors, data, pending->begun_ns);
    pending->covered += (uint32_t)sectors;
    client_totals.bytes_read += length;
}

static bool read_simple(struct client *client) {
    const uint8_t *head = client_have(client, 16);
    if (head == NULL) {
        return false;
    }
    SIM_CHECK(number(head, 4) == MAGIC_SIMPLE);
    uint32_t error = (uint32_t)number(head + 4, 4);
    struct pending *pending = find(client, number(head + 8, 8));
    size_t bytes = 0;
    if (pending->command == NBD_READ && error == 0) {
        SIM_CHECK(!pending->must_fail);
        bytes = (size_t)pending->sectors * SECTOR_BYTES;
        head = client_have(client, 16 + bytes);
        if (head == NULL) {
            return false;
        }
        take_content(pending, pending->sector * SECTOR_BYTES, bytes, head + 16);
    }
    finish(client, pending, error);
    client_take(client, 16 + bytes);
    return true;
}

static void take_status(const struct client *client, struct pending *pending, const uint8_t *data,
                        uint64_t bytes) {
    bool is_extended = client->mode == MODE_EXTENDED;
    unsigned each = is_extended ? 16 : 8;
    unsigned head = is_extended ? 8 : 4;
    SIM_CHECK(pending->command == NBD_STATUS && bytes >= head + each && (bytes - head) % each == 0);
    uint64_t sector = pending->sector;
    uint64_t end = pending->sector + pending->sectors;
    for (uint64_t at = head; at < bytes; at += each) {
        uint64_t run = number(data + at, each / 2);
        uint64_t state = number(data + at + each / 2, each / 2);
        SIM_CHECK(run > 0 && run % SECTOR_BYTES == 0 && state <= 3 &&
                  run / SECTOR_BYTES <= end - sector);
        if ((state & STATE_ZERO) != 0) {
            model_check_read(sector, (uint32_t)(run / SECTOR_BYTES), NULL, pending->begun_ns);
        }
        sector += run / SECTOR_BYTES;
    }
    pending->was_told = true;
}

static void take_error(const struct client *client, struct pending *pending, unsigned type,
                       const uint8_t *data, uint64_t bytes) {
    SIM_CHECK(bytes >= 6);
    uint32_t error = (uint32_t)number(data, 4);
    uint64_t text = number(data + 4, 2);
    SIM_CHECK(error != 0 && bytes == 6 + text + (type == CHUNK_ERROR_OFFSET ? 8u : 0u));
    check_error(client, pending, error);
    pending->error = pending->error != 0 ? pending->error : error;
}

static void take_chunk(const struct client *client, struct pending *pending, unsigned type,
                       const uint8_t *data, uint64_t bytes) {
    switch (type) {
    case CHUNK_NONE:
        SIM_CHECK(bytes == 0);
        break;
    case CHUNK_DATA:
        SIM_CHECK(bytes > 8);
        if (pending->error == 0 || (pending->flags & FLAG_DF) == 0) {
            take_content(pending, number(data, 8), bytes - 8, data + 8);
        }
        break;
    case CHUNK_HOLE:
        SIM_CHECK(bytes == 12);
        take_content(pending, number(data, 8), number(data + 8, 4), NULL);
        break;
    case CHUNK_STATUS:
    case CHUNK_STATUS_EXT:
        SIM_CHECK((type == CHUNK_STATUS_EXT) == (client->mode == MODE_EXTENDED) && bytes >= 4 &&
                  number(data, 4) == 1);
        take_status(client, pending, data, bytes);
        break;
    case CHUNK_ERROR:
    case CHUNK_ERROR_OFFSET:
        take_error(client, pending, type, data, bytes);
        break;
    default:
        sim_fail("client %u: a chunk of type %u", client->number, type);
    }
}

/* A chunk of data that must not be fragmented may turn out to be bad behind its header: what comes
 * then is not to be looked at, until the error is told. Only a disk that fails can cause it. */
static bool must_wait_for_error(const struct pending *pending, unsigned type, unsigned flags) {
    return type == CHUNK_DATA && (pending->flags & FLAG_DF) != 0 && (flags & CHUNK_DONE) == 0;
}

static bool read_chunk(struct client *client) {
    bool is_extended = client->mode == MODE_EXTENDED;
    size_t head_bytes = is_extended ? 32 : 20;
    const uint8_t *head = client_have(client, head_bytes);
    if (head == NULL) {
        return false;
    }
    SIM_CHECK(number(head, 4) == (is_extended ? MAGIC_CHUNK : MAGIC_STRUCTURED));
    unsigned flags = (unsigned)number(head + 4, 2);
    unsigned type = (unsigned)number(head + 6, 2);
    struct pending *pending = find(client, number(head + 8, 8));
    uint64_t bytes = is_extended ? number(head + 24, 8) : number(head + 16, 4);
    SIM_CHECK(bytes <= 64 * 1024 * 1024);
    const uint8_t *all = client_have(client, head_bytes + bytes);
    if (all == NULL) {
        return false;
    }
    if (must_wait_for_error(pending, type, flags)) {
        /* The last chunk, which tells, follows at once: both together. */
        const uint8_t *both = client_have(client, head_bytes + bytes + head_bytes);
        if (both == NULL) {
            return false;
        }
        unsigned next = (unsigned)number(both + head_bytes + bytes + 6, 2);
        bool is_same = number(both + head_bytes + bytes + 8, 8) == pending->cookie;
        pending->error = is_same && next >= CHUNK_ERROR ? 5 : 0;
    }
    take_chunk(client, pending, type, all + head_bytes, bytes);
    client_take(client, head_bytes + bytes);
    if ((flags & CHUNK_DONE) != 0) {
        finish(client, pending, 0);
    }
    return true;
}

bool client_read_reply(struct client *client) {
    return client->mode == MODE_SIMPLE ? read_simple(client) : read_chunk(client);
}
