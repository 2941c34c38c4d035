/* The GPT (UEFI 2.10, 5.3): the header in block 1, and its backup in the last block when the first
 * is damaged. Both, with their arrays of entries, carry CRCs. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "blk/crc32.h"
#include "blk/partition_reader.h"
#include "core/lib/unaligned.h"
#include "core/mem/addr.h"

/* UEFI 2.10, 5.3.2: table 5.5; offsets into the header. */
enum {
    AT_SIGNATURE = 0,
    AT_REVISION = 8,
    AT_HEADER_BYTES = 12,
    AT_HEADER_CRC = 16,
    AT_MY_BLOCK = 24,
    AT_FIRST_USABLE = 40,
    AT_LAST_USABLE = 48,
    AT_ENTRIES_BLOCK = 72,
    AT_ENTRY_COUNT = 80,
    AT_ENTRY_BYTES = 84,
    AT_ENTRIES_CRC = 88,
    HEADER_BYTES_MIN = 92,
    FIRST_USABLE_MIN = 2, /* behind the MBR and the first header, also in the words of the backup */
    REVISION_1_0 = 0x00010000,
    /* 5.3.3: table 5.6; offsets into an entry. */
    AT_TYPE = 0,
    AT_FIRST = 32,
    AT_LAST = 40,
    AT_NAME = 56,
    GUID_BYTES = 16,
    ENTRY_BYTES_MIN = 128,
};

struct header {
    uint64_t first_usable;
    uint64_t last_usable;
    uint64_t entries_block;
    uint64_t entries_blocks; /* how many the array takes */
    uint32_t entry_count;
    uint32_t entry_bytes;
    uint32_t entries_crc;
};

/* As bytes on the disk: the first three fields are little-endian. */
static const struct {
    uint8_t guid[GUID_BYTES];
    const char *name;
} type_names[] = {
    {{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b},
     "EFI System"},
    {{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d,
      0xe4},
     "Linux filesystem"},
    {{0x6d, 0xfd, 0x57, 0x06, 0xab, 0xa4, 0xc4, 0x43, 0x84, 0xe5, 0x09, 0x33, 0xc8, 0x4b, 0x4f,
      0x4f},
     "Linux swap"},
    {{0x79, 0xd3, 0xd6, 0xe6, 0x07, 0xf5, 0xc2, 0x44, 0xa2, 0x3c, 0x23, 0x8f, 0x2a, 0x3d, 0xf9,
      0x28},
     "Linux LVM"},
    {{0x0f, 0x88, 0x9d, 0xa1, 0xfc, 0x05, 0x3b, 0x4d, 0xa0, 0x06, 0x74, 0x3f, 0x0f, 0x84, 0x91,
      0x1e},
     "Linux RAID"},
    {{0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99,
      0xc7},
     "Microsoft basic data"},
};

/* With the field of the CRC itself taken as zero (5.3.2). */
static uint32_t header_crc(const uint8_t *block, uint32_t bytes) {
    static const uint8_t zeroes[4];
    uint32_t crc = crc32_add(0, block, AT_HEADER_CRC);
    crc = crc32_add(crc, zeroes, sizeof zeroes);
    return crc32_add(crc, block + AT_HEADER_CRC + 4, bytes - AT_HEADER_CRC - 4);
}

static bool check_entry_shape(const struct header *header) {
    return header->entry_bytes >= ENTRY_BYTES_MIN && is_power_of_two(header->entry_bytes) &&
           header->entry_bytes <= GPT_ENTRIES_BYTES_MAX && header->entry_count != 0 &&
           header->entry_count <= GPT_ENTRIES_BYTES_MAX / header->entry_bytes;
}

/* NULL, and the header in `header`, or what is wrong with it. */
static const char *read_header(struct partition_reader *reader, uint64_t block,
                               struct header *header) {
    uint32_t block_bytes = reader->source->block_bytes;
    const uint8_t *at = partition_block(reader, block);
    if (at == NULL) {
        return "its header cannot be read";
    }
    if (memcmp(at + AT_SIGNATURE, "EFI PART", 8) != 0) {
        return "its header has no signature";
    }
    uint32_t header_bytes = partition_get32(at + AT_HEADER_BYTES);
    if (partition_get32(at + AT_REVISION) != REVISION_1_0 || header_bytes < HEADER_BYTES_MIN ||
        header_bytes > block_bytes) {
        return "its header is of an unknown revision or size";
    }
    if (header_crc(at, header_bytes) != partition_get32(at + AT_HEADER_CRC)) {
        return "the checksum of its header is wrong";
    }
    if (partition_get64(at + AT_MY_BLOCK) != block) {
        return "its header belongs elsewhere";
    }
    *header = (struct header){.first_usable = partition_get64(at + AT_FIRST_USABLE),
                              .last_usable = partition_get64(at + AT_LAST_USABLE),
                              .entries_block = partition_get64(at + AT_ENTRIES_BLOCK),
                              .entry_count = partition_get32(at + AT_ENTRY_COUNT),
                              .entry_bytes = partition_get32(at + AT_ENTRY_BYTES),
                              .entries_crc = partition_get32(at + AT_ENTRIES_CRC)};
    if (header->first_usable < FIRST_USABLE_MIN || header->first_usable > header->last_usable ||
        header->last_usable >= reader->blocks ||
        (block >= header->first_usable && block <= header->last_usable)) {
        return "its usable blocks make no sense";
    }
    if (!check_entry_shape(header)) {
        return "the number or size of its entries makes no sense";
    }
    uint64_t array_bytes = (uint64_t)header->entry_count * header->entry_bytes;
    header->entries_blocks = (array_bytes + block_bytes - 1) / block_bytes;
    bool is_on_disk = header->entries_block >= 1 &&
                      range_fits(header->entries_block, header->entries_blocks, reader->blocks);
    /* Sums fit: both ends are on the disk. */
    bool is_apart =
        is_on_disk &&
        (header->entries_block > header->last_usable ||
         header->entries_block + header->entries_blocks <= header->first_usable) &&
        (header->entries_block > block || header->entries_block + header->entries_blocks <= block);
    return is_apart ? NULL : "its entries are not where they could be";
}

/* UTF-16 to UTF-8, which never takes more than three bytes a unit. What is no character becomes a
 * question mark. */
static void read_name(const uint8_t *units, char *name) {
    unsigned used = 0;
    for (unsigned i = 0; i < PARTITION_NAME_UNITS; i++) {
        uint32_t c = partition_get16(units + 2 * (size_t)i);
        if (c == 0) {
            break;
        }
        if (c >= 0xd800 && c < 0xe000) {
            uint32_t low =
                i + 1 < PARTITION_NAME_UNITS ? partition_get16(units + 2 * (size_t)(i + 1)) : 0;
            if (c < 0xdc00 && low >= 0xdc00 && low < 0xe000) {
                c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
                i++;
            } else {
                c = '?';
            }
        }
        if (c >= 0x10000) {
            name[used++] = (char)(0xf0 | c >> 18);
            name[used++] = (char)(0x80 | (c >> 12 & 0x3f));
            name[used++] = (char)(0x80 | (c >> 6 & 0x3f));
            name[used++] = (char)(0x80 | (c & 0x3f));
        } else if (c >= 0x800) {
            name[used++] = (char)(0xe0 | c >> 12);
            name[used++] = (char)(0x80 | (c >> 6 & 0x3f));
            name[used++] = (char)(0x80 | (c & 0x3f));
        } else if (c >= 0x80) {
            name[used++] = (char)(0xc0 | c >> 6);
            name[used++] = (char)(0x80 | (c & 0x3f));
        } else {
            name[used++] = (char)c;
        }
    }
    name[used] = '\0';
}

static void read_type(const uint8_t *guid, char *type) {
    for (unsigned i = 0; i < sizeof type_names / sizeof type_names[0]; i++) {
        if (memcmp(type_names[i].guid, guid, GUID_BYTES) == 0) {
            (void)snprintf(type, PARTITION_TYPE_BYTES, "%s", type_names[i].name); /* it fits */
            return;
        }
    }
    (void)snprintf(type, PARTITION_TYPE_BYTES, "%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x",
                   (unsigned)partition_get32(guid), partition_get16(guid + 4),
                   partition_get16(guid + 6), guid[8], guid[9], guid[10], guid[11], guid[12],
                   guid[13], guid[14], guid[15]); /* it fits */
}

static const char *read_entry(const struct partition_reader *reader, struct partition_table *table,
                              const struct header *header, unsigned number, const uint8_t *at) {
    if ((unaligned_load64(at + AT_TYPE) | unaligned_load64(at + AT_TYPE + 8)) == 0) {
        return NULL; /* unused, as most are */
    }
    uint64_t first = partition_get64(at + AT_FIRST);
    uint64_t last = partition_get64(at + AT_LAST);
    if (first > last || first < header->first_usable || last > header->last_usable) {
        return "a partition lies outside of its usable blocks";
    }
    struct partition *partition;
    const char *fault = partition_add(reader, table, number, first, last - first + 1, &partition);
    if (partition != NULL) {
        read_name(at + AT_NAME, partition->name);
        read_type(at + AT_TYPE, partition->type);
    }
    return fault;
}

/* One pass: what is checked is what is used, whatever the disk says when asked again. An entry may
 * be larger than a block; what is known of it stands in its first 128 bytes. */
static const char *read_entries(struct partition_reader *reader, struct partition_table *table,
                                const struct header *header) {
    uint32_t block_bytes = reader->source->block_bytes;
    uint64_t array_bytes = (uint64_t)header->entry_count * header->entry_bytes;
    uint32_t crc = 0;
    const char *fault = NULL;
    for (uint64_t i = 0; i < header->entries_blocks; i++) {
        const uint8_t *at = partition_block(reader, header->entries_block + i);
        if (at == NULL) {
            return "its entries cannot be read";
        }
        uint64_t begin = i * block_bytes;
        uint64_t rest = array_bytes - begin;
        uint32_t bytes = rest < block_bytes ? (uint32_t)rest : block_bytes;
        crc = crc32_add(crc, at, bytes);
        for (uint32_t within = 0; within < bytes; within += ENTRY_BYTES_MIN) {
            uint64_t position = begin + within;
            if (fault == NULL && position % header->entry_bytes == 0) {
                unsigned number = (unsigned)(position / header->entry_bytes) + 1;
                fault = read_entry(reader, table, header, number, at + within);
            }
        }
    }
    /* A wrong sum explains every other fault. */
    return crc != header->entries_crc ? "the checksum of its entries is wrong" : fault;
}

static const char *read_at(struct partition_reader *reader, struct partition_table *table,
                           uint64_t block) {
    struct header header;
    table->count = 0;
    table->left_out = 0;
    const char *fault = read_header(reader, block, &header);
    return fault != NULL ? fault : read_entries(reader, table, &header);
}

/* A first header that cannot be read is a reason to try the other; only when both fail is the
 * disk's error the answer. */
int partition_read_gpt(struct partition_reader *reader, struct partition_table *table) {
    if (reader->blocks < 3) {
        table->fault = "the disk has no room for it";
        return -EINVAL;
    }
    table->fault = read_at(reader, table, 1);
    if (table->fault == NULL) {
        return 0;
    }
    table->backup_fault = read_at(reader, table, reader->blocks - 1);
    if (table->backup_fault == NULL) {
        table->is_from_backup = true;
        return 0;
    }
    return reader->error != 0 ? reader->error : -EINVAL;
}
