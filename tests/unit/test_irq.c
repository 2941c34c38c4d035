/* Who handles which interrupt: core/dev/irq.c. Handlers stay for the life of the program, so each
 * test uses sources of its own, and the last one fills the table. */
#include "core/dev/irq.h"

#include <string.h>

#include "tests/unit/unit.h"

static bool enabled[256];
static unsigned pending[200];
static unsigned pending_count;
static unsigned completed;

static unsigned translate(struct irq_controller *controller, const uint32_t *cells,
                          unsigned count) {
    (void)controller;
    return count == 1 && cells[0] < 256 ? cells[0] : 0;
}

static void enable(struct irq_controller *controller, unsigned source) {
    (void)controller;
    enabled[source] = true;
}

static unsigned claim(struct irq_controller *controller) {
    (void)controller;
    return pending_count > 0 ? pending[--pending_count] : 0;
}

static void complete(struct irq_controller *controller, unsigned source) {
    (void)controller;
    (void)source;
    completed++;
}

static struct irq_controller controller = {.name = "test",
                                           .phandle = 5,
                                           .translate = translate,
                                           .enable = enable,
                                           .claim = claim,
                                           .complete = complete};

static struct device_node node_of(const char *name, uint32_t parent, uint32_t source) {
    static bool is_added;
    if (!is_added) {
        irq_add_controller(&controller);
        is_added = true;
    }
    pending_count = 0;
    completed = 0;
    return (struct device_node){
        .name = name, .irq_parent = parent, .irq_cells = {source}, .irq_cell_count = 1};
}

struct handler {
    bool is_mine;
    unsigned calls;
};

static bool handle(void *arg) {
    struct handler *handler = arg;
    handler->calls++;
    return handler->is_mine;
}

TEST(without_controller_or_interrupt_registration_is_refused_and_said) {
    struct device_node orphan = node_of("orphan", 6, 1);
    struct device_node odd = node_of("odd", 5, 1000);
    struct device_node none = node_of("none", 5, 1);
    none.irq_cell_count = 0;
    assert_int_equal(irq_register(&orphan, handle, NULL), -ENODEV);
    assert_int_equal(irq_register(&odd, handle, NULL), -ENODEV);
    assert_int_equal(irq_register(&none, handle, NULL), -ENODEV);
    assert_logged("orphan: no interrupt controller for its interrupt");
}

TEST(an_interrupt_reaches_its_handler_and_is_completed) {
    struct handler handler = {.is_mine = true};
    struct device_node node = node_of("device", 5, 10);
    struct irq_info info = {0};
    assert_false(enabled[10]);
    assert_int_equal(irq_register(&node, handle, &handler), 0);
    assert_true(enabled[10]);
    pending[pending_count++] = 10;
    assert_int_equal(irq_dispatch(), 1);
    assert_int_equal(handler.calls, 1);
    assert_int_equal(completed, 1);
    assert_int_equal(irq_dispatch(), 0);
    assert_true(irq_get_info(0, &info));
    assert_string_equal(info.name, "device");
    assert_int_equal(info.source, 10);
    assert_int_equal(info.count, 1);
}

TEST(a_shared_source_asks_all_its_handlers) {
    struct handler idle = {.is_mine = false};
    struct handler busy = {.is_mine = true};
    struct device_node node = node_of("shared", 5, 11);
    uint64_t spurious = irq_spurious();
    assert_int_equal(irq_register(&node, handle, &idle), 0);
    assert_int_equal(irq_register(&node, handle, &busy), 0);
    pending[pending_count++] = 11;
    assert_int_equal(irq_dispatch(), 1);
    assert_int_equal(idle.calls, 1);
    assert_int_equal(busy.calls, 1);
    assert_int_equal(irq_spurious(), spurious);
}

/* However few places there are to look for handlers in. */
TEST(an_interrupt_asks_no_handler_of_another_source) {
    enum { SOURCES = 33, FIRST = 96 };
    static struct handler handlers[SOURCES];
    for (unsigned i = 0; i < SOURCES; i++) {
        struct device_node node = node_of("neighbour", 5, FIRST + i);
        handlers[i].is_mine = true;
        assert_int_equal(irq_register(&node, handle, &handlers[i]), 0);
    }
    for (unsigned i = 0; i < SOURCES; i++) {
        for (unsigned j = 0; j < SOURCES; j++) {
            handlers[j].calls = 0;
        }
        pending[pending_count++] = FIRST + i;
        assert_int_equal(irq_dispatch(), 1);
        for (unsigned j = 0; j < SOURCES; j++) {
            assert_int_equal(handlers[j].calls, j == i);
        }
    }
}

TEST(handlers_of_one_source_are_found_among_those_of_others) {
    enum { SOURCE = 200, OTHER = SOURCE + 16 };
    static struct handler handlers[4] = {
        {.is_mine = true}, {.is_mine = true}, {.is_mine = true}, {.is_mine = true}};
    for (unsigned i = 0; i < ARRAY_COUNT(handlers); i++) {
        struct device_node node = node_of("among", 5, i % 2 == 0 ? SOURCE : OTHER);
        assert_int_equal(irq_register(&node, handle, &handlers[i]), 0);
    }
    pending[pending_count++] = SOURCE;
    assert_int_equal(irq_dispatch(), 1);
    for (unsigned i = 0; i < ARRAY_COUNT(handlers); i++) {
        assert_int_equal(handlers[i].calls, i % 2 == 0);
    }
}

TEST(an_interrupt_that_nobody_knows_is_counted_and_completed) {
    (void)node_of("unknown", 5, 12);
    uint64_t spurious = irq_spurious();
    pending[pending_count++] = 77;
    assert_int_equal(irq_dispatch(), 1);
    assert_int_equal(completed, 1);
    assert_int_equal(irq_spurious(), spurious + 1);
}

TEST(a_storm_of_interrupts_ends_a_turn_at_the_limit) {
    (void)node_of("storm", 5, 13);
    for (pending_count = 0; pending_count < 200; pending_count++) {
        pending[pending_count] = 13;
    }
    assert_int_equal(irq_dispatch(), IRQ_CLAIMS_PER_TURN);
    assert_int_equal(pending_count, 200 - IRQ_CLAIMS_PER_TURN);
}

TEST(one_handler_too_many_is_refused_and_said) {
    static struct handler handler;
    struct device_node node = node_of("many", 5, 14);
    struct irq_info info;
    unsigned count = 0;
    while (irq_register(&node, handle, &handler) == 0) {
        assert_true(count++ < IRQ_HANDLERS_MAX);
    }
    assert_logged("many: 64 interrupt handlers are the limit");
    assert_true(irq_get_info(IRQ_HANDLERS_MAX - 1, &info));
    assert_false(irq_get_info(IRQ_HANDLERS_MAX, &info));
}
