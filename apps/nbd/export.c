/* The table of exports. See export.h. */
#include "apps/nbd/export.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apps/nbd/limit.h"
#include "apps/nbd/wire.h"
#include "config/limits.h"
#include "core/log.h"

enum { PREFERRED_BYTES_MIN = 4096 };

static struct nbd_export exports[NBD_EXPORTS_MAX];
static unsigned export_count;
static unsigned default_index;

static bool is_called(const struct nbd_export *export, const char *name, size_t length) {
    const char *alias = export->alias;
    return (strlen(export->name) == length && memcmp(export->name, name, length) == 0) ||
           (alias != NULL && strlen(alias) == length && memcmp(alias, name, length) == 0);
}

/* NULL when there is none. */
static struct nbd_export *find(const char *name, size_t length) {
    for (unsigned i = 0; i < export_count; i++) {
        if (is_called(&exports[i], name, length)) {
            return &exports[i];
        }
    }
    return NULL;
}

/* For people: may be cut. */
static void describe(struct nbd_export *export) {
    const struct block_device *device = export->device;
    export->described_bytes = device->capacity_bytes;
    (void)snprintf(export->description, sizeof export->description, "%s, %llu MiB%s", device->model,
                   (unsigned long long)(device->capacity_bytes >> 20),
                   export->is_read_only ? ", read-only" : "");
}

/* As clients see it: NULL when its disk is out of service, described as it is now. */
static const struct nbd_export *visible(struct nbd_export *export) {
    if (export == NULL || export->device->is_gone) {
        return NULL;
    }
    if (export->described_bytes != export->device->capacity_bytes) {
        describe(export);
    }
    return export;
}

int nbd_export_add(struct block_device *device, const char *name, bool is_read_only,
                   bool is_rotational) {
    if (strlen(name) == 0 || strlen(name) > NBD_EXPORT_NAME_MAX) {
        return log_error(-EINVAL, "nbd: export name \"%s\" refused: 1 to %u bytes are wanted", name,
                         NBD_EXPORT_NAME_MAX);
    }
    if (export_count == NBD_EXPORTS_MAX) {
        return log_error(-ENOSPC, "nbd: %s left out: %u exports are the limit", name,
                         NBD_EXPORTS_MAX);
    }
    if (find(name, strlen(name)) != NULL) {
        return log_error(-EEXIST, "nbd: a second export %s left out", name);
    }
    struct nbd_export *export = &exports[export_count++];
    *export = (struct nbd_export){.name = name,
                                  .device = device,
                                  .is_read_only = is_read_only || device->limits.is_read_only,
                                  .is_rotational = is_rotational};
    describe(export);
    return 0;
}

int nbd_export_set_alias(const char *name, const char *alias) {
    struct nbd_export *export = find(name, strlen(name));
    const struct nbd_export *other = find(alias, strlen(alias));
    if (export == NULL) {
        return log_error(-ENOENT, "nbd: %s refused as a name of %s, which there is not", alias,
                         name);
    }
    if (other != NULL && other != export) {
        return log_error(-EEXIST, "nbd: %s refused as a name of %s: it is %s", alias, name,
                         other->name);
    }
    export->alias = alias;
    return 0;
}

unsigned nbd_export_count(void) {
    return export_count;
}

const struct nbd_export *nbd_export_at(unsigned index) {
    for (unsigned i = 0; i < export_count; i++) {
        const struct nbd_export *export = visible(&exports[i]);
        if (export != NULL && index-- == 0) {
            return export;
        }
    }
    return NULL;
}

const struct nbd_export *nbd_export_find(const char *name, size_t length) {
    if (length == 0) {
        return default_index < export_count ? visible(&exports[default_index]) : NULL;
    }
    return visible(find(name, length));
}

int nbd_export_set_default(const char *name) {
    const struct nbd_export *export = find(name, strlen(name));
    if (export == NULL) {
        return log_error(-ENOENT, "nbd: default=%s refused: there is no such export", name);
    }
    default_index = (unsigned)(export - exports);
    return 0;
}

int nbd_export_set_limit(const char *name, uint64_t bytes_per_s, uint64_t requests_per_s) {
    struct nbd_export *export = find(name, strlen(name));
    if (export == NULL) {
        return -ENOENT;
    }
    struct nbd_limit *limit = export->limit;
    if (limit == NULL) {
        limit = calloc(1, sizeof *limit);
        export->limit = limit;
    }
    if (limit == NULL) {
        return -ENOMEM;
    }
    limit->bytes.per_s = bytes_per_s != 0 ? bytes_per_s : limit->bytes.per_s;
    limit->requests.per_s = requests_per_s != 0 ? requests_per_s : limit->requests.per_s;
    return 0;
}

/* CAN_MULTI_CONN is true because every connection shares one queue and one device: a flush covers
 * whatever was completed before it, whoever wrote it. SEND_FLUSH is said of a disk without a cache
 * too: its completed writes are durable, so the answer is immediate and true. */
uint16_t nbd_export_flags(const struct nbd_export *export, bool is_read_only) {
    const struct block_limits *limits = &export->device->limits;
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                     NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;
    if (export->is_rotational) {
        flags |= NBD_FLAG_ROTATIONAL;
    }
    if (export->is_read_only || is_read_only) {
        flags |= NBD_FLAG_READ_ONLY;
        return (uint16_t)flags;
    }
    if (limits->discard_bytes_max != 0) {
        flags |= NBD_FLAG_SEND_TRIM;
    }
    /* A disk that cannot zero is written zeroes; a zeroing that must be fast is refused then. */
    flags |= NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    return (uint16_t)flags;
}

struct nbd_block_sizes nbd_export_block_sizes(const struct nbd_export *export) {
    const struct block_limits *limits = &export->device->limits;
    uint32_t preferred = PREFERRED_BYTES_MIN;
    if (limits->physical_block_bytes > preferred) {
        preferred = limits->physical_block_bytes;
    }
    if (limits->minimum_io_bytes > preferred && is_power_of_two(limits->minimum_io_bytes) &&
        limits->minimum_io_bytes <= NBD_REQUEST_BYTES_MAX) {
        preferred = limits->minimum_io_bytes;
    }
    if (limits->optimal_io_bytes > preferred && is_power_of_two(limits->optimal_io_bytes)) {
        preferred = limits->optimal_io_bytes;
    }
    return (struct nbd_block_sizes){
        .minimum = limits->block_bytes, .preferred = preferred, .maximum = NBD_REQUEST_BYTES_MAX};
}

#ifdef PLATTER_HOST
void nbd_export_forget(void) {
    for (unsigned i = 0; i < export_count; i++) {
        free(exports[i].limit);
        exports[i].limit = NULL;
    }
    export_count = 0;
    default_index = 0;
}
#endif
