/* Connections that wait for the same thing, served in the order in which they came. */
#ifndef APPS_NBD_LINE_H
#define APPS_NBD_LINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nbd_connection;

/* A connection's place in one line; all zero when it does not wait. */
struct nbd_place {
    struct nbd_place *next;
    struct nbd_connection *connection; /* NULL: it does not wait */
};

struct nbd_line {
    struct nbd_place *first;
    struct nbd_place *last;
    uint64_t waits; /* how often somebody had to */
};

static inline bool nbd_place_is_taken(const struct nbd_place *place) {
    return place->connection != NULL;
}

/* Behind all others, unless it waits already. */
void nbd_line_join(struct nbd_line *line, struct nbd_place *place,
                   struct nbd_connection *connection);
/* From wherever it stands; it must wait in this line. */
void nbd_line_leave(struct nbd_line *line, struct nbd_place *place);

#endif
