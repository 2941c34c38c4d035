/* QEMU's test finisher (compatible "sifive,test0"): one register that ends the emulator. */
#include "core/dev/sifive_test.h"

#include <errno.h>

#include "core/dev/device_node.h"
#include "core/dev/mmio.h"
#include "core/log.h"
#include "core/panic.h"

/* QEMU, include/hw/misc/sifive_test.h: the low half says what, the high half the exit status. */
enum { FINISHER_FAIL = 0x3333, FINISHER_PASS = 0x5555, FINISHER_RESET = 0x7777 };

static struct mmio finisher;

static void finish(void *unused, enum power_end end, bool restart) {
    (void)unused; /* there is one */
    uint32_t word = end == POWER_OFF ? FINISHER_PASS : (uint32_t)end << 16 | FINISHER_FAIL;
    mmio_write32(&finisher, 0, restart ? FINISHER_RESET : word);
}

static int finisher_probe(struct device_node *node) {
    if (node->reg_count == 0 || node->regs[0].length < 4) {
        return log_error(-EINVAL, "%s: has no register", node->name);
    }
    finisher = mmio_map(node->regs[0]);
    power_set_switch(finish, NULL);
    return 0;
}

static const char *const finisher_compatible[] = {"sifive,test0", NULL};

const struct driver sifive_test_driver = {.name = "sifive-test",
                                          .compatible = finisher_compatible,
                                          .stage = STAGE_POWER,
                                          .probe = finisher_probe};
