/* What the compiler's -fstack-protector asks for. See stack_guard.h. */
#include "core/stack_guard.h"

#include "core/panic.h"

/* The compiler's names. */
extern uintptr_t __stack_chk_guard;
_Noreturn void __stack_chk_fail(void);

uintptr_t __stack_chk_guard;

void stack_guard_set(uint64_t random) {
    __stack_chk_guard = (uintptr_t)(random & ~UINT64_C(0xff));
}

_Noreturn void __stack_chk_fail(void) {
    panic("stack smashed: the function below wrote past the end of its own array");
}
