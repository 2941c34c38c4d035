/* Streams over TCP, and the network's task around them: net/tcp_stream.c, net/stack.c. */
#include <errno.h>
#include <lwip/etharp.h>
#include <lwip/netif.h>
#include <lwip/priv/tcp_priv.h>
#include <string.h>

#include "config/limits.h"
#include "core/config.h"
#include "net/counters.h"
#include "net/stack.h"
#include "net/tcp_connection.h"
#include "net/tcp_stream.h"
#include "tests/unit/net_world.h"
#include "tests/unit/unit.h"

enum {
    SMALL_HEAP = 1024 * 1024,
    SMALL_BUFFERS_MAX = 128, /* that the card has then, at most; a window holds fewer */
    HOARDED = 50,
    UNJOINED = NET_JOIN_BYTES_MAX + 2, /* fills a buffer of its own */
    PCBS_MAX = 256,
};

static const struct world_options plain = {0};
static const struct world_options small = {.heap_bytes = SMALL_HEAP};
static const uint8_t mss_1460[4] = {2, 4, 1460 >> 8, 1460 & 0xff};
static struct client client;
static unsigned released;
static unsigned changes;

static void count_released(struct stream_mark *mark) {
    (void)mark;
    released++;
}

static void count_change(void *unused) {
    (void)unused;
    changes++;
}

static void begin(void) {
    released = 0;
    changes = 0;
    client_connect(&client, 40000, mss_1460, sizeof mss_1460);
    assert_non_null(client.stream);
    world_forget_heard();
}

/* --- Memory --- */

/* Somebody else has so many buffers. */
static void hoard(struct client *hoarder) {
    client_connect(hoarder, 41001, mss_1460, sizeof mss_1460);
    for (unsigned i = 0; i < HOARDED; i++) {
        client_send(hoarder, world_text + (size_t)i * UNJOINED, UNJOINED);
    }
    assert_int_equal(client_received(hoarder), HOARDED * UNJOINED);
    assert_false(net_is_under_pressure());
}

/* The next bytes of world_text that were not received yet; the client believes that they were if
 * they were. */
static size_t say_unjoined(size_t said) {
    size_t before = client_received(&client);
    struct spoken spoken = {.data = world_text + said, .bytes = UNJOINED};
    client_say(&client, &spoken);
    size_t taken = client_received(&client) - before;
    client.at += (uint32_t)taken;
    return said + taken;
}

static void buffers_run_out(void) {
    struct stream_mark mark = {.released = count_released};
    struct client hoarder;
    begin();
    hoard(&hoarder);
    client_reply(&client, 0, 1000);
    client.stream->ops->mark(client.stream, &mark);
    size_t said = 0;
    while (net_counters.receive_shed == 0) {
        assert_true(said <= (size_t)UNJOINED * SMALL_BUFFERS_MAX);
        assert_false(virtio_net_is_out_of_buffers(virtio_net_first()));
        said = say_unjoined(said);
    }
    assert_int_equal(client_received(&client), said);
    assert_true(client.stream->ops->is_under_pressure(client.stream));
    assert_true(net_is_under_pressure());
    /* What carries nothing is heard all the same, and gives memory back. */
    client.due += 1000;
    client_say(&client, &(struct spoken){0});
    assert_int_equal(released, 1);
    /* All that was taken is right, and what was dropped can be said again. */
    client_expect(&client, 0, said);
    client_drop(&client);
    assert_false(net_is_under_pressure());
    size_t before = said;
    said = say_unjoined(said);
    client_expect(&client, before, said - before);
    assert_int_equal(said - before, UNJOINED);
    client_expect(&hoarder, 0, (size_t)HOARDED * UNJOINED);
}

TEST(with_hardly_any_buffer_left_only_acknowledgements_are_taken) {
    world_run(&small, buffers_run_out);
}

static void gaps_fill_buffers(void) {
    struct client hoarder;
    begin();
    hoard(&hoarder);
    unsigned beyond = 0;
    do {
        struct spoken spoken = {.seq_skew = UNJOINED * (beyond + 1),
                                .data = world_text + (size_t)UNJOINED * (beyond + 1),
                                .bytes = UNJOINED};
        client_say(&client, &spoken);
        beyond++;
        assert_true(beyond < SMALL_BUFFERS_MAX - HOARDED);
    } while (pcb_of(&client)->ooseq != NULL);
    /* Not before buffers run short; then all of them. */
    assert_true(beyond > 10);
    assert_false(net_is_under_pressure());
    assert_int_equal(net_counters.receive_shed, 0);
    assert_int_equal(client_received(&client), 0);
    size_t said = 0;
    for (unsigned i = 0; i < 4; i++) {
        said = say_unjoined(said);
    }
    client_expect(&client, 0, (size_t)4 * UNJOINED);
}

TEST(what_waits_behind_a_gap_is_given_up_when_buffers_run_short) {
    world_run(&small, gaps_fill_buffers);
}

/* The client sends so many bytes, and they are read. */
static void read_bytes(size_t bytes) {
    client_send(&client, world_text, bytes);
    assert_int_equal(client_received(&client), bytes);
    client_drop(&client);
}

static void few_consumed_bytes(void) {
    begin();
    const struct tcp_pcb *pcb = pcb_of(&client);
    const struct tcp_stream *tcp = (const struct tcp_stream *)client.stream;
    size_t window = pcb->rcv_wnd;
    for (unsigned i = 0; i < 3; i++) {
        read_bytes(NET_CONSUMED_TOLD_BYTES - 1);
        assert_int_equal(tcp->consumed, NET_CONSUMED_TOLD_BYTES - 1);
        assert_int_equal(pcb->rcv_wnd, window - (NET_CONSUMED_TOLD_BYTES - 1));
        read_bytes(1);
        assert_int_equal(tcp->consumed, 0);
        assert_int_equal(pcb->rcv_wnd, window);
        read_bytes(2 * NET_CONSUMED_TOLD_BYTES);
        assert_int_equal(pcb->rcv_wnd, window);
    }
    /* Whoever closes has no more to come that they could be told with. */
    read_bytes(1);
    client_reply(&client, 0, 100); /* it stays until this is acknowledged */
    assert_int_equal(pcb->rcv_wnd, window - 1);
    client_close(&client, false);
    world_settle();
    assert_int_equal(pcb->state, ESTABLISHED);
    assert_int_equal(tcp->consumed, 0);
    assert_int_equal(pcb->rcv_wnd, window);
    client_acknowledge(&client, 100);
}

TEST(a_few_consumed_bytes_are_told_with_the_next_ones) {
    world_run(&plain, few_consumed_bytes);
}

static void full_send_buffer(void) {
    begin();
    struct stream *stream = client.stream;
    size_t sent = 0;
    size_t accepted;
    stream->changed = count_change;
    while ((accepted = stream->ops->send(stream, world_text, UINT16_MAX)) == UINT16_MAX) {
        sent += accepted;
        assert_true(sent <= TCP_SND_BUF);
    }
    assert_int_equal(sent + accepted, TCP_SND_BUF);
    assert_int_equal(stream->ops->send(stream, world_text, 1), 0);
    stream->ops->flush(stream);
    world_settle();
    unsigned before = changes;
    client.due += 1460;
    client_say(&client, &(struct spoken){0});
    assert_true(changes > before); /* there is room */
    assert_int_equal(stream->ops->send(stream, world_text, 2000), 1460);
    stream->changed = NULL;
}

/* What waits for an answer to ARP is no frame in the ring and no segment of lwIP's any more when
 * the client acknowledges what it has not seen. */
static void acknowledged_unseen(void) {
    enum { BYTES = 1000, HEAD = 100 };
    static uint8_t memory[BYTES];
    static struct stream_parcel parcel = {.mark.released = count_released};
    begin();
    struct stream *stream = client.stream;
    memcpy(memory, world_text, sizeof memory);
    etharp_cleanup_netif(netif_default);
    world.is_silent = true;
    /* The first piece of a segment goes by itself, the next two with their parcel. */
    assert_int_equal(stream->ops->send(stream, memory, HEAD), HEAD);
    struct segment header = {memory + HEAD, HEAD};
    struct segment data = {memory + (size_t)2 * HEAD, BYTES - 2 * HEAD};
    assert_true(stream->ops->send_whole(stream, header, data, &parcel));
    world_settle();
    assert_int_equal(world.heard_count, 0);
    client.due += BYTES;
    client_say(&client, &(struct spoken){0});
    assert_int_equal(released, 1);
    memset(memory, 0xee, sizeof memory);
    memset(&parcel.notes, 0xee, sizeof parcel.notes);
    world.is_silent = false;
    world_pass_ms(3000);
    assert_int_equal(world.heard_count, 1);
    assert_int_equal(world.heard[0].bytes, BYTES);
    assert_memory_equal(world.heard[0].data, world_text, BYTES);
}

TEST(what_waits_for_an_address_needs_nobody_s_memory) {
    world_run(&plain, acknowledged_unseen);
}

/* A window that ends where only the data of the last reply is left over; what lwIP cuts off there
 * it copies when it has to wait for an address. */
static void cut_by_window(void) {
    enum { HEAD = 28, DATA = 600, WINDOW = 2 * HEAD + DATA };
    static uint8_t memory[2 * (HEAD + DATA)];
    static struct stream_parcel parcels[2] = {{.mark.released = count_released},
                                              {.mark.released = count_released}};
    begin();
    struct stream *stream = client.stream;
    memcpy(memory, world_text, sizeof memory);
    client.window = WINDOW;
    client_say(&client, &(struct spoken){.data = world_text, .bytes = 1});
    client.at++;
    world_pass_ms(500);
    world_forget_heard();
    etharp_cleanup_netif(netif_default);
    world.is_silent = true;
    struct segment second = {memory + HEAD, DATA};
    struct segment third = {memory + HEAD + DATA, HEAD};
    struct segment fourth = {memory + 2 * HEAD + DATA, DATA};
    assert_int_equal(stream->ops->send(stream, memory, HEAD), HEAD);
    assert_true(stream->ops->send_whole(stream, (struct segment){0}, second, &parcels[0]));
    assert_true(stream->ops->send_whole(stream, third, fourth, &parcels[1]));
    world_pass_ms(4000);
    assert_int_equal(world.heard_count, 0);
    world.is_silent = false;
    world_pass_ms(3000);
    assert_int_equal(world.heard[0].bytes, WINDOW);
    assert_memory_equal(world.heard[0].data, world_text, WINDOW);
    client.due += WINDOW;
    client_say(&client, &(struct spoken){0});
    world_settle();
    assert_int_equal(world_last_heard()->bytes, DATA);
    assert_memory_equal(world_last_heard()->data, world_text + WINDOW, DATA);
    client.due += DATA;
    client_say(&client, &(struct spoken){0});
    assert_int_equal(released, 2);
    client_drop(&client);
}

TEST(what_a_window_cuts_is_whole_where_it_is_copied) {
    world_run(&plain, cut_by_window);
}

TEST(what_the_send_buffer_has_no_room_for_waits_for_an_acknowledgement) {
    world_run(&plain, full_send_buffer);
}

/* --- Clients that are not served --- */

static void no_memory_for_a_client(void) {
    struct client nobody = {.port = 41000, .window = UINT16_MAX, .at = 1000};
    begin(); /* who is here already stays */
    client_say(&nobody, &(struct spoken){.flags = SYN});
    nobody.at++;
    nobody.due = world_last_heard()->seq + 1;
    unit_allocations_until_failure(0);
    client_say(&nobody, &(struct spoken){0});
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    assert_int_equal(net_counters.connections_refused, 1);
    assert_int_equal(tcp_streams_count(), 1);
    client_say(&nobody, &(struct spoken){.data = world_text, .bytes = 1});
    assert_true((world_last_heard()->flags & RST) != 0);
    client_send(&client, world_text, 10);
    client_expect(&client, 0, 10);
}

static void no_connection_for_a_client(void) {
    struct tcp_pcb *pcbs[PCBS_MAX];
    unsigned count = 0;
    begin();
    while (count < PCBS_MAX && (pcbs[count] = tcp_new()) != NULL) {
        count++;
    }
    struct client nobody = {.port = 41000, .window = UINT16_MAX, .at = 1000};
    client_say(&nobody, &(struct spoken){.flags = SYN});
    assert_int_equal(world.heard_count, 0); /* it asks again by itself */
    assert_int_equal(net_counters.connections_refused, 1);
    while (count > 0) {
        tcp_abort(pcbs[--count]);
    }
    client_connect(&nobody, 41000, NULL, 0);
    assert_non_null(nobody.stream);
    client_send(&client, world_text, 10);
    client_expect(&client, 0, 10);
}

TEST(a_client_beyond_all_connections_is_served_when_there_is_one_again) {
    world_run(&plain, no_connection_for_a_client);
}

TEST(a_client_that_there_is_no_memory_for_is_refused_alone) {
    world_run(&plain, no_memory_for_a_client);
}

static void refused(void) {
    world.refuses = true;
    client_connect(&client, 40000, NULL, 0);
    assert_null(client.stream);
    assert_true((world_last_heard()->flags & RST) != 0);
    assert_int_equal(net_counters.connections_refused, 1);
    assert_int_equal(tcp_streams_count(), 0);
}

TEST(a_client_that_the_owner_refuses_is_reset) {
    world_run(&plain, refused);
}

static bool accept_nobody(struct stream *stream, void *unused) {
    (void)stream;
    (void)unused;
    return false;
}

static void listening(void) {
    struct tcp_pcb *pcbs[PCBS_MAX];
    unsigned count = 0;
    while (count < PCBS_MAX && (pcbs[count] = tcp_new()) != NULL) {
        count++;
    }
    assert_true(count > 0 && count < PCBS_MAX);
    assert_int_equal(tcp_stream_listen(WORLD_PORT, accept_nobody, NULL), -ENOMEM);
    while (count > 0) {
        tcp_abort(pcbs[--count]);
    }
    /* Those that listen have a pool of their own. */
    while (count < MEMP_NUM_TCP_PCB_LISTEN) {
        struct tcp_pcb *pcb = tcp_new();
        assert_int_equal(tcp_bind(pcb, IP_ANY_TYPE, (u16_t)(WORLD_PORT + count)), ERR_OK);
        pcbs[count] = tcp_listen(pcb);
        assert_non_null(pcbs[count++]);
    }
    assert_int_equal(tcp_stream_listen(WORLD_PORT, accept_nobody, NULL), -EADDRINUSE);
    assert_int_equal(tcp_stream_listen(WORLD_PORT - 1, accept_nobody, NULL), -ENOMEM);
    assert_null(tcp_bound_pcbs); /* nothing is left of it */
    while (count > 0) {
        assert_int_equal(tcp_close(pcbs[--count]), ERR_OK);
    }
    assert_int_equal(tcp_stream_listen(WORLD_PORT, accept_nobody, NULL), 0);
}

TEST(a_taken_port_and_a_lack_of_memory_are_told_to_who_listens) {
    world_run(&(struct world_options){.is_mute = true}, listening);
}

/* --- The end --- */

static void takes_nothing(void) {
    struct stream_mark mark = {.released = count_released};
    begin();
    client_reply(&client, 0, 1000);
    client.stream->ops->mark(client.stream, &mark);
    client_close(&client, false);
    world_pass_ms(NET_CLOSE_TIMEOUT_MS - 1000);
    assert_int_equal(tcp_streams_count(), 1);
    assert_int_equal(released, 0); /* it may be asked for once more */
    world_pass_ms(1500);
    assert_true((world_last_heard()->flags & RST) != 0);
    world_settle();
    assert_int_equal(tcp_streams_count(), 0);
    assert_int_equal(released, 1);
    assert_logged("cut, it does not take its last bytes");
}

TEST(a_client_that_does_not_take_its_last_bytes_is_cut) {
    world_run(&plain, takes_nothing);
}

static void fin_without_memory(void) {
    begin();
    unit_allocations_until_failure(0);
    client_close(&client, false);
    world_settle();
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    assert_int_equal(world.heard_count, 0);
    world_pass_ms(1000);
    assert_int_equal(world_last_heard()->flags, FIN | ACK);
}

TEST(a_fin_that_there_is_no_memory_for_goes_later) {
    world_run(&plain, fin_without_memory);
}

static void cut_by_the_peer(void) {
    struct stream_mark mark = {.released = count_released};
    begin();
    client.stream->changed = count_change;
    client_reply(&client, 0, 1000);
    client.stream->ops->mark(client.stream, &mark);
    client_say(&client, &(struct spoken){.flags = RST});
    assert_int_equal(client.stream->state, STREAM_DEAD);
    assert_true(changes > 0);
    assert_int_equal(client.stream->ops->send(client.stream, world_text, 10), 0);
    assert_int_equal(released, 0); /* until the owner lets go */
    client_close(&client, false);
    world_settle();
    assert_int_equal(released, 1);
    assert_int_equal(tcp_streams_count(), 0);
}

TEST(a_stream_that_was_reset_is_there_until_its_owner_lets_go) {
    world_run(&plain, cut_by_the_peer);
}

/* --- The task --- */

static void foreign_frames(void) {
    static uint8_t frame[5000];
    begin();
    memset(frame, 0xff, 6);
    frame[12] = 0x12; /* of a kind that nobody knows */
    frame[13] = 0x34;
    world_deliver(frame, 60);
    assert_int_equal(net_counters.receive_dropped, 0); /* that is every wire's daily life */
    world_deliver(frame, sizeof frame);                /* longer than a buffer, and not for us */
    assert_int_equal(net_counters.receive_dropped, 1);
    client_send(&client, world_text, 10);
    client_expect(&client, 0, 10);
}

TEST(a_long_frame_that_is_not_for_us_is_dropped) {
    world_run(&(struct world_options){.features = CARD_MRG_RXBUF}, foreign_frames);
}

TEST(without_an_interface_there_is_no_network) {
    assert_int_equal(net_start(), -ENODEV);
    assert_logged("no network interface");
}

TEST(without_memory_for_dhcp_there_is_no_network) {
    fake_card_set_up(0);
    assert_int_equal(fake_card_probe(), 0);
    unit_allocations_until_failure(0);
    assert_int_equal(world_start_network(), -ENOMEM);
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    assert_logged("no memory for DHCP");
    net_forget();
    fake_card_unplug();
}

TEST(without_memory_for_its_task_there_is_no_network) {
    fake_card_set_up(0);
    assert_int_equal(fake_card_probe(), 0);
    assert_int_equal(config_parse("ip=10.0.2.15/24"), 0);
    unit_allocations_until_failure(0);
    assert_int_equal(world_start_network(), -ENOMEM);
    unit_allocations_until_failure(UNIT_ALL_SUCCEED);
    net_forget();
    fake_card_unplug();
}
