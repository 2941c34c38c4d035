/* The NBD server: exports, connections, memory for payload. */
#ifndef APPS_NBD_SERVER_H
#define APPS_NBD_SERVER_H

#include <stdbool.h>
#include <stdint.h>

struct nbd_server_config {
    uint16_t port;
    bool may_list; /* LIST tells the exports */
};

/* Takes memory for payload and serves the exports (export.h) from now on. 0 or a negative errno,
 * said in the log. Called once, after net_start, from a task. */
int nbd_server_start(const struct nbd_server_config *config);

/* Begins the end: accepts no more clients, answers new requests with ESHUTDOWN, lets those begun
 * finish. From any task. */
void nbd_server_shut_down(void);
/* True when the last connection has gone. Connections that do not drain by the deadline are cut. */
bool nbd_server_is_down(void);

/* Status through log_text. */
void nbd_server_dump(void);

#endif
