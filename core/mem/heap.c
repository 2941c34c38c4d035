/* Size classes over page runs. See heap.h.
 *
 * Memory may be in several ranges, each with page runs of its own: what is asked for comes from the
 * first range that has it, and goes back to where it lies.
 *
 * A slab is one page: this header, then objects of one size. Which objects are in use is a bitmap
 * in the header, so a double release is found; free objects are chained through their first word.
 */
#include "core/mem/heap.h"

#include <errno.h>
#include <string.h>

#include "config/limits.h"
#include "core/mem/free_list.h"
#include "core/mem/poison.h"
#include "core/panic.h"

#define SLAB_MAGIC UINT32_C(0x51ab51ab)

enum { GRANULE = 16, SLAB_OBJECTS_MAX = 256, CLASS_BYTES_MAX = 1312 };

struct slab {
    uint32_t magic;
    uint16_t class_index;
    uint16_t objects_used;
    void *free_object;
    struct slab *next; /* in the class's list of slabs with room */
    struct slab *previous;
    uint64_t used[SLAB_OBJECTS_MAX / 64];
};

struct size_class {
    uint16_t bytes;
    uint16_t first;      /* offset of the first object */
    uint16_t count;      /* objects of one slab */
    uint16_t reciprocal; /* 65536 / bytes rounded up: offset to index without a division */
    struct slab *with_room;
    struct slab *spare; /* one empty slab kept, so that a lone object does not move pages */
    size_t objects_used;
    size_t slabs;
};

/* Chosen so that at most an eighth of a page is lost to rounding. */
static const uint16_t class_bytes[] = {
    16,  32,  48,  64,  80,  96,  112, 128, 160, 192,
    224, 256, 320, 384, 448, 512, 640, 768, 960, CLASS_BYTES_MAX};

enum { CLASS_COUNT = sizeof class_bytes / sizeof class_bytes[0] };

static struct free_list ranges[HEAP_RANGES_MAX];
static unsigned range_count; /* 0: the heap is not there yet */
static size_t pages_used_peak;
static uint64_t failures;
static struct size_class classes[CLASS_COUNT];
static uint8_t class_of_granules[CLASS_BYTES_MAX / GRANULE + 1];

static void make_classes(void) {
    unsigned granules = 0;
    for (unsigned i = 0; i < CLASS_COUNT; i++) {
        struct size_class *class = &classes[i];
        size_t size = class_bytes[i];
        /* Objects of a power of two are aligned to their size: heap_alloc_aligned relies on it. */
        size_t first = align_up(sizeof(struct slab), is_power_of_two(size) ? size : GRANULE);
        *class = (struct size_class){.bytes = (uint16_t)size, .first = (uint16_t)first};
        class->count = (uint16_t)((PAGE_BYTES - first) / size);
        class->reciprocal = (uint16_t)((65536 + size - 1) / size);
        ASSERT(class->count >= 1 && class->count <= SLAB_OBJECTS_MAX);
        while (granules <= size / GRANULE) {
            class_of_granules[granules++] = (uint8_t)i;
        }
    }
}

int heap_init(void *start, size_t bytes) {
    if (range_count != 0) {
        return -EBUSY;
    }
    int error = free_list_init(&ranges[0], start, bytes);
    if (error) {
        return error;
    }
    make_classes();
    range_count = 1;
    pages_used_peak = 0;
    failures = 0;
    return 0;
}

int heap_add(void *start, size_t bytes) {
    ASSERT(range_count != 0);
    if (range_count == HEAP_RANGES_MAX) {
        return -ENOSPC;
    }
    int error = free_list_init(&ranges[range_count], start, bytes);
    range_count += error == 0;
    return error;
}

/* The range that `pointer` lies in; any when it lies in none, and that one will say so. */
static struct free_list *range_of(const void *pointer) {
    unsigned i = 0;
    while (i + 1 < range_count && !free_list_covers(&ranges[i], pointer)) {
        i++;
    }
    return &ranges[i];
}

static size_t pages_used(void) {
    size_t pages = 0;
    for (unsigned i = 0; i < range_count; i++) {
        pages += ranges[i].pages_used;
    }
    return pages;
}

static void *pages_take(size_t pages, size_t align_pages) {
    for (unsigned i = 0; i < range_count; i++) {
        void *run = free_list_take(&ranges[i], pages, align_pages);
        if (run != NULL) {
            size_t used = pages_used();
            pages_used_peak = used > pages_used_peak ? used : pages_used_peak;
            return run;
        }
    }
    failures++;
    return NULL;
}

static void slab_list_insert(struct size_class *class, struct slab *slab) {
    slab->previous = NULL;
    slab->next = class->with_room;
    if (slab->next != NULL) {
        slab->next->previous = slab;
    }
    class->with_room = slab;
}

static void slab_list_remove(struct size_class *class, struct slab *slab) {
    if (slab->previous != NULL) {
        slab->previous->next = slab->next;
    } else {
        class->with_room = slab->next;
    }
    if (slab->next != NULL) {
        slab->next->previous = slab->previous;
    }
}

static struct slab *slab_create(struct size_class *class) {
    struct slab *slab = pages_take(1, 1);
    if (slab == NULL) {
        return NULL;
    }
    memset(slab, 0, sizeof *slab);
    slab->magic = SLAB_MAGIC;
    slab->class_index = (uint16_t)(class - classes);
    char *object = (char *)slab + class->first;
    poison_fill(object, (size_t) class->count * class->bytes);
    for (unsigned i = 0; i < class->count; i++, object += class->bytes) {
        *(void **)(void *)object = i + 1u < class->count ? object + class->bytes : NULL;
    }
    slab->free_object = (char *)slab + class->first;
    class->slabs++;
    return slab;
}

static unsigned object_index(const struct size_class *class, size_t offset) {
    return (unsigned)((offset * class->reciprocal) >> 16);
}

static void *class_take(struct size_class *class) {
    struct slab *slab = class->with_room;
    if (slab == NULL) {
        slab = class->spare != NULL ? class->spare : slab_create(class);
        if (slab == NULL) {
            return NULL;
        }
        class->spare = NULL;
        slab_list_insert(class, slab);
    }
    char *object = slab->free_object;
    unsigned index = object_index(class, (size_t)(object - (char *)slab) - class->first);
    uint64_t bit = UINT64_C(1) << (index % 64);
    ASSERT(index < class->count && (slab->used[index / 64] & bit) == 0);
    slab->used[index / 64] |= bit;
    slab->free_object = *(void **)(void *)object;
    poison_expect(object + sizeof(void *), class->bytes - sizeof(void *));
    slab->objects_used++;
    class->objects_used++;
    if (slab->free_object == NULL) {
        slab_list_remove(class, slab);
    }
    return object;
}

/* The slab that `pointer` lies in, or NULL when it is not an object of one. */
static struct slab *slab_of(const void *pointer) {
    struct slab *slab = (struct slab *)align_down((uintptr_t)pointer, PAGE_BYTES);
    bool is_slab = (void *)slab != pointer && free_list_run_pages(range_of(slab), slab) == 1 &&
                   slab->magic == SLAB_MAGIC && slab->class_index < CLASS_COUNT;
    return is_slab ? slab : NULL;
}

static void class_give(struct slab *slab, void *object) {
    struct size_class *class = &classes[slab->class_index];
    size_t offset = (size_t)((char *)object - (char *)slab);
    unsigned index =
        offset >= class->first ? object_index(class, offset - class->first) : UINT16_MAX;
    uint64_t bit = UINT64_C(1) << (index % 64);
    if (index >= class->count || offset != class->first + (size_t)index * class->bytes) {
        panic("memory: release of %p, inside an object of %u bytes", object, class->bytes);
    }
    if ((slab->used[index / 64] & bit) == 0) {
        panic("memory: %p, an object of %u bytes, released twice", object, class->bytes);
    }
    slab->used[index / 64] &= ~bit;
    if (slab->free_object == NULL) {
        slab_list_insert(class, slab);
    }
    poison_fill(object, class->bytes);
    *(void **)object = slab->free_object;
    slab->free_object = object;
    slab->objects_used--;
    class->objects_used--;
    if (slab->objects_used == 0) {
        slab_list_remove(class, slab);
        if (class->spare == NULL) {
            class->spare = slab;
        } else {
            slab->magic = 0;
            class->slabs--;
            free_list_give(range_of(slab), slab);
        }
    }
}

void *heap_alloc(size_t bytes) {
    ASSERT(range_count != 0);
    if (bytes <= CLASS_BYTES_MAX) {
        return class_take(&classes[class_of_granules[(bytes + GRANULE - 1) / GRANULE]]);
    }
    if (bytes > SIZE_MAX - PAGE_BYTES) {
        failures++;
        return NULL;
    }
    return pages_take(align_up(bytes, PAGE_BYTES) / PAGE_BYTES, 1);
}

void *heap_alloc_zeroed(size_t count, size_t bytes) {
    uint64_t total;
    if (!multiply_fits(count, bytes, &total)) {
        failures++;
        return NULL;
    }
    void *pointer = heap_alloc(total);
    if (pointer != NULL) {
        memset(pointer, 0, total);
    }
    return pointer;
}

void *heap_alloc_aligned(size_t align, size_t bytes) {
    ASSERT(range_count != 0);
    if (!is_power_of_two(align) || bytes > SIZE_MAX - PAGE_BYTES) {
        failures++;
        return NULL;
    }
    if (align <= GRANULE) {
        return heap_alloc(bytes);
    }
    size_t size = bytes > align ? bytes : align;
    if (size <= 512) {
        size_t power = align;
        while (power < size) {
            power *= 2;
        }
        return heap_alloc(power);
    }
    size_t pages = align_up(bytes == 0 ? 1 : bytes, PAGE_BYTES) / PAGE_BYTES;
    return pages_take(pages, align > PAGE_BYTES ? align / PAGE_BYTES : 1);
}

void heap_free(void *pointer) {
    if (pointer == NULL) {
        return;
    }
    struct slab *slab = slab_of(pointer);
    if (slab != NULL) {
        class_give(slab, pointer);
    } else {
        free_list_give(range_of(pointer), pointer);
    }
}

static size_t usable_bytes(const void *pointer) {
    struct slab *slab = slab_of(pointer);
    if (slab != NULL) {
        return classes[slab->class_index].bytes;
    }
    return free_list_run_pages(range_of(pointer), pointer) * PAGE_BYTES;
}

void *heap_resize(void *pointer, size_t bytes) {
    if (pointer == NULL) {
        return heap_alloc(bytes);
    }
    size_t have = usable_bytes(pointer);
    if (bytes <= have && bytes >= have / 2) {
        return pointer;
    }
    void *moved = heap_alloc(bytes);
    if (moved != NULL) {
        memcpy(moved, pointer, bytes < have ? bytes : have);
        heap_free(pointer);
    }
    return moved;
}

void heap_get_stats(struct heap_stats *stats) {
    *stats = (struct heap_stats){
        .bytes_used = pages_used() * PAGE_BYTES,
        .bytes_used_peak = pages_used_peak * PAGE_BYTES,
        .failures = failures,
    };
    for (unsigned i = 0; i < range_count; i++) {
        size_t largest = free_list_largest_run(&ranges[i]) * PAGE_BYTES;
        stats->bytes_total += ranges[i].page_count * PAGE_BYTES;
        stats->largest_free_run =
            largest > stats->largest_free_run ? largest : stats->largest_free_run;
    }
}

bool heap_get_class(unsigned index, size_t *object_bytes, size_t *objects, size_t *pages) {
    if (index >= CLASS_COUNT) {
        return false;
    }
    *object_bytes = classes[index].bytes;
    *objects = classes[index].objects_used;
    *pages = classes[index].slabs;
    return true;
}

static void check_slab(const struct size_class *class, const struct slab *slab) {
    for (const void *object = slab->free_object; object != NULL;
         object = *(const void *const *)object) {
        poison_expect((const char *)object + sizeof(void *), class->bytes - sizeof(void *));
    }
}

void heap_check(void) {
    for (unsigned i = 0; heap_checks && i < CLASS_COUNT; i++) {
        const struct size_class *class = &classes[i];
        for (const struct slab *slab = class->with_room; slab != NULL; slab = slab->next) {
            check_slab(class, slab);
        }
        if (class->spare != NULL) {
            check_slab(class, class->spare);
        }
    }
    for (unsigned i = 0; i < range_count; i++) {
        free_list_check(&ranges[i]);
    }
}

bool heap_look(uintptr_t address, struct heap_place *place) {
    const void *page = (const void *)align_down(address, PAGE_BYTES);
    const struct free_list *range = range_of(page);
    struct free_list_place run;
    if (range_count == 0 || !free_list_covers(range, page) || !free_list_look(range, page, &run)) {
        return false;
    }
    *place = (struct heap_place){.offset = address - (uintptr_t)run.run,
                                 .bytes = run.pages * PAGE_BYTES,
                                 .is_used = run.is_used};
    const struct slab *slab =
        slab_of((const void *)(address | 1)); /* the first byte is the slab's */
    if (slab != NULL) {
        const struct size_class *class = &classes[slab->class_index];
        size_t offset = address % PAGE_BYTES;
        unsigned index =
            offset < class->first ? class->count : object_index(class, offset - class->first);
        *place = (struct heap_place){.bytes = index < class->count ? class->bytes : 0};
        if (index < class->count) {
            place->offset = offset - class->first - (size_t)index * class->bytes;
            place->is_used = (slab->used[index / 64] >> (index % 64) & 1) != 0;
        }
    }
    return true;
}

#ifdef PLATTER_HOST
void heap_forget(void) {
    range_count = 0;
}
#endif
