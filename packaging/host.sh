# shellcheck shell=bash
# What `quickstart` and `check` share: the distribution's packages and a Python environment of our own.
# Sourced, not run. Needs bash and root. Everything here is safe to repeat and quick when there is nothing to do.

# Packages that a host needs; `quickstart` installs them and leaves them on removal.
# shellcheck disable=SC2034  # used by those who source this
HOST_PACKAGES=(
  qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-system libvirt-clients
  dnsmasq-base nftables iproute2 passt swtpm swtpm-tools ovmf seabios ipxe-qemu
  xorriso mmdebstrap e2fsprogs fdisk mtools zstd
  openssh-client ca-certificates
  python3 python3-venv python3-dev gcc libc6-dev pkg-config libvirt-dev
)

# Beside libvirt's pid files, so that a restart of the host clears it.
LIBVIRT_NOTE=/run/libvirt/started-by-stead

say() { printf '%s\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }

need_root() {
  [ "$(id -u)" -eq 0 ] || die "$1 installs packages and starts virtual machines: run it as root (sudo $1)."
}

need_known_system() {
  local id="" version=""
  if [ -r /etc/os-release ]; then
    id=$(. /etc/os-release && printf '%s' "${ID:-}")
    version=$(. /etc/os-release && printf '%s' "${VERSION_ID:-}")
  fi
  case "$id:$version" in
    debian:12 | debian:13 | ubuntu:24.04) ;;
    *) say "Note: this is ${id:-an unknown system} ${version}; Stead is tested on Debian 12 and 13 and made for Ubuntu 24.04 too." ;;
  esac
  command -v apt-get >/dev/null || die "Stead's set-up needs apt-get (Debian 12, Debian 13 or Ubuntu 24.04)."
}

# missing_packages NAME…: those that are not installed, one a line.
missing_packages() {
  local name
  for name in "$@"; do
    dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || printf '%s\n' "$name"
  done
}

# install_packages NAME…: those that are missing, in one go.
install_packages() {
  local missing log
  mapfile -t missing < <(missing_packages "$@")
  [ ${#missing[@]} -eq 0 ] && return 0
  say "Installing ${#missing[@]} packages: ${missing[*]}"
  log=$(mktemp)
  if ! { apt-get update -q && install_without_services "${missing[@]}"; } >"$log" 2>&1; then
    grep -m 5 -E '^(W: Failed to fetch|Err:)' "$log" >&2 || tail -n 20 "$log" >&2
    die "apt-get could not install the packages; its whole output is in $log."
  fi
  rm -f "$log"
}

# install_without_services NAME…: services of new packages are started by us where we want them, so that nothing runs
# that nobody asked for (policy-rc.d(8); one that the host has already is left as it is).
install_without_services() (
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 0755 /usr/sbin/policy-rc.d
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" </dev/null
)

# venv_stamp LOCK: identity of an environment with the packages of LOCK.
venv_stamp() {
  printf '%s-%s' "$(sha256sum "$1" | cut -d' ' -f1)" "$(/usr/bin/python3 -c 'import sys; print(sys.version.split()[0])')"
}

# make_venv DIR LOCK: a virtual environment with exactly the pinned packages of LOCK.
make_venv() {
  local dir=$1 lock=$2 stamp
  stamp=$(venv_stamp "$lock")
  if [ "$(cat "$dir/.stamp" 2>/dev/null)" != "$stamp" ]; then
    say "Preparing Python packages in $dir"
    rm -rf "$dir"
    mkdir -p "$(dirname "$dir")"
    /usr/bin/python3 -m venv "$dir"
    "$dir/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r "$lock" ||
      die "pip could not install the packages that $lock names."
    printf '%s' "$stamp" >"$dir/.stamp"
  fi
}

# install_stead VENV SOURCE: this checkout into VENV, when it has changed since the last time.
install_stead() {
  local venv=$1 source=$2 stamp
  stamp=$(cd "$source" && find src benchmarks proofs pyproject.toml -type f -not -name "*.pyc" -print0 |
    sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
  if [ "$(cat "$venv/.stead" 2>/dev/null)" != "$stamp" ]; then
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall "$source" ||
      die "pip could not install Stead from $source."
    printf '%s' "$stamp" >"$venv/.stead"
  fi
}

has_systemd() { [ -d /run/systemd/system ]; }

# start_libvirt: libvirtd and virtlogd, by systemd where it runs, else in the background.
start_libvirt() {
  if has_systemd; then
    systemctl start virtlogd.socket libvirtd.socket 2>/dev/null || systemctl start virtlogd libvirtd
    return
  fi
  mkdir -p /run/libvirt
  # Without udev nobody gives /dev/kvm its group; libvirt then sees it and cannot use it, and probes QEMU at each call.
  if [ -c /dev/kvm ] && [ "$(stat -c %G /dev/kvm)" = root ] && getent group kvm >/dev/null; then
    chgrp kvm /dev/kvm && chmod 0660 /dev/kvm
  fi
  if ! virsh -c qemu:///system version >/dev/null 2>&1; then
    # Each refuses to start twice by the lock on its pid file. That we started them is noted for `stop_libvirt`.
    virtlogd -d -p /run/libvirt/virtlogd.pid 2>/dev/null && touch "$LIBVIRT_NOTE.virtlogd"
    libvirtd -d -p /run/libvirt/libvirtd.pid 2>/dev/null && touch "$LIBVIRT_NOTE.libvirtd"
    local tries=0
    until virsh -c qemu:///system version >/dev/null 2>&1; do
      tries=$((tries + 1))
      [ "$tries" -lt 300 ] || die "libvirtd does not answer; see its log under /var/log/libvirt."
      sleep 0.1
    done
  fi
}

# stop_libvirt: what `start_libvirt` has started without systemd, unless a machine runs (Stead's own are gone by then).
stop_libvirt() {
  local name
  [ -e "$LIBVIRT_NOTE.libvirtd" ] || return 0
  if [ -n "$(virsh -c qemu:///system list --name 2>/dev/null | tr -d '[:space:]')" ]; then
    say "libvirtd goes on: machines that are not Stead's run under it."
    return 0
  fi
  for name in libvirtd virtlogd; do
    [ ! -e "$LIBVIRT_NOTE.$name" ] || end_daemon "$name"
    rm -f "$LIBVIRT_NOTE.$name"
  done
}

# end_daemon NAME: SIGTERM to the process that /run/libvirt/NAME.pid names, if it is one, and wait for its end.
end_daemon() {
  local pid tries=0
  pid=$(cat "/run/libvirt/$1.pid" 2>/dev/null) || return 0
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] || return 0
  kill "$pid"
  while kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
  done
}
