# shellcheck shell=bash
# `clean`: removes what was built.

clean_usage() {
  cat <<'END'
usage: ./build.sh clean [--all]

Removes what was compiled from our sources, and the demo disk. Third-party sources and picolibc stay
in build/deps, for they take half a minute.

  --all     removes all of build/; the tarballs in the user's cache stay
END
}

clean_main() {
  case ${1:-} in
    -h | --help) clean_usage ;;
    --all) rm -rf "$BUILD" ;;
    '') [[ ! -d $BUILD ]] || find "$BUILD" -mindepth 1 -maxdepth 1 ! -name deps -exec rm -rf {} + ;;
    *) die "clean: unknown option $1; see ./build.sh clean --help" ;;
  esac
}
