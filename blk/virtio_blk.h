/* The virtio-blk driver (VIRTIO 1.3, 5.2). */
#ifndef BLK_VIRTIO_BLK_H
#define BLK_VIRTIO_BLK_H

#include "blk/block.h"
#include "core/virtio/queue.h"
#include "core/virtio/transport.h"

extern const struct virtio_driver virtio_blk_driver;

/* What the ring of a disk of this driver has seen. */
const struct virtqueue_stats *virtio_blk_ring_stats(const struct block_device *device);

#ifdef PLATTER_HOST
/* Unit tests begin with vda again. */
void virtio_blk_forget(void);
#endif

#endif
