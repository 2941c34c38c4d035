# shellcheck shell=bash
# `run`: starts the appliance in QEMU and stays with it. From typing to QEMU's first instruction
# there is as little as possible: one `find` decides whether anything is out of date.

RUN_STOP_SECONDS=10   # for the guest to drain and flush before QEMU is killed
RUN_PASST_SECONDS=3   # for passt to open its socket
RUN_PIN_SECONDS=2     # for QEMU to start the guest's processor
RUN_DEMO_DISK_SIZE=64M

run_usage() {
  cat <<'END'
usage: ./build.sh run [options]

Builds what is out of date, then serves disks at nbd://localhost:10809 until Ctrl-C.

  --disk FILE          a disk image or block device to serve; again for more, 7 at most, in this
                       order (default: build/demo.img, an empty disk of 64 MiB)
  --format FORMAT      of the disks after it: raw (default), qcow2, ...
  --read-only          QEMU opens all disks read-only
  --port PORT          on this machine (default 10809)
  --listen ADDRESS     on this machine (default 127.0.0.1)
  --memory MIB         of the guest (default 256)
  --append WORDS       more words for the guest's command line; may be repeated
  --bios NAME          start (default: our own, quick) or opensbi (QEMU's)
  --accel NAME         tcg (default) or kvm (on a riscv64 machine only)
  --aio MODE           threads, native or io_uring (default: auto, which is io_uring where QEMU can
                       use it, and else threads)
  --cache MODE         QEMU's cache mode of the disks (default writeback; none with --aio native)

  --net KIND           user (default: no privileges), tap, passt or socket
  --tap NAME           with tap: an existing device that this user may open
  --socket PATH        with socket: the Unix stream socket to connect to
  --ip ADDRESS/BITS    with tap, passt, socket: the guest's address (default: DHCP)
  --gw ADDRESS         with tap, passt, socket: the guest's gateway
  --dhcp               with user: the guest asks QEMU for its address instead of being told

  --main-loop-cpus L   processors of this machine, as taskset names them, for QEMU's own thread, which
                       takes in frames; the guest's processor stays free (default: all)
  --kernel FILE        another image than build/TARGET/platter.elf; nothing is built then
  --qemu WORDS         more words for QEMU, split at blanks; may be repeated
  --restart            after a panic the guest starts anew instead of ending
  --console-in FILE    bytes read from this file or FIFO reach the guest's console
  --dry-run            print the QEMU command and leave

Keys typed on a terminal reach the guest's console. Ctrl-C, and SIGTERM or SIGHUP to this process,
ask the guest to drain, flush and power off; a second one, or 10 seconds, end QEMU at once. The exit
status is QEMU's: 0 after a clean power-off, 1 when it could not serve or flush, 100 after a panic, 101
when the watchdog ended it. After the last two the report is printed again, with source lines where
they are known.
END
}

run_parse() {
  local format=raw
  local -a words
  while (($#)); do
    case $1 in
      --disk | --format | --port | --listen | --memory | --append | --bios | --accel | --aio | --cache | \
        --net | --tap | --socket | --ip | --gw | --kernel | --qemu | --console-in | --main-loop-cpus)
        (($# > 1)) || die "run: $1 needs a value; see ./build.sh run --help"
        ;;&
      --disk) RUN_DISKS+=("$2") && RUN_FORMATS+=("$format") ;;
      --format) format=$2 ;;
      --read-only) RUN_DRIVE+=,readonly=on ;;
      --port) RUN_PORT=$2 ;;
      --listen) RUN_LISTEN=$2 ;;
      --memory) RUN_MEMORY=$2 ;;
      --append) RUN_APPEND+=" $2" ;;
      --bios) RUN_BIOS=$2 ;;
      --accel) RUN_ACCEL=$2 ;;
      --aio) RUN_AIO=$2 ;;
      --cache) RUN_CACHE=$2 ;;
      --net) RUN_NET=$2 ;;
      --tap) RUN_TAP=$2 ;;
      --socket) RUN_SOCKET=$2 ;;
      --ip) RUN_IP=$2 ;;
      --gw) RUN_GW=$2 ;;
      --kernel) RUN_KERNEL=$2 ;;
      --qemu)
        read -ra words <<<"$2"
        RUN_QEMU_WORDS+=("${words[@]}")
        ;;
      --console-in) RUN_CONSOLE_IN=$2 ;;
      --main-loop-cpus) RUN_MAIN_LOOP_CPUS=$2 ;;
      --dhcp) RUN_DHCP=yes && shift && continue ;;
      --restart) RUN_APPEND+=" panic=restart" && shift && continue ;;
      --dry-run) RUN_DRY=yes && shift && continue ;;
      -h | --help) run_usage && exit ;;
      *) die "run: unknown option $1; see ./build.sh run --help" ;;
    esac
    if [[ $1 == --read-only ]]; then
      shift
    else
      shift 2
    fi
  done
}

run_check() {
  local disk
  if [[ ! $RUN_PORT =~ ^[1-9][0-9]{0,4}$ ]] || ((RUN_PORT > 65535)); then
    die "--port $RUN_PORT: a port is a number from 1 to 65535"
  fi
  [[ $RUN_MEMORY =~ ^[1-9][0-9]*$ ]] || die "--memory $RUN_MEMORY: give a number of MiB"
  case $RUN_AIO in
    auto | threads | io_uring) ;;
    native) RUN_CACHE=${RUN_CACHE:-none} ;; # QEMU refuses native without O_DIRECT
    *) die "--aio $RUN_AIO: it is auto, threads, native or io_uring" ;;
  esac
  case $RUN_ACCEL in
    tcg) ;;
    kvm)
      [[ $HOSTTYPE == "$TARGET" ]] ||
        die "--accel kvm: this machine is $HOSTTYPE; KVM runs $TARGET guests on a $TARGET machine only"
      [[ -w /dev/kvm ]] || die "--accel kvm: /dev/kvm is not there, or not yours to open"
      ;;
    *) die "--accel $RUN_ACCEL: it is tcg or kvm" ;;
  esac
  ((${#RUN_DISKS[@]} <= QEMU_DISKS_MAX)) || die "--disk: the board has room for $QEMU_DISKS_MAX disks"
  for disk in "${RUN_DISKS[@]}"; do
    [[ -r $disk ]] || die "--disk $disk: no such file, or not yours to read"
    [[ -w $disk || $RUN_DRIVE == *readonly=on* ]] || die "--disk $disk: not yours to write; add --read-only"
  done
  # A trial on this shell's own child says whether they are there.
  [[ -z $RUN_MAIN_LOOP_CPUS ]] || taskset -c "$RUN_MAIN_LOOP_CPUS" true 2>/dev/null ||
    die "--main-loop-cpus $RUN_MAIN_LOOP_CPUS: no such processors; 0 or 0,2-3 are lists"
  [[ -z $RUN_CONSOLE_IN || -r $RUN_CONSOLE_IN ]] ||
    die "--console-in $RUN_CONSOLE_IN: no such file; for a FIFO: mkfifo $RUN_CONSOLE_IN"
}

# Sources newer than the stamp of the last build? A folder counts too: files come and go.
run_build() {
  local stamp=$BUILD/$TARGET/.built newer=missing place
  local -a places=()
  for place in build.sh config boot core net blk apps; do
    [[ ! -e $place ]] || places+=("$place")
  done
  if [[ -e $stamp && -e $BUILD/$TARGET/platter.elf && -e $BUILD/$TARGET/start.bin ]]; then
    newer=$(find "${places[@]}" -newer "$stamp" -print -quit)
  fi
  if [[ -n $newer ]]; then
    need build
    build_appliance
  fi
}

# Kernels, sandboxes and builds of QEMU may be without io_uring, and only QEMU can tell, by opening any
# file with it: 30 ms, so what it said counts until the machine, QEMU or the place that this runs in is
# another.
run_find_aio() {
  local place qemu file=$BUILD/aio said=
  qemu=$(type -P "qemu-system-$TARGET") || qemu="qemu-system-$TARGET"
  place="$(</proc/sys/kernel/random/boot_id) $(readlink /proc/self/ns/user /proc/self/ns/mnt | tr '\n' ' ')"
  place+="$EUID $(stat -L -c %Y "$qemu" 2>/dev/null)"
  [[ ! -r $file ]] || said=$(<"$file")
  if [[ ${said%%$'\n'*} != "$place" ]]; then
    RUN_AIO=threads
    if "$qemu" -M none -nodefaults -display none -monitor stdio <<<quit >/dev/null 2>&1 \
      -blockdev "driver=file,node-name=probe,filename=${RUN_KERNEL//,/,,},read-only=on,aio=io_uring"; then
      RUN_AIO=io_uring
    fi
    said=$place$'\n'$RUN_AIO
    printf '%s\n' "$said" >"$file"
  fi
  RUN_AIO=${said##*$'\n'}
}

# Guest address words and the network device.
run_network() {
  local address='' link
  [[ -z $RUN_DHCP || $RUN_NET == user ]] || die "--dhcp: without --ip, --net $RUN_NET asks by DHCP anyway"
  [[ -z $RUN_IP ]] || address+=" ip=$RUN_IP"
  [[ -z $RUN_GW ]] || address+=" gw=$RUN_GW"
  case $RUN_NET in
    user)
      [[ -z $address ]] || die "--ip and --gw: the user network has its own addresses"
      # A fixed address saves the time that DHCP takes; it is the one that QEMU would give.
      RUN_ADDRESS="segment=64240"
      [[ -n $RUN_DHCP ]] || RUN_ADDRESS="ip=10.0.2.15/24 gw=10.0.2.2 $RUN_ADDRESS"
      RUN_NETDEV="user,hostfwd=tcp:$RUN_LISTEN:$RUN_PORT-10.0.2.15:10809"
      RUN_WHERE="nbd://localhost:$RUN_PORT"
      [[ $RUN_LISTEN == 127.0.0.1 ]] || RUN_WHERE="nbd://$RUN_LISTEN:$RUN_PORT"
      ;;
    tap)
      [[ -n $RUN_TAP ]] || die "--net tap: name the device with --tap; make one with
  ip tuntap add tap0 mode tap vnet_hdr user \$USER; ip addr add 10.0.2.2/24 dev tap0; ip link set tap0 up"
      # Of this network namespace, which /sys need not show.
      [[ $(</proc/net/dev) =~ (^|[[:space:]])"$RUN_TAP": ]] || die "--tap $RUN_TAP: there is no such tap device"
      RUN_ADDRESS=${address# }
      RUN_NETDEV="tap,ifname=$RUN_TAP,script=no,downscript=no"
      # The guest uses frames as long as the tap's.
      link=$(ip -o link show dev "$RUN_TAP" 2>/dev/null) || link=
      [[ ! $link =~ \ mtu\ ([0-9]+)\  ]] || RUN_CARD=",host_mtu=${BASH_REMATCH[1]}"
      ;;
    socket)
      [[ -S $RUN_SOCKET ]] || die "--net socket: --socket must name a listening Unix stream socket"
      RUN_ADDRESS=${address# }
      RUN_NETDEV="stream,server=off,addr.type=unix,addr.path=${RUN_SOCKET//,/,,}"
      ;;
    passt)
      run_passt_check
      RUN_ADDRESS=${address# }
      RUN_SOCKET=$PWD/$BUILD/passt.$$.sock
      RUN_NETDEV="stream,server=off,addr.type=unix,addr.path=${RUN_SOCKET//,/,,}"
      RUN_WHERE="nbd://localhost:$RUN_PORT"
      ;;
    *) die "--net $RUN_NET: it is user, tap, passt or socket" ;;
  esac
  # Under emulation a notify runs in the guest's own thread, and a frame can go out within it: the
  # device sends when it is told a second time, and the guest is to do so. The timer that it sets
  # meanwhile is long, for QEMU wakes its main loop for one that is due before all others.
  if [[ $RUN_ACCEL == tcg ]]; then
    RUN_CARD+=,tx=timer,x-txtimer=1000000000
    RUN_ADDRESS+=" notify=twice"
  fi
  if [[ -z $RUN_WHERE ]]; then
    RUN_WHERE="nbd://${RUN_IP%/*}:10809"
    [[ -n $RUN_IP ]] || RUN_WHERE="the address that the guest gets, port 10809"
  fi
}

run_passt_check() {
  local version
  type -P passt >/dev/null || die "--net passt: passt is not installed"
  version=$(passt --version 2>&1)
  [[ $version =~ (20[0-9][0-9])_?([01][0-9])_?[0-3][0-9] ]] ||
    die "--net passt: cannot tell the version of this passt: ${version%%$'\n'*}"
  ((10#${BASH_REMATCH[1]}${BASH_REMATCH[2]} > 202303)) ||
    die "--net passt: this passt (${BASH_REMATCH[0]}, Debian 12's) cannot carry NBD: it holds back the guest's" \
      "first packet until the client speaks, and in NBD the server speaks first. Use --net user, or a newer passt"
}

run_passt_start() {
  passt --foreground --one-off --quiet --socket "$RUN_SOCKET" --tcp-ports "$RUN_LISTEN/$RUN_PORT:10809" &
  RUN_HELPERS+=($!)
  local -i tries=$((RUN_PASST_SECONDS * 20))
  until [[ -S $RUN_SOCKET ]]; do
    if ((tries-- == 0)) || ! kill -0 "${RUN_HELPERS[-1]}" 2>/dev/null; then
      die "passt did not open its socket within $RUN_PASST_SECONDS s"
    fi
    sleep 0.05
  done
}

# First signal: byte 0x03 on the console, which the guest takes as the request to stop. Second: the end.
run_on_signal() {
  RUN_INTERRUPTED=1
  if ((RUN_STOPPING)); then
    say "Ending QEMU without waiting for the guest."
    RUN_STOPPING=2
    kill -KILL "$RUN_QEMU" 2>/dev/null || true
  else
    say "Asking the guest to stop (again: end it at once)."
    RUN_STOPPING=1
    run_watchdog >/dev/null &
    RUN_HELPERS+=($!)
  fi
}

# Asks again every second: a guest that is just booting may lose the byte when it sets up its UART. A
# builtin does the waiting, so that ending this process leaves nothing behind.
run_watchdog() {
  local -i second
  local pipe
  exec {pipe}<> <(:)
  for ((second = 0; second < RUN_STOP_SECONDS; second++)); do
    printf '\003' >&"$RUN_CONSOLE" || true
    read -rt 1 -u "$pipe" || true
  done
  say "The guest did not stop within $RUN_STOP_SECONDS s; ending QEMU."
  kill -KILL "$RUN_QEMU" 2>/dev/null
}

# A report of a panic (core/report.c) once more, where it is seen: the last one on the console. Return
# addresses get their source lines from the image with symbols beside the one that ran.
run_report() { # status
  local debug=${RUN_KERNEL%.elf}.debug.elf line word address
  local -a report=() lines=()
  mapfile -t report < <(tr -d '\r' <"$RUN_CONSOLE_LOG" | awk '
    /^---$/ { text = ""; keeps = 1 }
    keeps { text = text $0 "\n" }
    /^--- end of report/ { keeps = 0 }
    END { printf "%s", text }')
  ((${#report[@]})) || return 0
  mv "$RUN_CONSOLE_LOG" "$BUILD/panic.log"
  say "The appliance ended in a panic (exit status $1). Its report once more; all it said is in $BUILD/panic.log:"
  for line in "${report[@]}"; do
    read -r word address _ <<<"$line"
    if [[ $word == at || $word == from ]] && [[ -e $debug && $address =~ ^[0-9a-f]{16}$ ]]; then
      # A call stands before the address that it returns to.
      [[ $word == at ]] || printf -v address '%x' $((16#$address - 1))
      mapfile -t lines < <(llvm-addr2line-14 -e "$debug" "0x$address" 2>/dev/null || true)
      address=${lines[0]:-??} address=${address//.\//}
      [[ $address == '??'* ]] || line+="  ${address#"$PWD/"}"
    fi
    say "$line"
  done
}

# QEMU's first thread is its main loop. Threads begin where the one that makes them may run, so it is
# moved when the guest's processor is there.
run_pin() {
  local -i tries=$((RUN_PIN_SECONDS * 200))
  until grep -qs '^CPU ' "/proc/$RUN_QEMU/task/"*/comm; do
    if ((tries-- == 0)) || ! kill -0 "$RUN_QEMU" 2>/dev/null; then
      return 0 # it has ended, and says why
    fi
    sleep 0.005
  done
  taskset -cp "$RUN_MAIN_LOOP_CPUS" "$RUN_QEMU" >/dev/null || say "QEMU's main loop stays where it is."
}

run_on_exit() {
  if ((${#RUN_HELPERS[@]})); then
    kill "${RUN_HELPERS[@]}" 2>/dev/null || true
  fi
  [[ -z $RUN_TERMINAL ]] || stty "$RUN_TERMINAL" || true
  [[ $RUN_NET != passt ]] || rm -f "$RUN_SOCKET"
  [[ -z $RUN_CONSOLE_LOG ]] || rm -f "$RUN_CONSOLE_LOG"
}

# Keys go to the guest one at a time as they are typed; Ctrl-C stays a signal to us.
run_forward_input() {
  if [[ -t 0 ]]; then
    RUN_TERMINAL=$(stty -g)
    stty -icanon -echo
    setpriv --pdeathsig KILL cat <&0 >&"$RUN_CONSOLE" 2>/dev/null &
    RUN_HELPERS+=($!)
  fi
  if [[ -n $RUN_CONSOLE_IN ]]; then
    # Opened for both, a FIFO does not end when one of its writers does.
    setpriv --pdeathsig KILL cat <>"$RUN_CONSOLE_IN" >&"$RUN_CONSOLE" 2>/dev/null &
    RUN_HELPERS+=($!)
  fi
}

# QEMU gets a session of its own, so that the terminal's Ctrl-C reaches only us, and dies with us. Its
# standard input is a pipe that we hold. It makes its output non-blocking, for all who share it; so it
# opens the terminal or pipe anew.
run_qemu() {
  if [[ -t 1 || -p /dev/stdout ]]; then
    exec setsid setpriv --pdeathsig TERM "${QEMU[@]}" >/proc/self/fd/1
  fi
  exec setsid setpriv --pdeathsig TERM "${QEMU[@]}"
}

run_main() {
  RUN_DISKS=() RUN_FORMATS=() RUN_HELPERS=() RUN_QEMU_WORDS=()
  RUN_DRIVE='' RUN_APPEND='' RUN_CACHE='' RUN_TAP='' RUN_SOCKET='' RUN_IP='' RUN_GW='' RUN_KERNEL=''
  RUN_CONSOLE_IN='' RUN_MAIN_LOOP_CPUS='' RUN_CONSOLE_LOG='' RUN_DHCP='' RUN_ADDRESS='' RUN_CARD='' RUN_DRY='' RUN_WHERE='' RUN_TERMINAL=''
  RUN_PORT=10809 RUN_LISTEN=127.0.0.1 RUN_MEMORY=256 RUN_BIOS=start RUN_ACCEL=tcg RUN_AIO=auto RUN_NET=user
  RUN_STOPPING=0 RUN_INTERRUPTED=0

  need packages qemu
  run_parse "$@"
  run_check
  packages_main run
  run_network
  if [[ -z $RUN_KERNEL ]]; then
    run_build
    RUN_KERNEL=$BUILD/$TARGET/platter.elf
  fi
  if ((${#RUN_DISKS[@]} == 0)); then
    RUN_DISKS=("$BUILD/demo.img") RUN_FORMATS=(raw)
    [[ -e $BUILD/demo.img ]] || truncate -s "$RUN_DEMO_DISK_SIZE" "$BUILD/demo.img"
  fi

  local -i index
  mkdir -p "$BUILD"
  [[ $RUN_AIO != auto ]] || run_find_aio
  RUN_CONSOLE_LOG=$BUILD/console.$$.log
  qemu_machine "$RUN_KERNEL" "$RUN_MEMORY" "$RUN_ACCEL" "$RUN_BIOS" "$RUN_ADDRESS$RUN_APPEND" \
    ",logfile=$RUN_CONSOLE_LOG"
  qemu_network "$RUN_NETDEV" "$RUN_CARD"
  for index in "${!RUN_DISKS[@]}"; do
    qemu_disk "$index" "${RUN_DISKS[index]}" "${RUN_FORMATS[index]}" \
      "$RUN_DRIVE,aio=$RUN_AIO${RUN_CACHE:+,cache=$RUN_CACHE}"
  done
  [[ -z $RUN_MAIN_LOOP_CPUS ]] || QEMU+=(-name "platter,debug-threads=on")
  QEMU+=("${RUN_QEMU_WORDS[@]}")
  if [[ -n $RUN_DRY ]]; then
    printf '%s\n' "${QEMU[*]@Q}"
    return
  fi

  trap run_on_exit EXIT
  [[ $RUN_NET != passt ]] || run_passt_start
  say "Platter serves ${#RUN_DISKS[@]} disk(s) at $RUN_WHERE; Ctrl-C stops it cleanly."
  local status=0
  exec {RUN_CONSOLE}<> <(:) # an anonymous pipe, whose read end QEMU opens for itself
  run_qemu </proc/self/fd/"$RUN_CONSOLE" &
  RUN_QEMU=$!
  trap run_on_signal INT TERM HUP
  run_forward_input
  [[ -z $RUN_MAIN_LOOP_CPUS ]] || run_pin
  # A signal ends `wait` early, after its handler; bash keeps QEMU's status until it is asked for.
  RUN_INTERRUPTED=1
  while ((RUN_INTERRUPTED)); do
    RUN_INTERRUPTED=0 status=0
    wait "$RUN_QEMU" 2>/dev/null || status=$?
  done
  # After two interrupted waits bash 5.2 has lost the status.
  ((RUN_STOPPING < 2)) || status=137
  ((status != 100 && status != 101)) || run_report "$status"
  exit "$status"
}
