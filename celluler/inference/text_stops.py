"""Texts at which answers end, applied to what a model says: to be done once, by whoever asks it."""

from __future__ import annotations

from dataclasses import replace

from celluler.inference.questions import Event, Over, Said
from celluler.inference.requests import STOP
from celluler.inference.stops import StopFilter


class TextStops:
    """All answers of one question. Tokens pass as they come; of their text what may become a stop is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        """Raises InvalidSpec for too many, too long or empty ones."""
        StopFilter(stops, "")
        self._stops = stops
        self._filters: dict[int, StopFilter[str]] = {}
        self._stopped: set[int] = set()
        self._news: list[int] = []

    def feed(self, event: Event) -> tuple[Event, ...]:
        """What is to be told instead. Of an answer that has come to a stop nothing but its end passes, with reason
        `stop`."""
        match event:
            case Said(choice=choice):
                if choice in self._stopped:
                    return ()
                passed = self._filters.setdefault(choice, StopFilter(self._stops, "")).feed(event.text)
                if passed.stopped:
                    self._stopped.add(choice)
                    self._news.append(choice)
                return (replace(event, text=passed.told),)
            case Over(choice=choice):
                if choice in self._stopped:
                    return (replace(event, reason=STOP),)
                held = self._filters[choice].end() if choice in self._filters else ""
                return (*([Said(choice, held, ())] if held else []), event)
        return (event,)

    def take(self) -> tuple[int, ...]:
        """Answers that have come to a stop since this was last asked: they are wanted no further."""
        news, self._news = tuple(self._news), []
        return news
