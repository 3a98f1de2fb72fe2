"""What may happen to a machine, and what happens next: the pure rules behind `machine.py`.

`decide_call` accepts or denies one call of an API client in a situation; `decide_step` says the one next step that
brings the host nearer to the desired object. Both are total functions of a `Situation`, so their laws can be tested
by property: a machine is never started twice, never stopped while it is being started, never paused when off, and a
deleted one always reaches RELEASED. Texts of denials are KubeVirt's (spec of its subresource API). No I/O, no clock:
time comes as facts.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from stead.hypervisor.contract import State, StopReason


class Stage(StrEnum):
    """How far this host has come with a machine."""

    NEW = "new"  # nothing of it runs because of us
    STARTED = "started"  # it was seen running, or its start succeeded
    ENDED = "ended"  # final: the run is over, resources are kept until deletion
    RELEASED = "released"  # nothing of it is left on this host


class Call(StrEnum):
    """Calls of the agent's API that change a machine."""

    PAUSE = "pause"
    UNPAUSE = "unpause"
    SOFT_REBOOT = "softreboot"
    RESET = "reset"
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"


class Step(StrEnum):
    """The next thing to do. WAIT means: nothing until something changes or a deadline passes."""

    WAIT = "wait"
    BRING_UP = "bring-up"
    CANCEL = "cancel"
    ADOPT = "adopt"
    SHUT_DOWN = "shut-down"
    STOP = "stop"
    CONCLUDE = "conclude"
    RESUME = "resume"
    RELEASE = "release"
    FINALIZE = "finalize"
    LEAVE = "leave"


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """All that the rules look at. `state` is None when the hypervisor does not know the machine."""

    stage: Stage = Stage.NEW
    state: State | None = None
    reason: StopReason = StopReason.NONE
    deleting: bool = False
    #: a bring-up is under way (preparing or starting)
    working: bool = False
    #: the bring-up has been told to give up
    cancelled: bool = False
    #: the hypervisor's start may have begun: it can no longer be given up half-way
    starting: bool = False
    #: a record says that this machine was started before (by an earlier agent process)
    started_before: bool = False
    #: not to be tried (again) yet
    held_back: bool = False
    #: an ACPI request is due (never sent, or long enough ago)
    shutdown_due: bool = True
    #: the grace period is over (or there is none)
    grace_over: bool = False
    #: storage that stopped the guest has room again
    space_returned: bool = False
    agent_connected: bool = False
    acpi: bool = True
    frozen: bool = False
    #: a live migration to another host is under way
    moving: bool = False
    #: it runs on another host: what is left of it here goes, and the instance is not ours to end
    moved: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """`allowed`, or a denial with the StatusReason and sentence that the caller sees."""

    allowed: bool
    reason: str = ""
    message: str = ""


ALIVE = (State.RUNNING, State.PAUSED, State.STOPPING)
_YES = Verdict(True)


def is_alive(situation: Situation) -> bool:
    """A process of this machine exists."""
    return situation.state in ALIVE


def decide_call(call: Call, situation: Situation) -> Verdict:
    """Accept or deny `call`. Denials are 409 Conflict, in the words that clients of KubeVirt know."""
    if situation.deleting and call is not Call.UNFREEZE:
        return Verdict(False, "Conflict", "VMI is being deleted")
    if situation.moving or situation.moved:
        return Verdict(False, "Conflict", "VMI is being migrated")
    if situation.working or not is_alive(situation) or situation.stage is not Stage.STARTED:
        return Verdict(False, "Conflict", "VMI is not running")
    paused = situation.state is State.PAUSED
    if call is Call.PAUSE:
        return Verdict(False, "Conflict", "VMI is already paused") if paused else _YES
    if call is Call.UNPAUSE:
        return _YES if paused else Verdict(False, "Conflict", "VMI is not paused")
    if call is Call.SOFT_REBOOT:
        return _decide_soft_reboot(situation, paused)
    if call in (Call.FREEZE, Call.UNFREEZE):
        return _decide_freeze(situation, paused)
    return _YES


def _decide_soft_reboot(situation: Situation, paused: bool) -> Verdict:
    if paused:
        return Verdict(False, "Conflict", "VMI is paused")
    if not situation.agent_connected and not situation.acpi:
        text = "VMI neither have the agent connected nor the ACPI feature enabled"
        return Verdict(False, "Conflict", text)
    return _YES


def _decide_freeze(situation: Situation, paused: bool) -> Verdict:
    if paused:
        return Verdict(False, "Conflict", "VMI is paused")
    if not situation.agent_connected:
        return Verdict(False, "Conflict", "VMI does not have guest agent connected")
    return _YES


def decide_step(situation: Situation) -> Step:
    """The next step. Every situation has exactly one; applying it never leads back to where it came from."""
    if situation.moved:
        return Step.LEAVE
    if situation.moving:
        return Step.WAIT
    if situation.stage is Stage.RELEASED:
        return Step.FINALIZE if situation.deleting else Step.WAIT
    if situation.working:
        give_up = situation.deleting and not situation.cancelled and not situation.starting
        return Step.CANCEL if give_up else Step.WAIT
    if situation.stage is Stage.ENDED:
        return _decide_ended(situation)
    if is_alive(situation):
        return _decide_alive(situation)
    return _decide_off(situation)


def _decide_ended(situation: Situation) -> Step:
    if is_alive(situation):
        return Step.STOP  # somebody started it at the hypervisor: the run of this instance is over
    return Step.RELEASE if situation.deleting else Step.WAIT


def _decide_alive(situation: Situation) -> Step:
    if situation.stage is Stage.NEW:
        return Step.ADOPT
    if situation.deleting:
        if situation.grace_over:
            return Step.STOP
        return Step.SHUT_DOWN if situation.shutdown_due else Step.WAIT
    if situation.state is State.PAUSED and situation.reason is StopReason.IO_ERROR and situation.space_returned:
        return Step.RESUME
    return Step.WAIT


def _decide_off(situation: Situation) -> Step:
    if situation.stage is Stage.STARTED or situation.started_before or situation.deleting:
        return Step.CONCLUDE
    return Step.WAIT if situation.held_back else Step.BRING_UP


def final_phase(reason: StopReason, acpi: bool, ran: bool) -> str:
    """`Succeeded` or `Failed` of a run that is over, by why it ended (as virt-handler judges shut-off domains).

    A guest that was destroyed although it could have been asked by ACPI has failed; one that never ran has succeeded
    in being deleted. An unknown reason (a lost host) is a failure, so that Always and RerunOnFailure restart.
    """
    if not ran:
        return "Succeeded"
    if reason in (StopReason.SHUTDOWN, StopReason.SAVED, StopReason.MIGRATED):
        return "Succeeded"
    if reason is StopReason.DESTROYED:
        return "Failed" if acpi else "Succeeded"
    return "Failed"
