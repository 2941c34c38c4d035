#!/usr/bin/env bash
# Builds picolibc for a target; called by rules.mk when its key changed, which is seldom: about half
# a minute. Speed rather than size; printf knows integers only (of any width), which also keeps the
# compiler's runtime library out; no threads, no files, no start-up code.
#
# usage: picolibc.sh SOURCE DESTINATION CPU-FAMILY TARGET-FLAG…
set -euo pipefail

quoted() {
  local list
  list=$(printf "'%s', " "$@")
  printf '%s' "${list%, }"
}

main() {
  local source=$1 destination=$2 cpu_family=$3
  shift 3
  local work=$destination.work log=$destination.log template
  rm -rf "$work" "$destination"
  mkdir -p "$work"

  template=$(<config/targets/picolibc-cross.txt.in)
  template=${template//@COMPILER@/$(quoted clang-14 "$@" -nostdlib)}
  template=${template//@C_ARGS@/$(quoted -ffunction-sections -fdata-sections "-ffile-prefix-map=$PWD=.")}
  template=${template//@CPU_FAMILY@/$cpu_family}
  printf '%s\n' "$template" >"$work/cross.txt"

  echo "picolibc: configuring and compiling, once (log: $log)"
  if ! {
    meson setup "$work/build" "$source" --cross-file "$work/cross.txt" \
      --prefix "$PWD/$destination" --libdir lib --includedir include \
      -Dbuildtype=release -Dspecsdir=none \
      -Dmultilib=false -Dpicocrt=false -Dtests=false -Dsemihost=false \
      -Dthread-local-storage=false -Dsingle-thread=true -Dnewlib-global-errno=true \
      -Dfast-strcmp=true -Dformat-default=integer -Dio-long-long=true -Dposix-console=false &&
      nice ninja -C "$work/build" install
  } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "picolibc did not build; the whole log is $log" >&2
    exit 1
  fi
  rm -rf "$work"
}

main "$@"
