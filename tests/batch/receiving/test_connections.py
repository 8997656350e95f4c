"""Connections of `ReceivingClient`: kept, replaced, given up, and bounded."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import tracemalloc
from typing import Any

import pytest

from latentwire import (
    AsyncClient,
    ConnectionFailedError,
    LatentwireError,
    PlanLatent,
    ProtocolError,
    TransportTimeoutError,
)
from latentwire.keepalive import socket_options
from latentwire_batch.dispatch.verdicts import Verdict, verdict_of
from latentwire_batch.receiving.buffers import BufferPool
from latentwire_batch.receiving.client import ReceivingClient
from latentwire_batch.receiving.connection import Connection
from latentwire_batch.receiving.connections import Connections
from support.batch.receiving import JSON, SAFETENSORS, http, in_json, packed, rows
from support.batch.scripted_server import Script, ScriptedServer
from support.batch.stub_answers import Behaviour, info


def receiving(base_url: str, **options: Any) -> ReceivingClient:
    options = {"timeout_s": 10, "max_retries": 0, "wire": "safetensors", **options}
    return ReceivingClient(base_url, pool=BufferPool(), **options)


async def failure(client: AsyncClient, **options: Any) -> LatentwireError:
    with pytest.raises(LatentwireError) as raised:
        await client.plan_latent("a", **options)
    return raised.value


def test_one_connection_carries_many_answers_which_stay_as_they_were() -> None:
    async def main() -> None:
        scripts = [Script([http(packed(plan=str(number)))], closes=False) for number in range(20)]
        async with ScriptedServer(scripts) as server, receiving(server.base_url) as client:
            plans = [await client.plan_latent("a") for _ in scripts]
            assert server.num_connections == 1
            # One that a NAT drops in silence is noticed.
            assert client._connections is not None
            (idle,) = client._connections._idle
            assert idle._transport is not None
            kept = idle._transport.get_extra_info("socket")
            found = [kept.getsockopt(level, name) for level, name, _ in socket_options()]
            assert found == [value for _, _, value in socket_options()]
        for number, plan in enumerate(plans):
            assert plan.plan == str(number)
            assert plan.hidden_state.tobytes() == rows().tobytes()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "is_in_place"), [(http(packed()), 1), (http(in_json(), JSON), 0)]
)
def test_the_latent_of_a_plain_answer_stays_where_it_was_received(
    answer: bytes, is_in_place: int
) -> None:
    async def main() -> None:
        pool = BufferPool()
        async with (
            ScriptedServer([Script([answer])]) as server,
            ReceivingClient(server.base_url, pool=pool, wire="safetensors") as client,
        ):
            latent = (await client.plan_latent("a")).hidden_state
            await asyncio.sleep(0)
            assert pool.idle_bytes == 0
            del latent
            assert bool(pool.idle_bytes) == is_in_place

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        http(packed()),
        http(packed(), SAFETENSORS, b"Connection: close"),
        http(packed()) + b"bytes that follow",
        http(in_json(), JSON) + b"bytes that follow",
    ],
)
def test_a_connection_that_cannot_be_used_again_is_replaced(answer: bytes) -> None:
    async def main() -> None:
        # The first kind is closed by the server once it is idle.
        scripts = [Script([answer], closes=answer == http(packed()))]
        async with ScriptedServer(scripts) as server, receiving(server.base_url) as client:
            for number in range(3):
                assert isinstance(await client.plan_latent("a"), PlanLatent)
                assert server.num_connections == number + 1
                await asyncio.sleep(0)

    asyncio.run(main())


@pytest.mark.parametrize("sent", [{"seed": 2}, {"task_id": "other"}])
@pytest.mark.parametrize("form", [(packed, SAFETENSORS), (in_json, JSON)])
def test_an_answer_to_another_request_is_refused_with_its_connection(
    sent: dict[str, Any], form: Any
) -> None:
    async def main() -> None:
        content, media_type = form
        scripts = [Script([http(content(), media_type)], closes=False)]
        async with ScriptedServer(scripts) as server, receiving(server.base_url) as client:
            assert (await client.plan_latent("a", seed=1)).seed == 1
            error = await failure(client, **sent)
            assert isinstance(error, ProtocolError)
            assert verdict_of(error) is Verdict.ROW_FAILED
            assert "has another" in str(error)
            assert (await client.plan_latent("a", seed=1)).seed == 1
            assert server.num_connections == 2

    asyncio.run(main())


def test_requests_at_the_same_time_have_a_connection_each() -> None:
    async def main() -> None:
        scripts = [Script([http(packed())], closes=False)]
        async with ScriptedServer(scripts) as server, receiving(server.base_url) as client:
            for _ in range(2):
                await asyncio.gather(*(client.plan_latent("a") for _ in range(4)))
            assert server.num_connections == 4

    asyncio.run(main())


def test_the_request_is_that_of_httpx() -> None:
    async def sent(kind: type[AsyncClient], **options: Any) -> tuple[bytes, set[bytes], bytes]:
        async with ScriptedServer([Script([http(packed(k=3, token_ids=[1] * 9))])]) as server:
            url = f"{server.base_url}/replicas/0/"
            client = kind(url, wire="safetensors", api_key="secret", **options)
            async with client:
                await failure(client, k=3, task_id="t", request_id="row-1", stop=["x"])
            head, _, body = server.requests[0].partition(b"\r\n\r\n")
            first, *rest = head.replace(str(server.port).encode(), b"PORT").split(b"\r\n")
            lines = {line.partition(b":")[0].lower() + line.partition(b":")[2] for line in rest}
            return first, {line for line in lines if b"accept-encoding" not in line}, body

    expected = asyncio.run(sent(AsyncClient))
    assert asyncio.run(sent(ReceivingClient, pool=BufferPool())) == expected
    assert expected[0] == b"POST /replicas/0/plan_latent?k=3 HTTP/1.1"


def test_an_answer_that_is_not_wanted_ends_its_connection() -> None:
    async def main() -> None:
        asked = asyncio.Event()
        part = http(packed())[:-1]
        server = ScriptedServer([Script([part], closes=False)], on_request=asked.set)
        async with server, receiving(server.base_url) as client:
            request = asyncio.create_task(client.plan_latent("a"))
            await asked.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await server.left.wait()

    asyncio.run(main())


@pytest.fixture
def connects_patiently(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, to connect may take longer than the silence."""
    connect = Connections._connect

    async def patiently(connections: Connections, _timeout_s: float) -> Connection:
        return await connect(connections, 30.0)

    monkeypatch.setattr(Connections, "_connect", patiently)


@pytest.mark.parametrize(
    "part", [b"", b"HTTP/1.1 200 OK", http(packed())[:-1], http(in_json())[:-1]]
)
@pytest.mark.usefixtures("connects_patiently")
def test_silence_ends_a_request(part: bytes) -> None:
    async def main() -> None:
        server = ScriptedServer([Script([part], closes=False)])
        async with server, receiving(server.base_url, timeout_s=0.05) as client:
            error = await failure(client)
            assert type(error) is TransportTimeoutError
            assert str(error).endswith("/plan_latent: no answer in time (ReadTimeout)")
            await server.left.wait()

    asyncio.run(main())


@pytest.mark.usefixtures("connects_patiently")
@pytest.mark.parametrize("idle_s", [0.0, 0.5])
def test_silence_ends_a_later_request_of_a_connection(idle_s: float) -> None:
    async def main() -> None:
        scripts = [Script([part], closes=False) for part in (http(packed()), b"HTTP/1.1")]
        async with (
            ScriptedServer(scripts) as server,
            receiving(server.base_url, timeout_s=0.4) as client,
        ):
            await client.plan_latent("a")
            await asyncio.sleep(idle_s)
            assert type(await failure(client)) is TransportTimeoutError
            assert server.num_connections == 1
            await server.left.wait()

    asyncio.run(main())


def test_a_slow_answer_is_no_silence() -> None:
    async def main() -> None:
        pieces = [packed()[start : start + 32] for start in range(0, len(packed()), 32)]
        pieces[0] = http(packed())[: -len(packed())] + pieces[0]
        server = ScriptedServer([Script(pieces, pause_s=0.03)])
        async with server, receiving(server.base_url, timeout_s=1.0) as client:
            started_s = asyncio.get_running_loop().time()
            assert isinstance(await client.plan_latent("a"), PlanLatent)
            assert asyncio.get_running_loop().time() - started_s > 1.0

    asyncio.run(main())


def test_an_end_that_the_loop_has_not_seen_is_no_failure() -> None:
    """The server closes a connection while this process is busy."""
    closed = threading.Event()

    def serve(server: socket.socket) -> None:
        for _ in range(2):
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(http(packed()))
                answered.wait(30)
            closed.set()

    answered = threading.Event()

    async def main(port: int) -> None:
        async with receiving(f"http://127.0.0.1:{port}") as client:
            await client.plan_latent("a")
            answered.set()
            assert closed.wait(30)
            assert isinstance(await client.plan_latent("a"), PlanLatent)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        asyncio.run(main(server.getsockname()[1]))
        thread.join()


def test_two_addresses_that_refuse_are_a_port_without_listener(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def addresses(*_: object, **__: object) -> list[tuple[Any, ...]]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.1", port)), (*kind, ("127.0.0.2", port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", addresses)
    with socket.socket() as unused:
        # Bound the whole time, so that no other process listens there.
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = asyncio.run(failure(receiving(f"http://replica.example:{port}")))
    assert str(error).endswith("/plan_latent: nothing listens there")
    assert verdict_of(error) is Verdict.REPLICA_AWAY


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_without_listener_refuses_the_connection(host: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = asyncio.run(failure(receiving(f"http://{host}:{port}")))
    assert isinstance(error, ConnectionFailedError)
    assert str(error).endswith("/plan_latent: nothing listens there")
    assert verdict_of(error) is Verdict.REPLICA_AWAY


def test_a_name_that_is_unknown_is_a_failed_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    # A name server might take longer than the request.
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = asyncio.run(failure(receiving("http://no-such-host.invalid:1")))
    assert str(error).endswith("/plan_latent: the host name is unknown")
    assert verdict_of(error) is Verdict.REPLICA_AWAY


def test_ipv6_addresses_are_reached() -> None:
    async def main() -> None:
        try:
            server = ScriptedServer([Script([http(packed())])], host="::1")
            async with server, receiving(f"http://[::1]:{server.port}") as client:
                assert isinstance(await client.plan_latent("a"), PlanLatent)
                assert f"host: [::1]:{server.port}\r\n".encode() in server.requests[0].lower()
        except OSError:
            pytest.skip("this machine has no IPv6")

    asyncio.run(main())


@pytest.mark.parametrize("media_type", [SAFETENSORS, JSON])
def test_an_answer_larger_than_any_plan_takes_no_memory(media_type: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: 99999999999999\r\n\r\n"

    async def main() -> None:
        about = http(json.dumps(info(Behaviour(hidden_size=24))).encode(), JSON)
        pieces = [head % media_type, *[bytes(1 << 20)] * 200]
        async with (
            ScriptedServer([Script([about]), Script(pieces)]) as server,
            receiving(server.base_url) as client,
        ):
            await client.info()
            tracemalloc.start()
            error = await failure(client, max_new_tokens=9)
            peak_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert type(error) is ProtocolError
            assert "the answer is larger than" in str(error)
            assert verdict_of(error) is Verdict.ROW_FAILED
            assert peak_bytes < 100 << 20

    asyncio.run(main())


def test_content_that_grows_when_it_is_decoded_is_bounded() -> None:
    bomb = gzip.compress(bytes(200 << 20), 1)

    async def main() -> None:
        about = http(json.dumps(info(Behaviour(hidden_size=24))).encode(), JSON)
        answer = http(bomb, SAFETENSORS, b"Content-Encoding: gzip")
        async with (
            ScriptedServer([Script([about]), Script([answer])]) as server,
            receiving(server.base_url) as client,
        ):
            await client.info()
            error = await failure(client, max_new_tokens=9)
            assert type(error) is ProtocolError
            assert "the answer is larger than" in str(error)

    asyncio.run(main())


def test_cookies_are_sent_back() -> None:
    async def main() -> None:
        first = http(packed(), SAFETENSORS, b"Set-Cookie: replica=3; Path=/")
        scripts = [Script([first], closes=False), Script([http(packed())], closes=False)]
        async with ScriptedServer(scripts) as server, receiving(server.base_url) as client:
            for _ in range(3):
                await client.plan_latent("a")
        assert [b"replica=3" in request for request in server.requests] == [False, True, True]

    asyncio.run(main())


def test_a_large_task_is_sent() -> None:
    async def main() -> None:
        task = "a" * (1 << 20)
        async with (
            ScriptedServer([Script([http(packed())])]) as server,
            receiving(server.base_url) as client,
        ):
            await client.plan_latent(task)
        assert task.encode() in server.requests[0]

    asyncio.run(main())


def test_a_password_of_the_address_is_sent() -> None:
    async def main() -> None:
        async with ScriptedServer([Script([http(packed())])]) as server:
            async with receiving(f"http://user:word@127.0.0.1:{server.port}") as client:
                await client.plan_latent("a")
            assert b"Basic dXNlcjp3b3Jk" in server.requests[0]

    asyncio.run(main())


def test_a_proxy_gets_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with ScriptedServer([Script([http(packed())])]) as proxy:
            monkeypatch.setenv("http_proxy", proxy.base_url)
            async with receiving("http://replica.example:8000") as client:
                await client.plan_latent("a")
            assert proxy.requests[0].startswith(b"POST http://replica.example:8000/plan_latent")

    asyncio.run(main())
