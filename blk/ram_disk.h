/* A disk in memory: for tests, and for measuring the network alone. */
#ifndef BLK_RAM_DISK_H
#define BLK_RAM_DISK_H

#include "blk/block.h"

/* A zeroed disk of `bytes` bytes, a multiple of 4096, registered under `name` (which must outlive
 * it). NULL, said in the log, when memory is short. */
struct block_device *ram_disk_create(const char *name, uint64_t bytes);

#endif
