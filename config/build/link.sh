#!/usr/bin/env bash
# Links an image twice: the second time with the table of its own functions (symbols.sh), which must not
# have moved any.
#   link.sh OUT.debug.elf SCRIPT.ld "ASSEMBLER…" LINKER ARGUMENT…
set -euo pipefail

out=$1 script=$2
read -ra assembler <<<"$3"
shift 3
name=${out%.debug.elf}
here=${BASH_SOURCE[0]%/*}

link() { # result
  "$here/symbols.sh" "${@:2}" >"$name.symbols.S"
  "${assembler[@]}" -c "$name.symbols.S" -o "$name.symbols.o"
  "${LINK[@]}" "$name.symbols.o" -T "$script" -Map "$name.map" -o "$1"
}

LINK=("$@")
link "$name.first.elf"
link "$out" "$name.first.elf"
if ! "$here/symbols.sh" "$out" | cmp -s - "$name.symbols.S"; then
  rm -f "$out"
  echo "link.sh: adding the table of functions has moved some; $script must put it behind the code" >&2
  exit 1
fi
rm -f "$name.first.elf"
