/* The log: one clear line per thing that happened, with numbers.
 *
 * Lines go into a ring in memory and from there to the console when nothing else wants to run, for
 * a console write costs more than a disk request; a panic writes out what is left. */
#ifndef CORE_LOG_H
#define CORE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

/* The console's end: takes of `length` bytes as many as it can without waiting, and returns how
 * many they are. What it leaves is offered again. */
typedef size_t log_sink(void *arg, const char *text, size_t length);

/* Lines above `level` are not kept. The default is LOG_INFO. */
void log_set_level(enum log_level level);
/* "error", "warning", "info" or "debug"; false when `word` is none of them. */
bool log_level_parse(const char *word, enum log_level *level);

/* Where lines go; until the first call they wait in the ring. */
void log_set_sink(log_sink *sink, void *arg);

void log_at(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_warning(...) log_at(LOG_WARNING, __VA_ARGS__)
#define log_info(...)    log_at(LOG_INFO, __VA_ARGS__)
#define log_debug(...)   log_at(LOG_DEBUG, __VA_ARGS__)

/* Logs an error and returns `error`, so that refusing reads as one statement. */
int log_error(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* True when `limit` lets one more line through now; the first line after a silence says how many
 * were left out. One static `struct log_rate` per cause. */
struct log_rate {
    uint64_t window_start_ns;
    unsigned lines;
    unsigned left_out;
};
bool log_rate_allows(struct log_rate *limit);

/* Text without time stamp or level, straight to the ring: self-test output, status dumps. */
void log_text(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Writes up to `budget` waiting bytes to the sink; true when more wait and it has taken all so far.
 * When it has not, somebody does not read the console: lines wait in the ring meanwhile. */
bool log_drain(size_t budget);
bool log_is_waiting(void);
/* Writes everything that waits: before power-off and in a panic. Ends without it when the console
 * takes nothing for LOG_FLUSH_MS. */
void log_flush(void);

/* Copies the last `lines` whole lines into `text`, as many of them as fit with a NUL. */
void log_tail(unsigned lines, char *text, size_t bytes);

/* Lines dropped because the ring was full. */
uint64_t log_dropped(void);

#endif
