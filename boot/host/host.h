/* The host board's other side: what a test or a simulator decides about the machine that the
 * portable code believes to run on. Time is virtual: it moves only when somebody here moves it, or
 * when the code sleeps. */
#ifndef BOOT_HOST_HOST_H
#define BOOT_HOST_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mmio;

/* The clock as it is now; going back is the caller's risk. */
void host_clock_set(uint64_t now_ns);
void host_clock_advance(uint64_t ns);

/* Called in place of sleeping: what the world does meanwhile. It moves the clock itself, to
 * `deadline_ns` or earlier. NULL: the clock jumps to the deadline. */
typedef void host_idle(void *arg, uint64_t deadline_ns);
void host_set_idle(host_idle *idle, void *arg);

/* Called by arch_halt, in whatever context that happens; must not return. NULL: the process exits
 * with `failed`. */
typedef void host_halt(bool failed);
void host_set_halt(host_halt *halt);

/* Called wherever time passes on a machine and its devices, which are other processors, may be seen
 * to have done something: when the clock is read and at each barrier. May move the clock. NULL: the
 * machine does everything in no time, alone. */
typedef void host_moment(void *arg);
void host_set_moment(host_moment *moment, void *arg);

/* Where the sequence of arch_entropy starts. */
void host_set_entropy(uint64_t seed);

/* What device registers do: `read` and `write` of `bytes` bytes (1, 2 or 4) at `offset` of a
 * device's registers, which lie where core/dev/mmio.h says. NULL: they are memory. Both or neither.
 */
typedef uint32_t host_mmio_read(const struct mmio *mmio, size_t offset, unsigned bytes);
typedef void host_mmio_write(const struct mmio *mmio, size_t offset, unsigned bytes,
                             uint32_t value);
void host_set_mmio(host_mmio_read *read, host_mmio_write *write);
/* Through which core/dev/mmio.h asks. */
uint32_t mmio_model_read(const struct mmio *mmio, size_t offset, unsigned bytes);
void mmio_model_write(const struct mmio *mmio, size_t offset, unsigned bytes, uint32_t value);

#endif
