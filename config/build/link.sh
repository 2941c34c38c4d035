#!/usr/bin/env bash
# Links an image: once to compile what clang has left as bitcode, once for the addresses of its functions,
# and once with the table of them (symbols.sh), which must not have moved any.
#   link.sh OUT.debug.elf SCRIPT.ld "ASSEMBLER…" LINKER ARGUMENT…
set -euo pipefail

out=$1 script=$2
read -ra assembler <<<"$3"
shift 3
name=${out%.debug.elf}
here=${BASH_SOURCE[0]%/*}

link() { # result image-with-symbols… -- linker argument…
  local result=$1 image=()
  shift
  while [[ $1 != -- ]]; do image+=("$1") && shift; done
  "$here/symbols.sh" "${image[@]}" >"$name.symbols.S"
  "${assembler[@]}" -c "$name.symbols.S" -o "$name.symbols.o"
  "${@:2}" "$name.symbols.o" -T "$script" -Map "$name.map" -o "$result"
}

is_bitcode() { # file
  local magic
  IFS= read -rd '' -n 2 magic <"$1" || true
  [[ $magic == BC ]]
}

link "$name.first.elf" -- "$@" "--lto-obj-path=$name.compiled.o"
compiled=()
for word in "$@"; do
  if [[ $word != *.o ]] || ! is_bitcode "$word"; then
    compiled+=("$word")
  fi
done
compiled+=("$name.compiled.o")
link "$name.first.elf" -- "${compiled[@]}"
link "$out" "$name.first.elf" -- "${compiled[@]}"
if ! "$here/symbols.sh" "$out" | cmp -s - "$name.symbols.S"; then
  rm -f "$out"
  echo "link.sh: adding the table of functions has moved some; $script must put it behind the code" >&2
  exit 1
fi
rm -f "$name.first.elf"
