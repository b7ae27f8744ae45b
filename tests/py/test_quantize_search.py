"""The quantisers that search their scales: how good, how weighted, and on values of every kind."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from ruvllm import ArgumentError, _core

DTYPES = _core.dtypes()
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], "f8")
# Values with one scale, levels of a type without a minimum (else how many there are), and what
# storing scales in few bits may cost over scales of any value.
SCALED = {
    "q3_k": (16, np.arange(-4.0, 4), 1.035),
    "q6_k": (16, np.arange(-32.0, 32), 1.045),
    "iq4_nl": (32, IQ4, 1.01),
    "iq4_xs": (32, IQ4, 1.02),
}
LINED = {"q2_k": (16, 4, 1.06), "q4_k": (32, 16, 1.04), "q5_k": (32, 32, 1.04)}
SEARCHED = [*SCALED, *LINED]
WEIGHTED = [*SEARCHED, "q4_0", "q4_1", "q5_0", "q5_1"]


def blocks(name: str, x: NDArray[np.float32], weights: object = None) -> NDArray[np.uint8]:
    number, values, size = DTYPES[name]
    out = np.empty((len(x), x.shape[1] // values * size), np.uint8)
    _core.quantize(number, np.ascontiguousarray(x), x.shape[1], out, weights)
    return out


def rounded(name: str, x: NDArray[np.float32], weights: object = None) -> NDArray[np.float32]:
    b, back = blocks(name, x, weights), np.empty(x.shape, np.float32)
    _core.dequantize(DTYPES[name][0], b, x.size, back)
    return back


def error(x: NDArray[np.float32], y: NDArray[np.float32], weights: object = 1.0) -> float:
    return float((np.asarray(weights) * (x.astype("f8") - y) ** 2).mean())


def best_scaled(x: NDArray[np.float32], run: int, levels: NDArray[np.float64]) -> float:
    """Mean square error with the best scale of any value for every run."""
    v = x.reshape(-1, run).astype("f8")
    top = np.take_along_axis(v, np.abs(v).argmax(1)[:, None], 1)
    between = (levels[1:] + levels[:-1]) / 2
    best = np.full(len(v), np.inf)
    for side in (levels[0], levels[-1]):
        for f in np.linspace(0.7, 1.4, 141):
            s = top / (side * f)
            y = s * levels[np.searchsorted(between, v / s)]
            best = np.minimum(best, ((v - y) ** 2).mean(1))
    return float(best.mean())


def best_lined(x: NDArray[np.float32], run: int, n: int) -> float:
    """The same for levels 0 .. n - 1 with a scale and a minimum."""
    v = x.reshape(-1, run).astype("f8")
    lo, hi = v.min(1, keepdims=True), v.max(1, keepdims=True)
    best = np.full(len(v), np.inf)
    for a in np.linspace(0, 0.25, 18):
        for b in np.linspace(0, 0.25, 18):
            m, s = lo + a * (hi - lo), (1 - a - b) * (hi - lo) / (n - 1)
            y = m + s * np.clip(np.rint((v - m) / s), 0, n - 1)
            best = np.minimum(best, ((v - y) ** 2).mean(1))
    return float(best.mean())


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("shape", ["normal", "laplace"])
def test_error_is_near_that_of_the_best_quantiser(name: str, shape: str) -> None:
    rng = np.random.default_rng(5)
    x = getattr(rng, shape)(size=(16, 512)).astype("f4")
    if name in SCALED:
        run, levels, most = SCALED[name]
        best = best_scaled(x, run, levels)
    else:
        run, n, most = LINED[name]
        best = best_lined(x, run, n)
    assert error(x, rounded(name, x)) <= most**2 * best


def test_more_bits_are_better() -> None:
    x = np.random.default_rng(6).standard_normal((8, 1024)).astype("f4")
    e = {name: error(x, rounded(name, x)) ** 0.5 for name in DTYPES if name[:2] != "f3"}
    assert e["q2_k"] > e["q3_k"] > e["q4_0"] > e["q4_k"] > e["q5_0"] > e["q5_k"] > e["q6_k"]
    assert e["q6_k"] > e["q8_0"] and e["q4_0"] > e["iq4_xs"] > e["iq4_nl"]


@pytest.fixture(params=[0, 1, 3])
def isa(request: pytest.FixtureRequest) -> Iterator[int]:
    _core.cpu_limit(request.param)
    yield request.param
    _core.cpu_limit(15)


def inputs(k: int = 512) -> NDArray[np.float32]:
    """Rows of every kind: of zeros, equal values, one outlier, hardly any scale in common."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((24, k)).astype("f4")
    x[0] = 0
    x[1], x[2] = 0.75, -3
    x[3, :] = 0
    x[3, 17], x[3, 300] = 40, -40
    x[4, 5] = 1000
    x[5] = np.abs(x[5])
    x[6] = -np.abs(x[6])
    x[7, ::32] *= 1e4
    x[8] *= np.repeat(2.0 ** rng.integers(-30, 10, k // 16), 16)
    x[9] *= 1e-3
    x[10] *= 1e-7  # scales below the least half
    x[11] *= 1e-30
    x[12] *= 1e-42  # subnormal
    x[13] *= 1e4
    x[14] = np.where(np.arange(k) % 2, 1, -1)
    x[15, 32:] = 0
    x[16] = np.linspace(-1, 1, k)
    x[17] = x[17] * 0.01 + 5
    return x


@pytest.mark.parametrize("name", WEIGHTED)
def test_every_isa_gives_the_same_bytes(name: str, isa: int) -> None:
    x = inputs()
    w = np.random.default_rng(1).exponential(size=512).astype("f4")
    ours = blocks(name, x), blocks(name, x, w)
    _core.cpu_limit(15)
    assert np.array_equal(ours[0], blocks(name, x)) and np.array_equal(ours[1], blocks(name, x, w))


@pytest.mark.parametrize("name", WEIGHTED)
def test_values_of_every_kind(name: str) -> None:
    x = inputs()
    w = np.random.default_rng(2).exponential(size=512).astype("f4")
    for weights in (None, w, np.ones_like(w), np.zeros_like(w)):
        y = rounded(name, x, weights)
        assert np.isfinite(y).all()
        assert not y[0].any()
        span = np.abs(x.reshape(len(x), -1, 256)).max(2)
        worst = np.abs(x - y).reshape(len(x), -1, 256).max(2)
        # never further off than zeros would be but for the steps of a half below 2^-14
        assert (worst <= 1.05 * span + 2.0**-19).all()
        assert np.abs(x - y)[1:3].max() <= 0.02 * 3
        assert np.abs(y[3, [17, 300]] - x[3, [17, 300]]).max() <= 0.03 * 40
        assert not y[11:13].any()


@pytest.mark.parametrize("name", WEIGHTED)
def test_the_largest_values_are_held(name: str) -> None:
    """A value at the limit: no infinite scale, and near enough; one beyond: an error."""
    x = np.zeros((1, 256), np.float32)
    x[0, 9] = 3e38
    with pytest.raises(ArgumentError, match=r"x\[9\] of row 0 is 3e\+38, want less than ") as e:
        rounded(name, x)
    limit = float(str(e.value).split("less than ")[1].split()[0])
    for sign in (1, -1):
        x[0, :] = np.linspace(-0.9, 0.9, 256) * limit
        x[0, 9] = sign * limit * 0.9999
        for weights in (None, np.ones(256, np.float32)):
            y = rounded(name, x, weights)
            assert np.isfinite(y).all()
            assert np.abs(y - x).max() <= (0.45 if name in ("q2_k", "q3_k") else 0.2) * limit


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_move_the_error(name: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((32, 512)).astype("f4")
    w = np.where(rng.random(512) < 0.25, 50, 1).astype("f4")
    plain, ours = rounded(name, x), rounded(name, x, w)
    assert error(x, ours, w) < 0.95 * error(x, plain, w)
    heavy = w > 1
    assert error(x[:, heavy], ours[:, heavy]) < 0.9 * error(x[:, heavy], plain[:, heavy])
    w = np.zeros(512, np.float32)
    w[100] = 1e-20  # a column that counts alone
    assert error(x[:, 100], rounded(name, x, w)[:, 100]) < 0.5 * error(x[:, 100], plain[:, 100])


@pytest.mark.parametrize("name", WEIGHTED)
def test_only_the_proportions_of_weights_count(name: str) -> None:
    x = inputs()
    w = np.random.default_rng(4).exponential(size=512).astype("f4")
    b = blocks(name, x, w)
    assert np.array_equal(b, blocks(name, x, w * np.float32(2.0**-100)))
    assert np.array_equal(b, blocks(name, x, w * np.float32(2.0**100)))
    if name in SEARCHED:
        assert np.array_equal(blocks(name, x), blocks(name, x, np.zeros_like(w)))


@pytest.mark.parametrize("name", WEIGHTED)
def test_rows_and_scales_are_independent(name: str) -> None:
    x = inputs()
    b = blocks(name, x)
    for r in (4, 7, 17):
        assert np.array_equal(b[r], blocks(name, x[r : r + 1])[0])
    y = np.random.default_rng(9).standard_normal((4, 512)).astype("f4")
    assert np.array_equal(rounded(name, y * 64), rounded(name, y) * 64)


def test_weights_make_no_difference_to_eight_bits_and_floats() -> None:
    x, w = inputs(), np.linspace(0, 1, 512, dtype="f4")
    for name in ("f32", "f16", "bf16", "q8_0"):
        assert np.array_equal(blocks(name, x), blocks(name, x, w))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, -1e-30])
def test_bad_weights_are_refused(bad: float) -> None:
    x, w = np.ones((2, 256), np.float32), np.ones(256, np.float32)
    w[77] = bad
    for name in (*WEIGHTED, "q8_0"):
        number, values, size = DTYPES[name]
        out = np.zeros(512 // values * size, np.uint8)
        with pytest.raises(ArgumentError, match=r"weights\[77\] is .*, want a finite number of at"):
            _core.quantize(number, x, 256, out, w)
        assert not out.any()
        with pytest.raises(ArgumentError, match="weights: found 1020 bytes, want 1024"):
            _core.quantize(number, x, 256, out, w[:255])


@pytest.mark.parametrize("name", ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"])
def test_rows_must_be_whole_blocks(name: str) -> None:
    x, out = np.zeros(288, np.float32), np.zeros(1024, np.uint8)
    with pytest.raises(ArgumentError, match=f"288 values, want a multiple of 256 for {name}"):
        _core.quantize(DTYPES[name][0], x, 288, out)


@pytest.mark.parametrize("name", SEARCHED)
def test_mul_agrees_with_dequantise(name: str) -> None:
    w, x = inputs(), np.random.default_rng(10).integers(-127, 128, (3, 512)).astype("f4")
    x[:, ::32] = 127  # so that rounding to 8 bits changes nothing
    b, y = blocks(name, w), np.empty((3, len(w)), np.float32)
    _core.mul(DTYPES[name][0], b, len(w), x, 512, y)
    want = x.astype("f8") @ rounded(name, w).astype("f8").T
    scale = np.abs(x).astype("f8") @ np.abs(rounded(name, w)).astype("f8").T
    assert (np.abs(y - want) <= 1e-5 * scale).all()
