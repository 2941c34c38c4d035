/* A disk in memory behind the same queue as any other. See ram_disk.h. */
#include "blk/ram_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blk/queue.h"
#include "boot/arch.h"
#include "core/log.h"
#include "core/mem/io_buffer.h"
#include "core/task/event.h"
#include "core/task/task.h"

enum { BLOCK_BYTES = 512, PARTS_PER_TURN = 64 };

struct ram_disk {
    struct block_device block; /* first: the callbacks cast back */
    struct io_buffer memory;
    struct event wake;
};

static void serve(struct ram_disk *disk, const struct block_part *part) {
    uint8_t *at = (uint8_t *)io_buffer_data(&disk->memory) + part->offset;
    for (unsigned i = 0; i < part->segment_count; i++) {
        const struct segment *segment = &part->segments[i];
        if (part->operation == BLOCK_READ) {
            memcpy(segment->data, at, segment->length);
        } else {
            memcpy(at, segment->data, segment->length);
        }
        at += segment->length;
    }
    if (part->operation == BLOCK_WRITE_ZEROES || part->operation == BLOCK_DISCARD) {
        memset(at, 0, part->length);
    }
    block_queue_done(&disk->block, part->request, 0);
}

static void disk_task(void *arg) {
    static struct block_part part; /* large, and one task runs at a time: not on the stack */
    struct ram_disk *disk = arg;
    for (;;) {
        unsigned budget = PARTS_PER_TURN;
        while (budget > 0 && block_queue_next(&disk->block, &part)) {
            serve(disk, &part);
            budget--;
        }
        if (budget == 0) {
            task_yield();
        } else {
            (void)task_wait(&disk->wake, DEADLINE_NEVER); /* the next submission is the event */
        }
    }
}

static void wake(struct block_device *block) {
    event_signal(&((struct ram_disk *)block)->wake);
}

struct block_device *ram_disk_create(const char *name, uint64_t bytes) {
    struct ram_disk *disk = calloc(1, sizeof *disk);
    if (disk == NULL || io_buffer_init(&disk->memory, bytes, IO_BUFFER_ALIGN_DEFAULT) != 0) {
        (void)log_error(-ENOMEM, "%s: no memory for %llu bytes", name,
                        (unsigned long long)bytes); /* NULL tells */
        free(disk);
        return NULL;
    }
    memset(io_buffer_data(&disk->memory), 0, bytes);
    disk->block.name = name;
    disk->block.model = "RAM disk";
    disk->block.capacity_bytes = bytes;
    disk->block.wake = wake;
    disk->block.limits = (struct block_limits){.block_bytes = BLOCK_BYTES,
                                               .physical_block_bytes = BLOCK_BYTES,
                                               .segments_max = BLOCK_SEGMENTS_MAX,
                                               .segment_bytes_max = 1u << 30,
                                               .discard_bytes_max = 1u << 30,
                                               .discard_leaves = BLOCK_KNOWN_ZERO,
                                               .zeroes_bytes_max = 1u << 30};
    if (block_register(&disk->block) != 0) {
        io_buffer_release(&disk->memory);
        free(disk);
        return NULL;
    }
    if (task_create(name, disk_task, disk, 0) == NULL) {
        block_unregister(&disk->block);
        io_buffer_release(&disk->memory);
        free(disk);
        return NULL;
    }
    return &disk->block;
}
