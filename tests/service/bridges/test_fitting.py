"""`latentwire fit-bridge` on tiny random models: what it learns, writes, refuses and continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from latentwire_service.bridges.builtin import Receiver
from latentwire_service.bridges.directory import load_bridge
from latentwire_service.bridges.fitting.command import main
from latentwire_service.bridges.fitting.ridge import fit_ridge
from latentwire_service.bridges.manifest import read_manifest
from latentwire_service.bridges.modules import Ridge
from latentwire_service.fitting.receiver import FrozenReceiver, Scored
from latentwire_service.fitting.samples import Dataset, Sample, Split
from support.bridge_folders import loaded_model, write_dataset
from support.fits.killed_fit import killed_fit
from support.tiny_models import save_model
from support.tiny_shape import HIDDEN_SIZE

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitting")
    save_model(folder / "tiny")
    write_dataset(folder / "out" / "data.parquet")
    return folder


def command(place: Path, output: Path, *more: str) -> list[str]:
    return [
        *(str(place / "out"), "-o", str(output), "--model", str(place / "tiny")),
        *("--device", "cpu", "--held-out", "0.3", "--threads", "1", *more),
    ]


TRAINED = ("--steps", "6", "--check-every", "2", "--batch-size", "4", "--patience", "9")


@pytest.mark.parametrize("kind", ["ridge", "mlp", "interlat"])
def test_a_fitted_bridge_is_loaded_by_the_service(
    place: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine"
    assert main(command(place, output, "--kind", kind, *TRAINED)) == 0
    assert sorted(file.name for file in output.iterdir()) == [
        "README.md",
        "bridge.json",
        "bridge.safetensors",
    ]
    bridge = load_bridge(output, Receiver(loaded_model().model, "tiny"))
    assert (bridge.kind, bridge.source.model, bridge.source.layer) == (kind, "tiny", "last")
    scores = read_manifest(output).scores["held_out"]
    assert scores.keys() == {"text", "none", "matched", "other", "num_tasks"}
    card = (output / "README.md").read_text()
    assert f"| its latent, through this bridge | {scores['matched']:.2f} |" in card
    assert str(place) not in card + (output / "bridge.json").read_text()
    printed = capsys.readouterr().err
    assert f"matched {scores['matched']:.2f}" in printed
    tensors = load_file(output / "bridge.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_ridge_finds_the_linear_map(place: Path) -> None:
    receiver = FrozenReceiver(loaded_model(), "Repeat: ", "", 64)
    split = Split(Dataset.from_path(place / "out"), 0, 0.3, 64)
    for window in (1, 2):
        module = Ridge(HIDDEN_SIZE, HIDDEN_SIZE, window)
        fit_ridge(module, split.training, lambda s: receiver.aligned_embeddings(s, True), 0.01)
        for sample in split.held_out():
            made = module(torch.tensor(sample.rows)).detach()
            wanted = receiver.aligned_embeddings(sample, True)
            assert float((made - wanted).norm() / wanted.norm()) < 0.2


def test_ridge_equals_the_solution_over_all_rows_at_once(place: Path) -> None:
    receiver = FrozenReceiver(loaded_model(), "Repeat: ", "", 64)
    split = Split(Dataset.from_path(place / "out"), 0, 0.3, 64)
    module = Ridge(HIDDEN_SIZE, HIDDEN_SIZE, 1)
    fit_ridge(module, split.training, lambda s: receiver.aligned_embeddings(s, True), 10.0)
    rows = np.concatenate([sample.rows for sample in split.training()]).astype(np.float64)
    wanted = np.concatenate([receiver.aligned_embeddings(s, True) for s in split.training()])
    centred = rows - rows.mean(0)
    # The bias is the mean: it is not penalised.
    weight = np.linalg.solve(
        centred.T @ centred + 10 * np.eye(HIDDEN_SIZE), centred.T @ (wanted - wanted.mean(0))
    )
    np.testing.assert_allclose(module.weight.detach().numpy(), weight, atol=1e-3)
    np.testing.assert_allclose(module.bias.detach().numpy(), wanted.mean(0), atol=1e-3)


def test_the_receiver_scores_a_plan_as_one_at_a_time_passes_do() -> None:
    loaded = loaded_model()
    receiver = FrozenReceiver(loaded, "Repeat: ", " now.", 64)
    generator = torch.Generator().manual_seed(0)
    scored = [
        Scored(torch.randn(count, HIDDEN_SIZE, generator=generator), receiver.token_ids(plan))
        for count, plan in ((3, "alpha bravo"), (0, "x"), (9, "a longer plan than the others"))
    ]
    made = receiver.nll(scored)
    for each, loss in zip(scored, made, strict=True):
        before, after = (receiver.embed(receiver.token_ids(t)) for t in ("Repeat: ", " now."))
        inputs = torch.cat([before, each.message, after, receiver.embed(each.plan_ids)])
        logits = loaded.model(inputs_embeds=inputs[None]).logits[0, -len(each.plan_ids) - 1 : -1]
        alone = torch.nn.functional.cross_entropy(logits, torch.tensor(each.plan_ids))
        assert float(loss) == pytest.approx(float(alone), abs=1e-4)


def test_the_receiver_gets_no_gradient_and_does_not_change(place: Path, tmp_path: Path) -> None:
    before = load_file(place / "tiny" / "model.safetensors")
    assert main(command(place, tmp_path / "b", "--kind", "mlp", *TRAINED)) == 0
    after = load_file(place / "tiny" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_lowers_the_loss_on_held_out_tasks(place: Path, tmp_path: Path) -> None:
    scores = []
    for steps in ("0", "30"):
        more = ("--steps", steps, "--learning-rate", "0.003", "--check-every", "10")
        output = tmp_path / steps
        assert main(command(place, output, "--kind", "mlp", *more)) == 0
        scores.append(read_manifest(output).scores["held_out"])
    gaps = [each["other"] - each["matched"] for each in scores]
    assert min(gaps[1], 1.2) > min(gaps[0], 1.2) or scores[1]["matched"] < scores[0]["matched"]


def test_the_same_seed_gives_the_same_bridge(place: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(command(place, tmp_path / name, "--kind", "mlp", *TRAINED)) == 0
    one, other = (load_file(tmp_path / name / "bridge.safetensors") for name in ("a", "b"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_killed_fit_continues_to_the_same_bridge(place: Path, tmp_path: Path) -> None:
    more = ("--kind", "mlp", "--steps", "24", "--check-every", "2", "--patience", "99")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(place, whole, *more)) == 0
    state = killed_fit(killed, "fit-bridge", *command(place, killed, *more))
    assert not (killed / "bridge.json").exists()
    assert main(command(place, killed, *more)) == 0
    assert not state.exists()
    one, other = (load_file(folder / "bridge.safetensors") for folder in (whole, killed))
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_an_unfinished_fit_with_other_settings_is_not_continued(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "b"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("latentwire_service.bridges.fitting.fit.score", stop)
        assert main(command(place, output, "--kind", "mlp", *TRAINED)) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert main(command(place, output, "--kind", "mlp", *TRAINED, "--seed", "5")) == 2
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "latentwire fit-bridge: --output-dir: holds an unfinished fit with other settings",
        "--overwrite discards it and starts over.",
    ]
    more = ("--kind", "mlp", *TRAINED, "--seed", "5", "--overwrite")
    assert main(command(place, output, *more)) == 0


def test_a_finished_bridge_is_not_replaced_unasked(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "b"
    assert main(command(place, output, "--kind", "ridge")) == 0
    first = (output / "bridge.safetensors").read_bytes()
    assert main(command(place, output, "--kind", "ridge", "--ridge", "99")) == 2
    assert "holds a bridge" in capsys.readouterr().err
    assert (output / "bridge.safetensors").read_bytes() == first
    assert main(command(place, output, "--kind", "ridge", "--ridge", "99", "--overwrite")) == 0
    assert (output / "bridge.safetensors").read_bytes() != first


def test_training_stops_when_checks_bring_no_improvement(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentwire_service.fitting.training import Trainer

    steps = []
    step = Trainer._step

    def counted(trainer: Trainer, batch: list[Sample]) -> float:
        steps.append(1)
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "_step", counted)
    # A learning rate that makes every step worse.
    more = ("--steps", "50", "--check-every", "2", "--patience", "2", "--learning-rate", "9")
    assert main(command(place, tmp_path / "b", "--kind", "mlp", *more)) == 0
    assert len(steps) < 20


def test_a_check_compares_each_task_with_another(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentwire_service.bridges.fitting.objective import BridgeObjective

    sizes, losses = [], BridgeObjective.losses

    def counted(objective: BridgeObjective, batch: list[Sample], step: int | None) -> Any:
        sizes.append(len(batch))
        return losses(objective, batch, step)

    monkeypatch.setattr(BridgeObjective, "losses", counted)
    for scored, wanted in (("5", [5]), ("6", [4, 2]), ("9", [4, 5])):
        sizes.clear()
        more = ("--kind", "mlp", "--steps", "0", "--batch-size", "4", "--max-scored", scored)
        assert main(command(place, tmp_path / scored, *more)) == 0
        assert sizes == wanted


@pytest.mark.parametrize("kind", ["ridge", "mlp", "interlat"])
def test_a_sender_may_have_another_width_and_other_tokens(
    tmp_path: Path, place: Path, kind: str
) -> None:
    write_dataset(tmp_path / "wide" / "data.parquet", width=20, model="other")
    args = command(place, tmp_path / "b", "--kind", kind, "--sender-width", "20", *TRAINED)
    args[0] = str(tmp_path / "wide")
    assert main(args) == 0
    bridge = load_bridge(tmp_path / "b", Receiver(loaded_model().model, "tiny"))
    assert bridge.source.hidden_size == 20
    assert bridge.apply(np.zeros((4, 20), dtype=np.float32)).shape == (4, HIDDEN_SIZE)


def scaled_dataset(place: Path, file: Path, factor: float, offset: float) -> Path:
    table = pq.read_table(place / "out" / "data.parquet")
    latents = [
        (np.array(rows) * factor + offset).tolist() for rows in table["hidden_state"].to_pylist()
    ]
    column = pa.array(latents, pa.list_(pa.list_(pa.float32())))
    pq.write_table(table.set_column(3, "hidden_state", column), file)
    return file


def test_what_half_precision_cannot_hold_is_stored_in_full(place: Path, tmp_path: Path) -> None:
    args = command(place, tmp_path / "b", "--kind", "ridge")
    args[0] = str(scaled_dataset(place, tmp_path / "data.parquet", 1, 1e5))
    assert main(args) == 0
    load_bridge(tmp_path / "b", Receiver(loaded_model().model, "tiny"))


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_latents_that_are_too_large_are_refused(
    place: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command(place, tmp_path / "b", "--kind", kind)
    args[0] = str(scaled_dataset(place, tmp_path / "data.parquet", 1e30, 0))
    assert main(args) == 2
    assert "DATASET: its latents are too large" in capsys.readouterr().err
    assert not (tmp_path / "b" / "bridge.json").exists()


def test_latents_that_are_no_lists_of_rows_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for values in (["x", "y"], [[1.0], [2.0]], [[["x"]], [["y"]]]):
        table = pa.table({"task_id": ["a", "b"], "plan": ["p", "q"], "hidden_state": values})
        pq.write_table(table, tmp_path / "data.parquet")
        args = command(place, tmp_path / "b")
        args[0] = str(tmp_path / "data.parquet")
        assert main(args) == 2
        assert "hidden_state holds no lists of rows" in capsys.readouterr().err


def test_rows_without_a_latent_are_left_out(tmp_path: Path) -> None:
    good, nan = [[1.0, 2.0]], [[1.0, float("nan")]]
    latents = [good, [], [[1.0], [1.0, 2.0]], nan, good, None]
    table = pa.table(
        {
            "task_id": [*"abcdef"],
            "plan": ["p", "p", "p", "p", "", "p"],
            "hidden_state": pa.array(latents, pa.list_(pa.list_(pa.float32()))),
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    samples = list(Dataset.from_path(tmp_path).samples())
    assert [(s.task_id, s.rows.tolist(), s.token_ids) for s in samples] == [("a", good, None)]


def test_held_out_tasks_are_never_trained_on(place: Path) -> None:
    dataset = Dataset.from_path(place / "out")
    split = Split(dataset, 3, 0.3, 64)
    held_out = {sample.task_id for sample in split.held_out()}
    batches = split.batches(4)
    trained = {sample.task_id for _ in range(30) for sample in next(batches)}
    assert held_out
    assert held_out | trained == {str(index) for index in range(40)}
    assert not held_out & trained
    assert held_out != {sample.task_id for sample in Split(dataset, 4, 0.3, 64).held_out()}


def test_the_order_of_an_epoch_is_its_own_and_repeatable(place: Path) -> None:
    def order() -> list[str]:
        batches = Split(Dataset.from_path(place / "out"), 0, 0.3, 64).batches(4)
        return [sample.task_id for _ in range(12) for sample in next(batches)]

    first = order()
    assert first == order()
    assert first[:24] != first[24:]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--kind", "magic"), "--kind: must be one of ridge, mlp, interlat"),
        (("--held-out", "1"), "--held-out: must be below 1"),
        (("--held-out", "0.0001"), "fewer than 2 usable rows are held out"),
        (("--sender-width", "7"), "a latent is 48 wide, not 7"),
        (("--sender-width", "7", "--kind", "interlat"), "a latent is 48 wide, not 7"),
        (("--batch-size", "39", "--kind", "mlp"), "fewer usable rows for training than a batch"),
        (("--model", "/dev/null/no"), "no directory no"),
        (("--name", "a b"), "--name: must match"),
        (("--seed", str(2**64)), "--seed: must be"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_a_line(
    place: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(place, tmp_path / "b", *more)) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PAR1garbage", None])
def test_what_is_no_dataset_is_refused(
    place: Path, tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command(place, tmp_path / "b")
    args[0] = str(tmp_path / "data.parquet")
    if content is not None:
        (tmp_path / "data.parquet").write_bytes(content)
    assert main(args) == 2
    assert "DATASET: " in capsys.readouterr().err
