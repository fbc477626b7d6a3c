"""What the demo found out, as a table on the terminal, a drawing, and a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from rich.table import Table

ACCURACY_AIM = 0.90
LABELS = {"nk": "rule nk", "mean": "plain mean"}


@dataclass(slots=True)
class Findings:
    """Filled as the demo goes.

    losses: by rule, the coordinator's training loss of each round. served_by: names of nodes by model. moved: bytes
    by node name.
    """

    accuracy: float | None = None
    mean_accuracy: float | None = None
    rounds: int = 0
    excluded: list[tuple[str, str]] = field(default_factory=list)
    liar: str = ""
    model: str = ""
    publisher: str = ""
    served_by: dict[str, list[str]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    moved: dict[str, tuple[int, int]] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Seconds of the block, under its name."""
        began = monotonic()
        try:
            yield
        finally:
            self.phases[name] = monotonic() - began

    def expect(self, holds: bool, otherwise: str) -> None:
        """Something the demo promises; what does not hold makes it fail at the end."""
        if not holds:
            self.failures.append(otherwise)

    def document(self) -> dict[str, Any]:
        return asdict(self)


def show(findings: Findings, console: Console) -> None:
    """One table of everything."""
    table = Table(title="What happened", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("held-out accuracy, rule nk", _percent(findings.accuracy))
    table.add_row("the same job and attack, plain mean", _percent(findings.mean_accuracy))
    table.add_row("rounds", str(findings.rounds))
    table.add_row("the liar", findings.liar)
    table.add_row("excluded", "\n".join(f"{name}: {reason}" for name, reason in findings.excluded) or "nobody")
    table.add_row("model", findings.model)
    table.add_row("published by, then killed", findings.publisher)
    table.add_row("predictions served by", ", ".join(findings.served_by.get(findings.model, [])))
    for name, (sent, received) in sorted(findings.moved.items()):
        table.add_row(f"moved by {name}", f"{_megabytes(sent)} sent, {_megabytes(received)} received")
    for name, seconds in findings.phases.items():
        table.add_row(name, f"{seconds:.1f} s")
    console.print(table)


def draw_losses(losses: Mapping[str, Sequence[float]], path: Path) -> None:
    """Loss by round for each rule, on a logarithmic axis: a diverging mean leaves every linear one."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=144)
    for rule, curve in losses.items():
        finite = [value for value in curve if value == value and value != float("inf")]
        axes.plot(range(1, len(finite) + 1), finite, marker="o", markersize=3, label=LABELS.get(rule, rule))
    axes.set_yscale("log")
    axes.set_xlabel("round")
    axes.set_ylabel("training loss at the coordinator")
    axes.set_title("Digits, five members, one sends its update × −1000")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _percent(value: float | None) -> str:
    return "not reached" if value is None else f"{100 * value:.1f} %"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
