/* What lwIP asks of compiler and C library. */
#ifndef NET_PORT_ARCH_CC_H
#define NET_PORT_ARCH_CC_H

#include <limits.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/log.h"
#include "core/panic.h"
#include "core/random.h"

#ifndef SSIZE_MAX
#define SSIZE_MAX LONG_MAX
#endif

#define LWIP_NO_CTYPE_H 0
#define LWIP_RAND()     random_u32()

/* Protocol headers lie at addresses that are natural for them (net/virtio_net.c sees to it), and
 * their fields are naturally aligned: without the attribute they are read in words, not bytes. */
#define PACK_STRUCT_FIELD(x) x
#define PACK_STRUCT_FLD_8(x) x
#define PACK_STRUCT_FLD_S(x) x
#define PACK_STRUCT_STRUCT
#define LWIP_SKIP_PACKING_CHECK

#define lwip_htons(x) __builtin_bswap16(x)
#define lwip_htonl(x) __builtin_bswap32(x)
#define LWIP_DONT_PROVIDE_BYTEORDER_FUNCTIONS

#define LWIP_PLATFORM_DIAG(x)                                                                      \
    do {                                                                                           \
    } while (0)
#define LWIP_PLATFORM_ASSERT(text) panic("lwIP: %s (%s:%u)", text, __FILE__, (unsigned)__LINE__)

#endif
