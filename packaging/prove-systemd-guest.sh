#!/usr/bin/env bash
# The guest's half of prove-systemd.sh; runs as root inside the machine, once at its first boot and once at its second.
set -uo pipefail
seed=/run/proof
stead=/opt/stead/venv/bin/stead

tell() { printf 'proof: %s\n' "$*" >/dev/ttyS0; }
fail() {
  tell "FAILED: $*"
  systemctl status --no-pager -n 30 stead.service
  journalctl --no-pager -u stead.service | tail -n 60
  systemctl poweroff
  exit 1
}
pid_of() { cat "/run/stead/$1.pid"; }
seconds_since() { echo $(($(date +%s) - $1)); }

# until_ready: the API answers and the agent that runs now has reported.
until_ready() { "$stead" status --wait 120 >/run/status 2>&1 || fail "not ready: $(tr '\n' ' ' </run/status)"; }

install_all() {
  local deb missing=()
  for deb in "$seed"/debs/*.deb; do
    dpkg-query -W "$(dpkg-deb -f "$deb" Package)" >/dev/null 2>&1 || missing+=("$deb")
  done
  dpkg -i "${missing[@]}" >/run/dpkg.log 2>&1 || fail "dpkg: $(tail -n 12 /run/dpkg.log)"
  tar -C / -xf "$seed/stead.tar"
  useradd --system --home-dir /var/lib/stead --no-create-home --shell /usr/sbin/nologin stead
  mkdir -p /etc/stead
  echo 'hypervisor = "simulated"' >/etc/stead/stead.toml
  install -m 0644 "$seed/stead.service" /etc/systemd/system/
  systemctl daemon-reload
}

# survives NAME: kill -9 that process; another of its kind serves.
survives() {
  local old begun
  old=$(pid_of "$1")
  begun=$(date +%s)
  kill -9 "$old"
  until [ "$(pid_of "$1")" != "$old" ] && "$stead" status >/dev/null 2>&1; do
    [ "$(seconds_since "$begun")" -lt 180 ] || fail "$1 did not come back"
    sleep 0.5
  done
  tell "kill -9 of $1: ready again after $(seconds_since "$begun") s (pid $old, then $(pid_of "$1"))"
}

first() {
  local begun up
  install_all
  verified=$(systemd-analyze verify /etc/systemd/system/stead.service 2>&1 | grep -F stead.service)
  [ -z "$verified" ] || fail "systemd-analyze verify: $verified"
  tell "systemd-analyze verify has nothing to say of the unit"
  begun=$(date +%s)
  systemctl enable --now -q stead.service || fail "systemctl enable --now"
  tell "systemctl enable --now returned after $(seconds_since "$begun") s"
  until_ready
  tell "ready after $(seconds_since "$begun") s; $(systemctl is-active stead.service), $(systemctl is-enabled stead.service)"
  [ "$(stat -c %U "/proc/$(pid_of plane)")" = stead ] || fail "the plane does not run as stead"
  tell "the plane runs as $(stat -c %U "/proc/$(pid_of plane)"), the agent as $(stat -c %U "/proc/$(pid_of agent)")"
  "$stead" up --detach | grep -q 'runs already' || fail "up --detach beside the unit"
  survives plane
  survives agent
  up=$(systemctl show -p MainPID --value stead.service)
  survives up
  [ "$(systemctl show -p MainPID --value stead.service)" != "$up" ] || fail "the unit's main process is the killed one"
  begun=$(date +%s)
  systemctl stop stead.service || fail "systemctl stop"
  ! pgrep -f stead.cli.main >/dev/null || fail "processes are left: $(pgrep -af stead.cli.main)"
  tell "systemctl stop returned after $(seconds_since "$begun") s and left no process; $(systemctl is-failed stead.service)"
  "$stead" up --detach >/dev/null && until_ready
  [ "$(systemctl is-active stead.service)" = active ] || fail "up --detach did not start the unit"
  "$stead" down >/dev/null
  sleep 5
  [ "$(systemctl is-active stead.service)" = inactive ] || fail "stead down: the unit is $(systemctl is-active stead.service)"
  tell "stead up --detach starts the unit, and stead down ends it for good"
  cat >/etc/systemd/system/proof.service <<END
[Unit]
After=stead.service
[Service]
Type=oneshot
TimeoutStartSec=600
ExecStart=/usr/local/sbin/proof second
[Install]
WantedBy=multi-user.target
END
  install -m 0755 "$seed/guest.sh" /usr/local/sbin/proof
  systemctl enable -q proof.service
  tell "the host restarts"
  systemctl reboot
}

second() {
  until_ready
  tell "after the restart: $(systemctl is-active stead.service), ready, $(cut -d. -f1 /proc/uptime) s after the kernel's start"
  "$stead" uninstall >/run/uninstall 2>&1 || fail "uninstall: $(cat /run/uninstall)"
  sleep 4
  [ "$(systemctl is-active stead.service)" = inactive ] || fail "after uninstall: $(systemctl is-active stead.service)"
  if ip link show stead0 >/dev/null 2>&1 || [ -n "$(nft list tables)" ]; then
    fail "uninstall left a bridge or rules: $(ip -br link) $(nft list tables)"
  fi
  tell "stead uninstall: no process, bridge or rule is left"
  tell "PASSED"
  systemctl poweroff
}

"$1"
