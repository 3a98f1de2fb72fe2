"""`stead create` takes virt-install's line as it stands; what it cannot honour it refuses by name, in one sentence."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from tests.installer_server import UBUNTU, UBUNTU_NETBOOT, closed_url, serving, silent

from stead.cli import installer_tree
from stead.cli.main import main
from stead.cli.virt_install import boot, manifest
from stead.cli.virt_install.options import ACCEPTED, BY_FLAG, REFUSED
from stead.cli.virt_install.plan import Facts, Line, Pool, Tree
from stead.cli.virt_install.suboptions import Refusal
from stead.cli.virt_install.systems import preference_of, preferences

LINE = Path(__file__).parents[1] / "data" / "virt-install.txt"
SPELLINGS = {spelling: option.flag for option in ACCEPTED for spelling in (option.flag, *option.spellings)}
POOLS = (
    Pool("default", Path("/var/lib/stead/pools/default"), ""),
    Pool("images", Path("/var/lib/libvirt/images"), "images"),
)
TREE = Tree("http://tree.test/base", "linux", "initrd.gz", "debian", "ubuntu24.04")


def facts(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "pools": POOLS, "kvm": True, "exists": lambda _path: False, "password": lambda: "Secret0123456789",
        "read_text": lambda name: {"key.pub": "ssh-ed25519 AAAAC3Nz me\n"}.get(name, f"text of {name}\n"), "tree": TREE,
    }  # fmt: skip
    return Facts(**{**values, **changes})


def line_of(text: str) -> Line:
    """The options of a command line, without click: `--flag value`, `--flag=value`, or a switch."""
    texts: dict[str, tuple[str, ...]] = {}
    words = shlex.split(text)
    while words:
        flag, equals, value = words.pop(0).partition("=")
        option = BY_FLAG.get(SPELLINGS.get(flag, flag))
        if not equals and option and option.value != "none" and words and not words[0].startswith("--"):
            value = words.pop(0)
        name = option.flag if option else flag
        texts[name] = (*texts.get(name, ()), value)
    return Line(texts)


def made(text: str, **changes: Any) -> manifest.Manifests:
    return manifest.build(line_of(f"--name web01 --memory 2048 {text}"), facts(**changes))


def spec_of(found: manifest.Manifests) -> dict[str, Any]:
    spec: dict[str, Any] = found.machine["spec"]["template"]["spec"]
    return spec


def devices_of(found: manifest.Manifests) -> dict[str, Any]:
    devices: dict[str, Any] = spec_of(found)["domain"]["devices"]
    return devices


def refusal(text: str, **changes: Any) -> str:
    with pytest.raises(Refusal) as caught:
        made(text, **changes)
    return str(caught.value)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Settings of an installation that has libvirt's images folder as a pool and no API."""
    path = tmp_path / "stead.toml"
    path.write_text(
        f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n'
        '[[pools]]\nname = "images"\npath = "/var/lib/libvirt/images"\n'
    )
    return path


def run(settings: Path, *words: str) -> Result:
    environment = {"KUBECONFIG": str(settings.parent / "none"), "HOME": str(settings.parent)}
    return CliRunner().invoke(main, ["--config", str(settings), "create", *words], env=environment)


# the line ------------------------------------------------------------------------------------------------------------

EXPECTED = """
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: br0, namespace: default}
spec: {config: '{"cniVersion":"0.3.1","type":"bridge","bridge":"br0"}'}
---
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata:
  name: web01
  namespace: default
  annotations: {stead.io/after-install: RerunOnFailure}
spec:
  runStrategy: Once
  preference: {kind: VirtualMachineClusterPreference, name: ubuntu}
  dataVolumeTemplates:
    - metadata:
        name: web01-rootdisk
        annotations: {stead.io/file: web01.qcow2, stead.io/format: qcow2}
      spec:
        source: {blank: {}}
        storage:
          resources: {requests: {storage: 30Gi}}
          storageClassName: images
  template:
    spec:
      domain:
        memory: {guest: 4Gi}
        cpu: {sockets: 2, cores: 1, threads: 1}
        firmware:
          kernelBoot:
            container: {image: TREE/, kernelPath: KERNEL, initrdPath: INITRD}
            kernelArgs: console=ttyS0
        rebootPolicy: Terminate
        devices:
          autoattachGraphicsDevice: false
          disks: [{name: rootdisk, disk: {}}]
          interfaces: [{name: net0, bridge: {}, model: virtio}]
      networks: [{name: net0, multus: {networkName: br0}}]
      volumes: [{name: rootdisk, dataVolume: {name: web01-rootdisk}}]
"""


def expected(tree: Tree) -> list[Any]:
    text = EXPECTED.replace("TREE", tree.url).replace("KERNEL", f"/{tree.kernel}").replace("INITRD", f"/{tree.initrd}")
    return list(yaml.safe_load_all(text))


def test_the_line_as_it_stands_is_this_machine() -> None:
    line = line_of(LINE.read_text().replace("\\\n", " ").removeprefix("virt-install"))
    found = manifest.build(line, facts(kvm=False, bridge_hint=lambda name: f"this host has no bridge {name}"))
    assert found.all == expected(TREE)
    assert [warning.split(":")[0] for warning in found.warnings] == [
        "this host has no bridge br0",
        "--cpu host-passthrough",
    ]


def test_the_command_prints_the_same_machine_from_a_served_tree(settings: Path) -> None:
    with serving(UBUNTU) as server:
        text = LINE.read_text().replace("http://archive.ubuntu.com", server)
        words = shlex.split(text.replace("\\\n", " "))[1:]
        result = run(settings, *words, "--dry-run")
        kernel = next(path for path in UBUNTU if path.endswith("linux")).removeprefix(f"{UBUNTU_NETBOOT}/")
        tree = Tree(f"{server}{UBUNTU_NETBOOT}", kernel, kernel.replace("linux", "initrd.gz"))
    assert result.exit_code == 0, result.output
    wanted = expected(tree)
    wanted[1]["spec"]["template"]["spec"]["domain"]["cpu"]["model"] = "host-passthrough"  # no API to ask about KVM
    assert list(yaml.safe_load_all(result.stdout)) == wanted
    assert "--cpu host-passthrough is kept" in result.stderr


# refusals ------------------------------------------------------------------------------------------------------------


def test_every_refused_option_is_refused_by_name(settings: Path) -> None:
    for flag in REFUSED:
        result = run(settings, "--name", "a", flag, "x", "--dry-run")
        assert result.exit_code == 2, flag
        assert result.stderr.startswith(f"Error: {flag} is refused"), result.output


def test_every_option_lists_what_it_knows(settings: Path) -> None:
    for option in ACCEPTED:
        if option.value == "none":
            continue
        result = run(settings, f"{option.flag}=?")
        assert result.exit_code == 0, result.output
        assert option.flag in result.stdout
        assert all(name in result.stdout for name in option.known)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--import", "--disk"),
        ("--disk size=5", "how does the system get there?"),
        ("--disk /srv/other/x.img,size=5 --import", "/srv/other is not a registered directory"),
        ("--disk /var/lib/libvirt/images/sub/../../x.img,size=5 --import", "/var/lib/libvirt is not a registered"),
        ("--disk /var/lib/libvirt/images/.x,size=5 --import", "no dot in front"),
        ("--disk x.img,size=5 --import", "whole path"),
        ("--disk path=/var/lib/libvirt/images/a.img --import", "there is no such file"),
        ("--disk size=5,bus=ide --import", "bus=ide"),
        ("--disk size=5,cache=unsafe --import", "cache=unsafe"),
        ("--disk sizee=5 --import", "did you mean size"),
        ("--disk size=5,iotune.total_iops_sec=5 --import", "not offered yet"),
        ("--disk size=tiny --import", "a size is meant"),
        ("--disk size=5,backing_store=/srv/x.qcow2 --import", "stead image add"),
        ("--disk size=5 --import --graphics vnc,listen=0.0.0.0", "no VNC port listens on TCP"),
        ("--disk size=5 --import --graphics vnc,password=x", "--graphics password= is refused"),
        ("--disk size=5 --import --graphics spice", "--graphics spice is not offered"),
        ("--disk size=5 --import --network type=direct,source=eth0", "type=direct is not offered"),
        ("--disk size=5 --import --network default,mac=01:00:00:00:00:00", "multicast"),
        ("--disk size=5 --import --network default --network default", "one card on the pod network"),
        ("--disk size=5 --import --cdrom /var/lib/libvirt/images/x.iso", "there is no such file"),
        ("--disk size=5 --import --pxe", "exclude each other"),
        ("--disk size=5 --import --extra-args quiet", "--extra-args needs --location"),
        ("--disk size=5 --import --boot fd", "floppy"),
        ("--disk size=5 --import --boot uefi=off,secure-boot=on", "needs UEFI"),
        ("--disk size=5,boot.order=1 --disk size=6,boot.order=1 --import", "given to both"),
        ("--disk size=5 --import --vcpus 3,cores=2", "does not fit"),
        ("--disk size=5 --import --hostdev 01:00.0", "--hostdev"),
        ("--disk size=5 --import --machine pc", "--machine pc is not offered"),
        ("--disk size=5 --import --virt-type qemu", "always uses it"),
        ("--disk size=5 --import --connect qemu+ssh://host/system", "--kubeconfig"),
        ("--disk size=5 --import --clock offset=localtime", "offset=timezone"),
        ("--disk 'size=5 --import", "closed"),
        ("--location /srv/x.iso --disk size=5 --name Web_01", "web-01 would do"),
        ("--instancetype u1.small --disk size=5 --import", "exclude each other"),
        ("--memory 512 --disk size=5 --import --osinfo ubuntu24.04", "the 2Gi that ubuntu needs"),
        ("--memory 8Gi --vcpus 1 --disk size=5 --import --osinfo win11", "the 2 that windows.11 needs"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(text: str, words: str) -> None:
    try:
        message = refusal(text)
    except ValueError:  # shlex cannot split the open quote: give it whole
        with pytest.raises(Refusal) as caught:
            manifest.build(Line({"--name": ("a",), "--disk": ("'size=5",)}), facts())
        message = str(caught.value)
    assert words in message
    assert "\n" not in message


# trees ---------------------------------------------------------------------------------------------------------------


def locate(settings: Path, url: str) -> Result:
    return run(settings, "--name", "a", "--memory", "2048", "--disk", "size=1", "--location", url, "--dry-run")


def assert_one_sentence(result: Result, url: str, words: str) -> None:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert url in lines[0]
    assert words in lines[0]


def test_a_dead_tree_yields_one_sentence_with_its_url(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = closed_url()
    assert_one_sentence(locate(settings, url), url, "does not answer")
    with serving({}) as url:
        assert_one_sentence(locate(settings, f"{url}/nothing"), f"{url}/nothing/", "no installer is there")
    with serving({}, status=503) as url:
        assert_one_sentence(locate(settings, url), url, "503")
    monkeypatch.setattr(installer_tree, "REQUEST_SECONDS", 0.3)
    with silent() as url:
        assert_one_sentence(locate(settings, url), url, "did not answer in time")


def test_a_name_that_does_not_resolve_is_told(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name(*_args: object, **_options: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    assert_one_sentence(locate(settings, "http://tree.invalid/x"), "http://tree.invalid/x/", "cannot be resolved")


def test_trees_of_other_families_are_found(settings: Path) -> None:
    files = b"kernel = images/pxeboot/vmlinuz\ninitrd = images/pxeboot/initrd.img\n"
    info = b"[release]\nname = Fedora\nversion = 41\n[images-x86_64]\n" + files
    fedora = {"/f/.treeinfo": info, "/f/images/pxeboot/vmlinuz": b"k", "/f/images/pxeboot/initrd.img": b"i"}
    with serving(fedora) as url:
        result = locate(settings, f"{url}/f/")
        assert result.exit_code == 0, result.output
        machine = yaml.safe_load(result.stdout)
    boots = machine["spec"]["template"]["spec"]["domain"]["firmware"]["kernelBoot"]
    assert boots["kernelArgs"] == f"inst.repo={url}/f/ console=ttyS0"
    assert boots["container"]["kernelPath"] == "/images/pxeboot/vmlinuz"
    assert machine["spec"]["preference"]["name"] == "fedora"
    suse = {"/boot/x86_64/loader/linux": b"k", "/boot/x86_64/loader/initrd": b"i"}
    with serving(suse) as url:
        result = locate(settings, url)
        assert f"install={url}/ console=ttyS0" in result.stdout
        named = locate(settings, f"{url},kernel=boot/x86_64/loader/linux,initrd=boot/x86_64/loader/absent")
    assert_one_sentence(named, "/boot/x86_64/loader/absent", "no such file")


# what it means -------------------------------------------------------------------------------------------------------


def test_host_passthrough_stays_where_every_host_has_kvm() -> None:
    found = made("--disk size=5 --import --cpu host-passthrough,-vmx,require=aes", kvm=True)
    assert spec_of(found)["domain"]["cpu"]["model"] == "host-passthrough"
    assert spec_of(found)["domain"]["cpu"]["features"] == [
        {"name": "vmx", "policy": "disable"},
        {"name": "aes", "policy": "require"},
    ]


def test_cpus_take_the_topology_that_the_system_wants_unless_it_is_said() -> None:
    windows = spec_of(made("--memory 4096 --disk size=5 --import --osinfo win11 --vcpus 4,maxvcpus=8"))["domain"]["cpu"]
    assert windows == {"sockets": 1, "cores": 4, "threads": 1, "maxSockets": 2}
    said = spec_of(made("--memory 4096 --disk size=5 --import --osinfo win11 --vcpus 4,sockets=4"))["domain"]["cpu"]
    assert said == {"sockets": 4, "cores": 1, "threads": 1}


def test_an_existing_file_is_adopted_as_it_is() -> None:
    found = made(
        "--import --disk /var/lib/libvirt/images/old.qcow2",
        exists=lambda _path: True,
        inspect=lambda _p: ("qcow2", 3 << 30),
    )
    template = found.machine["spec"]["dataVolumeTemplates"][0]
    assert template["metadata"]["annotations"] == {
        "stead.io/file": "old.qcow2", "stead.io/format": "qcow2", "stead.io/adopt": "true",
    }  # fmt: skip
    assert template["spec"]["storage"]["resources"]["requests"]["storage"] == "3221225472"


def test_the_format_of_an_existing_file_is_what_it_is() -> None:
    text = "--import --disk /var/lib/libvirt/images/old.img"
    seen: dict[str, Any] = {"exists": lambda _path: True, "inspect": lambda _path: ("qcow2", 1 << 30)}
    found = made(text, **seen)
    assert found.machine["spec"]["dataVolumeTemplates"][0]["metadata"]["annotations"]["stead.io/format"] == "qcow2"
    assert "is qcow2, not raw" in refusal(f"{text},format=raw", **seen)
    assert "stead image add" in refusal(text, exists=lambda _path: True, inspect=lambda _path: ("vmdk", 1))


def test_urls_images_and_pools_become_sources() -> None:
    text = (
        "--import --disk path=https://x.test/a.qcow2,size=8 --disk backing_store=debian12,size=9 "
        "--disk pool=images,size=1 --disk size=512Mi,bus=sata,cache=none,readonly=on,serial=abc,shareable=on"
    )
    found = made(text)
    templates = [item["spec"] for item in found.machine["spec"]["dataVolumeTemplates"]]
    assert templates[0]["source"] == {"http": {"url": "https://x.test/a.qcow2"}}
    assert templates[1]["sourceRef"] == {"kind": "DataSource", "name": "debian12", "namespace": "kubevirt-os-images"}
    assert templates[2]["storage"]["storageClassName"] == "images"
    assert devices_of(found)["disks"][3] == {
        "name": "disk3", "disk": {"bus": "sata", "readonly": True}, "cache": "none", "serial": "abc", "shareable": True,
    }  # fmt: skip


def test_a_cdrom_is_shared_and_comes_after_the_empty_disk() -> None:
    text = "--disk size=5 --cdrom /var/lib/libvirt/images/Debian.iso"
    found = made(text, exists=lambda _path: True, inspect=lambda _path: ("raw", 700 << 20))
    disk, cdrom = devices_of(found)["disks"]
    assert (disk["bootOrder"], cdrom["bootOrder"]) == (1, 2)
    assert cdrom["cdrom"] == {"bus": "sata"}
    volume = found.shared[0]
    assert spec_of(found)["volumes"][1]["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
    assert volume["metadata"]["annotations"]["stead.io/adopt"] == "true"
    assert volume["spec"]["storage"]["resources"]["requests"]["storage"] == "734003200"


def test_networks() -> None:
    assert devices_of(made("--disk size=5 --import"))["interfaces"] == [{"name": "default", "masquerade": {}}]
    assert devices_of(made("--disk size=5 --import --network none"))["autoattachPodInterface"] is False
    found = made(
        "--disk size=5 --import -w default -w bridge=br-lan.7,mac=52:54:00:AA:bb:01 -w bridge=br_x,link.state=down"
    )
    assert spec_of(found)["networks"][2] == {"name": "net2", "multus": {"networkName": "br-x"}}


def test_firmware_and_devices() -> None:
    text = (
        "--disk size=5 --import --boot uefi,secure-boot=on,hd,network --tpm emulator,model=tpm-tis,version=2.0 "
        "--rng /dev/urandom --watchdog i6300esb,action=poweroff --sound ich9 --video virtio --graphics vnc "
        "--memballoon none --console pty --serial pty --controller type=scsi,model=virtio-scsi "
        "--channel unix,target_type=virtio,name=org.qemu.guest_agent.0 --features kvm.hidden.state=on "
        "--clock utc,rtc_tickpolicy=catchup --machine q35 --iothreads 2 --virt-type kvm --hvm --autostart "
        "--metadata title='A b',description=c --uuid 4dea22b3-1d52-d8f3-2516-782e98ab3fa0 --input tablet,bus=virtio"
    )
    found = made(text)
    domain, devices = spec_of(found)["domain"], devices_of(found)
    assert domain["firmware"]["bootloader"] == {"efi": {"secureBoot": True}}
    assert domain["features"] == {"smm": {"enabled": True}, "kvm": {"hidden": True}}
    assert devices["watchdog"] == {"name": "watchdog", "i6300esb": {"action": "poweroff"}}
    assert (devices["disks"][0]["bootOrder"], devices["interfaces"][0]["bootOrder"]) == (1, 2)
    assert found.machine["spec"]["runStrategy"] == "Always"
    assert found.machine["metadata"]["annotations"]["stead.io/title"] == "A b"


def test_bare_cloud_init_makes_a_password_and_keeps_it_out_of_the_manifest() -> None:
    found = made("--image debian12 --cloud-init")
    assert found.notes == ("Password for first root login is: Secret0123456789",)
    assert "Secret0123456789" not in str(found.machine)
    assert "Secret0123456789" in found.secrets[0]["stringData"]["userdata"]
    source = spec_of(found)["volumes"][-1]["cloudInitNoCloud"]
    assert source == {"secretRef": {"name": "web01-cloudinit"}}


def test_long_user_data_goes_into_a_secret_and_short_stays() -> None:
    found = made("--image debian12 --cloud-init user-data=u,network-config=n", read_text=lambda name: name * 2049)
    assert set(found.secrets[0]["stringData"]) == {"userdata", "networkdata"}
    found = made("--image debian12 --ssh-key key.pub")
    assert "ssh-ed25519" in spec_of(found)["volumes"][-1]["cloudInitNoCloud"]["userData"]
    assert not found.secrets


def test_an_image_brings_its_own_preference_and_size() -> None:
    found = manifest.build(line_of("--name a --image debian12 --disk size=40"), facts())
    spec = found.machine["spec"]
    assert spec["preference"]["inferFromVolume"] == spec["instancetype"]["inferFromVolume"] == "rootdisk"
    assert spec["dataVolumeTemplates"][0]["spec"]["storage"]["resources"]["requests"]["storage"] == "40Gi"


def test_the_installed_machine_has_no_installer_left() -> None:
    machine = made("--disk size=5 --location http://x/ --autostart --uuid 4dea22b3-1d52-d8f3-2516-782e98ab3fa0").machine
    done = boot.finished(machine)
    assert done is not None
    assert done["spec"]["runStrategy"] == "Always"
    domain = done["spec"]["template"]["spec"]["domain"]
    assert domain["firmware"] == {"uuid": "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"}
    assert "rebootPolicy" not in domain
    assert boot.finished(done) is None
    assert "kernelBoot" in str(machine)


@pytest.mark.parametrize(
    ("system", "preference"),
    [
        ("ubuntu24.04", "ubuntu"), ("debian13", "debian"), ("fedora41", "fedora"), ("centos-stream9", "centos.stream9"),
        ("rhel9.4", "rhel.9"), ("rhel10.0", "rhel.10"), ("almalinux9", "rhel.9"), ("rocky8", "rhel.8"),
        ("win11", "windows.11"), ("win2k22", "windows.2k22"), ("win2k12r2", "windows.2k12"),
        ("opensuse15.6", "opensuse.leap"),
        ("sles15sp6", "sles"), ("alpinelinux3.20", "alpine"), ("linux2022", "linux"), ("generic", "legacy"),
        ("http://ubuntu.com/ubuntu/24.04", "ubuntu"), ("http://fedoraproject.org/fedora/40", "fedora"), ("plan9", ""),
    ],
)  # fmt: skip
def test_systems_of_libosinfo_have_preferences(system: str, preference: str) -> None:
    assert preference_of(system) == preference
    assert not preference or preference in preferences()


def test_an_unknown_system_is_linux_with_a_warning() -> None:
    found = made("--disk size=5 --import --os-variant plan9")
    assert found.machine["spec"]["preference"]["name"] == "linux"
    assert "plan9" in found.warnings[0]
    quiet = made("--disk size=5 --import --osinfo detect=on,require=off")
    assert quiet.warnings == ()
