/* Partition tables: blk/partition.c and blk/partition_gpt.c, on images made here field by field.
 * What real tools write is tested in tests/e2e. */
#include "blk/partition.h"

#include <stdlib.h>
#include <string.h>

#include "blk/crc32.h"
#include "tests/unit/unit.h"

enum { BLOCKS = 4096, BLOCK_BYTES_MAX = 4096, ENTRIES = 128, ENTRY_BYTES = 128 };

static uint8_t image[BLOCKS * BLOCK_BYTES_MAX];
static uint8_t window[64 * 1024];
static uint32_t block_bytes;
static uint64_t fails_from; /* reads at this offset and behind fail */
static unsigned reads;
static struct partition_table table;

static int read_image(void *arg, uint64_t offset, void *buf, size_t bytes) {
    uint64_t capacity = (uint64_t)BLOCKS * block_bytes;
    assert_null(arg);
    assert_true(bytes > 0 && offset % block_bytes == 0 && bytes % block_bytes == 0);
    assert_true(offset + bytes <= capacity && bytes <= partition_window_bytes(block_bytes));
    reads++;
    if (offset >= fails_from) {
        return -EIO;
    }
    memcpy(buf, image + offset, bytes);
    return 0;
}

static int read_table_of(uint64_t blocks) {
    struct partition_source source = {.read = read_image,
                                      .capacity_bytes = blocks * block_bytes,
                                      .block_bytes = block_bytes,
                                      .window = window};
    memset(&table, 0xee, sizeof table);
    memset(window, 0xee, sizeof window);
    reads = 0;
    return partition_table_read(&source, &table);
}

static int read_table(void) {
    return read_table_of(BLOCKS);
}

static void expect_refused(const char *fault) {
    assert_int_equal(read_table(), -EINVAL);
    assert_int_equal(table.count, 0);
    assert_non_null(table.fault);
    assert_string_equal(table.fault, fault);
}

static void expect_partition(unsigned index, unsigned number, uint64_t first, uint64_t count) {
    assert_true(index < table.count);
    assert_int_equal(table.partitions[index].number, number);
    assert_int_equal(table.partitions[index].offset_bytes, first * block_bytes);
    assert_int_equal(table.partitions[index].length_bytes, count * block_bytes);
}

static void put(uint8_t *at, unsigned bytes, uint64_t value) {
    for (unsigned i = 0; i < bytes; i++) {
        at[i] = (uint8_t)(value >> (8 * i));
    }
}

static void set_up(uint32_t bytes) {
    memset(image, 0, sizeof image);
    block_bytes = bytes;
    fails_from = UINT64_MAX;
}

static uint8_t *block_at(uint64_t block) {
    return image + block * block_bytes;
}

/* --- MBR --- */

static void mbr_entry(uint64_t block, unsigned index, uint8_t type, uint32_t first,
                      uint32_t count) {
    uint8_t *sector = block_at(block);
    uint8_t *at = sector + 446 + (size_t)16 * index;
    at[4] = type;
    put(at + 8, 4, first);
    put(at + 12, 4, count);
    put(sector + 510, 2, 0xaa55);
}

TEST(an_empty_disk_has_no_table) {
    set_up(512);
    assert_int_equal(read_table(), 0);
    assert_int_equal(table.scheme, PARTITION_NONE);
    assert_int_equal(table.count, 0);
    assert_null(table.fault);
    assert_int_equal(reads, 1);
    assert_int_equal(read_table_of(0), 0);
    assert_int_equal(reads, 0);
}

TEST(the_signature_alone_makes_no_table) {
    set_up(512);
    put(image + 510, 2, 0xaa55);
    assert_int_equal(read_table(), 0);
    assert_int_equal(table.count, 0);
    mbr_entry(0, 0, 0x83, 1, 100);
    image[510] = 0;
    assert_int_equal(read_table(), 0);
    assert_int_equal(table.scheme, PARTITION_NONE);
}

TEST(a_file_system_s_boot_sector_is_no_table) {
    set_up(512);
    mbr_entry(0, 0, 0x83, 1, 100);
    image[446] = 'N'; /* "NO ROM BASIC": text where the entries would be */
    assert_int_equal(read_table(), 0);
    assert_int_equal(table.scheme, PARTITION_NONE);
}

TEST(primary_partitions_keep_the_number_of_their_entry) {
    set_up(512);
    mbr_entry(0, 0, 0x83, 1, 100);
    mbr_entry(0, 3, 0x41, 2000, BLOCKS - 2000);
    image[446] = 0x80; /* active */
    assert_int_equal(read_table(), 0);
    assert_int_equal(table.scheme, PARTITION_MBR);
    assert_int_equal(table.count, 2);
    expect_partition(0, 1, 1, 100);
    expect_partition(1, 4, 2000, BLOCKS - 2000);
    assert_string_equal(table.partitions[0].type, "Linux");
    assert_string_equal(table.partitions[1].type, "type 0x41");
    assert_string_equal(table.partitions[0].name, "");
    assert_int_equal(reads, 1);
}

TEST(an_mbr_counts_in_logical_blocks) {
    set_up(4096);
    mbr_entry(0, 1, 0x07, 10, 20);
    assert_int_equal(read_table(), 0);
    expect_partition(0, 2, 10, 20);
    assert_int_equal(table.partitions[0].offset_bytes, 40960);
}

TEST(a_primary_that_makes_no_sense_refuses_the_table) {
    set_up(512);
    mbr_entry(0, 1, 0x83, 100, 100);
    mbr_entry(0, 0, 0x83, 1, BLOCKS);
    expect_refused("a partition reaches past the end of the disk");
    mbr_entry(0, 0, 0x83, BLOCKS - 1, 1);
    assert_int_equal(read_table(), 0);
    mbr_entry(0, 0, 0x83, BLOCKS, 1);
    expect_refused("a partition reaches past the end of the disk");
    mbr_entry(0, 0, 0x83, UINT32_MAX, UINT32_MAX);
    expect_refused("a partition reaches past the end of the disk");
    mbr_entry(0, 0, 0x83, 0, 50);
    expect_refused("a partition begins where the table is");
    mbr_entry(0, 0, 0x83, 50, 51);
    expect_refused("two partitions overlap");
    mbr_entry(0, 0, 0x83, 199, 1);
    expect_refused("two partitions overlap");
    mbr_entry(0, 0, 0x83, 120, 10);
    expect_refused("two partitions overlap");
    mbr_entry(0, 0, 0x83, 50, 50);
    assert_int_equal(read_table(), 0);
    mbr_entry(0, 0, 0x83, 200, 50);
    assert_int_equal(read_table(), 0);
}

/* Container of 1000 blocks at 1000; logicals at 1001 and 1501, linked in this order or the other.
 */
static void make_logicals(void) {
    set_up(512);
    mbr_entry(0, 0, 0x83, 100, 100);
    mbr_entry(0, 1, 0x05, 1000, 1000);
    mbr_entry(1000, 0, 0x83, 1, 499);
    mbr_entry(1000, 1, 0x05, 500, 500);
    mbr_entry(1500, 0, 0x82, 1, 499);
}

TEST(logical_partitions_count_from_5) {
    make_logicals();
    assert_int_equal(read_table(), 0);
    assert_int_equal(table.count, 3);
    expect_partition(0, 1, 100, 100);
    expect_partition(1, 5, 1001, 499);
    expect_partition(2, 6, 1501, 499);
    assert_string_equal(table.partitions[2].type, "Linux swap");
}

TEST(links_between_logicals_may_go_back) {
    make_logicals();
    mbr_entry(1000, 1, 0x05, 700, 100);
    mbr_entry(1700, 0, 0x83, 50, 50);
    mbr_entry(1700, 1, 0x0f, 600, 100);
    mbr_entry(1600, 0, 0x83, 1, 10);
    assert_int_equal(read_table(), 0);
    assert_int_equal(table.count, 4);
    expect_partition(2, 6, 1750, 50);
    expect_partition(3, 7, 1601, 10);
}

TEST(an_empty_logical_keeps_its_number) {
    make_logicals();
    mbr_entry(1000, 0, 0, 0, 0);
    assert_int_equal(read_table(), 0);
    assert_int_equal(table.count, 2);
    expect_partition(1, 6, 1501, 499);
}

TEST(a_chain_of_logicals_that_goes_wrong_refuses_the_table) {
    make_logicals();
    mbr_entry(1500, 1, 0x05, 500, 500); /* to itself */
    mbr_entry(1500, 0, 0, 0, 0);
    expect_refused("the chain of logical partitions does not end");
    assert_true(reads <= PARTITION_READS_MAX);
    make_logicals();
    mbr_entry(1500, 1, 0x05, 0, 500); /* back to the first: what it holds is there already */
    expect_refused("two partitions overlap");
    make_logicals();
    mbr_entry(1000, 1, 0x05, 1000, 500);
    expect_refused("the chain of logical partitions leads out of its container");
    make_logicals();
    mbr_entry(1000, 1, 0x83, 500, 500);
    expect_refused("the chain of logical partitions leads out of its container");
    make_logicals();
    mbr_entry(1000, 1, 0x05, 900, 500);
    expect_refused("the chain of logical partitions leads to what is none");
    make_logicals();
    mbr_entry(1500, 0, 0x83, 1, 500);
    expect_refused("a logical partition reaches out of its container");
    make_logicals();
    mbr_entry(1500, 0, 0x83, 500, 1);
    expect_refused("a logical partition reaches out of its container");
    make_logicals();
    mbr_entry(1500, 0, 0x83, 0, 1);
    expect_refused("a logical partition reaches out of its container");
    make_logicals();
    mbr_entry(1000, 0, 0x83, 1, 501 + 1);
    expect_refused("two partitions overlap");
    make_logicals();
    mbr_entry(0, 2, 0x0f, 2000, 10);
    expect_refused("the container of the logical partitions is not one, or not on the disk");
    make_logicals();
    mbr_entry(0, 1, 0x05, 1000, BLOCKS - 999);
    expect_refused("the container of the logical partitions is not one, or not on the disk");
    make_logicals();
    mbr_entry(0, 0, 0x83, 100, 901);
    expect_refused("two partitions overlap");
}

TEST(a_disk_that_cannot_be_read_tells_its_error) {
    make_logicals();
    fails_from = 0;
    assert_int_equal(read_table(), -EIO);
    assert_int_equal(table.count, 0);
    fails_from = UINT64_C(1500) * 512;
    assert_int_equal(read_table(), -EIO);
    assert_int_equal(table.count, 0);
    assert_string_equal(table.fault, "a logical partition cannot be read");
}

/* --- GPT --- */

static uint32_t entry_bytes;

static void seal(uint64_t block) {
    uint8_t *header = block_at(block);
    uint64_t array = 0;
    uint32_t count = 0;
    uint32_t bytes = 0;
    uint32_t header_bytes = 0;
    memcpy(&array, header + 72, 8);
    memcpy(&count, header + 80, 4);
    memcpy(&bytes, header + 84, 4);
    memcpy(&header_bytes, header + 12, 4);
    uint64_t array_bytes = (uint64_t)count * bytes;
    if (array < BLOCKS && array_bytes <= sizeof image - array * block_bytes) {
        put(header + 88, 4, crc32_add(0, block_at(array), array_bytes));
    }
    put(header + 16, 4, 0);
    put(header + 16, 4, crc32_add(0, header, header_bytes <= block_bytes ? header_bytes : 92));
}

static uint64_t array_blocks(void) {
    return ((uint64_t)ENTRIES * entry_bytes + block_bytes - 1) / block_bytes;
}

static uint64_t last_block(void) {
    return BLOCKS - 1;
}

static void make_header(uint64_t block, uint64_t alternate, uint64_t array) {
    uint8_t *header = block_at(block);
    memcpy(header, "EFI PART", 8); // NOLINT(bugprone-not-null-terminated-result): no string
    put(header + 8, 4, 0x00010000);
    put(header + 12, 4, 92);
    put(header + 24, 8, block);
    put(header + 32, 8, alternate);
    put(header + 40, 8, 2 + array_blocks());
    put(header + 48, 8, last_block() - array_blocks() - 1);
    put(header + 72, 8, array);
    put(header + 80, 4, ENTRIES);
    put(header + 84, 4, entry_bytes);
}

static void gpt_entry(unsigned index, uint64_t first, uint64_t last, const char *name) {
    static const uint8_t linux_data[] = {0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47,
                                         0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4};
    uint64_t arrays[] = {2, last_block() - array_blocks()};
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *at = block_at(arrays[i]) + (size_t)index * entry_bytes;
        memcpy(at, linux_data, sizeof linux_data);
        at[16] = 1;
        put(at + 32, 8, first);
        put(at + 40, 8, last);
        for (unsigned j = 0; name[j] != '\0'; j++) {
            put(at + 56 + 2 * (size_t)j, 2, (uint8_t)name[j]);
        }
    }
}

static void seal_both(void) {
    seal(1);
    seal(last_block());
}

static void make_gpt_with(uint32_t block, uint32_t entry) {
    set_up(block);
    entry_bytes = entry;
    mbr_entry(0, 0, 0xee, 1, BLOCKS - 1);
    make_header(1, last_block(), 2);
    make_header(last_block(), 1, last_block() - array_blocks());
    gpt_entry(0, 2 + array_blocks(), 1023, "boot");
    gpt_entry(4, 2000, 2999, "data");
    seal_both();
}

static void make_gpt(void) {
    make_gpt_with(512, ENTRY_BYTES);
}

static void expect_both(void) {
    assert_int_equal(table.scheme, PARTITION_GPT);
    assert_int_equal(table.count, 2);
    expect_partition(0, 1, 2 + array_blocks(), 1022 - array_blocks());
    expect_partition(1, 5, 2000, 1000);
    assert_string_equal(table.partitions[0].name, "boot");
    assert_string_equal(table.partitions[1].name, "data");
    assert_string_equal(table.partitions[1].type, "Linux filesystem");
}

TEST(a_gpt_is_read_in_one_go) {
    make_gpt();
    assert_int_equal(read_table(), 0);
    expect_both();
    assert_false(table.is_from_backup);
    assert_null(table.fault);
    assert_int_equal(reads, 1);
}

TEST(a_gpt_may_have_any_block_and_entry_size) {
    static const uint32_t blocks[] = {512, 1024, 4096};
    static const uint32_t entries[] = {128, 256, 512, 1024};
    for (unsigned i = 0; i < ARRAY_COUNT(blocks); i++) {
        for (unsigned j = 0; j < ARRAY_COUNT(entries); j++) {
            make_gpt_with(blocks[i], entries[j]);
            assert_int_equal(read_table(), 0);
            expect_both();
            image[(size_t)blocks[i]] = 0; /* the backup, too */
            assert_int_equal(read_table(), 0);
            expect_both();
            assert_true(table.is_from_backup);
        }
    }
}

TEST(without_a_protective_entry_there_is_no_gpt) {
    make_gpt();
    mbr_entry(0, 0, 0, 0, 0);
    assert_int_equal(read_table(), 0);
    assert_int_equal(table.count, 0);
}

TEST(every_bit_of_header_and_entries_counts) {
    make_gpt();
    for (unsigned i = 0; i < 92 * 8; i++) {
        image[512 + i / 8] ^= (uint8_t)(1u << i % 8);
        assert_int_equal(read_table(), 0);
        assert_true(table.is_from_backup);
        assert_non_null(table.fault);
        expect_both();
        image[512 + i / 8] ^= (uint8_t)(1u << i % 8);
    }
    for (unsigned i = 0; i < ENTRIES * ENTRY_BYTES; i += 13) {
        image[1024 + i] ^= 0x40;
        assert_int_equal(read_table(), 0);
        assert_true(table.is_from_backup);
        assert_string_equal(table.fault, "the checksum of its entries is wrong");
        expect_both();
        image[1024 + i] ^= 0x40;
    }
}

TEST(a_first_header_that_cannot_be_read_is_replaced_by_the_backup) {
    make_gpt_with(4096, ENTRY_BYTES);
    memset(image + 4096, 0, 4096);
    assert_int_equal(read_table(), 0);
    expect_both();
    assert_true(table.is_from_backup);
    assert_string_equal(table.fault, "its header has no signature");
}

TEST(when_both_are_damaged_the_table_is_refused) {
    make_gpt();
    image[512] ^= 1;
    block_at(last_block())[20] ^= 1;
    image[BLOCKS * 512 - 512 + 60] ^= 1; /* a GUID: only the checksum tells */
    expect_refused("its header has no signature");
    assert_string_equal(table.backup_fault, "the checksum of its header is wrong");
    fails_from = last_block() * 512;
    assert_int_equal(read_table(), -EIO);
}

TEST(a_table_whose_entries_cannot_be_read_is_refused) {
    make_gpt_with(512, 1024); /* more than what is read with the header */
    fails_from = partition_window_bytes(512);
    assert_int_equal(read_table(), -EIO);
    assert_int_equal(table.count, 0);
    assert_string_equal(table.fault, "its entries cannot be read");
}

struct field {
    unsigned at;
    unsigned bytes;
    uint64_t value;
    const char *fault;
};

/* Each refused though both checksums are right; the last of each group is the limit itself. */
TEST(every_field_of_the_header_is_checked) {
    uint64_t last_usable = BLOCKS - 1 - 32 - 1;
    const struct field fields[] = {
        {8, 4, 0x00020000, "its header is of an unknown revision or size"},
        {8, 4, 0x00010001, "its header is of an unknown revision or size"},
        {12, 4, 91, "its header is of an unknown revision or size"},
        {12, 4, 513, "its header is of an unknown revision or size"},
        {12, 4, UINT32_MAX, "its header is of an unknown revision or size"},
        {12, 4, 512, NULL},
        {24, 8, 2, "its header belongs elsewhere"},
        {24, 8, last_block(), "its header belongs elsewhere"},
        {40, 8, last_usable + 1, "its usable blocks make no sense"},
        {40, 8, 1, "its usable blocks make no sense"},
        {40, 8, 0, "its usable blocks make no sense"},
        {40, 8, 33, "its entries are not where they could be"},
        {40, 8, 35, "a partition lies outside of its usable blocks"},
        {48, 8, BLOCKS, "its usable blocks make no sense"},
        {48, 8, UINT64_MAX, "its usable blocks make no sense"},
        {48, 8, 33, "its usable blocks make no sense"},
        {48, 8, 2998, "a partition lies outside of its usable blocks"},
        {48, 8, 2999, NULL},
        {48, 8, BLOCKS - 1, NULL},
        {72, 8, 0, "its entries are not where they could be"},
        {72, 8, 1, "its entries are not where they could be"},
        {72, 8, 3, "its entries are not where they could be"},
        {72, 8, BLOCKS - 31, "its entries are not where they could be"},
        {72, 8, UINT64_MAX, "its entries are not where they could be"},
        {72, 8, UINT64_MAX - 31, "its entries are not where they could be"},
        {80, 4, 0, "the number or size of its entries makes no sense"},
        {80, 4, GPT_ENTRIES_BYTES_MAX / 128 + 1,
         "the number or size of its entries makes no sense"},
        {80, 4, GPT_ENTRIES_BYTES_MAX / 128, "its entries are not where they could be"},
        {80, 4, UINT32_MAX, "the number or size of its entries makes no sense"},
        {80, 4, 5, NULL},
        {84, 4, 0, "the number or size of its entries makes no sense"},
        {84, 4, 64, "the number or size of its entries makes no sense"},
        {84, 4, 129, "the number or size of its entries makes no sense"},
        {84, 4, 1u << 31, "the number or size of its entries makes no sense"},
    };
    for (unsigned i = 0; i < ARRAY_COUNT(fields); i++) {
        make_gpt();
        memset(block_at(last_block()), 0, 512);
        put(image + 512 + fields[i].at, fields[i].bytes, fields[i].value);
        seal(1);
        if (fields[i].fault != NULL) {
            expect_refused(fields[i].fault);
        } else {
            assert_int_equal(read_table(), 0);
            expect_both();
        }
    }
}

/* Its own block is at the other end, so what it says of the first blocks is all that protects them.
 */
TEST(a_backup_does_not_give_away_the_mbr_and_the_first_header) {
    for (uint64_t first = 0; first < 2; first++) {
        make_gpt();
        memset(block_at(1), 0, 512);
        put(block_at(last_block()) + 40, 8, first);
        seal(last_block());
        assert_int_equal(read_table(), -EINVAL);
        assert_string_equal(table.backup_fault, "its usable blocks make no sense");
    }
}

TEST(every_entry_is_checked) {
    static const struct {
        uint64_t first;
        uint64_t last;
        const char *fault;
    } entries[] = {
        {1024, 1999, NULL},
        {1023, 1999, "two partitions overlap"},
        {1024, 2000, "two partitions overlap"},
        {2100, 2200, "two partitions overlap"},
        {1999, 1998, "a partition lies outside of its usable blocks"},
        {33, 33, "a partition lies outside of its usable blocks"},
        {4062, 4063, "a partition lies outside of its usable blocks"},
        {4062, 4062, NULL},
        {0, UINT64_MAX, "a partition lies outside of its usable blocks"},
        {UINT64_MAX, UINT64_MAX, "a partition lies outside of its usable blocks"},
    };
    for (unsigned i = 0; i < ARRAY_COUNT(entries); i++) {
        make_gpt();
        gpt_entry(1, entries[i].first, entries[i].last, "");
        seal_both();
        if (entries[i].fault != NULL) {
            expect_refused(entries[i].fault);
            assert_string_equal(table.backup_fault, entries[i].fault);
        } else {
            assert_int_equal(read_table(), 0);
            expect_partition(1, 2, entries[i].first, entries[i].last - entries[i].first + 1);
        }
    }
}

TEST(a_disk_that_was_grown_keeps_its_partitions) {
    make_gpt();
    assert_int_equal(read_table(), 0);
    make_gpt();
    block_bytes = 512;
    memset(block_at(last_block()), 0, 512); /* the backup lies where the disk ended before */
    assert_int_equal(read_table(), 0);
    expect_both();
}

TEST(a_disk_that_was_shrunk_is_refused) {
    make_gpt();
    assert_int_equal(read_table_of(3000 + 1), -EINVAL);
    assert_string_equal(table.fault, "its usable blocks make no sense");
    assert_int_equal(read_table_of(2), -EINVAL);
    assert_string_equal(table.fault, "the disk has no room for it");
}

TEST(names_become_utf_8) {
    make_gpt();
    uint8_t *name = block_at(2) + 56;
    static const uint16_t units[] = {'a', 0xe9, 0x20ac, 0xd83d, 0xde00, 0xdc00, 0xd83d, 'z'};
    for (unsigned i = 0; i < ARRAY_COUNT(units); i++) {
        put(name + 2 * (size_t)i, 2, units[i]);
    }
    seal(1);
    assert_int_equal(read_table(), 0);
    assert_string_equal(table.partitions[0].name, "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80??z");
    for (unsigned i = 0; i < 36; i++) {
        put(name + 2 * (size_t)i, 2, 0x20ac); /* as long as a name can be, without a zero */
    }
    seal(1);
    assert_int_equal(read_table(), 0);
    assert_int_equal(strlen(table.partitions[0].name), PARTITION_NAME_BYTES - 1);
}

TEST(a_type_that_is_not_known_is_told_by_its_number) {
    make_gpt();
    static const uint8_t guid[] = {0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66,
                                   0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
    memcpy(block_at(2), guid, sizeof guid);
    seal(1);
    assert_int_equal(read_table(), 0);
    assert_string_equal(table.partitions[0].type, "00112233-4455-6677-8899-aabbccddeeff");
}

TEST(more_partitions_than_there_may_be_are_counted) {
    enum { COUNT = PARTITIONS_MAX + 10 };
    set_up(512);
    entry_bytes = ENTRY_BYTES;
    mbr_entry(0, 0, 0xee, 1, BLOCKS - 1);
    make_header(1, last_block(), 2);
    put(image + 512 + 40, 8, 200);
    put(image + 512 + 80, 4, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        uint8_t *at = block_at(2) + (size_t)i * ENTRY_BYTES;
        at[0] = 1;
        put(at + 32, 8, 200 + i);
        put(at + 40, 8, 200 + i);
    }
    seal(1);
    assert_int_equal(read_table(), 0);
    assert_int_equal(table.count, PARTITIONS_MAX);
    assert_int_equal(table.left_out, 10);
    expect_partition(PARTITIONS_MAX - 1, PARTITIONS_MAX, 200 + PARTITIONS_MAX - 1, 1);
}

/* --- Anything at all --- */

static void expect_sound(int error) {
    uint64_t capacity = (uint64_t)BLOCKS * block_bytes;
    assert_true(error == 0 || table.count == 0);
    assert_true(table.count <= PARTITIONS_MAX && reads <= PARTITION_READS_MAX);
    for (unsigned i = 0; i < table.count; i++) {
        const struct partition *a = &table.partitions[i];
        assert_true(a->length_bytes > 0 && a->length_bytes <= capacity);
        assert_true(a->offset_bytes > 0 && a->offset_bytes <= capacity - a->length_bytes);
        assert_true(strlen(a->name) < PARTITION_NAME_BYTES);
        assert_true(strlen(a->type) < PARTITION_TYPE_BYTES);
        for (unsigned j = 0; j < i; j++) {
            const struct partition *b = &table.partitions[j];
            assert_true(a->offset_bytes >= b->offset_bytes + b->length_bytes ||
                        b->offset_bytes >= a->offset_bytes + a->length_bytes);
        }
    }
}

/* Random damage with checksums that are right all the same, so that it gets past them. */
TEST(whatever_a_table_says_partitions_lie_apart_and_on_the_disk) {
    for (unsigned round = 0; round < 3000; round++) {
        if (round % 2 == 0) {
            make_gpt();
        } else {
            make_logicals();
        }
        for (uint64_t n = 1 + unit_random_below(8); n > 0; n--) {
            static const uint64_t places[] = {446, 512, 1024, 1024 + 4 * 128, 512000, 768000};
            uint64_t place = places[unit_random_below(ARRAY_COUNT(places))];
            uint64_t at = place + unit_random_below(round % 2 == 0 ? 92 : 66);
            image[at] = unit_random_below(2) == 0 ? (uint8_t)unit_random() : 0xff;
        }
        if (unit_random_below(4) != 0) {
            seal(1);
        }
        expect_sound(read_table());
    }
}
