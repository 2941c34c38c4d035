/* The Internet checksum. */
#ifndef NET_CHECKSUM_H
#define NET_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* Sum of the 16-bit words of `bytes` bytes, in memory order, folded to 16 bits, not inverted. */
uint16_t net_checksum(const void *data, int bytes);

#endif
