/* See disk.h.
 *
 *   made available ──fetched──▶ on its way ──done (data moved)──▶ answered
 *
 * Each arrow takes as long as luck has it, each request on its own unless the plan wants order. The
 * device may touch a request's memory from fetching to answering, and does. */
#include "tests/sim/disk.h"

#include <stdlib.h>
#include <string.h>

#include "boot/arch.h"
#include "tests/sim/device.h"
#include "tests/sim/director.h"
#include "tests/sim/model.h"

enum {
    TYPE_IN = 0,
    TYPE_OUT = 1,
    TYPE_FLUSH = 4,
    TYPE_GET_ID = 8,
    TYPE_DISCARD = 11,
    TYPE_WRITE_ZEROES = 13,
    STATUS_OK = 0,
    STATUS_IOERR = 1,
    STATUS_UNSUPP = 2,
    HEADER_BYTES = 16,
    RANGE_BYTES = 16,
    ID_BYTES = 20,
    /* VIRTIO 1.3, 5.2.4. */
    CONFIG_CAPACITY = 0,
    CONFIG_SIZE_MAX = 8,
    CONFIG_SEG_MAX = 12,
    CONFIG_BLK_SIZE = 20,
    CONFIG_WRITEBACK = 32,
    CONFIG_DISCARD_MAX = 36,
    CONFIG_DISCARD_SEGS = 40,
    CONFIG_ZEROES_MAX = 48,
    CONFIG_ZEROES_SEGS = 52,
    CONFIG_MAY_UNMAP = 56,
    REQUESTS_MAX = RING_MAX,
    SIZES_MAX = 256,
};

enum disk_fault {
    FAULT_NONE,
    FAULT_IO_ERROR,
    FAULT_LATE,
    FAULT_LOST_UNDONE,
    FAULT_LOST_DONE,
    FAULT_TWICE,
    FAULT_WRONG_ID,
    FAULT_TOO_LONG,
    FAULT_TOO_SHORT,
    FAULT_UNSAID,
    FAULT_ODD_STATUS,
};

struct disk_request {
    struct disk_request *next; /* of those in flight */
    struct chain chain;
    uint64_t epoch;
    uint32_t type;
    uint64_t sector;
    uint64_t sectors;
    uint32_t data_bytes;
    uint64_t fetched_ns;
    enum disk_fault fault;
    uint32_t batch;
    uint8_t status;
    bool is_done;
};

static struct device disk = {.name = "simulated disk", .id = VIRTIO_ID_BLOCK, .queues = 1};
static struct disk_request *in_flight;
static unsigned in_flight_count;
static bool is_looking; /* a look at the ring is under way or due */
static uint64_t last_answer_ns;
static bool has_misbehaved;
static bool is_writeback;
/* What its capacity was, and from when on. */
static struct {
    uint64_t at_ns;
    uint64_t sectors;
} sizes[SIZES_MAX];
static unsigned size_count;

static uint64_t capacity(void) {
    return sizes[size_count - 1].sectors;
}

/* --- Doing -------------------------------------------------------------------------------------
 */

static bool changes(const struct disk_request *request) {
    return request->type == TYPE_OUT || request->type == TYPE_DISCARD ||
           request->type == TYPE_WRITE_ZEROES;
}

static void write_sector(const struct disk_request *request, uint64_t i) {
    uint8_t bytes[SECTOR_BYTES];
    uint32_t got = chain_copy_out(&request->chain, HEADER_BYTES + (uint32_t)(i * SECTOR_BYTES),
                                  bytes, SECTOR_BYTES);
    SIM_CHECK(got == SECTOR_BYTES);
    model_disk_writes(request->batch, request->sector + i, bytes);
}

static void clear_sector(const struct disk_request *request, uint64_t i) {
    static const uint64_t discarded[] = {MODEL_ZERO, MODEL_NEVER, MODEL_RUBBISH};
    bool is_discard = request->type == TYPE_DISCARD;
    model_disk_clears(request->batch, is_discard ? MODEL_TRIM : MODEL_ZEROES, request->sector + i,
                      1, is_discard ? discarded[plan.discard_does] : MODEL_ZERO);
}

/* Some of its sectors, or all: `permille` of them. */
static void change(const struct disk_request *request, unsigned permille) {
    for (uint64_t i = 0; i < request->sectors; i++) {
        if (permille < 1000 && !luck_has(permille)) {
            continue;
        }
        if (request->type == TYPE_OUT) {
            write_sector(request, i);
        } else {
            clear_sector(request, i);
        }
    }
}

static void read_sectors(const struct disk_request *request) {
    uint8_t bytes[SECTOR_BYTES];
    for (uint64_t i = 0; i < request->sectors; i++) {
        model_stamp(bytes, request->sector + i, model_disk_content(request->sector + i));
        (void)chain_copy_in(&request->chain, (uint32_t)(i * SECTOR_BYTES), bytes, SECTOR_BYTES);
    }
}

/* A device may use the buffers of a read as it likes until it has answered. */
static void scribble(const struct disk_request *request) {
    uint8_t bytes[SECTOR_BYTES];
    memset(bytes, 0xee, sizeof bytes);
    for (uint32_t at = 0; at < request->data_bytes; at += SECTOR_BYTES) {
        uint32_t left = request->data_bytes - at;
        (void)chain_copy_in(&request->chain, at, bytes, left < SECTOR_BYTES ? left : SECTOR_BYTES);
    }
}

static void do_it(struct disk_request *request) {
    static const uint8_t id[ID_BYTES] = "simulated";
    request->is_done = true;
    if (request->status != STATUS_OK) {
        if (request->status == STATUS_IOERR && changes(request)) {
            change(request, (unsigned)luck_below(1001)); /* some of it may be on the disk */
        }
        return;
    }
    switch (request->type) {
    case TYPE_IN:
        read_sectors(request);
        break;
    case TYPE_FLUSH:
        break; /* when it is answered */
    case TYPE_GET_ID:
        (void)chain_copy_in(&request->chain, 0, id, ID_BYTES);
        break;
    default:
        change(request, 1000);
        break;
    }
}

/* --- Answering ---------------------------------------------------------------------------------
 */

static void forget(struct disk_request *request) {
    struct disk_request **link = &in_flight;
    while (*link != request) {
        link = &(*link)->next;
    }
    *link = request->next;
    in_flight_count--;
    free(request->chain.pieces);
    free(request);
}

static void misbehave(const char *what, const struct disk_request *request) {
    has_misbehaved = true;
    trace(what, request->chain.head, request->type, request->sector, request->sectors);
}

/* Something else than the plain answer; false when that is to follow. */
static bool answer_wrongly(struct disk_request *request, uint32_t written) {
    switch (request->fault) {
    case FAULT_LOST_UNDONE:
    case FAULT_LOST_DONE:
        misbehave("disk: chain %llu, type %llu at %llu (%llu) is never answered", request);
        return true; /* stays in flight */
    case FAULT_WRONG_ID:
        misbehave("disk: for chain %llu, type %llu at %llu (%llu), another is answered", request);
        ring_give(&disk, 0, (uint32_t)luck_below(2 * (uint64_t)disk.rings[0].size), written);
        return true;
    case FAULT_TOO_LONG:
        misbehave("disk: chain %llu, type %llu at %llu (%llu) is answered too long", request);
        ring_give(&disk, 0, request->chain.head,
                  request->chain.in_bytes + 1 + (uint32_t)luck_below(4096));
        return true;
    case FAULT_UNSAID:
        misbehave("disk: chain %llu, type %llu at %llu (%llu) gets no status", request);
        ring_give(&disk, 0, request->chain.head, written);
        return true;
    default:
        return false;
    }
}

static void answer(void *arg, uint64_t epoch) {
    struct disk_request *request = arg;
    if (epoch != disk.epoch) {
        return; /* it went with the reset */
    }
    bool is_undone = request->fault == FAULT_LOST_UNDONE || request->fault == FAULT_WRONG_ID ||
                     request->fault == FAULT_UNSAID;
    if (!request->is_done && !is_undone) {
        do_it(request);
    }
    uint32_t written = request->chain.in_bytes;
    if (answer_wrongly(request, written)) {
        return;
    }
    if (request->type == TYPE_FLUSH && request->status == STATUS_OK) {
        model_disk_flushes(request->fetched_ns);
    }
    uint8_t status = request->status;
    if (request->fault == FAULT_ODD_STATUS) {
        status = (uint8_t)(3 + luck_below(252));
        misbehave("disk: chain %llu, type %llu at %llu (%llu) gets an odd status", request);
    }
    if (request->fault == FAULT_TOO_SHORT && request->type == TYPE_IN) {
        misbehave("disk: chain %llu, type %llu at %llu (%llu) is answered too short", request);
        scribble(request);
        written = (uint32_t)luck_below(request->data_bytes);
    }
    if (request->batch != 0) {
        model_batch_complete(request->batch);
        if (!is_writeback) {
            model_disk_keeps(request->batch, request->sector, request->sectors);
        }
    }
    (void)chain_copy_in(&request->chain, request->chain.in_bytes - 1, &status, 1);
    trace("disk: answers chain %llu, type %llu at %llu: %llu", request->chain.head, request->type,
          request->sector, status);
    ring_give(&disk, 0, request->chain.head, written);
    if (request->fault == FAULT_TWICE) {
        misbehave("disk: chain %llu, type %llu at %llu (%llu) is answered twice", request);
        ring_give(&disk, 0, request->chain.head, written);
    }
    forget(request);
}

static void do_early(void *arg, uint64_t epoch) {
    struct disk_request *request = arg;
    if (epoch != disk.epoch) {
        return;
    }
    if (request->fault != FAULT_LOST_UNDONE && request->fault != FAULT_WRONG_ID &&
        request->fault != FAULT_UNSAID) {
        do_it(request);
    }
}

/* --- Fetching ----------------------------------------------------------------------------------
 */

static enum disk_fault choose_fault(void) {
    const struct disk_faults *faults = &plan.disk_faults;
    if (fault_strikes(faults->io_error)) {
        return FAULT_IO_ERROR;
    }
    if (fault_strikes(faults->late)) {
        return FAULT_LATE;
    }
    if (fault_strikes(faults->lost)) {
        return luck_has(500) ? FAULT_LOST_DONE : FAULT_LOST_UNDONE;
    }
    if (fault_strikes(faults->twice)) {
        return FAULT_TWICE;
    }
    if (fault_strikes(faults->wrong_id)) {
        return FAULT_WRONG_ID;
    }
    if (fault_strikes(faults->wrong_bytes)) {
        return luck_has(500) ? FAULT_TOO_LONG : FAULT_TOO_SHORT;
    }
    if (fault_strikes(faults->unsaid)) {
        return FAULT_UNSAID;
    }
    return fault_strikes(faults->odd_status) ? FAULT_ODD_STATUS : FAULT_NONE;
}

/* The driver keeps to what was announced (5.2.6.1). */
static void check_limits(const struct disk_request *request) {
    const struct chain *chain = &request->chain;
    bool is_read = request->type == TYPE_IN;
    unsigned segments = is_read ? chain->in_count - 1 : chain->out_count - 1;
    if (request->type != TYPE_IN && request->type != TYPE_OUT) {
        return;
    }
    const struct piece *pieces = chain->pieces + (is_read ? chain->out_count : 1);
    unsigned most = (disk.accepted & DISK_F_SEG_MAX) != 0 ? plan.seg_max : 1;
    SIM_CHECK(segments <= most && request->data_bytes > 0);
    SIM_CHECK(request->sector * SECTOR_BYTES % plan.block_bytes == 0 &&
              request->data_bytes % plan.block_bytes == 0);
    for (unsigned i = 0; i < segments; i++) {
        SIM_CHECK((disk.accepted & DISK_F_SIZE_MAX) == 0 || pieces[i].length <= plan.size_max);
    }
}

static void read_range(struct disk_request *request) {
    uint8_t range[RANGE_BYTES];
    bool is_discard = request->type == TYPE_DISCARD;
    SIM_CHECK((disk.accepted & (is_discard ? DISK_F_DISCARD : DISK_F_WRITE_ZEROES)) != 0);
    SIM_CHECK(request->data_bytes == RANGE_BYTES); /* one: max_discard_seg is 1 */
    (void)chain_copy_out(&request->chain, HEADER_BYTES, range, sizeof range);
    uint32_t sectors;
    memcpy(&request->sector, range, 8);
    memcpy(&sectors, range + 8, 4);
    request->sectors = sectors;
    SIM_CHECK(sectors > 0 &&
              sectors <= (is_discard ? plan.discard_sectors_max : plan.zeroes_sectors_max));
}

static void read_header(struct disk_request *request) {
    uint8_t header[HEADER_BYTES];
    const struct chain *chain = &request->chain;
    SIM_CHECK(chain->out_count >= 1 && chain->in_count >= 1 &&
              chain_copy_out(chain, 0, header, sizeof header) == sizeof header);
    memcpy(&request->type, header, 4);
    memcpy(&request->sector, header + 8, 8);
    bool is_read = request->type == TYPE_IN || request->type == TYPE_GET_ID;
    request->data_bytes = is_read ? chain->in_bytes - 1 : chain->out_bytes - HEADER_BYTES;
    request->sectors = request->data_bytes / SECTOR_BYTES;
    switch (request->type) {
    case TYPE_IN:
    case TYPE_OUT:
        check_limits(request);
        break;
    case TYPE_FLUSH:
        SIM_CHECK((disk.accepted & DISK_F_FLUSH) != 0 && request->data_bytes == 0);
        break;
    case TYPE_GET_ID:
        SIM_CHECK(request->data_bytes == ID_BYTES);
        break;
    case TYPE_DISCARD:
    case TYPE_WRITE_ZEROES:
        read_range(request);
        break;
    default:
        sim_fail("disk: request of type %u", (unsigned)request->type);
    }
}

static void schedule(struct disk_request *request) {
    uint64_t take_ns = luck_between(plan.disk_ns_min, plan.disk_ns_max);
    if (request->fault == FAULT_LATE) {
        has_misbehaved = true;
        take_ns = luck_spread(NS_PER_MS, plan.timeout_s * NS_PER_S * 5 / 4);
    }
    uint64_t at_ns = world_now_ns() + take_ns;
    if (plan.disk_is_in_order && request->fault != FAULT_LATE) {
        at_ns = at_ns > last_answer_ns ? at_ns : last_answer_ns;
        last_answer_ns = at_ns;
    }
    uint64_t left_ns = at_ns - world_now_ns();
    if (request->type == TYPE_OUT && luck_has(500)) {
        world_after(luck_below(left_ns + 1), do_early, request, disk.epoch);
    }
    world_after(left_ns, answer, request, disk.epoch);
}

static void begin(struct disk_request *request) {
    read_header(request);
    request->fetched_ns = world_now_ns();
    request->fault = choose_fault();
    request->batch = changes(request) ? model_batch() : 0;
    uint64_t end = request->sector + request->sectors;
    bool is_past_end = (request->type == TYPE_IN || changes(request)) &&
                       (end < request->sector || end > capacity());
    if (is_past_end) {
        /* The driver may not know yet that the disk has shrunk. */
        SIM_CHECK(size_count > 1 && end <= disk_sectors_most(0));
        request->status = STATUS_IOERR;
        request->sectors = 0;
    } else if (request->fault == FAULT_IO_ERROR) {
        has_misbehaved = true;
        request->status = STATUS_IOERR;
    }
    trace("disk: fetches chain %llu, type %llu at %llu (%llu)", request->chain.head, request->type,
          request->sector, request->sectors);
    if (request->type == TYPE_IN && plan.disk_scribbles) {
        scribble(request);
    }
    request->next = in_flight;
    in_flight = request;
    in_flight_count++;
    schedule(request);
}

static void look(void *arg, uint64_t epoch) {
    static struct piece pieces[CHAIN_PIECES_MAX];
    struct chain fetched = {.pieces = pieces};
    (void)arg; /* there is one */
    if (epoch != disk.epoch) {
        return;
    }
    is_looking = false;
    while (device_is_live(&disk)) {
        if (!ring_take(&disk, 0, &fetched)) {
            ring_want_notification(&disk, 0);
            if (!ring_has_more(&disk, 0)) {
                return;
            }
            continue;
        }
        struct disk_request *request = calloc(1, sizeof *request);
        SIM_CHECK(request != NULL);
        request->chain = fetched;
        request->chain.pieces = chain_keep(&fetched);
        begin(request);
        if (fault_strikes(plan.disk_faults.needs_reset)) {
            has_misbehaved = true;
            device_wants_reset(&disk);
        }
        if (plan.disk_polls) {
            /* One at a time, without being told of more. */
            is_looking = true;
            world_after(plan.disk_fetch_ns, look, NULL, disk.epoch);
            return;
        }
    }
}

static void notified(struct device *device, unsigned index) {
    (void)index; /* one queue */
    if (is_looking) {
        return;
    }
    is_looking = true;
    if (plan.disk_polls) {
        ring_want_no_notification(device, 0);
    }
    world_after(plan.disk_fetch_ns, look, NULL, device->epoch);
}

static void started(struct device *device) {
    is_looking = false;
    ring_want_notification(device, 0);
}

/* What it was doing when it was reset is done, done in part, or not. */
static void stopped(struct device *device) {
    (void)device; /* there is one */
    while (in_flight != NULL) {
        struct disk_request *request = in_flight;
        if (!request->is_done && changes(request) && request->status == STATUS_OK &&
            !disk.is_vanished) {
            change(request, luck_has(500) ? 0 : (unsigned)luck_below(1001));
        }
        forget(request);
    }
    is_looking = false;
    if (director_is_serving() && fault_strikes(plan.disk_faults.comes_back_different)) {
        has_misbehaved = true;
        trace("disk: comes back as another one", 0, 0, 0, 0);
        device_config32(&disk, CONFIG_BLK_SIZE, 2 * plan.block_bytes);
        disk.offered ^= DISK_F_FLUSH;
    }
}

static void config_written(struct device *device, size_t offset, uint8_t value) {
    SIM_CHECK(offset == CONFIG_WRITEBACK && (device->accepted & DISK_F_CONFIG_WCE) != 0);
    is_writeback = value != 0;
    device->config[CONFIG_WRITEBACK] = value;
}

/* --- What happens to it ------------------------------------------------------------------------
 */

static void resize_again(void *arg, uint64_t word);

static void finish_resize(void *arg, uint64_t sectors) {
    (void)arg; /* one disk */
    trace("disk: has %llu sectors from now on", sectors, 0, 0, 0);
    sizes[size_count].at_ns = world_now_ns();
    sizes[size_count++].sectors = sectors;
    device_config64(&disk, CONFIG_CAPACITY, sectors);
    disk.is_changing = false;
    device_config_changed(&disk);
    if (luck_has(500)) {
        world_after(luck_spread(100, 20 * NS_PER_US), resize_again, NULL, 0); /* meets the reader */
    }
}

static void resize(void) {
    uint64_t step = luck_below(plan.sectors / 2 + 1);
    uint64_t block_sectors = plan.block_bytes / SECTOR_BYTES;
    uint64_t sectors = (plan.sectors - step) / block_sectors * block_sectors;
    if (sectors == 0 || size_count == SIZES_MAX || disk.is_vanished || disk.is_changing) {
        return;
    }
    /* Other bytes first: who reads now without looking at the generation gets those. */
    device_config32(&disk, CONFIG_CAPACITY, (uint32_t)(sectors ^ UINT32_C(0x5a5a5a5a)));
    disk.is_changing = true;
    world_after(luck_between(20, 1500), finish_resize, NULL, sectors);
}

static void resize_again(void *arg, uint64_t word) {
    (void)arg; /* one disk */
    (void)word;
    resize();
}

static void fate(void *arg, uint64_t word) {
    (void)arg;
    (void)word;
    if (!plan_has_faults()) {
        return;
    }
    if (fault_strikes(plan.disk_faults.resize)) {
        resize();
    }
    if (fault_strikes(plan.disk_faults.vanishes) && !disk.is_vanished) {
        has_misbehaved = true;
        device_vanish(&disk);
    }
    world_after(luck_spread(100 * NS_PER_US, 100 * NS_PER_MS), fate, NULL, 0);
}

void disk_set_up(void) {
    static const struct device_ops ops = {.notified = notified,
                                          .started = started,
                                          .stopped = stopped,
                                          .config_written = config_written};
    disk.ops = &ops;
    disk.offered = plan.disk_features;
    disk.ring_max[0] = plan.disk_ring;
    disk.config_bytes = DEVICE_CONFIG_BYTES;
    disk.slow_reset = plan.disk_faults.slow_reset;
    disk.never_resets = plan.disk_faults.never_resets;
    is_writeback = plan.disk_has_cache;
    device_config64(&disk, CONFIG_CAPACITY, plan.sectors);
    device_config32(&disk, CONFIG_SIZE_MAX, plan.size_max);
    device_config32(&disk, CONFIG_SEG_MAX, plan.seg_max);
    device_config32(&disk, CONFIG_BLK_SIZE, plan.block_bytes);
    disk.config[CONFIG_WRITEBACK] = is_writeback;
    device_config32(&disk, CONFIG_DISCARD_MAX, plan.discard_sectors_max);
    device_config32(&disk, CONFIG_DISCARD_SEGS, 1);
    device_config32(&disk, CONFIG_ZEROES_MAX, plan.zeroes_sectors_max);
    device_config32(&disk, CONFIG_ZEROES_SEGS, 1);
    disk.config[CONFIG_MAY_UNMAP] = 1;
    sizes[0].sectors = plan.sectors;
    size_count = 1;
    model_begin(plan.sectors);
    device_set_up(&disk);
    world_after(10 * NS_PER_MS, fate, NULL, 0);
}

/* --- Questions ---------------------------------------------------------------------------------
 */

uint64_t disk_sectors_least(uint64_t since_ns) {
    uint64_t least = UINT64_MAX;
    for (unsigned i = size_count; i-- > 0;) {
        least = sizes[i].sectors < least ? sizes[i].sectors : least;
        if (sizes[i].at_ns < since_ns) {
            break;
        }
    }
    return least;
}

uint64_t disk_sectors_most(uint64_t since_ns) {
    uint64_t most = 0;
    for (unsigned i = size_count; i-- > 0;) {
        most = sizes[i].sectors > most ? sizes[i].sectors : most;
        if (sizes[i].at_ns < since_ns) {
            break;
        }
    }
    return most;
}

bool disk_had_bytes(uint64_t bytes) {
    for (unsigned i = 0; i < size_count; i++) {
        if (sizes[i].sectors * SECTOR_BYTES == bytes) {
            return true;
        }
    }
    return false;
}

void disk_power_cut(void) {
    for (struct disk_request *request = in_flight; request != NULL; request = request->next) {
        if (!request->is_done && changes(request) && request->status == STATUS_OK) {
            change(request, (unsigned)luck_below(1001));
        }
    }
}

bool disk_has_misbehaved(void) {
    return has_misbehaved;
}

bool disk_is_stuck(void) {
    return disk.is_stuck;
}

bool disk_has_untold_size(void) {
    return disk.has_untold_change;
}

bool disk_is_gone(void) {
    return disk.is_vanished;
}

unsigned disk_in_flight(void) {
    return in_flight_count;
}
