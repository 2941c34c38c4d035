/* The MBR, its chain of logical partitions, and what both kinds of table share. See partition.h;
 * the GPT is in partition_gpt.c.
 *
 *   block 0        container (type 5, 15, 133)
 *   ┌──────┐       ┌─────┬─────────┐      ┌─────┬─────────┐
 *   │ MBR  │──────▶│ EBR │ logical │─────▶│ EBR │ logical │──▶ ... at most PARTITIONS_MAX of them
 *   └──────┘       └─────┴─────────┘      └─────┴─────────┘
 *
 * A logical partition counts from its own EBR, a link from the beginning of the container. */
#include "blk/partition.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "blk/partition_reader.h"
#include "core/mem/addr.h"
#include "core/panic.h"

enum {
    WINDOW_BYTES_MIN = 32 * 1024, /* the MBR and a GPT of usual size, in one read */
    MBR_ENTRIES = 4,
    MBR_ENTRIES_AT = 446,
    MBR_ENTRY_BYTES = 16,
    MBR_SIGNATURE_AT = 510,
    MBR_SIGNATURE = 0xaa55,
    TYPE_PROTECTIVE = 0xee, /* UEFI 2.10, 5.2.3 */
};

struct mbr_entry {
    uint8_t status;
    uint8_t type;
    uint32_t first; /* blocks */
    uint32_t count;
};

static const struct {
    uint8_t type;
    const char *name;
} type_names[] = {
    {0x07, "NTFS or exFAT"}, {0x0b, "FAT32"},     {0x0c, "FAT32"},      {0x82, "Linux swap"},
    {0x83, "Linux"},         {0x8e, "Linux LVM"}, {0xef, "EFI System"}, {0xfd, "Linux RAID"},
};

size_t partition_window_bytes(uint32_t block_bytes) {
    return block_bytes > WINDOW_BYTES_MIN ? block_bytes : WINDOW_BYTES_MIN;
}

const uint8_t *partition_block(struct partition_reader *reader, uint64_t block) {
    const struct partition_source *source = reader->source;
    ASSERT(block < reader->blocks);
    uint64_t offset = block * source->block_bytes;
    bool is_there = reader->window_bytes != 0 && offset >= reader->window_offset &&
                    offset - reader->window_offset < reader->window_bytes;
    if (!is_there) {
        uint64_t rest = source->capacity_bytes - offset;
        size_t bytes = partition_window_bytes(source->block_bytes);
        bytes = rest < bytes ? (size_t)rest : bytes;
        reader->window_bytes = 0;
        reader->error = ++reader->reads <= PARTITION_READS_MAX
                            ? source->read(source->arg, offset, source->window, bytes)
                            : -E2BIG;
        if (reader->error) {
            return NULL;
        }
        reader->window_offset = offset;
        reader->window_bytes = bytes;
    }
    return source->window + (offset - reader->window_offset);
}

const char *partition_add(const struct partition_reader *reader, struct partition_table *table,
                          unsigned number, uint64_t first, uint64_t count,
                          struct partition **added) {
    uint64_t block_bytes = reader->source->block_bytes;
    *added = NULL;
    if (count == 0 || !range_fits(first, count, reader->blocks)) {
        return "a partition reaches past the end of the disk";
    }
    uint64_t offset = first * block_bytes;
    uint64_t length = count * block_bytes;
    for (unsigned i = 0; i < table->count; i++) {
        const struct partition *other = &table->partitions[i];
        if (offset < other->offset_bytes + other->length_bytes &&
            other->offset_bytes < offset + length) {
            return "two partitions overlap";
        }
    }
    if (table->count == PARTITIONS_MAX) {
        table->left_out++;
        return NULL;
    }
    struct partition *partition = &table->partitions[table->count++];
    *partition =
        (struct partition){.number = number, .offset_bytes = offset, .length_bytes = length};
    *added = partition;
    return NULL;
}

static struct mbr_entry entry_at(const uint8_t *sector, unsigned index) {
    const uint8_t *at = sector + MBR_ENTRIES_AT + (size_t)index * MBR_ENTRY_BYTES;
    return (struct mbr_entry){.status = at[0],
                              .type = at[4],
                              .first = partition_get32(at + 8),
                              .count = partition_get32(at + 12)};
}

static bool has_signature(const uint8_t *sector) {
    return partition_get16(sector + MBR_SIGNATURE_AT) == MBR_SIGNATURE;
}

/* A file system's boot sector ends with the same signature, but has code or text where the entries
 * would be: of those the first byte is one of two. */
static bool is_mbr(const uint8_t *sector) {
    for (unsigned i = 0; i < MBR_ENTRIES; i++) {
        uint8_t status = entry_at(sector, i).status;
        if (status != 0 && status != 0x80) {
            return false;
        }
    }
    return has_signature(sector);
}

static bool is_container(uint8_t type) {
    return type == 0x05 || type == 0x0f || type == 0x85;
}

static const char *add_mbr_entry(const struct partition_reader *reader,
                                 struct partition_table *table, unsigned number, uint64_t first,
                                 const struct mbr_entry *entry) {
    struct partition *partition;
    const char *fault = partition_add(reader, table, number, first, entry->count, &partition);
    if (partition == NULL) {
        return fault;
    }
    for (unsigned i = 0; i < sizeof type_names / sizeof type_names[0]; i++) {
        if (type_names[i].type == entry->type) {
            (void)snprintf(partition->type, sizeof partition->type, "%s",
                           type_names[i].name); /* it fits */
            return NULL;
        }
    }
    (void)snprintf(partition->type, sizeof partition->type, "type 0x%02x",
                   entry->type); /* it fits */
    return NULL;
}

/* One EBR: adds its logical partition, and tells in `*next` the block of the next one, 0 at the
 * end.
 */
static const char *read_ebr(struct partition_reader *reader, struct partition_table *table,
                            const struct mbr_entry *container, uint64_t block, unsigned number,
                            uint64_t *next) {
    *next = 0;
    const uint8_t *sector = partition_block(reader, block);
    if (sector == NULL) {
        return "a logical partition cannot be read";
    }
    if (!has_signature(sector)) {
        return "the chain of logical partitions leads to what is none";
    }
    struct mbr_entry logical = entry_at(sector, 0);
    struct mbr_entry link = entry_at(sector, 1);
    uint64_t end = (uint64_t)container->first + container->count;
    if (logical.type != 0 && logical.count != 0) {
        uint64_t first = block + logical.first;
        if (logical.first == 0 || first >= end || logical.count > end - first) {
            return "a logical partition reaches out of its container";
        }
        const char *fault = add_mbr_entry(reader, table, number, first, &logical);
        if (fault != NULL) {
            return fault;
        }
    }
    if (link.type != 0 && link.count != 0) {
        if (!is_container(link.type) || link.first >= container->count) {
            return "the chain of logical partitions leads out of its container";
        }
        *next = (uint64_t)container->first + link.first;
    }
    return NULL;
}

/* The links may go in any order, so a loop shows only by its length. */
static const char *read_logicals(struct partition_reader *reader, struct partition_table *table,
                                 const struct mbr_entry *container) {
    uint64_t block = container->first;
    for (unsigned i = 0; i < PARTITIONS_MAX; i++) {
        const char *fault = read_ebr(reader, table, container, block, MBR_ENTRIES + 1 + i, &block);
        if (fault != NULL || block == 0) {
            return fault;
        }
    }
    return "the chain of logical partitions does not end";
}

static const char *read_mbr(struct partition_reader *reader, struct partition_table *table,
                            const struct mbr_entry entries[MBR_ENTRIES]) {
    const struct mbr_entry *container = NULL;
    for (unsigned i = 0; i < MBR_ENTRIES; i++) {
        const struct mbr_entry *entry = &entries[i];
        if (entry->type == 0 || entry->count == 0) {
            continue;
        }
        if (entry->first == 0) {
            return "a partition begins where the table is";
        }
        if (is_container(entry->type)) {
            if (container != NULL || !range_fits(entry->first, entry->count, reader->blocks)) {
                return "the container of the logical partitions is not one, or not on the disk";
            }
            container = entry;
            continue;
        }
        const char *fault = add_mbr_entry(reader, table, i + 1, entry->first, entry);
        if (fault != NULL) {
            return fault;
        }
    }
    if (container == NULL) {
        return NULL;
    }
    uint64_t begin = container->first * (uint64_t)reader->source->block_bytes;
    uint64_t end = begin + container->count * (uint64_t)reader->source->block_bytes;
    for (unsigned i = 0; i < table->count; i++) {
        const struct partition *primary = &table->partitions[i];
        if (primary->offset_bytes < end && begin < primary->offset_bytes + primary->length_bytes) {
            return "two partitions overlap";
        }
    }
    return read_logicals(reader, table, container);
}

static int refuse(struct partition_table *table, int error) {
    table->count = 0;
    table->left_out = 0;
    return error != 0 ? error : -EINVAL;
}

int partition_table_read(const struct partition_source *source, struct partition_table *table) {
    table->scheme = PARTITION_NONE;
    table->fault = NULL;
    table->backup_fault = NULL;
    table->is_from_backup = false;
    table->left_out = 0;
    table->count = 0;
    struct partition_reader reader = {.source = source,
                                      .blocks = source->capacity_bytes / source->block_bytes};
    if (reader.blocks == 0) {
        return 0;
    }
    const uint8_t *sector = partition_block(&reader, 0);
    if (sector == NULL) {
        return reader.error;
    }
    if (!is_mbr(sector)) {
        return 0;
    }
    /* Copied: the window moves on when the chain is followed. */
    struct mbr_entry entries[MBR_ENTRIES];
    for (unsigned i = 0; i < MBR_ENTRIES; i++) {
        entries[i] = entry_at(sector, i);
        if (entries[i].type == TYPE_PROTECTIVE) {
            table->scheme = PARTITION_GPT;
            int error = partition_read_gpt(&reader, table);
            return error ? refuse(table, error) : 0;
        }
    }
    table->scheme = PARTITION_MBR;
    table->fault = read_mbr(&reader, table, entries);
    return table->fault != NULL ? refuse(table, reader.error) : 0;
}
