/* The log ring and its line format. See log.h. */
#include "core/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "boot/arch.h"
#include "config/limits.h"

/* Whatever the clock says, which may have stopped when there is a panic to tell of. */
enum { FLUSH_LOOKS_MAX = 10000000 };

/* Free-running positions; only the low bits index the ring. A full ring loses its oldest bytes. */
static char ring[LOG_RING_BYTES];
static uint64_t ring_head; /* next byte written */
static uint64_t ring_tail; /* next byte for the sink */
static uint64_t dropped;
static bool is_line_open; /* the sink has the beginning of a line */
static bool is_line_torn; /* and the ring has lost the rest of it */
static enum log_level level_max = LOG_INFO;
static log_sink *sink_write;
static void *sink_arg;

_Static_assert((LOG_RING_BYTES & (LOG_RING_BYTES - 1)) == 0, "positions are masked");
_Static_assert(LOG_LINE_MAX < LOG_RING_BYTES / 4, "a line must never fill the ring");

static const char *const level_names[] = {"error", "warning", "info", "debug"};
/* Only what is not routine is marked in a line. */
static const char *const level_marks[] = {"error: ", "warning: ", "", "debug: "};

void log_set_level(enum log_level level) {
    level_max = level;
}

bool log_level_parse(const char *word, enum log_level *level) {
    for (size_t i = 0; i < sizeof level_names / sizeof level_names[0]; i++) {
        if (strcmp(word, level_names[i]) == 0) {
            *level = (enum log_level)i;
            return true;
        }
    }
    return false;
}

void log_set_sink(log_sink *sink, void *arg) {
    sink_write = sink;
    sink_arg = arg;
}

static void ring_put(const char *text, size_t length) {
    if (ring_head + length - ring_tail > LOG_RING_BYTES) {
        /* Drop whole lines from the old end. */
        uint64_t need = ring_head + length - LOG_RING_BYTES;
        while (ring_tail < need ||
               (ring_tail < ring_head && ring[(ring_tail - 1) & (LOG_RING_BYTES - 1)] != '\n')) {
            dropped += ring[ring_tail & (LOG_RING_BYTES - 1)] == '\n';
            ring_tail++;
        }
        is_line_torn = is_line_open;
    }
    for (size_t i = 0; i < length; i++) {
        ring[ring_head++ & (LOG_RING_BYTES - 1)] = text[i];
    }
}

static void put_line(const char *prefix_mark, bool stamped, const char *format, va_list arguments) {
    char line[LOG_LINE_MAX];
    size_t used = 0;
    if (stamped) {
        uint64_t us = arch_clock_ns() / NS_PER_US;
        int n = snprintf(line, sizeof line, "[%5u.%06u] %s", (unsigned)(us / 1000000),
                         (unsigned)(us % 1000000), prefix_mark);
        used = n > 0 ? (size_t)n : 0;
    }
    int n = vsnprintf(line + used, sizeof line - used - 1, format, arguments);
    size_t room = sizeof line - used - 2;
    used += n < 0 ? 0 : ((size_t)n < room ? (size_t)n : room);
    /* A name from outside must not be able to forge lines or drive a terminal: some take 0x80 to
     * 0x9f for control codes too. */
    for (size_t i = 0; i < used; i++) {
        if ((unsigned char)line[i] < 0x20 || (unsigned char)line[i] >= 0x7f) {
            line[i] = '?';
        }
    }
    line[used++] = '\n';
    ring_put(line, used);
}

void log_at(enum log_level level, const char *format, ...) {
    if (level > level_max) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    put_line(level_marks[level], true, format, arguments);
    va_end(arguments);
}

int log_error(int error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    put_line(level_marks[LOG_ERROR], true, format, arguments);
    va_end(arguments);
    return error;
}

void log_text(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    put_line("", false, format, arguments);
    va_end(arguments);
}

bool log_rate_allows(struct log_rate *limit) {
    uint64_t now = arch_clock_ns();
    if (limit->window_start_ns == 0 || now - limit->window_start_ns >= NS_PER_S) {
        unsigned left_out = limit->left_out;
        *limit = (struct log_rate){.window_start_ns = now};
        if (left_out != 0) {
            log_info("(%u more lines of the next kind were left out)", left_out);
        }
    }
    if (limit->lines >= LOG_RATE_PER_S) {
        limit->left_out++;
        return false;
    }
    limit->lines++;
    return true;
}

bool log_is_waiting(void) {
    return sink_write != NULL && ring_tail != ring_head;
}

/* Out of line: there is seldom anything to write. */
__attribute__((noinline)) static bool drain(size_t budget) {
    if (is_line_torn && sink_write != NULL) {
        if (sink_write(sink_arg, "\n", 1) == 0) {
            return false;
        }
        is_line_torn = false;
    }
    while (budget > 0 && log_is_waiting()) {
        size_t at = ring_tail & (LOG_RING_BYTES - 1);
        size_t run = LOG_RING_BYTES - at;
        size_t waiting = (size_t)(ring_head - ring_tail);
        run = run < waiting ? run : waiting;
        run = run < budget ? run : budget;
        uint64_t tail = ring_tail;
        size_t taken = sink_write(sink_arg, &ring[at], run);
        if (taken > 0 && ring_tail == tail) {
            is_line_open = ring[at + taken - 1] != '\n';
            ring_tail += taken;
        }
        if (taken < run) {
            return false;
        }
        budget -= run;
    }
    return log_is_waiting();
}

bool log_drain(size_t budget) {
    return (is_line_torn || ring_tail != ring_head) && drain(budget);
}

void log_flush(void) {
    uint64_t end_ns = arch_clock_ns() + LOG_FLUSH_MS * NS_PER_MS;
    for (unsigned looks = 0; log_is_waiting() && looks < FLUSH_LOOKS_MAX; looks++) {
        uint64_t tail = ring_tail;
        (void)log_drain(LOG_RING_BYTES); /* how far it came is in the tail */
        uint64_t now_ns = arch_clock_ns();
        if (ring_tail != tail) {
            end_ns = now_ns + LOG_FLUSH_MS * NS_PER_MS;
            looks = 0;
        } else if (now_ns > end_ns) {
            break;
        }
    }
}

void log_tail(unsigned lines, char *text, size_t bytes) {
    uint64_t kept = ring_head < LOG_RING_BYTES ? ring_head : LOG_RING_BYTES;
    uint64_t room = kept < bytes ? kept : bytes - 1;
    uint64_t at = ring_head;
    uint64_t start = ring_head; /* of the oldest line that is whole */
    for (unsigned found = 0; found <= lines && ring_head - at < room; at--) {
        if (ring[(at - 1) & (LOG_RING_BYTES - 1)] == '\n') {
            start = at;
            found++;
        } else if (at == 1) {
            start = 0;
        }
    }
    for (; start < ring_head; start++) {
        *text++ = ring[start & (LOG_RING_BYTES - 1)];
    }
    *text = '\0';
}

uint64_t log_dropped(void) {
    return dropped;
}
