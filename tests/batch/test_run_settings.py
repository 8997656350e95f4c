from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from latentwire_batch.dispatch.seeds import Seeds, draw_seed, row_seed
from latentwire_batch.errors import StorageError
from latentwire_batch.replicas.identity import ModelIdentity
from latentwire_batch.run_settings import RunSettings, shown_values
from latentwire_batch.tasks.rows import DataIdentity, RowFields

MODEL = ModelIdentity("m", "abc", 8, "float32")
SETTINGS = RunSettings(
    data=DataIdentity(40, "12ab"),
    k=None,
    options={
        "prompt_template": "{task}",
        "chat_template": "none",
        "max_new_tokens": 12,
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 0,
        "stop": ["END"],
    },
    seed=7,
    row_seed_bits=53,
    requested_model="m",
    model=MODEL,
)


EARLIER_SEEDS = [4212276270495803956, 5595607496629875680]


def test_settings_come_back_as_written() -> None:
    assert RunSettings.from_json(SETTINGS.to_json()) == SETTINGS
    unknown = replace(SETTINGS, seed=None, row_seed_bits=None, requested_model=None, model=None)
    assert RunSettings.from_json(unknown.to_json()) == unknown
    assert set(unknown.to_json()) == {"data", "k", "prompt", "sampling", "columns"}


@pytest.mark.parametrize(
    "fields", [RowFields("goal", None, "key"), RowFields("", 0, "id"), RowFields("", 2, "id")]
)
def test_the_place_of_the_task_is_recorded_and_not_compared(fields: RowFields) -> None:
    settings = replace(SETTINGS, columns=("token_ids", "seed"), fields=fields)
    assert RunSettings.from_json(settings.to_json()) == settings
    assert settings.differences(replace(settings, fields=RowFields("task", None, "id"))) == []
    assert replace(settings, fields=None).differences(settings) == []


def test_engines_are_compared_and_their_versions_are_not() -> None:
    own = replace(SETTINGS, model=replace(MODEL, engine="latentwire", engine_version="1"))
    assert RunSettings.from_json(own.to_json()).to_json() == own.to_json()
    newer = replace(SETTINGS, model=replace(MODEL, engine="latentwire", engine_version="2"))
    assert own.differences(newer) == []
    other = replace(SETTINGS, model=replace(MODEL, engine="vllm", engine_version="0.32.0"))
    assert own.differences(other) == ["model.engine was 'latentwire', now 'vllm'"]
    assert own.model != other.model
    assert own.model == newer.model
    # A run of an earlier version did not record it.
    assert SETTINGS.differences(other) == []


def test_settings_of_an_earlier_version_have_the_classic_columns() -> None:
    value = SETTINGS.to_json()
    del value["columns"]
    assert RunSettings.from_json(value).differences(SETTINGS) == []
    wanted = replace(SETTINGS, columns=("seed",))
    assert RunSettings.from_json(value).differences(wanted) == ["columns was [], now ['seed']"]


def test_settings_without_row_seed_bits_keep_the_seeds_that_their_rows_have() -> None:
    value = SETTINGS.to_json()
    del value["row_seed_bits"]
    assert RunSettings.from_json(value).seeds == Seeds(7, 63)
    # The first rows of seed 7, as earlier versions derived them.
    assert [row_seed(7, index, 63) for index in range(2)] == EARLIER_SEEDS
    assert [row_seed(7, index) for index in range(2)] == [
        seed & (2**53 - 1) for seed in EARLIER_SEEDS
    ]


@pytest.mark.parametrize("dataset_seed", [0, 1, 2**53 - 1, 2**53, 2**63 - 1])
def test_every_new_row_seed_is_a_whole_number_in_javascript(dataset_seed: int) -> None:
    seeds = [row_seed(dataset_seed, index) for index in range(1000)]
    assert max(seeds) < 2**53
    assert len(set(seeds)) == 1000
    assert draw_seed() < 2**53


def test_prompt_and_sampling_options_are_stored_apart() -> None:
    value = SETTINGS.to_json()
    assert value["prompt"] == {"prompt_template": "{task}", "chat_template": "none"}
    assert set(value["prompt"]) | set(value["sampling"]) == set(SETTINGS.options)


@pytest.mark.parametrize(
    ("changed", "phrase"),
    [
        ({"k": 0}, "k was None, now 0"),
        ({"seed": 8}, "seed was 7, now 8"),
        ({"requested_model": "n"}, "requested_model was 'm', now 'n'"),
        ({"model": replace(MODEL, dtype="bfloat16")}, "model.dtype was 'float32', now 'bfloat16'"),
        ({"data": DataIdentity(39, "12ab")}, "data.num_rows was 40, now 39"),
        ({"options": {**SETTINGS.options, "stop": []}}, "sampling.stop was ['END'], now []"),
        (
            {"options": {**SETTINGS.options, "min_p": 0.1}},
            "sampling.min_p was None, now 0.1",
        ),
    ],
)
def test_a_difference_is_named(changed: dict[str, Any], phrase: str) -> None:
    assert SETTINGS.differences(replace(SETTINGS, **changed)) == [phrase]


def test_unknown_settings_are_not_compared() -> None:
    wanted = replace(SETTINGS, seed=None, row_seed_bits=None, requested_model=None, model=None)
    assert SETTINGS.differences(wanted) == []


def test_the_requested_model_is_not_compared_with_given_replicas() -> None:
    stored = replace(SETTINGS, requested_model=None)
    assert stored.differences(replace(SETTINGS, requested_model="another")) == []


def test_a_long_value_is_shortened() -> None:
    options: Any = {**SETTINGS.options, "prompt_template": "x" * 100}
    (phrase,) = SETTINGS.differences(replace(SETTINGS, options=options))
    assert phrase.endswith(f"now '{'x' * 39}...")


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        ("x" * 100 + "a", "x" * 100 + "b", ("..." + "x" * 20 + "a'", "..." + "x" * 20 + "b'")),
        ("a" * 99, "b", ("'" + "a" * 39 + "...", "'b'")),
        ("x" * 30 + "a", "x" * 30, (repr("x" * 30 + "a"), repr("x" * 30))),
        (None, 5, ("None", "5")),
    ],
)
def test_what_is_shown_of_two_values_differs(one: Any, other: Any, shown: tuple[str, str]) -> None:
    assert shown_values(one, other) == shown


@pytest.mark.parametrize("missing", ["data", "k", "prompt", "sampling"])
def test_settings_without_a_value_are_damaged(missing: str) -> None:
    value = SETTINGS.to_json()
    del value[missing]
    with pytest.raises(StorageError, match="settings are damaged"):
        RunSettings.from_json(value)


def test_an_option_that_is_not_set_any_more_is_a_difference() -> None:
    stored = replace(SETTINGS, options={**SETTINGS.options, "repetition_penalty": 1.2})
    assert stored.differences(SETTINGS) == ["sampling.repetition_penalty was 1.2, now None"]


def test_the_models_generation_defaults_are_compared_once_they_are_recorded() -> None:
    penal = {"repetition_penalty": 1.1}
    recorded = replace(SETTINGS, model=replace(MODEL, generation_defaults=penal))
    assert recorded.to_json()["model"]["generation_defaults"] == penal
    assert RunSettings.from_json(recorded.to_json()) == recorded
    # An output of an earlier version resumes.
    assert SETTINGS.differences(recorded) == []
    other = replace(SETTINGS, model=replace(MODEL, generation_defaults={}))
    name = "model.generation_defaults.repetition_penalty"
    assert recorded.differences(other) == [f"{name} was 1.1, now None"]
    assert other.differences(recorded) == [f"{name} was None, now 1.1"]
