"""An answer that outlives whoever gives it: what was told, exactly once, and what is still to be asked when one fails.

    left(now) → legs, each asked of somebody → begin(begun), take(leg, event, now) → events for the user
                                             → somebody fails → left(now, leg) → legs to ask of others

A draw is a function of seed, choice and place, so that whoever goes on behind the tokens told so far says what the one
before would have said. Texts at which answers stop are looked for here and nowhere else, token by token, so that where
an answer ends does not depend on how its tokens came. Knows no peer and no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from celluler.errors import ProtocolViolation, Unavailable
from celluler.inference.questions import Begun, Event, Finished, Over, Question, Said
from celluler.inference.requests import CANCELLED, DEADLINE, ERROR, LENGTH, STOP
from celluler.inference.sampling import Chosen
from celluler.inference.text_stops import TextStops

LEAST_S = 0.05
"""Of a question that is asked when its time is all but up."""
SLACK_S = 1.0
"""By which a server's clock may run ahead when it says that the time is up."""


@dataclass(frozen=True, slots=True)
class Leg:
    """A question to be asked of one peer. choices: of the user's question, those that its answers are, in order."""

    question: Question
    choices: tuple[int, ...]


class Journal:
    """Of one question. begun: from which tokens all legs go on, None before the first one has begun."""

    def __init__(self, question: Question, deadline_s: float) -> None:
        """deadline_s: by the clock of every `now`."""
        self._question, self._deadline_s = question, deadline_s
        self._tokens = {choice: list(question.given) for choice in range(question.n)}
        self._generated: dict[int, int] = {}
        self._unwanted: set[int] = set()
        self._stops = TextStops(question.stop)
        self._shared = 0
        self._receipts: list[bytes] = []
        self._closed = False
        self.begun: Begun | None = None

    @property
    def over(self) -> bool:
        """All answers have ended; `close` is to be called, if it was not."""
        return len(self._generated) == self._question.n

    @property
    def said(self) -> bool:
        """Some token has been told that the user had not given."""
        return any(len(tokens) > len(self._question.given) for tokens in self._tokens.values())

    def left(self, now: float, leg: Leg | None = None) -> tuple[Leg, ...]:
        """What is to be asked: at first, or of others after `leg` has failed. Nothing when its answers are over."""
        choices = range(self._question.n) if leg is None else leg.choices
        open_ = tuple(choice for choice in choices if choice not in self._generated)
        if len(open_) > 1 and len(open_) == len(choices) and not any(map(self._told, open_)):
            return (Leg(replace(self._asked(now), n=self._question.n), open_),)
        return tuple(Leg(self._behind(choice, now), (choice,)) for choice in open_)

    def settled(self, leg: Leg) -> bool:
        """All answers of this leg have ended. Cheap: asked with every event."""
        return all(choice in self._generated for choice in leg.choices)

    def begin(self, begun: Begun) -> bool:
        """Somebody has begun. True for the first. Raises ProtocolViolation for who began from something else."""
        if self.begun is None:
            self.begun = begun
            return True
        if begun != self.begun:
            raise ProtocolViolation("began from another prompt or with another model than the peer before")
        return False

    def take(self, leg: Leg, event: Event, now: float) -> tuple[Event, ...]:
        """What of it the user is to be told. Raises Unavailable for an answer that ended as no answer ends."""
        match event:
            case Said(choice=place, tokens=tokens):
                return tuple(self._merged(leg.choices[place], tokens))
            case Over(choice=place, reason=reason, generated=generated):
                return self._ended(leg.choices[place], reason, generated, now)
            case Finished():
                self._shared += event.shared
                self._receipts += [event.receipt] if event.receipt else []
                return ()

    def unwanted(self, leg: Leg) -> tuple[int, ...]:
        """Answers of a leg, by its own count, that whoever gives them need not go on with."""
        return tuple(place for place, choice in enumerate(leg.choices) if choice in self._unwanted)

    def stop(self, choice: int) -> tuple[Event, ...]:
        """The user wants no more of this answer; of one that is over, nothing."""
        if choice in self._generated or choice not in self._tokens:
            return ()
        self._unwanted.add(choice)
        return (self._end(choice, STOP),)

    def goes_on(self, leg: Leg) -> bool:
        """It is about an answer of which something was told: what is wrong with it now is its length."""
        return len(leg.question.given) > len(self._question.given)

    def full(self, leg: Leg) -> tuple[Event, ...]:
        """No model that is asked takes more: what of this leg is not over has come to its length."""
        open_ = [choice for choice in leg.choices if choice not in self._generated]
        return tuple(event for choice in open_ for event in self._flushed(self._end(choice, LENGTH)))

    def expire(self) -> tuple[Event, ...]:
        """The time is up: all answers end."""
        open_ = [choice for choice in self._tokens if choice not in self._generated]
        return tuple(event for choice in open_ for event in self._flushed(self._end(choice, DEADLINE)))

    def close(self) -> tuple[Event, ...]:
        """The end of all, once."""
        if self._closed or not self.over or self.begun is None:
            return ()
        self._closed = True
        receipt = self._receipts[0] if len(self._receipts) == 1 else b""
        return (Finished(len(self.begun.prompt), sum(self._generated.values()), self._shared, receipt),)

    # --- what is told ------------------------------------------------------------------------------------------------

    def _merged(self, choice: int, tokens: tuple[Chosen, ...]) -> Iterator[Event]:
        """One Said of what came at once, and the end when the answer has come to one."""
        text, told, end = "", [], None
        for one in tokens:
            if choice in self._generated:
                break
            self._tokens[choice].append(one.token)
            told.append(one)
            for passed in self._stops.feed(Said(choice, one.text, (one,))):
                text += passed.text if isinstance(passed, Said) else ""
            if choice in self._stops.take():
                self._unwanted.add(choice)
                end = self._end(choice, STOP)
            elif len(self._tokens[choice]) == self._question.max_tokens:
                end = self._end(choice, LENGTH)
        if told:
            yield Said(choice, text, tuple(told))
        if end is not None:
            yield from self._flushed(end)

    def _ended(self, choice: int, reason: str, generated: int, now: float) -> tuple[Event, ...]:
        if choice in self._generated:
            return ()
        early = reason == DEADLINE and now < self._deadline_s - SLACK_S
        if early or reason in (ERROR, CANCELLED):
            raise Unavailable(f"the answer ended with {reason!r}")
        return self._flushed(self._end(choice, reason, generated))

    def _end(self, choice: int, reason: str, generated: int | None = None) -> Over:
        self._generated[choice] = len(self._tokens[choice]) if generated is None else generated
        return Over(choice, reason, self._generated[choice])

    def _flushed(self, end: Over) -> tuple[Event, ...]:
        """With the text before it that might have become a stop."""
        return self._stops.feed(end)

    # --- what is asked -----------------------------------------------------------------------------------------------

    def _told(self, choice: int) -> bool:
        return len(self._tokens[choice]) > len(self._question.given)

    def _asked(self, now: float) -> Question:
        """Of one answer, from the tokens that the first one began from; text stops are looked for here."""
        left_s = min(self._question.timeout_s, max(LEAST_S, self._deadline_s - now))
        prompt = self._question.prompt if self.begun is None else self.begun.prompt
        return replace(self._question, prompt=prompt, stop=(), timeout_s=left_s, n=1)

    def _behind(self, choice: int, now: float) -> Question:
        sampling = replace(self._question.sampling, choice=self._question.sampling.choice + choice)
        return replace(self._asked(now), sampling=sampling, given=tuple(self._tokens[choice]))
