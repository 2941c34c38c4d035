/* The report of a panic: what, where, who, and the state of things, within one screen. */
#ifndef CORE_REPORT_H
#define CORE_REPORT_H

#include "core/panic.h"

/* Writes the report to the log. `message` is what a panic said, for FAULT_STOP. Reads nothing that
 * it has not found to be readable. */
void report_write(const struct fault *fault, const char *message);

#endif
