# shellcheck shell=bash
# `fuzz`: libFuzzer on what reads from outside. `test` uses the same functions for its short rounds.

FUZZ_OUT=$BUILD/fuzz
FUZZ_PROGRAMS=$FUZZ_OUT         # where the targets are; `coverage` has its own
FUZZ_CORPUS=$FUZZ_OUT/corpus    # what runs find worth keeping
FUZZ_MAKE=()                    # more words for make
FUZZ_SECONDS=60
FUZZ_AT_A_TIME=2
FUZZ_INPUT_SECONDS=30  # one input may take, on a busy machine; more is a finding
FUZZ_MEMORY_MIB=1024   # a process may take; more is a finding
FUZZ_LENGTH_MAX=16384  # bytes of an input

fuzz_usage() {
  cat <<'END'
usage: ./build.sh fuzz [TARGET…] [--seconds N]
       ./build.sh fuzz TARGET --replay FILE

Builds tests/fuzz/fuzz_TARGET.c (all of them without a name) under the address and undefined-behaviour
sanitizers and looks for inputs that break it, two targets at a time, beginning with the seeds of
tests/fuzz/seeds.py, with tests/fuzz/regressions/TARGET/ and with what earlier runs found worth keeping in
build/fuzz/corpus/TARGET/.

  --seconds N    for each target (default 60)
  --replay FILE  run one input and show what it does

A finding is kept in build/fuzz/found/, said with the command that replays it, and fails the command. When
it is mended, its input belongs into tests/fuzz/regressions/TARGET/, which `./build.sh test` replays.
END
}

# The names of all targets.
fuzz_targets() {
  local file
  for file in tests/fuzz/fuzz_*.c; do
    file=${file##*/fuzz_}
    printf '%s\n' "${file%.c}"
  done
}

fuzz_build() { # target…
  need packages build
  packages_main build run fuzz
  build_make "${FUZZ_MAKE[@]}" "${@/#/$FUZZ_PROGRAMS/}"
  PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 tests/fuzz/seeds.py "$FUZZ_OUT/seeds" || die "no seeds for the fuzzers"
}

# Runs one target with more of libFuzzer's options; its output goes to a log.
fuzz_run() { # target log option…
  local target=$1 log=$2
  local -a options=(-timeout="$FUZZ_INPUT_SECONDS" -rss_limit_mb="$FUZZ_MEMORY_MIB" -max_len="$FUZZ_LENGTH_MAX"
    -artifact_prefix="$FUZZ_OUT/found/$target-" -print_final_stats=1)
  local -a folders=("$FUZZ_CORPUS/$target" "$FUZZ_OUT/seeds/$target")
  mkdir -p "$FUZZ_OUT/found" "${folders[@]}"
  [[ ! -d tests/fuzz/regressions/$target ]] || folders+=("tests/fuzz/regressions/$target")
  [[ ! -e tests/fuzz/$target.dict ]] || options+=(-dict="tests/fuzz/$target.dict")
  UBSAN_OPTIONS=print_stacktrace=1 "$FUZZ_PROGRAMS/$target" "${options[@]}" "${@:3}" "${folders[@]}" >"$log" 2>&1
}

# What a person needs to know of a run that failed.
fuzz_report() { # target log
  local input
  grep -a -v -E '^#[0-9]+[[:space:]]+(NEW|REDUCE|pulse|RELOAD)|^[[:space:]]*(NEW_FUNC|stat::)' "$2" | tail -n 60 >&2
  input=$(sed -n 's/.*Test unit written to //p' "$2" | tail -n 1)
  say "FAILED fuzz $1; all it said: $2"
  [[ -z $input ]] || say "  replay it: ./build.sh fuzz $1 --replay $input"
}

# Fuzzes each of the targets for so long; the number that failed is in FUZZ_FAILED.
fuzz_all() { # seconds target…
  local seconds=$1 target log executed
  local -A running=()
  local -a waiting=("${@:2}")
  local -i ended status
  declare -gi FUZZ_FAILED=0
  while ((${#waiting[@]} || ${#running[@]})); do
    while ((${#waiting[@]} && ${#running[@]} < FUZZ_AT_A_TIME)); do
      fuzz_run "${waiting[0]}" "$FUZZ_OUT/${waiting[0]}.log" -max_total_time="$seconds" &
      running[$!]=${waiting[0]}
      waiting=("${waiting[@]:1}")
    done
    status=0
    wait -n -p ended "${!running[@]}" || status=$?
    target=${running[$ended]} log=$FUZZ_OUT/$target.log
    unset "running[$ended]"
    if ((status == 0)); then
      executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
      say "  ok fuzz $target: ${executed:-no} inputs in $seconds s"
    else
      FUZZ_FAILED+=1
      fuzz_report "$target" "$log"
    fi
  done
}

fuzz_main() {
  local seconds=$FUZZ_SECONDS replay=''
  local -a targets=()
  while (($#)); do
    case $1 in
      -h | --help) fuzz_usage && return ;;
      --seconds | --replay)
        (($# > 1)) || die "fuzz: $1 needs a value; see ./build.sh fuzz --help"
        ;;&
      --seconds) seconds=$2 && shift ;;
      --replay) replay=$2 && shift ;;
      *)
        [[ -e tests/fuzz/fuzz_$1.c ]] || die "fuzz: there is no target \"$1\"; there are: $(fuzz_targets | xargs)"
        targets+=("$1")
        ;;
    esac
    shift
  done
  [[ $seconds =~ ^[1-9][0-9]*$ ]] || die "fuzz: --seconds $seconds: give a number of seconds"
  [[ -z $replay || -r $replay ]] || die "fuzz: --replay $replay: no such file"
  [[ -z $replay || ${#targets[@]} == 1 ]] || die "fuzz: --replay wants the one target that the file is for"
  ((${#targets[@]})) || mapfile -t targets < <(fuzz_targets)
  fuzz_build "${targets[@]}"
  if [[ -n $replay ]]; then
    UBSAN_OPTIONS=print_stacktrace=1 "$FUZZ_OUT/${targets[0]}" "$replay"
    return
  fi
  fuzz_all "$seconds" "${targets[@]}"
  ((FUZZ_FAILED == 0))
}
