from __future__ import annotations

import itertools

import numpy as np
import pytest

from latentwire_batch.evaluation.statistics import bootstrap, sign_test, summarize


def counted(wins: int, losses: int) -> float:
    """Two-sided p by listing all outcomes of fair coins that are as far from the middle."""
    num = wins + losses
    distance = abs(wins - losses)
    outcomes = itertools.product((0, 1), repeat=num)
    far = sum(abs(2 * sum(outcome) - num) >= distance for outcome in outcomes)
    share: float = far / 2**num
    return share


@pytest.mark.parametrize("num", range(11))
def test_the_sign_test_counts_outcomes_of_coins(num: int) -> None:
    for wins in range(num + 1):
        assert sign_test(wins, num - wins) == pytest.approx(counted(wins, num - wins))


def test_the_sign_test_of_known_and_of_large_counts() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(9, 1) == pytest.approx(22 / 1024)
    assert sign_test(20, 0) == pytest.approx(2 / 2**20)
    assert sign_test(5000, 5000) == 1.0
    assert sign_test(0, 3000) == pytest.approx(0.0, abs=1e-300)
    assert sign_test(30_100, 29_900) == pytest.approx(0.416, abs=0.002)
    assert sign_test(1100, 900) == sign_test(900, 1100) == pytest.approx(8.6e-6, rel=0.1)


def test_bootstrap_intervals_are_those_of_the_normal_law_for_many_tasks() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=(4000, 1))
    (low, high), half = bootstrap(values, 0)[0], 1.96 * values.std() / 4000**0.5
    assert low == pytest.approx(values.mean() - half, abs=half / 5)
    assert high == pytest.approx(values.mean() + half, abs=half / 5)


def test_bootstrap_intervals_of_two_tasks_are_their_values() -> None:
    # Both draws are the same task in half of the resamples.
    assert bootstrap(np.array([[1.0, 5.0], [2.0, 5.0]]), 0).tolist() == [[1.0, 2.0], [5.0, 5.0]]


def test_bootstrap_is_seeded_and_columns_are_resampled_together() -> None:
    values = np.random.default_rng(0).normal(size=(30, 1))
    table = np.concatenate([values, -values], axis=1)
    first = bootstrap(table, 0)
    assert np.array_equal(first, bootstrap(table, 0))
    assert not np.array_equal(first, bootstrap(table, 1))
    assert np.allclose(first[0], -first[1][::-1])


def test_messages_are_compared_with_the_matched_one() -> None:
    values = {"matched": [1.0, 2.0, 3.0, 4.0], "other": [2.0, 1.5, 3.0, 9.0]}
    found = summarize(values, "matched", 0, is_loss=True)
    assert found["matched"].comparison is None
    assert found["matched"].mean == 2.5
    compared = found["other"].comparison
    assert compared is not None
    assert (compared.wins, compared.losses, compared.ties) == (2, 1, 1)
    assert compared.difference == pytest.approx(5.5 / 4)
    assert compared.p == 1.0
    assert compared.interval[0] <= compared.difference <= compared.interval[1]


def test_of_answers_the_larger_value_is_better() -> None:
    values = {"matched": [1.0, 1.0, 0.0], "none": [0.0, 1.0, 1.0]}
    compared = summarize(values, "matched", 0, is_loss=False)["none"].comparison
    assert compared is not None
    assert (compared.wins, compared.losses, compared.ties) == (1, 1, 1)
