#!/usr/bin/env bash
# Writes the table of functions that core/symbols.c looks into, as assembly, for a linked image:
#   symbols.sh IMAGE.elf >symbols.S        without an image: an empty table, for the first link
# Offsets are from the beginning of the code, which comes first in the image; so adding the table moves
# no function.
set -euo pipefail

if (($#)); then
  llvm-nm-14 --numeric-sort --defined-only "$1"
fi | awk '
  BEGIN { count = at = 0 }
  function hex(text,  value, i) {
    for (i = 1; i <= length(text); i++) value = value * 16 + index("0123456789abcdef", substr(text, i, 1)) - 1
    return value
  }
  $3 == "text_start" { start = hex($1); started = 1 }
  $3 == "text_end" { started = 0 }
  # Local labels and mapping symbols are no functions.
  started && tolower($2) == "t" && $3 !~ /^(\.|\$|text_start$)/ {
    offset = hex($1) - start
    if (count && offsets[count - 1] == offset) next
    offsets[count] = offset
    names[count++] = $3
  }
  END {
    print ".section .symbols, \"a\"\n.balign 8"
    print ".globl symbol_count\nsymbol_count: .word " count
    print ".globl symbol_entries\nsymbol_entries:"
    for (i = 0; i < count; i++) { print "  .word " offsets[i] ", " at; at += length(names[i]) + 1 }
    print ".globl symbol_names\nsymbol_names:"
    for (i = 0; i < count; i++) print "  .asciz \"" names[i] "\""
  }'
