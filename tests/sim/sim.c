/* The simulator's command: plays one seed, or many, each in a process of its own. */
#include "tests/sim/sim.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/sim/director.h"

enum {
    JOBS_MAX = 64,
    RUN_SECONDS = 60,  /* by the clock: more is a run without end */
    TWICE_EVERY = 32,  /* so many runs, one is played again: it must be the same */
    FAILED_SHOWN = 10, /* runs that are played again for their logs */
};

static const char usage[] =
    "usage: sim --seed N [--trace]\n"
    "       sim [--from N] [--runs N] [--seconds N] [--jobs N] [--logs DIR] [--until-failure]\n"
    "       sim --seeds FILE [--jobs N] [--logs DIR]\n";

struct options {
    bool has_seed;
    bool shows_trace;
    bool stops_at_failure;
    uint64_t seed;
    uint64_t from;
    uint64_t runs;
    uint64_t seconds;
    unsigned jobs;
    const char *logs;
    const char *seeds;
};

struct totals {
    uint64_t runs;
    uint64_t failed;
    uint64_t virtual_ns;
    uint64_t requests;
    uint64_t connections;
    uint64_t bytes;
    uint64_t failed_seeds[FAILED_SHOWN];
};

struct job {
    pid_t process;
    int report;
    uint64_t seed;
    bool is_second; /* the same seed again */
    uint64_t hash;  /* of the first time */
};

static struct totals totals;
static struct job jobs[JOBS_MAX];

/* There in a build that measures coverage. */
int __llvm_profile_write_file(void) __attribute__((weak));

/* The sanitizer's word on leaks is not wanted: a run ends where it ends. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "detect_leaks=0:handle_abort=1";
}

void sim_end_process(enum sim_status status) {
    if (__llvm_profile_write_file != NULL) {
        (void)__llvm_profile_write_file(); /* a run less in the figures */
    }
    (void)fflush(stderr); /* to whom could it be said */
    _exit((int)status);
}

/* --- One run -----------------------------------------------------------------------------------
 */

static void start(struct job *job, uint64_t seed, const char *log) {
    int ends[2];
    if (pipe(ends) != 0) {
        perror("pipe");
        exit(SIM_USAGE);
    }
    (void)fflush(stdout); /* not twice */
    pid_t process = fork();
    if (process == 0) {
        int error_fd = open(log != NULL ? log : "/dev/null", O_WRONLY | O_CREAT | O_TRUNC, 0644);
        (void)dup2(error_fd, STDERR_FILENO); /* else it is said where we say things */
        (void)close(ends[0]);
        (void)alarm(RUN_SECONDS);
        director_set_report(ends[1]);
        director_play(seed, false);
    }
    if (process < 0) {
        perror("fork");
        exit(SIM_USAGE);
    }
    (void)close(ends[1]);
    job->process = process;
    job->report = ends[0];
    job->seed = seed;
}

static void failed(uint64_t seed, const char *why) {
    if (totals.failed < FAILED_SHOWN) {
        totals.failed_seeds[totals.failed] = seed;
    }
    totals.failed++;
    printf("seed %" PRIu64 ": %s\n", seed, why);
}

/* True when the same seed is to be played once more. */
static bool finish(struct job *job, int status) {
    union {
        struct run_report report;
        char text[512];
    } said = {.text = ""};
    ssize_t got = read(job->report, said.text, sizeof said.text - 1);
    struct run_report report = said.report;
    bool is_good = WIFEXITED(status) && WEXITSTATUS(status) == SIM_PASSED &&
                   got == (ssize_t)sizeof report && report.magic == RUN_REPORT_MAGIC;
    (void)close(job->report);
    job->process = 0;
    if (!is_good) {
        bool is_endless = WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM;
        failed(job->seed, is_endless ? "has no end" : said.text[0] != '\0' ? said.text : "broke");
        job->is_second = false;
        return false;
    }
    if (job->is_second) {
        if (report.hash != job->hash) {
            failed(job->seed, "is not the same the second time");
        }
        job->is_second = false;
        return false;
    }
    totals.runs++;
    totals.virtual_ns += report.virtual_ns;
    totals.requests += report.requests;
    totals.connections += report.connections;
    totals.bytes += report.bytes;
    job->hash = report.hash;
    job->is_second = job->seed % TWICE_EVERY == 0;
    return job->is_second;
}

/* --- Many runs ---------------------------------------------------------------------------------
 */

static uint64_t seconds_now(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* there is one */
    return (uint64_t)now.tv_sec;
}

/* The next seed: of the file, or the next number. False when there is no more. */
struct seed_source {
    FILE *file;
    uint64_t next;
    uint64_t left;
    uint64_t end_s;
};

static bool take_seed(struct seed_source *source, uint64_t *seed) {
    char line[256];
    while (source->file != NULL) {
        if (fgets(line, sizeof line, source->file) == NULL) {
            return false;
        }
        if (line[0] >= '0' && line[0] <= '9') {
            *seed = strtoull(line, NULL, 10);
            return true;
        }
    }
    if (source->left == 0 || seconds_now() >= source->end_s) {
        return false;
    }
    source->left--;
    *seed = source->next++;
    return true;
}

static struct job *wait_for_one(unsigned count, int *status) {
    pid_t process = waitpid(-1, status, 0);
    for (unsigned i = 0; i < count; i++) {
        if (jobs[i].process == process && process > 0) {
            return &jobs[i];
        }
    }
    perror("waitpid");
    exit(SIM_USAGE);
}

static void play_all(const struct options *options, struct seed_source *source) {
    unsigned running = 0;
    bool has_more = true;
    uint64_t seed;
    for (;;) {
        for (unsigned i = 0; i < options->jobs && has_more; i++) {
            if (jobs[i].process == 0) {
                has_more = take_seed(source, &seed);
                if (has_more) {
                    start(&jobs[i], seed, NULL);
                    running++;
                }
            }
        }
        if (running == 0) {
            return;
        }
        int status;
        struct job *job = wait_for_one(options->jobs, &status);
        running--;
        if (finish(job, status)) {
            start(job, job->seed, NULL);
            running++;
        }
        has_more = has_more && !(options->stops_at_failure && totals.failed > 0);
    }
}

/* Failed runs once more, with all they have to say in a file each. */
static void keep_logs(const struct options *options) {
    uint64_t count = totals.failed < FAILED_SHOWN ? totals.failed : FAILED_SHOWN;
    for (uint64_t i = 0; i < count && options->logs != NULL; i++) {
        char name[512];
        int status;
        (void)snprintf(name, sizeof name, "%s/seed-%" PRIu64 ".log", options->logs,
                       totals.failed_seeds[i]); /* cut: cannot be opened */
        start(&jobs[0], totals.failed_seeds[i], name);
        (void)wait_for_one(1, &status);
        (void)close(jobs[0].report);
        jobs[0].process = 0;
        printf("  all it said: %s\n", name);
    }
}

static int play_many(const struct options *options) {
    uint64_t begun_s = seconds_now();
    struct seed_source source = {.next = options->from,
                                 .left = options->runs,
                                 .end_s = options->seconds != 0 ? begun_s + options->seconds
                                                                : UINT64_MAX};
    if (options->seeds != NULL && (source.file = fopen(options->seeds, "re")) == NULL) {
        perror(options->seeds);
        return SIM_USAGE;
    }
    play_all(options, &source);
    keep_logs(options);
    printf("%" PRIu64 " runs in %" PRIu64 " s, %" PRIu64 " failed; %" PRIu64 " requests on %" PRIu64
           " connections, %" PRIu64 " MiB, %" PRIu64 " virtual hours\n",
           totals.runs + totals.failed, seconds_now() - begun_s, totals.failed, totals.requests,
           totals.connections, totals.bytes >> 20, totals.virtual_ns / 1000000000 / 3600);
    return totals.failed == 0 ? SIM_PASSED : SIM_FAILED;
}

/* --- The command -------------------------------------------------------------------------------
 */

static bool read_option(struct options *options, const char *name, const char *value) {
    if (strcmp(name, "--seeds") == 0 || strcmp(name, "--logs") == 0) {
        *(name[2] == 's' ? &options->seeds : &options->logs) = value;
        return true;
    }
    char *end = NULL;
    uint64_t number = strtoull(value, &end, 10);
    if (end == value || *end != '\0') {
        return false;
    }
    if (strcmp(name, "--seed") == 0) {
        options->has_seed = true;
        options->seed = number;
    } else if (strcmp(name, "--from") == 0) {
        options->from = number;
    } else if (strcmp(name, "--runs") == 0) {
        options->runs = number;
    } else if (strcmp(name, "--seconds") == 0) {
        options->seconds = number;
    } else if (strcmp(name, "--jobs") == 0 && number >= 1 && number <= JOBS_MAX) {
        options->jobs = (unsigned)number;
    } else {
        return false;
    }
    return true;
}

int main(int argc, char **argv) {
    struct options options = {.from = 1, .runs = UINT64_MAX, .jobs = 2};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--trace") == 0) {
            options.shows_trace = true;
        } else if (strcmp(argv[i], "--until-failure") == 0) {
            options.stops_at_failure = true;
        } else if (i + 1 == argc || !read_option(&options, argv[i], argv[i + 1])) {
            (void)fputs(usage, stderr); /* to whom could it be said */
            return SIM_USAGE;
        } else {
            i++;
        }
    }
    if (options.has_seed) {
        director_play(options.seed, options.shows_trace);
    }
    if (options.runs == UINT64_MAX && options.seconds == 0 && options.seeds == NULL) {
        (void)fputs(usage, stderr); /* as above */
        return SIM_USAGE;
    }
    return play_many(&options);
}
