/* What is the same on every virtio transport: core/virtio/transport.c. The transport here is a
 * handful of variables. */
#include "core/virtio/transport.h"

#include <string.h>

#include "boot/host/host.h"
#include "tests/unit/unit.h"

#define FEATURE_A (UINT64_C(1) << 3)
#define FEATURE_B (UINT64_C(1) << 5)
#define FEATURE_C (UINT64_C(1) << 60)

static const struct virtio_feature_name names[] = {{FEATURE_A, "A"}, {FEATURE_B, "B"}, {0, NULL}};

struct fake {
    struct virtio_transport transport;
    uint32_t status;
    uint32_t status_after_reset; /* reads back until `reset_reads` reads are done */
    unsigned reset_reads;
    uint32_t statuses[16]; /* as written */
    unsigned writes;
    uint64_t offered;
    uint64_t written;
    bool refuses_features;
    uint8_t config[16];
    size_t config_bytes;
    uint32_t generation;
    unsigned changes_left; /* the configuration changes under so many more reads */
    unsigned barriers;
};

static struct fake *fake_of(struct virtio_transport *transport) {
    return (struct fake *)transport;
}

static uint32_t status_read(struct virtio_transport *transport) {
    struct fake *fake = fake_of(transport);
    host_clock_advance(NS_PER_US);
    if (fake->reset_reads > 0) {
        fake->reset_reads--;
        return fake->status_after_reset;
    }
    return fake->status;
}

static void status_write(struct virtio_transport *transport, uint32_t status) {
    struct fake *fake = fake_of(transport);
    if (fake->refuses_features) {
        status &= ~(uint32_t)VIRTIO_STATUS_FEATURES_OK;
    }
    fake->status = status;
    if (fake->writes < ARRAY_COUNT(fake->statuses)) {
        fake->statuses[fake->writes++] = status;
    }
}

static uint64_t features_read(struct virtio_transport *transport) {
    return fake_of(transport)->offered;
}

static void features_write(struct virtio_transport *transport, uint64_t features) {
    fake_of(transport)->written = features;
}

static void config_read(struct virtio_transport *transport, size_t offset, void *buf,
                        size_t bytes) {
    struct fake *fake = fake_of(transport);
    memcpy(buf, fake->config + offset, bytes);
    if (fake->changes_left > 0) {
        fake->changes_left--;
        fake->generation++;
        memset(fake->config, (int)fake->generation, sizeof fake->config);
    }
}

static void config_write8(struct virtio_transport *transport, size_t offset, uint8_t value) {
    fake_of(transport)->config[offset] = value;
}

static uint32_t config_generation(struct virtio_transport *transport) {
    return fake_of(transport)->generation;
}

static size_t config_bytes(struct virtio_transport *transport) {
    return fake_of(transport)->config_bytes;
}

static void barrier(struct virtio_transport *transport) {
    fake_of(transport)->barriers++;
}

static const struct virtio_transport_ops ops = {.status_read = status_read,
                                                .status_write = status_write,
                                                .features_read = features_read,
                                                .features_write = features_write,
                                                .config_read = config_read,
                                                .config_write8 = config_write8,
                                                .config_generation = config_generation,
                                                .config_bytes = config_bytes,
                                                .barrier = barrier};

static struct device_node node = {.name = "fake"};

static struct fake new_fake(void) {
    return (struct fake){.transport = {.ops = &ops, .node = &node},
                         .offered = VIRTIO_F_VERSION_1 | FEATURE_A | FEATURE_B | FEATURE_C,
                         .config_bytes = 16};
}

TEST(negotiation_takes_the_steps_in_order) {
    struct fake fake = new_fake();
    assert_int_equal(virtio_negotiate(&fake.transport, FEATURE_A, names), 0);
    virtio_driver_ok(&fake.transport);
    static const uint32_t expected[] = {0, 1, 1 | 2, 1 | 2 | 8, 1 | 2 | 8 | 4};
    assert_int_equal(fake.writes, ARRAY_COUNT(expected));
    assert_memory_equal(fake.statuses, expected, sizeof expected);
}

TEST(what_is_accepted_is_offered_and_wanted) {
    struct fake fake = new_fake();
    uint64_t wanted = FEATURE_A | VIRTIO_F_EVENT_IDX;
    assert_int_equal(virtio_negotiate(&fake.transport, wanted, names), 0);
    assert_int_equal(fake.written, VIRTIO_F_VERSION_1 | FEATURE_A);
    assert_int_equal(fake.transport.features, fake.written);
    assert_int_equal(fake.transport.features_offered, fake.offered);
    assert_true(virtio_has(&fake.transport, FEATURE_A));
    assert_false(virtio_has(&fake.transport, FEATURE_B));
    assert_false(virtio_has(&fake.transport, VIRTIO_F_EVENT_IDX));
}

TEST(a_device_that_nobody_drives_has_no_driver) {
    assert_null(virtio_find_driver(VIRTIO_ID_NET)); /* the unit tests' table is empty */
}

TEST(an_iommu_that_could_be_used_is_said) {
    struct fake fake = new_fake();
    fake.offered |= VIRTIO_F_ACCESS_PLATFORM;
    assert_int_equal(virtio_negotiate(&fake.transport, FEATURE_A, names), 0);
    assert_false(virtio_has(&fake.transport, VIRTIO_F_ACCESS_PLATFORM));
    assert_logged("fake: could use an IOMMU");
}

TEST(every_feature_bit_is_logged_by_name_or_number) {
    struct fake fake = new_fake();
    assert_int_equal(virtio_negotiate(&fake.transport, FEATURE_B, names), 0);
    assert_logged("fake: offers: A B VERSION_1 bit60");
    assert_logged("fake: accepted: B VERSION_1");
    fake.offered = UINT64_MAX;
    assert_int_equal(virtio_negotiate(&fake.transport, UINT64_MAX, names), 0);
}

TEST(a_device_that_is_not_modern_is_refused_and_marked) {
    struct fake fake = new_fake();
    fake.offered &= ~VIRTIO_F_VERSION_1;
    assert_int_equal(virtio_negotiate(&fake.transport, FEATURE_A, names), -ENOTSUP);
    assert_true((fake.status & VIRTIO_STATUS_FAILED) != 0);
    assert_false((fake.status & VIRTIO_STATUS_FEATURES_OK) != 0);
    assert_logged("fake: offers no VIRTIO_F_VERSION_1");
}

TEST(a_device_that_refuses_its_own_offer_is_refused_and_marked) {
    struct fake fake = new_fake();
    fake.refuses_features = true;
    assert_int_equal(virtio_negotiate(&fake.transport, FEATURE_A, names), -ENOTSUP);
    assert_true((fake.status & VIRTIO_STATUS_FAILED) != 0);
    assert_logged("refuses features 0x100000008 of its own offer");
}

TEST(a_reset_is_waited_for) {
    struct fake fake = new_fake();
    fake.status_after_reset = 0x4f;
    fake.reset_reads = 50;
    assert_int_equal(virtio_reset(&fake.transport), 0);
    assert_int_equal(fake.reset_reads, 0);
    assert_int_equal(fake.statuses[0], 0);
}

TEST(a_reset_that_never_ends_is_given_up_and_the_device_marked) {
    struct fake fake = new_fake();
    fake.status_after_reset = 0x4f;
    fake.reset_reads = UINT32_MAX;
    assert_int_equal(virtio_reset(&fake.transport), -ETIMEDOUT);
    assert_logged("fake: does not finish its reset, status 0x4f");
    assert_true(arch_clock_ns() - UNIT_CLOCK_START_NS < NS_PER_S);
    assert_int_equal(virtio_negotiate(&fake.transport, FEATURE_A, names), -ETIMEDOUT);
    assert_true((fake.status & VIRTIO_STATUS_FAILED) != 0);
    assert_int_equal(fake.written, 0);
}

TEST(configuration_is_read_up_to_its_end_and_no_further) {
    struct fake fake = new_fake();
    uint8_t buf[16];
    assert_int_equal(virtio_config_read(&fake.transport, 0, buf, 16), 0);
    assert_int_equal(virtio_config_read(&fake.transport, 15, buf, 1), 0);
    assert_int_equal(virtio_config_read(&fake.transport, 15, buf, 2), -ERANGE);
    assert_int_equal(virtio_config_read(&fake.transport, 16, buf, 1), -ERANGE);
    assert_int_equal(virtio_config_read(&fake.transport, SIZE_MAX, buf, 2), -ERANGE);
    fake.config_bytes = 0;
    assert_int_equal(virtio_config_read(&fake.transport, 0, buf, 1), -ERANGE);
}

TEST(configuration_that_changes_meanwhile_is_read_again) {
    struct fake fake = new_fake();
    uint8_t buf[16];
    uint8_t expected[16];
    fake.changes_left = 3;
    assert_int_equal(virtio_config_read(&fake.transport, 0, buf, 16), 0);
    memset(expected, 3, sizeof expected);
    assert_memory_equal(buf, expected, sizeof expected);
}

TEST(configuration_that_never_stands_still_is_given_up) {
    struct fake fake = new_fake();
    uint8_t buf[4];
    fake.changes_left = UINT32_MAX;
    assert_int_equal(virtio_config_read(&fake.transport, 0, buf, 4), -EAGAIN);
    assert_logged("fake: its configuration never stands still");
}

TEST(the_sleep_barrier_is_the_transport_s) {
    struct fake fake = new_fake();
    virtio_sleep_barrier(&fake.transport);
    assert_int_equal(fake.barriers, 1);
}

TEST(a_byte_is_written_within_the_configuration_only) {
    struct fake fake = new_fake();
    assert_int_equal(virtio_config_write8(&fake.transport, 15, 0x5a), 0);
    assert_int_equal(fake.config[15], 0x5a);
    assert_int_equal(virtio_config_write8(&fake.transport, 16, 1), -ERANGE);
    assert_int_equal(virtio_config_write8(&fake.transport, SIZE_MAX, 1), -ERANGE);
}

static void reset_in_task(void *arg) {
    struct fake *fake = arg;
    uint64_t begun_ns = arch_clock_ns();
    fake->status_after_reset = VIRTIO_STATUS_DRIVER_OK;
    fake->reset_reads = 20;
    assert_int_equal(virtio_reset_in_task(&fake->transport, 1000), 0);
    assert_true(arch_clock_ns() - begun_ns >= 19 * NS_PER_MS); /* asleep between two looks */
    fake->reset_reads = 1000000;
    assert_int_equal(virtio_reset_in_task(&fake->transport, 100), -ETIMEDOUT);
    assert_logged("does not finish its reset within 100 ms, status 0x4");
    fake->status_after_reset = VIRTIO_NOTHING_THERE;
    assert_int_equal(virtio_reset_in_task(&fake->transport, 100), -ENODEV);
}

TEST(a_reset_in_a_task_waits_gives_up_and_knows_what_is_gone) {
    static struct fake fake;
    fake = new_fake();
    unit_run_task(reset_in_task, &fake);
}

TEST(a_dump_names_what_was_offered_and_taken) {
    struct fake fake = new_fake();
    assert_int_equal(virtio_negotiate(&fake.transport, FEATURE_A, names), 0);
    unit_log_clear();
    virtio_dump(&fake.transport, names, 0);
    assert_logged("fake: status 0xb, interrupts 0");
    assert_logged("fake: offers: A B VERSION_1 bit60");
    assert_logged("fake: accepted: A VERSION_1");
}
