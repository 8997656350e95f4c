from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latentwire.number_formats import NUMBER_FORMATS, NumberFormat, decode_rows, encode_rows
from latentwire_batch.errors import InputError
from latentwire_batch.evaluation.answers import is_right
from latentwire_batch.evaluation.messages import Frame, MessageMaker, noise_like
from latentwire_batch.evaluation.samples import EvaluationSet, HeldOutSplit, Pair, Sample
from support.batch.encoded_tables import encode_file
from support.batch.evaluating import latents, write_dataset

MAKER = MessageMaker("mine", {"model": "sender"}, 7)
ALL = HeldOutSplit(0, 1.0, "all")


def pair(num_rows: int = 5, task_id: str = "t") -> Pair:
    rows = np.arange(num_rows * 3, dtype=np.float32).reshape(num_rows, 3) + 1
    return Pair(0, Sample(task_id, "task", "plan", rows), rows * 2, "other plan")


def test_shuffled_rows_are_the_rows_in_another_order() -> None:
    rows, shuffled = pair().sample.rows, MAKER.rows("shuffled", pair())
    assert not np.array_equal(rows, shuffled)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, shuffled.tolist()))
    for seed in range(20):
        two = MessageMaker("mine", {}, seed).rows("shuffled", pair(2))
        assert np.array_equal(two, pair(2).sample.rows[::-1])
    assert np.array_equal(MAKER.rows("shuffled", pair(1)), pair(1).sample.rows)


def test_noise_has_the_norms_of_the_rows_and_nothing_else() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    rows[3] = 0
    rows[4] *= 1e25
    noise = noise_like(rows, np.random.default_rng(1))
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    assert np.allclose(np.linalg.norm(noise.astype(np.float64), axis=1), norms, rtol=1e-5)
    cosines = (noise[5:] * rows[5:]).sum(1) / norms[5:] ** 2
    assert abs(cosines.mean()) < 0.1


def test_controls_depend_on_seed_and_task_alone() -> None:
    for name in ("noise", "shuffled"):
        same = MAKER.rows(name, pair(40))
        assert np.array_equal(same, MAKER.rows(name, pair(40)))
        assert not np.array_equal(same, MAKER.rows(name, pair(40, "u")))
        assert not np.array_equal(same, MessageMaker("mine", {}, 8).rows(name, pair(40)))


def test_the_frame_stands_around_text_and_latents() -> None:
    frame = Frame("Say: ", "!")
    assert frame.around("hi") == [{"role": "user", "content": "Say: hi!"}]
    assert frame.around("") == [{"role": "user", "content": "Say: !"}]
    (message,) = frame.around({"type": "latent"})
    assert message["content"] == [
        {"type": "text", "text": "Say: "},
        {"type": "latent"},
        {"type": "text", "text": "!"},
    ]
    (bare,) = Frame("", "").around({"type": "latent"})
    assert bare["content"] == [{"type": "latent"}]


def test_the_random_bridge_is_the_control_of_the_bridge() -> None:
    parts = {name: MAKER.part(name, pair()) for name in ("matched", "random-bridge")}
    assert [part["bridge"] for part in parts.values() if not isinstance(part, str)] == [
        "mine",
        "random:mine",
    ]


def test_another_task_is_the_next_one_with_another_id(tmp_path: Path) -> None:
    rows = latents(6)
    ids = ["a", "a", "b", "c", "c", "c"]
    path = write_dataset(tmp_path / "d.parquet", rows, task_id=ids)
    pairs = list(EvaluationSet.from_path(path, ALL, None).pairs())
    assert [each.sample.task_id for each in pairs] == ids
    assert [each.index for each in pairs] == list(range(6))
    for each, other in zip(pairs, (2, 2, 3, 0, 0, 0), strict=True):
        assert np.array_equal(each.other_rows, rows[other])


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_latents_are_read_in_every_number_format(tmp_path: Path, dtype: NumberFormat) -> None:
    rows = latents(3)
    path = write_dataset(tmp_path / "d.parquet", rows)
    encoded = encode_file(path, dtype, tmp_path / "e.parquet")
    found = EvaluationSet.from_path(encoded, ALL, None)
    assert found.width() == rows[0].shape[1]
    for each, latent in zip(found.pairs(), rows, strict=True):
        np.testing.assert_array_equal(each.sample.rows, decode_rows(encode_rows(latent, dtype)))


def test_a_dataset_may_end_with_its_first_task(tmp_path: Path) -> None:
    rows = latents(4)
    path = write_dataset(tmp_path / "d.parquet", rows, task_id=["a", "b", "c", "a"])
    pairs = list(EvaluationSet.from_path(path, ALL, None).pairs())
    assert [each.sample.task_id for each in pairs] == ["a", "b", "c", "a"]
    assert np.allclose(pairs[-1].other_rows, rows[1])


def test_unusable_rows_are_left_out(tmp_path: Path) -> None:
    rows = latents(4)
    rows[1] = rows[1] * np.float32(np.inf)
    path = write_dataset(tmp_path / "d.parquet", rows, plan=["p", "p", "", "p"])
    found = EvaluationSet.from_path(path, ALL, None).pairs()
    assert [each.sample.task_id for each in found] == ["t0", "t3"]


def test_a_dataset_without_ids_is_refused(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.parquet", latents(3))
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path).drop_columns(["task_id"]), path)
    with pytest.raises(InputError, match="has no column task_id"):
        EvaluationSet.from_path(path, ALL, None)


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        ("She makes 18 dollars", "18", True),
        ("First 18, then 20.", "18", False),
        ("It is $1,234.50.", "1234.5", True),
        ("10-4", "4", True),
        ("minus: -4", "-4", True),
        ("about 7%", "7", True),
        ("no number", "7", False),
        ("the answer is 72", "He sold 48/2 = 24.\n#### 72", True),
        ("Paris", "paris", True),
        ("I think.\nAnswer: Paris.", "Paris", True),
        ("I think.\nThe answer is Paris!", "Paris", True),
        ("Paris is nice", "Paris", False),
        (r"so \boxed{\frac{3}{4}} holds", r"\frac{3}{4}", True),
        ("", "Paris", False),
        ("x" * 10_000 + " 5", "5", True),
    ],
)
def test_answers_match_exactly(text: str, expected: str, right: bool) -> None:
    assert is_right(text, expected) is right
