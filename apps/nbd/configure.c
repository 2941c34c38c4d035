/* The server's configuration keys; docs/configuration.md tells what they mean.
 *
 * A number that makes no sense is named in the log, and the default is used. A list of addresses or
 * of limits that makes no sense would let somebody do what was to be forbidden: nothing is served.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "apps/nbd/export.h"
#include "apps/nbd/server.h"
#include "core/config.h"
#include "core/log.h"

enum {
    PORT_DEFAULT = 10809, /* IANA: nbd */
    IDLE_S_MAX = 7 * 24 * 3600,
    LIMIT_BYTES_MIN = 4096,
    MS_PER_S = 1000,
};

static int read_addresses(const char *key, struct access_list *list) {
    unsigned position = 0;
    const char *text;
    while ((text = config_next(key, &position)) != NULL) {
        int error = access_list_add(list, text);
        if (error) {
            return log_error(
                error, "config: %s=%s refused: %s; nothing is served without it", key, text,
                error == -ENOSPC ? "too many networks" : "ADDRESS or ADDRESS/BITS are wanted");
        }
    }
    return 0;
}

/* One NAME:NUMBER of a list of limits. */
static int read_limit(const char *item, size_t length, bool is_bytes) {
    char name[NBD_EXPORT_NAME_MAX + 24];
    uint64_t number = 0;
    (void)snprintf(name, sizeof name, "%.*s", (int)length, item); /* cut: no such export */
    char *sign = strrchr(name, ':');
    if (sign == NULL || !config_read_bytes(sign + 1, &number) ||
        number < (is_bytes ? LIMIT_BYTES_MIN : 1)) {
        return -EINVAL;
    }
    *sign = '\0';
    return nbd_export_set_limit(name, is_bytes ? number : 0, is_bytes ? 0 : number);
}

static int read_limits(const char *key, bool is_bytes) {
    unsigned position = 0;
    const char *list;
    while ((list = config_next(key, &position)) != NULL) {
        const char *at = list;
        for (;;) {
            size_t length = strcspn(at, ",");
            int error = read_limit(at, length, is_bytes);
            if (error) {
                return log_error(error,
                                 "config: %s=%s refused: EXPORT:NUMBER are wanted, with the names "
                                 "of exports; nothing is served without it",
                                 key, list);
            }
            if (at[length] == '\0') {
                break;
            }
            at += length + 1;
        }
    }
    return 0;
}

int nbd_server_configure(struct nbd_server_config *config) {
    *config = (struct nbd_server_config){
        .port = (uint16_t)config_number("port", 1, UINT16_MAX, PORT_DEFAULT),
        .may_list = config_switch("list", true),
        .keeps_allocation = config_switch("allocation", true),
        .depth = (unsigned)config_number("depth", 1, NBD_DISK_DEPTH_MAX, NBD_DISK_DEPTH),
        .idle_ms = config_number("idle", 0, IDLE_S_MAX, 0) * MS_PER_S,
    };
    int error = read_addresses("allow", &config->allow);
    error = error ? error : read_addresses("readonly-from", &config->readers);
    error = error ? error : read_limits("limit-bytes", true);
    return error ? error : read_limits("limit-requests", false);
}
