#!/usr/bin/env bash
# Proves that Stead lives under systemd: boots the golden image in a plain QEMU (no Stead, no libvirt), installs Stead with
# its unit there, and puts it through start, kill -9 of each process, stop, and a restart of the host. Minutes under
# emulation, so `check` leaves it out; docs/proofs/ keeps what it printed.
#
#   packaging/prove-systemd.sh [IMAGE]    default: this host's golden image, made by `stead image build`
#
# The guest has no hypervisor of its own, so Stead runs there with the simulated driver. Needs root, the packages of
# `quickstart`, and an image of the same Debian release as this host. Nothing stays but the report on standard output.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
. packaging/host.sh
. packaging/release.sh

need_root packaging/prove-systemd.sh
release_id=$(. /etc/os-release && printf '%s%s' "$ID" "$VERSION_ID")
image=${1:-/var/lib/stead/golden/$release_id.qcow2}
[ -r "$image" ] || die "$image does not exist: make it by \`stead image build\`, or name another."
work=$(mktemp -d /var/tmp/stead-proof.XXXXXX)
qemu=""
finish() {
  [ -z "$qemu" ] || kill "$qemu" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

# What the guest gets on a CD: Stead as a release, its unit, and packages that the image lacks.
payload=$work/payload
mkdir -p "$payload/debs" "$work/opt/stead"
name=$(release_name "$PWD")
make_release "$work/opt/stead" "$name" "$PWD"
sed -i "1s|.*|#!/opt/stead/releases/$name/bin/python3|" "$work/opt/stead/releases/$name/bin/stead"
ln -s "releases/$name" "$work/opt/stead/venv"
tar -C "$work" -cf "$payload/stead.tar" opt
install -m 0644 packaging/stead.service "$payload/"
# All that these two need on a system with nothing in it; the guest takes what it lacks.
mapfile -t wanted < <(apt-get install -s --no-install-recommends -o Dir::State::status=/dev/null nftables dnsmasq-base |
  awk '/^Inst/ { print $2 }')
(cd "$payload/debs" && apt-get -q -o APT::Sandbox::User=root download "${wanted[@]}" >/dev/null)
printf 'instance-id: stead-proof\nlocal-hostname: proof\n' >"$payload/meta-data"
cat >"$payload/user-data" <<'END'
#cloud-config
runcmd:
  - mkdir -p /run/proof
  - mount -o ro /dev/disk/by-label/cidata /run/proof
  - bash /run/proof/guest.sh first >/dev/ttyS0 2>&1
END
install -m 0755 packaging/prove-systemd-guest.sh "$payload/guest.sh"
xorriso -as mkisofs -quiet -R -J -V cidata -o "$work/seed.iso" "$payload" 2>/dev/null
qemu-img create -q -f qcow2 -F qcow2 -b "$(readlink -f "$image")" "$work/disk.qcow2" 6G

qemu-system-x86_64 -machine q35 -accel tcg -cpu max -m 1536 -smp 2 -display none -nic none -no-user-config \
  -drive "file=$work/disk.qcow2,if=virtio,format=qcow2" -drive "file=$work/seed.iso,if=virtio,format=raw,readonly=on" \
  -chardev "file,id=serial,path=$work/serial.log" -serial chardev:serial &
qemu=$!
started=$(date +%s)
while kill -0 "$qemu" 2>/dev/null; do
  [ $(($(date +%s) - started)) -lt "${PROOF_SECONDS:-1500}" ] || break
  sleep 2
done
tr -d '\r' <"$work/serial.log" | sed -n 's/^.*proof: //p'
say "($(($(date +%s) - started)) s, $(. /etc/os-release && printf '%s' "$PRETTY_NAME"))"
if ! grep -q 'proof: PASSED' "$work/serial.log"; then
  tr -d '\r' <"$work/serial.log" | tail -n 40 >&2
  die "The proof failed."
fi
