# shellcheck shell=bash
# `image`: what one needs to run the appliance elsewhere.

image_usage() {
  cat <<END
usage: ./build.sh image

Makes build/image/$TARGET/ with
  platter.elf   the appliance, for QEMU's -kernel
  start.bin     machine-mode start, for QEMU's -bios
  run.sh        starts it with a disk: ./run.sh DISK [PORT]; needs QEMU only
  SHA256SUMS    of the three
The same sources give the same bits, in any folder and at any time.
END
}

image_main() {
  case ${1:-} in
    -h | --help) image_usage && return ;;
    '') ;;
    *) die "image takes no arguments; see ./build.sh image --help" ;;
  esac
  local out=$BUILD/image/$TARGET file
  need build
  build_appliance
  rm -rf "$out"
  mkdir -p "$out"
  install -m 644 "$BUILD/$TARGET/platter.elf" "$BUILD/$TARGET/start.bin" "$out"
  sed "s/@TARGET@/$TARGET/g" config/build/image-run.sh >"$out/run.sh"
  chmod 755 "$out/run.sh"
  (cd "$out" && sha256sum platter.elf start.bin run.sh >SHA256SUMS)
  for file in "$out"/*; do
    say "$(stat -c '%s bytes' "$file")  $file"
  done
  build_report_size "$out/platter.elf"
}
