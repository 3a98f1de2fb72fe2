"""Laws of the agent's rules, over every order of events that hypothesis can think of."""

from __future__ import annotations

from itertools import product

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stead.agent.policy import (
    ALIVE,
    Call,
    Situation,
    Stage,
    Step,
    decide_call,
    decide_step,
    final_phase,
)
from stead.hypervisor.contract import State, StopReason

FLAGS = (
    "deleting", "working", "cancelled", "starting", "started_before", "held_back", "shutdown_due", "grace_over",
    "space_returned", "agent_connected", "acpi", "frozen", "moving", "moved",
)  # fmt: skip

situations = st.builds(
    Situation,
    stage=st.sampled_from(Stage),
    state=st.none() | st.sampled_from(State),
    reason=st.sampled_from(StopReason),
    **{flag: st.booleans() for flag in FLAGS},
)


@given(situations)
@settings(max_examples=2000)
def test_every_situation_has_a_safe_step(situation: Situation) -> None:
    step = decide_step(situation)
    alive = situation.state in ALIVE
    if step is Step.BRING_UP:
        assert not alive
        assert not situation.working
        assert not situation.started_before
        assert situation.stage is Stage.NEW
        assert not situation.deleting
    if situation.moving or situation.moved:
        assert step in (Step.WAIT, Step.LEAVE), "a machine that moves is neither ended nor judged here"
    if step is Step.LEAVE:
        assert situation.moved
    if step in (Step.STOP, Step.SHUT_DOWN, Step.RESUME):
        assert alive
        assert not situation.working
    if step is Step.SHUT_DOWN:
        assert situation.deleting
    if step is Step.STOP:
        assert situation.deleting or situation.stage is Stage.ENDED
    if step is Step.CANCEL:
        assert not situation.starting
    if step is Step.RELEASE:
        assert not alive
        assert situation.deleting
        assert situation.stage is Stage.ENDED
    if step is Step.FINALIZE:
        assert situation.stage is Stage.RELEASED
        assert situation.deleting


@given(situations, st.sampled_from(Call))
@settings(max_examples=2000)
def test_no_call_reaches_a_machine_that_is_off_starting_or_ending(situation: Situation, call: Call) -> None:
    verdict = decide_call(call, situation)
    if verdict.allowed:
        assert situation.state in ALIVE
        assert situation.stage is Stage.STARTED
        assert not situation.working
        assert not situation.moving
        assert not situation.deleting or call is Call.UNFREEZE
        if call is Call.PAUSE:
            assert situation.state is not State.PAUSED
        if call is Call.UNPAUSE:
            assert situation.state is State.PAUSED
        if call in (Call.FREEZE, Call.UNFREEZE):
            assert situation.agent_connected
    else:
        assert verdict.reason
        assert verdict.message


def test_final_phases_follow_why_the_run_ended() -> None:
    for reason, acpi in product(StopReason, (True, False)):
        assert final_phase(reason, acpi, ran=True) in ("Succeeded", "Failed")
    assert final_phase(StopReason.SHUTDOWN, True, ran=True) == "Succeeded"
    assert final_phase(StopReason.CRASHED, True, ran=True) == "Failed"
    assert final_phase(StopReason.DESTROYED, True, ran=True) == "Failed"
    assert final_phase(StopReason.DESTROYED, False, ran=True) == "Succeeded"
    assert final_phase(StopReason.NONE, True, ran=True) == "Failed"
    assert final_phase(StopReason.NONE, True, ran=False) == "Succeeded"


class Life(RuleBasedStateMachine):
    """A machine driven by the rules against a world that does as it likes: guests crash, people interfere."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Situation()
        self.starts = 0

    def set(self, **changes: object) -> None:
        self.now = msgspec.structs.replace(self.now, **changes)

    @rule()
    def step(self) -> None:
        step = decide_step(self.now)
        if step is Step.BRING_UP:
            self.set(working=True, cancelled=False, starting=False)
        elif step is Step.CANCEL:
            self.set(working=False, cancelled=True)
        elif step is Step.ADOPT:
            self.set(stage=Stage.STARTED)
        elif step is Step.SHUT_DOWN:
            self.set(shutdown_due=False)
        elif step is Step.STOP:
            self.set(state=State.OFF, reason=StopReason.DESTROYED)
        elif step is Step.CONCLUDE:
            self.set(stage=Stage.ENDED)
        elif step is Step.RESUME:
            self.set(state=State.RUNNING, reason=StopReason.NONE, space_returned=False)
        elif step is Step.RELEASE:
            self.set(stage=Stage.RELEASED, state=None)

    @precondition(lambda self: self.now.working and not self.now.starting)
    @rule()
    def start_begins(self) -> None:
        self.set(starting=True)

    @precondition(lambda self: self.now.working and self.now.starting)
    @rule(works=st.booleans())
    def start_ends(self, works: bool) -> None:
        self.starts += 1
        self.set(working=False, starting=False, started_before=True)
        if works:
            self.set(stage=Stage.STARTED, state=State.RUNNING, reason=StopReason.NONE)

    @precondition(lambda self: self.now.state in ALIVE)
    @rule(reason=st.sampled_from([StopReason.SHUTDOWN, StopReason.CRASHED, StopReason.DESTROYED]))
    def guest_ends(self, reason: StopReason) -> None:
        self.set(state=State.OFF, reason=reason)

    @precondition(lambda self: self.now.stage is Stage.ENDED)
    @rule()
    def somebody_starts_it(self) -> None:
        self.set(state=State.RUNNING, reason=StopReason.NONE)

    @rule()
    def deleted(self) -> None:
        self.set(deleting=True)

    @precondition(lambda self: self.now.deleting)
    @rule()
    def grace_passes(self) -> None:
        self.set(grace_over=True)

    @precondition(lambda self: not self.now.working)
    @rule()
    def agent_restarts(self) -> None:
        if self.now.stage is Stage.STARTED:
            self.set(stage=Stage.NEW)

    @invariant()
    def never_started_twice(self) -> None:
        assert self.starts <= 1

    @invariant()
    def deletion_always_comes_to_an_end(self) -> None:
        """From here, with nobody interfering and the grace period over, a few steps release everything."""
        if not self.now.deleting:
            return
        kept, starts = self.now, self.starts
        if self.now.working:
            self.set(working=False, starting=False)
        self.set(grace_over=True)
        for _ in range(6):
            self.step()
        assert self.now.stage is Stage.RELEASED
        assert decide_step(self.now) is Step.FINALIZE
        self.now, self.starts = kept, starts


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
