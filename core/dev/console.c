/* One receiver of keys. See console.h. */
#include "core/dev/console.h"

#include <stddef.h>

static void (*receiver)(void *arg, uint8_t key);
static void *receiver_arg;

void console_set_receiver(void (*receive)(void *arg, uint8_t key), void *arg) {
    receiver = receive;
    receiver_arg = arg;
}

void console_receive(uint8_t key) {
    if (receiver != NULL) {
        receiver(receiver_arg, key);
    }
}
