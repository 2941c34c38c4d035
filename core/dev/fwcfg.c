/* Reading fw_cfg files. QEMU, docs/specs/fw_cfg: selector and data are big-endian on memory-mapped
 * boards, except that data read bytewise is a plain stream. */
#include "core/dev/fwcfg.h"

#include <errno.h>
#include <string.h>

#include "core/dev/device_node.h"
#include "core/dev/mmio.h"
#include "core/log.h"

enum {
    REG_DATA = 0,
    REG_SELECTOR = 8,
    SELECT_SIGNATURE = 0x0000,
    SELECT_DIRECTORY = 0x0019,
    NAME_BYTES = 56,
    /* More files than QEMU can hold (its own limit is lower): a directory that claims more is bad.
     */
    FILES_MAX = 4096,
};

static struct mmio fwcfg;

static void select_item(uint16_t item) {
    mmio_write16(&fwcfg, REG_SELECTOR, (uint16_t)(item << 8 | item >> 8));
}

static void read_bytes(void *buf, size_t bytes) {
    uint8_t *out = buf;
    for (size_t i = 0; i < bytes; i++) {
        out[i] = mmio_read8(&fwcfg, REG_DATA);
    }
}

static uint32_t read_be32(void) {
    uint8_t b[4];
    read_bytes(b, sizeof b);
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

long fwcfg_read_file(const char *name, void *buf, size_t size) {
    if (fwcfg.base == NULL) {
        return -ENOENT;
    }
    select_item(SELECT_DIRECTORY);
    uint32_t count = read_be32();
    for (uint32_t i = 0; i < count && i < FILES_MAX; i++) {
        uint32_t bytes = read_be32();
        uint8_t select[4]; /* selector, then two reserved bytes */
        char file_name[NAME_BYTES];
        read_bytes(select, sizeof select);
        read_bytes(file_name, sizeof file_name);
        if (strncmp(file_name, name, NAME_BYTES) != 0) {
            continue;
        }
        if (bytes > size) {
            return log_error(-E2BIG, "fw_cfg: %s has %u bytes, %zu are the limit", name,
                             (unsigned)bytes, size);
        }
        select_item((uint16_t)(select[0] << 8 | select[1]));
        read_bytes(buf, bytes);
        return (long)bytes;
    }
    return -ENOENT;
}

static int fwcfg_probe(struct device_node *node) {
    char signature[4];
    if (node->reg_count == 0 || node->regs[0].length < REG_SELECTOR + 2) {
        return log_error(-EINVAL, "%s: registers make no sense", node->name);
    }
    fwcfg = mmio_map(node->regs[0]);
    select_item(SELECT_SIGNATURE);
    read_bytes(signature, sizeof signature);
    if (memcmp(signature, "QEMU", sizeof signature) != 0) {
        fwcfg.base = NULL;
        return log_error(-ENXIO, "%s: no QEMU signature", node->name);
    }
    return 0;
}

static const char *const fwcfg_compatible[] = {"qemu,fw-cfg-mmio", NULL};

const struct driver fwcfg_driver = {
    .name = "fw_cfg", .compatible = fwcfg_compatible, .stage = STAGE_POWER, .probe = fwcfg_probe};
