/* What may be true of the disk: every content that every sector has had, which of it is durable,
 * and what clients were promised.
 *
 * A sector of 512 bytes holds zeroes or a stamp, which names its place and the write that it came
 * from in every word. So the device can tell whose bytes it is given, and a client what it reads,
 * without anybody keeping the bytes. */
#ifndef TESTS_SIM_MODEL_H
#define TESTS_SIM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SECTOR_BYTES = 512 };

/* Contents that no request has written; requests count from MODEL_FIRST. */
enum { MODEL_ZERO = 0, MODEL_ORIGINAL = 1, MODEL_RUBBISH = 2, MODEL_FIRST = 3 };

enum model_kind { MODEL_WRITE, MODEL_ZEROES, MODEL_TRIM };

#define MODEL_NEVER UINT64_MAX

/* A request of a client that changes the disk. */
struct model_request {
    enum model_kind kind;
    bool is_durable; /* FUA */
    bool must_fail;  /* it cannot be right: nothing of it may ever reach the disk */
    bool has_failed;
    bool is_checked; /* known to be durable for good */
    uint64_t sector;
    uint32_t sectors;
    uint64_t begun_ns;    /* its first byte was sent */
    uint64_t answered_ns; /* MODEL_NEVER until then */
};

void model_begin(uint64_t sectors);

void model_stamp(uint8_t bytes[SECTOR_BYTES], uint64_t sector, uint32_t content);

/* --- The clients' side --- */

/* Returns the number that its stamps carry. */
uint32_t model_request_begin(enum model_kind kind, uint64_t sector, uint32_t sectors,
                             bool is_durable, bool must_fail);
/* The client has its answer: checks what that promises. */
void model_request_answered(uint32_t request, bool has_failed);
/* A flush that was sent at `begun_ns` was answered well: what had been answered by then is durable.
 */
void model_flush_answered(uint64_t begun_ns);
/* What a read of [sector, sector + sectors) that was sent at `begun_ns` returned. NULL: zeroes. */
void model_check_read(uint64_t sector, uint32_t sectors, const uint8_t *data, uint64_t begun_ns);

/* --- The disk's side --- */

/* Starts a batch, of one device request: what it writes is complete together. */
uint32_t model_batch(void);
void model_batch_complete(uint32_t batch);
/* The device is given a sector. Fails the run unless a client has asked for just that. */
void model_disk_writes(uint32_t batch, uint64_t sector, const uint8_t bytes[SECTOR_BYTES]);
/* The same for a range of zeroes or a discard, which leaves `content`, or nothing changed when that
 * is MODEL_NEVER. */
void model_disk_clears(uint32_t batch, enum model_kind kind, uint64_t sector, uint64_t sectors,
                       uint64_t content);
uint32_t model_disk_content(uint64_t sector);
/* Makes durable what was complete at `before_ns`. */
void model_disk_flushes(uint64_t before_ns);
/* Without a cache: what this batch wrote is durable. */
void model_disk_keeps(uint32_t batch, uint64_t sector, uint64_t sectors);

/* --- The end --- */

/* Power is gone: of what was not durable each sector keeps one content, as luck has it. What
 * clients were promised must be there. */
void model_power_cut(void);
/* In order: everything that was answered well is durable. */
void model_check_all_durable(void);

uint64_t model_writes(void);

#endif
