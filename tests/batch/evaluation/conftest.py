"""One service with a tiny model, which has loaded a bridge with random values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latentwire_batch.evaluation.command import main
from latentwire_service.settings import Settings
from support.batch.collecting import Ended
from support.batch.evaluating import latents, write_dataset
from support.bridge_folders import manifest, save
from support.live_server import LiveServer
from support.tiny_models import save_chat_model

Evaluate = Callable[..., Ended]


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bridges") / "mine", manifest("ridge"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(model: Path, bridge: Path) -> Iterator[LiveServer]:
    live = LiveServer(Settings(model=str(model), max_slots=4, bridge=(bridge,)))
    yield live.wait_ready()
    live.close()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data.parquet", latents(5))


@pytest.fixture
def evaluate(
    dataset: Path, bridge: Path, server: LiveServer, capfd: pytest.CaptureFixture[str]
) -> Evaluate:
    """Run `latentwire evaluate` on `dataset` with the bridge of the service; later flags win."""

    def run(*flags: str) -> Ended:
        given = {"--bridge": str(bridge), "--url": server.url}
        defaults = [part for flag in given.items() if flag[0] not in flags for part in flag]
        paths = [] if flags and not flags[0].startswith("--") else [str(dataset)]
        capfd.readouterr()
        status = main([*paths, *flags, *defaults])
        return Ended(status, capfd.readouterr().err)

    return run
