"""What start, stop, restart, streams and volume calls decide, as the caller and the controller see it."""

from __future__ import annotations

from typing import Any

import pytest

from stead.kube import patch
from stead.kube.errors import ApiError
from stead.server import lifecycle

Json = dict[str, Any]


def machine(strategy: str, **status: Any) -> Json:
    spec = {"runStrategy": strategy, "template": {"spec": {"domain": {"devices": {}}}}}
    return {"metadata": {"name": "web", "namespace": "prod"}, "spec": spec, "status": {"created": True, **status}}


def instance(phase: str = "Running", **spec: Any) -> Json:
    body = {"domain": {"devices": {}}, **spec}
    return {"metadata": {"name": "web", "namespace": "prod", "uid": "u1"}, "spec": body, "status": {"phase": phase}}


def code_of(call: Any, *arguments: Any) -> int:
    with pytest.raises(ApiError) as caught:
        call(*arguments)
    return caught.value.code


def test_starting_a_halted_machine_makes_it_run_always() -> None:
    halted = machine("Halted")
    decision = lifecycle.decide_start("web", halted, None, {})
    assert decision.code == 202
    assert patch.json_patch(halted, list(decision.machine_patch))["spec"]["runStrategy"] == "Always"


def test_a_patch_does_not_apply_to_a_machine_that_changed_meanwhile() -> None:
    decision = lifecycle.decide_start("web", machine("Halted"), None, {})
    with pytest.raises(ApiError):
        patch.json_patch(machine("Manual"), list(decision.machine_patch))


def test_starting_a_manual_machine_asks_its_controller() -> None:
    manual = machine("Manual")
    decision = lifecycle.decide_start("web", manual, None, {"paused": True})
    after = patch.json_patch(manual, list(decision.status_patch))
    assert after["status"]["stateChangeRequests"] == [{"action": "Start", "data": {"paused": "true"}}]


def test_restart_names_the_instance_that_must_go() -> None:
    always = machine("Always")
    decision = lifecycle.decide_restart("web", always, instance(), {})
    after = patch.json_patch(always, list(decision.status_patch))
    assert after["status"]["stateChangeRequests"] == [{"action": "Stop", "uid": "u1"}, {"action": "Start"}]
    assert not decision.instance_patch


def test_a_forced_restart_does_not_wait_for_the_guest() -> None:
    running = instance(terminationGracePeriodSeconds=180)
    decision = lifecycle.decide_restart("web", machine("Always"), running, {"gracePeriodSeconds": 0})
    assert patch.json_patch(running, list(decision.instance_patch))["spec"]["terminationGracePeriodSeconds"] == 0


def test_two_wishes_at_a_time_are_refused_but_a_stop_goes_first() -> None:
    pending = machine("Manual", stateChangeRequests=[{"action": "Start"}])
    assert code_of(lifecycle.decide_restart, "web", pending, instance(), {}) == 500
    decision = lifecycle.decide_stop("web", pending, instance(), {})
    after = patch.json_patch(pending, list(decision.status_patch))
    assert after["status"]["stateChangeRequests"] == [{"action": "Stop", "uid": "u1"}]


@pytest.mark.parametrize(
    ("call", "arguments", "code"),
    [
        (lifecycle.decide_start, ("web", None, None, {}), 404),
        (lifecycle.decide_start, ("web", machine("Always"), instance(), {}), 409),
        (lifecycle.decide_start, ("web", machine("Always"), None, {}), 409),
        (lifecycle.decide_stop, ("web", machine("Halted"), None, {}), 409),
        (lifecycle.decide_stop, ("web", machine("Always"), None, {"gracePeriod": -1}), 400),
        (lifecycle.decide_restart, ("web", machine("Halted"), None, {}), 409),
        (lifecycle.decide_restart, ("web", machine("Always"), instance(), {"gracePeriodSeconds": 5}), 400),
        (lifecycle.decide_pause, ("web", instance("Scheduling"), {}), 409),
        (lifecycle.decide_pause, ("web", instance(livenessProbe={"tcpSocket": {"port": 1}}), {}), 403),
        (lifecycle.decide_unpause, ("web", instance(), {}), 409),
        (lifecycle.decide_soft_reboot, ("web", instance()), 409),
        (lifecycle.decide_reset, ("web", instance("Succeeded")), 400),
        (lifecycle.decide_console, ("web", instance("Scheduling")), 400),
        (lifecycle.decide_console, ("web", instance("Failed")), 409),
        (lifecycle.decide_vnc, ("web", instance(domain={"devices": {"autoattachGraphicsDevice": False}})), 400),
        (lifecycle.decide_guest_information, ("web", None, "guestosinfo"), 500),
        (lifecycle.decide_port_forward, ("web", instance(), 22), 400),
        (lifecycle.decide_migrate, ("web", machine("Always"), instance("Scheduling"), {"dryRun": ["All"]}), 409),
    ],
)
def test_what_cannot_be_done_is_refused(call: Any, arguments: tuple[Any, ...], code: int) -> None:
    assert code_of(call, *arguments) == code


def test_a_stream_goes_to_the_agent_only_when_the_guest_runs() -> None:
    decision = lifecycle.decide_console("web", instance())
    assert decision.streams
    assert decision.agent == "console"
    running = instance()
    running["status"]["interfaces"] = [{"ipAddress": "10.128.0.5"}]
    assert lifecycle.decide_port_forward("web", running, 53, "udp").agent == "portforward/53/udp"


def test_a_plugged_volume_comes_out_again_as_it_went_in() -> None:
    before = machine("Always")
    source = {"persistentVolumeClaim": {"claimName": "data"}}
    options = {"name": "extra", "disk": {"disk": {"bus": "scsi"}}, "volumeSource": source}
    added = patch.json_patch(before, list(lifecycle.decide_add_volume("web", before, options).machine_patch))
    spec = added["spec"]["template"]["spec"]
    assert spec["volumes"] == [{"name": "extra", "persistentVolumeClaim": {"claimName": "data", "hotpluggable": True}}]
    assert code_of(lifecycle.decide_add_volume, "web", added, options) == 409
    removal = lifecycle.decide_remove_volume("web", added, {"name": "extra"})
    assert patch.json_patch(added, list(removal.machine_patch))["spec"]["template"]["spec"]["volumes"] == []
    assert options["volumeSource"] == {"persistentVolumeClaim": {"claimName": "data"}}


def test_a_dry_run_says_so() -> None:
    assert lifecycle.decide_start("web", machine("Halted"), None, {"dryRun": ["All"]}).dry_run
