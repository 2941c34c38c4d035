# shellcheck shell=bash
# `build`: everything that `run` needs.

build_usage() {
  cat <<END
usage: ./build.sh build [--jobs N]

Compiles what is out of date into build/$TARGET/:
  platter.elf        the appliance, for QEMU's -kernel (platter.debug.elf has the symbols)
  start.bin          machine-mode start, for QEMU's -bios
and build/compile_commands.json. Missing Debian packages are installed first and third-party
sources fetched, checked and cached in \${XDG_CACHE_HOME:-~/.cache}/platter/.

  --jobs N           compile N files at a time (default: the number of processors)
END
}

# Runs make for the given goals, with packages and sources in place.
build_make() {
  need packages fetch
  packages_main build
  fetch_main
  make -f config/build/rules.mk --silent --jobs "${BUILD_JOBS:-$(nproc)}" TARGET="$TARGET" "$@" >&2 ||
    die "the build failed; the first error above says where"
}

# Brings the appliance up to date. The stamp carries the time before the build, so that a file saved
# while it ran counts as newer.
build_appliance() {
  mkdir -p "$BUILD/$TARGET"
  : >"$BUILD/$TARGET/.built.new"
  build_make build
  mv "$BUILD/$TARGET/.built.new" "$BUILD/$TARGET/.built"
}

# Says what `file` weighs: what is loaded, and on disk.
build_report_size() { # file
  local text data bss
  read -r text data bss _ < <(llvm-size-14 "$1" | tail -n 1)
  say "$1: $((text + data)) bytes of code and data, $bss zeroed at start, $(stat -c %s "$1") bytes on disk"
}

build_main() {
  while (($#)); do
    case $1 in
      --jobs) BUILD_JOBS=${2:?--jobs needs a number} && shift ;;
      -h | --help) build_usage && return ;;
      *) die "build: unknown option $1; see ./build.sh build --help" ;;
    esac
    shift
  done
  build_appliance
  build_report_size "$BUILD/$TARGET/platter.elf"
}
