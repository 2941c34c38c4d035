/* Between the files that read partition tables. */
#ifndef BLK_PARTITION_READER_H
#define BLK_PARTITION_READER_H

#include "blk/partition.h"

struct partition_reader {
    const struct partition_source *source;
    uint64_t blocks; /* of the disk */
    uint64_t window_offset;
    size_t window_bytes; /* valid now; 0 for none */
    unsigned reads;
    int error; /* of the callback */
};

/* Block `block` of the disk, which must have it, for as long as no other is asked for. NULL when it
 * cannot be read: the error is in the reader. */
const uint8_t *partition_block(struct partition_reader *reader, uint64_t block);

/* Adds a partition of `count` blocks at `first`, both checked to lie on the disk. NULL, or what is
 * wrong with it. Past PARTITIONS_MAX it is only counted. */
const char *partition_add(const struct partition_reader *reader, struct partition_table *table,
                          unsigned number, uint64_t first, uint64_t count,
                          struct partition **added);

/* Reads the GPT, of which the MBR said that it is there. As partition_table_read. */
int partition_read_gpt(struct partition_reader *reader, struct partition_table *table);

static inline uint16_t partition_get16(const uint8_t *at) {
    return (uint16_t)(at[0] | at[1] << 8);
}

static inline uint32_t partition_get32(const uint8_t *at) {
    return (uint32_t)partition_get16(at) | (uint32_t)partition_get16(at + 2) << 16;
}

static inline uint64_t partition_get64(const uint8_t *at) {
    return (uint64_t)partition_get32(at) | (uint64_t)partition_get32(at + 4) << 32;
}

#endif
