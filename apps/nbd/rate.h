/* A rate with a debt instead of a purse: what is admitted is paid for afterwards, in time. So a
 * request that costs more than a burst is admitted like any other, and those behind it wait for it.
 */
#ifndef APPS_NBD_RATE_H
#define APPS_NBD_RATE_H

#include <stdint.h>

#include "boot/arch.h"
#include "config/limits.h"

struct rate {
    uint64_t per_s;   /* 0: no limit */
    uint64_t paid_ns; /* when all that was admitted will be paid for */
};

/* How long until something more may be admitted: 0 for now. */
static inline uint64_t rate_wait_ns(const struct rate *rate, uint64_t now_ns) {
    uint64_t burst_ns = NBD_LIMIT_BURST_MS * NS_PER_MS;
    uint64_t debt_ns = rate->paid_ns > now_ns ? rate->paid_ns - now_ns : 0;
    return debt_ns > burst_ns ? debt_ns - burst_ns : 0;
}

/* `amount` was admitted; at most NBD_REQUEST_BYTES_MAX. */
static inline void rate_charge(struct rate *rate, uint64_t now_ns, uint64_t amount) {
    if (rate->per_s == 0) {
        return;
    }
    uint64_t from_ns = rate->paid_ns > now_ns ? rate->paid_ns : now_ns;
    rate->paid_ns = from_ns + amount * NS_PER_S / rate->per_s;
}

#endif
