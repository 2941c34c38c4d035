/* What the parts of the simulator share: how a run ends, and what its scenario is. */
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include "tests/sim/world.h"

/* Exit status of a run's process. */
enum sim_status { SIM_PASSED = 0, SIM_FAILED = 1, SIM_USAGE = 2 };

_Noreturn void sim_end_process(enum sim_status status);

/* How often, in thousandths, something goes wrong while faults are on. */
struct disk_faults {
    unsigned io_error;
    unsigned late;        /* answered much later, but in time */
    unsigned lost;        /* never answered: done or not */
    unsigned twice;       /* answered twice */
    unsigned wrong_id;    /* another is answered */
    unsigned wrong_bytes; /* says it wrote more than there was room for, or less than asked for */
    unsigned unsaid;      /* answered without a status */
    unsigned odd_status;
    unsigned needs_reset;
    unsigned resize; /* per look of the clock that changes the device, see disk.c */
    unsigned slow_reset;
    unsigned comes_back_different;
    unsigned vanishes;
    unsigned never_resets;
};

struct net_faults {
    unsigned lost;
    unsigned twice;
    unsigned reordered;
    unsigned delayed;
    unsigned corrupted;
    unsigned link_down; /* per look of the clock */
    unsigned still;     /* the same: all is lost for a while, and nobody says so */
    unsigned breaks;    /* the interface itself breaks its ring */
};

enum run_end { END_QUIET, END_STOPPED_UNDER_LOAD, END_POWER_CUT };

/* All that one seed decides beforehand. */
struct plan {
    /* The machine. */
    size_t memory_bytes;
    char command_line[256];
    unsigned timeout_s; /* of disk requests, as in the command line */
    bool has_limit;     /* the export serves so many requests a second */
    bool has_checks;    /* released memory is filled with a pattern */
    unsigned hiccup_permille;
    uint64_t hiccup_ns_max;

    /* Interrupts. */
    unsigned interrupt_late;
    unsigned interrupt_lost;

    /* The disk. */
    uint64_t sectors;
    uint32_t block_bytes;
    uint64_t disk_features;
    bool disk_has_cache;
    unsigned disk_ring;
    unsigned seg_max;
    uint32_t size_max;
    uint32_t discard_sectors_max;
    uint32_t zeroes_sectors_max;
    uint64_t disk_fetch_ns;
    uint64_t disk_ns_min;
    uint64_t disk_ns_max;
    bool disk_is_in_order;
    bool disk_scribbles;   /* writes to read buffers before the data is there */
    bool disk_polls;       /* wants no notification while it is busy */
    unsigned discard_does; /* 0 zeroes, 1 nothing, 2 leaves rubbish */
    struct disk_faults disk_faults;

    /* The network. */
    uint64_t net_features;
    unsigned receive_ring;
    unsigned send_ring;
    unsigned mtu;
    uint64_t wire_ns;
    uint64_t net_fetch_ns;
    uint64_t send_done_ns; /* how long the interface may keep what it has sent */
    bool net_polls;
    unsigned backlog; /* frames that wait for receive buffers */
    struct net_faults net_faults;

    /* Clients. */
    unsigned clients;
    unsigned requests; /* of each */
    unsigned depth_max;
    uint32_t request_bytes_max;
    unsigned misbehaves;   /* per request: the client ends its connection in the middle of it */
    unsigned vanishes;     /* of those, the ones who say nothing more */
    unsigned stalls;       /* per request: the client takes nothing for a while */
    unsigned nonsense;     /* per request: one that must be refused */
    unsigned ends_garbled; /* per request: sends what is no request */
    bool clients_share;    /* all write to the same places */

    /* Memory that is not there. */
    uint64_t allocation_fails_at; /* the one with this number, counted from the start; 0: none */
    unsigned allocation_fails;    /* per allocation, while faults are on */
    unsigned pool_fails;          /* likewise, lwIP's pools */

    /* The story. */
    enum run_end end;
    uint64_t faults_end_ns;
    uint64_t end_ns; /* when power is cut or the key is pressed */
    /* Nothing goes wrong but what clients do themselves: every request is answered, and well. */
    bool is_sound;
};

extern struct plan plan;

/* From the seed, by luck(). */
void plan_make(void);
void plan_show(void);

/* Faults are on. */
bool plan_has_faults(void);
/* True in so many of a thousand cases, while faults are on. */
bool fault_strikes(unsigned permille);

#endif
