"""`latentwire evaluate` against a real service with a tiny model."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import threading
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire.held_out import is_held_out
from latentwire_batch.evaluation import session
from latentwire_batch.evaluation.command import main
from latentwire_batch.evaluation.messages import NAMES, MessageMaker
from latentwire_batch.evaluation.samples import Pair, Sample
from latentwire_service.bridges.manifest import HeldOut
from latentwire_service.settings import Settings
from support.batch.collecting import Ended
from support.batch.evaluating import AFTER, BEFORE, latents, plans, write_dataset
from support.batch.scoring_oracle import Oracle
from support.bridge_folders import manifest, save
from support.live_server import LiveServer
from support.tiny_shape import HIDDEN_SIZE


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in report["rows"]}


def test_the_numbers_are_those_of_hugging_face(evaluate: Any, bridge: Path, tmp_path: Path) -> None:
    assert evaluate("--json", str(tmp_path / "out.json")).status == 0
    found = by_name(read(tmp_path / "out.json"))
    oracle, rows, texts = Oracle(bridge), latents(5), plans(5)
    maker = MessageMaker("mine", {"model": "sender"}, 0)

    def mean(messages: Sequence[torch.Tensor]) -> float:
        return float(np.mean([oracle.nll(*each) for each in zip(messages, texts, strict=True)]))

    def pair(index: int) -> Pair:
        return Pair(index, Sample(f"t{index}", "", texts[index], rows[index]), rows[0], "")

    def made(name: str) -> list[torch.Tensor]:
        return [oracle.bridged(maker.rows(name, pair(index))) for index in range(5)]

    expected = {
        "text": mean([oracle.embed(text) for text in texts]),
        "none": mean([torch.zeros(0, HIDDEN_SIZE)] * 5),
        "zeros": mean([oracle.bridged(np.zeros_like(each)) for each in rows]),
        "matched": mean([oracle.bridged(each) for each in rows]),
        "other": mean([oracle.bridged(each) for each in [*rows[1:], rows[0]]]),
        "shuffled": mean(made("shuffled")),
        "noise": mean(made("noise")),
    }
    for name, value in expected.items():
        assert found[name]["nll"] == pytest.approx(value, abs=1e-3), name
    assert len(set(expected.values())) == len(expected)
    # Its values are the service's own; it is neither of the others.
    assert min(abs(found["random-bridge"]["nll"] - value) for value in expected.values()) > 1e-4


def test_the_json_file_states_everything(evaluate: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert evaluate(f"--json={path}", "--seed", "3", "--limit", "4").status == 0
    report = read(path)
    assert report["format"] == "latentwire-evaluation"
    assert [row["name"] for row in report["rows"]] == list(NAMES)
    assert report["num_tasks"] == 4
    assert report["num_skipped"] == 0
    assert report["is_complete"] is True
    assert report["bridge"]["name"] == "mine"
    assert len(report["bridge"]["content_hash"]) == 64
    assert report["receiver"]["model"] == "tiny"
    assert report["sender"]["model"] == "sender"
    assert report["settings"]["seed"] == 3
    assert report["prompt"] == {"before": BEFORE, "after": AFTER}
    assert report["dataset"] == {"name": "data.parquet", "num_rows": 5}
    assert "answers" not in report
    assert str(tmp_path) not in path.read_text()
    for row in report["rows"]:
        low, high = row["nll_interval"]
        assert 0 < low <= row["nll"] <= high
        assert math.isfinite(row["nll_over_tokens"])
        if row["name"] == "matched":
            assert {row[name] for name in ("difference", "wins", "losses", "ties", "p")} == {None}
        else:
            assert row["wins"] + row["losses"] + row["ties"] == 4
            assert row["difference"] == pytest.approx(
                row["nll"] - by_name(report)["matched"]["nll"]
            )
            assert row["difference_interval"][0] <= row["difference"]
            assert 0 < row["p"] <= 1


def test_the_same_seed_gives_the_same_numbers_at_any_concurrency(
    evaluate: Any, tmp_path: Path
) -> None:
    found = []
    for name, flags in {"a": ["--concurrency", "1"], "b": ["--concurrency", "9"], "c": []}.items():
        seed = "1" if name == "c" else "0"
        path = tmp_path / f"{name}.json"
        assert evaluate("--json", str(path), "--seed", seed, *flags).status == 0
        found.append(by_name(read(path)))
    for name in NAMES:
        assert found[0][name]["nll"] == pytest.approx(found[1][name]["nll"], abs=1e-5)
    assert abs(found[0]["noise"]["nll"] - found[2]["noise"]["nll"]) > 1e-4
    assert found[0]["matched"]["nll"] == pytest.approx(found[2]["matched"]["nll"], abs=1e-5)


def test_the_terminal_shows_the_table_and_how_to_read_it(
    dataset: Path, bridge: Path, server: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(dataset), "--bridge", str(bridge), "--url", server.url]) == 0
    shown = capsys.readouterr().out
    first_words = {line.split()[0] for line in shown.splitlines() if line.strip()}
    assert set(NAMES) <= first_words, shown
    assert "Likelihood that moves does not prove that decisions move" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


def test_the_page_loads_nothing_and_has_a_plot(evaluate: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    assert evaluate("--html", str(path)).status == 0
    page = path.read_text()
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    Reader().feed(page)
    names = [tag for tag, _ in tags]
    assert "svg" in names
    assert not {"script", "img", "link", "iframe"} & set(names)
    assert not any(key in {"src", "href"} for _, attrs in tags for key in attrs)
    assert "prefers-color-scheme: dark" in page
    assert names.count("circle") == len(NAMES)
    assert "does not prove that decisions move" in page
    assert str(tmp_path) not in page


def test_only_tasks_that_the_fit_held_out_are_scored(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = manifest("ridge", held_out=HeldOut(seed=5, fraction=0.3))
    folder = save(tmp_path / "fitted", fitted)
    dataset = write_dataset(tmp_path / "data.parquet", latents(20))
    num_held_out = sum(is_held_out(f"t{i}", 5, 0.3) for i in range(20))
    assert 2 <= num_held_out < 12
    live = LiveServer(Settings(model=str(model), max_slots=4, bridge=(folder,)))
    try:
        live.wait_ready()
        start = [str(dataset), "--bridge", str(folder), "--url", live.url]
        start += ["--json", str(tmp_path / "out.json")]
        assert main(start) == 0
        report = read(tmp_path / "out.json")
        assert report["num_tasks"] == num_held_out
        assert report["split"]["seed"] == 5
        shown = " ".join(capsys.readouterr().out.split())
        assert "held out when the bridge was fitted: fraction 0.3, seed 5" in shown
        assert main([*start, "--held-out", "1"]) == 0
        assert read(tmp_path / "out.json")["num_tasks"] == 20
        assert main([*start, "--held-out", "0.5"]) == 2
        assert "takes in tasks that the bridge was fitted to" in capsys.readouterr().err
    finally:
        live.close()


def test_answers_may_be_a_column_of_the_dataset(evaluate: Any, tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.parquet", latents(3), answer=["1", None, "x"])
    flags = ["--answers", "answer", "--max-new-tokens", "2", "--json", str(tmp_path / "out.json")]
    done = evaluate(str(path), *flags)
    assert done.status == 0, done.stderr
    report = read(tmp_path / "out.json")
    assert (report["num_tasks"], report["answers"]["num_tasks"]) == (3, 2)


def test_answers_are_counted_apart(evaluate: Any, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    lines = [json.dumps({"id": f"t{i}", "answer": i}) for i in range(4)]
    answers.write_text("\n".join(lines))
    flags = ["--answers", "answer", "--answers-file", str(answers), "--max-new-tokens", "4"]
    done = evaluate("--json", str(tmp_path / "out.json"), *flags)
    assert done.status == 0, done.stderr
    report = read(tmp_path / "out.json")
    assert report["answers"]["num_tasks"] == 4
    assert [row["name"] for row in report["answers"]["rows"]] == [
        "text",
        "none",
        "matched",
        "other",
    ]
    assert all(0 <= row["accuracy"] <= 1 for row in report["answers"]["rows"])
    assert [row["name"] for row in report["rows"]] == list(NAMES)


def test_a_task_that_does_not_fit_is_set_aside(evaluate: Any, tmp_path: Path) -> None:
    long = write_dataset(tmp_path / "long.parquet", latents(5), plan=[*plans(4), "x" * 400])
    done = evaluate(str(long), "--json", str(tmp_path / "out.json"))
    assert done.status == 3
    report = read(tmp_path / "out.json")
    assert (report["num_tasks"], report["num_skipped"]) == (4, 1)


def test_a_built_in_bridge_is_named(evaluate: Any, tmp_path: Path) -> None:
    own = {"model": {"model": "tiny"}, "latent": {"layer": "last", "normed": True}}
    dataset = write_dataset(tmp_path / "own.parquet", latents(3, HIDDEN_SIZE), own)
    for name in ("embeddings", "norm", "weights"):
        done = evaluate(str(dataset), "--bridge", name, "--json", str(tmp_path / "out.json"))
        assert done.status == 0, done.stderr
        report = read(tmp_path / "out.json")
        assert report["bridge"]["name"] == name
        assert report["prompt"]["before"] == "Repeat the message: "
        assert report["num_tasks"] == 3


def test_ctrl_c_keeps_what_was_scored(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, sent = session._task, 0

    async def interrupted(*args: Any) -> session.TaskResult:
        nonlocal sent
        sent += 1
        if sent == 4:
            threading.Timer(0, os.kill, (os.getpid(), signal.SIGINT)).start()
        if sent >= 4:
            await asyncio.sleep(60)
        return await score(*args)

    monkeypatch.setattr(session, "_task", interrupted)
    done = evaluate("--json", str(tmp_path / "out.json"), "--concurrency", "1")
    assert done.status == 130
    assert "interrupted; the numbers are of" in done.stderr
    report = read(tmp_path / "out.json")
    assert report["is_complete"] is False
    assert 1 <= report["num_tasks"] < 5


@pytest.mark.slow
def test_an_own_replica_is_started_with_the_bridge(
    dataset: Path, bridge: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "out.json"
    flags = ["--model", str(model), "--threads", "1", "--device", "cpu", "--json", str(path)]
    assert main([str(dataset), "--bridge", str(bridge), *flags]) == 0
    assert read(path)["num_tasks"] == 5


def test_flags_without_effect_are_named(evaluate: Any) -> None:
    done: Ended = evaluate("--model", "demo", "--answers-file", "x.jsonl")
    assert done.status == 0
    assert "--model: no effect with --url" in done.stderr
    assert "--answers-file: no effect without --answers" in done.stderr
