/* Order, splitting, flush and FUA. See queue.h.
 *
 *   submit ──▶ waiting ──parts──▶ device ──▶ all parts done ──▶ complete
 *                                                 │ FUA on a device with a cache
 *                                                 ▼
 *   flush ───────────────────────────────▶ flush waiting ──▶ flush active ──▶ complete
 *
 * Merged requests hang together by `merged`, from the first, whose part it is; each counts one
 * part.
 *
 * A request with FUA joins the flushes only after its own parts are done, so the device flush that
 * serves it was issued after the data it is about. */
#include "blk/queue.h"

#include <errno.h>

#include "boot/arch.h"
#include "core/log.h"
#include "core/panic.h"
#include "core/task/scheduler.h"

/* As long as the largest block, so that a part of one segment can be whole blocks. */
enum { ZEROES_BYTES = BLOCK_LOGICAL_BYTES_MAX };

static const char *const operation_names[BLOCK_OPERATIONS] = {
    "read", "write", "flush", "discard", "write zeroes", "secure erase", "get ID"};

const char *block_operation_name(enum block_operation operation) {
    return operation_names[operation];
}

static void list_append(struct block_request **first, struct block_request **last,
                        struct block_request *request) {
    request->next = NULL;
    if (*first == NULL) {
        *first = request;
    } else {
        (*last)->next = request;
    }
    *last = request;
}

static bool changes_content(const struct block_request *request) {
    return request->operation != BLOCK_READ && request->operation != BLOCK_FLUSH &&
           request->operation != BLOCK_GET_ID;
}

__attribute__((noinline)) static void tell_failure(const struct block_device *device,
                                                   const struct block_request *request) {
    static struct log_rate rate;
    /* A device need not have a serial. */
    if (request->operation != BLOCK_GET_ID && log_rate_allows(&rate)) {
        log_warning("%s: %s of %llu at %llu failed: error %d", device->name,
                    block_operation_name(request->operation), (unsigned long long)request->length,
                    (unsigned long long)request->offset, request->status);
    }
}

static inline __attribute__((always_inline)) void finish_here(struct block_device *device,
                                                              struct block_request *request) {
    struct block_stats *stats = &device->stats;
    uint64_t now_ns = scheduler_now_ns();
    uint64_t took_ns = now_ns > request->submitted_ns ? now_ns - request->submitted_ns : 0;
    stats->operations[request->operation]++;
    stats->bytes[request->operation] += request->length;
    histogram_add(&stats->latency_us[request->operation], took_ns / NS_PER_US);
    if (request->status != 0) {
        stats->errors[request->operation]++;
        tell_failure(device, request);
    }
    ASSERT(stats->in_flight > 0);
    stats->in_flight--;
    if (device->allocation != NULL && changes_content(request)) {
        block_allocation_completed(device->allocation, device, request);
    }
    request->offset -= request->base_bytes;
    request->complete(request);
}

static void finish(struct block_device *device, struct block_request *request) {
    finish_here(device, request);
}

static bool is_gathering;

void block_submit(struct block_device *device, struct block_request *request) {
    request->base_bytes = 0;
    if (device->parent != NULL) {
        /* The length that the table gave it, not the capacity: a disk may have shrunk since. */
        ASSERT(range_fits(request->offset, request->length, device->length_bytes));
        if (request->operation != BLOCK_FLUSH && request->operation != BLOCK_GET_ID) {
            request->base_bytes = device->start_bytes;
            request->offset += device->start_bytes;
        }
        device = device->parent;
    }
    request->status = 0;
    request->issued = 0;
    request->segment_at = 0;
    request->segment_offset = 0;
    request->parts_in_flight = 0;
    request->is_issued = false;
    request->stands_alone = false;
    request->merged = NULL;
    request->submitted_ns = scheduler_now_ns();
    device->stats.in_flight++;
    if (device->stats.in_flight > device->stats.in_flight_peak) {
        device->stats.in_flight_peak = device->stats.in_flight;
    }
    if (request->operation == BLOCK_FLUSH) {
        list_append(&device->flush_waiting, &device->flush_waiting_last, request);
    } else {
        ASSERT(request->length != 0 && (request->operation == BLOCK_GET_ID ||
                                        request->length % device->limits.block_bytes == 0));
        if (device->allocation != NULL && changes_content(request)) {
            block_allocation_submitted(device->allocation, request);
        }
        list_append(&device->waiting_first, &device->waiting_last, request);
    }
    if (!is_gathering) {
        device->wake(device);
    }
}

void block_gather(void) {
    is_gathering = true;
}

/* Those that had work before are woken already, and are served all the same. */
bool block_serve(void) {
    is_gathering = false;
    bool any = false;
    struct block_device *device;
    for (unsigned i = 0; (device = block_device_at(i)) != NULL; i++) {
        if (device->serve != NULL) {
            any |= device->serve(device);
        } else if (block_queue_has_work(device)) {
            device->wake(device);
        }
    }
    return any;
}

void block_set_server(struct event *event) {
    struct block_device *device;
    for (unsigned i = 0; (device = block_device_at(i)) != NULL; i++) {
        if (device->set_server != NULL) {
            device->set_server(device, event);
        }
    }
}

bool block_queue_has_work(const struct block_device *device) {
    return device->waiting_first != NULL || (device->flush_waiting != NULL && !device->is_flushing);
}

static void complete_list(struct block_device *device, struct block_request *list, int error) {
    while (list != NULL) {
        struct block_request *request = list;
        list = request->next;
        if (request->status == 0) {
            request->status = error;
        }
        finish(device, request);
    }
}

/* Without a cache every completed write is durable, and a flush has nothing left to do. */
static bool next_flush(struct block_device *device, struct block_part *part) {
    if (device->flush_waiting == NULL || device->is_flushing) {
        return false;
    }
    device->flush_active = device->flush_waiting;
    device->flush_waiting = NULL;
    if (!device->limits.has_cache) {
        struct block_request *list = device->flush_active;
        device->flush_active = NULL;
        complete_list(device, list, 0);
        return false;
    }
    device->is_flushing = true;
    device->stats.device_flushes++;
    part->request = NULL;
    part->operation = BLOCK_FLUSH;
    part->flags = 0;
    part->offset = 0;
    part->length = 0;
    part->segment_count = 0;
    return true;
}

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Takes from the request's segments until a limit is reached. The sum must be whole blocks, so what
 * hangs over is given back at the end: the last segments shrink. */
static void cut_segments(const struct block_limits *limits, struct block_request *request,
                         struct block_part *part) {
    if (request->segment_count == 1 && request->issued == 0 &&
        request->segments[0].length <= limits->segment_bytes_max) {
        part->segments[0] = request->segments[0]; /* all of it, and most are so */
        part->segment_count = 1;
        part->length = request->length;
        request->segment_at = 1;
        return;
    }
    unsigned count = 0;
    uint64_t length = 0;
    unsigned at = request->segment_at;
    uint32_t within = request->segment_offset;
    unsigned segments_max = (unsigned)least(limits->segments_max, BLOCK_SEGMENTS_MAX);
    while (at < request->segment_count && count < segments_max) {
        const struct segment *from = &request->segments[at];
        uint32_t take = (uint32_t)least(from->length - within, limits->segment_bytes_max);
        part->segments[count++] = (struct segment){(char *)from->data + within, take};
        length += take;
        within += take;
        if (within == from->length) {
            at++;
            within = 0;
        }
    }
    uint64_t over = length % limits->block_bytes;
    length -= over;
    while (over > 0) {
        struct segment *last = &part->segments[count - 1];
        uint32_t cut = (uint32_t)least(over, last->length);
        last->length -= cut;
        over -= cut;
        if (within < cut) {
            ASSERT(at > 0 && within == 0);
            at--;
            within = request->segments[at].length;
        }
        within -= cut;
        if (last->length == 0) {
            count--;
        }
    }
    request->segment_at = at;
    request->segment_offset = within;
    part->segment_count = count;
    part->length = length;
}

/* For a device that cannot write zeroes by itself: as many of these pages as fit. */
static void put_zeroes(const struct block_limits *limits, uint64_t most, struct block_part *part) {
    static uint8_t zeroes[ZEROES_BYTES]; /* never written; not const, so that the image lacks it */
    uint32_t segment_bytes =
        (uint32_t)align_down(least(limits->segment_bytes_max, ZEROES_BYTES), limits->block_bytes);
    unsigned segments_max = (unsigned)least(limits->segments_max, BLOCK_SEGMENTS_MAX);
    part->operation = BLOCK_WRITE;
    part->length = 0;
    while (part->length < most && part->segment_count < segments_max) {
        uint32_t take = (uint32_t)least(most - part->length, segment_bytes);
        part->segments[part->segment_count++] = (struct segment){zeroes, take};
        part->length += take;
    }
}

/* A piece that does not end the request ends where the device would like the next one to begin. */
static uint64_t cut_range(uint64_t offset, uint64_t rest, uint64_t bytes_max, uint32_t align) {
    if (rest <= bytes_max) {
        return rest;
    }
    uint64_t over = align != 0 ? (offset + bytes_max) % align : 0;
    return over < bytes_max ? bytes_max - over : bytes_max;
}

static void cut_other(const struct block_limits *limits, const struct block_request *request,
                      struct block_part *part, uint64_t rest) {
    switch (request->operation) {
    case BLOCK_DISCARD:
        part->length =
            cut_range(part->offset, rest, limits->discard_bytes_max, limits->discard_align_bytes);
        break;
    case BLOCK_SECURE_ERASE:
        part->length =
            cut_range(part->offset, rest, limits->erase_bytes_max, limits->erase_align_bytes);
        break;
    case BLOCK_WRITE_ZEROES:
        if (limits->zeroes_bytes_max != 0) {
            part->length = least(rest, limits->zeroes_bytes_max);
        } else {
            put_zeroes(limits, rest, part);
        }
        break;
    default:
        ASSERT(request->operation == BLOCK_GET_ID);
        part->segments[part->segment_count++] = request->segments[0];
        part->length = rest;
        break;
    }
}

/* Takes a request out of the line that can go no further: it ends when its parts have. */
static void give_up(struct block_device *device, struct block_request *request, int error) {
    request->is_issued = true;
    request->status = request->status != 0 ? request->status : error;
    if (request->parts_in_flight == 0) {
        finish(device, request);
    }
}

/* The first of the line that still lies on the disk, which may have shrunk since it was checked.
 * The sum was compared with a capacity then: it fits. */
static struct block_request *first_on_disk(struct block_device *device) {
    struct block_request *request;
    while ((request = device->waiting_first) != NULL &&
           request->offset + request->length > device->capacity_bytes &&
           request->operation != BLOCK_GET_ID) {
        device->waiting_first = request->next;
        give_up(device, request, -ERANGE);
    }
    return request;
}

static bool can_merge(const struct block_device *device, const struct block_part *part,
                      const struct block_request *next) {
    const struct block_limits *limits = &device->limits;
    if (next->operation != part->operation || next->stands_alone || next->issued != 0 ||
        next->length > BLOCK_MERGE_BYTES_MAX - part->length ||
        next->offset + next->length > device->capacity_bytes ||
        part->segment_count + next->segment_count >
            least(limits->segments_max, BLOCK_SEGMENTS_MAX)) {
        return false;
    }
    for (unsigned i = 0; i < next->segment_count; i++) {
        if (next->segments[i].length > limits->segment_bytes_max) {
            return false;
        }
    }
    return true;
}

/* Lets requests join `part`, the whole of one request, as long as the next in line begins where it
 * ends. */
__attribute__((noinline)) static void merge_followers(struct block_device *device,
                                                      struct block_part *part) {
    struct block_request *last = part->request;
    struct block_request *next;
    if ((last->operation != BLOCK_READ && last->operation != BLOCK_WRITE) || last->stands_alone ||
        part->length != last->length || part->length >= BLOCK_MERGE_BYTES_MAX) {
        return;
    }
    while ((next = device->waiting_first) != NULL && next->offset == part->offset + part->length &&
           can_merge(device, part, next)) {
        device->waiting_first = next->next;
        for (unsigned i = 0; i < next->segment_count; i++) {
            part->segments[part->segment_count++] = next->segments[i];
        }
        part->length += next->length;
        next->issued = next->length;
        next->is_issued = true;
        next->parts_in_flight = 1;
        last->merged = next;
        last = next;
        device->stats.merges++;
    }
}

bool block_queue_next(struct block_device *device, struct block_part *part) {
    if (next_flush(device, part)) {
        return true;
    }
    struct block_request *request = first_on_disk(device);
    if (request == NULL) {
        return false;
    }
    const struct block_limits *limits = &device->limits;
    part->request = request;
    part->operation = request->operation;
    part->flags = request->flags;
    part->offset = request->offset + request->issued;
    part->segment_count = 0;
    uint64_t rest = request->length - request->issued;
    if (request->operation == BLOCK_READ || request->operation == BLOCK_WRITE) {
        cut_segments(limits, request, part);
    } else {
        cut_other(limits, request, part, rest);
    }
    /* Guaranteed by block_register: no limit is below one block. */
    ASSERT(part->length != 0 && part->length <= rest);
    request->issued += part->length;
    request->parts_in_flight++;
    device->stats.parts++;
    if (request->issued == request->length) {
        request->is_issued = true;
        device->waiting_first = request->next;
        /* Only while it is busy: waiting for company would cost more than it saves. */
        const struct block_request *next = device->waiting_first;
        if (next != NULL && next->offset == part->offset + part->length &&
            device->parts_in_flight > 0) {
            merge_followers(device, part);
        }
    }
    device->parts_in_flight++;
    return true;
}

void block_queue_rebuild(const struct block_device *device, struct block_part *part) {
    uint64_t left = part->length;
    uint64_t skip = part->request != NULL ? part->offset - part->request->offset : 0;
    part->segment_count = 0;
    if (part->operation != BLOCK_READ && part->operation != BLOCK_WRITE &&
        part->operation != BLOCK_GET_ID) {
        return;
    }
    ASSERT(part->request != NULL); /* only a flush has none */
    if (part->request->operation == BLOCK_WRITE_ZEROES) {
        put_zeroes(&device->limits, left, part);
        ASSERT(part->length == left);
        return;
    }
    for (const struct block_request *request = part->request; left > 0; request = request->merged) {
        ASSERT(request != NULL);
        for (unsigned i = 0; i < request->segment_count && left > 0; i++) {
            const struct segment *from = &request->segments[i];
            uint64_t at = least(skip, from->length);
            skip -= at;
            while (at < from->length && left > 0) {
                uint64_t take =
                    least(least(from->length - at, left), device->limits.segment_bytes_max);
                ASSERT(part->segment_count < BLOCK_SEGMENTS_MAX);
                part->segments[part->segment_count++] =
                    (struct segment){(char *)from->data + at, (uint32_t)take};
                at += take;
                left -= take;
            }
        }
    }
}

/* Undoes what merging or issuing the whole request has done. */
static void put_in_front(struct block_device *device, struct block_request *request) {
    request->is_issued = false;
    request->next = device->waiting_first;
    if (device->waiting_first == NULL) {
        device->waiting_last = request;
    }
    device->waiting_first = request;
}

/* A request that was issued whole, with those that had joined it, in front of the line again. */
static void put_back_chain(struct block_device *device, struct block_request *request) {
    struct block_request *reversed = NULL;
    while (request != NULL) {
        struct block_request *next = request->merged;
        request->merged = reversed;
        reversed = request;
        request = next;
    }
    while (reversed != NULL) {
        struct block_request *next = reversed->merged;
        reversed->merged = NULL;
        reversed->issued = 0;
        reversed->segment_at = 0;
        reversed->segment_offset = 0;
        reversed->parts_in_flight = 0;
        put_in_front(device, reversed);
        reversed = next;
    }
}

void block_queue_return(struct block_device *device, const struct block_part *part) {
    struct block_request *request = part->request;
    device->stats.parts -= request != NULL;
    device->parts_in_flight -= request != NULL;
    if (request == NULL) {
        /* In front of the flushes that came meanwhile. */
        struct block_request *last = device->flush_active;
        while (last->next != NULL) {
            last = last->next;
        }
        last->next = device->flush_waiting;
        if (device->flush_waiting == NULL) {
            device->flush_waiting_last = last;
        }
        device->flush_waiting = device->flush_active;
        device->flush_active = NULL;
        device->is_flushing = false;
        device->stats.device_flushes--;
        return;
    }
    if (request->merged != NULL) {
        for (const struct block_request *at = request->merged; at != NULL; at = at->merged) {
            device->stats.merges--;
        }
        put_back_chain(device, request);
        return;
    }
    if (request->is_issued) {
        put_in_front(device, request);
    }
    request->issued -= part->length;
    request->parts_in_flight--;
    /* Walk the segments back by the part's length. */
    uint64_t back =
        request->operation == BLOCK_READ || request->operation == BLOCK_WRITE ? part->length : 0;
    while (back > 0) {
        if (request->segment_offset == 0) {
            request->segment_at--;
            request->segment_offset = request->segments[request->segment_at].length;
        }
        uint32_t step = (uint32_t)least(back, request->segment_offset);
        request->segment_offset -= step;
        back -= step;
    }
}

static inline __attribute__((always_inline)) void
request_part_done(struct block_device *device, struct block_request *request, int error) {
    ASSERT(request->parts_in_flight > 0);
    request->parts_in_flight--;
    if (error != 0 && request->status == 0) {
        request->status = error;
    }
    if (!request->is_issued || request->parts_in_flight > 0) {
        return;
    }
    bool must_be_durable = (request->flags & BLOCK_FUA) != 0 ||
                           (device->limits.is_write_through && request->operation != BLOCK_READ &&
                            request->operation != BLOCK_GET_ID);
    if (must_be_durable && device->limits.has_cache && request->status == 0) {
        list_append(&device->flush_waiting, &device->flush_waiting_last, request);
        device->wake(device);
        return;
    }
    finish_here(device, request); /* where nearly every request ends */
}

static void part_done(struct block_device *device, struct block_request *request, int error) {
    if (request == NULL) {
        ASSERT(device->is_flushing);
        struct block_request *list = device->flush_active;
        device->flush_active = NULL;
        device->is_flushing = false;
        complete_list(device, list, error);
        return;
    }
    ASSERT(device->parts_in_flight > 0);
    device->parts_in_flight--;
    while (request != NULL) {
        struct block_request *next = request->merged;
        request->merged = NULL;
        request_part_done(device, request, error);
        request = next;
    }
}

void block_queue_done(struct block_device *device, struct block_request *request, int error) {
    if (request != NULL && request->merged == NULL) {
        ASSERT(device->parts_in_flight > 0);
        device->parts_in_flight--;
        request_part_done(device, request, error);
        return;
    }
    if (error == 0 || request == NULL) {
        part_done(device, request, error);
        return;
    }
    /* Which of them failed the device does not say. Those that succeeded are repeated, which
     * changes nothing: nobody has been told of them. */
    device->parts_in_flight--;
    for (struct block_request *at = request; at != NULL; at = at->merged) {
        at->stands_alone = true;
        device->stats.merges_undone++;
    }
    put_back_chain(device, request);
    device->wake(device);
}

void block_queue_fail(struct block_device *device, struct block_request *request, int error) {
    part_done(device, request, error);
}

void block_queue_fail_waiting(struct block_device *device, int error) {
    struct block_request *waiting = device->waiting_first;
    struct block_request *flushes = device->flush_waiting;
    device->waiting_first = NULL;
    device->flush_waiting = NULL;
    /* A request with parts still in the device's hands ends when the last of them is reported. */
    if (waiting != NULL && waiting->parts_in_flight > 0) {
        struct block_request *begun = waiting;
        waiting = waiting->next;
        begun->is_issued = true;
        begun->status = begun->status != 0 ? begun->status : error;
    }
    complete_list(device, waiting, error);
    complete_list(device, flushes, error);
}
