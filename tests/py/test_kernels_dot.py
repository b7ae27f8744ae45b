"""mul through the extension, at every instruction set this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from ruvllm import ArgumentError, _core

DTYPES = _core.dtypes()
FLOATS = ("f32", "f16", "bf16")
WITH_MIN = ("q4_1", "q5_1", "q2_k", "q4_k", "q5_k")
MASKS = [0, 1, 3, 7, 15]


@pytest.fixture(params=MASKS)
def isa(request: pytest.FixtureRequest) -> Iterator[int]:
    _core.cpu_limit(request.param)
    yield request.param
    _core.cpu_limit(15)


def random_rows(name: str, rows: int, k: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Legal blocks with any bits; scales are small halves."""
    _, values, size = DTYPES[name]
    if name in FLOATS:
        x = rng.standard_normal((rows, k)).astype("f4")
        if name == "bf16":
            return (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return x.astype("f4" if name == "f32" else "f2").view(np.uint8)
    w = rng.integers(0, 256, (rows, k // values, size), dtype=np.uint8)
    at = {"q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,)}.get(name, (0, 2))
    if name in ("q4_0", "q5_0", "q8_0", "iq4_nl", "iq4_xs"):
        at = (0,)
    for i in at:
        d = (rng.standard_normal((rows, k // values, 1)) / 8).astype(np.float16)
        w[:, :, i : i + 2] = d.view(np.uint8)
    return w.reshape(rows, -1)


def dequantized(name: str, w: NDArray[np.uint8], k: int) -> NDArray[np.float64]:
    out = np.empty(w.shape[0] * k, np.float32)
    _core.dequantize(DTYPES[name][0], w, out.size, out)
    return out.reshape(-1, k).astype(np.float64)


def packed(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """x as mul sees it, read from the planes that act_pack writes."""
    k = x.shape[-1]
    up = -(-k // 64) * 64
    rows = []
    for row in x:
        p = _core.act_pack(np.ascontiguousarray(row))
        q = np.frombuffer(p, np.int8, k).reshape(-1, 32)
        d = np.frombuffer(p, np.float32, k // 32, up)
        rows.append((q * d[:, None].astype(np.float64)).reshape(-1))
    return np.array(rows)


@pytest.mark.parametrize("name", DTYPES)
def test_mul_matches_float64(isa: int, name: str) -> None:
    number, values, _ = DTYPES[name]
    for k in {1: (1, 5, 37, 1000), 32: (32, 96, 1056), 256: (256, 768)}[values]:
        rng = np.random.default_rng(k)
        w, x = random_rows(name, 9, k, rng), rng.standard_normal((7, k)).astype("f4")
        y = np.full((7, 9), np.nan, np.float32)
        _core.mul(number, w, 9, x, k, y)
        wf = dequantized(name, w, k)
        xf = x.astype(np.float64) if name in FLOATS else packed(x)
        bound = (k / 16 + 16) * 2**-23 * (np.abs(xf) @ np.abs(wf).T)
        if name in WITH_MIN:  # s * q and m may cancel in w; rv_tests has the exact bound
            bound += 1e-3
        assert (np.abs(y - xf @ wf.T) <= bound).all()
        for n in range(1, 7):  # the same bits for fewer rows and columns
            part = np.empty((n, 9 - n), np.float32)
            _core.mul(number, w[n:], 9 - n, x[7 - n :], k, part)
            assert part.tobytes() == np.ascontiguousarray(y[7 - n :, n:]).tobytes()


def test_nan_reaches_the_result(isa: int) -> None:
    for name in DTYPES:
        k = 256
        w = random_rows(name, 1, k, np.random.default_rng(0))
        for bad in (np.nan, np.inf):
            x = np.ones((1, k), np.float32)
            x[0, 77] = bad
            y = np.zeros((1, 1), np.float32)
            _core.mul(DTYPES[name][0], w, 1, x, k, y)
            assert not np.isfinite(y[0, 0])


def test_mul_refuses_wrong_sizes() -> None:
    w, x, y = np.zeros(68, np.uint8), np.zeros(64, np.float32), np.zeros(4, np.float32)
    _core.mul(8, w, 2, x, 32, y)
    with pytest.raises(ArgumentError, match="w: found 68 bytes, want 102"):
        _core.mul(8, w, 3, x, 32, y)
    with pytest.raises(ArgumentError, match="out: found 16 bytes, want 8"):
        _core.mul(8, w, 1 + 1, x[:32], 32, y)
    with pytest.raises(ArgumentError, match="x has 63 values, want a multiple of k = 32"):
        _core.mul(8, w, 2, x[:63], 32, y)
    with pytest.raises(ArgumentError, match="-1 rows"):
        _core.mul(8, w, -1, x, 32, y)
    with pytest.raises(ArgumentError, match="rows"):
        _core.mul(8, w, 2**62, x, 32, y)
    with pytest.raises(ArgumentError, match="33 values, want a multiple of 32"):
        _core.act_pack(np.zeros(33, np.float32))


def test_cpu_names_what_serves_each_kernel() -> None:
    cpu = _core.cpu()
    assert set(cpu) == {"features", "machine", "kernels"}
    assert cpu["features"] == cpu["machine"]
    assert {f"mul_{name}" for name in DTYPES} <= set(cpu["kernels"])
    try:
        _core.cpu_limit(0)
        low = _core.cpu()
        assert low["features"] == "portable" and low["machine"] == cpu["machine"]
        assert set(low["kernels"].values()) == {"ref"}
    finally:
        _core.cpu_limit(15)
    assert _core.cpu() == cpu
