/* Device registers of a machine that is not there: memory, or what a test makes of them. */
#include <string.h>

#include "boot/host/host.h"
#include "core/dev/mmio.h"

static host_mmio_read *read_function;
static host_mmio_write *write_function;

void host_set_mmio(host_mmio_read *read, host_mmio_write *write) {
    read_function = read;
    write_function = write;
}

uint32_t mmio_model_read(const struct mmio *mmio, size_t offset, unsigned bytes) {
    uint32_t value = 0;
    if (read_function != NULL) {
        return read_function(mmio, offset, bytes);
    }
    memcpy(&value, (const void *)(mmio->base + offset), bytes);
    return value;
}

void mmio_model_write(const struct mmio *mmio, size_t offset, unsigned bytes, uint32_t value) {
    if (write_function != NULL) {
        write_function(mmio, offset, bytes, value);
        return;
    }
    memcpy((void *)(mmio->base + offset), &value, bytes);
}
