/* RISC-V PLIC: the platform-level interrupt controller (RISC-V PLIC specification 1.0.0).
 *
 * One context of it belongs to our hart in supervisor mode. Sources are level triggered here; a
 * claim silences one until it is completed. */
#include "boot/riscv64/plic.h"

#include <errno.h>
#include <libfdt.h>
#include <stdlib.h>

#include "boot/arch.h"
#include "core/dev/fdt.h"
#include "core/dev/irq.h"
#include "core/dev/mmio.h"
#include "core/log.h"
#include "core/task/scheduler.h"

#define PLIC_PRIORITY(source)   (4 * (size_t)(source))
#define PLIC_ENABLE(context)    (0x2000 + 0x80 * (size_t)(context))
#define PLIC_THRESHOLD(context) (0x200000 + 0x1000 * (size_t)(context))
#define PLIC_CLAIM(context)     (PLIC_THRESHOLD(context) + 4)

enum { SOURCES_MAX = 1023, CONTEXTS_MAX = 15872, CAUSE_S_EXTERNAL = 9 };

struct plic {
    struct irq_controller controller; /* first: the callbacks cast back */
    struct mmio mmio;
    unsigned context;
    uint32_t sources;
};

static unsigned translate(struct irq_controller *controller, const uint32_t *cells,
                          unsigned count) {
    const struct plic *plic = (const struct plic *)controller;
    return count == 1 && cells[0] <= plic->sources ? cells[0] : 0;
}

static void enable(struct irq_controller *controller, unsigned source) {
    const struct plic *plic = (const struct plic *)controller;
    size_t word = PLIC_ENABLE(plic->context) + 4 * (size_t)(source / 32);
    mmio_write32(&plic->mmio, PLIC_PRIORITY(source), 1);
    mmio_write32(&plic->mmio, word, mmio_read32(&plic->mmio, word) | UINT32_C(1) << (source % 32));
}

static unsigned claim(struct irq_controller *controller) {
    const struct plic *plic = (const struct plic *)controller;
    unsigned source = mmio_read32(&plic->mmio, PLIC_CLAIM(plic->context));
    return source <= plic->sources ? source : 0;
}

static void complete(struct irq_controller *controller, unsigned source) {
    const struct plic *plic = (const struct plic *)controller;
    mmio_write32(&plic->mmio, PLIC_CLAIM(plic->context), source);
}

/* The phandle of our hart's own interrupt controller, below its /cpus node; 0 when not found. */
static uint32_t hart_controller(const void *fdt) {
    int cpus = fdt_path_offset(fdt, "/cpus");
    int cpu;
    if (cpus < 0) {
        return 0;
    }
    fdt_for_each_subnode(cpu, fdt, cpus) {
        int length = 0;
        const void *reg = fdt_getprop(fdt, cpu, "reg", &length);
        if (reg == NULL || (length != 4 && length != 8) ||
            fdt_cells(reg, (unsigned)length / 4) != arch_boot_cpu()) {
            continue;
        }
        int child;
        fdt_for_each_subnode(child, fdt, cpu) {
            if (fdt_getprop(fdt, child, "interrupt-controller", NULL) != NULL) {
                return fdt_get_phandle(fdt, child);
            }
        }
    }
    return 0;
}

/* Contexts are numbered by the entries of interrupts-extended: (hart's controller, cause). */
static int find_context(const struct device_node *node, unsigned *context) {
    uint32_t ours = hart_controller(node->fdt);
    int length = 0;
    const char *entries = fdt_getprop(node->fdt, node->offset, "interrupts-extended", &length);
    if (entries == NULL || ours == 0) {
        return -EINVAL;
    }
    for (int i = 0; i < length / 8 && i < CONTEXTS_MAX; i++) {
        if (fdt_cells(entries + 8 * (ptrdiff_t)i, 1) == ours &&
            fdt_cells(entries + 8 * (ptrdiff_t)i + 4, 1) == CAUSE_S_EXTERNAL) {
            *context = (unsigned)i;
            return 0;
        }
    }
    return -EINVAL;
}

static int plic_probe(struct device_node *node) {
    unsigned context = 0;
    uint32_t sources = 0;
    if (find_context(node, &context) != 0 ||
        !fdt_read_u32(node->fdt, node->offset, "riscv,ndev", &sources) || sources == 0 ||
        sources > SOURCES_MAX || node->reg_count == 0 ||
        node->regs[0].length < PLIC_CLAIM(context) + 4) {
        return log_error(-EINVAL, "%s: its description makes no sense", node->name);
    }
    struct plic *plic = calloc(1, sizeof *plic);
    if (plic == NULL) {
        return log_error(-ENOMEM, "%s: no memory", node->name);
    }
    plic->controller = (struct irq_controller){.name = node->name,
                                               .phandle = fdt_get_phandle(node->fdt, node->offset),
                                               .translate = translate,
                                               .enable = enable,
                                               .claim = claim,
                                               .complete = complete};
    plic->mmio = mmio_map(node->regs[0]);
    plic->context = context;
    plic->sources = sources;
    for (unsigned word = 0; word <= sources / 32; word++) {
        mmio_write32(&plic->mmio, PLIC_ENABLE(context) + 4 * (size_t)word, 0);
    }
    mmio_write32(&plic->mmio, PLIC_THRESHOLD(context), 0);
    irq_add_controller(&plic->controller);
    scheduler_set_irq_dispatch(irq_dispatch);
    log_debug("%s: %u sources, context %u", node->name, (unsigned)sources, context);
    return 0;
}

static const char *const plic_compatible[] = {"riscv,plic0", "sifive,plic-1.0.0", NULL};

const struct driver plic_driver = {
    .name = "plic", .compatible = plic_compatible, .stage = STAGE_INTERRUPTS, .probe = plic_probe};
