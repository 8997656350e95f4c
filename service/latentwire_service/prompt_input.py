"""From the task or the messages of a request to the conversation that an engine encodes.

Latents become input embeddings here, through the engine's bridges. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import numpy as np
import numpy.typing as npt

from latentwire.conversation import LatentPart, Message, TextPart, latent_parts
from latentwire.protocol import PlanLatentRequest
from latentwire.tensors import TensorError, decode_hidden_state
from latentwire_service.engine.backend import LATENTS_IN, Backend
from latentwire_service.engine.errors import InvalidParamsError, PromptTooLongError
from latentwire_service.engine.prompt import Conversation, Embeddings, Turn, fill_template
from latentwire_service.engine.seams.bridge import Bridge, BridgeError

Tensors = Mapping[str, npt.NDArray[np.float32]]

# Longest prompt that is tokenized on the event loop: 0.4 ms with SmolLM2's tokenizer, less than
# the 0.5 ms that waking a thread costs.
_SHORT_PROMPT_CHARS = 2048


def takes_long(body: PlanLatentRequest) -> bool:
    """Whether encoding the prompt could hold up the event loop."""
    num_chars = len(body.system or "") + len(body.plan or "")
    if body.messages is None:
        # An upper bound of the filled template's length, without filling it.
        num_tasks = body.prompt_template.count("{task}")
        num_chars += len(body.prompt_template) + num_tasks * len(body.task or "")
    else:
        parts = [part for message in body.messages for part in message.parts]
        num_chars += sum(len(part.text) for part in parts if isinstance(part, TextPart))
        if any(isinstance(part, LatentPart) for part in parts):
            return True
    return num_chars > _SHORT_PROMPT_CHARS


def read_conversation(body: PlanLatentRequest, tensors: Tensors, backend: Backend) -> Conversation:
    """Return the conversation of a request.

    Args:
        body: has a task or messages.
        tensors: `[rows, width]` float32, by the names that latents give.
        backend: maps latents to input embeddings.

    Raises:
        InvalidParamsError: a latent is not what it says, or no bridge takes it.
        PromptTooLongError: the latents alone do not fit a slot.
    """
    if body.messages is None:
        turns = [Turn("user", [fill_template(body.prompt_template, body.task or "")])]
        if body.system is not None:
            turns.insert(0, Turn("system", [body.system]))
    else:
        _check_latents(body, tensors, backend)
        turns = [
            _turn(message, f"messages.{index}", tensors, backend)
            for index, message in enumerate(body.messages)
        ]
    return Conversation(
        turns,
        chat_template=body.chat_template,
        template_kwargs=body.chat_template_kwargs or {},
        day=None if body.date is None else date.fromisoformat(body.date),
        field="task" if body.messages is None else "messages",
    )


def _check_latents(body: PlanLatentRequest, tensors: Tensors, backend: Backend) -> None:
    """Refuse what cannot be served before any row is decoded."""
    num_rows = 0
    for field, part in latent_parts(body.messages or ()):
        backend.info.require(LATENTS_IN, field)
        num_rows += _shape(part, field, tensors)[0]
    max_model_len = backend.info.max_model_len
    if num_rows > max_model_len:
        raise PromptTooLongError(num_rows, body.max_new_tokens, max_model_len)


def _shape(part: LatentPart, field: str, tensors: Tensors) -> tuple[int, int]:
    """Return `[rows, width]` of a latent, as it is declared."""
    if isinstance(part.hidden_state, str):
        matrix = tensors.get(part.hidden_state)
        if matrix is None:
            raise InvalidParamsError(
                f"{field}.hidden_state",
                f"there is no tensor {part.hidden_state!r} in the request",
            )
        rows, width = matrix.shape
    else:
        rows, width = part.hidden_state.shape
    if rows < 1 or width < 1:
        raise InvalidParamsError(f"{field}.hidden_state", f"has the shape [{rows}, {width}]")
    return rows, width


def _turn(message: Message, field: str, tensors: Tensors, backend: Backend) -> Turn:
    content: list[str | Embeddings] = []
    for index, part in enumerate(message.parts):
        if isinstance(part, TextPart):
            content.append(part.text)
        else:
            content.append(_embeddings(part, f"{field}.content.{index}", tensors, backend))
    return Turn(message.role, content)


def _embeddings(part: LatentPart, field: str, tensors: Tensors, backend: Backend) -> Embeddings:
    """Return the input embeddings that a latent becomes, `[n, embedding_size]` float32."""
    bridge = _bridge(part, field, tensors, backend)
    rows = _rows(part, field, tensors)
    try:
        return bridge.apply(rows)
    except BridgeError as error:
        raise InvalidParamsError(field, str(error)) from error


def _bridge(part: LatentPart, field: str, tensors: Tensors, backend: Backend) -> Bridge:
    """Choose the bridge of a latent: the one that it names, else the one made for such rows."""
    declared = {**part.latent.model_dump(), "hidden_size": _shape(part, field, tensors)[1]}
    bridges = backend.bridges
    if part.bridge is not None:
        try:
            named = bridges.get(part.bridge)
        except BridgeError as error:
            raise InvalidParamsError(f"{field}.bridge", str(error)) from error
        differences = named.source.differences(declared)
        if differences:
            raise InvalidParamsError(f"{field}.latent", "; ".join(differences))
        return named
    fitting = [bridge for bridge in bridges if not bridge.source.differences(declared)]
    loaded = [bridge for bridge in fitting if not bridge.is_builtin]
    if len(loaded) == 1:
        return loaded[0]
    names = ", ".join(bridge.name for bridge in bridges)
    if loaded:
        raise InvalidParamsError(f"{field}.bridge", f"several bridges fit; name one of {names}")
    own = [bridge for bridge in fitting if bridge.source.model is not None]
    if own:
        return own[0]
    raise InvalidParamsError(
        f"{field}.latent",
        f"no bridge is made for rows of {part.latent.model}, width {declared['hidden_size']}, "
        f"layer {part.latent.layer}, normed {str(part.latent.normed).lower()}; there are: {names}",
    )


def _rows(part: LatentPart, field: str, tensors: Tensors) -> npt.NDArray[np.float32]:
    """Return the rows of a latent, `[n, width]` float32, all finite."""
    if isinstance(part.hidden_state, str):
        rows = tensors[part.hidden_state]
    else:
        try:
            rows = decode_hidden_state(part.hidden_state)
        except TensorError as error:
            raise InvalidParamsError(f"{field}.hidden_state.{error.field}", error.reason) from error
    is_finite = np.isfinite(rows).all(axis=1)
    if not is_finite.all():
        raise InvalidParamsError(
            f"{field}.hidden_state",
            f"row {int(np.argmin(is_finite))} holds a value that is not finite",
        )
    return rows
