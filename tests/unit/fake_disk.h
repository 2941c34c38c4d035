/* A virtio-blk device for tests: serves from memory, or misbehaves as told. One at a time. */
#ifndef TESTS_UNIT_FAKE_DISK_H
#define TESTS_UNIT_FAKE_DISK_H

#include "blk/virtio_blk.h"
#include "core/virtio/transport.h"
#include "tests/device_ring.h"

#define F_SIZE_MAX     (UINT64_C(1) << 1)
#define F_SEG_MAX      (UINT64_C(1) << 2)
#define F_GEOMETRY     (UINT64_C(1) << 4)
#define F_RO           (UINT64_C(1) << 5)
#define F_BLK_SIZE     (UINT64_C(1) << 6)
#define F_FLUSH        (UINT64_C(1) << 9)
#define F_TOPOLOGY     (UINT64_C(1) << 10)
#define F_CONFIG_WCE   (UINT64_C(1) << 11)
#define F_DISCARD      (UINT64_C(1) << 13)
#define F_WRITE_ZEROES (UINT64_C(1) << 14)
#define F_SECURE_ERASE (UINT64_C(1) << 16)

enum { FAKE_SECTORS = 2048, FAKE_RING = 16, FAKE_SERVED_MAX = 512 };

enum fake_mood {
    SERVES,
    FAILS,        /* status IOERR */
    NOT_OFFERED,  /* status UNSUPP */
    SPEAKS_ODDLY, /* a status that means nothing */
    READS_SHORT,  /* says OK, and that it wrote less than asked for */
    KEEPS_SILENT, /* does nothing */
    FORGETS,      /* does what it is told and does not say so */
    LIES,         /* completes what is not in flight */
    MIXES_UP,     /* completes what is in flight but not done */
    BRAGS,        /* says that it wrote more than it was given room for */
    REPEATS,      /* completes everything twice */
};

struct fake_request {
    uint32_t type;
    uint64_t sector;
    uint32_t bytes;
};

struct fake_disk {
    struct virtio_transport transport;
    struct device_node node;
    struct io_buffer dma;
    uint64_t offered;
    uint32_t status;
    bool never_resets;
    unsigned reset_reads; /* the status reads back 0 only after so many */
    bool is_unplugged;    /* every register reads all ones, nothing is written anywhere */
    uint8_t config[72];
    size_t config_bytes;
    bool keeps_cache_mode; /* does not take another one */
    unsigned ring_max;
    struct device_ring ring;
    enum fake_mood mood;
    enum fake_mood mood_after_reset;
    unsigned good_requests; /* served well before the mood sets in */
    uint64_t takes_ns;      /* for each */
    uint64_t bad_sector;    /* requests that touch it fail; UINT64_MAX for none */
    uint64_t silent_sector; /* those that touch it are not answered; UINT64_MAX for none */
    unsigned resets;
    const char *id;
    unsigned requests[16]; /* by type */
    uint32_t range_flags;
    struct fake_request served[FAKE_SERVED_MAX];
    unsigned served_count;
};

extern struct fake_disk device;
extern uint8_t fake_content[FAKE_SECTORS * 512];
/* The disk that the driver made of it; never NULL. */
extern struct block_device *disk;

/* A healthy device of these features besides the common ones. */
void fake_disk_set_up(uint64_t features);
/* It does not offer these after all. */
void fake_disk_lacks(uint64_t features);
void fake_config64(size_t offset, uint64_t value);
void fake_config32(size_t offset, uint32_t value);
/* The driver's probe; the disk is in `disk` when it succeeds. */
int fake_disk_probe(void);
/* Looks at the ring, as when it is notified. */
void fake_disk_work(void);
/* A configuration change interrupt. */
void fake_disk_config_changed(void);

/* Runs one request in a task and returns its status. */
int fake_disk_run(enum block_operation operation, unsigned flags, uint64_t offset, void *data,
                  uint32_t length);

#endif
