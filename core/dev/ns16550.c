/* The 16550 UART: the console of riscv64 and x86_64 boards. National Semiconductor PC16550D.
 *
 * Output is polled, for the log writes it from the idle loop; input raises an interrupt. The baud
 * rate is the firmware's or the emulator's affair and stays as it is. */
#include "core/dev/ns16550.h"

#include <errno.h>
#include <stdlib.h>

#include "core/dev/console.h"
#include "core/dev/fdt.h"
#include "core/dev/irq.h"
#include "core/dev/mmio.h"
#include "core/log.h"

enum {
    REG_DATA = 0,
    REG_INTERRUPT_ENABLE = 1,
    REG_FIFO_CONTROL = 2,
    REG_LINE_STATUS = 5,

    INTERRUPT_RECEIVED = 0x01,
    FIFO_ENABLE_AND_CLEAR = 0x07,
    STATUS_DATA_READY = 0x01,
    STATUS_TRANSMIT_EMPTY = 0x20,

    /* Bytes taken per interrupt: more raise the next one. */
    RECEIVE_BUDGET = 64,
};

struct uart {
    struct mmio mmio;
    unsigned shift; /* distance of registers, as a power of two */
};

static uint8_t uart_read(const struct uart *uart, unsigned reg) {
    return mmio_read8(&uart->mmio, (size_t)reg << uart->shift);
}

static void uart_write(const struct uart *uart, unsigned reg, uint8_t value) {
    mmio_write8(&uart->mmio, (size_t)reg << uart->shift, value);
}

/* An emulator's transmitter is always ready, until nobody reads what it sends. */
static size_t uart_sink(void *arg, const char *text, size_t length) {
    const struct uart *uart = arg;
    size_t sent = 0;
    while (sent < length && (uart_read(uart, REG_LINE_STATUS) & STATUS_TRANSMIT_EMPTY) != 0) {
        uart_write(uart, REG_DATA, (uint8_t)text[sent++]);
    }
    return sent;
}

static bool uart_interrupt(void *arg) {
    const struct uart *uart = arg;
    bool any = false;
    for (unsigned i = 0;
         i < RECEIVE_BUDGET && (uart_read(uart, REG_LINE_STATUS) & STATUS_DATA_READY) != 0; i++) {
        console_receive(uart_read(uart, REG_DATA));
        any = true;
    }
    return any;
}

static int uart_probe(struct device_node *node) {
    uint32_t shift = 0;
    (void)fdt_read_u32(node->fdt, node->offset, "reg-shift", &shift); /* 0 when absent */
    if (node->reg_count == 0 || shift > 3 ||
        node->regs[0].length < (size_t)(REG_LINE_STATUS + 1) << shift) {
        return log_error(-EINVAL, "%s: registers make no sense", node->name);
    }
    int wanted = fdt_stdout_node(node->fdt);
    if (wanted >= 0 && wanted != node->offset) {
        return -ENODEV; /* some other UART is the console: this one is not ours */
    }
    struct uart *uart = calloc(1, sizeof *uart);
    if (uart == NULL) {
        return log_error(-ENOMEM, "%s: no memory", node->name);
    }
    uart->mmio = mmio_map(node->regs[0]);
    uart->shift = shift;
    uart_write(uart, REG_FIFO_CONTROL, FIFO_ENABLE_AND_CLEAR);
    log_set_sink(uart_sink, uart);
    node->instance = uart;
    return 0;
}

/* Input needs the interrupt controller, which is probed later than the console's output. */
int ns16550_enable_input(const struct device_node *node) {
    struct uart *uart = node->instance;
    int error = irq_register(node, uart_interrupt, uart);
    if (error == 0) {
        uart_write(uart, REG_INTERRUPT_ENABLE, INTERRUPT_RECEIVED);
    }
    return error;
}

static const char *const uart_compatible[] = {"ns16550a", "ns16550", NULL};

const struct driver ns16550_driver = {
    .name = "ns16550", .compatible = uart_compatible, .stage = STAGE_CONSOLE, .probe = uart_probe};
