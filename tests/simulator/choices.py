"""What a schedule is: a list of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random


class Choice(NamedTuple):
    """One question and its answer."""

    options: int
    chosen: int
    what: str


class Choices:
    """Answers questions from a list, and beyond its end with 0, or at random.

    At most `faults` questions of what goes wrong are answered with anything but 0; the others are not asked.
    """

    def __init__(self, given: Sequence[int], *, faults: int, random: Random | None = None, often: float = 0.15) -> None:
        self.trail: list[Choice] = []
        self._given = given
        self._faults = faults
        self._random = random
        self._often = often

    def turn(self, options: int) -> int:
        """Choose who goes on, of so many; 0: whoever went before, if it can."""
        return self._choose(options, "turn", 0.5)

    def fault(self, kinds: Sequence[str]) -> str:
        """Choose what goes wrong; the first of the kinds is nothing."""
        if self._faults <= 0 or len(kinds) == 1:
            return kinds[0]
        kind = kinds[self._choose(len(kinds), "fault", self._often)]
        self._faults -= kind != kinds[0]
        return kind

    def _choose(self, options: int, what: str, often: float) -> int:
        if options == 1:
            return 0
        if len(self.trail) < len(self._given):
            chosen = min(self._given[len(self.trail)], options - 1)
        elif self._random is not None and self._random.random() < often:
            chosen = self._random.randrange(options)
        else:
            chosen = 0
        self.trail.append(Choice(options, chosen, what))
        return chosen

    def numbers(self) -> list[int]:
        """Return the answers, without the zeros at the end."""
        numbers = [choice.chosen for choice in self.trail]
        while numbers and not numbers[-1]:
            numbers.pop()
        return numbers
