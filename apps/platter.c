/* The appliance: reads the configuration, exports the disks, serves them until it is told to stop.
 */

#include "apps/disks.h"
#include "apps/nbd/server.h"
#include "apps/status/status.h"
#include "blk/block.h"
#include "blk/ram_disk.h"
#include "boot/arch.h"
#include "core/config.h"
#include "core/dev/console.h"
#include "core/dev/device_node.h"
#include "core/dev/irq.h"
#include "core/dev/ns16550.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/panic.h"
#include "core/start.h"
#include "core/task/event.h"
#include "core/task/scheduler.h"
#include "core/task/task.h"
#include "net/stack.h"

enum {
    KEY_STOP = 0x03, /* Ctrl-C */
    KEY_STATUS = 's',
    KEY_DEVICES = 'd',
    /* The last flush of a disk may take as long as any request; then power goes off all the same.
     */
    LOOK_MS = 10,
};

bool heap_checks = false;

static struct event wake = {.is_external = true}; /* a key, the end of a request */
static bool stop_is_wanted;
static bool status_is_wanted;
static bool devices_are_wanted;

static void receive_key(void *unused, uint8_t key) {
    (void)unused;
    stop_is_wanted |= key == KEY_STOP;
    status_is_wanted |= key == KEY_STATUS;
    devices_are_wanted |= key == KEY_DEVICES;
    event_signal(&wake);
}

static void enable_console_input(void) {
    const struct device_node *node;
    console_set_receiver(receive_key, NULL);
    for (unsigned i = 0; (node = device_node_at(i)) != NULL; i++) {
        if (node->driver == &ns16550_driver && node->state == DEVICE_BOUND) {
            (void)ns16550_enable_input(
                node); /* said in the log; the disks are served all the same */
        }
    }
}

static void make_ram_disk(void) {
    uint64_t ram_bytes = config_bytes("ramdisk", PAGE_BYTES, UINT64_C(1) << 40, 0);
    if (ram_bytes != 0) {
        (void)ram_disk_create("ram0", align_down(ram_bytes, PAGE_BYTES)); /* said in the log */
    }
}

/* Until every connection is drained or cut, and the disks have flushed. */
struct last_flush {
    struct block_request request;
    bool is_done;
};

static void flush_done(struct block_request *request) {
    ((struct last_flush *)request->owner)->is_done = true;
    event_signal(&wake);
}

static _Noreturn void shut_down(void) {
    static struct last_flush flushes[BLOCK_DEVICES_MAX];
    bool failed = false;
    nbd_server_shut_down();
    while (!nbd_server_is_down()) {
        (void)task_wait(&wake, arch_clock_ns() + LOOK_MS * NS_PER_MS); /* either way: look again */
        net_wake();
    }
    struct block_device *device;
    for (unsigned i = 0; (device = block_device_at(i)) != NULL; i++) {
        struct last_flush *flush = &flushes[i];
        flush->request = (struct block_request){
            .operation = BLOCK_FLUSH, .complete = flush_done, .owner = flush};
        block_submit(device, &flush->request);
        while (!flush->is_done) {
            /* The device's own deadline ends a flush that never comes back. */
            (void)task_wait(&wake, DEADLINE_NEVER);
        }
        failed |= flush->request.status != 0;
    }
    log_info("power off%s", failed ? ": a disk could not be flushed" : "");
    power_off(failed ? POWER_FAILED : POWER_OFF);
}

void appliance_main(void *unused) {
    (void)unused;
    enable_console_input();
    static struct nbd_server_config server; /* large, and asked for once: not on the stack */
    make_ram_disk();
    disks_begin_scan();
    int error = net_start();
    if (!error) {
        error = disks_export();
    }
    if (!error) {
        error = nbd_server_configure(&server);
    }
    if (!error) {
        error = nbd_server_start(&server);
    }
    config_report_unknown();
    if (error) {
        /* Nothing is broken: what was asked for, or what the machine has, is not enough. */
        power_off(log_error(POWER_FAILED, "cannot serve (error %d); see the log above", error));
    }
    log_info("nbd: %u exports at port %u, ready %llu us after reset", status_export_count(),
             server.port, (unsigned long long)(arch_clock_ns() / NS_PER_US));
    for (;;) {
        (void)task_wait(&wake, DEADLINE_NEVER); /* a key is the event */
        if (status_is_wanted) {
            status_is_wanted = false;
            status_dump();
        }
        if (devices_are_wanted) {
            devices_are_wanted = false;
            status_dump_devices();
        }
        if (stop_is_wanted) {
            shut_down();
        }
    }
}
