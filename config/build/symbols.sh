#!/usr/bin/env bash
# Writes the table of functions that core/symbols.c looks into, as assembly, for a linked image:
#   symbols.sh IMAGE.elf >symbols.S        without an image: an empty table, for the first link
# Offsets are from the beginning of the code, which comes first in the image; so adding the table moves
# no function.
set -euo pipefail

if (($#)); then
  # What the compiler says of frames first: "00000018 00000014 00000000 FDE cie=00000000 pc=80200000...80200040".
  llvm-dwarfdump-14 --debug-frame "$1"
  llvm-nm-14 --numeric-sort --defined-only "$1"
fi | awk '
  BEGIN { count = at = 0 }
  function hex(text,  value, i) {
    for (i = 1; i <= length(text); i++) value = value * 16 + index("0123456789abcdef", substr(text, i, 1)) - 1
    return value
  }
  $4 == "FDE" { function_at = substr($6, 4, index($6, ".") - 4) }
  # The longest that it gets; no frame changes once it is made. X1 is where the return address is kept, from
  # the frame backwards.
  $1 == "DW_CFA_def_cfa_offset:" && $2 + 0 > frames[function_at] + 0 { frames[function_at] = $2 + 0 }
  $1 == "DW_CFA_offset:" && $2 == "X1" { kept[function_at] = $3 + 0 }
  # A frame that is found by another register is none that we know.
  $1 ~ /^DW_CFA_def_cfa(_register|):$/ && $2 != "X2" { unknown[function_at] = 1 }
  $3 == "text_start" { start = hex($1); started = 1 }
  $3 == "text_end" { started = 0 }
  # Local labels and mapping symbols are no functions.
  started && tolower($2) == "t" && $3 !~ /^(\.|\$|text_start$)/ {
    offset = hex($1) - start
    address = $1
    sub(/^0+/, "", address)
    if (count && offsets[count - 1] == offset) next
    offsets[count] = offset
    bytes[count] = unknown[address] ? 0 : frames[address] + 0
    return_at[count] = bytes[count] && kept[address] ? bytes[count] + kept[address] : 0
    names[count++] = $3
  }
  END {
    print ".section .symbols, \"a\"\n.balign 8"
    print ".globl symbol_count\nsymbol_count: .word " count
    print ".globl symbol_entries\nsymbol_entries:"
    for (i = 0; i < count; i++) {
      print "  .word " offsets[i] ", " at "\n  .half " bytes[i] ", " return_at[i]
      at += length(names[i]) + 1
    }
    print ".globl symbol_names\nsymbol_names:"
    for (i = 0; i < count; i++) print "  .asciz \"" names[i] "\""
  }'
