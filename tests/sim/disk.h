/* A virtio-blk device (VIRTIO 1.3, 5.2) with a cache that forgets, and every fault that there is.
 */
#ifndef TESTS_SIM_DISK_H
#define TESTS_SIM_DISK_H

#include <stdbool.h>
#include <stdint.h>

/* Bits of plan.disk_features. */
#define DISK_F_SIZE_MAX     (UINT64_C(1) << 1)
#define DISK_F_SEG_MAX      (UINT64_C(1) << 2)
#define DISK_F_BLK_SIZE     (UINT64_C(1) << 6)
#define DISK_F_FLUSH        (UINT64_C(1) << 9)
#define DISK_F_CONFIG_WCE   (UINT64_C(1) << 11)
#define DISK_F_DISCARD      (UINT64_C(1) << 13)
#define DISK_F_WRITE_ZEROES (UINT64_C(1) << 14)

/* As the plan has it. */
void disk_set_up(void);

/* The smallest that it has been since `since_ns`, and the largest: sectors. */
uint64_t disk_sectors_least(uint64_t since_ns);
uint64_t disk_sectors_most(uint64_t since_ns);

/* It had so many bytes, in whole blocks, at some time. */
bool disk_had_bytes(uint64_t bytes);

/* Power goes: of what it was doing, each sector is done or not. */
void disk_power_cut(void);

/* It has done something that the driver may punish or give up on: errors may follow at any time. */
bool disk_has_misbehaved(void);
bool disk_is_gone(void);
/* It never finishes a reset: what it had may never be answered. */
bool disk_is_stuck(void);
/* Its last change of size is one of which the interrupt was lost, and nothing else tells of it. */
bool disk_has_untold_size(void);

/* Requests that it keeps. */
unsigned disk_in_flight(void);

#endif
