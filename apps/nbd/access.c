/* Lists of networks. See access.h. */
#include "apps/nbd/access.h"

#include <errno.h>
#include <stddef.h>

/* A decimal number of at most `most` without needless zeroes; NULL when there is none. */
static const char *parse_part(const char *text, uint32_t most, uint32_t *value) {
    uint32_t sum = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; at++) {
        sum = sum * 10 + (uint32_t)(*at - '0');
        if (sum > most) {
            return NULL;
        }
    }
    bool is_odd = at == text || (*text == '0' && at - text > 1);
    *value = sum;
    return is_odd ? NULL : at;
}

static const char *parse_address(const char *text, uint32_t *address) {
    *address = 0;
    for (unsigned i = 0; i < 4; i++) {
        uint32_t part = 0;
        if (i > 0 && *text++ != '.') {
            return NULL;
        }
        text = parse_part(text, 255, &part);
        if (text == NULL) {
            return NULL;
        }
        *address = *address << 8 | part;
    }
    return text;
}

int access_list_add(struct access_list *list, const char *text) {
    for (;;) {
        uint32_t address = 0;
        uint32_t bits = 32;
        const char *end = parse_address(text, &address);
        if (end != NULL && *end == '/') {
            end = parse_part(end + 1, 32, &bits);
        }
        uint32_t mask = bits == 0 ? 0 : UINT32_MAX << (32 - bits);
        if (end == NULL || (*end != ',' && *end != '\0') || (address & ~mask) != 0) {
            return -EINVAL;
        }
        if (list->count == NBD_ACCESS_RULES_MAX) {
            return -ENOSPC;
        }
        list->rules[list->count].address = address;
        list->rules[list->count].mask = mask;
        list->count++;
        if (*end == '\0') {
            return 0;
        }
        text = end + 1;
    }
}

bool access_list_has(const struct access_list *list, uint32_t address) {
    for (unsigned i = 0; i < list->count; i++) {
        if ((address & list->rules[i].mask) == list->rules[i].address) {
            return true;
        }
    }
    return false;
}
