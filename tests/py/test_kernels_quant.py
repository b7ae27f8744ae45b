"""The block formats through the extension: against the gguf package, and what is refused."""

from __future__ import annotations

import warnings

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from ruvllm import ArgumentError, _core

DTYPES = _core.dtypes()
WRITABLE = ["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]


def test_dtypes_are_ggmls() -> None:
    assert len(DTYPES) == 15
    for name, (number, values, size) in DTYPES.items():
        assert GGMLQuantizationType(number).name == name.upper()
        assert gguf.GGML_QUANT_SIZES[GGMLQuantizationType(number)] == (values, size)


@pytest.mark.parametrize("name", DTYPES)
def test_dequantize_equals_gguf(name: str) -> None:
    """Any bytes, NaN and infinite scales among them: the same float32 bits (NaN: just NaN)."""
    number, values, size = DTYPES[name]
    data = np.random.default_rng(number).integers(0, 256, (512, size), dtype=np.uint8)
    out = np.empty(512 * values, np.float32)
    _core.dequantize(number, data, out.size, out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        want = quants.dequantize(data, GGMLQuantizationType(number)).reshape(-1)
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(out), nan)
    assert np.array_equal(out[~nan].view(np.uint32), want[~nan].view(np.uint32))


@pytest.mark.parametrize("name", WRITABLE)
def test_quantize_equals_gguf(name: str) -> None:
    number, _, _ = DTYPES[name]
    rng = np.random.default_rng(7)
    x = (rng.standard_normal((400, 96)) * rng.choice([1e-6, 0.03, 1, 300], (400, 1))).astype("f4")
    x[0], x[1], x[2] = 0, 1, -0.5
    x[3, :32] = np.linspace(-1, 1, 32)
    x[4, ::2] *= -1
    x[5] = np.abs(x[5])
    want = quants.quantize(x, GGMLQuantizationType(number)).view(np.uint8).reshape(-1)
    out = np.empty_like(want)
    _core.quantize(number, x, 96, out)
    assert np.array_equal(out, want)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_refuses_what_is_not_finite(bad: float) -> None:
    x = np.ones((3, 64), np.float32)
    x[1, 37] = bad
    for name in WRITABLE:
        number, values, size = DTYPES[name]
        out = np.zeros(3 * 64 // values * size, np.uint8)
        with pytest.raises(ArgumentError, match=r"x\[37\] of row 1 is .*, want a finite number"):
            _core.quantize(number, x, 64, out)
        assert not out.any()


@pytest.mark.parametrize(
    ("name", "most"), [("f16", 65519.0), ("q4_0", 5.2e5), ("q8_0", 8.3e6), ("q4_1", 65500.0)]
)
def test_quantize_refuses_what_half_precision_cannot_hold(name: str, most: float) -> None:
    number, values, size = DTYPES[name]
    out, back = np.zeros(32 // values * size, np.uint8), np.zeros(32, np.float32)
    x = np.full(32, most, np.float32)
    x[3] = -1
    _core.quantize(number, x, 32, out)
    _core.dequantize(number, out, 32, back)
    assert np.isfinite(back).all()
    x[3] = -1.1 * most
    with pytest.raises(ArgumentError, match=rf"x\[3\] .*want less than .* for {name}"):
        _core.quantize(number, x, 32, out)


def test_quantize_refuses_types_and_sizes() -> None:
    x, out = np.zeros(256, np.float32), np.zeros(1024, np.uint8)
    for number in (-1, 4, 31, 1000):
        with pytest.raises(ArgumentError, match=f"tensor type {number}"):
            _core.quantize(number, x, 256, out)
        with pytest.raises(ArgumentError, match=f"tensor type {number}"):
            _core.dequantize(number, out, 256, x)
    with pytest.raises(ArgumentError, match="rows of 33 values, want a multiple of 32 for q8_0"):
        _core.quantize(8, x, 33, out)
    with pytest.raises(ArgumentError, match="x has 256 values, want a multiple of k = 96"):
        _core.quantize(8, x, 96, out)
    with pytest.raises(ArgumentError, match="out: found 1024 bytes, want 272"):
        _core.quantize(8, x, 256, out)
    with pytest.raises(ArgumentError, match="rows of 0 values"):
        _core.quantize(8, x, -32, out)
    with pytest.raises(ArgumentError, match="data: found 33 bytes, want 34"):
        _core.dequantize(8, out[:33], 32, x[:32])
    with pytest.raises((BufferError, ValueError)):
        _core.dequantize(8, out[:34], 32, bytes(128))
    with pytest.raises((BufferError, ValueError)):
        _core.dequantize(8, out[::2][:34], 32, x[:32])
    with pytest.raises(ArgumentError, match="found 30 bytes, want a multiple of 4"):
        _core.quantize(0, bytes(30), 1, out)


def test_no_rows_is_fine() -> None:
    _core.quantize(8, np.empty(0, np.float32), 32, np.empty(0, np.uint8))
    _core.quantize(8, b"", 32, bytearray())
