"""The usual ways to get text or latents from a Hugging Face model."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.workload import TOP_P, Sample, Workload
from latentwire_service.engine.hf.loader import LoadedModel

# A few requests show the rate of the sequential loop.
MAX_LOOP_REQUESTS = 4


def _config(loaded: LoadedModel, new_tokens: int, **options: Any) -> GenerationConfig:
    # `generate` takes unset fields from the model's own config, even the end of sequence.
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
    """Run one prompt at a time with the hidden states of all layers; keep the last layer's rows."""
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
    """Run `generate` on one left-padded batch. It returns text only, which is less work."""
    config = _config(loaded, workload.new_tokens)
    ids, mask = _padded(loaded, workload)
    started = time.perf_counter()
    out = loaded.model.generate(ids, attention_mask=mask, generation_config=config)
    assert out.shape[1] - ids.shape[1] == workload.new_tokens
    return Sample(workload.num_tokens, time.perf_counter() - started)


def batched_generate_hidden(loaded: LoadedModel, workload: Workload) -> Sample:
    """Run `generate` on one left-padded batch, and keep the hidden states."""
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
    """Run the paged continuous batching of transformers. It returns text only."""
    started = time.perf_counter()
    outputs = loaded.model.generate_batch(
        workload.prompts,
        generation_config=_config(loaded, workload.new_tokens),
        # The size follows the workload, because a CPU has no device memory to derive it from.
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=32,
            num_blocks=len(workload.prompts) * 12,
            max_batch_tokens=512,
        ),
    )
    seconds = time.perf_counter() - started
    return Sample(sum(len(o.generated_tokens) for o in outputs.values()), seconds)
