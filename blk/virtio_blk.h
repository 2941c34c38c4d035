/* The virtio-blk driver (VIRTIO 1.3, 5.2). */
#ifndef BLK_VIRTIO_BLK_H
#define BLK_VIRTIO_BLK_H

#include "core/virtio/transport.h"

extern const struct virtio_driver virtio_blk_driver;

#endif
