/* CRC-32 as GPT uses it (UEFI 2.10, 5.3.2; ISO 3309): polynomial 0xedb88320, reflected. */
#ifndef BLK_CRC32_H
#define BLK_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* The sum of what came before (0 at the beginning), continued over `bytes` bytes. */
uint32_t crc32_add(uint32_t crc, const void *data, size_t bytes);

#endif
