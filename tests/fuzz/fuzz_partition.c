/* Partition tables: GPT and MBR. The input is what is on a disk of 64 blocks, in pieces, so that a
 * table needs few bytes and mutation moves them about:
 *
 *   options: 1 blocks of 4096 bytes, 2 checksums of the first GPT made right, 4 those of the
 * backup, 8 reads fail from some block on then pieces: block (from 128 on, counted from the end),
 * offset / 2, length, bytes */
#include <stdlib.h>
#include <string.h>

#include "blk/crc32.h"
#include "blk/partition.h"
#include "tests/fuzz/fuzz.h"

enum { BLOCKS = 64, BLOCK_BYTES_MAX = 4096, GPT_HEADER_BYTES = 92 };

enum option { LARGE_BLOCKS = 1, FIRST_IS_RIGHT = 2, BACKUP_IS_RIGHT = 4, READS_FAIL = 8 };

static uint8_t image[BLOCKS * BLOCK_BYTES_MAX];
static struct partition_source source;
static uint64_t fails_from;
static unsigned reads;

static int read_image(void *arg, uint64_t offset, void *buf, size_t bytes) {
    (void)arg;
    FUZZ_CHECK(bytes > 0 && bytes <= partition_window_bytes(source.block_bytes));
    FUZZ_CHECK(offset % source.block_bytes == 0 && bytes % source.block_bytes == 0);
    FUZZ_CHECK(offset <= source.capacity_bytes && bytes <= source.capacity_bytes - offset);
    reads++;
    if (offset >= fails_from) {
        return -5;
    }
    memcpy(buf, image + offset, bytes);
    return 0;
}

static uint64_t get(const uint8_t *at, unsigned bytes) {
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++) {
        value |= (uint64_t)at[i] << 8 * i;
    }
    return value;
}

static void put32(uint8_t *at, uint32_t value) {
    for (unsigned i = 0; i < 4; i++) {
        at[i] = (uint8_t)(value >> 8 * i);
    }
}

/* Mutation does not find checksums (UEFI 2.10, 5.3.2): without this only they would be tested. */
static void make_right(uint64_t block) {
    uint8_t *header = image + block * source.block_bytes;
    uint64_t header_bytes = get(header + 12, 4);
    uint64_t entries = get(header + 72, 8);
    uint64_t entries_bytes = get(header + 80, 4) * get(header + 84, 4);
    if (entries < BLOCKS && entries_bytes <= source.capacity_bytes - entries * source.block_bytes) {
        put32(header + 88, crc32_add(0, image + entries * source.block_bytes, entries_bytes));
    }
    if (header_bytes >= GPT_HEADER_BYTES && header_bytes <= source.block_bytes) {
        put32(header + 16, 0);
        put32(header + 16, crc32_add(0, header, header_bytes));
    }
}

static void build_image(struct fuzz_input *input) {
    unsigned options = fuzz_u8(input);
    source.block_bytes = (options & LARGE_BLOCKS) != 0 ? BLOCK_BYTES_MAX : 512;
    source.capacity_bytes = (uint64_t)BLOCKS * source.block_bytes;
    fails_from =
        (options & READS_FAIL) != 0 ? fuzz_u8(input) * (uint64_t)source.block_bytes : UINT64_MAX;
    memset(image, 0, source.capacity_bytes);
    while (input->left > 3) {
        uint64_t block = fuzz_u8(input);
        uint64_t offset = 2u * fuzz_u8(input);
        size_t bytes = fuzz_u8(input);
        const uint8_t *data = fuzz_bytes(input, &bytes);
        block = block < 128 ? block % BLOCKS : BLOCKS - 1 - (block - 128) % BLOCKS;
        uint64_t at = block * source.block_bytes + offset;
        if (at + bytes <= source.capacity_bytes) {
            memcpy(image + at, data, bytes);
        }
    }
    if ((options & FIRST_IS_RIGHT) != 0) {
        make_right(1);
    }
    if ((options & BACKUP_IS_RIGHT) != 0) {
        make_right(BLOCKS - 1);
    }
}

static bool is_utf8(const char *text) {
    const uint8_t *at = (const uint8_t *)text;
    while (*at != 0) {
        unsigned more = *at < 0x80 ? 0 : *at >= 0xf0 ? 3 : *at >= 0xe0 ? 2 : *at >= 0xc0 ? 1 : 9;
        if (more == 9 || *at > 0xf4) {
            return false;
        }
        for (at++; more > 0; more--, at++) {
            if ((*at & 0xc0) != 0x80) {
                return false;
            }
        }
    }
    return true;
}

static void check_partition(const struct partition_table *table, unsigned index) {
    const struct partition *partition = &table->partitions[index];
    uint64_t end = partition->offset_bytes + partition->length_bytes;
    FUZZ_CHECK(partition->length_bytes > 0 && partition->number > 0);
    FUZZ_CHECK(partition->offset_bytes % source.block_bytes == 0 &&
               partition->length_bytes % source.block_bytes == 0);
    FUZZ_CHECK(partition->offset_bytes > 0 && end > partition->offset_bytes &&
               end <= source.capacity_bytes);
    FUZZ_CHECK(strnlen(partition->name, PARTITION_NAME_BYTES) < PARTITION_NAME_BYTES);
    FUZZ_CHECK(strnlen(partition->type, PARTITION_TYPE_BYTES) < PARTITION_TYPE_BYTES);
    FUZZ_CHECK(is_utf8(partition->name));
    for (unsigned i = 0; i < index; i++) {
        const struct partition *other = &table->partitions[i];
        FUZZ_CHECK(end <= other->offset_bytes ||
                   other->offset_bytes + other->length_bytes <= partition->offset_bytes);
        FUZZ_CHECK(other->number != partition->number);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct partition_table table;
    struct fuzz_input input = {data, size};
    fuzz_begin();
    source = (struct partition_source){.read = read_image};
    build_image(&input);
    source.window = malloc(partition_window_bytes(source.block_bytes));
    FUZZ_CHECK(source.window != NULL);
    memset(&table, 0xee, sizeof table);
    reads = 0;
    int error = partition_table_read(&source, &table);
    FUZZ_CHECK(reads <= PARTITION_READS_MAX);
    FUZZ_CHECK(error == 0 || error == -22 || fails_from != UINT64_MAX);
    if (error == 0) {
        FUZZ_CHECK(table.count <= PARTITIONS_MAX);
        for (unsigned i = 0; i < table.count; i++) {
            check_partition(&table, i);
        }
    } else if (error == -22) {
        FUZZ_CHECK(table.count == 0 && table.fault != NULL);
    }
    free(source.window);
    return 0;
}
