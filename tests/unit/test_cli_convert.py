"""Old manifests become such as the server takes, every change is told, and nothing is lost in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from stead.cli.main import main
from stead.kinds.old_manifests import convert

OLD_MACHINE = """\
apiVersion: kubevirt.io/v1alpha3
kind: VirtualMachine
metadata: {name: web}
spec:
  running: true
  dataVolumeTemplates: [{apiVersion: cdi.kubevirt.io/v1alpha1, metadata: {name: d}, spec: {}}]
  template:
    spec:
      domain:
        devices:
          interfaces: [{name: default, slirp: {}}]
          disks: [{name: root, volumeName: root, disk: {bus: virtio}}, {name: f, floppy: {}}]
      networks: [{name: default, pod: {}}]
      volumes: [{name: root, registryDisk: {image: a}}]
---
apiVersion: instancetype.kubevirt.io/v1alpha2
kind: VirtualMachinePreference
metadata: {name: p}
spec:
  cpu: {preferredCPUTopology: preferCores}
  firmware: {preferredUseEfi: true, preferredUseSecureBoot: true}
---
apiVersion: instancetype.kubevirt.io/v1alpha1
kind: VirtualMachineInstancetype
metadata: {name: t}
spec: {cpu: {guest: 2}, memory: {guest: 1Gi}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: same}
data: {a: "yes"}
"""


def run(*words: str, given: str = OLD_MACHINE) -> tuple[str, str]:
    result = CliRunner().invoke(main, ["convert", "-f", "-", *words], input=given)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_old_versions_and_fields_are_rewritten() -> None:
    machine, preference, instancetype, same = yaml.safe_load_all(run()[0])
    assert machine["apiVersion"] == "kubevirt.io/v1"
    assert machine["spec"]["runStrategy"] == "Always"
    assert "running" not in machine["spec"]
    spec = machine["spec"]["template"]["spec"]
    assert spec["domain"]["devices"]["interfaces"] == [{"name": "default", "masquerade": {}}]
    assert spec["volumes"] == [{"name": "root", "containerDisk": {"image": "a"}}]
    assert preference["apiVersion"] == "instancetype.kubevirt.io/v1beta1"
    assert preference["spec"] == {
        "cpu": {"preferredCPUTopology": "cores"}, "firmware": {"preferredEfi": {"secureBoot": True}},
    }  # fmt: skip
    assert instancetype["apiVersion"] == "instancetype.kubevirt.io/v1beta1"
    assert same == yaml.safe_load(OLD_MACHINE.split("---\n")[3])


def test_stderr_names_each_change_and_what_is_left() -> None:
    _, told = run()
    for line in (
        "VirtualMachine/web: apiVersion: kubevirt.io/v1alpha3 → kubevirt.io/v1",
        "VirtualMachine/web: spec.running: true → spec.runStrategy: Always",
        "VirtualMachine/web: left as it is: spec.template.spec.domain.devices.disks[1].floppy: removed from KubeVirt",
        "VirtualMachinePreference/p: spec.cpu.preferredCPUTopology: preferCores → cores",
        "VirtualMachineInstancetype/t: apiVersion: instancetype.kubevirt.io/v1alpha1",
    ):
        assert line in told
    assert "ConfigMap/same" not in told


def test_json_is_one_list_and_a_second_run_changes_nothing() -> None:
    listed = json.loads(run("-o", "json")[0])
    assert [item["kind"] for item in listed["items"]][:2] == ["VirtualMachine", "VirtualMachinePreference"]
    again, told = run("-o", "json", given=json.dumps(listed))
    assert json.loads(again) == listed
    assert "→" not in told


@pytest.mark.parametrize(("running", "strategy"), [(True, "Always"), (False, "Halted")])
def test_running_becomes_a_run_strategy_and_the_input_is_kept(running: bool, strategy: str) -> None:
    old: dict[str, Any] = {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {}, "spec": {"running": running},
    }  # fmt: skip
    assert convert(old).obj["spec"] == {"runStrategy": strategy}
    assert old["spec"] == {"running": running}
