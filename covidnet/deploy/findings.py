"""Conditions that were looked at, each met or not, in sentences for people."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Findings:
    """What was checked: ``(met, sentence)`` each."""

    checks: list[tuple[bool, str]] = field(default_factory=list)

    def add(self, met: bool, text: str) -> None:
        self.checks.append((bool(met), text))

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(met for met, _ in self.checks)

    def markdown(self, good: str, bad: str) -> str:
        """The verdict, then every check."""
        lines = [f"- {'met' if met else '**not met**'}: {text}" for met, text in self.checks]
        return "\n".join([good if self.passed else bad, "", *lines]) + "\n"
