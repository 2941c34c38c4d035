# shellcheck shell=bash
# `lint`: everything that can find fault without running the code. All checks run; then it fails if
# any of them did.

lint_usage() {
  cat <<'END'
usage: ./build.sh lint

Runs: fmt --check, shellcheck, clang-tidy 14 (.clang-tidy) and cppcheck over our C files, a syntax check of
our Python files. Any finding is an error. The commands that clang-tidy needs come from a build.
END
}

lint_check() { # name command…
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then
    say "  ok $name"
  else
    say "$output"
    say "FAILED $name"
    LINT_FAILED+=" $name"
  fi
}

lint_shell() {
  local -a files=()
  mapfile -d '' files < <(find build.sh .ci config tests -type f \( -name '*.sh' -o -path build.sh -o -path '.ci/*' \) -print0)
  shellcheck --external-sources "${files[@]}"
}

# Our C files that compile_commands.json knows.
lint_c_files() {
  sed -n 's/.*"file": "\([^"]*\.c\)".*/\1/p' "$BUILD/compile_commands.json" | sort -u
}

lint_tidy() {
  lint_c_files | xargs -r -P "$(nproc)" -n 4 clang-tidy-14 -p "$BUILD" --quiet
}

lint_cppcheck() {
  lint_c_files >"$BUILD/cppcheck-files.txt"
  [[ ! -s $BUILD/cppcheck-files.txt ]] ||
    cppcheck --quiet --std=c11 --language=c --enable=warning,performance,portability --inline-suppr \
      --error-exitcode=1 --suppressions-list=config/build/cppcheck-suppressions.txt \
      --platform=unix64 -j "$(nproc)" -I. --file-list="$BUILD/cppcheck-files.txt"
}

lint_python() {
  local -a files=()
  mapfile -d '' files < <(find config tests -name '*.py' -print0)
  ((${#files[@]} == 0)) || /usr/bin/python3 -c '
import pathlib, sys
for name in sys.argv[1:]:
    compile(pathlib.Path(name).read_bytes(), name, "exec")
' "${files[@]}"
}

lint_main() {
  case ${1:-} in
    -h | --help) lint_usage && return ;;
    '') ;;
    *) die "lint takes no arguments; see ./build.sh lint --help" ;;
  esac
  LINT_FAILED=
  need packages build fmt
  packages_main build lint
  build_make commands
  lint_check format fmt_main --check
  lint_check shellcheck lint_shell
  lint_check clang-tidy lint_tidy
  lint_check cppcheck lint_cppcheck
  lint_check python lint_python
  [[ -z $LINT_FAILED ]] || die "lint found fault in:$LINT_FAILED"
}
