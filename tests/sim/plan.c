/* What a seed makes of a run. Many have no fault at all, many one kind, some everything. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "boot/arch.h"
#include "tests/sim/disk.h"
#include "tests/sim/machine.h"
#include "tests/sim/net.h"
#include "tests/sim/sim.h"

#define COMMON_FEATURES (UINT64_C(1) << 32) /* VERSION_1 */
#define INDIRECT        (UINT64_C(1) << 28)
#define EVENT_IDX       (UINT64_C(1) << 29)

/* What the parts of a large request take together, one after the other. */
#define LARGE_REQUEST_NS (50 * NS_PER_MS)
#define PARTS_MANY       1000
/* So many clients may send so many frames each at once. */
#define CLIENTS_MANY   20
#define FRAMES_OF_EACH 3

struct plan plan;

bool plan_has_faults(void) {
    return world_now_ns() < plan.faults_end_ns;
}

bool fault_strikes(unsigned permille) {
    return permille != 0 && plan_has_faults() && luck_has(permille);
}

static uint64_t maybe(uint64_t feature, unsigned permille) {
    return luck_has(permille) ? feature : 0;
}

static unsigned power_of_two(unsigned low, unsigned high) {
    unsigned value = low;
    while (value < high && luck_has(750)) {
        value *= 2;
    }
    return value;
}

/* One of the usual rates: seldom, now and then, often. */
static unsigned rate(void) {
    static const unsigned rates[] = {2, 10, 40, 120};
    return rates[luck_below(ARRAY_COUNT(rates))];
}

static void plan_machine(void) {
    static const size_t sizes[] = {5, 8, 16, 32, 64};
    plan.memory_bytes = sizes[luck_below(ARRAY_COUNT(sizes))] << 20;
    plan.timeout_s = (unsigned)luck_between(1, 10);
    plan.has_checks = luck_has(250);
    if (luck_has(600)) {
        plan.hiccup_permille = rate() / 2;
        plan.hiccup_ns_max = luck_spread(10 * NS_PER_US, 5 * NS_PER_MS);
    }
    int used = snprintf(plan.command_line, sizeof plan.command_line,
                        "ip=10.0.0.1/24 disk.timeout=%u keepalive=%u", plan.timeout_s,
                        (unsigned)luck_between(1, 30));
    if (luck_has(100)) {
        used += snprintf(plan.command_line + used, sizeof plan.command_line - (size_t)used,
                         " allocation=off");
    }
    if (luck_has(150)) {
        used += snprintf(plan.command_line + used, sizeof plan.command_line - (size_t)used,
                         " disk.cache=%s", luck_has(700) ? "writethrough" : "writeback");
    }
    plan.has_limit = luck_has(80);
    if (plan.has_limit) {
        (void)snprintf(plan.command_line + used, sizeof plan.command_line - (size_t)used,
                       " limit-requests=vda:%u", (unsigned)luck_between(200, 5000)); /* it fits */
    }
}

static void plan_disk(void) {
    plan.block_bytes = luck_has(700) ? 512 : power_of_two(1024, 4096);
    uint64_t disk_features = COMMON_FEATURES | DISK_F_BLK_SIZE | maybe(INDIRECT, 700) |
                             maybe(EVENT_IDX, 700) | maybe(DISK_F_SEG_MAX, 850) |
                             maybe(DISK_F_SIZE_MAX, 250) | maybe(DISK_F_FLUSH, 850) |
                             maybe(DISK_F_DISCARD, 600) | maybe(DISK_F_WRITE_ZEROES, 600);
    if ((disk_features & DISK_F_FLUSH) != 0) {
        disk_features |= maybe(DISK_F_CONFIG_WCE, 500);
    }
    plan.disk_features = disk_features;
    bool can_tell = (disk_features & DISK_F_CONFIG_WCE) != 0;
    plan.disk_has_cache = (disk_features & DISK_F_FLUSH) != 0 && (!can_tell || luck_has(700));
    uint64_t blocks = luck_spread(64, 8192);
    plan.sectors = blocks * plan.block_bytes / 512;
    plan.disk_ring = power_of_two(4, 512);
    plan.seg_max = (unsigned)luck_spread(1, plan.disk_ring > 3 ? plan.disk_ring - 2 : 1);
    if (luck_has(600) && plan.disk_ring >= 128) {
        plan.seg_max = 126;
    }
    plan.size_max = plan.block_bytes * (uint32_t)luck_spread(1, 64);
    plan.discard_sectors_max = plan.block_bytes / 512 * (uint32_t)luck_spread(1, 4096);
    plan.zeroes_sectors_max = plan.block_bytes / 512 * (uint32_t)luck_spread(1, 4096);
    plan.disk_fetch_ns = luck_has(300) ? 0 : luck_spread(100, 100 * NS_PER_US);
    plan.disk_ns_min = luck_spread(100, 200 * NS_PER_US);
    plan.disk_ns_max =
        luck_has(200) ? plan.disk_ns_min : luck_spread(plan.disk_ns_min, 5 * NS_PER_MS);
    plan.disk_is_in_order = luck_has(300);
    plan.disk_scribbles = luck_has(500);
    plan.disk_polls = luck_has(400);
    plan.discard_does = (unsigned)luck_below(3);
}

static void plan_net(void) {
    plan.net_features = COMMON_FEATURES | NET_F_MAC | maybe(INDIRECT, 700) | maybe(EVENT_IDX, 700) |
                        maybe(NET_F_STATUS, 800) | maybe(NET_F_MTU, 500) |
                        maybe(NET_F_MRG_RXBUF, 700) | maybe(NET_F_CSUM, 650) |
                        maybe(NET_F_GUEST_CSUM, 650);
    if ((plan.net_features & NET_F_CSUM) != 0) {
        plan.net_features |= maybe(NET_F_HOST_TSO4, 800);
    }
    if ((plan.net_features & NET_F_GUEST_CSUM) != 0) {
        plan.net_features |= maybe(NET_F_GUEST_TSO4, 800);
    }
    plan.receive_ring = power_of_two(16, 1024);
    plan.send_ring = power_of_two(4, 1024);
    plan.mtu = (plan.net_features & NET_F_MTU) != 0 && luck_has(300)
                   ? (unsigned)luck_between(600, 1500)
                   : 1500;
    plan.wire_ns = luck_spread(NS_PER_US, 5 * NS_PER_MS);
    plan.net_fetch_ns = luck_has(300) ? 0 : luck_spread(100, 50 * NS_PER_US);
    plan.send_done_ns = luck_has(300) ? 0 : luck_spread(100, 5 * NS_PER_MS);
    plan.net_polls = luck_has(400);
    plan.backlog = (unsigned)luck_between(1, 200);
}

static void plan_clients(void) {
    plan.clients = 1 + (unsigned)luck_spread(0, 11);
    if (luck_has(20)) {
        plan.clients = (unsigned)luck_between(CLIENTS_MANY, 70);
    }
    plan.depth_max = (unsigned)luck_spread(1, 64);
    plan.request_bytes_max = (uint32_t)luck_spread(plan.block_bytes, 512 * 1024);
    uint64_t bytes_each = plan.request_bytes_max / 3 + 1024;
    uint64_t requests = 6 * UINT64_C(1048576) / bytes_each / plan.clients;
    requests = requests < 8 ? 8 : requests;
    uint64_t most = 400 / plan.clients + 4;
    plan.requests = (unsigned)(requests < most ? requests : most);
    plan.clients_share = luck_has(600);
    plan.nonsense = luck_has(400) ? rate() : 0;
    if (luck_has(300)) {
        plan.misbehaves = rate();
        plan.vanishes = luck_has(500) ? 300 : 0;
        plan.ends_garbled = luck_has(300) ? 10 : 0;
    }
    plan.stalls = luck_has(200) ? (unsigned)luck_between(2, 20) : 0;
}

static void disk_fault(void) {
    struct disk_faults *faults = &plan.disk_faults;
    unsigned *const kinds[] = {
        &faults->io_error, &faults->late,       &faults->lost,
        &faults->twice,    &faults->wrong_id,   &faults->wrong_bytes,
        &faults->unsaid,   &faults->odd_status, &faults->needs_reset,
    };
    *kinds[luck_below(ARRAY_COUNT(kinds))] = rate();
    if (luck_has(300)) {
        *kinds[luck_below(ARRAY_COUNT(kinds))] = rate();
    }
    faults->slow_reset = luck_has(300) ? 500 : 0;
    faults->comes_back_different = luck_has(50) ? 300 : 0;
    faults->never_resets = luck_has(50) ? 300 : 0;
}

static void net_fault(void) {
    struct net_faults *faults = &plan.net_faults;
    unsigned *const kinds[] = {&faults->lost,    &faults->twice,     &faults->reordered,
                               &faults->delayed, &faults->corrupted, &faults->link_down};
    *kinds[luck_below(ARRAY_COUNT(kinds))] = rate();
    if (luck_has(400)) {
        *kinds[luck_below(ARRAY_COUNT(kinds))] = rate();
    }
    faults->breaks = luck_has(20) ? 5 : 0;
    if (luck_has(300)) {
        plan.send_ring = power_of_two(4, 8); /* what is to be sent again finds no room */
    }
}

static void plan_faults(void) {
    unsigned kinds = luck_has(350) ? 0 : luck_has(700) ? 1 : (unsigned)luck_between(2, 4);
    plan.is_sound = kinds == 0;
    for (unsigned i = 0; i < kinds; i++) {
        switch (luck_below(6)) {
        case 0:
        case 1:
            disk_fault();
            break;
        case 2:
        case 3:
            net_fault();
            break;
        case 4:
            if (luck_has(500)) {
                plan.disk_faults.resize = 100;
            } else if (luck_has(300)) {
                plan.disk_faults.vanishes = 20;
            } else {
                plan.interrupt_late = rate();
                plan.interrupt_lost = luck_has(500) ? rate() : 0;
            }
            break;
        default:
            if (luck_has(400)) {
                plan.allocation_fails_at = luck_spread(1, 2000);
            } else if (luck_has(500)) {
                plan.allocation_fails = rate();
            } else {
                plan.pool_fails = rate();
            }
            break;
        }
    }
}

static void plan_story(void) {
    plan.end = luck_has(700) ? END_QUIET : luck_has(500) ? END_STOPPED_UNDER_LOAD : END_POWER_CUT;
    plan.faults_end_ns = plan.is_sound ? 0 : luck_spread(50 * NS_PER_MS, 30 * NS_PER_S);
    plan.end_ns = luck_spread(20 * NS_PER_MS, 5 * NS_PER_S);
}

static uint64_t greater(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

/* A disk that takes little at once must not be slow as well, nor the machine: who waits for a large
 * request that has to be done in a thousand parts is not forgotten. */
static void plan_balance(void) {
    uint64_t segment_bytes =
        (plan.disk_features & DISK_F_SIZE_MAX) != 0 ? plan.size_max : plan.block_bytes;
    uint64_t segments = (plan.disk_features & DISK_F_SEG_MAX) != 0 ? plan.seg_max : 1;
    uint64_t parts = plan.request_bytes_max / (segment_bytes * segments);
    if ((plan.disk_features & DISK_F_WRITE_ZEROES) != 0) {
        parts = greater(parts, plan.sectors / plan.zeroes_sectors_max);
    } else {
        parts = greater(parts, plan.sectors * 512 / (segment_bytes * segments));
    }
    parts = 1 + greater(parts, plan.sectors / plan.discard_sectors_max);
    uint64_t most_ns = LARGE_REQUEST_NS / parts;
    plan.disk_ns_max = plan.disk_ns_max < most_ns ? plan.disk_ns_max : most_ns;
    plan.disk_ns_min = plan.disk_ns_min < most_ns ? plan.disk_ns_min : most_ns;
    if (parts > PARTS_MANY && plan.hiccup_ns_max > most_ns) {
        plan.hiccup_ns_max = greater(most_ns, NS_PER_US);
    }
}

/* On a wire that is to lose nothing: with room for less, the acknowledgements of what many clients
 * get again at one tick of TCP's clock drown each other, tick after tick. */
static void plan_room(void) {
    unsigned frames = plan.clients * FRAMES_OF_EACH;
    if (plan.is_sound && plan.clients >= CLIENTS_MANY && plan.backlog < frames) {
        plan.backlog = frames;
    }
}

/* Clients wait for their turns at a disk that takes so few of their requests at a time; not so few
 * that whoever waits for all others to be served would seem forgotten. */
static void plan_turns(void) {
    enum { DEPTH_LEAST = 36, DEPTH_MOST = 300 };
    size_t used = strlen(plan.command_line);
    if (luck_has(300)) {
        (void)snprintf(plan.command_line + used, sizeof plan.command_line - used, " depth=%u",
                       (unsigned)luck_spread(DEPTH_LEAST, DEPTH_MOST)); /* it fits */
    }
}

/* Half of the machines look at their rings for a while where it seems worth it, the others always
 * sleep at once; half of them tell the interface of their frames twice. */
static void plan_manners(void) {
    size_t used = strlen(plan.command_line);
    (void)snprintf(plan.command_line + used, sizeof plan.command_line - used, "%s%s",
                   luck_has(500) ? " spin=0" : "",
                   luck_has(500) ? " notify=twice" : ""); /* they fit */
}

/* A wire with long frames, of which the appliance says what it does not take; one that stands still
 * for so long that what is sent again is lost, too. */
static void plan_wire(void) {
    luck_set_aside();
    if ((plan.net_features & NET_F_MTU) != 0 && luck_has(250)) {
        plan.mtu = (unsigned)luck_spread(1501, UINT16_MAX);
    }
    if (luck_has(150)) {
        plan.net_faults.still = rate();
    }
    plan_manners(); /* drawn here, they change nothing else of what a seed means */
    luck_resume();
}

void plan_make(void) {
    plan_machine();
    plan_disk();
    plan_net();
    plan_clients();
    plan_balance();
    plan_faults();
    plan_room();
    plan_story();
    plan_turns();
    plan_wire();
}

void plan_show(void) {
    const struct disk_faults *disk = &plan.disk_faults;
    const struct net_faults *net = &plan.net_faults;
    char text[1600];
    int used = snprintf(
        text, sizeof text,
        "machine: %zu MiB, \"%s\", checks %d, hiccups %u to %" PRIu64 " ns\n"
        "disk: %" PRIu64 " sectors, block %u, features 0x%" PRIx64
        ", cache %d, ring %u, segments %u of %u, takes %" PRIu64 " to %" PRIu64
        " ns, in order %d, polls %d\n"
        "net: features 0x%" PRIx64 ", rings %u/%u, mtu %u, wire %" PRIu64
        " ns, polls %d, backlog %u\n"
        "clients: %u of %u requests, depth %u, up to %u bytes, share %d, misbehave %u, vanish %u, "
        "stall %u, nonsense %u\n"
        "faults until %" PRIu64
        " ms: disk io %u late %u lost %u twice %u id %u bytes %u unsaid %u odd %u needs-reset %u "
        "resize %u slow %u different %u vanishes %u never %u\n"
        "  net lost %u twice %u reordered %u delayed %u corrupted %u link %u still %u breaks %u; "
        "interrupts "
        "late %u lost %u; allocation %" PRIu64 " or %u, pools %u\n"
        "end: %s\n",
        plan.memory_bytes >> 20, plan.command_line, plan.has_checks, plan.hiccup_permille,
        plan.hiccup_ns_max, plan.sectors, plan.block_bytes, plan.disk_features, plan.disk_has_cache,
        plan.disk_ring, plan.seg_max, plan.size_max, plan.disk_ns_min, plan.disk_ns_max,
        plan.disk_is_in_order, plan.disk_polls, plan.net_features, plan.receive_ring,
        plan.send_ring, plan.mtu, plan.wire_ns, plan.net_polls, plan.backlog, plan.clients,
        plan.requests, plan.depth_max, plan.request_bytes_max, plan.clients_share, plan.misbehaves,
        plan.vanishes, plan.stalls, plan.nonsense, plan.faults_end_ns / NS_PER_MS, disk->io_error,
        disk->late, disk->lost, disk->twice, disk->wrong_id, disk->wrong_bytes, disk->unsaid,
        disk->odd_status, disk->needs_reset, disk->resize, disk->slow_reset,
        disk->comes_back_different, disk->vanishes, disk->never_resets, net->lost, net->twice,
        net->reordered, net->delayed, net->corrupted, net->link_down, net->still, net->breaks,
        plan.interrupt_late, plan.interrupt_lost, plan.allocation_fails_at, plan.allocation_fails,
        plan.pool_fails,
        plan.end == END_QUIET                ? "when all is done"
        : plan.end == END_STOPPED_UNDER_LOAD ? "stopped under load"
                                             : "power cut");
    trace_text(text, used > 0 ? (size_t)used : 0);
}
