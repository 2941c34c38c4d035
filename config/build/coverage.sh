# shellcheck shell=bash
# `coverage`: which lines of ours the unit tests, the simulator and the fuzzers together never reach.

COVERAGE_OUT=$BUILD/coverage
COVERAGE_SECONDS=20 # of fuzzing, for each target
COVERAGE_SIM_RUNS=500
COVERAGE_PERCENT=90 # of all lines; less fails the command

coverage_usage() {
  cat <<END
usage: ./build.sh coverage [--seconds N] [--reuse]

Runs the unit tests, the simulator where there is one, and each fuzzer over its seeds, its regressions, what
earlier runs kept, and N seconds of new inputs (default $COVERAGE_SECONDS), all built so that they note which lines they
reach. Prints the line coverage of each file of core/, blk/, net/ and apps/ and of all; fails below $COVERAGE_PERCENT %,
and when tests/coverage-reasons has no reason for a line that was not reached.

build/coverage/files.txt      what is printed
build/coverage/uncovered.txt  what was not reached, by function and lines, with the reason that
                              tests/coverage-reasons gives, or "no reason is known"

  --seconds N   of new inputs for each fuzzer; 0 for none
  --reuse       add to what the last run has noted instead of beginning anew

Of the images for tests (apps/selftest, apps/deaths) nothing is counted.
END
}

coverage_unit() {
  local program name
  build_make unit
  for program in tests/unit/test_*.c; do
    name=${program##*/}
    name=${name%.c}
    LLVM_PROFILE_FILE=$COVERAGE_OUT/profile/unit-$name.profraw \
      timeout --kill-after=5 120 "$BUILD/unit/$name" >"$COVERAGE_OUT/$name.log" 2>&1 </dev/null ||
      die "the unit test $name fails; ./build.sh test unit tells more"
    COVERAGE_PROGRAMS+=("$BUILD/unit/$name")
  done
}

coverage_fuzz() { # seconds
  local target seconds=$1
  local -a targets=()
  need fuzz
  # shellcheck disable=SC2034 # fuzz.sh reads them
  FUZZ_PROGRAMS=$COVERAGE_OUT/fuzz FUZZ_MAKE=(COVERAGE=yes)
  mapfile -t targets < <(fuzz_targets)
  fuzz_build "${targets[@]}"
  build_make COVERAGE=yes coverage
  # %m tells the programs apart: each writes a file of its own.
  export LLVM_PROFILE_FILE=$COVERAGE_OUT/profile/fuzz-%m.profraw
  if ((seconds > 0)); then
    fuzz_all "$seconds" "${targets[@]}"
    ((FUZZ_FAILED == 0)) || die "a fuzzer has found something: see above"
  else
    for target in "${targets[@]}"; do
      fuzz_run "$target" "$FUZZ_OUT/$target.log" -runs=0 || die "fuzz $target fails: see $FUZZ_OUT/$target.log"
    done
  fi
  unset LLVM_PROFILE_FILE
  COVERAGE_PROGRAMS+=("${targets[@]/#/$COVERAGE_OUT/fuzz/}")
}

# The simulator, where there is one: `sim_main --coverage FOLDER` leaves its profiles there.
coverage_sim() {
  [[ -e config/build/sim.sh ]] || return 0
  need sim
  sim_main --coverage "$COVERAGE_OUT/profile" --runs "$COVERAGE_SIM_RUNS"
  unset LLVM_PROFILE_FILE
  COVERAGE_PROGRAMS+=("$BUILD/sim/coverage/sim")
}

# What no program links is there as objects: its lines count as never reached.
coverage_report() {
  local program object
  local -a words=() objects=()
  for program in "${COVERAGE_PROGRAMS[@]}"; do
    words+=(-object "$program")
  done
  mapfile -t objects < <(find "$COVERAGE_OUT"/fuzz/obj/{core,net,blk,apps} -name '*.o')
  for object in "${objects[@]}"; do
    words+=(-object "$object")
  done
  llvm-profdata-14 merge --sparse -o "$COVERAGE_OUT/all.profdata" "$COVERAGE_OUT"/profile/*.profraw ||
    die "the profiles cannot be merged"
  llvm-cov-14 export "${words[@]}" --format=lcov --instr-profile "$COVERAGE_OUT/all.profdata" \
    --ignore-filename-regex='(^|/)(tests|build|boot)/' >"$COVERAGE_OUT/lines.info" 2>"$COVERAGE_OUT/llvm-cov.log" ||
    die "llvm-cov fails: see $COVERAGE_OUT/llvm-cov.log"
  /usr/bin/python3 config/build/coverage.py "$COVERAGE_OUT" tests/coverage-reasons "$COVERAGE_PERCENT"
}

coverage_main() {
  local seconds=$COVERAGE_SECONDS reuse=no
  while (($#)); do
    case $1 in
      -h | --help) coverage_usage && return ;;
      --seconds)
        seconds=${2:?--seconds needs a number}
        shift
        ;;
      --reuse) reuse=yes ;;
      *) die "coverage: unknown option $1; see ./build.sh coverage --help" ;;
    esac
    shift
  done
  [[ $seconds =~ ^[0-9]+$ ]] || die "coverage: --seconds $seconds: give a number of seconds"
  declare -ga COVERAGE_PROGRAMS=()
  need packages build
  packages_main build run test fuzz
  [[ $reuse == yes ]] || rm -rf "$COVERAGE_OUT/profile"
  mkdir -p "$COVERAGE_OUT/profile"
  coverage_unit
  coverage_sim
  coverage_fuzz "$seconds"
  coverage_report
}
