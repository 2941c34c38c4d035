# shellcheck shell=bash
# `sim`: the whole appliance as a program, against simulated devices, a simulated wire and simulated
# clients, one seed deciding everything. `test` uses the same functions for its stage.

SIM_OUT=$BUILD/sim
SIM_PLANTED=tests/sim/planted
SIM_PLANTED_RUNS=20000 # until a planted bug must be found

sim_usage() {
  cat <<'END'
usage: ./build.sh sim --seed N [--trace]          play one run again; with --trace all that happens
       ./build.sh sim --runs N [--from SEED]      play N seeds, beginning with SEED (default 1)
       ./build.sh sim --seconds N [--from SEED]   the same for so long
       ./build.sh sim --planted [NAME…] [--runs N]
                                                  plant each bug of tests/sim/planted and look for it
options:
  --fast           without sanitizers, optimised: for long searches
  --coverage DIR   instrumented; each run leaves its profile in DIR (see CONTRIBUTING.md)
  --jobs N         runs at a time (default: the number of processors)

The same seed is the same run, byte by byte; every 32nd is played twice to see that it is. A run that fails is
said with its reason, and what led to it is kept in build/sim/failed/. docs/proof.md tells what is checked.
END
}

# Builds one kind of the simulator: safe, fast or coverage.
sim_build() { # kind
  need build
  build_make SIM_KIND="$1" sim
}

# Plays runs; what failed is left in build/sim/failed.
sim_play() { # kind option…
  mkdir -p "$SIM_OUT/failed"
  UBSAN_OPTIONS=print_stacktrace=1 "$SIM_OUT/$1/sim" --logs "$SIM_OUT/failed" "${@:2}"
}

# Plants one bug in a copy of the tree and looks for it; prints a row of the table in docs/proof.md.
sim_plant() { # name jobs
  local name=$1 tree=$SIM_OUT/planted/tree runs status=0
  local patch=$PWD/$SIM_PLANTED/$name.patch log=$PWD/$SIM_OUT/planted/$name.log
  [[ -e $patch ]] || patch=$PWD/$SIM_PLANTED/rare/$name.patch
  [[ -e $patch ]] || die "sim: there is no $name.patch in $SIM_PLANTED or its rare/"
  rm -rf "$tree"
  mkdir -p "$tree/build/sim"
  # With time stamps, so that only what is changed is compiled again.
  cp -a apps blk boot config core net tests "$tree/"
  ln -s "$PWD/$BUILD/deps" "$tree/build/deps"
  cp -a "$SIM_OUT/fast" "$tree/build/sim/"
  mkdir -p "$tree/build/$TARGET"
  cp -a "$BUILD/$TARGET/keys" "$tree/build/$TARGET/"
  patch --quiet --strip=1 --directory="$tree" <"$patch" || die "sim: $name.patch does not fit any more"
  # With the name of this folder in the flags, or all would be compiled again.
  make -C "$tree" -f config/build/rules.mk --silent --jobs "$(nproc)" TARGET="$TARGET" SIM_KIND=fast \
    PREFIX_MAP="-ffile-prefix-map=$PWD=." sim >/dev/null ||
    die "sim: with $name.patch it does not compile"
  "$tree/build/sim/fast/sim" --runs "$SIM_PLANTED_RUNS" --jobs "$2" --until-failure >"$log" || status=$?
  rm -rf "$tree"
  runs=$(sed -n 's/^\([0-9]*\) runs in .*/\1/p' "$log")
  if ((status == 1)); then
    say "  found $name after ${runs:-?} runs: $(sed -n 's/^\(seed [0-9]*: .*\)/\1/p' "$log" | head -n 1)"
  else
    say "FAILED: $name is not found in ${runs:-?} runs; see $log"
    return 1
  fi
}

sim_plant_all() { # jobs name…
  local jobs=$1 name failed=0
  local -a names=("${@:2}")
  if ((${#names[@]} == 0)); then
    for name in "$SIM_PLANTED"/*.patch; do
      name=${name##*/}
      names+=("${name%.patch}")
    done
  fi
  sim_build fast
  mkdir -p "$SIM_OUT/planted"
  for name in "${names[@]}"; do
    sim_plant "$name" "$jobs" || failed=1
  done
  ((failed == 0))
}

sim_main() {
  local kind=safe planted='' profiles='' jobs
  local -a options=() names=()
  jobs=$(nproc)
  while (($#)); do
    case $1 in
      -h | --help) sim_usage && return ;;
      --seed | --runs | --from | --seconds | --jobs | --coverage)
        (($# > 1)) || die "sim: $1 needs a value; see ./build.sh sim --help"
        ;;&
      --seed | --runs | --from | --seconds)
        [[ $1 != --runs ]] || SIM_PLANTED_RUNS=$2
        options+=("$1" "$2") && shift
        ;;
      --jobs) jobs=$2 && shift ;;
      --trace) options+=(--trace) ;;
      --fast) kind=fast ;;
      --coverage) kind=coverage profiles=$2 && shift ;;
      --planted) planted=yes ;;
      -*) die "sim: unknown option $1; see ./build.sh sim --help" ;;
      *) names+=("$1") ;;
    esac
    shift
  done
  need packages
  packages_main build sim
  if [[ -n $planted ]]; then
    sim_plant_all "$jobs" "${names[@]}"
    return
  fi
  ((${#names[@]} == 0)) || die "sim: what is \"${names[0]}\"? See ./build.sh sim --help"
  ((${#options[@]})) || die "sim: give a --seed, --runs or --seconds; see ./build.sh sim --help"
  sim_build "$kind"
  if [[ -n $profiles ]]; then
    mkdir -p "$profiles"
    # Runs that end at the same time add up in as many files.
    export LLVM_PROFILE_FILE=$profiles/sim-%4m.profraw
  fi
  sim_play "$kind" --jobs "$jobs" "${options[@]}"
}
