/* The one source of random numbers: TCP sequence numbers, DHCP transaction ids, hash seeds.
 * Seeded once at start from what the board has; in the simulator from the run's seed. */
#ifndef CORE_RANDOM_H
#define CORE_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* Mixes more into the state; never makes it worse. */
void random_seed(const void *bytes, size_t length);
uint32_t random_u32(void);

#endif
