"""Compressed latents at the receiver, against plain Hugging Face and formulas in numpy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from latentwire.compressors import COMPRESSED, CompressorError, compressor_names, make_compressor
from latentwire.number_formats import decode_rows, encode_rows
from latentwire_batch.evaluation.compression import choice, receive
from latentwire_batch.evaluation.compression.receive import CompressionScorer
from latentwire_batch.evaluation.session import TaskResult
from latentwire_batch.evaluation.statistics import sign_test
from support.batch.evaluating import Compare, Compared, latents, learned, plans, write_dataset
from support.batch.scoring_oracle import Oracle
from support.bridge_folders import SENDER_WIDTH, manifest, save
from support.live_server import LiveServer
from support.tiny_shape import HIDDEN_SIZE

Rows = npt.NDArray[np.float32]
NUM_TASKS = 5


Receive = Callable[..., Compared]


@pytest.fixture
def received(compare: Compare, dataset: Path, bridge: Path, server: LiveServer) -> Receive:
    def run(compressors: list[str], *flags: str) -> Compared:
        given = ["--bridge", str(bridge), "--url", server.url, *flags]
        return compare(dataset, compressors, *given)

    return run


@dataclass(frozen=True)
class Doubling:
    """A compressor of another package: its coefficients are half of the first row."""

    name: str = "half"
    kind: str = "half"
    k: int | None = 1
    source_width: int | None = None
    output: Any = "coefficients"
    content_hash: str = "0" * 64
    parameters: Mapping[str, Any] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", {"k": 1})

    def compress(self, rows: Rows) -> dict[str, Rows]:
        return {COMPRESSED: rows[:1] * np.float32(0.5)}

    def decompress(self, arrays: Mapping[str, Rows], num_rows: int) -> Rows:
        return np.repeat(arrays[COMPRESSED] * 2, num_rows, axis=0)


class Embedding(Doubling):
    """Input embeddings of the receiver: sums of neighbouring values of the latent."""

    def compress(self, rows: Rows) -> dict[str, Rows]:
        repeated = np.concatenate([rows, rows, rows], axis=1)
        return {COMPRESSED: np.ascontiguousarray(repeated[:2, :HIDDEN_SIZE]) * np.float32(0.1)}

    def decompress(self, arrays: Mapping[str, Rows], num_rows: int) -> Rows:
        raise CompressorError(f"has no way back from {len(arrays)} arrays to {num_rows} rows")


def make_fake(given: str, k: int | None) -> Any:
    if given == "half":
        return Doubling()
    if given == "embedding":
        return Embedding("embedding", "embedding", 2, SENDER_WIDTH, "embeddings")
    return make_compressor(given, k)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*compressor_names(), "half", "embedding"]
    monkeypatch.setattr("latentwire.compressors.spec.make_compressor", make_fake)
    monkeypatch.setattr(choice, "compressor_names", lambda: names)


def messages(oracle: Oracle) -> dict[str, Callable[[Rows], torch.Tensor]]:
    """What the receiver reads of a latent, as the documentation states it."""

    def coded(number_format: Any, rotation: int | None = 0) -> Callable[[Rows], Rows]:
        return lambda rows: decode_rows(encode_rows(rows, number_format, rotation=rotation))

    through_bridge: dict[str, Callable[[Rows], Rows]] = {
        "full": lambda rows: rows,
        "first:1": lambda rows: rows[:1],
        "mean-pool:2@int8": lambda rows: coded("int8")(
            make_compressor("mean-pool", 2).compress(rows)[COMPRESSED]
        ),
        "full@int4": coded("int4"),
        "full@int4-unrotated": coded("int4", None),
        "half:1": lambda rows: np.repeat(rows[:1], len(rows), axis=0),
    }

    def bridged(name: str) -> Callable[[Rows], torch.Tensor]:
        return lambda rows: oracle.bridged(through_bridge[name](rows))

    made = {name: bridged(name) for name in through_bridge}
    embedding = make_fake("embedding", None)
    made["embedding:2"] = lambda rows: torch.tensor(embedding.compress(rows)[COMPRESSED])
    return made


@pytest.mark.usefixtures("fakes")
def test_likelihoods_gaps_and_comparisons_are_those_of_hugging_face(
    received: Receive, bridge: Path
) -> None:
    oracle, rows, texts = Oracle(bridge), latents(NUM_TASKS), plans(NUM_TASKS)
    made = messages(oracle)
    given = [name for name in made if name != "full"]
    done = received([name.replace("half:1", "half").replace("g:2", "g") for name in given])
    assert done.status == 0, done.err
    assert [row["name"] for row in done.report["rows"]] == ["full", *given]

    def scores(name: str, latents_: list[Rows]) -> npt.NDArray[np.float64]:
        pairs = zip(latents_, texts, strict=True)
        return np.array([oracle.nll(made[name](each), text) for each, text in pairs])

    gaps = {}
    for name in made:
        row = done.row(name)
        matched, other = scores(name, rows), scores(name, [*rows[1:], rows[0]])
        assert row["matched"]["nll"] == pytest.approx(matched.mean(), abs=1e-3), name
        assert row["other"]["nll"] == pytest.approx(other.mean(), abs=1e-3), name
        gaps[name] = other - matched
        assert row["gap"]["difference"] == pytest.approx(gaps[name].mean(), abs=1e-3)
        check_counts(row["gap"], gaps[name])
        low, high = row["gap"]["interval"]
        assert low <= row["gap"]["difference"] <= high
    assert len({round(float(gap.mean()), 4) for gap in gaps.values()}) == len(gaps)
    for name in given:
        against = done.row(name)["against_full"]["gap"]
        assert against == done.row(name)["gap_against"]["full"]
        assert against["difference"] == pytest.approx((gaps[name] - gaps["full"]).mean(), abs=1e-3)
        # Wins are those of the full latent.
        check_counts(against, gaps["full"] - gaps[name])
        farther = scores(name, rows) - scores("full", rows)
        matched_against = done.row(name)["against_full"]["matched"]
        assert matched_against["difference"] == pytest.approx(farther.mean(), abs=1e-3)
        check_counts(matched_against, farther)
    embedding = done.row("embedding:2")
    assert [embedding[name] for name in ("relative_error", "cosine", "recall")] == [None] * 3
    assert done.row("full")["against_full"] == {"gap": None, "matched": None}
    nothing = [oracle.nll(torch.zeros(0, HIDDEN_SIZE), text) for text in texts]
    assert done.report["messages"]["none"]["nll"] == pytest.approx(np.mean(nothing), abs=1e-3)
    plan = [oracle.nll(oracle.embed(text), text) for text in texts]
    assert done.report["messages"]["text"]["nll"] == pytest.approx(np.mean(plan), abs=1e-3)


def check_counts(found: dict[str, Any], differences: npt.NDArray[np.float64]) -> None:
    if (np.abs(differences) < 2e-4).any():
        # Too near to zero for the two computations to agree on the sign.
        return
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    assert (found["wins"], found["losses"]) == (wins, losses)
    assert found["p"] == pytest.approx(sign_test(wins, losses))


def test_text_and_nothing_are_scored_once_and_each_latent_is_compressed_once(
    received: Receive, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentwire_batch.evaluation.receiver import Receiver

    sent, encoded = 0, 0
    score, encode_all = Receiver.score, receive._encode_all

    async def counted(self: Any, *args: Any) -> Any:
        nonlocal sent
        sent += 1
        return await score(self, *args)

    def counted_codecs(*args: Any) -> Any:
        nonlocal encoded
        encoded += 1
        return encode_all(*args)

    monkeypatch.setattr(Receiver, "score", counted)
    monkeypatch.setattr(receive, "_encode_all", counted_codecs)
    names = ["first:1", "first:2", "full@int8"]
    assert received(names).status == 0
    assert sent == NUM_TASKS * (2 + 2 * (1 + len(names)))
    # The first latent is the last task's other one as well.
    assert encoded == NUM_TASKS + 1


def test_the_report_states_everything(received: Receive, tmp_path: Path) -> None:
    done = received(["first:1"], "--html", str(tmp_path / "out.html"), "--limit", "4")
    report = done.report
    assert report["format"] == "latentwire-compression"
    assert (report["num_tasks"], report["is_complete"]) == (4, True)
    assert report["bridge"]["name"] == "mine"
    assert report["receiver"]["model"] == "tiny"
    assert report["prompt"]["before"] == "Repeat: "
    assert report["settings"] == {"k": None, "limit": 4, "seed": 0}
    page = (tmp_path / "out.html").read_text()
    assert page.count("<circle") == 2
    assert ">first:1</text>" in page
    for text in (json.dumps(report), page, done.out):
        assert str(tmp_path) not in text


def test_the_terminal_shows_tables_and_a_plot_in_80_columns(received: Receive) -> None:
    done = received(["first:1", "mean-pool:2@int8", "full@int4-unrotated"])
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80, done.out
    assert "…" not in done.out
    assert "gap, nats per token" in lines
    for letter, name in zip("abcd", ["full", "first:1", "mean-pool:2@int8"], strict=False):
        assert sum(line.startswith(f"{letter} {name} ") for line in lines) == 3


def test_a_task_that_the_service_refuses_is_left_out_of_every_row(
    compare: Compare, bridge: Path, server: LiveServer, tmp_path: Path
) -> None:
    rows = latents(5)
    long = write_dataset(tmp_path / "long.parquet", rows, plan=[*plans(4), "x" * 400])
    done = compare(long, ["first:1"], "--bridge", str(bridge), "--url", server.url)
    assert done.status == 3, done.err
    assert (done.report["num_tasks"], done.report["num_skipped"]) == (4, 1)
    expected = [
        np.linalg.norm(each[1:].astype(np.float64)) / np.linalg.norm(each.astype(np.float64))
        for each in rows[:4]
    ]
    assert done.row("first:1")["relative_error"] == pytest.approx(np.mean(expected), rel=1e-6)


def test_ctrl_c_shows_the_tasks_that_were_scored(
    received: Receive, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, num_tasks = CompressionScorer.score, 0

    async def interrupted(*args: Any) -> TaskResult:
        nonlocal num_tasks
        num_tasks += 1
        if num_tasks == 3:
            threading.Timer(0, os.kill, (os.getpid(), signal.SIGINT)).start()
        if num_tasks >= 3:
            await asyncio.sleep(60)
        return await score(*args)

    monkeypatch.setattr(CompressionScorer, "score", interrupted)
    done = received(["first:1"], "--concurrency", "1")
    assert done.status == 130, done.err
    assert done.report["is_complete"] is False
    assert 1 <= done.report["num_tasks"] <= 2
    assert done.row("first:1")["gap"]["wins"] <= 2
    num = done.report["num_tasks"]
    expected = [
        np.linalg.norm(each[1:].astype(np.float64)) / np.linalg.norm(each.astype(np.float64))
        for each in latents(NUM_TASKS)[:num]
    ]
    assert done.row("first:1")["relative_error"] == pytest.approx(np.mean(expected), rel=1e-6)


def test_the_same_seed_gives_the_same_numbers_at_any_concurrency(received: Receive) -> None:
    found = [received(["first:1"], "--concurrency", each).row("first:1") for each in ("1", "9")]
    for name in ("matched", "other"):
        assert found[0][name]["nll"] == pytest.approx(found[1][name]["nll"], abs=1e-5)


def test_embeddings_of_another_width_than_the_receivers_are_refused(
    received: Receive, tmp_path: Path
) -> None:
    folder = learned(tmp_path / "mine", output="embeddings", receiver={"hidden_size": 3})
    done = received([str(folder)])
    assert done.status == 2
    text = f"compressor pca makes input embeddings of width 3, and tiny reads width {HIDDEN_SIZE}"
    assert text in done.err
    assert done.report == {}


def test_embeddings_for_another_model_and_prompt_are_named(
    received: Receive, tmp_path: Path
) -> None:
    folder = learned(
        tmp_path / "mine",
        dim=HIDDEN_SIZE,
        output="embeddings",
        receiver={"model": "another", "hidden_size": HIDDEN_SIZE},
        prompt={"before": "Other: ", "after": ""},
    )
    done = received([str(folder)])
    assert done.status == 0, done.err
    assert "compressor pca was made for the model another, and tiny is served" in done.err
    assert "compressor pca was fitted with another text around the message" in done.err
    assert done.row("pca:4")["compressor"]["output"] == "embeddings"
    done = received([str(folder)], "--before", "Other: ", "--after", "")
    assert "another text" not in done.err


def test_a_bridge_that_is_not_loaded_is_refused_before_anything_is_measured(
    received: Receive, tmp_path: Path
) -> None:
    other = save(tmp_path / "other", manifest("mlp"))
    done = received(["first:1"], "--bridge", str(other))
    assert done.status == 2
    assert "the service has not loaded other" in done.err
    assert done.out == ""


@pytest.mark.slow
def test_an_own_replica_reads_the_messages(
    compare: Compare,
    dataset: Path,
    bridge: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    flags = ["--model", str(model), "--threads", "1", "--device", "cpu"]
    done = compare(dataset, ["first:1"], "--bridge", str(bridge), *flags)
    assert done.status == 0, done.err
    assert done.report["num_tasks"] == NUM_TASKS
