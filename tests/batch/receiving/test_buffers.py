import gc
import threading

import numpy as np
import pytest

from latentwire_batch.receiving.buffers import BufferPool

SIZE = 100_000


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_memory_that_nothing_refers_to_is_used_again() -> None:
    pool = BufferPool()
    view = pool.take(SIZE)
    first = address(view)
    assert first % 16 == 0
    del view
    assert pool.idle_bytes >= SIZE
    # Of a similar size, too.
    again = pool.take(SIZE - 1000)
    assert address(again) == first
    assert again.nbytes == SIZE - 1000
    assert pool.idle_bytes == 0


@pytest.mark.parametrize("place", [0, 1, 4095, 4096, 12_345, 2**63])
def test_a_position_can_be_at_a_page(place: int) -> None:
    pool = BufferPool()
    for _ in range(2):
        view = pool.take(SIZE, place)
        assert view.nbytes == SIZE
        assert (address(view) + place) % 4096 == 0
        view[-1] = 1
        del view


@pytest.mark.parametrize(
    "derive",
    [
        lambda view: np.frombuffer(view[8:16], np.float32),
        lambda view: np.frombuffer(view.toreadonly(), np.uint8)[4:].reshape(2, -1)[1:],
        lambda view: np.frombuffer(view, np.uint8).data[5:9].toreadonly(),
    ],
)
def test_memory_that_something_refers_to_is_left_alone(derive: object) -> None:
    assert callable(derive)
    pool = BufferPool()
    view = pool.take(SIZE)
    view[:] = b"\1" * SIZE
    kept = derive(view)
    expected = bytes(kept)
    del view
    gc.collect()
    assert pool.idle_bytes == 0
    pool.take(SIZE)[:] = b"\2" * SIZE
    assert bytes(kept) == expected
    del kept
    assert pool.idle_bytes > 0


def test_much_larger_memory_is_not_taken_for_a_small_answer() -> None:
    pool = BufferPool()
    del (large := [pool.take(10 * SIZE)])[:]
    small = pool.take(SIZE)
    assert not large
    assert small.nbytes == SIZE
    assert pool.idle_bytes >= 10 * SIZE


def test_unused_memory_is_bounded() -> None:
    pool = BufferPool(max_idle_bytes=3 * SIZE)
    held = [pool.take(SIZE) for _ in range(5)]
    held.clear()
    assert 0 < pool.idle_bytes <= 3 * SIZE


def test_memory_may_return_on_another_thread() -> None:
    pool = BufferPool()
    held = [pool.take(SIZE)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert pool.idle_bytes >= SIZE
