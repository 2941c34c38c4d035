/* Walls inside the one address space: code can only be run, constants only be read, data only be
 * used as data, and where nothing is, nothing answers.
 *
 *   page 0            not mapped
 *   device registers  read-write, each node's own when its driver is bound
 *   firmware          not mapped
 *   code              read-execute
 *   constants         read
 *   data, heap        read-write: stacks (each above a guard page), IoBuffers, everything else
 *   device tree       read
 *
 * Before walls_build and in the host build there are none, and the functions below change nothing.
 */
#ifndef CORE_MEM_WALLS_H
#define CORE_MEM_WALLS_H

#include "core/mem/addr.h"

/* Maps the image, the `count` ranges of the heap's memory and the device tree one to one, and
 * switches translation on. The heap is ready. 0 or a negative errno, said in the log. Once. */
int walls_build(const struct phys_range *heap, unsigned count, struct phys_range device_tree);

/* Registers of a device (a range that phys_range_is_valid) become reachable; again for the same
 * ones is harmless. -EEXIST or -EBUSY when they lie on memory, -ENOMEM, -EFAULT when no address
 * reaches them. */
int walls_map_device(struct phys_range registers);

/* `page` lets nobody pass from now on, or is memory again. Putting up a guard may want a page for a
 * table: -ENOMEM. Taking it away never does. */
int walls_put_guard(void *page);
void walls_remove_guard(void *page);

/* Pages that hold page tables now, and guards that are up. */
size_t walls_table_pages(void);
size_t walls_guards(void);

/* What may be done at `address`, as in core/mem/pages.h; false when nothing is mapped there. */
bool walls_access(uintptr_t address, unsigned *access);

#endif
