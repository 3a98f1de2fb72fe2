# shellcheck shell=bash
# Releases of Stead side by side below a prefix, one of them in use. Sourced by `quickstart` after host.sh.
#
#   PREFIX/releases/NAME     a Python environment with Stead in it, complete when NAME/.complete exists, never changed after
#   PREFIX/venv              symbolic link to the one in use; what runs keeps to its own until it is started anew
#   PREFIX/previous          symbolic link to the one before, kept for the way back
# Needs bash and the functions of host.sh.

# release_name SOURCE: names what would be installed, by its text, its pinned packages and the Python that runs it.
release_name() {
  (cd "$1" && {
    /usr/bin/python3 -V
    find src benchmarks proofs pyproject.toml requirements.lock -type f -not -name "*.pyc" -print0 | sort -z | xargs -0 sha256sum
  }) | sha256sum | cut -c1-16
}

# make_release PREFIX NAME SOURCE: SOURCE as release NAME, from an environment with the same packages where there is one.
make_release() {
  local prefix=$1 name=$2 source=$3 target=$1/releases/$2 kept stamp
  [ -e "$target/.complete" ] && return 0
  rm -rf "$target"
  mkdir -p "$prefix/releases"
  stamp=$(venv_stamp "$source/requirements.lock")
  for kept in "$prefix"/releases/*/; do
    if [ -e "$kept/.complete" ] && [ "$(cat "$kept/.stamp" 2>/dev/null)" = "$stamp" ]; then
      cp -a --reflink=auto "$kept" "$target"
      rm -f "$target/.complete" "$target/.stead"
      # Programs in it name their interpreter by the old path: ours is made anew below, no other is ever run.
      break
    fi
  done
  make_venv "$target" "$source/requirements.lock"
  install_stead "$target" "$source"
  touch "$target/.complete"
}

# use_release PREFIX NAME: from now on NAME is the one in use.
use_release() {
  local prefix=$1 name=$2 old=""
  old=$(readlink "$prefix/venv" || true)
  [ "$old" = "releases/$name" ] && return 0
  [ -z "$old" ] || ln -sfnT "$old" "$prefix/previous"
  ln -sfnT "releases/$name" "$prefix/.venv.new"
  mv -fT "$prefix/.venv.new" "$prefix/venv"
}

# adopt_directory PREFIX: an environment made in place becomes a release, so that it can be gone back to.
adopt_directory() {
  mkdir -p "$1/releases"
  rm -rf "$1/releases/unnamed"
  mv -T "$1/venv" "$1/releases/unnamed"
  ln -s releases/unnamed "$1/venv"
}

# switch_release PREFIX NAME START: use NAME and run START, which returns 0 once Stead is ready. When it does not, the
# release that was in use before is put back and started, and this says so and fails.
switch_release() {
  local prefix=$1 name=$2 start=$3 old="" why
  [ -L "$prefix/venv" ] || [ ! -d "$prefix/venv" ] || adopt_directory "$prefix"
  old=$(readlink "$prefix/venv" 2>/dev/null || true)
  why=$prefix/failed-start.log
  use_release "$prefix" "$name"
  if "$start" 2>&1 | tee "$why"; then
    rm -f "$why"
    drop_old_releases "$prefix"
    return 0
  fi
  if [ -z "$old" ] || [ "$old" = "releases/$name" ]; then
    die "Stead did not become ready; why: $why and Stead's own log, /var/lib/stead/log/stead.log."
  fi
  use_release "$prefix" "${old#releases/}"
  if "$start" >>"$why" 2>&1; then
    die "The new release ($name) did not become ready, so the previous one was put back and runs; why: $why."
  fi
  die "The new release ($name) did not become ready, and the previous one, put back, did not either; why: $why."
}

# drop_old_releases PREFIX: all but the one in use and the one before.
drop_old_releases() {
  local prefix=$1 found
  for found in "$prefix"/releases/*; do
    case "releases/${found##*/}" in
      "$(readlink "$prefix/venv")" | "$(readlink "$prefix/previous" 2>/dev/null)") ;;
      *) rm -rf "$found" ;;
    esac
  done
}
