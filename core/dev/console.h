/* The console's other direction: keys. */
#ifndef CORE_DEV_CONSOLE_H
#define CORE_DEV_CONSOLE_H

#include <stdint.h>

/* Who wants the keys; called in the scheduler's context. */
void console_set_receiver(void (*receive)(void *arg, uint8_t key), void *arg);

/* For the console's driver: a key came. Without a receiver it is dropped. */
void console_receive(uint8_t key);

#endif
