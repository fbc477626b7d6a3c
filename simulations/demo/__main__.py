"""The main job, end to end, on five real nodes on loopback: see README.

1. five nodes, one of which lies; 2. a training job from a peer client that runs no node; 3. the result published;
4. its publisher killed, and the held-out digits predicted by those that are left; 5. what happened.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from simulations.demo.report import ACCURACY_AIM, Findings, draw_losses, show
from simulations.digits import MLP, Digits, write_digits
from simulations.swarm import CommandFailed, NodeProcess, Swarm, celluler, celluler_events, open_swarm

NAMES = ("alice", "bob", "carol", "dave", "mallory")
LIAR = "mallory"
LIES = ("-m", "simulations.attacks.node", "--attack", "scale:-1000")
ROUNDS = 15
MEAN_ROUNDS = 5
JOB_S = 150.0
OUT = Path("demo-out")


class Demo:
    """One run of the demo; `findings` fills as it goes."""

    def __init__(self, swarm: Swarm, console: Console) -> None:
        self.swarm, self.console, self.findings = swarm, console, Findings(liar=f"{LIAR}: sends its update × −1000")
        self.client_home = swarm.folder / "client"
        self.client_home.mkdir()
        celluler("init", "--nickname", "client", home=self.client_home)

    def run(self) -> Findings:
        findings = self.findings
        with findings.phase("start five nodes"):
            self.start_nodes()
        digits = write_digits(self.client_home)
        with findings.phase("train by rule nk"):
            job = self.train(digits, "nk", ROUNDS)
        self.note_training(job)
        with findings.phase("train by the plain mean"):
            mean_job = self.train(digits, "mean", MEAN_ROUNDS)
        findings.mean_accuracy = self.predict(mean_job["result"]["model"], digits, self.swarm.nodes[:1])
        with findings.phase("resolve it and count its holders"):
            self.await_replicas(findings.model)
        self.note_traffic(job["id"])
        with findings.phase("kill the publisher and predict"):
            self.kill_publisher(job)
            findings.accuracy = self.predict(findings.model, digits, self._honest())
        self.judge()
        return findings

    # --- the steps -------------------------------------------------------------------------------------------------

    def start_nodes(self) -> None:
        first = self.swarm.start(NAMES[0])
        self.say(f"{NAMES[0]} is up at {first.address}")
        for name in NAMES[1:]:
            program = {"program": LIES} if name == LIAR else {}
            self.swarm.launch(name, join=[first.address], **program)
        for node in self.swarm.nodes[1:]:
            self.swarm.await_ready(node)
            self.say(f"{node.name} has joined" + (" (it will lie)" if node.name == LIAR else ""))

    def train(self, digits: Digits, rule: str, rounds: int) -> dict[str, Any]:
        """Submit by the peer client and narrate until the job has ended; returns it as its coordinator tells it."""
        architecture, spec = self.client_home / "mlp.json", self.client_home / f"{rule}.json"
        architecture.write_text(json.dumps(MLP))
        spec.write_text(json.dumps(job_spec(rule, rounds)))
        self.say(f"submitting a job of {rounds} rounds by rule {rule}")
        files = ("--data", str(digits.train), "--architecture", str(architecture))
        losses, job = self.findings.losses.setdefault(rule, []), ""
        for event in self.client_events("job", "submit", str(spec), *files, "--follow"):
            job = job or event["id"]
            if "loss" in event.get("metrics", {}) and "cursor" in event:
                losses.append(event["metrics"]["loss"])
                self.say(f"round {event['metrics']['round']:.0f} of {rounds}: loss {losses[-1]:.4g}")
            elif event.get("reason"):
                self.say(f"{event['state']}: {event['reason']}")
        shown: dict[str, Any] = self.client("job", "show", job)
        if shown["state"] != "Succeeded":
            raise RuntimeError(f"the job by rule {rule} ended as {shown['state']}: {shown['reason']}")
        return shown

    def note_training(self, job: dict[str, Any]) -> None:
        findings, names = self.findings, {node.peer_id: node.name for node in self.swarm.nodes}
        findings.rounds = int(job["metrics"].get("round", 0))
        findings.excluded = [(names.get(one["peer"], one["peer"]), one["reason"]) for one in job["excluded"]]
        findings.model = job["result"]["model"] if job["result"] else ""
        findings.expect(LIAR in dict(findings.excluded), "the liar was not excluded")
        findings.expect(set(dict(findings.excluded)) <= {LIAR}, "an honest member was excluded")

    def await_replicas(self, model: str) -> None:
        shown = self.client("model", "show", model)
        self.say(f"{model} is held by {len(shown['providers'])} peers")
        self.findings.expect(len(shown["providers"]) >= 2, "nobody but the publisher holds the model")

    def note_traffic(self, job: str) -> None:
        for node in self.swarm.nodes:
            moved = {one["peer"]: one for one in node.call("job", "show", job)["traffic"]}
            own = moved.get(node.peer_id, {"sent_bytes": 0, "received_bytes": 0})
            self.findings.moved[node.name] = own["sent_bytes"], own["received_bytes"]

    def kill_publisher(self, job: dict[str, Any]) -> None:
        shown = self.client("model", "show", job["result"]["model"])
        publisher = next(node for node in self.swarm.nodes if node.peer_id == shown["author"])
        self.findings.publisher = publisher.name
        publisher.kill()
        self.say(f"{publisher.name}, which published the model, was killed")

    def predict(self, model: str, digits: Digits, nodes: Sequence[NodeProcess]) -> float:
        """The held-out digits, from the peer client, an equal share by each of these nodes."""
        names = {node.peer_id: node.name for node in self.swarm.nodes}
        inputs, outputs = self.client_home / "held-out.npy", []
        for node, share in zip(nodes, np.array_split(digits.x, len(nodes)), strict=True):
            np.save(inputs, share)
            asked = ("run", model, str(inputs), "--join", node.address, "--peer", node.peer_id)
            answer = celluler(*asked, home=self.client_home, timeout_s=JOB_S)
            outputs.append(np.asarray(answer["outputs"], dtype=np.float32))
            self.findings.served_by.setdefault(model, []).append(names[answer["peer"]])
        return digits.accuracy(np.concatenate(outputs))

    def judge(self) -> None:
        findings = self.findings
        findings.expect((findings.accuracy or 0) >= ACCURACY_AIM, f"accuracy below {ACCURACY_AIM}")
        findings.expect((findings.mean_accuracy or 0) < (findings.accuracy or 0), "the mean did as well as rule nk")
        findings.expect(findings.rounds == ROUNDS, f"{findings.rounds} rounds instead of {ROUNDS}")
        served_by = findings.served_by.get(findings.model, [])
        findings.expect(findings.publisher not in served_by, "the dead publisher answered")
        honest = {node.name for node in self._honest()}
        findings.expect(set(served_by) == honest, "not every honest node that is left has served")

    # --- tools -----------------------------------------------------------------------------------------------------

    def client(self, *arguments: str) -> Any:
        """A command of the peer client: its own home, no node, joined by whoever lives."""
        return celluler(*arguments, *self._joins(), home=self.client_home, timeout_s=JOB_S)

    def client_events(self, *arguments: str) -> Iterator[dict[str, Any]]:
        return celluler_events(*arguments, *self._joins(), home=self.client_home, timeout_s=JOB_S)

    def _joins(self) -> list[str]:
        return [part for node in self._honest() for part in ("--join", node.address)]

    def _honest(self) -> list[NodeProcess]:
        """Those alive; the others no longer talk to whom they have proof against."""
        return [node for node in self.swarm.nodes if node.process.poll() is None and node.name != LIAR]

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)


def job_spec(rule: str, rounds: int) -> dict[str, Any]:
    return {
        "apiVersion": "celluler/v1",
        "kind": "TrainJob",
        "name": f"digits-{rule}",
        "model": f"client/digits-untrained-{rule}:1.0.0",
        "data": {"partition": "iid"},
        "train": {
            "rounds": rounds,
            "inner_steps": 20,
            "batch": 32,
            "learning_rate": 0.2,
            "optimizer": "sgd",
            "aggregator": rule,
        },
        "resources": {"peers": {"min": len(NAMES), "max": len(NAMES)}},
        "policy": {"deadline": "10m"},
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the findings as one document on stdout")
    options = parser.parse_args()
    console = Console(stderr=options.json)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background deaf to it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="celluler-demo-"))
    demo = None
    try:
        with open_swarm(folder) as swarm:
            demo = Demo(swarm, console)
            findings = demo.run()
    except KeyboardInterrupt:
        console.print("interrupted; everything is stopped and removed")
        return 130
    except (CommandFailed, RuntimeError, subprocess.TimeoutExpired) as error:
        console.print(str(error), highlight=False, markup=False, style="red")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    OUT.mkdir(exist_ok=True)
    draw_losses(findings.losses, OUT / "loss.png")
    if options.json:
        print(json.dumps(findings.document()))
    show(findings, console)
    console.print(f"the loss curve is drawn in {OUT / 'loss.png'}")
    for failure in findings.failures:
        console.print(f"FAILED: {failure}", style="red")
    return 1 if findings.failures else 0


if __name__ == "__main__":
    sys.exit(main())
