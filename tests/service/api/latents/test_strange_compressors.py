"""Compressors of installed packages and of directories: what they do wrong harms nobody else."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from latentwire import Client
from latentwire.compressors import CompressorError, named_compressor
from latentwire.compressors.manifest import CompressorManifest
from latentwire_service.compression.catalog import (
    CompressorCatalog,
    LearnedCompressor,
    load_catalog,
)
from latentwire_service.compression.pool import CompressionPool
from latentwire_service.engine.errors import InvalidParamsError, QueueFullError
from latentwire_service.model_service import State
from support.compressing.strangers import BROKEN, SECRET, Point, Stranger, install
from support.gate import TIMEOUT_S, Gate
from support.live_server import LiveServer
from support.requests import assert_problem, plan_of, post
from support.tiny_shape import HIDDEN_SIZE

pytestmark = pytest.mark.backends("fake")

BODY: dict[str, Any] = {"task": "Wash", "max_new_tokens": 9, "seed": 4}


@pytest.fixture(scope="module", autouse=True)
def _broken_compressors() -> Iterator[None]:
    """The module's server has every broken compressor."""
    with pytest.MonkeyPatch.context() as patched:
        install(patched, BROKEN)
        yield


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_compressor_fails_its_own_request_alone(
    server: LiveServer, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.INFO):
        answer = post(server, BODY | {"compressor": name, "k": 1})
    problem = assert_problem(answer, 500, "internal")
    assert problem.error_id is not None
    assert problem.detail == f"error {problem.error_id}; see the log of the service"
    assert problem.error_id in caplog.text
    assert f"compressor {name}" in caplog.text or "a compressor raised SystemExit" in caplog.text
    assert SECRET not in caplog.text + answer.text
    assert plan_of(post(server, BODY | {"compressor": "first", "k": 1}))
    assert server.service.state is State.READY


@pytest.mark.parametrize("name", ["raises", "nan", "exits"])
def test_a_broken_compressor_ends_a_stream_with_an_error_event(
    server: LiveServer, name: str
) -> None:
    answer = post(server, BODY | {"compressor": name, "k": 1, "stream": True})
    *_, last = answer.text.strip().split("\n\n")
    assert last.startswith("event: error")
    assert '"code":"internal"' in last
    assert SECRET not in answer.text


def test_a_package_that_cannot_be_loaded_is_refused_by_name_before_generation(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_k: int | None) -> Any:
        raise ImportError(SECRET)

    install(
        monkeypatch,
        {"good": lambda rows: {"hidden_state_comp": rows[:1]}},
        [Point("bad", fail)],
    )
    live = start().wait_ready()
    assert {"good", "bad"} <= set(live.http.get("/info").json()["compressors"])
    refused = post(live, BODY | {"compressor": "bad", "k": 1})
    assert "bad" in assert_problem(refused, 422, "invalid-request", "compressor").detail
    assert not live.watch.submitted.acquire(blocking=False)
    assert plan_of(post(live, BODY | {"compressor": "good", "k": 1}))


def test_compressors_run_on_their_own_threads(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = install(monkeypatch, {"good": lambda rows: {"hidden_state_comp": rows[:1]}})
    live = start().wait_ready()
    for stream in (False, True):
        assert post(live, BODY | {"compressor": "good", "k": 1, "stream": stream}).is_success
    assert len(made["good"].threads) == 2
    assert live.thread.ident not in made["good"].threads


def test_a_compressor_that_never_returns_holds_up_only_requests_that_name_it(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    ended = threading.Event()

    def hang(rows: Any) -> Any:
        gate.may_pass.wait(TIMEOUT_S)
        ended.set()
        return {"hidden_state_comp": rows[:1]}

    install(monkeypatch, {"hangs": hang, "good": lambda rows: {"hidden_state_comp": rows[:1]}})
    live = start().wait_ready()
    hanging = BODY | {"compressor": "hangs", "k": 1}
    headers = {"X-Request-Timeout": "0.3"}
    # More than there are threads.
    for stream in (False, True, False, True, False, True):
        body = hanging | {"stream": stream}
        answer = live.http.post("/plan_latent", json=body, headers=headers)
        if stream:
            assert "deadline-exceeded" in answer.text
        else:
            assert_problem(answer, 504, "deadline-exceeded")
    for name in ("first", "good"):
        assert plan_of(post(live, BODY | {"compressor": name, "k": 1}))
    assert plan_of(post(live, BODY))
    assert live.service.is_working
    assert not ended.is_set()
    gate.may_pass.set()


def test_a_caller_that_leaves_frees_its_place(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    began = threading.Event()

    def hold(rows: Any) -> Any:
        began.set()
        gate.may_pass.wait(TIMEOUT_S)
        return {"hidden_state_comp": rows[:1]}

    install(monkeypatch, {"holds": hold})
    live = start().wait_ready()
    content = json.dumps(BODY | {"compressor": "holds", "k": 1}).encode()
    with socket.create_connection(("127.0.0.1", live.port)) as leaving:
        leaving.sendall(
            b"POST /plan_latent HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(content) + content
        )
        assert began.wait(TIMEOUT_S)
    gate.may_pass.set()
    assert plan_of(post(live, BODY | {"compressor": "holds", "k": 1}))


def test_a_pool_refuses_what_it_cannot_keep_up_with() -> None:
    held = threading.Event()

    async def fill() -> None:
        pool = CompressionPool(num_threads=1, max_pending=2)
        pool.check_room()
        waiting = [asyncio.create_task(pool.run(lambda: held.wait(TIMEOUT_S))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            pool.check_room()
        waiting[1].cancel()
        held.set()
        await asyncio.wait(waiting)
        assert waiting[1].cancelled()
        pool.check_room()

    asyncio.run(fill())


# --- compressors of directories


def learned(name: str, width: int, k: int | None = None) -> LearnedCompressor:
    manifest = CompressorManifest.model_validate(
        {
            "kind": "pca",
            "name": name,
            "source": {"hidden_size": width},
            "k": k,
            "dim": 2,
            "output": "coefficients",
        }
    )
    return LearnedCompressor(manifest, {})


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> CompressorCatalog:
    """Two loaded compressors, for rows of width 4 and 5."""

    def make(manifest: CompressorManifest, _tensors: Any, k: int | None) -> Any:
        kept = manifest.k if k is None else k
        made = Stranger(str(manifest.name), lambda rows: rows, kept)
        made.source_width = manifest.source.hidden_size
        return made

    monkeypatch.setattr("latentwire_service.compression.catalog.learned_compressor", make)
    return CompressorCatalog([learned("narrow", 4, k=8), learned("wide", 5)])


@pytest.mark.parametrize(
    ("name", "k", "field", "message"),
    [
        (
            "wide",
            2,
            "compressor",
            "wide reads rows of width 5, and the model's have 4; there are: ",
        ),
        ("narrow", 9, "k", "must be at most 8, for which the compressor narrow was made, not 9"),
        ("narrow", 0, "k", "must be from 1 to 1048576, not 0"),
        ("wide", 1 << 21, "k", "must be from 1 to 1048576, not 2097152"),
        ("none", 1, "compressor", "there is no compressor 'none'; there are: first, "),
    ],
)
def test_a_loaded_compressor_that_does_not_fit_is_refused(
    catalog: CompressorCatalog, name: str, k: int, field: str, message: str
) -> None:
    with pytest.raises(InvalidParamsError) as raised:
        catalog.get(name, k, hidden_size=4)
    assert raised.value.field == field
    assert raised.value.message.startswith(message)
    if "there are" in message:
        names = raised.value.message.rpartition("there are: ")[2].split(", ")
        assert "narrow" in names
        assert ("wide" in names) == (name == "none")


def test_a_loaded_compressor_has_its_own_k_or_fewer(catalog: CompressorCatalog) -> None:
    assert catalog.get("narrow", None, 4).k == 8
    assert catalog.get("narrow", 3, 4).k == 3
    assert catalog.get("narrow", 3, 4) is catalog.get("narrow", 3, 4)
    info = {each.name: each for each in catalog.infos}
    assert (info["narrow"].k, info["narrow"].source_width) == (8, 4)
    assert info["narrow"].content_hash is not None


def test_a_catalog_keeps_few_of_the_compressors_that_requests_name() -> None:
    catalog = CompressorCatalog()
    first = catalog.get("first", 1, 4)
    for k in range(2, 200):
        assert catalog.get("first", k, 4).k == k
    assert catalog.get("first", 1, 4) is not first
    assert len(catalog._made) <= 64


def write_pca(directory: Path, name: str, width: int) -> dict[str, Any]:
    """Write a compressor of mean-pooled rows to two coordinates, with 4 rows at most."""
    rng = np.random.default_rng(1)
    directory.mkdir()
    tensors = {
        "mean": rng.standard_normal(width).astype(np.float32),
        "components": np.linalg.qr(rng.standard_normal((width, 2)))[0].T.astype(np.float32).copy(),
    }
    save_file(tensors, directory / "compressor.safetensors")
    manifest = {
        "format": "latentwire-compressor",
        "version": 1,
        "kind": "pca",
        "name": name,
        "source": {"hidden_size": width},
        "k": 4,
        "dim": 2,
        "config": {"rows": "mean-pool"},
        "output": "coefficients",
    }
    (directory / "compressor.json").write_text(json.dumps(manifest), encoding="utf-8")
    return tensors


def test_a_service_offers_the_compressors_of_its_directories(
    start: Callable[..., LiveServer], tmp_path: Path
) -> None:
    tensors = write_pca(tmp_path / "fits", "pca-4", HIDDEN_SIZE)
    write_pca(tmp_path / "wide", "too-wide", HIDDEN_SIZE + 1)
    live = start(compressor=(tmp_path / "fits", tmp_path / "wide")).wait_ready()
    info = live.http.get("/info").json()
    assert info["compressors"][-2:] == ["pca-4", "too-wide"]
    described = info["compressor_info"][-2]
    assert (described["kind"], described["k"], described["source_width"]) == ("pca", 4, HIDDEN_SIZE)
    with Client(live.url) as client:
        for k in (None, 4, 3):
            plan = client.plan_latent("Wash", k=k, compressor="pca-4", max_new_tokens=9, seed=4)
            num_kept = 4 if k is None else k
            bounds = [i * 9 // 4 for i in range(5)]
            pairs = zip(bounds, bounds[1:], strict=False)
            means = np.array([plan.hidden_state[a:b].mean(axis=0) for a, b in pairs])
            # With a smaller k, it keeps the first of its rows.
            expected = ((means - tensors["mean"]) @ tensors["components"].T)[:num_kept]
            assert plan.hidden_state_comp is not None
            np.testing.assert_allclose(plan.hidden_state_comp, expected, atol=1e-5)
            assert plan.compressor is not None
            assert (plan.compressor.name, plan.compressor.kind) == ("pca-4", "pca")
            is_own = plan.compressor.content_hash == described["content_hash"]
            assert is_own == (num_kept == 4)
    while live.watch.submitted.acquire(blocking=False):
        pass
    for name, k, field in (("pca-4", 5, "k"), ("too-wide", 2, "compressor")):
        assert_problem(
            post(live, BODY | {"compressor": name, "k": k}), 422, "invalid-request", field
        )
    assert not live.watch.submitted.acquire(blocking=False)


def test_a_name_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    read = learned("mean-pool", 4)
    monkeypatch.setattr(
        "latentwire_service.compression.catalog.read_compressor",
        lambda _directory: (read.manifest, read.tensors),
    )
    monkeypatch.setattr(
        "latentwire_service.compression.catalog.learned_compressor",
        lambda *_args: named_compressor("first", 1),
    )
    with pytest.raises(CompressorError, match=f"compressor {tmp_path.name}: the name mean-pool is"):
        load_catalog([tmp_path])


def test_serve_refuses_a_directory_without_a_compressor(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentwire_service.__main__ import main

    monkeypatch.setattr("signal.signal", lambda *_args: None)
    assert main(["--compressor", str(tmp_path / "none"), "--log-level", "error"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("latentwire serve: --compressor: compressor none: ")
    assert str(tmp_path) not in error
