/* Partition tables: GPT (UEFI 2.10, chapter 5.3) and MBR with logical partitions (5.2.1).
 *
 * Reading one is a function of what a read callback hands out and of nothing else. Everything on
 * the disk is hostile: a table of which one field makes no sense is refused as a whole, because a
 * partition at the wrong place destroys what lies there. */
#ifndef BLK_PARTITION_H
#define BLK_PARTITION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/limits.h"

/* Where a table is read from. */
struct partition_source {
    /* Fills `buf` with `bytes` bytes at `offset`, both multiples of `block_bytes`, within the
     * capacity: 0 or a negative errno, which ends the search. May wait. */
    int (*read)(void *arg, uint64_t offset, void *buf, size_t bytes);
    void *arg;
    uint64_t capacity_bytes; /* a multiple of block_bytes */
    uint32_t block_bytes;    /* logical: a power of two from 512 on */
    /* partition_window_bytes(block_bytes) bytes to read into. */
    uint8_t *window;
};

enum partition_scheme { PARTITION_NONE, PARTITION_MBR, PARTITION_GPT };

enum {
    PARTITION_NAME_UNITS = 36,                           /* UTF-16, in a GPT entry */
    PARTITION_NAME_BYTES = 3 * PARTITION_NAME_UNITS + 1, /* as UTF-8, with its zero */
    PARTITION_TYPE_BYTES = sizeof "00112233-4455-6677-8899-aabbccddeeff",
};

struct partition {
    unsigned number;       /* as Linux counts: GPT entry, MBR primaries 1 to 4, logicals from 5 */
    uint64_t offset_bytes; /* within the disk, multiples of the block size, not empty, no overlap */
    uint64_t length_bytes;
    char name[PARTITION_NAME_BYTES]; /* UTF-8; "" without one. Any character may be in it. */
    char type[PARTITION_TYPE_BYTES]; /* a word for people: a known type's name, GUID or number */
};

struct partition_table {
    enum partition_scheme scheme;
    /* Why the table was refused; of a GPT that was read from its backup, what is wrong with the
     * first one. NULL when nothing is wrong. */
    const char *fault;
    const char *backup_fault;
    bool is_from_backup;
    unsigned left_out; /* entries past PARTITIONS_MAX */
    unsigned count;
    struct partition partitions[PARTITIONS_MAX];
};

/* Bytes of the window for a disk of such blocks. */
size_t partition_window_bytes(uint32_t block_bytes);

/* Looks for a table. 0: `table` holds what was found, which may be nothing (PARTITION_NONE, or no
 * partition in it). -EINVAL: there is one and it is malformed, `table->fault` says how and the
 * count is 0. Another negative errno is the callback's. Reads PARTITION_READS_MAX times at most. */
int partition_table_read(const struct partition_source *source, struct partition_table *table);

#endif
