# shellcheck shell=bash
# `test`: unit tests, fuzzers and simulated runs on this machine, the self-test image in QEMU, real
# clients against the appliance. The last line counts them all.

TEST_UNIT_SECONDS=120  # for one program
TEST_GUEST_SECONDS=120 # for the self-test image
TEST_E2E_SECONDS=1800  # for all of pytest
TEST_FUZZ_SECONDS=60   # for one target
TEST_SIM_RUNS=400      # the same ones each time
TEST_SIM_SECONDS=100   # for new ones
TEST_QUICK_SECONDS=10  # for one fuzz target, and for new simulated runs, with --quick
TEST_OUT=$BUILD/test

test_usage() {
  cat <<'END'
usage: ./build.sh test [--quick] [unit | fuzz | sim | guest [--sleeps N] | e2e [PYTEST-ARGUMENT…]]

Runs all stages, or the one named. With --quick fuzzers get 10 s instead of 60, and new simulated runs 10 s
instead of 100: for the daily loop.
  unit    tests/unit/test_*.c on this machine, under the address and undefined-behaviour sanitizers;
          line coverage by file goes to build/unit/coverage.txt
  fuzz    tests/fuzz: each target over its seeds and the inputs that once broke it, then a minute of new ones;
          ./build.sh fuzz --help says how to look for longer
  sim     the whole appliance against simulated devices and clients: the seeds that once failed
          (tests/sim/seeds.txt), 400 that are always the same, and new ones for 100 s;
          ./build.sh sim --help says how to play one again
  guest   the self-test image in QEMU, which prints TAP and powers off; with --sleeps N its hammer
          on sleeping and waking does N reads instead of 20000, some thousand a second
  e2e     tests/e2e with pytest: real NBD clients against the running appliance;
          what follows goes to pytest: ./build.sh test e2e -k read_only -x
          with --minutes N the mixed load lasts so long (20 s otherwise): test e2e -k mixed --minutes 10

The last line is "N passed, N failed", with ", N skipped" if any were. The exit status is 0 only when
nothing failed. What guests and programs said is kept in build/test/ and build/unit/.
END
}

# Counts the TAP in `file` of a program that ended with `status`. A plan not fulfilled, no plan at
# all, or a bad status without a failed test count as failures: silence is not success.
test_count_tap() { # name file status
  local -i passed failed skipped
  local why
  read -r passed failed skipped why < <(awk -v status="$3" '
    { sub(/\r$/, "") }
    /^1\.\.[0-9]+/ { planned += substr($1, 4); plans++ }
    /^(not )?ok( |$)/ {
      if (toupper($0) ~ /# *SKIP/) skipped++
      else if ($1 == "ok") passed++
      else failed++
    }
    END {
      missing = planned - passed - failed - skipped
      if (!plans) { failed++; why = "it printed no plan" }
      else if (missing > 0) { failed += missing; why = missing " tests did not report" }
      else if (missing < 0) { failed++; why = "more tests than planned" }
      if (status != 0 && !failed) failed++
      if (status == 124) why = "it took too long; " why
      else if (status != 0) why = "exit status " status "; " why
      print passed + 0, failed + 0, skipped + 0, why
    }' "$2")
  test_add "$passed" "$failed" "$skipped"
  if ((failed)); then
    # Test results first, then the end, where a crash explains itself.
    grep -a -A 8 '^not ok' "$2" | grep -a -v '^ok' >&2 || true
    [[ -z $why ]] || tail -n 40 "$2" >&2
    say "FAILED $1: $failed failed, $passed passed${why:+ (${why%;})}; all it said: $2"
  else
    say "  ok $1: $passed passed$( ((skipped == 0)) || printf ', %d skipped' "$skipped")"
  fi
}

test_add() { # passed failed skipped
  TEST_PASSED+=$1 TEST_FAILED+=$2 TEST_SKIPPED+=$3
}

test_unit() {
  local program name status
  local -a programs=()
  build_make unit
  rm -rf "$BUILD/unit/profile"
  for program in tests/unit/test_*.c; do
    [[ -e $program ]] || break
    name=${program##*/}
    name=${name%.c}
    status=0
    CMOCKA_MESSAGE_OUTPUT=TAP LLVM_PROFILE_FILE=$BUILD/unit/profile/$name.profraw \
      UBSAN_OPTIONS=print_stacktrace=1 \
      timeout --kill-after=5 "$TEST_UNIT_SECONDS" "$BUILD/unit/$name" \
      >"$BUILD/unit/$name.log" 2>&1 </dev/null || status=$?
    test_count_tap "$name" "$BUILD/unit/$name.log" "$status"
    programs+=("$BUILD/unit/$name")
  done
  ((${#programs[@]} == 0)) || test_coverage "${programs[@]}"
}

# Line coverage of our sources. Those that no test links count too: their objects are added, from the
# list that make keeps.
test_coverage() { # program…
  local file
  local -a objects=()
  for file in "$@" $(<"$BUILD/$TARGET/keys/host-objects"); do
    if [[ -f $file && $file != */obj/deps/* ]]; then
      objects+=(-object "$file")
    fi
  done
  if ! llvm-profdata-14 merge --sparse -o "$BUILD/unit/coverage.profdata" "$BUILD"/unit/profile/*.profraw ||
    ! llvm-cov-14 report "${objects[@]}" \
      --instr-profile "$BUILD/unit/coverage.profdata" --show-region-summary=false \
      --ignore-filename-regex='(^|/)(tests|build)/' >"$BUILD/unit/coverage.txt"; then
    say "  no coverage: see the messages above"
    return
  fi
  awk '$1 == "TOTAL" { printf "  line coverage %s of %d lines; by file: build/unit/coverage.txt\n", $7, $5 }' \
    "$BUILD/unit/coverage.txt" >&2
}

# Each target counts twice: for the inputs there are, and for those it comes upon.
test_fuzz() {
  local name
  local -a targets=() sound=()
  need fuzz
  mapfile -t targets < <(fuzz_targets)
  fuzz_build "${targets[@]}"
  FUZZ_CORPUS=$TEST_OUT/corpus # a test begins with what everybody has
  rm -rf "$FUZZ_CORPUS"
  for name in "${targets[@]}"; do
    if fuzz_run "$name" "$TEST_OUT/fuzz-$name.log" -runs=0; then
      test_add 1 0 0
      sound+=("$name")
    else
      fuzz_report "$name" "$TEST_OUT/fuzz-$name.log"
      test_add 0 2 0
    fi
  done
  fuzz_all "$TEST_FUZZ_SECONDS" "${sound[@]}"
  test_add $((${#sound[@]} - FUZZ_FAILED)) "$FUZZ_FAILED" 0
}

# One round of simulated runs is one test; every run that fails is one more.
test_sim_round() { # what option…
  local log=$TEST_OUT/sim-${1// /-}.log failed
  if sim_play safe --jobs "$(nproc)" "${@:2}" >"$log"; then
    test_add 1 0 0
    say "  ok sim $1: $(tail -n 1 "$log")"
    return
  fi
  failed=$(grep -c '^seed ' "$log") || failed=1
  test_add 0 "$failed" 0
  cat "$log" >&2
  say "FAILED sim $1; play one again with ./build.sh sim --seed N --trace"
}

test_sim() {
  need sim
  sim_build safe
  test_sim_round 'known seeds' --seeds tests/sim/seeds.txt
  test_sim_round 'fixed set' --runs "$TEST_SIM_RUNS"
  test_sim_round 'new seeds' --from $((EPOCHSECONDS * 10000)) --seconds "$TEST_SIM_SECONDS"
}

test_guest() { # [sleeps]
  local log=$TEST_OUT/guest.log status=0 sleeps=${1:-20000}
  build_make selftest
  # An empty disk to write on, and one that the device says is read-only.
  rm -f "$TEST_OUT"/guest-disk*.img
  truncate -s 64M "$TEST_OUT/guest-disk0.img"
  truncate -s 8M "$TEST_OUT/guest-disk1.img"
  qemu_machine "$BUILD/$TARGET/selftest.elf" 256 tcg start "ip=10.0.2.15/24 gw=10.0.2.2 sleeps=$sleeps spin=0 watchdog=60"
  qemu_network user
  qemu_disk 0 "$TEST_OUT/guest-disk0.img" raw ""
  qemu_disk 1 "$TEST_OUT/guest-disk1.img" raw ",readonly=on"
  # A hundred a second is what a very busy machine does.
  timeout --kill-after=5 "$((TEST_GUEST_SECONDS + sleeps / 100))" "${QEMU[@]}" >"$log" 2>&1 </dev/null || status=$?
  test_count_tap "self-test image" "$log" "$status"
}

test_e2e() { # pytest argument…
  local report=$TEST_OUT/e2e.xml status=0 word
  local -i tests=0 failed=0 skipped=0
  build_appliance
  build_make deaths
  rm -f "$report"
  PYTHONDONTWRITEBYTECODE=1 timeout --kill-after=30 "$TEST_E2E_SECONDS" \
    /usr/bin/python3 -m pytest tests/e2e -q -p no:cacheprovider --junitxml="$report" "$@" >&2 || status=$?
  if [[ -e $report ]]; then
    for word in $(grep -o '<testsuite [^>]*' "$report" | tr -d '"'); do
      case $word in
        tests=*) tests=${word#*=} ;;
        failures=* | errors=*) failed+=${word#*=} ;;
        skipped=*) skipped=${word#*=} ;;
      esac
    done
  fi
  # 5 is pytest's "nothing was collected".
  if ((failed == 0 && status != 0)); then
    failed=1 tests+=1
    say "FAILED e2e: pytest ended with status $status$( ((status != 124)) || printf ', it took too long')"
  fi
  test_add $((tests - failed - skipped)) "$failed" "$skipped"
}

# Runs one stage and says how long it took.
test_stage() { # name argument…
  local name=$1 started=${EPOCHREALTIME/[.,]/} took
  say "== $name"
  "test_$name" "${@:2}"
  took=$(((${EPOCHREALTIME/[.,]/} - started) / 1000))
  say "== $name took $((took / 1000)).$(printf '%03d' $((took % 1000))) s"
}

test_main() {
  local -a stages=(unit fuzz sim guest e2e) arguments=()
  local stage
  declare -gi TEST_PASSED=0 TEST_FAILED=0 TEST_SKIPPED=0
  if [[ ${1:-} == --quick ]]; then
    TEST_FUZZ_SECONDS=$TEST_QUICK_SECONDS TEST_SIM_SECONDS=$TEST_QUICK_SECONDS
    shift
  fi
  case ${1:-} in
    -h | --help) test_usage && return ;;
    guest)
      stages=(guest)
      if (($# > 1)); then
        [[ $# == 3 && $2 == --sleeps && $3 =~ ^[1-9][0-9]*$ ]] ||
          die "test guest takes --sleeps N; see ./build.sh test --help"
        arguments=("$3")
      fi
      ;;
    unit | fuzz | sim)
      (($# == 1)) || die "test $1 takes no arguments; see ./build.sh test --help"
      stages=("$1")
      ;;
    e2e) stages=(e2e) arguments=("${@:2}") ;;
    '') ;;
    *) die "test: there is no stage \"$1\"; see ./build.sh test --help" ;;
  esac
  need packages build qemu
  packages_main build run test
  mkdir -p "$TEST_OUT"
  for stage in "${stages[@]}"; do
    test_stage "$stage" "${arguments[@]}"
  done
  local summary="$TEST_PASSED passed, $TEST_FAILED failed"
  ((TEST_SKIPPED == 0)) || summary+=", $TEST_SKIPPED skipped"
  printf '%s\n' "$summary"
  ((TEST_FAILED == 0))
}
