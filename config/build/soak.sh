# shellcheck shell=bash
# `soak`: mixed clients with verification, for hours.

soak_usage() {
  cat <<'END'
usage: ./build.sh soak [--hours H | --minutes M] [--seed N] [--out FOLDER]

Lets clients of several kinds work on one appliance for so long (default: an hour), each against a model of
what the disk holds, while others come and go at odd moments. Memory and counters of the status dump go to
FOLDER/samples.csv all the while; at the end FOLDER/report.md says what was done and whether

  no byte was wrong, and everybody went on all the time
  memory was as flat at the end as after the first minute
  the log had nothing to say

and the exit status is 0 only then. In a namespace of its own with a tap where this user may make one, else
on QEMU's user network. FOLDER is build/soak by default; --seed takes the load of another run.
END
}

soak_main() {
  local word
  for word in "$@"; do
    if [[ $word == -h || $word == --help ]]; then
      soak_usage
      return
    fi
  done
  need packages build
  packages_main build run test
  build_appliance
  exec /usr/bin/python3 -B tests/soak/soak.py "$@"
}
