"""Weights of a model, complete: nothing that the files lack is made up, and nothing is dropped.

Knows nothing of architectures: transformers reports the names that its model and the files have.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, modeling_utils

from latentwire_service.engine.errors import DamagedModelError, UnsupportedModelError
from latentwire_service.engine.hf.loading.weight_files import names_in_files

logger = logging.getLogger(__name__)

_SHOWN_NAMES = 3
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_LAYER = re.compile(r"(?P<stack>(?:.*\.)?(?:layers|h|blocks))\.(?P<index>\d+)\.")
# Older checkpoints store it; it follows from the config.
_DERIVED = re.compile(r"\brotary_emb\.|\.rotary_pos_emb\.")
_CHECKED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def load_complete(location: str, failure: str, **options: Any) -> Any:
    """Load a causal LM whose weights all come from its files.

    Args:
        location: hub id or local directory.
        failure: the start of messages.
        **options: arguments of `AutoModelForCausalLM.from_pretrained`.

    Raises:
        DamagedModelError: a weight is missing, has another shape than config.json says, or is not
            finite.
        UnsupportedModelError: the files hold weights that the model would compute without.
    """
    load: Any = AutoModelForCausalLM.from_pretrained
    with _conversion_errors() as failed:
        try:
            model, report = load(
                location, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except RuntimeError:
            if not failed:
                raise
            wanted = _gaps(Path(location)) or sorted(failed)
            raise DamagedModelError(_missing(failure, wanted)) from None
    _check_report(model, failure, report, Path(location))
    _check_values(model, failure)
    return model


def _check_report(model: Any, failure: str, report: Mapping[str, Any], location: Path) -> None:
    mismatched = sorted(report["mismatched_keys"])
    if report["missing_keys"]:
        raise DamagedModelError(
            _missing(failure, sorted(report["missing_keys"])) + _saved_class(model)
        )
    if mismatched:
        # The weights of a layer's experts become one tensor; without one of them it is smaller.
        gaps = _gaps(location)
        if gaps:
            raise DamagedModelError(_missing(failure, gaps))
        name, in_files, in_model = mismatched[0]
        raise DamagedModelError(
            f"{failure}: {name} has shape {list(in_files)} in its files, but "
            f"config.json says {list(in_model)}{_and_others(len(mismatched) - 1)}"
        )
    _check_unexpected(model, failure, report["unexpected_keys"])


def _check_unexpected(model: Any, failure: str, unexpected: Iterable[str]) -> None:
    """Refuse weights that would change what the model computes; log those of other parts.

    Other parts are a vision tower, say, or layers that predict several tokens.
    """
    others = sorted(name for name in unexpected if not _DERIVED.search(name))
    parts = {name for name, module in model.named_modules() if [*module.parameters(False)]}
    used = [name for name in others if _is_used(name, parts)]
    config = model.config.get_text_config()
    if used:
        raise UnsupportedModelError(
            f"{failure}: its files hold {_listed(used)}, which "
            f"{type(model).__name__} computes without; config.json and the weights disagree"
        )
    extra = [name for name in others if _is_further_layer(name, model)]
    if extra and not getattr(config, "num_nextn_predict_layers", 0):
        raise UnsupportedModelError(
            f"{failure}: its files hold more layers than the "
            f"{config.num_hidden_layers} of config.json: {_listed(extra)}"
        )
    if others:
        logger.warning("%s: the model does not use %s", model.config.model_type, _listed(others))


def _is_used(name: str, parts: Collection[str]) -> bool:
    part, _, kind = name.rpartition(".")
    return kind in ("weight", "bias") and part in parts


def _is_further_layer(name: str, model: Any) -> bool:
    """Whether the name is of a layer after the last one of a stack of layers that the model has."""
    found = _LAYER.match(name)
    if found is None:
        return False
    for stack in (found["stack"], f"{model.base_model_prefix}.{found['stack']}"):
        try:
            return int(found["index"]) >= len(model.get_submodule(stack))
        except (AttributeError, TypeError):
            continue
    return False


def _check_values(model: Any, failure: str) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise DamagedModelError(_missing(failure, [name]))
        if parameter.dtype not in _CHECKED_DTYPES or not parameter.numel():
            continue
        # Both are NaN when any value is; no copy is made.
        least, most = torch.aminmax(parameter.detach())
        if not (torch.isfinite(least) and torch.isfinite(most)):
            raise DamagedModelError(
                f"{failure}: {name} holds values that are not finite in "
                f"{str(parameter.dtype).removeprefix('torch.')}"
            )


def _missing(failure: str, names: Sequence[str]) -> str:
    number = "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
    return f"{failure}: {number} missing from its files: {_listed(names)}"


def _saved_class(model: Any) -> str:
    """Name the class that saved the files, when it is another one."""
    saved = (getattr(model.config, "architectures", None) or [None])[0]
    own = type(model).__name__
    if saved is None or saved == own or own.endswith(saved):
        return ""
    return f"; they were saved from {saved}, and {own} is what can be served"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + _and_others(len(names) - _SHOWN_NAMES)


def _and_others(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _gaps(location: Path) -> list[str]:
    """Return names that would complete a series in the files, such as expert 3 among others."""
    present = names_in_files(location)
    series: dict[str, list[list[str]]] = defaultdict(list)
    for name in present:
        series[_NUMBER.sub("{}", name.replace("%", "%%"))].append(_NUMBER.findall(name))
    gaps = set()
    for pattern, numbers in series.items():
        columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        for combination in itertools.product(*columns):
            gaps.add(pattern.replace("{}", "%s") % combination)
    return sorted(gaps - present)


@contextmanager
def _conversion_errors() -> Iterator[set[str]]:
    """Collect the weights that transformers cannot put together from those in the files.

    Its exception refers to a table in the log, which names them.
    """
    module: Any = modeling_utils
    report = getattr(module, "log_state_dict_report", None)
    failed: set[str] = set()
    if report is None:
        yield failed
        return

    def watched(*args: Any, **options: Any) -> Any:
        info = options.get("loading_info")
        failed.update(getattr(info, "conversion_errors", None) or ())
        return report(*args, **options)

    module.log_state_dict_report = watched
    try:
        yield failed
    finally:
        module.log_state_dict_report = report
