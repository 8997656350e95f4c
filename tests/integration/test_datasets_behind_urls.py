"""Every command that reads a dataset of latents reads one behind a URL."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fsspec
import pytest

import latentwire
from latentwire_batch.compression.command import main as compress
from latentwire_batch.evaluation.command import main as evaluate
from latentwire_batch.inspection.command import main as inspect
from latentwire_service.bridges.fitting.command import main as fit_bridge
from latentwire_service.compressors.fitting.command import main as fit_compressor
from latentwire_service.fitting.command import Say, run_fit
from latentwire_service.fitting.settings import DatasetSettings
from support.fits.latent_files import random_latents, write_latents
from support.stores.file_server import FileServer, ServedFile

URL = "memory://bucket/out"
OUT = "--output-dir"
Main = Callable[[Sequence[str]], int]
# Each command with its arguments behind the dataset, and its status with a dataset that suits it.
COMMANDS: dict[str, tuple[Main, list[str], int, str]] = {
    "inspect": (lambda args: inspect(list(args)), [], 0, "rows"),
    "compress": (compress, ["--compressor", "mean-pool:2", OUT, "{out}"], 0, "all 20 rows"),
    "fit-compressor": (
        fit_compressor,
        ["--kind", "pca", "--k", "2", "--dim", "3", "--device", "cpu", OUT, "{out}"],
        0,
        "copying 1 files",
    ),
    # A model is loaded behind this check.
    "fit-bridge": (
        fit_bridge,
        ["--limit", "1", "--device", "cpu", OUT, "{out}"],
        2,
        "DATASET: fewer than 2 usable rows are held out",
    ),
    # A service is needed behind this check.
    "evaluate": (
        evaluate,
        ["--url", "http://127.0.0.1:9", "--held-out", "0.01", "--bridge", "embeddings"],
        2,
        "DATASET: 0 of 20 tasks are to be scored",
    ),
}


@pytest.fixture(autouse=True)
def store(tmp_path: Path) -> Iterator[None]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    path = write_latents(tmp_path / "in" / "data.parquet", random_latents(20))
    filesystem.pipe_file("/bucket/out/data.parquet", path.read_bytes())
    filesystem.pipe_file("/bucket/hub/data/test-00000-of-00001.parquet", path.read_bytes())
    yield
    filesystem.store.clear()


def run(name: str, url: str, tmp_path: Path) -> tuple[int, int, str]:
    main, more, status, said = COMMANDS[name]
    return main([url, *(word.format(out=tmp_path / "new") for word in more)]), status, said


@pytest.mark.parametrize(
    "url", [f"{URL}/", "MEMORY://bucket/out/data.parquet", "memory://bucket/hub"]
)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_reads_a_dataset_behind_a_url(
    name: str, url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(latentwire.load(url)) == 20
    found, status, said = run(name, url, tmp_path)
    text = "".join(capfd.readouterr())
    assert found == status, text
    assert said in text
    assert "Traceback" not in text


def test_a_terminated_fit_removes_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    copies: list[Path] = []

    def fit(_settings: DatasetSettings, _say: Say) -> None:
        copies.extend(tmp_path.glob("latentwire-*/*.parquet"))
        os.kill(os.getpid(), signal.SIGTERM)

    earlier = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        status = run_fit("fit", "", DatasetSettings, fit, [URL, OUT, str(tmp_path / "new")])
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert (status, len(copies)) == (130, 1)
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]


@pytest.mark.parametrize("url", ["memory://bucket/none", "s4://id:secret@bucket/x"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_is_wrong_with_a_url(
    name: str, url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found, _, _ = run(name, url, tmp_path)
    text = "".join(capfd.readouterr())
    assert found == 2, text
    assert "DATASET: " in text or "PATH: " in text
    assert "secret" not in text
    assert "Traceback" not in text


SECRET = "s3cret"
NO_COPY = "DATASET: cannot be copied to this machine: "


def test_a_fit_copies_what_a_web_server_serves(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = (tmp_path / "in" / "data.parquet").read_bytes()
    query = f"token={SECRET}"
    answers = {
        "plain": (ServedFile(data, query=query), 0, f"copying 1 files ({len(data):,} bytes) of"),
        "no-size": (ServedFile(data, states_size=False, query=query), 0, "copying 1 files of"),
        "cut": (ServedFile(data, num_sent=99, query=query), 2, f"{NO_COPY}the connection broke"),
        "denied": (ServedFile(data, status=403, query=query), 2, f"{NO_COPY}access is denied"),
        "broken": (ServedFile(data, status=500, query=query), 2, f"{NO_COPY}the store answered"),
    }
    copied: list[bytes] = []

    def fit(settings: DatasetSettings, _say: Say) -> None:
        copied.append((Path(settings.dataset) / "data.parquet").read_bytes())

    def fitted(url: str) -> tuple[int, str]:
        status = run_fit("fit", "", DatasetSettings, fit, [url, OUT, str(tmp_path / "new")])
        text = "".join(capfd.readouterr())
        assert SECRET not in text
        return status, text

    with FileServer() as server:
        for name, (file, status, said) in answers.items():
            server.files[f"/{name}/data.parquet"] = file
            found, text = fitted(f"{server.url}/{name}/data.parquet?{query}")
            assert (found, said in text) == (status, True), text
        # A folder is one here because a page stands for it.
        assert fitted(f"{server.url}/plain?{query}")[0] == 0
    assert copied == [data] * 3
    assert f"{NO_COPY}the store cannot be reached" in fitted(f"http://127.0.0.1:1/x?{query}")[1]
    assert f"{NO_COPY}the URL, or a setting" in fitted(f"http://host:99999/x?{query}")[1]


def test_a_fit_without_room_for_a_copy_does_not_blame_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    args = [URL, OUT, str(tmp_path / "new")]
    with monkeypatch.context() as changed:
        changed.setattr(tempfile, "tempdir", str(tmp_path / "none"))
        assert run_fit("fit", "", DatasetSettings, lambda *_: None, args) == 2
    text = "".join(capfd.readouterr())
    assert f"{NO_COPY}no temporary directory can be made: No such file or directory" in text
    assert "--output-dir" not in text
