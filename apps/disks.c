/* Looking at the disks, and naming them. See disks.h.
 *
 * The name that goes with the content (serial, GPT name) stays the same when disks are attached in
 * another order, so it is the one that is listed. Nothing on a disk is trusted to name another: a
 * name that two want, or that is the place of something else, is given to neither. */
#include "apps/disks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/nbd/export.h"
#include "blk/block.h"
#include "blk/partition.h"
#include "boot/arch.h"
#include "core/config.h"
#include "core/log.h"
#include "core/mem/addr.h"
#include "core/panic.h"
#include "core/task/event.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"

enum { SCAN_STACK_BYTES = 16 * 1024, PLACE_BYTES = 16, MODEL_BYTES = 80 };

_Static_assert(PARTITION_NAME_BYTES > BLOCK_ID_BYTES, "either name fits");

/* What is being found out about one disk. Belongs to its task, which may outlive our patience. */
struct scan {
    struct block_device *disk;
    struct event wake;
    char id[BLOCK_ID_BYTES + 1];
    bool id_is_done;
    bool read_is_done;
    int read_status;
    int error; /* of the table */
    bool is_done;
    bool is_abandoned;
    struct partition_table table;
};

/* Something to export. */
struct candidate {
    struct block_device *device;
    struct block_device *disk; /* itself, or of the partition */
    char place[PLACE_BYTES];
    char wanted[PARTITION_NAME_BYTES]; /* "" for none */
    char model[MODEL_BYTES];
};

static struct scan *scans[BLOCK_DEVICES_MAX];
static struct event scan_ended;
static uint64_t scan_deadline_ns;
static bool wants_partitions;

/* --- Looking -----------------------------------------------------------------------------------
 */

static void id_done(struct block_request *request) {
    struct scan *scan = request->owner;
    scan->id_is_done = true;
    if (request->status != 0) {
        scan->id[0] = '\0';
    }
    event_signal(&scan->wake);
}

static void read_done(struct block_request *request) {
    struct scan *scan = request->owner;
    scan->read_is_done = true;
    scan->read_status = request->status;
    event_signal(&scan->wake);
}

/* The device's own deadlines end what it does not answer. */
static int read_disk(void *arg, uint64_t offset, void *buf, size_t bytes) {
    struct scan *scan = arg;
    struct segment segment = {buf, (uint32_t)bytes};
    struct block_request request = {.operation = BLOCK_READ,
                                    .offset = offset,
                                    .length = bytes,
                                    .segments = &segment,
                                    .segment_count = 1,
                                    .complete = read_done,
                                    .owner = scan};
    int error = block_check(scan->disk, BLOCK_READ, offset, bytes);
    if (error) {
        return error;
    }
    scan->read_is_done = false;
    block_submit(scan->disk, &request);
    while (!scan->read_is_done) {
        (void)task_wait(&scan->wake, DEADLINE_NEVER); /* a completion is the event */
    }
    return scan->read_status;
}

static void scan_task(void *arg) {
    struct scan *scan = arg;
    struct segment segment = {scan->id, BLOCK_ID_BYTES};
    struct block_request request = {.operation = BLOCK_GET_ID,
                                    .length = BLOCK_ID_BYTES,
                                    .segments = &segment,
                                    .segment_count = 1,
                                    .complete = id_done,
                                    .owner = scan};
    uint32_t block_bytes = scan->disk->limits.block_bytes;
    uint8_t *window = malloc(partition_window_bytes(block_bytes));
    /* Both questions at once: the table's first answer comes with the serial. */
    block_submit(scan->disk, &request);
    if (window != NULL && wants_partitions) {
        struct partition_source source = {.read = read_disk,
                                          .arg = scan,
                                          .capacity_bytes = scan->disk->capacity_bytes,
                                          .block_bytes = block_bytes,
                                          .window = window};
        scan->error = partition_table_read(&source, &scan->table);
    } else if (window == NULL) {
        scan->error = -ENOMEM;
    }
    while (!scan->id_is_done) {
        (void)task_wait(&scan->wake, DEADLINE_NEVER); /* as above */
    }
    free(window);
    scan->is_done = true;
    if (scan->is_abandoned) {
        free(scan);
        return;
    }
    event_signal(&scan_ended);
}

void disks_begin_scan(void) {
    struct block_device *disk;
    wants_partitions = config_switch("partitions", true);
    scan_deadline_ns = arch_clock_ns() + DISK_SCAN_TIMEOUT_MS * NS_PER_MS;
    for (unsigned i = 0; (disk = block_device_at(i)) != NULL; i++) {
        if (!disk->limits.has_id) {
            continue; /* a RAM disk: nothing on it yet */
        }
        struct scan *scan = malloc(sizeof *scan);
        if (scan == NULL) {
            continue; /* exported whole */
        }
        /* Not the table, which is large and filled when there is one. */
        memset(scan, 0, offsetof(struct scan, table));
        scan->table.scheme = PARTITION_NONE;
        scan->table.fault = NULL;
        scan->table.count = 0;
        scan->table.left_out = 0;
        scan->table.is_from_backup = false;
        scan->disk = disk;
        if (task_create("scan", scan_task, scan, SCAN_STACK_BYTES) == NULL) {
            free(scan);
            continue;
        }
        scans[i] = scan;
    }
}

/* Of what the tables say, what a person should know. */
static void report(const struct scan *scan) {
    const struct partition_table *table = &scan->table;
    const char *name = scan->disk->name;
    const char *kind = table->scheme == PARTITION_GPT ? "GPT" : "MBR";
    if (scan->error == -EINVAL && table->fault != NULL) {
        log_warning("%s: %s refused: %s; only the whole disk is exported", name, kind,
                    table->fault);
    } else if (scan->error) {
        log_warning("%s: its partition table cannot be read (error %d); only the whole disk is "
                    "exported",
                    name, scan->error);
    } else if (table->is_from_backup) {
        log_warning("%s: GPT read from its backup: of the first, %s", name, table->fault);
    }
    if (table->left_out != 0) {
        log_warning("%s: %u partitions left out: %u are the limit", name, table->left_out,
                    PARTITIONS_MAX);
    }
}

static void wait_for_scans(void) {
    for (unsigned i = 0; i < BLOCK_DEVICES_MAX; i++) {
        struct scan *scan = scans[i];
        while (scan != NULL && !scan->is_done) {
            if (task_wait(&scan_ended, scan_deadline_ns) != 0) {
                log_warning("%s: not a word about its content within %u ms; exported whole",
                            scan->disk->name, DISK_SCAN_TIMEOUT_MS);
                scan->is_abandoned = true;
                scans[i] = NULL;
                scan = NULL;
            }
        }
        if (scan != NULL) {
            report(scan);
        }
    }
}

/* --- Naming ------------------------------------------------------------------------------------
 */

/* What can be typed in a URI and in a configuration word as it is. */
static bool is_name(const char *text) {
    size_t length = strlen(text);
    size_t good = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                               "._-+:@");
    return length != 0 && good == length && length <= NBD_EXPORT_NAME_MAX;
}

/* May candidate `index` have the name that it wants? */
static bool gets_its_name(const struct candidate *candidates, unsigned count, unsigned index) {
    const char *wanted = candidates[index].wanted;
    if (wanted[0] == '\0' || strcmp(wanted, candidates[index].place) == 0) {
        return false;
    }
    if (!is_name(wanted)) {
        log_info("%s: its own name is none that could be asked for: listed as %s",
                 candidates[index].place, candidates[index].place);
        return false;
    }
    for (unsigned i = 0; i < count; i++) {
        if (i != index && (strcmp(candidates[i].wanted, wanted) == 0 ||
                           strcmp(candidates[i].place, wanted) == 0)) {
            log_warning("%s: \"%s\" is also %s: listed as %s", candidates[index].place, wanted,
                        candidates[i].place, candidates[index].place);
            return false;
        }
    }
    return true;
}

/* True when the comma-separated list of `key` (which may stand more than once) has `name`. */
static bool is_listed(const char *key, const char *name) {
    unsigned position = 0;
    const char *list;
    while ((list = config_next(key, &position)) != NULL) {
        size_t length = strlen(name);
        for (const char *at = list; at != NULL; at = strchr(at, ',')) {
            at += *at == ',';
            if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == '\0')) {
                return true;
            }
        }
    }
    return false;
}

/* By any of its names; and what is said of a disk holds for its partitions: what was meant to be
 * protected must not be open by another name. */
static bool is_candidate_listed(const char *key, const struct candidate *candidates, unsigned count,
                                const struct candidate *candidate) {
    for (unsigned i = 0; i < count; i++) {
        const struct candidate *at = &candidates[i];
        bool is_meant = at == candidate || at->device == candidate->disk;
        if (is_meant &&
            (is_listed(key, at->place) || (at->wanted[0] != '\0' && is_listed(key, at->wanted)))) {
            return true;
        }
    }
    return false;
}

/* A name in one of these lists that is no export would leave something writable, or hidden, against
 * what was meant: refuse rather than guess. */
static int check_lists(void) {
    static const char *const keys[] = {"readonly", "rotational"};
    for (unsigned i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        unsigned position = 0;
        const char *list;
        while ((list = config_next(keys[i], &position)) != NULL) {
            while (*list != '\0') {
                size_t length = strcspn(list, ",");
                if (length == 0 || nbd_export_find(list, length) == NULL) {
                    return log_error(-ENOENT, "config: %s=%s refused: there is no disk %.*s",
                                     keys[i], list, (int)length, list);
                }
                list += length + (list[length] == ',');
            }
        }
    }
    return 0;
}

static void add_disk(struct candidate *candidate, struct block_device *disk,
                     const struct scan *scan) {
    candidate->device = disk;
    candidate->disk = disk;
    (void)snprintf(candidate->place, sizeof candidate->place, "%s", disk->name); /* it fits */
    if (scan != NULL) {
        (void)snprintf(candidate->wanted, sizeof candidate->wanted, "%s", scan->id); /* it fits */
    }
}

/* False when there is no memory for it. */
static bool add_partition(struct candidate *candidate, struct block_device *disk,
                          const struct partition *partition) {
    candidate->disk = disk;
    (void)snprintf(candidate->place, sizeof candidate->place, "%s%u", disk->name,
                   partition->number); /* it fits */
    (void)snprintf(candidate->wanted, sizeof candidate->wanted, "%s",
                   partition->name); /* it fits */
    (void)snprintf(candidate->model, sizeof candidate->model, "partition %u of %s, %s",
                   partition->number, disk->name, partition->type); /* it fits */
    if (!range_fits(partition->offset_bytes, partition->length_bytes, disk->capacity_bytes)) {
        return false; /* the disk has shrunk since */
    }
    candidate->device = block_partition_create(disk, candidate->place, candidate->model,
                                               partition->offset_bytes, partition->length_bytes);
    return candidate->device != NULL;
}

/* Disks first, so that no partition takes a disk's place in a table that is full. */
static unsigned gather(struct candidate *candidates, unsigned count_max) {
    unsigned count = 0;
    struct block_device *disk;
    for (unsigned i = 0; (disk = block_device_at(i)) != NULL; i++) {
        ASSERT(count < count_max);
        add_disk(&candidates[count++], disk, scans[i]);
    }
    for (unsigned i = 0; (disk = block_device_at(i)) != NULL; i++) {
        for (unsigned j = 0; scans[i] != NULL && j < scans[i]->table.count; j++) {
            ASSERT(count < count_max);
            count += add_partition(&candidates[count], disk, &scans[i]->table.partitions[j]);
        }
    }
    return count;
}

static void export_one(const struct candidate *candidates, unsigned count, unsigned index) {
    const struct candidate *candidate = &candidates[index];
    bool is_read_only = is_candidate_listed("readonly", candidates, count, candidate);
    bool is_rotational = is_candidate_listed("rotational", candidates, count, candidate);
    const char *name =
        gets_its_name(candidates, count, index) ? candidate->wanted : candidate->place;
    /* Both say in the log what is wrong; the others are served. */
    if (nbd_export_add(candidate->device, name, is_read_only, is_rotational) == 0) {
        (void)nbd_export_set_alias(name, candidate->place);
        log_info("nbd: export \"%s\": %s, %llu bytes at %llu, %s", name, candidate->place,
                 (unsigned long long)candidate->device->capacity_bytes,
                 (unsigned long long)candidate->device->start_bytes, candidate->device->model);
    }
}

int disks_export(void) {
    wait_for_scans();
    unsigned count_max = 0;
    for (unsigned i = 0; block_device_at(i) != NULL; i++) {
        count_max += 1 + (scans[i] != NULL ? scans[i]->table.count : 0);
    }
    if (count_max == 0) {
        return log_error(-ENODEV, "nbd: there is no disk to serve");
    }
    /* Stays: the exports' names are in it. */
    struct candidate *candidates = calloc(count_max, sizeof *candidates);
    if (candidates == NULL) {
        return log_error(-ENOMEM, "nbd: no memory for %u exports", count_max);
    }
    unsigned count = gather(candidates, count_max);
    for (unsigned i = 0; i < BLOCK_DEVICES_MAX; i++) {
        free(scans[i]);
        scans[i] = NULL;
    }
    for (unsigned i = 0; i < count; i++) {
        export_one(candidates, count, i);
    }
    int error = check_lists();
    const char *first = config_text("default");
    return error == 0 && first != NULL ? nbd_export_set_default(first) : error;
}
