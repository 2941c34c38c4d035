/* See machine.h.
 *
 * The appliance is started as its board starts it, with a device tree: platter_start and everything
 * behind it is the product's own. What it finds are this file's drivers for power, console and
 * interrupts, and the two virtio devices behind a bus of this machine's own. */
#include "tests/sim/machine.h"

#include <errno.h>
#include <libfdt.h>
#include <lwip/memp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "blk/virtio_blk.h"
#include "boot/arch.h"
#include "boot/host/host.h"
#include "core/dev/console.h"
#include "core/dev/driver.h"
#include "core/dev/irq.h"
#include "core/log.h"
#include "core/mem/heap.h"
#include "core/mem/poison.h"
#include "core/panic.h"
#include "core/stack_guard.h"
#include "core/start.h"
#include "core/task/scheduler.h"
#include "net/virtio_net.h"
#include "tests/sim/director.h"

/* Where no sanitizer keeps anything, and four levels of page tables reach. */
#define MEMORY_AT UINT64_C(0x200000000000)
/* Where a board has its image: reserved, so that the heap is in two pieces, and out of reach. */
#define HELD_AT    (MEMORY_AT + UINT64_C(0x200000))
#define HELD_BYTES UINT64_C(0xa0000)

enum {
    DEVICES_MAX = 4,
    CONTROLLER = 1, /* phandle */
    SOURCE_CONSOLE = 1,
    SOURCE_DEVICES = 2,
    KEYS_MAX = 8,
    LOG_BYTES = 1 << 20,
    DEVICE_AT = 0x10000000,
    DEVICE_BYTES = 0x1000,
};

static uint8_t tree[16384] __attribute__((aligned(4096)));
static struct device *devices[DEVICES_MAX];
static unsigned device_count;
static bool is_in_service[DEVICES_MAX];
static char keys[KEYS_MAX];
static unsigned key_count;
static char log_kept[LOG_BYTES];
static size_t log_used;
static uint64_t allocations;
static uint64_t allocations_failed;

/* --- Memory ------------------------------------------------------------------------------------
 */

extern char __executable_start[];
extern char _end[];

bool machine_is_memory(const void *data, size_t bytes) {
    uintptr_t at = (uintptr_t)data;
    uintptr_t image = (uintptr_t)__executable_start;
    size_t image_bytes = (size_t)((uintptr_t)_end - image);
    bool is_ram = at >= MEMORY_AT && at - MEMORY_AT <= plan.memory_bytes &&
                  bytes <= plan.memory_bytes - (at - MEMORY_AT) &&
                  (at + bytes <= HELD_AT || at >= HELD_AT + HELD_BYTES);
    bool is_image = at >= image && at - image <= image_bytes && bytes <= image_bytes - (at - image);
    return is_ram || is_image; /* constants are sent from where they lie */
}

uint64_t machine_allocations(void) {
    return allocations;
}

uint64_t machine_allocations_failed(void) {
    return allocations_failed;
}

static bool allocation_fails(void) {
    allocations++;
    bool fails = allocations == plan.allocation_fails_at ||
                 (director_is_serving() && fault_strikes(plan.allocation_fails));
    if (fails) {
        allocations_failed++;
        trace("allocation %llu fails", allocations, 0, 0, 0);
    }
    return fails;
}

/* The linker sends the appliance's calls of these through here (--wrap). */
void *__real_heap_alloc(size_t bytes);
void *__real_heap_alloc_zeroed(size_t count, size_t bytes);
void *__real_heap_alloc_aligned(size_t align, size_t bytes);
void *__real_memp_malloc(memp_t type);
void *__wrap_heap_alloc(size_t bytes);
void *__wrap_heap_alloc_zeroed(size_t count, size_t bytes);
void *__wrap_heap_alloc_aligned(size_t align, size_t bytes);
void *__wrap_memp_malloc(memp_t type);

void *__wrap_heap_alloc(size_t bytes) {
    return allocation_fails() ? NULL : __real_heap_alloc(bytes);
}

void *__wrap_heap_alloc_zeroed(size_t count, size_t bytes) {
    return allocation_fails() ? NULL : __real_heap_alloc_zeroed(count, bytes);
}

void *__wrap_heap_alloc_aligned(size_t align, size_t bytes) {
    return allocation_fails() ? NULL : __real_heap_alloc_aligned(align, bytes);
}

void *__wrap_memp_malloc(memp_t type) {
    /* That one has as many as there are timers. */
    bool may_be_empty = type != MEMP_SYS_TIMEOUT;
    if (may_be_empty && director_is_serving() && fault_strikes(plan.pool_fails)) {
        trace("lwIP's pool %llu is said to be empty", type, 0, 0, 0);
        allocations_failed++;
        return NULL;
    }
    return __real_memp_malloc(type);
}

/* The frames of a task that has ended were never left, so the sanitizer still guards the gaps
 * between what lay in them; the heap, which has the stack back, is not to know. */
void __asan_unpoison_memory_region(const volatile void *memory, size_t bytes) __attribute__((weak));
void __real_heap_free(void *pointer);
void __wrap_heap_free(void *pointer);

void __wrap_heap_free(void *pointer) {
    struct heap_place place;
    if (__asan_unpoison_memory_region != NULL && pointer != NULL &&
        heap_look((uintptr_t)pointer, &place)) {
        __asan_unpoison_memory_region(pointer, place.bytes);
    }
    __real_heap_free(pointer);
}

/* The compiler's guard is the host's own here. */
void stack_guard_set(uint64_t random) {
    (void)random;
}

/* --- Power -------------------------------------------------------------------------------------
 */

static void power_switch(void *unused, enum power_end end, bool restart) {
    (void)unused; /* there is one */
    if (end == POWER_PANIC || end == POWER_WATCHDOG || restart) {
        if (director_may_panic(machine_log())) {
            director_gave_up();
        }
        sim_fail("the appliance panics");
    }
    director_power_is_off(end != POWER_OFF);
}

static int power_probe(struct device_node *node) {
    (void)node; /* nothing to know of it */
    power_set_switch(power_switch, NULL);
    return 0;
}

/* --- Console -----------------------------------------------------------------------------------
 */

static size_t keep_log(void *unused, const char *text, size_t length) {
    (void)unused; /* one console */
    if (length < LOG_BYTES - log_used) {
        memcpy(log_kept + log_used, text, length);
        log_used += length;
    }
    trace_text(text, length);
    return length;
}

const char *machine_log(void) {
    log_kept[log_used] = '\0';
    return log_kept;
}

void machine_press(char key) {
    SIM_CHECK(key_count < KEYS_MAX);
    keys[key_count++] = key;
}

static bool console_interrupt(void *unused) {
    bool had_any = key_count > 0;
    (void)unused; /* one console */
    for (unsigned i = 0; i < key_count; i++) {
        console_receive((uint8_t)keys[i]);
    }
    key_count = 0;
    return had_any;
}

static int console_probe(struct device_node *node) {
    (void)node; /* nothing to know of it */
    log_set_sink(keep_log, NULL);
    return 0;
}

static const struct driver console_driver = {.name = "simulated console",
                                             .compatible =
                                                 (const char *const[]){"sim,console", NULL},
                                             .stage = STAGE_CONSOLE,
                                             .probe = console_probe};
/* --- Interrupts --------------------------------------------------------------------------------
 */

static bool is_raised(unsigned i) {
    return devices[i]->isr != 0 && !is_in_service[i];
}

static bool is_interrupt_pending(void) {
    bool pending = key_count > 0;
    for (unsigned i = 0; i < device_count; i++) {
        pending |= is_raised(i);
    }
    return pending;
}

static unsigned translate(struct irq_controller *controller, const uint32_t *cells,
                          unsigned count) {
    (void)controller; /* there is one */
    return count == 1 ? cells[0] : 0;
}

static void enable(struct irq_controller *controller, unsigned source) {
    (void)controller; /* all are enabled */
    (void)source;
}

static unsigned claim(struct irq_controller *controller) {
    (void)controller; /* there is one */
    world_moment();
    for (unsigned i = 0; i < device_count; i++) {
        if (is_raised(i)) {
            is_in_service[i] = true;
            return SOURCE_DEVICES + i;
        }
    }
    return key_count > 0 ? SOURCE_CONSOLE : 0;
}

static void complete(struct irq_controller *controller, unsigned source) {
    (void)controller; /* there is one */
    world_moment();
    if (source >= SOURCE_DEVICES) {
        is_in_service[source - SOURCE_DEVICES] = false;
    }
}

static int controller_probe(struct device_node *node) {
    static struct irq_controller controller = {.name = "simulated controller",
                                               .phandle = CONTROLLER,
                                               .translate = translate,
                                               .enable = enable,
                                               .claim = claim,
                                               .complete = complete};
    (void)node; /* nothing to know of it */
    irq_add_controller(&controller);
    scheduler_set_irq_dispatch(irq_dispatch);
    /* The console came before the controller. */
    const struct device_node *other;
    for (unsigned i = 0; (other = device_node_at(i)) != NULL; i++) {
        if (other->driver == &console_driver) {
            return irq_register(other, console_interrupt, NULL);
        }
    }
    return -ENODEV;
}

/* A poll source of the machine's own, which never has anything: through it time passes between any
 * two looks of the scheduler, so that what happens there can do harm. */
static bool look_in_between(void *unused) {
    (void)unused;
    world_moment();
    return false;
}

static void pass_in_between(void *unused) {
    (void)unused;
    world_moment();
}

static void add_between(void) {
    static struct event never;
    static struct poll_source sources[DEVICES_MAX];
    static unsigned count;
    sources[count] = (struct poll_source){.name = "in between",
                                          .pending = look_in_between,
                                          .arm = pass_in_between,
                                          .disarm = pass_in_between,
                                          .event = &never};
    scheduler_add_source(&sources[count++]);
}

/* --- The bus -----------------------------------------------------------------------------------
 */

void machine_add_device(struct device *device) {
    SIM_CHECK(device_count < DEVICES_MAX);
    devices[device_count++] = device;
}

static struct device *device_of(const struct device_node *node) {
    return devices[(node->regs[0].start.value - DEVICE_AT) / DEVICE_BYTES];
}

static size_t bus_dma_bytes(struct device_node *node) {
    struct device *device = device_of(node);
    device->transport.node = node;
    return virtio_find_driver(device->id)->dma_bytes(&device->transport);
}

/* As a device on virtio-mmio: acknowledged first, and only then are the rings looked at. */
static bool bus_interrupt(void *arg) {
    struct device *device = arg;
    world_moment();
    uint32_t isr = device->isr;
    if (isr == 0) {
        return false;
    }
    device->isr &= ~isr;
    device->transport.interrupts++;
    if ((isr & DEVICE_ISR_CONFIG) != 0 && device->transport.config_changed != NULL) {
        device->transport.config_changed(device->transport.config_changed_arg);
    }
    return true;
}

static int bus_probe(struct device_node *node) {
    struct device *device = device_of(node);
    device->transport.node = node;
    int error = irq_register(node, bus_interrupt, device);
    if (error == 0) {
        scheduler_set_sleep_barrier(virtio_sleep_barrier, &device->transport);
        add_between();
        error = virtio_find_driver(device->id)->probe(&device->transport);
    }
    return error;
}

static const struct driver power_driver = {.name = "simulated power",
                                           .compatible = (const char *const[]){"sim,power", NULL},
                                           .stage = STAGE_POWER,
                                           .probe = power_probe};
static const struct driver controller_driver = {.name = "simulated controller",
                                                .compatible =
                                                    (const char *const[]){"sim,controller", NULL},
                                                .stage = STAGE_INTERRUPTS,
                                                .probe = controller_probe};
static const struct driver bus_driver = {.name = "simulated bus",
                                         .compatible = (const char *const[]){"sim,virtio", NULL},
                                         .stage = STAGE_DEVICE,
                                         .dma_bytes = bus_dma_bytes,
                                         .probe = bus_probe};

const struct driver *const platter_drivers[] = {&power_driver, &console_driver, &controller_driver,
                                                &bus_driver, NULL};
const struct virtio_driver *const platter_virtio_drivers[] = {&virtio_net_driver,
                                                              &virtio_blk_driver, NULL};

/* --- The device tree ---------------------------------------------------------------------------
 */

static void put_cells(const char *name, const uint32_t *cells, unsigned count) {
    fdt32_t wire[8];
    for (unsigned i = 0; i < count; i++) {
        wire[i] = cpu_to_fdt32(cells[i]);
    }
    SIM_CHECK(fdt_property(tree, name, wire, (int)(count * sizeof wire[0])) == 0);
}

#define PUT_CELLS(name, ...)                                                                       \
    put_cells((name), (const uint32_t[]){__VA_ARGS__},                                             \
              sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static void put_text(const char *name, const char *text) {
    SIM_CHECK(fdt_property(tree, name, text, (int)strlen(text) + 1) == 0);
}

static void put_node(const char *name, const char *compatible) {
    SIM_CHECK(fdt_begin_node(tree, name) == 0);
    if (compatible != NULL) {
        put_text("compatible", compatible);
    }
}

static void end_node(void) {
    SIM_CHECK(fdt_end_node(tree) == 0);
}

static void make_tree(void) {
    SIM_CHECK(fdt_create(tree, sizeof tree) == 0 &&
              fdt_add_reservemap_entry(tree, HELD_AT, HELD_BYTES) == 0 &&
              fdt_finish_reservemap(tree) == 0);
    put_node("", "sim");
    PUT_CELLS("#address-cells", 2);
    PUT_CELLS("#size-cells", 2);
    PUT_CELLS("interrupt-parent", CONTROLLER);
    put_node("memory", NULL);
    put_text("device_type", "memory");
    PUT_CELLS("reg", (uint32_t)(MEMORY_AT >> 32), (uint32_t)MEMORY_AT, 0,
              (uint32_t)plan.memory_bytes);
    end_node();
    put_node("cpus", NULL);
    PUT_CELLS("timebase-frequency", 10000000);
    end_node();
    put_node("chosen", NULL);
    put_text("bootargs", plan.command_line);
    end_node();
    put_node("power", "sim,power");
    end_node();
    put_node("console", "sim,console");
    PUT_CELLS("interrupts", SOURCE_CONSOLE);
    end_node();
    put_node("controller", "sim,controller");
    PUT_CELLS("phandle", CONTROLLER);
    PUT_CELLS("#interrupt-cells", 1);
    end_node();
    for (unsigned i = 0; i < device_count; i++) {
        put_node(i == 0 ? "virtio@0" : "virtio@1", "sim,virtio");
        PUT_CELLS("reg", 0, DEVICE_AT + i * DEVICE_BYTES, 0, DEVICE_BYTES);
        PUT_CELLS("interrupts", SOURCE_DEVICES + i);
        end_node();
    }
    end_node();
    SIM_CHECK(fdt_finish(tree) == 0);
}

static void idle(void *unused, uint64_t deadline_ns) {
    (void)unused;
    world_sleep(deadline_ns, is_interrupt_pending);
}

/* Before there is a power switch. */
static void halted(bool failed) {
    char report[4096];
    log_tail(64, report, sizeof report);
    if (machine_allocations_failed() > 0 && !panic_is_reporting()) {
        director_power_is_off(failed); /* there was no memory for the driver of the switch */
    }
    if (director_may_panic(report)) {
        director_gave_up();
    }
    sim_fail("the appliance halts without switching power off (failed: %d)", failed);
}

void machine_run(void) {
    void *memory = mmap((void *)MEMORY_AT, plan.memory_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);
    SIM_CHECK(memory == (void *)MEMORY_AT);
    SIM_CHECK(mprotect((void *)HELD_AT, HELD_BYTES, PROT_NONE) == 0);
    make_tree();
    heap_checks = plan.has_checks;
    host_set_idle(idle, NULL);
    host_set_halt(halted);
    platter_start(tree);
}
