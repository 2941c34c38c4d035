/* Memory for payload: what reads are read into and what is not lent by the network. */
#ifndef APPS_NBD_PAYLOAD_H
#define APPS_NBD_PAYLOAD_H

#include <stddef.h>

/* Takes `bytes`, whole pages, from the heap as one IoBuffer. 0 or a negative errno, said in the
 * log. Once. */
int nbd_payload_init(size_t bytes);

/* `pages` pages in one piece, or NULL when there is no such piece. The content is whatever was
 * there. */
void *nbd_payload_take(size_t pages);

/* Gives back a piece as it was taken. */
void nbd_payload_give(void *piece, size_t pages);

/* What can be had, and what there is, in bytes. */
size_t nbd_payload_free(void);
size_t nbd_payload_total(void);

#endif
