"""A planner sends its plan to an actor as a latent: what does the actor read in it?

The planner plans each task and keeps its hidden states. The actor gets them as a part of a message,
through a bridge, and repeats the message. It is asked again with the plan's text, with nothing, and
with the latent of another task, so that one sees what the latent alone carries.

    latentwire serve --model demo --bridge examples/bridges/demo
    python examples/two_agents.py --actor http://127.0.0.1:8000

`make demo-agents` does both.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentwire import Client, PlanLatent
from latentwire.protocol import BridgeInfo

Message = Mapping[str, Any]


def main() -> None:
    """Run the two agents on some tasks."""
    args = parse()
    with Client(args.planner or args.actor) as planner, Client(args.actor) as actor:
        actor.wait_ready(args.wait)
        bridge = fitted_bridge(actor, args.bridge)
        tasks = read_tasks(args.tasks, args.num_tasks)
        plans = [
            planner.plan_latent(task, max_new_tokens=args.max_new_tokens, seed=index)
            for index, task in enumerate(tasks)
        ]
        losses: dict[str, list[float]] = {}
        for index, (task, plan) in enumerate(zip(tasks, plans, strict=True)):
            print(f"\n{'=' * 78}\nTask: {task}")
            show("The planner's plan", plan.plan)
            other = plans[(index + 1) % len(plans)]
            for name, messages in messages_of(bridge, plan, other).items():
                reply = actor.plan_latent(
                    messages=messages, max_new_tokens=args.max_new_tokens, do_sample=False, k=0
                )
                loss = loss_of(actor, messages, plan)
                losses.setdefault(name, []).append(loss)
                show(f"The actor, given {name} ({loss:.2f} nats per token of the plan)", reply.plan)
    print(f"\n{'=' * 78}\nMean nats per token of the planner's plan; less is better:")
    for name, values in losses.items():
        print(f"  {name:28} {sum(values) / len(values):.2f}")
    print(
        "The latent carries something of the plan as far as it beats the latent of another task.\n"
        "That shows what the actor can read, not yet that it decides better by it."
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actor", default="http://127.0.0.1:8000", help="service with a bridge")
    parser.add_argument("--planner", help="service of the planner; default: the actor's")
    parser.add_argument("--bridge", help="name of the bridge; default: the one that was fitted")
    parser.add_argument("--tasks", type=Path, default=Path(__file__).with_name("tasks.jsonl"))
    parser.add_argument("--num-tasks", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--wait", type=float, default=300, help="seconds until the service is up")
    return parser.parse_args()


def fitted_bridge(actor: Client, name: str | None) -> BridgeInfo:
    """Choose a bridge with the message that it was fitted with."""
    bridges = [bridge for bridge in actor.info().bridges if bridge.prompt is not None]
    for bridge in bridges:
        if name in (None, bridge.name):
            return bridge
    names = ", ".join(bridge.name for bridge in bridges) or "none"
    raise SystemExit(f"the actor has no fitted bridge {name or ''}; it has: {names}")


def read_tasks(path: Path, number: int) -> list[str]:
    """Read the first tasks of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["task"] for line in lines if line][:number]


def messages_of(
    bridge: BridgeInfo, plan: PlanLatent, other: PlanLatent
) -> dict[str, Sequence[Message]]:
    """Return what the actor is given: the same message around four contents."""
    contents: dict[str, list[Any]] = {
        "the latent": [plan.as_part(bridge.name)],
        "the text": [{"type": "text", "text": plan.plan}],
        "nothing": [],
        "another task's latent": [other.as_part(bridge.name)],
    }
    assert bridge.prompt is not None
    before, after = (
        {"type": "text", "text": text} for text in (bridge.prompt.before, bridge.prompt.after)
    )
    return {
        name: [{"role": "user", "content": [before, *content, after]}]
        for name, content in contents.items()
    }


def loss_of(actor: Client, messages: Sequence[Message], plan: PlanLatent) -> float:
    """Return how unlikely the actor finds the planner's plan, in nats per token."""
    scored = actor.plan_latent(messages=messages, plan=plan.plan, k=0)
    assert scored.logprob is not None
    return -scored.logprob / len(scored.token_ids)


def show(title: str, text: str) -> None:
    """Print a text below its title."""
    lines = text.strip().splitlines() or ["(nothing)"]
    print(f"\n{title}:")
    for line in lines:
        print(textwrap.fill(line, 78, initial_indent="    ", subsequent_indent="    "))


if __name__ == "__main__":
    main()
