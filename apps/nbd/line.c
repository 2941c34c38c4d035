/* Lines of connections that wait. See line.h. */
#include "apps/nbd/line.h"

#include "core/panic.h"

void nbd_line_join(struct nbd_line *line, struct nbd_place *place,
                   struct nbd_connection *connection) {
    if (nbd_place_is_taken(place)) {
        return;
    }
    *place = (struct nbd_place){.connection = connection};
    if (line->last != NULL) {
        line->last->next = place;
    } else {
        line->first = place;
    }
    line->last = place;
    line->waits++;
}

void nbd_line_leave(struct nbd_line *line, struct nbd_place *place) {
    struct nbd_place *before = NULL;
    struct nbd_place **link = &line->first;
    while (*link != place) {
        ASSERT(*link != NULL);
        before = *link;
        link = &before->next;
    }
    *link = place->next;
    if (line->last == place) {
        line->last = before;
    }
    *place = (struct nbd_place){0};
}
