/* Exports: disks under the names that clients ask for. */
#ifndef APPS_NBD_EXPORT_H
#define APPS_NBD_EXPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk/block.h"

struct nbd_limit;

struct nbd_export {
    const char *name;  /* as listed */
    const char *alias; /* another that finds it, or NULL */
    char description[96];
    uint64_t described_bytes; /* the size that the description tells */
    struct block_device *device;
    bool is_read_only; /* the disk is, or the configuration says so */
    bool is_rotational;
    struct nbd_limit *limit; /* NULL: none */
};

/* Adds an export; -ENOSPC past NBD_EXPORTS_MAX, -EEXIST for a name that is taken; said in the log.
 */
int nbd_export_add(struct block_device *device, const char *name, bool is_read_only,
                   bool is_rotational);

/* Lets `alias`, which must outlive it, find the export as well. -EEXIST for a name that is taken,
 * -ENOENT; said in the log. */
int nbd_export_set_alias(const char *name, const char *alias);

/* "" (or the name of one) is the default: the first, or the one set. NULL when there is none such,
 * or its disk is out of service. The name need not end with a zero byte. */
const struct nbd_export *nbd_export_find(const char *name, size_t length);
/* Limits what all clients of an export together may do, in bytes and in requests; 0 leaves that one
 * as it is. -ENOENT, -ENOMEM. */
int nbd_export_set_limit(const char *name, uint64_t bytes_per_s, uint64_t requests_per_s);
int nbd_export_set_default(const char *name);

/* Those whose disks are in service, in order; NULL past the last. */
const struct nbd_export *nbd_export_at(unsigned index);
/* All, in service or not. */
unsigned nbd_export_count(void);

/* Transmission flags, true of the disk, for a client that may perhaps only read. */
uint16_t nbd_export_flags(const struct nbd_export *export, bool is_read_only);

/* Block size constraints in bytes, as announced: what is not a multiple of `minimum` is refused. */
struct nbd_block_sizes {
    uint32_t minimum;
    uint32_t preferred;
    uint32_t maximum;
};
struct nbd_block_sizes nbd_export_block_sizes(const struct nbd_export *export);

#ifdef PLATTER_HOST
void nbd_export_forget(void);
#endif

#endif
