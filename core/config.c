/* The words of the configuration. See config.h. */
#include "core/config.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "config/limits.h"
#include "core/log.h"

struct word {
    const char *key;
    const char *value;
    bool is_known;
};

static char text_kept[COMMAND_LINE_MAX];
static size_t text_used;
static struct word words[CONFIG_WORDS_MAX];
static unsigned word_count;

static const char blanks[] = " \t\r\n";

static unsigned count_words(const char *text) {
    unsigned count = 0;
    for (text += strspn(text, blanks); *text != '\0'; text += strspn(text, blanks)) {
        text += strcspn(text, blanks);
        count++;
    }
    return count;
}

int config_parse(const char *text) {
    size_t length = strlen(text);
    if (length >= sizeof text_kept - text_used ||
        count_words(text) > CONFIG_WORDS_MAX - word_count) {
        return log_error(-E2BIG, "config: more than %u words or %u bytes: refused",
                         CONFIG_WORDS_MAX, COMMAND_LINE_MAX);
    }
    char *at = &text_kept[text_used];
    memcpy(at, text, length + 1);
    text_used += length + 1;
    for (;;) {
        at += strspn(at, blanks);
        if (*at == '\0') {
            return 0;
        }
        char *end = at + strcspn(at, blanks);
        bool is_last = *end == '\0';
        *end = '\0';
        char *sign = strchr(at, '=');
        if (sign != NULL) {
            *sign = '\0';
        }
        words[word_count++] = (struct word){.key = at, .value = sign != NULL ? sign + 1 : ""};
        if (is_last) {
            return 0;
        }
        at = end + 1;
    }
}

const char *config_next(const char *key, unsigned *position) {
    while (*position < word_count) {
        struct word *word = &words[(*position)++];
        if (strcmp(word->key, key) == 0) {
            word->is_known = true;
            return word->value;
        }
    }
    return NULL;
}

const char *config_text(const char *key) {
    unsigned position = 0;
    const char *last = NULL;
    for (const char *value; (value = config_next(key, &position)) != NULL;) {
        last = value;
    }
    return last;
}

/* Digits to a number; false when there is none or it does not fit. `*rest` is what follows. */
static bool parse_number(const char *text, uint64_t *number, const char **rest) {
    uint64_t value = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value)) {
            return false;
        }
    }
    *number = value;
    *rest = at;
    return at != text;
}

static bool read_number(const char *text, bool with_unit, uint64_t *number) {
    const char *rest = text;
    if (!parse_number(text, number, &rest)) {
        return false;
    }
    static const char units[] = "KMG";
    const char *unit = with_unit && *rest != '\0' ? strchr(units, *rest) : NULL;
    if (unit == NULL) {
        return *rest == '\0';
    }
    return rest[1] == '\0' &&
           !__builtin_mul_overflow(*number, UINT64_C(1) << (10 * (unit - units + 1)), number);
}

bool config_read_bytes(const char *text, uint64_t *bytes) {
    return read_number(text, true, bytes);
}

static uint64_t number_or_fallback(const char *key, uint64_t minimum, uint64_t maximum,
                                   uint64_t fallback, bool with_unit) {
    const char *text = config_text(key);
    if (text == NULL) {
        return fallback;
    }
    uint64_t value = 0;
    if (!read_number(text, with_unit, &value) || value < minimum || value > maximum) {
        log_warning("config: %s=%s refused: a number from %llu to %llu is wanted; using %llu", key,
                    text, (unsigned long long)minimum, (unsigned long long)maximum,
                    (unsigned long long)fallback);
        return fallback;
    }
    return value;
}

uint64_t config_number(const char *key, uint64_t minimum, uint64_t maximum, uint64_t fallback) {
    return number_or_fallback(key, minimum, maximum, fallback, false);
}

uint64_t config_bytes(const char *key, uint64_t minimum, uint64_t maximum, uint64_t fallback) {
    return number_or_fallback(key, minimum, maximum, fallback, true);
}

bool config_switch(const char *key, bool fallback) {
    const char *text = config_text(key);
    if (text == NULL) {
        return fallback;
    }
    if (strcmp(text, "on") == 0 || *text == '\0') {
        return true;
    }
    if (strcmp(text, "off") == 0) {
        return false;
    }
    log_warning("config: %s=%s refused: on or off is wanted; using %s", key, text,
                fallback ? "on" : "off");
    return fallback;
}

void config_report_unknown(void) {
    for (unsigned i = 0; i < word_count; i++) {
        if (!words[i].is_known) {
            log_warning("config: unknown key \"%s\" ignored", words[i].key);
        }
    }
}

#ifdef PLATTER_HOST
void config_forget(void) {
    word_count = 0;
    text_used = 0;
}
#endif
