"""The bridges of one loaded model: built in, loaded from directories, and random controls."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from latentwire.bridge_manifest import content_hash
from latentwire_service.bridges.builtin import GENERATOR, WEIGHTS, Receiver, builtin_bridges
from latentwire_service.bridges.directory import load_bridge, same_name
from latentwire_service.bridges.generator import load_generator
from latentwire_service.bridges.module_bridge import ModuleBridge, StepBridge
from latentwire_service.bridges.modules import RandomMap
from latentwire_service.engine.seams.bridge import BridgeError, Rows

CONTROL_PREFIX = "random:"


class BridgeRegistry:
    """Bridges by name.

    Args:
        bridges: with unique names, in the order to list them.
        refused: reason by name, for built-in bridges that the model does not allow.

    Raises:
        BridgeError: two bridges have the same name.
    """

    def __init__(
        self, bridges: Sequence[ModuleBridge], refused: Mapping[str, str] | None = None
    ) -> None:
        self._bridges: dict[str, ModuleBridge] = {}
        for bridge in bridges:
            if bridge.name in self._bridges or bridge.name in (refused or {}):
                raise same_name(bridge.name)
            self._bridges[bridge.name] = bridge
        self._refused = dict(refused or {})
        self._controls: dict[str, ModuleBridge] = {}
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[ModuleBridge]:
        """Yield the bridges, without the random controls."""
        return iter(self._bridges.values())

    def get(self, name: str) -> ModuleBridge:
        """Return a bridge, as `Bridges.get`."""
        controlled = name.removeprefix(CONTROL_PREFIX)
        if name != controlled and controlled in self._bridges:
            with self._lock:
                return self._control(name, self._bridges[controlled])
        if name in self._bridges:
            return self._bridges[name]
        if name in self._refused:
            raise BridgeError(f"this model has no bridge {name}: {self._refused[name]}")
        names = ", ".join(self._bridges)
        raise BridgeError(
            f"there is no bridge {name}; there are: {names}, and {CONTROL_PREFIX}NAME of each"
        )

    @property
    def default_step(self) -> str:
        """Name of the bridge that feeds latent steps unless a request names one."""
        return GENERATOR if GENERATOR in self._bridges else WEIGHTS

    def step_start(self, name: str) -> Rows | None:
        """Return the embeddings that end the prompt, as `Bridges.step_start`."""
        start = self.get(name).start
        rows: Rows | None = None if start is None else start[None].float().cpu().numpy()
        return rows

    def step(self, name: str) -> StepBridge:
        """Return the bridge as the function that feeds latent steps, as `Bridges.step`."""
        bridge = self.get(name)
        if not bridge.is_row_wise:
            raise BridgeError(
                f"bridge {name} reads neighbouring rows, so it cannot feed latent steps"
            )
        return bridge.step

    def _control(self, name: str, other: ModuleBridge) -> ModuleBridge:
        if name not in self._controls:
            module = RandomMap(other.module, zlib.crc32(other.name.encode()), other.device)
            hashed = content_hash({"kind": "random", "of": other.content_hash}, {})
            self._controls[name] = ModuleBridge(
                name,
                "random",
                other.source,
                module.eval(),
                hashed,
                other.prompt,
                other.is_builtin,
            )
        return self._controls[name]


def load_registry(
    receiver: Receiver, directories: Sequence[Path], generator: Path | None = None
) -> BridgeRegistry:
    """Make the built-in bridges of a model and load the given ones.

    Args:
        receiver: the loaded model; a generator replaces its weights.
        directories: of bridges.
        generator: directory of a latent generator.

    Raises:
        BridgeError: a directory holds no bridge for this model, or two bridges have one name.
    """
    # First: the built-in bridges follow from the weights that it brings.
    own = [] if generator is None else [load_generator(generator, receiver)]
    builtin, refused = builtin_bridges(receiver)
    loaded = [load_bridge(directory, receiver) for directory in directories]
    return BridgeRegistry([*builtin, *own, *loaded], refused)
