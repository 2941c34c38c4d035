/* The stack protector's canary, which the compiler puts between a function's arrays and its return
 * address. */
#ifndef CORE_STACK_GUARD_H
#define CORE_STACK_GUARD_H

#include <stdint.h>

/* Once, from a function that never returns: frames that are still open were made with the value
 * before. The lowest byte becomes 0, which ends any string that runs over it. */
void stack_guard_set(uint64_t random);

#endif
