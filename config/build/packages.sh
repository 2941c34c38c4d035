# shellcheck shell=bash
# Debian packages: `packages_main PURPOSE…` makes sure that those which config/packages lists for
# the purposes are there. Forks nothing when they are.

packages_probe() {
  if [[ $1 == /* ]]; then
    compgen -G "$1" >/dev/null
  else
    type -P "$1" >/dev/null
  fi
}

packages_main() {
  local purpose package probe
  local -a missing=()
  while read -r purpose package probe; do
    if [[ " $* " == *" $purpose "* && " ${missing[*]} " != *" $package "* ]] &&
      ! packages_probe "$probe"; then
      missing+=("$package")
    fi
  done <config/packages
  if ((${#missing[@]} == 0)); then
    return
  fi

  local -a install=(apt-get install --yes --no-install-recommends "${missing[@]}")
  type -P apt-get >/dev/null ||
    die "this is not Debian; install what matches these Debian 12 packages: ${missing[*]}"
  if [[ $MAY_INSTALL == no ]]; then
    die "packages are missing: ${install[*]}"
  fi
  local -a as_root=(env DEBIAN_FRONTEND=noninteractive)
  if ((EUID != 0)); then
    type -P sudo >/dev/null || die "not root and no sudo; run as root: ${install[*]}"
    as_root=(sudo "${as_root[@]}")
  fi
  say "Installing Debian packages: ${missing[*]}"
  "${as_root[@]}" apt-get update --quiet >&2 || die "apt-get update failed"
  "${as_root[@]}" "${install[@]}" --quiet >&2 || die "could not install; try: ${install[*]}"
}
