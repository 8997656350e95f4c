"""Two agents in LangGraph, over OpenAI's API: the actor reads the planner's latent, not its text.

Start `latentwire serve --model demo --bridge examples/bridges/demo` first, or give the address of
another service with `--url`. Without a bridge that was fitted, a model reads little in a latent.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph
from openai import OpenAI


class Conversation(TypedDict, total=False):
    """The state of the graph: what the agents have said so far."""

    task: str
    plan: str
    latent: dict[str, Any]
    reply: str


def build_graph(client: OpenAI, model: str, max_tokens: int) -> Any:
    """Return a graph with a planner and an actor.

    Args:
        client: of a latentwire service.
        model: id of the served model.
        max_tokens: of each answer.
    """

    def complete(content: Any, **extra: Any) -> Any:
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": content}],
            max_tokens=max_tokens,
            temperature=0,
            extra_body=extra,
        )
        return answer.choices[0].message

    def planner(state: Conversation) -> Conversation:
        task = f"Please provide a general plan to solve this task.\nThe task is: {state['task']}"
        message = complete(task, latent={})
        return {"plan": message.content, "latent": message.latent}

    def actor(state: Conversation) -> Conversation:
        request = {"type": "text", "text": "Repeat the message: "}
        return {"reply": complete([request, state["latent"]]).content}

    graph = StateGraph(Conversation)
    graph.add_node("planner", planner)
    graph.add_node("actor", actor)
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "actor")
    graph.add_edge("actor", END)
    return graph.compile()


def main(args: list[str] | None = None) -> None:
    """Run the graph for one task and print what each agent said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service")
    parser.add_argument("--api-key", default="none", help="one of the service's keys")
    parser.add_argument("--task", default="Clean the kettle", help="what to plan")
    parser.add_argument("--max-tokens", type=int, default=64, help="of each answer")
    given = parser.parse_args(args)
    with OpenAI(base_url=f"{given.url}/v1", api_key=given.api_key) as client:
        model = client.models.list().data[0].id
        graph = build_graph(client, model, given.max_tokens)
        state = graph.invoke({"task": given.task})
    rows, width = state["latent"]["hidden_state"]["shape"]
    lines = [
        f"planner: {state['plan']}",
        f"latent:  {rows} rows of {width} values",
        f"actor:   {state['reply']}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
