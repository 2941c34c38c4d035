/* QEMU's firmware configuration device: small files that the host hands to the guest
 * (`-fw_cfg name=opt/platter/config,file=...`), for what should not stand on a command line. */
#ifndef CORE_DEV_FWCFG_H
#define CORE_DEV_FWCFG_H

#include <stddef.h>

#include "core/dev/driver.h"

extern const struct driver fwcfg_driver;

/* Reads the whole file `name` into `buf`: its length, -ENOENT when there is no such file or no
 * device, -E2BIG when it is longer than `size`. */
long fwcfg_read_file(const char *name, void *buf, size_t size);

#endif
