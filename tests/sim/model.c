/* See model.h. */
#include "tests/sim/model.h"

#include <stdlib.h>
#include <string.h>

#include "tests/sim/world.h"

enum { WORDS = SECTOR_BYTES / 8 };

/* One content of one sector, from when it got there until the next one did. Numbered in the order
 * of all writes; 0 is none. */
struct version {
    uint32_t older;
    uint32_t content;
    uint32_t batch;
    uint64_t at_ns;
};

static uint64_t sector_count;
static uint32_t *newest;  /* version of each sector */
static uint32_t *durable; /* the version that survives a power cut; newer ones may */
static uint32_t *dirty;   /* sectors whose newest version may not be durable */
static uint32_t dirty_count;
static bool *is_dirty;
static struct version *versions;
static uint32_t version_count;
static uint32_t version_room;
static uint64_t *batch_complete_ns;
static uint32_t batch_count;
static uint32_t batch_room;
static struct model_request *requests;
static uint32_t request_count;
static uint32_t request_room;
/* Those of them that are open and clear a range. */
static uint32_t *clearings;
static uint32_t clearing_count;
static uint32_t clearing_room;
static uint32_t checked_until; /* all before it are answered and known to be durable */

static void *grow(void *array, uint32_t *room, size_t each) {
    *room = *room != 0 ? 2 * *room : 1024;
    array = realloc(array, *room * each);
    SIM_CHECK(array != NULL);
    return array;
}

void model_begin(uint64_t sectors) {
    sector_count = sectors;
    newest = calloc(sectors, sizeof *newest);
    durable = calloc(sectors, sizeof *durable);
    dirty = calloc(sectors, sizeof *dirty);
    is_dirty = calloc(sectors, sizeof *is_dirty);
    SIM_CHECK(newest != NULL && durable != NULL && dirty != NULL && is_dirty != NULL);
    versions = grow(versions, &version_room, sizeof *versions);
    batch_complete_ns = grow(batch_complete_ns, &batch_room, sizeof *batch_complete_ns);
    requests = grow(requests, &request_room, sizeof *requests);
    versions[0] = (struct version){.content = MODEL_ORIGINAL};
    version_count = 1;
    batch_complete_ns[0] = 0;
    batch_count = 1;
    request_count = MODEL_FIRST;
    checked_until = MODEL_FIRST;
}

/* --- Stamps ------------------------------------------------------------------------------------
 */

static uint64_t stamp_word(uint64_t sector, uint32_t content, unsigned word) {
    return (sector << 32 | content) + word * UINT64_C(0x0101010100000000);
}

void model_stamp(uint8_t bytes[SECTOR_BYTES], uint64_t sector, uint32_t content) {
    if (content == MODEL_ZERO) {
        memset(bytes, 0, SECTOR_BYTES);
        return;
    }
    for (unsigned i = 0; i < WORDS; i++) {
        uint64_t word = stamp_word(sector, content, i);
        memcpy(bytes + 8 * (size_t)i, &word, 8);
    }
}

/* The content that these bytes are, or the run fails. */
static uint32_t content_of(const uint8_t bytes[SECTOR_BYTES], uint64_t sector, const char *who) {
    uint64_t word;
    memcpy(&word, bytes, 8);
    uint32_t content = (uint32_t)word;
    for (unsigned i = 0; i < WORDS; i++) {
        uint64_t expected = content == MODEL_ZERO ? 0 : stamp_word(sector, content, i);
        memcpy(&word, bytes + 8 * (size_t)i, 8);
        if (word != expected) {
            uint64_t first;
            memcpy(&first, bytes, 8);
            sim_fail("%s: sector %llu has in word %u 0x%016llx, which is of no write to it (it "
                     "begins with 0x%016llx)",
                     who, (unsigned long long)sector, i, (unsigned long long)word,
                     (unsigned long long)first);
        }
    }
    return content;
}

/* --- Clients -----------------------------------------------------------------------------------
 */

uint32_t model_request_begin(enum model_kind kind, uint64_t sector, uint32_t sectors,
                             bool is_durable, bool must_fail) {
    if (request_count == request_room) {
        requests = grow(requests, &request_room, sizeof *requests);
    }
    requests[request_count] = (struct model_request){.kind = kind,
                                                     .is_durable = is_durable,
                                                     .must_fail = must_fail,
                                                     .sector = sector,
                                                     .sectors = sectors,
                                                     .begun_ns = world_now_ns(),
                                                     .answered_ns = MODEL_NEVER};
    if (kind != MODEL_WRITE && !must_fail) {
        if (clearing_count == clearing_room) {
            clearings = grow(clearings, &clearing_room, sizeof *clearings);
        }
        clearings[clearing_count++] = request_count;
    }
    return request_count++;
}

/* The first version that this request made of a sector; 0 when it never did. */
static uint32_t version_by(const struct model_request *request, uint32_t number, uint64_t sector) {
    uint32_t found = 0;
    uint32_t content = request->kind == MODEL_WRITE ? number : MODEL_ZERO;
    for (uint32_t v = newest[sector]; v != 0; v = versions[v].older) {
        if (versions[v].content == content && versions[v].at_ns >= request->begun_ns &&
            versions[v].at_ns <= request->answered_ns) {
            found = v;
        }
    }
    return found;
}

static void check_done(const struct model_request *request, uint32_t number, bool must_last) {
    for (uint32_t i = 0; i < request->sectors; i++) {
        uint64_t sector = request->sector + i;
        uint32_t version = version_by(request, number, sector);
        if (version == 0) {
            sim_fail("request %u was answered, and the disk was never given sector %llu of it",
                     number, (unsigned long long)sector);
        }
        if (must_last && durable[sector] < version) {
            sim_fail("request %u is promised to be durable, and sector %llu of it is not", number,
                     (unsigned long long)sector);
        }
    }
}

void model_request_answered(uint32_t number, bool has_failed) {
    struct model_request *request = &requests[number];
    SIM_CHECK(request->answered_ns == MODEL_NEVER);
    request->answered_ns = world_now_ns();
    request->has_failed = has_failed;
    for (uint32_t i = 0; i < clearing_count; i++) {
        if (clearings[i] == number) {
            clearings[i] = clearings[--clearing_count];
        }
    }
    if (!has_failed && request->kind != MODEL_TRIM) {
        SIM_CHECK(!request->must_fail);
        check_done(request, number, request->is_durable);
        request->is_checked = request->is_durable;
    }
}

/* Nothing more is to be found out about it. */
static bool is_settled(const struct model_request *request) {
    return request->is_checked || request->has_failed || request->must_fail ||
           (request->kind == MODEL_TRIM && request->answered_ns != MODEL_NEVER);
}

void model_flush_answered(uint64_t begun_ns) {
    while (checked_until < request_count && is_settled(&requests[checked_until])) {
        checked_until++;
    }
    for (uint32_t i = checked_until; i < request_count; i++) {
        struct model_request *request = &requests[i];
        if (!is_settled(request) && request->answered_ns < begun_ns) {
            check_done(request, i, true);
            request->is_checked = true;
        }
    }
}

/* Was this the sector's content at some time since `begun_ns`? */
static bool was_there(uint64_t sector, uint32_t content, uint64_t begun_ns) {
    for (uint32_t v = newest[sector];; v = versions[v].older) {
        if (versions[v].content == content) {
            return true;
        }
        if (v == 0 || versions[v].at_ns < begun_ns) {
            return false;
        }
    }
}

void model_check_read(uint64_t sector, uint32_t sectors, const uint8_t *data, uint64_t begun_ns) {
    SIM_CHECK(sector <= sector_count && sectors <= sector_count - sector);
    for (uint32_t i = 0; i < sectors; i++, sector++) {
        uint32_t content = MODEL_ZERO;
        if (data != NULL) {
            content = content_of(data + (size_t)i * SECTOR_BYTES, sector, "what a client reads");
        }
        if (!was_there(sector, content, begun_ns)) {
            sim_fail("a read of sector %llu returned %u, and since it was asked there was %u",
                     (unsigned long long)sector, content, versions[newest[sector]].content);
        }
    }
}

/* --- The disk ----------------------------------------------------------------------------------
 */

uint32_t model_batch(void) {
    if (batch_count == batch_room) {
        batch_complete_ns = grow(batch_complete_ns, &batch_room, sizeof *batch_complete_ns);
    }
    batch_complete_ns[batch_count] = MODEL_NEVER;
    return batch_count++;
}

void model_batch_complete(uint32_t batch) {
    batch_complete_ns[batch] = world_now_ns();
}

static void add_version(uint32_t batch, uint64_t sector, uint32_t content) {
    if (version_count == version_room) {
        versions = grow(versions, &version_room, sizeof *versions);
    }
    versions[version_count] = (struct version){
        .older = newest[sector], .content = content, .batch = batch, .at_ns = world_now_ns()};
    newest[sector] = version_count++;
    if (!is_dirty[sector]) {
        is_dirty[sector] = true;
        dirty[dirty_count++] = (uint32_t)sector;
    }
}

/* A request that is still to be answered, and may change this sector. */
static bool is_open(const struct model_request *request, enum model_kind kind, uint64_t sector) {
    return request->kind == kind && !request->must_fail && request->answered_ns == MODEL_NEVER &&
           sector >= request->sector && sector - request->sector < request->sectors;
}

/* A zeroing that the disk cannot do by itself comes as zeroes to write. */
static bool may_be_zeroed(enum model_kind kind, uint64_t sector) {
    for (uint32_t i = clearing_count; i-- > 0;) {
        if (is_open(&requests[clearings[i]], kind, sector)) {
            return true;
        }
    }
    return false;
}

void model_disk_writes(uint32_t batch, uint64_t sector, const uint8_t bytes[SECTOR_BYTES]) {
    uint32_t content = content_of(bytes, sector, "what the disk is given");
    bool is_asked = content == MODEL_ZERO ? may_be_zeroed(MODEL_ZEROES, sector)
                                          : content >= MODEL_FIRST && content < request_count &&
                                                is_open(&requests[content], MODEL_WRITE, sector);
    if (!is_asked) {
        sim_fail("the disk is given %u for sector %llu, which nobody asks for (any more)", content,
                 (unsigned long long)sector);
    }
    add_version(batch, sector, content);
}

void model_disk_clears(uint32_t batch, enum model_kind kind, uint64_t sector, uint64_t sectors,
                       uint64_t content) {
    for (uint64_t end = sector + sectors; sector < end; sector++) {
        if (!may_be_zeroed(kind, sector)) {
            sim_fail("the disk is asked to %s sector %llu, which no client wants (any more)",
                     kind == MODEL_TRIM ? "discard" : "zero", (unsigned long long)sector);
        }
        if (content != MODEL_NEVER) {
            add_version(batch, sector, (uint32_t)content);
        }
    }
}

uint32_t model_disk_content(uint64_t sector) {
    return versions[newest[sector]].content;
}

void model_disk_flushes(uint64_t before_ns) {
    uint32_t left = 0;
    for (uint32_t i = 0; i < dirty_count; i++) {
        uint64_t sector = dirty[i];
        for (uint32_t v = newest[sector]; v > durable[sector]; v = versions[v].older) {
            if (batch_complete_ns[versions[v].batch] <= before_ns) {
                durable[sector] = v;
                break;
            }
        }
        if (newest[sector] != durable[sector]) {
            dirty[left++] = (uint32_t)sector;
        } else {
            is_dirty[sector] = false;
        }
    }
    dirty_count = left;
}

void model_disk_keeps(uint32_t batch, uint64_t sector, uint64_t sectors) {
    for (uint64_t i = 0; i < sectors; i++) {
        for (uint32_t v = newest[sector + i]; v > durable[sector + i]; v = versions[v].older) {
            if (versions[v].batch == batch) {
                durable[sector + i] = v;
                break;
            }
        }
    }
}

/* --- The end -----------------------------------------------------------------------------------
 */

void model_check_all_durable(void) {
    model_flush_answered(MODEL_NEVER);
}

/* What clients know, without looking at the disk's history: may `content` be what is left of a
 * sector, when `promised` is durable? Not what was over before that began. */
static bool may_survive(uint32_t content, uint64_t sector, const struct model_request *promised) {
    if (content >= MODEL_FIRST) {
        return requests[content].answered_ns >= promised->begun_ns;
    }
    for (uint32_t i = MODEL_FIRST; i < request_count && content != MODEL_ORIGINAL; i++) {
        const struct model_request *request = &requests[i];
        if (request->kind != MODEL_WRITE && request->answered_ns >= promised->begun_ns &&
            sector >= request->sector && sector - request->sector < request->sectors) {
            return true;
        }
    }
    return false;
}

static uint32_t survivor(uint64_t sector) {
    uint64_t choices = 1;
    for (uint32_t v = newest[sector]; v > durable[sector]; v = versions[v].older) {
        choices++;
    }
    uint32_t version = newest[sector];
    for (uint64_t steps = luck_below(choices); steps > 0; steps--) {
        version = versions[version].older;
    }
    return version;
}

void model_power_cut(void) {
    uint64_t changed = 0;
    for (uint64_t sector = 0; sector < sector_count; sector++) {
        uint32_t kept = survivor(sector);
        changed += kept != newest[sector];
        newest[sector] = kept;
    }
    trace("power is cut: %llu sectors lose what they had last", changed, 0, 0, 0);
    for (uint32_t i = MODEL_FIRST; i < request_count; i++) {
        const struct model_request *request = &requests[i];
        for (uint32_t j = 0; request->is_checked && j < request->sectors; j++) {
            uint64_t sector = request->sector + j;
            uint32_t content = versions[newest[sector]].content;
            if (!may_survive(content, sector, request)) {
                sim_fail("after the power cut sector %llu has %u, though %u was promised to be "
                         "durable",
                         (unsigned long long)sector, content, i);
            }
        }
    }
}

uint64_t model_writes(void) {
    return version_count - 1;
}
