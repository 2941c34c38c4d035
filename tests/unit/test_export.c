/* The table of exports: apps/nbd/export.c. */
#include "apps/nbd/export.h"

#include <stdio.h>
#include <string.h>

#include "apps/nbd/limit.h"
#include "apps/nbd/wire.h"
#include "config/limits.h"
#include "tests/unit/unit.h"

static struct block_device disk;

static void set_up(void) {
    disk = (struct block_device){.name = "vda",
                                 .model = "virtio-blk",
                                 .capacity_bytes = UINT64_C(5) << 30,
                                 .limits = {.block_bytes = 512,
                                            .physical_block_bytes = 512,
                                            .segments_max = 1,
                                            .segment_bytes_max = 4096,
                                            .discard_bytes_max = 4096,
                                            .zeroes_bytes_max = 4096}};
}

static uint16_t flags_with(bool is_read_only, bool is_rotational) {
    nbd_export_forget();
    assert_int_equal(nbd_export_add(&disk, "disk", is_read_only, is_rotational), 0);
    return nbd_export_flags(nbd_export_at(0), false);
}

TEST(the_flags_of_a_whole_disk_tell_all_it_can) {
    set_up();
    assert_int_equal(flags_with(false, false),
                     NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                         NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO |
                         NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE);
}

TEST(what_a_disk_does_not_offer_is_not_announced) {
    set_up();
    disk.limits.discard_bytes_max = 0;
    assert_int_equal(flags_with(false, false) & NBD_FLAG_SEND_TRIM, 0);
    /* Zeroes are written where there is no command for them. */
    disk.limits.zeroes_bytes_max = 0;
    assert_int_not_equal(flags_with(false, false) & NBD_FLAG_SEND_WRITE_ZEROES, 0);
}

TEST(a_client_that_may_only_read_is_told_so) {
    static const unsigned writing = NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES;
    set_up();
    (void)flags_with(false, false);
    assert_int_equal(nbd_export_flags(nbd_export_at(0), true) & (writing | NBD_FLAG_READ_ONLY),
                     NBD_FLAG_READ_ONLY);
}

TEST(limits_belong_to_the_export_of_that_name) {
    set_up();
    (void)flags_with(false, false);
    assert_null(nbd_export_at(0)->limit);
    assert_int_equal(nbd_export_set_limit("disc", 4096, 0), -ENOENT);
    assert_int_equal(nbd_export_set_limit("disk", 4096, 0), 0);
    assert_int_equal(nbd_export_set_limit("disk", 0, 10), 0);
    assert_int_equal(nbd_export_at(0)->limit->bytes.per_s, 4096);
    assert_int_equal(nbd_export_at(0)->limit->requests.per_s, 10);
    nbd_export_forget();
}

TEST(a_limit_without_memory_is_refused) {
    set_up();
    (void)flags_with(false, false);
    unit_allocations_until_failure(0);
    assert_int_equal(nbd_export_set_limit("disk", 4096, 0), -ENOMEM);
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    assert_null(nbd_export_at(0)->limit);
}

TEST(a_read_only_export_announces_nothing_that_writes) {
    static const unsigned writing = NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES;
    set_up();
    assert_int_equal(flags_with(true, false) & (writing | NBD_FLAG_READ_ONLY), NBD_FLAG_READ_ONLY);
    disk.limits.is_read_only = true;
    assert_int_equal(flags_with(false, false) & (writing | NBD_FLAG_READ_ONLY), NBD_FLAG_READ_ONLY);
    assert_non_null(strstr(nbd_export_at(0)->description, "read-only"));
}

TEST(rotational_is_what_the_configuration_says) {
    set_up();
    assert_int_equal(flags_with(false, false) & NBD_FLAG_ROTATIONAL, 0);
    assert_int_not_equal(flags_with(false, true) & NBD_FLAG_ROTATIONAL, 0);
    assert_int_not_equal(flags_with(true, true) & NBD_FLAG_ROTATIONAL, 0);
}

TEST(the_description_tells_model_and_size) {
    set_up();
    (void)flags_with(false, false);
    assert_string_equal(nbd_export_at(0)->description, "virtio-blk, 5120 MiB");
}

TEST(block_sizes_follow_the_disk) {
    set_up();
    assert_int_equal(nbd_export_add(&disk, "disk", false, false), 0);
    struct nbd_block_sizes sizes = nbd_export_block_sizes(nbd_export_at(0));
    assert_int_equal(sizes.minimum, 512);
    assert_int_equal(sizes.preferred, 4096);
    assert_int_equal(sizes.maximum, NBD_REQUEST_BYTES_MAX);
    disk.limits.block_bytes = 4096;
    disk.limits.physical_block_bytes = 16384;
    disk.limits.optimal_io_bytes = 65536;
    sizes = nbd_export_block_sizes(nbd_export_at(0));
    assert_int_equal(sizes.minimum, 4096);
    assert_int_equal(sizes.preferred, 65536);
}

/* NBD protocol: the preferred size is a power of two. */
TEST(an_optimal_size_that_is_no_power_of_two_is_not_announced) {
    set_up();
    disk.limits.optimal_io_bytes = 5 * 4096;
    assert_int_equal(nbd_export_add(&disk, "disk", false, false), 0);
    assert_int_equal(nbd_export_block_sizes(nbd_export_at(0)).preferred, 4096);
}

TEST(exports_are_found_by_their_whole_name_only) {
    set_up();
    assert_int_equal(nbd_export_add(&disk, "vda", false, false), 0);
    assert_int_equal(nbd_export_add(&disk, "vdab", false, false), 0);
    assert_ptr_equal(nbd_export_find("vda", 3), nbd_export_at(0));
    assert_ptr_equal(nbd_export_find("vdab and more", 4), nbd_export_at(1));
    assert_null(nbd_export_find("vd", 2));
    assert_null(nbd_export_find("vdabc", 5));
    assert_null(nbd_export_find("vda\0", 4));
    assert_null(nbd_export_at(2));
}

TEST(the_empty_name_is_the_default) {
    set_up();
    assert_null(nbd_export_find("", 0));
    assert_int_equal(nbd_export_add(&disk, "a", false, false), 0);
    assert_int_equal(nbd_export_add(&disk, "b", false, false), 0);
    assert_ptr_equal(nbd_export_find("", 0), nbd_export_at(0));
    assert_int_equal(nbd_export_set_default("b"), 0);
    assert_ptr_equal(nbd_export_find("", 0), nbd_export_at(1));
    assert_int_equal(nbd_export_set_default("c"), -ENOENT);
    assert_logged("nbd: default=c refused: there is no such export");
    assert_ptr_equal(nbd_export_find("", 0), nbd_export_at(1));
}

TEST(a_name_that_is_taken_is_refused) {
    set_up();
    assert_int_equal(nbd_export_add(&disk, "a", false, false), 0);
    assert_int_equal(nbd_export_add(&disk, "a", true, false), -EEXIST);
    assert_logged("nbd: a second export a left out");
    assert_null(nbd_export_at(1));
    assert_false(nbd_export_at(0)->is_read_only);
}

TEST(a_name_has_a_length_within_the_limit) {
    static char name[NBD_EXPORT_NAME_MAX + 2];
    set_up();
    memset(name, 'n', NBD_EXPORT_NAME_MAX + 1);
    assert_int_equal(nbd_export_add(&disk, "", false, false), -EINVAL);
    assert_int_equal(nbd_export_add(&disk, name, false, false), -EINVAL);
    name[NBD_EXPORT_NAME_MAX] = '\0';
    assert_int_equal(nbd_export_add(&disk, name, false, false), 0);
}

TEST(one_export_too_many_is_refused) {
    static char names[NBD_EXPORTS_MAX + 1][8];
    set_up();
    for (unsigned i = 0; i < NBD_EXPORTS_MAX; i++) {
        (void)snprintf(names[i], sizeof names[i], "e%u", i);
        assert_int_equal(nbd_export_add(&disk, names[i], false, false), 0);
    }
    assert_int_equal(nbd_export_add(&disk, "last", false, false), -ENOSPC);
    assert_logged("nbd: last left out: 64 exports are the limit");
}

TEST(an_alias_finds_the_export_and_is_not_listed) {
    set_up();
    assert_int_equal(nbd_export_add(&disk, "serial", false, false), 0);
    assert_int_equal(nbd_export_add(&disk, "other", false, false), 0);
    assert_int_equal(nbd_export_set_alias("serial", "vda"), 0);
    assert_ptr_equal(nbd_export_find("vda", 3), nbd_export_at(0));
    assert_string_equal(nbd_export_find("vda", 3)->name, "serial");
    assert_null(nbd_export_find("vd", 2));
    assert_int_equal(nbd_export_add(&disk, "vda", false, false), -EEXIST);
    assert_int_equal(nbd_export_set_alias("other", "vda"), -EEXIST);
    assert_int_equal(nbd_export_set_alias("other", "serial"), -EEXIST);
    assert_int_equal(nbd_export_set_alias("other", "other"), 0);
    assert_int_equal(nbd_export_set_alias("nobody", "vdc"), -ENOENT);
    assert_int_equal(nbd_export_set_default("vda"), 0);
    assert_ptr_equal(nbd_export_find("", 0), nbd_export_at(0));
}

TEST(the_export_of_a_disk_out_of_service_is_gone) {
    set_up();
    static struct block_device gone;
    gone = disk;
    gone.is_gone = true;
    assert_int_equal(nbd_export_add(&gone, "a", false, false), 0);
    assert_int_equal(nbd_export_add(&disk, "b", false, false), 0);
    assert_null(nbd_export_find("a", 1));
    assert_null(nbd_export_find("", 0));
    assert_string_equal(nbd_export_at(0)->name, "b");
    assert_null(nbd_export_at(1));
}

TEST(the_description_tells_the_size_that_there_is_now) {
    set_up();
    static struct block_device changing;
    changing = disk;
    assert_int_equal(nbd_export_add(&changing, "disk", false, false), 0);
    changing.capacity_bytes = UINT64_C(7) << 20;
    assert_string_equal(nbd_export_find("disk", 4)->description, "virtio-blk, 7 MiB");
    changing.capacity_bytes = UINT64_C(8) << 20;
    assert_string_equal(nbd_export_at(0)->description, "virtio-blk, 8 MiB");
}

TEST(a_suggested_size_is_preferred_when_it_is_one) {
    set_up();
    static struct block_device suggesting;
    suggesting = disk;
    suggesting.limits.optimal_io_bytes = 0;
    assert_int_equal(nbd_export_add(&suggesting, "disk", false, false), 0);
    suggesting.limits.minimum_io_bytes = 16384;
    assert_int_equal(nbd_export_block_sizes(nbd_export_at(0)).preferred, 16384);
    suggesting.limits.optimal_io_bytes = 65536;
    assert_int_equal(nbd_export_block_sizes(nbd_export_at(0)).preferred, 65536);
    suggesting.limits.optimal_io_bytes = 0;
    suggesting.limits.minimum_io_bytes = 12288; /* no power of two */
    assert_int_equal(nbd_export_block_sizes(nbd_export_at(0)).preferred, 4096);
}
