/* See director.h.
 *
 *   clients work ──▶ all done, or late ──▶ they leave ──▶ nothing of them is left ──▶ key ──▶ off
 *        └── or: the key in the middle of it, or power is cut
 */
#include "tests/sim/director.h"

#include <limits.h>
#include <lwip/stats.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "apps/nbd/payload.h"
#include "boot/arch.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/io_buffer.h"
#include "core/task/scheduler.h"
#include "net/tcp_stream.h"
#include "net/virtio_net.h"
#include "tests/sim/client.h"
#include "tests/sim/disk.h"
#include "tests/sim/machine.h"
#include "tests/sim/model.h"
#include "tests/sim/net.h"
#include "tests/sim/sim.h"

enum { CLASSES_MAX = 64, KEY_STOP = 0x03, FRAMES_OF_A_BURST = 32 };

#define LOOK_NS (250 * NS_PER_MS)
/* Longest that anybody waits when nothing goes wrong. The interface may still drop frames for want
 * of buffers, which costs a retransmission or a few. */
#define PATIENCE_NS (3 * NS_PER_S)
/* With room for so few frames that a peer's every burst loses most of its own, and peers that begin
 * each time with a burst that is as long: a time-out for every twenty frames. */
#define PATIENCE_CUT_NS (6 * NS_PER_S)
/* With clients who take nothing for seconds, or a limit of requests by the second. */
#define PATIENCE_SLOW_NS (30 * NS_PER_S)
/* A peer that takes nothing is given up after 80 s (config/lwipopts.h). */
#define PATIENCE_AFTER_FAULTS_NS (240 * NS_PER_S)
#define START_NS                 (10 * NS_PER_S)
/* Until what belongs to the start only (a task that looked at the disk, the first frames) is gone.
 */
#define SETTLE_NS (100 * NS_PER_MS)
/* Connections in TIME_WAIT, clients that vanished; from the end of the faults. */
#define EMPTY_NS (400 * NS_PER_S)
/* Draining has its deadlines; the last flushes have the disk's. */
#define STOP_NS (600 * NS_PER_S)

enum act { ACT_START, ACT_SETTLE, ACT_WORK, ACT_LEAVE, ACT_EMPTY, ACT_STATUS, ACT_STOP };

static enum act act;
static uint64_t act_since_ns;
static int report_fd = -1;
static uint64_t run_seed;
/* What the heap held when the appliance had just started. */
static size_t objects_at_start[CLASSES_MAX];
static size_t buffers_at_start;
static size_t payload_at_start;

bool director_is_serving(void) {
    return act > ACT_SETTLE;
}

void director_set_report(int fd) {
    report_fd = fd;
}

void director_report_failure(const char *text) {
    if (report_fd >= 0) {
        (void)!write(report_fd, text, strlen(text)); /* then it goes without saying */
    }
}

bool director_may_panic(const char *report) {
    return act == ACT_START && machine_allocations_failed() > 0 &&
           (strstr(report, "no memory") != NULL || strstr(report, "no page") != NULL ||
            strstr(report, "no walls") != NULL);
}

/* Each size that the appliance has seen is one that the disk had. */
static void check_sizes(void) {
    static const char words[] = "changes its size from ";
    for (const char *at = machine_log(); (at = strstr(at, words)) != NULL;) {
        char *end = NULL;
        at += sizeof words - 1;
        (void)strtoull(at, &end, 10); /* what it was before */
        if (strncmp(end, " to ", 4) == 0 && strchr(end, '\n') != NULL) {
            SIM_CHECK(disk_had_bytes(strtoull(end + 4, NULL, 10)));
        }
    }
}

static _Noreturn void end_well(void) {
    check_sizes();
    struct run_report report = {.magic = RUN_REPORT_MAGIC,
                                .seed = run_seed,
                                .hash = trace_hash(),
                                .virtual_ns = world_now_ns(),
                                .requests = client_totals.requests,
                                .answers = client_totals.answers,
                                .connections = client_totals.connections,
                                .bytes = client_totals.bytes_read + client_totals.bytes_written};
    if (report_fd >= 0) {
        SIM_CHECK(write(report_fd, &report, sizeof report) == (ssize_t)sizeof report);
    }
    trace("longest wait %llu us, sound %llu, stalls %llu, vanish %llu",
          client_totals.longest_ns / NS_PER_US, plan.is_sound, plan.stalls, plan.vanishes);
    trace("the run ends well: %llu requests, %llu answers, %llu connections, %llu bytes",
          report.requests, report.answers, report.connections, report.bytes);
    sim_end_process(SIM_PASSED);
}

void director_gave_up(void) {
    trace("the appliance has no memory to start with", 0, 0, 0, 0);
    end_well();
}

static void begin_act(enum act next) {
    trace("act %llu begins", next, 0, 0, 0);
    act = next;
    act_since_ns = world_now_ns();
}

static bool takes_longer_than(uint64_t ns) {
    return world_now_ns() > act_since_ns + ns;
}

/* --- What must be as it was --------------------------------------------------------------------
 */

static void take_stock(void) {
    size_t bytes;
    size_t pages;
    for (unsigned i = 0; i < CLASSES_MAX; i++) {
        if (!heap_get_class(i, &bytes, &objects_at_start[i], &pages)) {
            break;
        }
    }
    buffers_at_start = io_buffer_count();
    payload_at_start = nbd_payload_free();
    SIM_CHECK(payload_at_start == nbd_payload_total());
}

/* Objects of some size that are in use beyond what there were at the start: 0 when there are none.
 * Fewer are in order: something of the start has ended since, a look at a disk that was slow. */
static size_t leaked_object_bytes(void) {
    size_t bytes;
    size_t objects;
    size_t pages;
    for (unsigned i = 0; i < CLASSES_MAX && heap_get_class(i, &bytes, &objects, &pages); i++) {
        if (objects > objects_at_start[i]) {
            return bytes;
        }
    }
    return 0;
}

static bool is_all_back(void) {
    for (unsigned i = 0; i < MEMP_MAX; i++) {
        bool is_kept = i == MEMP_TCP_PCB_LISTEN || i == MEMP_SYS_TIMEOUT || i == MEMP_UDP_PCB;
        if (!is_kept && lwip_stats.memp[i]->used != 0) {
            return false;
        }
    }
    const struct virtio_net *net = virtio_net_first();
    return tcp_streams_count() == 0 && nbd_payload_free() == payload_at_start && net_is_idle() &&
           virtio_net_sent(net) == virtio_net_reclaimed(net) && leaked_object_bytes() == 0 &&
           io_buffer_count() == buffers_at_start && !plan_has_faults();
}

/* What the pools lack, in words. */
static void fail_for_leak(void) {
    for (unsigned i = 0; i < MEMP_MAX; i++) {
        if (lwip_stats.memp[i]->used != 0) {
            trace("lwIP's pool %llu has %llu in use", i, lwip_stats.memp[i]->used, 0, 0);
        }
    }
    sim_fail(
        "when everybody has gone: %u streams, %zu of %zu bytes of payload free, objects of %zu "
        "bytes left",
        tcp_streams_count(), nbd_payload_free(), payload_at_start, leaked_object_bytes());
}

/* A number behind `before` in the last line that begins with `line`. */
static unsigned long status_number(const char *line, const char *before) {
    const char *log = machine_log();
    unsigned long number = ULONG_MAX;
    for (const char *at = log; (at = strstr(at, line)) != NULL; at++) {
        const char *found = strstr(at, before);
        number = found != NULL ? strtoul(found + strlen(before), NULL, 10) : number;
    }
    if (number == ULONG_MAX) {
        sim_fail("the status says nothing of \"%s\"", before);
    }
    return number;
}

static void check_status(void) {
    unsigned long ios_free = status_number("nbd: 0 connections", "ios ");
    unsigned long ios_all = status_number("nbd: 0 connections", " of ");
    SIM_CHECK(ios_free == ios_all);
    bool is_spoiled = plan.interrupt_late != 0 || plan.interrupt_lost != 0;
    unsigned long rescued = status_number("scheduler: ", "rescued ");
    if (rescued != 0 && !is_spoiled) {
        sim_fail("%lu wake-ups were lost, and only the clock has rescued them", rescued);
    }
    if (!net_is_broken()) {
        unsigned long buffers = status_number("net: received", ", buffers ");
        unsigned long free_buffers = status_number("net: received", "(free ");
        unsigned long in_ring = status_number("queue receive: size", "in flight ");
        if (buffers != free_buffers + in_ring) {
            sim_fail("of %lu receive buffers %lu are free and %lu in the ring", buffers,
                     free_buffers, in_ring);
        }
    }
}

/* --- The acts ----------------------------------------------------------------------------------
 */

static uint64_t patience_ns(void) {
    uint64_t disk_ns = 4 * plan.timeout_s * NS_PER_S;
    bool cuts_bursts = plan.receive_ring + plan.backlog < FRAMES_OF_A_BURST;
    bool is_slow = plan.stalls != 0 || plan.has_limit;
    return !plan.is_sound ? PATIENCE_AFTER_FAULTS_NS + disk_ns
           : is_slow      ? PATIENCE_SLOW_NS
           : cuts_bursts  ? PATIENCE_CUT_NS
                          : PATIENCE_NS;
}

/* What cannot be asked of the appliance any more: an answer without a network, or from a disk that
 * keeps what it was given for ever. */
static bool has_lost_everything(void) {
    return net_is_broken() || disk_is_stuck();
}

static void start(void) {
    if (strstr(machine_log(), "ready ") != NULL) {
        begin_act(ACT_SETTLE);
    } else if (takes_longer_than(START_NS)) {
        if (machine_allocations_failed() > 0 && machine_log()[0] == '\0') {
            director_gave_up(); /* it has no console, so nobody can tell */
        }
        sim_fail("the appliance does not come up");
    }
}

static void work(void) {
    if (!has_lost_everything()) {
        clients_check_progress(plan.faults_end_ns, patience_ns());
    }
    if (clients_are_done()) {
        begin_act(ACT_EMPTY);
    } else if (takes_longer_than(plan.faults_end_ns + 60 * NS_PER_S) || has_lost_everything()) {
        clients_finish();
        begin_act(ACT_LEAVE);
    }
}

static void leave(void) {
    if (!has_lost_everything()) {
        clients_check_progress(plan.faults_end_ns, patience_ns());
    }
    if (clients_are_done() || has_lost_everything()) {
        begin_act(ACT_EMPTY);
    }
}

static void empty(void) {
    if (is_all_back() ||
        (takes_longer_than(EMPTY_NS + plan.faults_end_ns) && has_lost_everything())) {
        machine_press('s');
        machine_press('d');
        begin_act(ACT_STATUS);
    } else if (takes_longer_than(EMPTY_NS + plan.faults_end_ns)) {
        fail_for_leak();
    }
}

static void press_stop(void) {
    clients_expect_shutdown();
    machine_press(KEY_STOP);
    begin_act(ACT_STOP);
}

static void status(void) {
    if (strstr(machine_log(), "--- end of devices") == NULL || log_is_waiting()) {
        SIM_CHECK(!takes_longer_than(START_NS));
        return;
    }
    if (!has_lost_everything()) {
        check_status();
    }
    press_stop();
}

static void look(void *arg, uint64_t word) {
    (void)arg;
    (void)word;
    switch (act) {
    case ACT_START:
        start();
        break;
    case ACT_SETTLE:
        if (takes_longer_than(SETTLE_NS)) {
            take_stock();
            begin_act(ACT_WORK);
            clients_begin();
        }
        break;
    case ACT_WORK:
        work();
        break;
    case ACT_LEAVE:
        leave();
        break;
    case ACT_EMPTY:
        empty();
        break;
    case ACT_STATUS:
        status();
        break;
    case ACT_STOP:
        if (takes_longer_than(STOP_NS)) {
            sim_fail("the appliance does not stop");
        }
        break;
    }
    world_after(act <= ACT_SETTLE ? NS_PER_MS : LOOK_NS, look, NULL, 0);
}

static void end_early(void *arg, uint64_t word) {
    (void)arg;
    (void)word;
    if (act == ACT_STOP || act <= ACT_SETTLE) {
        return;
    }
    if (plan.end == END_POWER_CUT) {
        disk_power_cut();
        model_power_cut();
        end_well();
    }
    press_stop();
}

void director_power_is_off(bool failed) {
    trace("power is off, failed %llu", failed, 0, 0, 0);
    if (act <= ACT_SETTLE) {
        /* Without memory, or with a disk that does not work, it may refuse to serve, and say so. */
        if (machine_allocations_failed() == 0 || !failed) {
            sim_fail("the appliance does not want to serve");
        }
        end_well();
    }
    SIM_CHECK(act == ACT_STOP);
    if (failed && !disk_has_misbehaved() && !disk_is_gone()) {
        sim_fail("the appliance says that a disk could not be flushed");
    }
    if (!failed) {
        model_check_all_durable();
    }
    end_well();
}

void director_play(uint64_t seed, bool shows_trace) {
    struct world_options options = {.seed = seed, .shows_trace = shows_trace};
    run_seed = seed;
    world_begin(&options);
    plan_make();
    plan_show();
    world_set_hiccups(plan.hiccup_permille, plan.hiccup_ns_max);
    net_set_up();
    disk_set_up();
    world_after(NS_PER_MS, look, NULL, 0);
    if (plan.end != END_QUIET) {
        world_after(plan.end_ns, end_early, NULL, 0);
    }
    machine_run();
}
