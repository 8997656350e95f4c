"""A bridge as a directory: `bridge.json`, `bridge.safetensors` and a card.

What is in a directory may come from a stranger. No pickle in it is ever read; the one exception,
the state that Interlat publishes, is read as tensors alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from latentwire_service.bridges.builtin import BUILTIN_NAMES, GENERATOR, Receiver
from latentwire_service.bridges.interlat import (
    STATE_NAME,
    InterlatAdapter,
    published_sizes,
    read_published_state,
)
from latentwire_service.bridges.manifest import (
    CARD_NAME,
    MANIFEST_NAME,
    TENSORS_NAME,
    Config,
    Manifest,
    Source,
    Target,
    read_manifest,
    write_manifest,
)
from latentwire_service.bridges.module_bridge import ModuleBridge, arrays
from latentwire_service.bridges.modules import BridgeModule, Mlp, Ridge
from latentwire_service.engine.seams.bridge import BridgeError

logger = logging.getLogger(__name__)

# Endings of files that libraries read with pickle.
_PICKLED = frozenset(
    {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
)
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def load_bridge(directory: Path, receiver: Receiver) -> ModuleBridge:
    """Load a bridge for a model.

    Args:
        directory: of the bridge.
        receiver: the loaded model.

    Raises:
        BridgeError: the directory holds no bridge that can be used with this model; the message
            begins with the directory's name.
    """
    with naming("bridge", directory):
        manifest, tensors = _read(directory)
        _check_receiver(manifest, receiver)
        name = _name(directory, manifest)
        module = make_module(manifest)
        module.load_state_dict(dict(tensors))
        return ModuleBridge(
            name=name,
            kind=manifest.kind,
            source=manifest.bridge_source,
            module=module.to(receiver.device).eval().requires_grad_(False),
            content_hash=manifest.hash_with(arrays(tensors)),
            prompt=manifest.bridge_prompt,
        )


def check_bridge(directory: Path) -> str:
    """Check a directory without a model; return the bridge's name.

    Raises:
        BridgeError: as `load_bridge`.
    """
    with naming("bridge", directory):
        manifest, _ = _read(directory)
        return _name(directory, manifest)


def check_bridges(directories: Iterable[Path]) -> None:
    """Check directories without a model.

    Raises:
        BridgeError: as `load_bridge`, or two bridges have the same name.
    """
    names = [check_bridge(directory) for directory in directories]
    for name in names:
        if names.count(name) > 1:
            raise same_name(name)


def same_name(name: str) -> BridgeError:
    """Return the error of two bridges with one name."""
    return BridgeError(
        f"two bridges have the name {name}",
        'Change "name" in bridge.json, or the name of the directory.',
    )


def make_module(manifest: Manifest) -> BridgeModule:
    """Make the module that a manifest describes, with the weights that training starts from.

    Raises:
        BridgeError: its sizes do not fit each other.
    """
    config, width = manifest.config, manifest.receiver.hidden_size
    source_width = manifest.source.hidden_size
    if manifest.kind == "ridge":
        return Ridge(source_width, width, config.window)
    if manifest.kind == "mlp":
        if config.intermediate_size is None:
            raise BridgeError(f"{MANIFEST_NAME}: config.intermediate_size: required")
        return Mlp(source_width, width, config.window, config.intermediate_size)
    if width % config.num_heads:
        raise BridgeError(
            f"{MANIFEST_NAME}: config.num_heads is {config.num_heads}, which does not divide the "
            f"width {width}"
        )
    return InterlatAdapter(source_width, width, config.num_heads)


def save_bridge(
    directory: Path,
    manifest: Manifest,
    tensors: Mapping[str, torch.Tensor],
    card: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a bridge directory; `bridge.json` comes last, so an unfinished one is never loaded.

    Args:
        directory: is made if it does not exist.
        manifest: the content of `bridge.json`.
        tensors: the module's state dict.
        card: the content of `README.md`.
        dtype: of the stored tensors.

    Raises:
        OSError: a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    stored = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()
    }
    scratch = directory / f".{TENSORS_NAME}.new"
    # Written here, because the library gives the file to its owner alone.
    scratch.write_bytes(save(stored))
    scratch.replace(directory / TENSORS_NAME)
    (directory / CARD_NAME).write_text(card, encoding="utf-8")
    write_manifest(directory, manifest)


def _read(directory: Path) -> tuple[Manifest, dict[str, torch.Tensor]]:
    """Read the manifest and the tensors, `float32` on the CPU, which fit each other."""
    pickled = _check_files(directory)
    if STATE_NAME in pickled and not (directory / MANIFEST_NAME).exists():
        tensors = read_published_state(directory)
        source_width, width, num_heads = published_sizes(directory, tensors)
        manifest = Manifest(
            kind="interlat",
            source=Source(hidden_size=source_width),
            receiver=Target(hidden_size=width),
            config=Config(num_heads=num_heads),
        )
    else:
        manifest = read_manifest(directory)
        if STATE_NAME in pickled and manifest.kind != "interlat":
            raise _holds_pickle(STATE_NAME)
        tensors = read_published_state(directory) if STATE_NAME in pickled else {}
    expected = _expected_shapes(manifest)
    if STATE_NAME in pickled:
        _check_shapes({name: tuple(each.shape) for name, each in tensors.items()}, expected)
    else:
        tensors = _read_tensors(directory / TENSORS_NAME, expected)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BridgeError(f"tensor {name} holds values that are not finite")
    return manifest, tensors


def _check_files(directory: Path) -> set[str]:
    """Refuse pickles; return the names of those that are read as tensors alone."""
    if not directory.is_dir():
        is_file = directory.exists()
        raise BridgeError("is a file, not a directory" if is_file else "there is no such directory")
    allowed = set()
    try:
        for folder, _, names in os.walk(directory):
            for name in sorted(names):
                if Path(name).suffix.lower() in _PICKLED:
                    if name != STATE_NAME or Path(folder) != directory:
                        raise _holds_pickle(name)
                    allowed.add(name)
    except OSError as error:
        raise BridgeError(f"cannot be read: {error.strerror}") from error
    return allowed


def _holds_pickle(name: str) -> BridgeError:
    return BridgeError(
        f"holds {name}, a format that can run code when it is read",
        f"A bridge is {MANIFEST_NAME} and {TENSORS_NAME}. Move other files away.",
    )


def _expected_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    # On this device, sizes from the file cost no memory.
    with torch.device("meta"):
        state = make_module(manifest).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _check_shapes(
    given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    missing = sorted(expected.keys() - given.keys())
    if missing:
        raise BridgeError(f"has no tensor {', '.join(missing)}")
    unknown = sorted(given.keys() - expected.keys())
    if unknown:
        raise BridgeError(f"has a tensor that its kind does not: {', '.join(unknown)[:200]}")
    for name, shape in expected.items():
        if given[name] != shape:
            raise BridgeError(
                f"tensor {name} has shape {list(given[name])}; {MANIFEST_NAME} states {list(shape)}"
            )


def _read_tensors(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise BridgeError(f"there is no {path.name}")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            _check_shapes(
                {name: tuple(part.get_shape()) for name, part in slices.items()}, expected
            )
            for name, part in slices.items():
                if part.get_dtype() not in _DTYPES:
                    raise BridgeError(
                        f"tensor {name} is {part.get_dtype()}, not {', '.join(_DTYPES)}"
                    )
            return {name: file.get_tensor(name).float() for name in expected}
    except (SafetensorError, OSError, MemoryError, ValueError) as error:
        # The library's message says what is wrong with the header.
        raise BridgeError(
            f"{path.name} is damaged: {' '.join(str(error).split())[:200]}"
        ) from error


def _check_receiver(manifest: Manifest, receiver: Receiver) -> None:
    target = manifest.receiver
    if target.hidden_size != receiver.width:
        made_for = f" (made for {target.model})" if target.model else ""
        raise BridgeError(
            f"makes embeddings of width {target.hidden_size}{made_for}, and {receiver.model_id} "
            f"reads width {receiver.width}",
            "A bridge fits one receiver: latentwire fit-bridge --model makes one for this model.",
        )
    if target.model is not None and target.model != receiver.model_id:
        logger.warning(
            "the bridge was made for the model %s, and %s is served",
            target.model,
            receiver.model_id,
        )


def _name(directory: Path, manifest: Manifest) -> str:
    name = manifest.name or directory.resolve().name
    if name in (*BUILTIN_NAMES, GENERATOR) or ":" in name:
        raise BridgeError(
            f"has the name {name}, which is taken", f'Set another "name" in {MANIFEST_NAME}.'
        )
    return name


@contextmanager
def naming(kind: str, directory: Path) -> Iterator[None]:
    """Begin the message of an error with the directory's name; never with its path.

    Args:
        kind: of what the directory holds, in words.
        directory: that is read.
    """
    try:
        yield
    except BridgeError as error:
        name = directory.resolve().name or "/"
        raise BridgeError(f"{kind} {name}: {error}", error.hint) from error.__cause__
