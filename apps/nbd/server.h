/* The NBD server: exports, connections, memory for payload. */
#ifndef APPS_NBD_SERVER_H
#define APPS_NBD_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "apps/nbd/access.h"

struct nbd_server_config {
    uint16_t port;
    bool may_list;            /* LIST tells the exports */
    bool keeps_allocation;    /* what is known of the disks' content is kept and told */
    unsigned depth;           /* pieces of requests that a disk has at a time; then clients wait */
    uint64_t idle_ms;         /* a client without requests is closed after this; 0: never */
    struct access_list allow; /* empty: everybody */
    struct access_list readers; /* may only read */
};

/* Reads the configuration of the server, and of the limits of exports, which must be there.
 * -EINVAL, -ENOENT, said in the log, when something cannot be understood that would let somebody do
 * what was to be forbidden. */
int nbd_server_configure(struct nbd_server_config *config);

/* Takes memory for payload and serves the exports (export.h) from now on. 0 or a negative errno,
 * said in the log. Called once, after net_start, from a task. `config` must stay. */
int nbd_server_start(const struct nbd_server_config *config);

/* Begins the end: accepts no more clients, answers new requests with ESHUTDOWN, lets those begun
 * finish. From any task. */
void nbd_server_shut_down(void);
/* True when the last connection has gone. Connections that do not drain by the deadline are cut. */
bool nbd_server_is_down(void);

/* Status through log_text. */
void nbd_server_dump(void);

#endif
