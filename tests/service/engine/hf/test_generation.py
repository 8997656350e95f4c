"""The settings of `generation_config.json` choose the tokens that `generate` would choose."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessorList,
    WatermarkingConfig,
)
from transformers.generation.logits_process import MinPLogitsWarper

from latentwire_service.engine.errors import (
    DamagedModelError,
    NoTokenError,
    UnsupportedModelError,
)
from latentwire_service.engine.hf import generation
from latentwire_service.engine.hf.generation import GenerationDefaults
from latentwire_service.engine.hf.loader import load_model
from latentwire_service.engine.hf.vocabulary import checked_eos_token_ids
from latentwire_service.engine.sampler import SamplingBatch, sample
from support.engine.harness import EngineHarness
from support.engine.requests import make_spec
from support.tiny_models import (
    EOS,
    VOCAB_SIZE,
    build_model,
    generate,
    llama_config,
    random_prompts,
    save_model,
)

PROMPTS = random_prompts([1, 6, 20, 33], seed=5)
BUDGET = 24


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model(llama_config())


def with_defaults(model: Any, **values: Any) -> Any:
    changed = copy.copy(model)
    changed.generation_config = copy.deepcopy(model.generation_config)
    for name, value in values.items():
        setattr(changed.generation_config, name, value)
    return changed


@pytest.fixture(scope="module")
def plain(model: Any) -> list[list[int]]:
    """Tokens of `generate` without any setting."""
    return [generate(model, prompt, BUDGET).token_ids for prompt in PROMPTS]


def cases(plain: list[list[int]]) -> dict[str, dict[str, Any]]:
    """For each setting, values that change what this model says."""
    often = sorted({token for tokens in plain for token in tokens[:3]} - {EOS})
    pair = next(tokens[1:3] for tokens in plain if EOS not in tokens[:3])
    return {
        "repetition_penalty": {"repetition_penalty": 1.3},
        "repetition_penalty below 1": {"repetition_penalty": 0.7},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
        "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
        "bad_words_ids": {"bad_words_ids": [[often[0]], pair]},
        "min_length": {"min_length": 40, "sequence_bias": {(EOS,): 30.0}},
        "min_new_tokens": {"min_new_tokens": 9, "sequence_bias": {(EOS,): 30.0}},
        "forced_bos_token_id": {"forced_bos_token_id": 7},
        "forced_eos_token_id": {"forced_eos_token_id": EOS},
        "forced_eos_token_id, several": {"forced_eos_token_id": [EOS, 9]},
        "suppress_tokens": {"suppress_tokens": often[:2]},
        "begin_suppress_tokens": {"begin_suppress_tokens": often},
        "sequence_bias": {"sequence_bias": {(often[0],): -20.0, (11,): 3.0, (pair[0], 12): 25.0}},
        "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 1.6)},
        "watermarking_config": {
            "watermarking_config": WatermarkingConfig(greenlist_ratio=0.25, bias=8.0)
        },
        "several": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
        "eos list": {"eos_token_id": [EOS, often[0]], "min_new_tokens": 3},
    }


NAMES = list(cases([[2, 3, 4], [5, 6, 7]]))


def generated(model: Any, prompt: list[int]) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generate(model, prompt, BUDGET).token_ids


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_is_applied_as_generate_applies_it(
    model: Any, plain: list[list[int]], name: str
) -> None:
    changed = with_defaults(model, **cases(plain)[name])
    eos = changed.generation_config.eos_token_id
    expected = [generated(changed, prompt) for prompt in PROMPTS]
    assert expected != plain, "the case shows nothing"
    harness = EngineHarness(changed, eos=[eos] if isinstance(eos, int) else eos)
    requests = [harness.submit(prompt, BUDGET) for prompt in PROMPTS]
    harness.run()
    assert [request.future.result(0).token_ids for request in requests] == expected


def as_json(value: Any) -> Any:
    """A setting as `generation_config.json` holds it: no tuples as keys, no objects."""
    if isinstance(value, WatermarkingConfig):
        return {"greenlist_ratio": value.greenlist_ratio, "bias": value.bias}
    if isinstance(value, dict):
        return [[list(token_ids), bias] for token_ids, bias in value.items()]
    return value


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("name", NAMES)
def test_a_setting_is_read_from_the_files_of_a_model(
    tmp_path: Path, plain: list[list[int]], name: str, file: str
) -> None:
    """`config.json` holds the settings of older models, which have no `generation_config.json`."""
    folder = save_model(tmp_path / "model")
    settings = {key: as_json(value) for key, value in cases(plain)[name].items()}
    generation_file = folder / "generation_config.json"
    if file == "config.json":
        generation_file.unlink()
        settings = {**json.loads((folder / file).read_text()), **settings}
    else:
        settings = {"eos_token_id": EOS, "pad_token_id": 0, **settings}
    (folder / file).write_text(json.dumps(settings))
    loaded = load_model(
        str(folder), device=torch.device("cpu"), dtype=torch.float32, cache_dir=tmp_path
    )
    harness = EngineHarness(loaded.model, eos=loaded.eos_token_ids)
    requests = [harness.submit(prompt, BUDGET) for prompt in PROMPTS[:3]]
    harness.run()
    expected = [generated(loaded.model, prompt) for prompt in PROMPTS[:3]]
    assert [request.future.result(0).token_ids for request in requests] == expected


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{}", b'{"eos_token_id": 1,}'])
def test_a_generation_config_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    """The library ignores such a file: the model would lose its settings in silence."""
    folder = save_model(tmp_path / "model")
    (folder / "generation_config.json").write_bytes(content)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(DamagedModelError, match="generation_config.json cannot be read"):
        GenerationDefaults(model, [EOS])


@pytest.mark.parametrize("value", ["</s>", 1.0, True, [[1]], [1, None], {"a": 1}])
def test_an_eos_token_id_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(DamagedModelError, match="eos_token_id .* is neither a token id nor a list"):
        checked_eos_token_ids(value)


def test_values_that_change_nothing_are_no_processors(model: Any) -> None:
    neutral = {**GenerationConfig._get_default_generation_params(), "temperature": 0.3, "top_k": 7}
    neutral |= {"suppress_tokens": [], "begin_suppress_tokens": [], "stop_strings": []}
    defaults = GenerationDefaults(with_defaults(model, **neutral, max_new_tokens=3), [EOS])
    assert defaults.applied == {}
    assert defaults.row_logits(make_spec([4, 5])) is None


TABLES = [
    generation.PROCESSOR_FIELDS,
    generation.LATE_FIELDS,
    generation.SAMPLER_FIELDS,
    generation.STOPPING_FIELDS,
    generation.REFUSED_FIELDS,
    dict.fromkeys(generation.REQUEST_FIELDS),
    dict.fromkeys(generation.IGNORED_FIELDS),
]


def test_every_field_of_the_configuration_is_in_one_table() -> None:
    names = [name for table in TABLES for name in table]
    assert sorted(names) == sorted(set(names))
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert fields <= set(names)


@pytest.mark.parametrize("name", sorted({name for table in TABLES[:5] for name in table}))
def test_a_setting_that_no_table_names_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: Any, name: str
) -> None:
    """As a setting is that a newer transformers has and this service does not know."""
    if name not in vars(GenerationConfig()):
        pytest.skip("this version of transformers has no such field")
    for table in ("_APPLIED", "REFUSED_FIELDS"):
        known = {k: v for k, v in getattr(generation, table).items() if k != name}
        monkeypatch.setattr(generation, table, known)
    with pytest.raises(UnsupportedModelError, match=f"sets {name} to 7, which transformers .* not"):
        GenerationDefaults(with_defaults(model, **{name: 7}), [EOS])
    neutral = GenerationConfig._get_default_generation_params().get(name)
    GenerationDefaults(with_defaults(model, **{name: neutral}), [EOS])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("num_beam_groups", 2),
        ("penalty_alpha", 0.6),
        ("dola_layers", "high"),
        ("constraints", [object()]),
        ("force_words_ids", [[3]]),
        ("guidance_scale", 1.5),
        ("token_healing", True),
        ("max_time", 3.0),
        ("is_assistant", True),
        ("cache_implementation", "quantized"),
        # Values that transformers itself cannot use.
        ("repetition_penalty", -1.0),
        ("bad_words_ids", [[-4]]),
        ("sequence_bias", {(VOCAB_SIZE,): 1.0}),
        ("forced_eos_token_id", VOCAB_SIZE),
        ("typical_p", 2.0 - 3.0),
        ("min_p", 2.0),
        ("min_p", "0.1"),
        ("stop_strings", [""]),
        ("stop_strings", 5),
        ("stop_strings", [3]),
    ],
)
def test_what_cannot_be_applied_is_refused_by_name(model: Any, name: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=f"generation_config.json.* {name} "):
        GenerationDefaults(with_defaults(model, **{name: value}), [EOS])


LATE: dict[str, dict[str, Any]] = {
    "top_h": {"top_h": 0.4},
    "typical_p": {"typical_p": 0.3},
    "epsilon_cutoff": {"epsilon_cutoff": 0.05},
    "eta_cutoff": {"eta_cutoff": 0.1},
    "min_p": {"min_p": 0.2},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(greenlist_ratio=0.3)},
    "with a penalty": {"typical_p": 0.5, "repetition_penalty": 1.4},
}


@pytest.mark.parametrize("name", list(LATE))
def test_filters_of_sampling_leave_the_distribution_of_generate(model: Any, name: str) -> None:
    """The tokens that can be drawn, and their probabilities, are those of transformers' list."""
    changed = with_defaults(model, **LATE[name])
    prompt = [5, 9, 9, 40]
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.7, "top_p": 0.95, "top_k": 50}
    spec = make_spec(prompt, 8, seed=3, **options)
    change = GenerationDefaults(changed, [EOS]).row_logits(spec)
    assert change is not None
    process = change.process or (lambda _token_ids, logits: logits)
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.manual_seed(2)) * 2
    config, _ = changed._prepare_generation_config(None, max_new_tokens=8, **options)
    changed._prepare_special_tokens(config, device="cpu")
    processors = changed._get_logits_processor(config, len(prompt), torch.tensor([prompt]))
    expected = processors(torch.tensor([prompt]), logits.clone()).softmax(-1)[0]
    steps = 4000
    row = process([], logits.clone()).expand(steps, -1)
    drawn = sample(row, SamplingBatch.build([change.sampling] * steps, range(steps), row.device))
    counts = torch.bincount(drawn, minlength=VOCAB_SIZE) / steps
    assert set(drawn.tolist()) <= set(expected.nonzero()[:, 0].tolist())
    assert (counts - expected).abs().max() < 0.05


def test_min_p_keeps_what_transformers_keeps() -> None:
    logits = torch.randn(1, 5000, generator=torch.manual_seed(0)) * 2
    expected = MinPLogitsWarper(0.1)(torch.LongTensor([[0]]), torch.FloatTensor(logits.clone()))
    for top_p in (1.0, 0.999):
        params = make_spec([1], do_sample=True, top_p=top_p, min_p=0.1).sampling
        batch = SamplingBatch.build([params] * 2000, range(2000), logits.device)
        drawn = set(sample(logits.expand(2000, -1), batch).tolist())
        kept = set((expected[0] > float("-inf")).nonzero()[:, 0].tolist())
        assert drawn <= kept
        assert len(drawn) > len(kept) / 2


def run(model: Any, prompt: list[int], **params: Any) -> list[int]:
    harness = EngineHarness(model)
    request = harness.submit(prompt, BUDGET, **params)
    harness.run()
    return request.future.result(0).token_ids


def test_the_request_overrides_the_models_repetition_penalty(
    model: Any, plain: list[list[int]]
) -> None:
    changed = with_defaults(model, repetition_penalty=1.3)
    assert run(changed, PROMPTS[2], repetition_penalty=1.0) == plain[2]
    expected = generate(changed, PROMPTS[2], BUDGET, repetition_penalty=1.8).token_ids
    assert run(changed, PROMPTS[2], repetition_penalty=1.8) == expected
    assert run(model, PROMPTS[2], repetition_penalty=1.8) == expected


class Counting:
    """What `presence_penalty` and `frequency_penalty` mean, as a processor of `generate`."""

    def __init__(self, presence: float, frequency: float, num_prompt: int) -> None:
        self.presence, self.frequency, self.num_prompt = presence, frequency, num_prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for token in input_ids[0, self.num_prompt :].tolist():
            scores[0, token] -= self.frequency
        for token in set(input_ids[0, self.num_prompt :].tolist()):
            scores[0, token] -= self.presence
        return scores


@pytest.mark.parametrize(("presence", "frequency"), [(4.0, 0.0), (0.0, 2.0), (-1.0, 1.5)])
def test_presence_and_frequency_count_the_tokens_of_the_plan(
    model: Any, plain: list[list[int]], presence: float, frequency: float
) -> None:
    for prompt, before in zip(PROMPTS[1:3], plain[1:3], strict=True):
        processors = LogitsProcessorList([Counting(presence, frequency, len(prompt))])
        expected = generate(model, prompt, BUDGET, logits_processor=processors).token_ids
        found = run(model, prompt, presence_penalty=presence, frequency_penalty=frequency)
        assert found == expected
        assert found != before or presence < 0


def test_logit_bias_is_added_before_all_else(model: Any, plain: list[list[int]]) -> None:
    bias = {plain[2][0]: -100.0, 17: 4.5}
    expected = generate(
        model, PROMPTS[2], BUDGET, sequence_bias={(token,): value for token, value in bias.items()}
    ).token_ids
    assert run(model, PROMPTS[2], logit_bias=tuple(bias.items())) == expected


def test_neighbours_of_a_processed_request_keep_their_tokens(
    model: Any, plain: list[list[int]]
) -> None:
    harness = EngineHarness(model)
    options: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.5}, {}, {"presence_penalty": 2.0}]
    requests = [harness.submit(p, BUDGET, **o) for p, o in zip(PROMPTS, options, strict=True)]
    harness.run()
    tokens = [request.future.result(0).token_ids for request in requests]
    assert [tokens[0], tokens[2]] == [plain[0], plain[2]]
    assert tokens[1] == run(model, PROMPTS[1], repetition_penalty=1.5)
    assert not harness.engine._changes._active
    assert not harness.engine._changes._penalties._entries


@pytest.mark.parametrize("do_sample", [True, False])
def test_a_request_that_excludes_every_token_fails_alone(
    model: Any, plain: list[list[int]], do_sample: bool
) -> None:
    # The sum of several biases exceeds float32.
    everything = tuple((token, -1e38) for token in range(VOCAB_SIZE))
    harness = EngineHarness(model)
    doomed = harness.submit(PROMPTS[1], 5, do_sample=do_sample, logit_bias=everything * 9)
    other = harness.submit(PROMPTS[0], BUDGET)
    harness.run()
    assert isinstance(doomed.future.exception(0), NoTokenError)
    assert other.future.result(0).token_ids == plain[0]
