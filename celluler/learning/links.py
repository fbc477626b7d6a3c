"""Between which members inputs or results did not get through, over the last rounds. Pure; outlives a height.

A fault is of a link, so it counts for both ends. Whoever has faults with more than 2b others has one with more than b
honest ones, for which no liars are needed: it is no use to the run just now. Two rounds are needed for a link to count,
so that one crash or one storm costs nobody anything.
"""

from __future__ import annotations

WINDOW_ROUNDS = 32
FAULTY_ROUNDS = 2


class Links:
    def __init__(self) -> None:
        self._rounds: dict[int, dict[int, set[int]]] = {}
        """By member and counterpart: in which rounds."""

    def note(self, round_number: int, one: int, other: int) -> None:
        """In this round something did not get from one to the other."""
        if one == other:
            return
        for place, counterpart in ((one, other), (other, one)):
            rounds = self._rounds.setdefault(place, {}).setdefault(counterpart, set())
            rounds.add(round_number)
            rounds -= {at for at in rounds if at <= round_number - WINDOW_ROUNDS}

    def counterparts(self, place: int, round_number: int) -> int:
        """With how many others a member has a faulty link, as of this round."""
        return sum(
            sum(at > round_number - WINDOW_ROUNDS for at in rounds) >= FAULTY_ROUNDS
            for rounds in self._rounds.get(place, {}).values()
        )

    def forget(self, place: int) -> None:
        """It starts anew."""
        self._rounds.pop(place, None)
        for counterparts in self._rounds.values():
            counterparts.pop(place, None)
