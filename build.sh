#!/usr/bin/env bash
# The one door to Platter: builds it, runs it, tests it. Each command is a function in a file of
# config/build/ that is loaded only when it is used, so that `run` starts at once.
# What is set here is read by the sourced files.
# shellcheck disable=SC2034

set -euo pipefail
cd "${BASH_SOURCE[0]%/*}"

readonly BUILD=build
TARGET=riscv64
MAY_INSTALL=yes
SOURCES=

say() {
  printf '%s\n' "$*" >&2
}

die() {
  printf 'build.sh: %s\n' "$*" >&2
  exit 1
}

declare -A LOADED=()

# Loads config/build/NAME.sh once.
need() {
  local name
  for name in "$@"; do
    if [[ ! -v LOADED[$name] ]]; then
      LOADED[$name]=yes
      # shellcheck source=/dev/null
      source "config/build/$name.sh"
    fi
  done
}

usage() {
  cat <<'END'
usage: ./build.sh [global options] COMMAND [options]

Platter serves virtio-blk disks over NBD from a unikernel. Commands:

  run      build what is out of date, start the appliance in QEMU
  test     unit tests, the self-test image, end-to-end tests with real clients
  fuzz     look for inputs that break what reads from outside
  sim      play the whole appliance against simulated devices and clients, by seed
  soak     let mixed clients work for hours, and watch memory and counters
  coverage say which lines the tests that run on this machine never reach
  build    compile everything that `run` needs
  image    gather what is needed to run elsewhere
  bench    measure beside a Linux guest that does the same job
  fmt      format our C files
  lint     formatting, shellcheck, clang-tidy, cppcheck, Python syntax
  clean    remove what was built

Each has its own --help. Global options, before or after the command:

  --target NAME   the machine to build for: a file config/targets/NAME.mk (default riscv64)
  --no-install    when Debian packages are missing, print the apt command and fail
  --sources DIR   a folder with the tarballs of config/dependencies, to build offline
END
}

main() {
  local -a words=()
  # Debian keeps mkfs.ext4, ip and nbd-client where only root's PATH looks.
  PATH=$PATH:/usr/sbin:/sbin
  while (($#)); do
    case $1 in
      --target) TARGET=${2:?--target needs a name} && shift ;;
      --target=*) TARGET=${1#*=} ;;
      --no-install) MAY_INSTALL=no ;;
      --sources) SOURCES=${2:?--sources needs a folder} && shift ;;
      --sources=*) SOURCES=${1#*=} ;;
      --) words+=("$@") && break ;;
      *) words+=("$1") ;;
    esac
    shift
  done
  [[ -e config/targets/$TARGET.mk ]] ||
    die "no target \"$TARGET\": there is no config/targets/$TARGET.mk"
  [[ -z $SOURCES || -d $SOURCES ]] || die "--sources $SOURCES: no such folder"
  set -- "${words[@]}"

  local command=${1:-}
  case $command in
    run | test | fuzz | sim | coverage | soak | build | image | bench | fmt | lint | clean)
      [[ -e config/build/$command.sh ]] || die "\"$command\" does not exist yet"
      need "$command"
      "${command}_main" "${@:2}"
      ;;
    -h | --help | help) usage ;;
    '')
      usage >&2
      exit 2
      ;;
    *) die "no command \"$command\"; ./build.sh --help lists them" ;;
  esac
}

main "$@"
