# shellcheck shell=bash
# `fmt`: our C files as .clang-format wants them.

fmt_usage() {
  cat <<'END'
usage: ./build.sh fmt [--check]

Formats our .c and .h files in place with clang-format 14.

  --check   change nothing; list what would change, and fail if anything would
END
}

fmt_files() {
  local place
  for place in config boot core net blk apps tests; do
    [[ ! -d $place ]] || find "$place" -name '*.[ch]' -print0
  done
}

fmt_main() {
  local -a how=(-i)
  case ${1:-} in
    -h | --help) fmt_usage && return ;;
    --check) how=(--dry-run --Werror) ;;
    '') ;;
    *) die "fmt: unknown option $1; see ./build.sh fmt --help" ;;
  esac
  need packages
  packages_main lint
  fmt_files | xargs -0 -r clang-format-14 --style=file "${how[@]}"
}
