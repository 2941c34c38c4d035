/* Lists of IPv4 networks: who may connect, and who may only read. */
#ifndef APPS_NBD_ACCESS_H
#define APPS_NBD_ACCESS_H

#include <stdbool.h>
#include <stdint.h>

#include "config/limits.h"

struct access_list {
    unsigned count;
    struct {
        uint32_t address; /* host's byte order */
        uint32_t mask;
    } rules[NBD_ACCESS_RULES_MAX];
};

/* Adds the networks of `text`: ADDRESS or ADDRESS/BITS, separated by commas. -EINVAL for anything
 * else, also for an empty list and for an address with bits beyond its network; -ENOSPC past
 * NBD_ACCESS_RULES_MAX. What was added before the fault stays: nobody may use the list then. */
int access_list_add(struct access_list *list, const char *text);

bool access_list_has(const struct access_list *list, uint32_t address);

#endif
