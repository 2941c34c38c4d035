# shellcheck shell=bash
# Third-party sources: `fetch_main` leaves each tree of config/dependencies unpacked in
# build/deps/NAME. A tarball comes from --sources, from the cache, from Debian as a source package,
# or from upstream, in this order, and is used only when its hash is the one that is pinned.

FETCH_TRIES=3

fetch_is_good() { # file sha256
  local sum
  [[ -f $1 ]] && read -r sum _ < <(sha256sum "$1") && [[ $sum == "$2" ]]
}

# Runs a command up to FETCH_TRIES times, a little apart; its output shows only when all fail.
fetch_try() {
  local try output
  for ((try = 1; try <= FETCH_TRIES; try++)); do
    if output=$("$@" 2>&1); then
      return
    fi
    ((try == FETCH_TRIES)) || sleep "$try"
  done
  say "$output"
  return 1
}

# Prints a deb-src entry for Debian's suite trixie, made from the system's own entry for Debian's
# main archive: same address, same key. Both kinds of sources file are understood.
fetch_apt_source() {
  local codename file
  codename=$(. /etc/os-release && [[ $ID == debian ]] && printf '%s' "${VERSION_CODENAME:-}") || return 1
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    case $file in
      *.sources) fetch_apt_source_deb822 "$codename" <"$file" && return ;;
      *.list) [[ -f $file ]] && fetch_apt_source_one_line "$codename" <"$file" && return ;;
    esac
  done
  return 1
}

fetch_apt_source_deb822() { # codename; the file on stdin
  awk -v codename="$1" '
    function finish(    ok, i, n, word) {
      n = split(field["suites"], word)
      for (i = 1; i <= n; i++) ok = ok || word[i] == codename || word[i] == "stable"
      if (ok && !found && (" " field["types"] " ") ~ / deb / && (" " field["components"] " ") ~ / main / &&
          tolower(field["enabled"]) !~ /no|false/) {
        found = 1
        n = split(field["uris"], word)
        print "Types: deb-src\nURIs: " word[1] "\nSuites: trixie\nComponents: main"
        if (field["signed-by"] != "") print "Signed-By: " field["signed-by"]
      }
      delete field
    }
    /^#/ { next }
    /^[ \t]*$/ { finish(); next }
    /^[ \t]/ { field[name] = field[name] "\n" $0; next }
    { name = tolower($0); sub(/:.*/, "", name); sub(/^[^:]*:[ \t]*/, ""); field[name] = $0 }
    END { finish(); exit !found }'
}

fetch_apt_source_one_line() { # codename; the file on stdin
  awk -v codename="$1" '
    $1 == "deb" {
      key = ""
      if (match($0, /\[[^]]*\]/)) {
        options = substr($0, RSTART + 1, RLENGTH - 2)
        if (match(options, /signed-by=[^ \t]+/)) key = substr(options, RSTART + 10, RLENGTH - 10)
        sub(/\[[^]]*\]/, "")
      }
      if ($3 != codename && $3 != "stable" || (" " $0 " ") !~ / main /) next
      print "Types: deb-src\nURIs: " $2 "\nSuites: trixie\nComponents: main"
      if (key != "") print "Signed-By: " key
      found = 1
      exit
    }
    END { exit !found }'
}

# Makes build/deps/apt: a configuration of apt that shares nothing with the system's but the keys,
# the proxy settings and the mirror. FETCH_APT becomes the options that select it.
fetch_apt_prepare() {
  local apt=$PWD/$BUILD/deps/apt
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/files"
  FETCH_APT=(-o "Dir::Etc::SourceList=$apt/trixie.sources" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache"
    -o Acquire::Languages=none -o Acquire::Retries=0 -o Acquire::http::Timeout=30
    -o APT::Sandbox::User=root -o APT::Get::List-Cleanup=no --quiet)
  if [[ ! -e $apt/updated ]]; then
    fetch_apt_source >"$apt/trixie.sources" || return 1
    say "Reading Debian's list of source packages (once)"
    fetch_try apt-get "${FETCH_APT[@]}" -o APT::Update::Error-Mode=any update || return 1
    : >"$apt/updated"
  fi
}

# Writes `tarball` of a Debian source package to `file`.
fetch_from_debian() { # package tarball file
  local version files=$BUILD/deps/apt/files
  type -P apt-get >/dev/null && fetch_apt_prepare || return 1
  # Without a version apt would prefer the one of the installed release.
  version=$(apt-cache "${FETCH_APT[@]}" showsrc --only-source "$1" | awk -v tarball="$2" '
    $1 == "Version:" { version = $2 }
    $3 == tarball && !done { print version; done = 1 }')
  if [[ -z $version ]]; then
    say "Debian's suite trixie has no $1 with $2 any more"
    return 1
  fi
  (cd "$files" && fetch_try apt-get "${FETCH_APT[@]}" source --download-only --tar-only "$1=$version") &&
    mv "$files/$2" "$3"
}

fetch_from_upstream() { # address file
  if [[ $1 == - ]]; then
    say "There is no upstream address for it in config/dependencies."
    return 1
  elif type -P curl >/dev/null; then
    fetch_try curl --fail --silent --show-error --location --connect-timeout 15 --max-time 300 -o "$2" "$1"
  elif type -P wget >/dev/null; then
    fetch_try wget --quiet --timeout=30 --tries=1 -O "$2" "$1"
  else
    say "Neither curl nor wget is installed."
    return 1
  fi
}

# Leaves the tarball in the cache, checked.
fetch_tarball() { # name package tarball sha256 upstream file
  local name=$1 package=$2 tarball=$3 sha256=$4 upstream=$5 file=$6 source
  if [[ -n $SOURCES ]]; then
    [[ -f $SOURCES/$tarball ]] || die "$name: $SOURCES holds no $tarball"
    fetch_is_good "$SOURCES/$tarball" "$sha256" ||
      die "$name: refused $SOURCES/$tarball: its SHA-256 is not $sha256 (config/dependencies)"
    cp "$SOURCES/$tarball" "$file.new"
    mv "$file.new" "$file"
    return
  fi
  for source in debian upstream; do
    say "Fetching $tarball ($source)"
    if [[ $source == debian ]]; then
      fetch_from_debian "$package" "$tarball" "$file.new" || continue
    else
      fetch_from_upstream "$upstream" "$file.new" || continue
    fi
    if fetch_is_good "$file.new" "$sha256"; then
      mv "$file.new" "$file"
      return
    fi
    say "$name: refused what $source gave for $tarball: its SHA-256 is $(sha256sum "$file.new" | cut -d' ' -f1)," \
      "config/dependencies wants $sha256"
    rm -f "$file.new"
  done
  die "$name: could not get $tarball. Get it elsewhere and give its folder with --sources DIR"
}

fetch_main() {
  local name version package tarball sha256 upstream file
  local cache=${XDG_CACHE_HOME:-$HOME/.cache}/platter
  while read -r name version package tarball sha256 upstream; do
    if [[ -z $name || $name == \#* || -e $BUILD/deps/$name/.unpacked-$sha256 ]]; then
      continue
    fi
    file=$cache/$tarball
    mkdir -p "$cache" "$BUILD/deps"
    if [[ -e $file ]] && ! fetch_is_good "$file" "$sha256"; then
      say "$name: $file does not have the pinned SHA-256; fetching it again"
      rm -f "$file"
    fi
    [[ -e $file ]] || fetch_tarball "$name" "$package" "$tarball" "$sha256" "$upstream" "$file"
    say "Unpacking $name $version"
    rm -rf "$BUILD/deps/$name" "$BUILD/deps/$name.new"
    mkdir "$BUILD/deps/$name.new"
    tar -xf "$file" -C "$BUILD/deps/$name.new" --strip-components=1
    : >"$BUILD/deps/$name.new/.unpacked-$sha256"
    mv "$BUILD/deps/$name.new" "$BUILD/deps/$name"
  done <config/dependencies
  rm -rf "$BUILD/deps/apt"
}
