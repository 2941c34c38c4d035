/* The drivers of an image: what the scan of the device tree looks for. */
#include <stddef.h>

#include "blk/virtio_blk.h"
#include "boot/riscv64/plic.h"
#include "core/dev/driver.h"
#include "core/dev/fwcfg.h"
#include "core/dev/ns16550.h"
#include "core/dev/sifive_test.h"
#include "core/virtio/mmio.h"
#include "core/virtio/transport.h"
#include "net/virtio_net.h"

const struct driver *const platter_drivers[] = {
    &sifive_test_driver, &fwcfg_driver, &ns16550_driver, &plic_driver, &virtio_mmio_driver, NULL,
};

const struct virtio_driver *const platter_virtio_drivers[] = {
    &virtio_net_driver,
    &virtio_blk_driver,
    NULL,
};
