/* The server's configuration keys: apps/nbd/configure.c. */
#include <string.h>

#include "apps/nbd/export.h"
#include "apps/nbd/limit.h"
#include "apps/nbd/server.h"
#include "core/config.h"
#include "tests/unit/unit.h"

static struct nbd_server_config config;

static int configure(const char *words) {
    static struct block_device disk;
    disk = (struct block_device){.name = "vda",
                                 .model = "test",
                                 .capacity_bytes = 1 << 20,
                                 .limits = {.block_bytes = 512, .physical_block_bytes = 512}};
    nbd_export_forget();
    config_forget();
    assert_int_equal(nbd_export_add(&disk, "vda", false, false), 0);
    assert_int_equal(config_parse(words), 0);
    int error = nbd_server_configure(&config);
    return error;
}

TEST(without_words_everybody_may_do_everything) {
    assert_int_equal(configure(""), 0);
    assert_int_equal(config.port, 10809);
    assert_true(config.may_list);
    assert_true(config.keeps_allocation);
    assert_int_equal(config.idle_ms, 0);
    assert_int_equal(config.depth, NBD_DISK_DEPTH);
    assert_int_equal(config.allow.count, 0);
    assert_int_equal(config.readers.count, 0);
    assert_null(nbd_export_at(0)->limit);
}

TEST(every_key_is_taken) {
    assert_int_equal(
        configure("port=1 list=off allocation=off idle=60 depth=9 allow=10.0.0.0/8,1.2.3.4 "
                  "readonly-from=10.0.0.1 limit-bytes=vda:2M limit-requests=vda:300"),
        0);
    assert_int_equal(config.port, 1);
    assert_false(config.may_list);
    assert_false(config.keeps_allocation);
    assert_int_equal(config.idle_ms, 60000);
    assert_int_equal(config.depth, 9);
    assert_int_equal(config.allow.count, 2);
    assert_true(access_list_has(&config.readers, UINT32_C(0x0a000001)));
    assert_int_equal(nbd_export_at(0)->limit->bytes.per_s, 2 << 20);
    assert_int_equal(nbd_export_at(0)->limit->requests.per_s, 300);
    config_report_unknown();
    assert_not_logged("unknown key");
}

TEST(a_key_given_twice_adds_up_where_it_is_a_list) {
    assert_int_equal(configure("allow=10.0.0.1 allow=10.0.0.2"), 0);
    assert_int_equal(config.allow.count, 2);
}

TEST(a_number_that_makes_no_sense_is_named_and_the_default_used) {
    assert_int_equal(configure("port=65536 idle=long"), 0);
    assert_int_equal(config.port, 10809);
    assert_int_equal(config.idle_ms, 0);
    assert_logged("port=65536");
    assert_logged("idle=long");
}

TEST(what_would_let_somebody_in_is_not_guessed) {
    static const char *const words[] = {"allow=",
                                        "allow",
                                        "allow=10.0.0.300",
                                        "allow=10.0.0.1/24",
                                        "readonly-from=everybody",
                                        "readonly-from=10.0.0.1,",
                                        "limit-bytes=vda",
                                        "limit-bytes=vda:",
                                        "limit-bytes=vda:fast",
                                        "limit-bytes=vda:10T",
                                        "limit-bytes=vda:4095",
                                        "limit-bytes=vda:1M,",
                                        "limit-requests=vda:0",
                                        "limit-requests=10"};
    for (size_t i = 0; i < ARRAY_COUNT(words); i++) {
        assert_int_equal(configure(words[i]), -EINVAL);
        assert_logged("nothing is served");
        unit_log_clear();
    }
}

TEST(a_limit_for_an_export_that_there_is_not_is_refused) {
    assert_int_equal(configure("limit-bytes=vda:1M,vdb:1M"), -ENOENT);
    assert_logged("vdb:1M");
    assert_int_equal(configure("limit-bytes=:1M"), -ENOENT);
}

TEST(the_smallest_limits_are_taken) {
    assert_int_equal(configure("limit-bytes=vda:4096 limit-requests=vda:1"), 0);
    assert_int_equal(nbd_export_at(0)->limit->bytes.per_s, 4096);
    assert_int_equal(nbd_export_at(0)->limit->requests.per_s, 1);
    nbd_export_forget();
}
