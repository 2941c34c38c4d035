/* What happens when a virtio-blk device breaks the rules of its ring, asks for a reset, keeps a
 * request past its deadline, or is gone.
 *
 * The order is everything. (1) Reset, and wait until the device says that it is done: until then it
 * may write into the buffers of what is in flight. (2) Negotiate and enable the queue again; a
 * device that came back as another one is not used. (3) Submit again what was not answered, in the
 * order of before: reads, writes, and last the flush, which covers only what was answered before it
 * was submitted. Nobody has been told of any of these, so repeating them is safe, with one
 * exception: a write that a later one to the same place has overtaken. The client knows that the
 * later one is on the disk; writing the older now could undo it, so it fails.
 *
 * When the reset does not finish, (1) never holds: the requests are never completed and their
 * memory never used again. When nothing answers at the device's address any more, there is nothing
 * that could write. */
#include "blk/virtio_blk_disk.h"

#include <errno.h>

#include "boot/arch.h"
#include "core/log.h"
#include "core/panic.h"
#include "core/task/task.h"

static bool may_reset_again(struct disk *disk) {
    uint64_t now_ns = arch_clock_ns();
    if (now_ns - disk->window_start_ns > BLOCK_RESET_WINDOW_MS * NS_PER_MS) {
        disk->window_start_ns = now_ns;
        disk->resets = 0;
    }
    disk->resets++;
    return disk->resets <= BLOCK_RESETS_MAX;
}

/* The ring forgets them; the list of slots in flight does not. */
static void abandon_ring(struct disk *disk) {
    while (virtqueue_abandon(disk->queue) != NULL) {
    }
}

static void end_slot(struct disk *disk, struct slot *slot, int error) {
    struct block_request *request = slot->request;
    disk_release_slot(disk, slot);
    block_queue_fail(&disk->block, request, error);
}

static void fail_everything(struct disk *disk) {
    disk->block.is_gone = true;
    block_device_changed(&disk->block);
    while (disk->oldest != NULL) {
        end_slot(disk, disk->oldest, -EIO);
    }
    while (disk->retry_first != NULL) {
        struct slot *slot = disk->retry_first;
        struct block_request *request = slot->request;
        disk->retry_first = slot->newer;
        slot->next_free = disk->free_slots;
        disk->free_slots = slot;
        block_queue_fail(&disk->block, request, -EIO);
    }
}

/* The slots in flight in order of issue, but a flush last, become those to be submitted again. What
 * was to be submitted again before, and had no room yet, stays behind them. */
static void collect(struct disk *disk, bool only_overdue) {
    uint64_t now_ns = scheduler_now_ns();
    struct slot *flush = NULL;
    struct slot **end = &disk->retry_first;
    struct slot *waiting = disk->retry_first;
    struct slot *next;
    *end = NULL;
    for (struct slot *slot = disk->oldest; slot != NULL; slot = next) {
        next = slot->newer;
        bool is_overdue = now_ns >= slot->issued_ns + disk->timeout_ns;
        disk->block.stats.timeouts += is_overdue;
        slot->attempts += is_overdue || !only_overdue;
        if (slot->is_overtaken || slot->attempts >= BLOCK_ATTEMPTS_MAX) {
            log_warning("%s: %s of %llu at %llu fails: %s", disk->block.name,
                        block_operation_name(slot->operation), (unsigned long long)slot->length,
                        (unsigned long long)slot->offset,
                        slot->is_overtaken ? "a later write to the same place was answered first"
                                           : "tried often enough");
            end_slot(disk, slot, -EIO);
            continue;
        }
        if (slot->request == NULL) {
            flush = slot;
            continue;
        }
        *end = slot;
        end = &slot->newer;
    }
    *end = waiting;
    while (*end != NULL) {
        end = &(*end)->newer;
    }
    *end = flush;
    if (flush != NULL) {
        flush->newer = NULL;
    }
    disk->oldest = NULL;
    disk->newest = NULL;
}

static bool is_as_before(const struct block_limits *now, const struct block_limits *before) {
    return now->block_bytes == before->block_bytes && now->segments_max >= before->segments_max &&
           now->segment_bytes_max == before->segment_bytes_max &&
           now->discard_bytes_max == before->discard_bytes_max &&
           now->zeroes_bytes_max == before->zeroes_bytes_max &&
           now->erase_bytes_max == before->erase_bytes_max && now->has_cache == before->has_cache &&
           now->is_read_only == before->is_read_only;
}

static int bring_up_again(struct disk *disk) {
    uint64_t features = disk->transport->features;
    struct block_limits limits;
    uint64_t capacity_bytes = 0;
    int error = disk_negotiate(disk);
    if (!error) {
        error = disk_read_limits(disk, &limits, &capacity_bytes);
    }
    if (!error &&
        (disk->transport->features != features || !is_as_before(&limits, &disk->block.limits))) {
        error = log_error(-EIO, "%s: came back from its reset as another disk", disk->block.name);
    }
    if (!error) {
        error = virtqueue_restart(disk->queue);
    }
    if (error) {
        return error;
    }
    disk_write_tables(disk);
    virtio_driver_ok(disk->transport);
    if (capacity_bytes != disk->block.capacity_bytes) {
        disk_resize(disk, capacity_bytes);
    }
    return 0;
}

static void take_out_of_service(struct disk *disk, const char *reason) {
    (void)log_error(-EIO, "%s: %s: taken out of service, %u requests fail", disk->block.name,
                    reason, disk->block.stats.in_flight); /* each request carries the error */
    fail_everything(disk);
}

void disk_recover(struct disk *disk, const char *reason, bool only_overdue) {
    unsigned in_flight = virtqueue_in_flight(disk->queue);
    bool may_go_on = may_reset_again(disk);
    log_warning("%s: %s: reset with %u device requests in flight", disk->block.name, reason,
                in_flight);
    disk_dump_device(&disk->block);
    disk->block.stats.resets++;
    disk->has_lied = false;
    scheduler_remove_source(&disk->source);
    int error = virtio_reset_in_task(disk->transport, BLOCK_RESET_TIMEOUT_MS);
    if (error == -ETIMEDOUT) {
        (void)log_error(
            error,
            "%s: taken out of service, %u device requests stay unanswered, their memory "
            "is quarantined",
            disk->block.name, in_flight); /* nothing to pass it to */
        disk->block.is_gone = true;
        block_device_changed(&disk->block);
        return;
    }
    abandon_ring(disk);
    if (error == -ENODEV) {
        take_out_of_service(disk, "nothing answers at its address any more");
        return;
    }
    if (!may_go_on) {
        virtio_fail(disk->transport);
        take_out_of_service(disk, "it was reset too often");
        return;
    }
    if (bring_up_again(disk) != 0) {
        /* It may know its queue again by now. */
        error = virtio_reset_in_task(disk->transport, BLOCK_RESET_TIMEOUT_MS);
        virtio_fail(disk->transport);
        take_out_of_service(disk, error == -ETIMEDOUT ? "it is beyond control"
                                                      : "it does not come back from its reset");
        return;
    }
    collect(disk, only_overdue);
    scheduler_add_source(&disk->source);
}
