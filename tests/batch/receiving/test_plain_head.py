import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire_batch.receiving.plain_head import PlainHead, plain_head

HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 12\r\n"
    b"content-type: application/x-safetensors; v=1\r\n\r\n"
)


def test_plain_head_is_read() -> None:
    assert plain_head(HEAD + b"body") == PlainHead(len(HEAD), 12, keeps_alive=True)


def test_head_that_closes_the_connection_is_plain() -> None:
    head = HEAD.replace(b"date:", b"Connection: Close\r\ndate:")
    assert plain_head(head) == PlainHead(len(head), 12, keeps_alive=False)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"200 OK", b"201 Created"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"12", b"0"),
        (b"12", b"12, 12"),
        (b"12", b"+12"),
        (b"12", b"1_2"),
        (b"12", b"12\r\ncontent-length: 12"),
        (b"12", b"12\r\ntransfer-encoding: chunked"),
        (b"12", b"12\r\nContent-Encoding: identity"),
        (b"12", b"12\r\nset-cookie: a=b"),
        (b"12", b"12\r\nconnection: upgrade"),
        (b"12", b"12\r\nfolded: a\r\n b"),
        (b"12", b"12\nx: y"),
        (b"12", b"12\r\nname : value"),
        (b"12", b"12\r\nbinary: \xff"),
        (b"Content-Length", b"x-length"),
        (b"application/x-safetensors", b"application/json"),
        (b"application/x-safetensors;", b"application/x-safetensors ;"),
        (b"\r\n\r\n", b"\r\n"),
    ],
)
def test_anything_to_interpret_is_left_to_h11(old: bytes, new: bytes) -> None:
    assert plain_head(HEAD.replace(old, new)) is None


_PARTS = st.sampled_from(
    [b"\r\n", b"\n", b":", b" ", b"\t", b"content-length: 12\r\n", b"connection: close\r\n", b"\0"]
    + [b"transfer-encoding: chunked\r\n", b"Content-Length: 13\r\n", b"HTTP/1.1 200", b"\xe4", b"9"]
)


@given(
    st.lists(st.tuples(st.integers(0, len(HEAD)), _PARTS | st.binary(max_size=3)), max_size=3),
    st.integers(0, len(HEAD)),
    st.integers(0, 4),
)
def test_plain_head_is_never_read_differently_than_by_h11(
    insertions: list[tuple[int, bytes]], cut_at: int, num_cut: int
) -> None:
    received = HEAD[:cut_at] + HEAD[cut_at + num_cut :]
    for place, part in insertions:
        received = received[:place] + part + received[place:]
    head = plain_head(received)
    if head is None:
        return
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(received[: head.num_bytes] + b"x" * head.body_bytes)
    response, body, end = (connection.next_event() for _ in range(3))
    assert isinstance(response, h11.Response)
    assert response.status_code == 200
    assert isinstance(body, h11.Data)
    assert len(body.data) == head.body_bytes
    assert isinstance(end, h11.EndOfMessage)
    assert (connection.their_state is h11.DONE) == head.keeps_alive
