/* The words of the kernel command line and of the file behind it (a zero byte in the input stands
 * between them), and what the NBD server makes of its keys. */
#include <stdlib.h>
#include <string.h>

#include "apps/nbd/export.h"
#include "apps/nbd/limit.h"
#include "apps/nbd/server.h"
#include "core/config.h"
#include "core/log.h"
#include "tests/fuzz/fuzz.h"

enum { NUMBER_MIN = 3, NUMBER_MAX = 1000000, FALLBACK = 77 };

static struct block_device disk;

static void add_exports(void) {
    disk = (struct block_device){.name = "vda",
                                 .model = "test",
                                 .capacity_bytes = 1 << 20,
                                 .limits = {.block_bytes = 512, .physical_block_bytes = 512}};
    FUZZ_CHECK(nbd_export_add(&disk, "vda", false, false) == 0);
    FUZZ_CHECK(nbd_export_add(&disk, "data", false, false) == 0);
}

/* The C library's opinion of a number with a unit; false for none. */
static bool number_of(const char *text, uint64_t *number) {
    static const char units[] = "KMG";
    size_t digits = strspn(text, "0123456789");
    if (digits == 0 || digits > 19) {
        return false;
    }
    *number = strtoull(text, NULL, 10);
    const char *unit = text[digits] != '\0' ? strchr(units, text[digits]) : NULL;
    if (unit == NULL) {
        return text[digits] == '\0';
    }
    unsigned shift = 10 * (unsigned)(unit - units + 1);
    bool fits = *number <= UINT64_MAX >> shift;
    *number <<= shift;
    return text[digits + 1] == '\0' && fits;
}

static void check_numbers(void) {
    const char *text = config_text("n");
    uint64_t model = 0;
    uint64_t bytes = 0;
    uint64_t value = config_bytes("n", NUMBER_MIN, NUMBER_MAX, FALLBACK);
    FUZZ_CHECK(value == FALLBACK || (value >= NUMBER_MIN && value <= NUMBER_MAX));
    if (text != NULL && strspn(text, "0123456789") <= 19) {
        bool is_number = number_of(text, &model);
        FUZZ_CHECK(config_read_bytes(text, &bytes) == is_number && (!is_number || bytes == model));
        bool is_within = is_number && model >= NUMBER_MIN && model <= NUMBER_MAX;
        FUZZ_CHECK(value == (is_within ? model : FALLBACK));
    }
    uint64_t plain = config_number("n", NUMBER_MIN, NUMBER_MAX, FALLBACK);
    FUZZ_CHECK(plain == value || plain == FALLBACK);
    bool is_on = config_switch("n", true);
    FUZZ_CHECK(is_on || (text != NULL && strcmp(text, "off") == 0));
}

static void check_server(void) {
    struct nbd_server_config config;
    if (nbd_server_configure(&config) != 0) {
        return;
    }
    FUZZ_CHECK(config.port >= 1);
    FUZZ_CHECK(config.allow.count <= NBD_ACCESS_RULES_MAX &&
               config.readers.count <= NBD_ACCESS_RULES_MAX);
    for (unsigned i = 0; i < config.allow.count; i++) {
        /* A rule lets its own network in, and has no bits beyond it. */
        FUZZ_CHECK((config.allow.rules[i].address & ~config.allow.rules[i].mask) == 0);
        FUZZ_CHECK(access_list_has(&config.allow, config.allow.rules[i].address));
        FUZZ_CHECK(access_list_has(&config.allow,
                                   config.allow.rules[i].address | ~config.allow.rules[i].mask));
    }
    FUZZ_CHECK(config.allow.count > 0 || config_text("allow") == NULL);
    for (unsigned i = 0; i < 2; i++) {
        const struct nbd_limit *limit = nbd_export_at(i)->limit;
        FUZZ_CHECK(limit == NULL || limit->bytes.per_s > 0 || limit->requests.per_s > 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 2);
    FUZZ_CHECK(text != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    text[size + 1] = '\0';
    fuzz_begin();
    fuzz_forget();
    add_exports();
    size_t first = strlen(text);
    bool is_taken = config_parse(text) == 0;
    (void)config_parse(text + first + (first < size)); /* too much of it is refused */
    FUZZ_CHECK(is_taken || first >= 64);
    enum log_level level = LOG_INFO;
    const char *word = config_text("log");
    FUZZ_CHECK(word == NULL || !log_level_parse(word, &level) || level <= LOG_DEBUG);
    check_numbers();
    check_server();
    if (config_text("default") != NULL) {
        (void)nbd_export_set_default(config_text("default")); /* no such export is an answer */
        FUZZ_CHECK(nbd_export_find("", 0) != NULL);
    }
    config_report_unknown();
    log_flush();
    fuzz_forget();
    free(text);
    return 0;
}
