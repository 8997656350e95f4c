"""From settings to a model that runs on a thread of its own. Knows no HTTP and no asyncio."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from latentwire_service.engine.engine import Engine, StepStats
from latentwire_service.engine.engine_thread import EngineThread
from latentwire_service.engine.hf.build import build_runner, probe
from latentwire_service.engine.hf.cpu.cpu_tuning import give_way
from latentwire_service.engine.hf.cpu.linear import bytes_kept_twice
from latentwire_service.engine.hf.loader import LoadedModel, load_model, pick_device, pick_dtype
from latentwire_service.engine.hf.memory import Capacity, available_bytes, plan_capacity
from latentwire_service.engine.prefix_cache import MAX_PREFIX_TOKENS
from latentwire_service.settings import Settings

logger = logging.getLogger(__name__)


def _quieten_libraries() -> None:
    """Send their records the way of ours, which keeps paths out, and show no progress bars."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    hub_logging.set_verbosity_error()
    hub_logger = logging.getLogger("huggingface_hub")
    hub_logger.handlers.clear()
    hub_logging.enable_propagation()


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model and the thread that runs it."""

    loaded: LoadedModel
    capacity: Capacity
    hidden_size: int
    vocab_size: int
    thread: EngineThread


def load_served(
    settings: Settings,
    on_step: Callable[[StepStats], None],
    on_failure: Callable[[Exception], None],
) -> Served:
    """Load the model, divide the memory, start the engine. Takes seconds to minutes.

    Args:
        settings: of the whole service.
        on_step: called on the engine's thread after each step.
        on_failure: called on the engine's thread once the engine is lost.

    Raises:
        ModelError: the model cannot be served as the settings say.
    """
    _quieten_libraries()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device)
    loaded = load_model(
        settings.model,
        device=device,
        dtype=pick_dtype(settings.dtype, device),
        cache_dir=settings.cache_dir.expanduser(),
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    probed = probe(loaded.model)
    limits = (loaded.max_positions, probed.max_positions)
    bytes_per_position = probed.values_per_position * loaded.model.dtype.itemsize
    # What is taken once the plan is made.
    reserved_bytes = MAX_PREFIX_TOKENS * bytes_per_position
    reserved_bytes += bytes_kept_twice(loaded.model, probed.linear_calls)
    capacity = plan_capacity(
        max_slots=None if settings.max_slots == "auto" else settings.max_slots,
        max_model_len=None if settings.max_model_len == "auto" else settings.max_model_len,
        model_max_len=min((limit for limit in limits if limit is not None), default=None),
        bytes_per_position=bytes_per_position,
        row_bytes=probed.hidden_size * 4,
        available=available_bytes(device) - reserved_bytes,
        host_available=None if device.type == "cpu" else available_bytes(torch.device("cpu")),
        memory_fraction=settings.memory_fraction,
    )
    logger.info(
        "%s, %s on %s: %d slots of %d positions, KV cache %.0f MiB of %.0f MiB allowed",
        loaded.model_id,
        loaded.model.dtype,
        device.type,
        capacity.max_slots,
        capacity.max_model_len,
        capacity.cache_bytes / 2**20,
        capacity.budget_bytes / 2**20,
    )
    runner = build_runner(
        loaded.model,
        probed,
        capacity.max_slots,
        capacity.max_model_len,
        compile_decode=settings.compile,
    )
    engine = Engine(runner, loaded.eos_token_ids, settings.prefill_chunk, time.monotonic)
    thread = EngineThread(
        engine,
        capacity.max_slots,
        settings.max_queue,
        on_step,
        on_failure,
        give_way if device.type == "cpu" else None,
    )
    thread.start()
    vocab_size = loaded.model.config.get_text_config().vocab_size
    return Served(loaded, capacity, probed.hidden_size, vocab_size, thread)
