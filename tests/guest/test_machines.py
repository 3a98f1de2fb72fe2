"""Disks and guest data end to end: what the guest finds on its disks, what is kept over a restart and what is not.

One Stead serves the module; the guests of a test run at the same time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import yaml
from tests import guest_image, image_server
from tests.stead_host import SteadHost, condition, free_port, phase, uid

from stead import pki
from stead.client.contract import Object, Selection
from stead.kinds import register

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MIB = 1 << 20


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def secret(stead: SteadHost, name: str, **data: str) -> None:
    await stead.create(
        register.SECRET, {"metadata": {"name": name}, "data": {key: encoded(value) for key, value in data.items()}}
    )


async def seed(stead: SteadHost, vmi: Object, file: str) -> str:
    """A file of the guest's seed, from the guest's own web server on its address in the cluster."""
    address = vmi["status"]["interfaces"][0]["ipAddress"]
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}/seed/{file}") as answer:
        assert answer.status == 200, f"{file}: {answer.status}"
        return await answer.text()


async def test_guests_find_their_seed_files_and_empty_disks(stead: SteadHost) -> None:
    """cloud-init NoCloud and ConfigDrive (inline, base64, secretRef, network data), ssh keys, Secret, ConfigMap,
    ServiceAccount and empty disks; what a reboot keeps and a restart does not.
    """
    await secret(stead, "seed", userdata="#cloud-config\nhostname: from-secret\n", networkdata='{"links": []}')
    await secret(stead, "keys", alice="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKeyOfAlice alice")
    await secret(stead, "password", word="open sesame")
    config_map: Object = {"metadata": {"name": "settings"}, "data": {"app.ini": "colour = green"}}
    await stead.create(register.CONFIG_MAP, config_map)
    await stead.create(register.SERVICE_ACCOUNT, {"metadata": {"name": "worker"}})
    network = "version: 2\nethernets: {eth0: {dhcp4: true}}\n"
    no_cloud = {"userDataBase64": encoded("#cloud-config\nhello: base64\n"), "networkData": network}
    await stead.vm(
        "files",
        hostname="files-host",
        volumes=[
            {"name": "seed", "cloudInitNoCloud": no_cloud},
            {"name": "password", "secret": {"secretName": "password"}},
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "account", "serviceAccount": {"serviceAccountName": "worker"}},
            {"name": "scratch", "emptyDisk": {"capacity": "16Mi"}},
        ],
        accessCredentials=[
            {"sshPublicKey": {"source": {"secret": {"secretName": "keys"}}, "propagationMethod": {"noCloud": {}}}}
        ],
        disks=[{"name": "scratch", "disk": {"bus": "virtio"}, "serial": "SCRATCH"}],
    )
    drive = {"secretRef": {"name": "seed"}, "networkDataSecretRef": {"name": "seed"}}
    key = {"source": {"secret": {"secretName": "keys"}}, "propagationMethod": {"configDrive": {}}}
    await stead.vm(
        "drive",
        volumes=[{"name": "seed", "cloudInitConfigDrive": drive}],
        accessCredentials=[{"sshPublicKey": key}],
    )
    await asyncio.gather(_files(stead), _drive(stead))


async def _drive(stead: SteadHost) -> None:
    console = await stead.booted("drive")
    vmi = await stead.wait_machine("drive", "agent")
    assert "seed ConfigDrive" in console.text
    assert "from-secret" in await seed(stead, vmi, "user_data")
    meta = json.loads(await seed(stead, vmi, "meta_data.json"))
    assert "KeyOfAlice" in json.dumps(meta["public_keys"])
    assert meta["instance_id"] == "drive.default"
    assert json.loads(await seed(stead, vmi, "network_data.json")) == {"links": []}
    await stead.delete("drive")


async def _files(stead: SteadHost) -> None:
    console = await stead.booted("files")
    vmi = await stead.wait_machine("files", "agent")
    assert "stead-guest: hostname files-host" in console.text
    assert "hello: base64" in await seed(stead, vmi, "user-data")
    assert "dhcp4: true" in await seed(stead, vmi, "network-config")
    meta = json.loads(await seed(stead, vmi, "meta-data"))
    assert (meta["instance-id"], meta["local-hostname"]) == ("files.default", "files-host")
    assert "KeyOfAlice" in json.dumps(meta["public-keys"])

    shown = await console.shell(
        "for d in /dev/vd?; do mount -r -t iso9660 $d /mnt 2>/dev/null && { tail -n +1 /mnt/*; umount /mnt; }; done"
    )
    assert "open sesame" in shown
    assert "colour = green" in shown
    assert "namespace" in shown
    assert "eyJ" in shown, "no token of the ServiceAccount"

    # the empty disk outlives a reboot of the guest, and ends with the instance; so do writes to a container disk
    scratch = "$(for s in /sys/block/vd*; do grep -q SCRATCH $s/serial 2>/dev/null && echo /dev/${s##*/}; done)"
    assert "16777216" in await console.shell(f"blockdev --getsize64 {scratch}")
    await console.shell(f"printf kept-in-scratch | dd of={scratch} conv=notrunc; sync")
    await console.shell("printf kept-in-root | dd of=/dev/vda bs=512 seek=100000 conv=notrunc; sync")
    length = len(console.text)
    await stead.call("files", "reset")
    await console.until("stead-guest: address", start=length)
    assert "kept-in-scratch" in await console.shell(f"head -c 15 {scratch}")
    await stead.call("files", "restart")
    await stead.until_vmi("files", lambda v: uid(v) != uid(vmi) and phase(v) == "Running")
    console = await stead.booted("files")
    assert "kept-in-scratch" not in await console.shell(f"head -c 15 {scratch}")
    assert "kept-in-root" not in await console.shell("dd if=/dev/vda bs=512 skip=100000 count=1 | head -c 12")
    await stead.delete("files")


@contextlib.contextmanager
def secured_registry(layer: bytes) -> Iterator[tuple[str, str]]:
    """A registry with TLS by a private CA and the account alice/swordfish, holding `private:1`: host, PEM of the CA."""
    program = image_server.registry_program()
    assert program is not None, "docker-registry is not installed"
    with tempfile.TemporaryDirectory(prefix="registry-") as name:
        folder, port = Path(name), free_port()
        authority = pki.ensure_authority(folder, "private authority")
        pair = pki.Pair(folder / "tls.crt", folder / "tls.key")
        pki.ensure_certificate(authority, pair, pki.Identity("registry", names=("127.0.0.1",)))
        # bcrypt of "swordfish", which Python cannot make by itself
        (folder / "htpasswd").write_text("alice:$2y$05$abcdefghijklmnopqrstuupWDwJQeCHYIBQy8WvkVB6ImhZ476YYy\n")
        common = f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        auth = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
        tls = f"tls: {{certificate: {pair.certificate}, key: {pair.key}}}"
        for text in (
            f"{common}http: {{addr: '127.0.0.1:{port}'}}\n",
            f"{common}{auth}http: {{addr: '127.0.0.1:{port}', {tls}}}\n",
        ):
            (folder / "config.yml").write_text(text)
            process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stderr=subprocess.DEVNULL)
            try:
                image_server._until_open(port, process)
                if "tls" not in text:
                    image_server.Registry(port).push("private", "1", [layer])
                else:
                    yield f"127.0.0.1:{port}", authority.certificate.read_text()
            finally:
                process.terminate()
                process.wait(10)


async def test_images_from_a_private_registry(stead: SteadHost) -> None:
    """Pull secrets and a private CA: refused without, with a reason; runs as soon as the Secret is there."""
    layer = image_server.layer({"disk/d.qcow2": guest_image.disk_image("qcow2")})
    with secured_registry(layer) as (host, authority):
        image = {"image": f"{host}/private:1", "imagePullSecret": "pull"}
        await stead.vm("private", volumes=[{"name": "second", "containerDisk": image}])
        vm = await stead.printable("private", "ErrImagePull", "ImagePullBackOff", "Starting")
        await stead.until_vm("private", lambda v: "pull" in str((condition(v, "Synchronized") or {}).get("message")))
        login = json.dumps({"auths": {host: {"username": "alice", "password": "wrong"}}})
        await secret(stead, "pull", **{".dockerconfigjson": login, "ca.crt": authority})
        vm = await stead.printable("private", "ErrImagePull", "ImagePullBackOff")
        assert "private:1" in str(condition(vm, "Synchronized"))
        good = {".dockerconfigjson": encoded(login.replace("wrong", "swordfish"))}
        await stead.client.patch(register.SECRET, stead.namespace, "pull", {"data": good})
        await stead.wait_machine("private", "running")
        await stead.delete("private")

        # without the CA nothing is taken, whatever the password
        await stead.client.patch(register.SECRET, stead.namespace, "pull", {"data": {"ca.crt": None}})
        always = {**image, "imagePullPolicy": "Always"}
        await stead.vm("unproven", volumes=[{"name": "second", "containerDisk": always}])
        vm = await stead.printable("unproven", "ErrImagePull", "ImagePullBackOff")
        assert "certificate" in str(condition(vm, "Synchronized")).lower()
        await stead.delete("unproven")


async def test_web01_waits_for_its_image_and_boots_from_a_disk_of_its_own(stead: SteadHost, tmp_path: Path) -> None:
    """The mission's manifest, unedited: Provisioning while the DataSource is missing; boots when it is there."""
    manifest = EXAMPLES / "web01-ubuntu.yaml"
    assert "created" in await stead.stead("apply", "-f", str(manifest))
    vm = await stead.printable("web01", "Provisioning")
    vm = await stead.until_vm("web01", lambda v: "ubuntu2404" in json.dumps(v["status"].get("conditions")))
    assert await stead.vmi("web01") is None or phase(await stead.vmi("web01") or {}) != "Running"

    image = tmp_path / "ubuntu.qcow2"
    image.write_bytes(guest_image.disk_image("qcow2").read_bytes())
    assert "ready" in await stead.stead("image", "add", "ubuntu2404", "--from", str(image))
    console = await stead.booted("web01")
    vmi = await stead.wait_machine("web01", "agent")
    vm = await stead.printable("web01", "Running")
    assert "Linux" in await console.shell("uname -s")

    # instancetype and preference are pinned by what they were, not by name
    pins = [vm["status"][ref]["controllerRevisionRef"]["name"] for ref in ("instancetypeRef", "preferenceRef")]
    revisions = {
        r["metadata"]["name"]: r
        for r in (await stead.client.list(register.CONTROLLER_REVISION, Selection(stead.namespace))).items
    }
    assert revisions[pins[0]]["data"]["spec"]["memory"]["guest"] == "4Gi"
    assert revisions[pins[1]]["data"]["kind"] == "VirtualMachineClusterPreference"
    assert vmi["spec"]["domain"]["memory"]["guest"] == "4Gi"
    assert vmi["metadata"]["annotations"]["kubevirt.io/cluster-instancetype-name"] == "u1.medium"
    assert [disk["name"] for disk in vmi["spec"]["domain"]["devices"]["disks"]] == ["rootdisk"]

    # 30 GiB to the guest, a few MiB on the host, and nothing of the source's is needed
    assert str(30 << 30) in await console.shell("blockdev --getsize64 /dev/vda")
    claim = await stead.get(register.PERSISTENT_VOLUME_CLAIM, "web01-root")
    assert claim is not None
    volume = await stead.client.get(register.PERSISTENT_VOLUME, None, claim["spec"]["volumeName"])
    disk = stead.settings.all_pools[0].path / volume["spec"]["csi"]["volumeHandle"].partition("/")[2] / "disk.img"
    found = disk.stat()
    assert found.st_size == 30 << 30
    assert found.st_blocks * 512 < 256 * MIB, "the disk is not thin"
    await console.shell("mount /dev/vda1 /mnt; echo of-web01 > /mnt/mark; umount /mnt; sync")
    await stead.stead("image", "remove", "ubuntu2404")
    await stead.call("web01", "restart")
    await stead.until_vmi("web01", lambda v: uid(v) != uid(vmi) and phase(v) == "Running")
    console = await stead.booted("web01")
    assert "of-web01" in await console.shell("mount -r /dev/vda1 /mnt; cat /mnt/mark; umount /mnt")

    listed = await stead.stead("list")
    assert "web01" in listed
    assert "Running" in listed
    assert "u1.medium" in await stead.stead("info", "web01")
    await stead.stead("delete", "-f", str(manifest))
    await stead.delete("web01")

    async def disk_is_gone() -> bool:
        return not disk.exists()

    await stead.until(disk_is_gone, "the machine's disk is removed", 30)


async def test_every_example_is_accepted(stead: SteadHost) -> None:
    """Every manifest of `examples/` is applied as it stands, without waiting for what it makes."""
    for path in sorted(EXAMPLES.glob("*.yaml")):
        told = await stead.stead("apply", "-f", str(path))
        assert any(word in told for word in ("created", "configured", "unchanged"))
        for item in yaml.safe_load_all(path.read_text()):
            found = register.resource_for(item["kind"], item["apiVersion"].rpartition("/")[0])
            await stead.delete(item["metadata"]["name"], resource=found)


async def test_imports_from_the_web_report_what_is_wrong_and_go_on(stead: SteadHost, tmp_path: Path) -> None:
    """DataVolumes: http import, blank, clone of a claim; a hostile and a truncated image say why and leave nothing."""
    with image_server.web_server() as web:
        web.files["good.qcow2"] = guest_image.disk_image("qcow2")
        web.files["cut.qcow2"] = guest_image.disk_image("qcow2").read_bytes()[: 1 * MIB]
        backed = tmp_path / "backed.qcow2"
        made = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", "-u", str(backed), "64M"]
        subprocess.run(made, check=True)
        web.files["backed.qcow2"] = backed.read_bytes()

        async def volume(name: str, source: Object, size: str = "100Mi") -> None:
            storage = {"resources": {"requests": {"storage": size}}}
            await stead.create(
                register.DATA_VOLUME, {"metadata": {"name": name}, "spec": {"source": source, "storage": storage}}
            )

        for name in ("good", "cut", "backed"):
            await volume(name, {"http": {"url": web.url(f"{name}.qcow2")}})
        await volume("late", {"http": {"url": web.url("late.qcow2")}})
        await volume("empty", {"blank": {}})

        async def told(name: str, wanted: str) -> Object:
            async def found() -> Object | None:
                obj = await stead.get(register.DATA_VOLUME, name)
                return obj if obj and wanted in json.dumps(obj.get("status", {})) else None

            done: Object = await stead.until(found, f"DataVolume {name} tells {wanted!r}", 60)
            return done

        for name in ("good", "empty"):
            await told(name, '"phase": "Succeeded"')
        await told("backed", "backing file")
        await told("cut", "truncated")
        await told("late", "404")
        await volume("copy", {"pvc": {"namespace": "default", "name": "good"}}, "200Mi")
        await told("copy", '"phase": "Succeeded"')
        web.files["late.qcow2"] = guest_image.disk_image("qcow2")
        await told("late", '"phase": "Succeeded"')
        # Partial files may go while grep looks, which is no finding (-s, and its exit code is not asked).
        pool = str(stead.settings.all_pools[0].path)
        listed = await stead.host.run("sh", "-c", 'grep -rsl "root:x:0" "$0" || true', pool)
        accounts = Path("/etc/passwd").read_bytes()
        for name in listed.split():
            assert accounts not in Path(name).read_bytes(), "a backing name brought in a file of the host"
