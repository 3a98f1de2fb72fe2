"""What a proof answers, and the dated page that keeps it. Pure but for `Outcome.write`."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
from stead.benchmarks.figures import machine


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """What the user asked for: how often, and from which seed everything random is drawn."""

    n: int
    seed: int = 1


class Outcome(msgspec.Struct, kw_only=True):
    """`failures` are sentences that say what was broken and how to see it; none = proven for this run."""

    name: str
    n: int
    seed: int
    facts: dict[str, str]
    failures: list[str] = msgspec.field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether everything held, the control included."""
        return not self.failures

    def as_page(self, day: str) -> str:
        """The page for people."""
        lines = [
            f"# {self.name} ({day})", "", f"Command: `stead prove {self.name} --n {self.n} --seed {self.seed}`", "",
            f"Machine: {machine()}", "", *(f"- {key}: {value}" for key, value in self.facts.items()), "",
            f"{'PASSED' if self.passed else 'FAILED'} ({self.seconds:.0f} s)",
        ]  # fmt: skip
        if self.failures:
            lines += ["", *(f"- {failure}" for failure in self.failures[:50])]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> Path:
        """Keep the page in `folder`, under the day of the run; a later run of that day replaces it. Raises OSError."""
        day = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{day}-{self.name}.md"
        path.write_text(self.as_page(day), encoding="utf-8")
        return path
