/* The network driver against a card that goes wrong: net/virtio_net.c. */
#include <errno.h>
#include <lwip/init.h>
#include <lwip/pbuf.h>
#include <string.h>

#include "boot/host/host.h"
#include "config/limits.h"
#include "core/config.h"
#include "core/mem/io_buffer.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "net/counters.h"
#include "tests/unit/fake_card.h"
#include "tests/unit/unit.h"

#define LARGE_RECEIVE (CARD_GUEST_CSUM | CARD_GUEST_TSO4 | CARD_MRG_RXBUF)

enum { LARGE_BUFFER = 4096 - 2, FRAME_MOST = 65535 + 14 };

static struct virtio_net *net;
static uint8_t bytes[80 * 1024];

static void begin_with(uint64_t features, size_t dma_bytes) {
    static bool has_lwip;
    if (!has_lwip) {
        lwip_init(); /* for its pools */
        has_lwip = true;
    }
    memset(&net_counters, 0, sizeof net_counters);
    fake_card_set_up(features);
    assert_int_equal(dma_bytes > 0 ? fake_card_probe_with(dma_bytes) : fake_card_probe(), 0);
    net = virtio_net_first();
    assert_non_null(net);
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)(i * 5 + i / 253);
    }
}

static void begin(uint64_t features) {
    begin_with(features, 0);
}

static struct pbuf *receive(void) {
    bool is_sum_known = false;
    return virtio_net_receive(net, &is_sum_known);
}

/* The next frame is the first `length` of the bytes, in so many buffers. */
static void expect_frame(size_t length, unsigned buffers) {
    static uint8_t got[FRAME_MOST];
    size_t at = 0;
    unsigned count = 0;
    struct pbuf *frame = receive();
    assert_non_null(frame);
    for (const struct pbuf *part = frame; part != NULL; part = part->next) {
        assert_true(part->len <= sizeof got - at);
        assert_int_equal(part->tot_len, (u16_t)(length - at));
        memcpy(got + at, part->payload, part->len);
        at += part->len;
        count++;
    }
    assert_int_equal(at, length);
    assert_memory_equal(got, bytes, length);
    assert_int_equal(count, buffers);
    pbuf_free(frame);
}

TEST(a_frame_comes_whole_out_of_as_many_buffers_as_it_takes) {
    begin(LARGE_RECEIVE);
    fake_card_deliver(bytes, 60, 0);
    fake_card_deliver(bytes, LARGE_BUFFER - 12, 0);
    fake_card_deliver(bytes, LARGE_BUFFER - 11, 0);
    fake_card_deliver(bytes, FRAME_MOST, 0);
    expect_frame(60, 1);
    expect_frame(LARGE_BUFFER - 12, 1);
    expect_frame(LARGE_BUFFER - 11, 2);
    expect_frame(FRAME_MOST, 17);
    assert_null(receive());
    fake_card_unplug();
}

/* A write's payload can go from there to the disk in one piece, aligned as disks like it. */
TEST(in_large_buffers_a_page_begins_behind_the_headers_of_a_write) {
    enum { PAYLOAD = 4096, FRAMES = 2000 };
    begin_with(LARGE_RECEIVE, (size_t)9 * 1024 * 1024); /* 1,024 buffers of 8 KiB and the rings */
    size_t headers = 0;
    for (unsigned i = 0; i < 4 * FRAMES; i++) {
        if (i % FRAMES == 0) {
            headers = i / FRAMES % 2 == 0 ? NET_RX_PAGE_BEHIND_MAX : NET_RX_PAGE_BEHIND_MAX - 4;
            virtio_net_begin_page(net, headers);
        }
        fake_card_deliver(bytes, headers + PAYLOAD, 0);
        struct pbuf *frame = receive();
        assert_non_null(frame);
        assert_null(frame->next);
        if (i % FRAMES >= CARD_RING) { /* what the device had before is used up */
            assert_int_equal(((uintptr_t)frame->payload + headers) % PAYLOAD, 0);
        }
        assert_memory_equal(frame->payload, bytes, headers + PAYLOAD);
        pbuf_free(frame);
        virtio_net_flush(net);
    }
    fake_card_unplug();
}

TEST(no_buffer_reaches_beyond_the_memory_that_the_driver_has) {
    for (size_t more = 0; more < 8192; more += 509) {
        size_t dma_bytes = (size_t)9 * 1024 * 1024 + more;
        begin_with(LARGE_RECEIVE, dma_bytes);
        const uint8_t *first = io_buffer_data(&card.dma);
        while (fake_card_buffers() > 0) {
            fake_card_deliver(bytes, 8000, 0);
        }
        struct pbuf *frame;
        while ((frame = receive()) != NULL) {
            const uint8_t *data = frame->payload;
            assert_true(data >= first && data + 8000 <= first + dma_bytes);
            pbuf_free(frame);
        }
        fake_card_unplug();
        io_buffer_release(&card.dma);
    }
}

/* The device is reset and done with, and nobody asks it any more. */
static void expect_broken(const char *why) {
    struct pbuf *frame = pbuf_alloc(PBUF_LINK, 60, PBUF_RAM);
    assert_null(receive());
    assert_logged(why);
    assert_int_equal(net_counters.device_errors, 1);
    assert_int_equal(card.status, VIRTIO_STATUS_FAILED);
    assert_null(receive());
    assert_int_equal(virtio_net_send(net, frame, 1460), -EIO);
    assert_int_equal(net_counters.device_errors, 1);
    virtio_net_flush(net);
    assert_int_equal(fake_card_buffers(), 0);
    pbuf_free(frame);
    fake_card_unplug();
}

TEST(buffers_of_a_frame_that_are_not_there_break_the_device) {
    begin(LARGE_RECEIVE);
    fake_card_claim(3, 100);
    fake_card_claim(0, 100);
    expect_broken("3 buffers of a frame do not come together");
}

TEST(a_frame_longer_than_any_breaks_the_device) {
    begin(LARGE_RECEIVE);
    fake_card_claim(17, LARGE_BUFFER);
    for (unsigned i = 1; i < 17; i++) {
        fake_card_claim(0, LARGE_BUFFER);
    }
    expect_broken("17 buffers of a frame do not come together");
}

TEST(a_frame_in_more_buffers_than_any_breaks_the_device) {
    begin(LARGE_RECEIVE);
    fake_card_claim(65, 100);
    expect_broken("a frame of 100 bytes in 65 buffers makes no sense");
}

TEST(a_frame_in_no_buffer_breaks_the_device) {
    begin(LARGE_RECEIVE);
    fake_card_claim(0, 100);
    expect_broken("a frame of 100 bytes in 0 buffers makes no sense");
}

TEST(a_frame_without_an_ethernet_header_breaks_the_device) {
    begin(0);
    fake_card_claim(1, 12 + 13);
    expect_broken("a frame of 25 bytes in 1 buffers makes no sense");
}

TEST(a_buffer_that_was_never_given_breaks_the_device) {
    begin(0);
    fake_card_break_receive();
    expect_broken("receive");
}

TEST(what_was_on_its_way_to_a_broken_device_comes_back) {
    begin(0);
    struct pbuf *frame = pbuf_alloc(PBUF_LINK, 60, PBUF_RAM);
    memset(frame->payload, 0, 60);
    assert_int_equal(virtio_net_send(net, frame, 1460), 0);
    assert_int_equal(frame->ref, 2);
    fake_card_break_receive();
    assert_null(receive());
    assert_int_equal(frame->ref, 1);
    assert_int_equal(virtio_net_reclaimed(net), 1);
    pbuf_free(frame);
    fake_card_unplug();
}

/* --- Sending --- */

TEST(a_frame_that_is_not_ours_to_write_into_is_copied) {
    static uint8_t sent[CARD_FRAME_MAX];
    begin(0);
    struct pbuf *frame = pbuf_alloc(PBUF_RAW, 1000, PBUF_REF);
    frame->payload = bytes;
    unit_allocations_until_failure(0);
    assert_int_equal(virtio_net_send(net, frame, 1460), -EAGAIN);
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    assert_int_equal(fake_card_take(sent), 0);
    assert_int_equal(virtio_net_send(net, frame, 1460), 0);
    assert_int_equal(frame->ref, 1);
    virtio_net_flush(net);
    assert_int_equal(fake_card_take(sent), 1000);
    assert_memory_equal(sent, bytes, 1000);
    assert_int_equal(net_counters.bytes_copied, 1000);
    virtio_net_flush(net);
    assert_int_equal(virtio_net_reclaimed(net), 1);
    pbuf_free(frame);
    fake_card_unplug();
}

TEST(frames_count_as_read_when_all_before_them_are) {
    enum { FRAMES = 3 };
    static uint8_t sent[CARD_FRAME_MAX];
    uint16_t held[FRAMES];
    begin(0);
    struct pbuf *frame = pbuf_alloc(PBUF_LINK, 60, PBUF_RAM);
    for (unsigned i = 0; i < FRAMES; i++) {
        assert_int_equal(virtio_net_send(net, frame, 1460), 0);
    }
    virtio_net_flush(net);
    for (unsigned i = 0; i < FRAMES; i++) {
        assert_int_equal(fake_card_hold(sent, &held[i]), 60);
    }
    fake_card_done(held[1]);
    fake_card_done(held[2]);
    virtio_net_flush(net);
    assert_int_equal(frame->ref, 2); /* given back */
    assert_int_equal(virtio_net_reclaimed(net), 0);
    fake_card_done(held[0]);
    virtio_net_flush(net);
    assert_int_equal(frame->ref, 1);
    assert_int_equal(virtio_net_reclaimed(net), FRAMES);
    pbuf_free(frame);
    fake_card_unplug();
}

TEST(a_frame_that_the_device_keeps_bounds_how_many_are_sent_behind_it) {
    enum { RING = 4 };
    static uint8_t sent[CARD_FRAME_MAX];
    uint16_t oldest = 0;
    uint16_t held = 0;
    fake_card_set_up(0);
    card.ring_max = RING;
    assert_int_equal(fake_card_probe(), 0);
    net = virtio_net_first();
    struct event event = {0};
    virtio_net_set_event(net, &event);
    struct pbuf *frame = pbuf_alloc(PBUF_LINK, 60, PBUF_RAM);
    assert_int_equal(virtio_net_send(net, frame, 1460), 0);
    virtio_net_flush(net);
    assert_int_equal(fake_card_hold(sent, &oldest), 60);
    for (unsigned i = 1; i < RING; i++) {
        assert_int_equal(virtio_net_send(net, frame, 1460), 0);
        virtio_net_flush(net);
        assert_int_equal(fake_card_hold(sent, &held), 60);
        fake_card_done(held);
    }
    /* The ring has room, but who waits for the first counts on nothing behind it. */
    assert_int_equal(virtio_net_send(net, frame, 1460), -EAGAIN);
    assert_int_equal(virtio_net_reclaimed(net), 0);
    fake_card_done(oldest);
    assert_int_equal(virtio_net_send(net, frame, 1460), 0);
    assert_int_equal(virtio_net_reclaimed(net), RING);
    virtio_net_flush(net);
    assert_int_equal(fake_card_take(sent), 60);
    virtio_net_flush(net);
    assert_int_equal(virtio_net_reclaimed(net), RING + 1);
    assert_int_equal(frame->ref, 1);
    pbuf_free(frame);
    scheduler_forget();
    fake_card_unplug();
}

static bool is_armed; /* the send ring, during the last sleep (VIRTIO 1.3, 2.7.7) */

static void look_whether_it_is_armed(void *unused, uint64_t deadline_ns) {
    (void)unused;
    (void)deadline_ns;
    is_armed = card.send.available[0] == 0;
    scheduler_stop();
}

static void wait_for_room(void *event) {
    assert_int_equal(task_wait(event, UNIT_CLOCK_START_NS + NS_PER_S), 0);
}

TEST(the_send_ring_is_armed_only_as_long_as_room_is_wanted) {
    enum { RING = 4 };
    static uint8_t sent[CARD_FRAME_MAX];
    fake_card_set_up(0);
    card.ring_max = RING;
    assert_int_equal(fake_card_probe(), 0);
    net = virtio_net_first();
    struct event event = {0};
    virtio_net_set_event(net, &event);
    host_set_idle(look_whether_it_is_armed, NULL);
    struct pbuf *frame = pbuf_alloc(PBUF_LINK, 60, PBUF_RAM);
    for (unsigned round = 0; round < 3; round++) {
        while (virtio_net_send(net, frame, 1460) == 0) {
        }
        assert_int_equal(virtio_net_send(net, frame, 1460),
                         -EAGAIN); /* once more: wanted already */
        virtio_net_flush(net);
        scheduler_run();
        assert_true(is_armed);
        assert_false(event.is_set);
        assert_int_equal(fake_card_take(sent), 60);
        unit_run_task(wait_for_room, &event);
        while (fake_card_take(sent) > 0) {
        }
        virtio_net_flush(net);
        assert_true(virtio_net_take_room(net));
        assert_false(virtio_net_take_room(net));
        event_clear(&event);
        assert_int_equal(virtio_net_send(net, frame, 1460), 0);
        virtio_net_flush(net);
        assert_int_equal(fake_card_take(sent), 60);
        scheduler_run();
        assert_false(is_armed);
        assert_false(event.is_set); /* whatever the device has read */
        virtio_net_flush(net);
    }
    pbuf_free(frame);
    scheduler_forget();
    fake_card_unplug();
}

/* What connections may be promised: frames that take several buffers do not fill them. */
TEST(receive_buffers_count_as_what_a_frame_leaves_in_them) {
    static const struct {
        uint64_t features;
        uint16_t mtu;
        size_t each;
    } cards[] = {{CARD_MTU, 1500, 1500},
                 {CARD_MTU, 600, 600},
                 {CARD_MTU | CARD_MRG_RXBUF, 2048, 2048},
                 {CARD_MTU | CARD_MRG_RXBUF, 2049, 1024},
                 {CARD_MTU | CARD_MRG_RXBUF, 9000, 1024}};
    for (unsigned i = 0; i < ARRAY_COUNT(cards); i++) {
        struct virtio_net_info info;
        fake_card_set_up(cards[i].features);
        fake_card_set_mtu(cards[i].mtu);
        assert_int_equal(fake_card_probe(), 0);
        virtio_net_get_info(virtio_net_first(), &info);
        assert_int_equal(info.mtu, cards[i].mtu);
        size_t buffers = io_buffer_size(&card.dma) / 2048; /* besides the rings */
        assert_in_range(info.receive_bytes / cards[i].each, buffers * 9 / 10, buffers);
        scheduler_forget();
        fake_card_unplug();
    }
}

TEST(a_frame_of_a_wire_with_long_ones_comes_in_several_buffers) {
    fake_card_set_up(CARD_MTU | CARD_MRG_RXBUF);
    fake_card_set_mtu(9000);
    assert_int_equal(fake_card_probe(), 0);
    net = virtio_net_first();
    fake_card_deliver(bytes, 9014, 0);
    expect_frame(9014, 5);
    fake_card_unplug();
}

/* --- Probe --- */

static void expect_no_card(int error) {
    assert_int_equal(fake_card_probe(), error);
    assert_null(virtio_net_first());
    assert_true((card.status & VIRTIO_STATUS_FAILED) != 0);
    io_buffer_release(&card.dma);
}

TEST(a_card_without_an_address_is_not_used) {
    fake_card_set_up(0);
    card.offered &= ~CARD_MAC;
    expect_no_card(-ENOTSUP);
}

TEST(a_card_that_cannot_be_reset_keeps_the_memory_it_was_given) {
    fake_card_set_up(0);
    card.offered &= ~CARD_MAC;
    card.never_resets = true;
    expect_no_card(-ENOTSUP);
    assert_null(card.node.dma_buffer);
    fake_card_set_up(0);
    card.config_bytes = 0;
    expect_no_card(-ERANGE);
    assert_ptr_equal(card.node.dma_buffer, &card.dma);
}

TEST(a_card_whose_configuration_is_too_short_is_not_used) {
    static const uint64_t features[] = {0, CARD_MTU};
    for (unsigned i = 0; i < ARRAY_COUNT(features); i++) {
        fake_card_set_up(features[i]);
        card.config_bytes = CARD_CONFIG_BYTES - 1;
        expect_no_card(-ERANGE);
        assert_int_equal(card.transport.features & CARD_MTU, 0); /* who knows what it would be */
    }
}

TEST(a_card_whose_configuration_never_stands_still_is_not_used) {
    fake_card_set_up(CARD_MTU);
    card.is_restless = true;
    expect_no_card(-EAGAIN);
    assert_int_equal(card.transport.features & CARD_MTU, 0);
}

TEST(a_card_with_rings_of_one_entry_is_not_used) {
    fake_card_set_up(0);
    card.ring_max = 1;
    expect_no_card(-EINVAL);
}

TEST(a_second_card_is_not_used) {
    begin(0);
    uint32_t status = card.status;
    assert_int_equal(virtio_net_driver.probe(&card.transport), -ENODEV);
    assert_ptr_equal(virtio_net_first(), net);
    assert_int_equal(card.status, status | VIRTIO_STATUS_FAILED);
    fake_card_unplug();
}

TEST(a_card_that_there_is_no_memory_for_leaves_nothing) {
    uint64_t successes = 0;
    int error;
    for (;; successes++) {
        fake_card_set_up(0);
        size_t dma = virtio_net_driver.dma_bytes(&card.transport);
        assert_int_equal(io_buffer_init(&card.dma, dma, 4096), 0);
        card.node.dma_buffer = &card.dma;
        unit_allocations_until_failure(successes);
        error = virtio_net_driver.probe(&card.transport);
        unit_allocations_until_failure(UNIT_ALL_SUCCEED);
        if (error == 0) {
            break;
        }
        assert_int_equal(error, -ENOMEM);
        assert_null(virtio_net_first());
        io_buffer_release(&card.dma);
    }
    assert_true(successes >= 3); /* itself, its rings, its packets */
    fake_card_unplug();
}

static unsigned notifies_of_a_frame(const char *configuration) {
    assert_int_equal(config_parse(configuration), 0);
    begin(0);
    struct pbuf *frame = pbuf_alloc(PBUF_LINK, 60, PBUF_RAM);
    assert_non_null(frame);
    memcpy(frame->payload, bytes, 60);
    assert_int_equal(virtio_net_send(net, frame, UINT16_MAX), 0);
    virtio_net_flush(net);
    pbuf_free(frame);
    static uint8_t got[CARD_FRAME_MAX];
    assert_int_equal(fake_card_take(got), 60);
    virtio_net_flush(net);
    unsigned notifies = card.notifies[1];
    fake_card_unplug();
    return notifies;
}

TEST(a_frame_is_told_once) {
    assert_int_equal(notifies_of_a_frame("notify=once"), 1);
}

TEST(a_frame_is_told_twice_to_a_device_that_waits_for_that) {
    assert_int_equal(notifies_of_a_frame("notify=twice"), 2);
}

TEST(how_often_is_said_with_a_word) {
    assert_int_equal(notifies_of_a_frame("notify=2"), 1);
    assert_logged("notify=2 refused: once or twice is wanted");
}
