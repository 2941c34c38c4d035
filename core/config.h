/* Configuration: words `key=value` from the kernel command line, then from fw_cfg's file
 * opt/platter/config. Of a key given twice the last one counts, except where a module reads them
 * all with config_next. */
#ifndef CORE_CONFIG_H
#define CORE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

/* Takes in words separated by blanks or line ends. -E2BIG when there are more than CONFIG_WORDS_MAX
 * words or COMMAND_LINE_MAX bytes in all: said in the log, nothing of `text` is taken. */
int config_parse(const char *text);

/* The value of `key`; NULL when it is not given, "" for a word without "=". */
const char *config_text(const char *key);

/* The next value of a key that may stand more than once; `*position` starts at 0. */
const char *config_next(const char *key, unsigned *position);

/* A decimal number within [minimum, maximum]; `fallback` when the key is not given. A value that is
 * no such number is named in the log, and `fallback` is used. */
uint64_t config_number(const char *key, uint64_t minimum, uint64_t maximum, uint64_t fallback);

/* Bytes: a decimal number with K, M or G behind it; same rules. */
uint64_t config_bytes(const char *key, uint64_t minimum, uint64_t maximum, uint64_t fallback);

/* The whole of `text` as a number of bytes; false when it is none. For parts of a value. */
bool config_read_bytes(const char *text, uint64_t *bytes);

/* "on" or "off" (or the bare key for on); same rules. */
bool config_switch(const char *key, bool fallback);

/* Names every word in the log that nobody has asked for: a mistyped key must not go unseen. */
void config_report_unknown(void);

#ifdef PLATTER_HOST
void config_forget(void);
#endif

#endif
