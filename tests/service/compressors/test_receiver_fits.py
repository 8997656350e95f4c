"""`latentwire fit-compressor --bridge`: messages to a tiny receiver, from rows to embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from latentwire.compressors import COMPRESSED, make_compressor
from latentwire.compressors.base import Rows
from latentwire.compressors.directory import read_compressor
from latentwire.compressors.learned_config import BridgeConfig
from latentwire.compressors.message_map import BridgeMap, RowChoice, scorer_inputs, window_factor
from latentwire_service.bridges.builtin import Receiver
from latentwire_service.bridges.directory import load_bridge
from latentwire_service.bridges.fitting.command import main as fit_bridge
from latentwire_service.compressors.fitting import gains, receiver_recipes
from latentwire_service.compressors.fitting.command import main
from latentwire_service.compressors.fitting.messages import served_ks
from latentwire_service.compressors.modules import GainScorer, MessageMixer
from latentwire_service.fitting.training import Trainer
from support.bridge_folders import loaded_model, manifest, random_state, save, write_dataset
from support.tiny_models import save_model
from support.tiny_shape import HIDDEN_SIZE

FAST = ("--device", "cpu", "--threads", "1", "--held-out", "0.3")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny receiver, a dataset for it, and bridges that were fitted to both."""
    folder = tmp_path_factory.mktemp("messages")
    save_model(folder / "tiny")
    write_dataset(folder / "out" / "data.parquet")
    for kind in ("ridge", "mlp"):
        args = [str(folder / "out"), "-o", str(folder / kind), "--model", str(folder / "tiny")]
        more = ("--kind", kind, "--steps", "2", "--intermediate-size", "32")
        assert fit_bridge([*args, *FAST, *more]) == 0
    return folder


def command(place: Path, output: Path, *more: str, bridge: str = "mlp") -> list[str]:
    return [
        *(str(place / "out"), "-o", str(output), "--model", str(place / "tiny")),
        *("--bridge", str(place / bridge), *FAST, *more),
    ]


TRAINED = ("--kind", "resampler", "--k", "4", "--steps", "4", "--check-every", "2")


def latents(place: Path) -> list[Rows]:
    column = pq.read_table(place / "out" / "data.parquet")["hidden_state"].to_pylist()
    return [np.array(rows, np.float32) for rows in column]


def manifest_of(output: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((output / "compressor.json").read_text())
    return value


@pytest.mark.parametrize("bridge", ["ridge", "mlp"])
def test_a_selector_returns_the_bridges_embeddings_of_chosen_rows(
    place: Path, tmp_path: Path, bridge: str
) -> None:
    output = tmp_path / "mine"
    more = ("--kind", "selector", "--k", "4")
    assert main(command(place, output, *more, bridge=bridge)) == 0
    made = load_bridge(place / bridge, Receiver(loaded_model().model, "tiny"))
    stated = manifest_of(output)
    assert (stated["output"], stated["dim"], stated["k"]) == ("embeddings", HIDDEN_SIZE, 4)
    assert stated["receiver"]["model"] == "tiny"
    assert stated["bridge"] == {"name": bridge, "content_hash": made.content_hash}
    assert stated["prompt"] == {"before": "Repeat the message: ", "after": ""}
    for k in (1, 3, 4):
        compressor = make_compressor(str(output), k)
        for rows in latents(place)[:5]:
            arrays = compressor.compress(rows)
            places = arrays["places"][:, 0].astype(int)
            assert len(places) == min(k, len(rows))
            np.testing.assert_allclose(arrays[COMPRESSED], made.apply(rows)[places], atol=1e-5)
            estimate = compressor.decompress(arrays, len(rows))
            assert estimate.shape == rows.shape


def test_a_message_is_decompressed_near_its_rows(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    assert main(command(place, output, "--kind", "selector", "--k", "8")) == 0
    compressor = make_compressor(str(output))
    errors = []
    for rows in latents(place):
        arrays = compressor.compress(rows)
        places = arrays["places"][:, 0].astype(int)
        kept = compressor.decompress(arrays, len(rows))[places]
        errors.append(np.linalg.norm(kept - rows[places]) / np.linalg.norm(rows[places]))
    assert np.mean(errors) < 0.5


def test_a_resampler_starts_as_the_selector_and_learns(place: Path, tmp_path: Path) -> None:
    for name, more in {
        "selector": ("--kind", "selector", "--k", "4"),
        "start": ("--kind", "resampler", "--k", "4", "--steps", "0"),
        "trained": (*TRAINED, "--learning-rate", "0.01"),
    }.items():
        assert main(command(place, tmp_path / name, *more)) == 0
    selector, start, trained = (
        make_compressor(str(tmp_path / name)) for name in ("selector", "start", "trained")
    )
    rows = latents(place)[0]
    wanted = selector.compress(rows)
    for name, array in start.compress(rows).items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-5)
    assert np.abs(trained.compress(rows)[COMPRESSED] - wanted[COMPRESSED]).max() > 1e-3
    scores = manifest_of(tmp_path / "trained")["scores"]
    assert scores.keys() == {"held_out", "full", "first_4", "message_4", "none"}
    gap = scores["message_4"]["other"] - scores["message_4"]["matched"]
    assert scores["message_4"]["gap"] == pytest.approx(gap, abs=2e-4)
    card = (tmp_path / "trained" / "README.md").read_text()
    assert f"| this compressor, 4 rows | {scores['message_4']['matched']:.2f} |" in card


def test_the_cosine_term_draws_messages_to_the_full_latent(place: Path, tmp_path: Path) -> None:
    bridge = load_bridge(place / "mlp", Receiver(loaded_model().model, "tiny"))

    def mean_cosine(output: Path) -> float:
        compressor = make_compressor(str(output))
        cosines = []
        for rows in latents(place):
            message = compressor.compress(rows)[COMPRESSED].mean(0)
            full = bridge.apply(rows).mean(0)
            norms = np.linalg.norm(message) * np.linalg.norm(full)
            cosines.append(float(message @ full / norms))
        return float(np.mean(cosines))

    trained = ("--kind", "resampler", "--k", "2", "--steps", "20", "--learning-rate", "0.01")
    for weight in ("0", "100"):
        more = (*trained, "--check-every", "20", "--cosine", weight)
        assert main(command(place, tmp_path / weight, *more)) == 0
    assert mean_cosine(tmp_path / "100") > mean_cosine(tmp_path / "0") + 0.02


@pytest.mark.parametrize("width", [HIDDEN_SIZE])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 9])
def test_numpy_mixes_as_the_torch_module_does(
    place: Path, tmp_path: Path, width: int, num_rows: int
) -> None:
    output = tmp_path / "mine"
    assert main(command(place, output, *TRAINED, "--learning-rate", "0.05")) == 0
    stated, tensors = read_compressor(output)
    bridge = load_bridge(place / "mlp", Receiver(loaded_model().model, "tiny")).module
    config = stated.config
    heads, size = config["num_heads"], config["intermediate_size"]
    assert isinstance(heads, int)
    assert isinstance(size, int)
    mixer = MessageMixer(bridge, 4, heads, size)
    stored = {name: torch.from_numpy(value) for name, value in tensors.items()}
    mixer.load_state_dict({name: stored[name] for name in mixer.state_dict()})
    rows = np.random.default_rng(num_rows).standard_normal((num_rows, width)).astype(np.float32)
    arrays = make_compressor(str(output)).compress(rows)
    places = torch.from_numpy(arrays["places"][:, 0].astype(np.int64))
    wanted = mixer(torch.from_numpy(rows), places).detach().numpy()
    np.testing.assert_allclose(arrays[COMPRESSED], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 2, 40])
def test_numpy_scores_rows_as_the_torch_module_does(num_rows: int) -> None:
    torch.manual_seed(0)
    scorer = GainScorer(6, 10)
    tensors = {f"scorer.{name}": each.numpy() for name, each in scorer.state_dict().items()}
    rows = np.random.default_rng(0).standard_normal((num_rows, 6)).astype(np.float32)
    made = RowChoice(tensors, {"4": 1.0}).scores(rows)
    with torch.no_grad():
        wanted = scorer(*map(torch.from_numpy, scorer_inputs(rows))).numpy()
    np.testing.assert_allclose(made, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [1, 2, 7])
def test_numpy_bridges_rows_as_the_torch_module_does(
    tmp_path: Path, kind: Any, window: int, num_rows: int
) -> None:
    described = manifest(kind)
    described = described.model_copy(
        update={"config": described.config.model_copy(update={"window": window})}
    )
    save(tmp_path / "b", described)
    bridge = load_bridge(tmp_path / "b", Receiver(loaded_model().model, "tiny"))
    tensors = {f"bridge.{name}": each.numpy() for name, each in random_state(described).items()}
    size = 32 if kind == "mlp" else None
    config = BridgeConfig(kind=kind, window=window, intermediate_size=size)
    width = described.source.hidden_size
    rows = np.random.default_rng(0).standard_normal((num_rows, width)).astype(np.float32)
    made = BridgeMap(tensors, config).apply(rows)
    np.testing.assert_allclose(made, bridge.apply(rows), atol=1e-5, rtol=1e-5)


def test_rows_of_the_largest_expected_gain_in_the_window_are_kept() -> None:
    # This scorer's output is the row's number: it grows with t.
    tensors = {
        "scorer.norm.weight": np.ones(4, np.float32),
        "scorer.norm.bias": np.zeros(4, np.float32),
        "scorer.up.weight": np.array([[0, 0, 0, 0, 1, 0]], np.float32),
        "scorer.up.bias": np.ones(1, np.float32),
        "scorer.out.weight": np.ones((1, 1), np.float32),
        "scorer.out.bias": np.zeros(1, np.float32),
    }
    rows = np.random.default_rng(0).standard_normal((20, 2)).astype(np.float32)
    choice = RowChoice(tensors, {"4": 2.0, "16": 1.0})
    assert choice.places(rows, 4).tolist() == [4, 5, 6, 7]
    assert choice.places(rows, 16).tolist() == list(range(16))
    assert choice.places(rows, 20).tolist() == list(range(20))
    assert choice.places(rows[:3], 4).tolist() == [0, 1, 2]
    # 10 is as near to 4 as to 16.
    assert [window_factor(choice.windows, k) for k in (1, 4, 10, 11, 99)] == [2, 2, 2, 1, 1]


def test_a_latent_without_rows_is_an_empty_message(place: Path, tmp_path: Path) -> None:
    assert main(command(place, tmp_path / "mine", *TRAINED)) == 0
    compressor = make_compressor(str(tmp_path / "mine"))
    arrays = compressor.compress(np.zeros((0, HIDDEN_SIZE), np.float32))
    assert arrays[COMPRESSED].shape == (0, HIDDEN_SIZE)
    assert compressor.decompress(arrays, 0).shape == (0, HIDDEN_SIZE)


def test_an_interrupted_fit_continues_to_the_same_compressor(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (*TRAINED, "--patience", "9")
    assert main(command(place, tmp_path / "whole", *more)) == 0
    monkeypatch.setattr(gains, "_SAVE_INTERVAL_S", 0.0)
    measured, num_measured = gains.measured_gains, []

    def counted(*args: Any) -> Any:
        num_measured.append(1)
        if len(num_measured) == 3:
            raise KeyboardInterrupt
        return measured(*args)

    output = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(gains, "measured_gains", counted)
        assert main(command(place, output, *more)) == 130
    # Two batches of gains are kept.
    num_measured[:] = [1] * 10
    step = Trainer._step
    stopped: list[int] = []

    def stop(trainer: Trainer, batch: Any) -> float:
        if trainer.state.step == 3 and not stopped:
            stopped.append(1)
            raise KeyboardInterrupt
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "_step", stop)
    monkeypatch.setattr(gains, "measured_gains", counted)
    assert main(command(place, output, *more)) == 130
    num_batches = -(-sum(1 for _ in latents(place)) * 7 // 10 // 8)
    assert len(num_measured) - 10 <= num_batches - 2 + 1
    monkeypatch.setattr(receiver_recipes, "training_gains", None)
    assert main(command(place, output, *more)) == 0
    one, other = (
        load_file(folder / "compressor.safetensors") for folder in (tmp_path / "whole", output)
    )
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_ks_are_halves_down_to_8() -> None:
    assert [served_ks(k) for k in (1, 8, 15, 16, 48)] == [[1], [8], [15], [16, 8], [48, 24, 12]]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--kind", "selector"), "--kind: selector needs --k"),
        (("--kind", "pca"), "--bridge: only for the kinds resampler and selector"),
        (("--kind", "selector", "--k", "2", "--rows", "first"), "--rows: kind selector has"),
    ],
)
def test_what_does_not_go_together_is_refused(
    place: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(place, tmp_path / "mine", *more)) == 2
    assert reason in capsys.readouterr().err


def test_a_bridge_of_another_width_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "narrow", manifest("ridge"))
    args = command(place, tmp_path / "mine", "--kind", "selector", "--k", "2")
    args[args.index("--bridge") + 1] = str(tmp_path / "narrow")
    assert main(args) == 2
    assert "--bridge: reads rows of width 24" in capsys.readouterr().err


def test_a_bridge_that_may_have_seen_the_held_out_tasks_is_named(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--kind", "selector", "--k", "2")
    assert main(command(place, tmp_path / "same", *more)) == 0
    assert "may have seen" not in capsys.readouterr().err
    assert main(command(place, tmp_path / "other", *more, "--seed", "7")) == 0
    assert "may have seen the held-out tasks" in capsys.readouterr().err
