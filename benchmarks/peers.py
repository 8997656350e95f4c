"""The ways people get text or latents out of a Hugging Face model today."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.workload import TOP_P, Sample, Workload
from latentwire_service.engine.hf.loader import LoadedModel

# One by one, more requests take longer but are no faster: a few show the rate.
MAX_LOOP_REQUESTS = 4


def _config(loaded: LoadedModel, new_tokens: int, **options: Any) -> GenerationConfig:
    # `generate` fills what a config leaves open from the model's own: the end of sequence, too.
    loaded.model.generation_config.eos_token_id = None
    return GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=None,
        do_sample=True,
        temperature=1.0,
        top_p=TOP_P,
        top_k=0,
        eos_token_id=None,
        pad_token_id=loaded.tokenizer.pad_token_id or 0,
        **options,
    )


def research_loop(loaded: LoadedModel, workload: Workload) -> Sample:
    """One prompt at a time, all hidden states of all layers, the last layer's row kept."""
    config = _config(
        loaded, workload.new_tokens, return_dict_in_generate=True, output_hidden_states=True
    )
    prompts = workload.prompts[:MAX_LOOP_REQUESTS]
    started = time.perf_counter()
    for prompt in prompts:
        ids = torch.tensor([prompt], device=loaded.model.device)
        out = loaded.model.generate(ids, generation_config=config)
        rows = torch.cat([step[-1][:, -1, :] for step in out.hidden_states])
        rows.float().cpu()
        assert len(rows) == workload.new_tokens
    return Sample(len(prompts) * workload.new_tokens, time.perf_counter() - started)


def _padded(loaded: LoadedModel, workload: Workload) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, workload.prompts))
    ids = torch.zeros(len(workload.prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(workload.prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(loaded.model.device), mask.to(loaded.model.device)


def batched_generate(loaded: LoadedModel, workload: Workload) -> Sample:
    """`generate` on one left-padded batch; text only, which favours it."""
    config = _config(loaded, workload.new_tokens)
    ids, mask = _padded(loaded, workload)
    started = time.perf_counter()
    out = loaded.model.generate(ids, attention_mask=mask, generation_config=config)
    assert out.shape[1] - ids.shape[1] == workload.new_tokens
    return Sample(workload.num_tokens, time.perf_counter() - started)


def batched_generate_hidden(loaded: LoadedModel, workload: Workload) -> Sample:
    """`generate` on one left-padded batch, hidden states kept."""
    config = _config(
        loaded, workload.new_tokens, return_dict_in_generate=True, output_hidden_states=True
    )
    ids, mask = _padded(loaded, workload)
    started = time.perf_counter()
    out = loaded.model.generate(ids, attention_mask=mask, generation_config=config)
    rows = torch.stack([step[-1][:, -1, :] for step in out.hidden_states]).float().cpu()
    assert len(rows) == workload.new_tokens
    return Sample(workload.num_tokens, time.perf_counter() - started)


def continuous_batching(loaded: LoadedModel, workload: Workload) -> Sample:
    """The paged continuous batching of transformers; text only."""
    started = time.perf_counter()
    outputs = loaded.model.generate_batch(
        workload.prompts,
        generation_config=_config(loaded, workload.new_tokens),
        # Sized for the work: on a CPU there is no device memory to size it from.
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=32,
            num_blocks=len(workload.prompts) * 12,
            max_batch_tokens=512,
        ),
    )
    seconds = time.perf_counter() - started
    return Sample(sum(len(o.generated_tokens) for o in outputs.values()), seconds)


class Vllm:
    """vLLM, when it is installed; text only."""

    def __init__(self, model_dir: str, dtype: str) -> None:
        vllm: Any = importlib.import_module("vllm")
        self._vllm = vllm
        names = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}
        self._llm = vllm.LLM(model=model_dir, dtype=names[dtype], max_model_len=1024)

    def run(self, workload: Workload) -> Sample:
        """Generate for all prompts at once."""
        params = self._vllm.SamplingParams(
            max_tokens=workload.new_tokens, temperature=1.0, top_p=TOP_P, ignore_eos=True
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in workload.prompts]
        started = time.perf_counter()
        self._llm.generate(prompts, params, use_tqdm=False)
        return Sample(workload.num_tokens, time.perf_counter() - started)


def has_vllm() -> bool:
    """Whether vLLM is installed."""
    return importlib.util.find_spec("vllm") is not None
