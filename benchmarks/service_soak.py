"""A service under twice the load that it can take, from callers that misbehave.

    python -m benchmarks.service_soak --url http://127.0.0.1:8000 --seconds 60

Start the service first, with a `--max-queue` near its `--max-slots`. One request in five hangs up
early; others read slowly or send invalid bodies. Each answer to a seed must equal the answer from
before the load. The exit status is not 0 if an answer is wrong or missing, if slots are held at the
end, or, with the `--pid` of the service, if its resident memory grew after the first tenth of the
time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

from latentwire import ApiError, AsyncClient, LatentwireError

NUM_SEEDS = 8
RUBBISH = [
    b"",
    b"{",
    b"[" * 5000,
    b'{"task": 1}',
    b'{"task": "\\ud800"}',
    b"\xff\xfe",
    b"x" * 300_000,
]
# Reserves of the allocator and the interpreter are no leak.
_SLACK_MB = 48.0
_SAMPLES = 20


class Soak:
    """One run: its requests and their outcomes."""

    def __init__(self, url: str, max_new_tokens: int) -> None:
        self.url = url
        self.max_new_tokens = max_new_tokens
        self.outcomes: Counter[str] = Counter()
        self.expected: dict[int, tuple[int, ...]] = {}

    async def learn(self) -> None:
        """Get the answer to each seed before the load."""
        async with AsyncClient(self.url) as client:
            for seed in range(NUM_SEEDS):
                self.expected[seed] = await self.plan(client, seed)

    async def plan(self, client: AsyncClient, seed: int) -> tuple[int, ...]:
        """Return the tokens of one plan."""
        plan = await client.plan_latent(
            f"Task {seed}", k=4, seed=seed, max_new_tokens=self.max_new_tokens
        )
        return plan.token_ids

    async def call(self, end: float, rng: random.Random) -> None:
        """Send requests, as one caller, until the end."""
        async with (
            AsyncClient(self.url, max_retries=0, timeout_s=120) as client,
            httpx.AsyncClient(base_url=self.url, timeout=120) as http,
        ):
            while time.monotonic() < end:
                kind = rng.choices(("whole", "slow", "leaves", "rubbish"), (5, 2, 2, 1))[0]
                try:
                    outcome = await self.one(kind, client, http, rng)
                except ApiError as error:
                    outcome = error.code
                    await asyncio.sleep(min(error.retry_after_s or 0, 0.2))
                except (LatentwireError, httpx.RequestError) as error:
                    outcome = f"unanswered: {type(error).__name__}"
                self.outcomes[outcome] += 1

    async def one(
        self, kind: str, client: AsyncClient, http: httpx.AsyncClient, rng: random.Random
    ) -> str:
        """Send one request of a kind; return its outcome."""
        seed = rng.randrange(NUM_SEEDS)
        if kind == "rubbish":
            headers = {"Content-Type": "application/json"}
            content = rng.choice(RUBBISH)
            answer = await http.post("/plan_latent", content=content, headers=headers)
            return "refused" if answer.status_code in (413, 422) else f"wrong: {answer.status_code}"
        if kind == "whole":
            return self.judge(seed, await self.plan(client, seed))
        stream = client.stream_plan_latent(
            f"Task {seed}", k=4, seed=seed, max_new_tokens=self.max_new_tokens
        )
        leave_after = rng.randrange(self.max_new_tokens) if kind == "leaves" else None
        async with stream:
            async for step in stream:
                if step.index == leave_after:
                    return "left"
                await asyncio.sleep(0.005)
            return self.judge(seed, stream.plan.token_ids)

    def judge(self, seed: int, token_ids: tuple[int, ...]) -> str:
        """Compare an answer with that from before the load."""
        return "right" if token_ids == self.expected[seed] else "wrong: tokens"


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def watch_memory(pid: int | None, seconds: float) -> list[float]:
    """Sample a process's resident memory, in MB; the first sample is after a tenth of the time."""
    if pid is None:
        return []
    await asyncio.sleep(seconds / 10)
    samples = [resident_mb(pid)]
    for _ in range(_SAMPLES):
        await asyncio.sleep(seconds * 0.9 / _SAMPLES)
        samples.append(resident_mb(pid))
    return samples


async def slots_held(url: str) -> float:
    async with httpx.AsyncClient(base_url=url) as http:
        for _ in range(100):
            text = (await http.get("/metrics")).text
            held = sum(
                float(line.split()[-1])
                for line in text.splitlines()
                if line.startswith(("latentwire_requests_running ", "latentwire_requests_waiting "))
            )
            if held == 0:
                break
            await asyncio.sleep(0.1)
    return held


async def run(args: argparse.Namespace) -> int:
    soak = Soak(args.url, args.max_new_tokens)
    await soak.learn()
    async with AsyncClient(args.url) as client:
        limits = (await client.info()).limits
    num_callers = 2 * (limits.max_slots + limits.max_queue)
    end = time.monotonic() + args.seconds
    watching = asyncio.create_task(watch_memory(args.pid, args.seconds))
    await asyncio.gather(*(soak.call(end, random.Random(n)) for n in range(num_callers)))
    memory = await watching
    held = await slots_held(args.url)
    bad = sum(n for name, n in soak.outcomes.items() if name.startswith(("wrong", "unanswered")))
    bad += soak.outcomes["internal"] + soak.outcomes["latent-invalid"]
    result = {
        "seconds": args.seconds,
        "callers": num_callers,
        "outcomes": dict(soak.outcomes),
        "held": held,
        "resident_mb": [round(value, 1) for value in memory],
    }
    print(json.dumps(result))
    has_grown = bool(memory) and memory[-1] > memory[0] + _SLACK_MB
    return 1 if bad or held or has_grown or not soak.outcomes["right"] else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--pid", type=int)
    sys.exit(asyncio.run(run(parser.parse_args())))
