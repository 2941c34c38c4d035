/* The power switch of QEMU's virt board. */
#ifndef CORE_DEV_SIFIVE_TEST_H
#define CORE_DEV_SIFIVE_TEST_H

#include "core/dev/driver.h"

extern const struct driver sifive_test_driver;

#endif
