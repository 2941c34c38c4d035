/* VIRTIO over MMIO, version 2 (VIRTIO 1.3, 4.2). */
#ifndef CORE_VIRTIO_MMIO_H
#define CORE_VIRTIO_MMIO_H

#include "core/dev/driver.h"

extern const struct driver virtio_mmio_driver;

#endif
