"""Hostile GGUF files end in one typed error that names the thing, the value found and wanted."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import gguf_bad
import gguf_make as mk
import pytest
from gguf_bad import Case
from gguf_make import U8, U32, Tensor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ruvllm import _core
from ruvllm._errors import FileError, FormatError, NotFoundError, UnsupportedError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("case", gguf_bad.ALL, ids=lambda c: c.name)
def test_bad_file(case: Case, tmp_path: Path) -> None:
    before = _core.live_bytes()
    with pytest.raises(case.error) as e:
        _core.gguf_open_bytes(case.data)
    assert type(e.value) is case.error
    message = str(e.value)
    assert case.text in message and len(message) < 500 and message.isprintable()
    path = tmp_path / "bad.gguf"
    path.write_bytes(case.data)
    with pytest.raises(case.error) as e:
        _core.gguf_open(path)
    assert str(e.value) == message.replace("memory: ", f"{path}: "[-162:], 1)
    assert _core.live_bytes() == before


def test_names_are_unique() -> None:
    names = [c.name for c in gguf_bad.ALL]
    assert len(set(names)) == len(names) and set(gguf_bad.KEPT) <= set(names)


@pytest.mark.parametrize("name", gguf_bad.KEPT)
def test_kept_file_is_what_make_writes(name: str) -> None:
    case = next(c for c in gguf_bad.ALL if c.name == name)
    assert (ROOT / "bad" / f"{name}.gguf").read_bytes() == case.data
    assert f"`{name}.gguf`" in (ROOT / "bad" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("HEADER_EMPTY", mk.gguf() + bytes(8)),
        ("KV_SUCCESS", mk.gguf([mk.kv("my_key_0", U32, 1), mk.kv("my_key_1", U8, 1)]) + bytes(16)),
        (
            "TENSORS_SUCCESS",
            mk.gguf((), [Tensor("my_tensor_0"), Tensor("my_tensor_1", (32, 7), 8)]),
        ),
        (
            "DATA_SUCCESS",
            mk.gguf([mk.kv("my_key_0", U32, 1)], [Tensor("my_tensor_0", (256, 3), 14)]),
        ),
    ],
)
def test_llama_cases_that_open(name: str, data: bytes) -> None:
    assert _core.gguf_open_bytes(data).version() == 3


# ---- paths ----


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\.gguf: no such file"):
        _core.gguf_open(tmp_path / "nothing.gguf")
    with pytest.raises(NotFoundError):
        _core.gguf_open("")
    file = tmp_path / "file"
    file.write_bytes(b"GGUF")
    with pytest.raises(NotFoundError):
        _core.gguf_open(file / "below.gguf")


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a directory, want a regular file"):
        _core.gguf_open(tmp_path)


def test_fifo_does_not_block(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    with pytest.raises(FileError, match="want a regular file"):
        _core.gguf_open(fifo)


def test_device() -> None:
    with pytest.raises(FileError, match="want a regular file"):
        _core.gguf_open("/dev/null")


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.touch()
    with pytest.raises(FormatError, match=r"empty\.gguf: found 0 bytes, want a GGUF file"):
        _core.gguf_open(path)


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(mk.gguf())
    path.chmod(0)
    tmp_path.chmod(0o755)
    code = """
    import os
    from ruvllm import FileError, _core
    if os.geteuid() == 0:  # root may read everything
        os.setuid(65534)
    try:
        _core.gguf_open("secret.gguf")
    except FileError as e:
        print(e)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "cannot open: Permission denied" in child.stdout, child.stderr


def test_long_paths_leave_room_for_the_message(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 200) / ("e" * 200)
    folder.mkdir(parents=True)
    path = folder / "bad.gguf"
    path.write_bytes(mk.gguf(version=9))
    with pytest.raises(UnsupportedError, match=r"e/bad\.gguf: version: found 9, want 2 or 3$"):
        _core.gguf_open(path)


# ---- truncation ----


def metadata_end(data: bytes) -> int:
    """Where the data section of a file starts: before it every cut is an error."""
    return min(row[4] for row in _core.gguf_open_bytes(data).tensors())


@pytest.mark.parametrize("name", ["llama-d64-f32", "llama-d256-q4_0"])
def test_truncated_everywhere(name: str) -> None:
    data = (ROOT / "golden" / "models" / f"{name}.gguf").read_bytes()
    before = _core.live_bytes()
    cuts = [*range(4096), *range(4096, len(data), 1024), metadata_end(data), len(data) - 1]
    for n in cuts:
        with pytest.raises(FormatError):
            _core.gguf_open_bytes(data[:n])
    assert _core.gguf_open_bytes(data).n_tensors() == 20
    assert _core.live_bytes() == before


def test_truncated_file_with_every_type() -> None:
    data = mk.all_types()
    end = metadata_end(data)
    for n in range(len(data) - 1):
        # The last tensor is 144 bytes, its padding in the section is not needed.
        if n >= end and n >= max(r[4] + r[5] for r in _core.gguf_open_bytes(data).tensors()):
            assert _core.gguf_open_bytes(data[:n]).n_tensors() == 3
            continue
        with pytest.raises(FormatError):
            _core.gguf_open_bytes(data[:n])


# ---- memory ----


BOMBS = {
    "n_kv": mk.gguf([bytes(900 * 1000)], n_kv=65536),
    "n_tensors": mk.gguf([], [], n_tensors=27000) + bytes(900 * 1000),
    "array": mk.gguf([mk.raw_kv("k", mk.ARR, mk.array(mk.STR, [], 2**40))]) + bytes(1000),
    "arrays": mk.gguf([mk.raw_kv("k", mk.ARR, mk.array(mk.ARR, [], 2**40))]) + bytes(1000),
    "string": mk.gguf([mk.raw_kv("k", mk.STR, mk.u64(2**46))]),
    "key": mk.gguf([mk.u64(2**46) + bytes(20)]),
    "nested": mk.nested(60000),
    "tensor": mk.gguf((), [Tensor(dims=(2**40,), n_bytes=64)]),
}

BOUNDED = """
import resource, sys
from ruvllm import _core
from ruvllm._errors import RuvllmError, OutOfMemoryError
path, extra = sys.argv[1], int(sys.argv[2])
with open("/proc/self/statm") as f:
    now = int(f.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + extra, now + extra))
try:
    print("opened", _core.gguf_open(path).n_kv())
except RuvllmError as e:
    print(type(e).__name__)
"""


def open_bounded(path: Path) -> str:
    """Open the file where only 2 x its size + 16 MiB (and its mapping) may be had."""
    extra = 3 * path.stat().st_size + (16 << 20)
    cmd = [sys.executable, "-c", BOUNDED, str(path), str(extra)]
    return subprocess.run(cmd, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_count_bombs_allocate_little(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.gguf"
    path.write_bytes(BOMBS[name])
    assert open_bounded(path) in ("FormatError", "UnsupportedError")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_largest_counts_allocate_little(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    kvs = [mk.kv(f"{i:x}", U8, 1) for i in range(65536)]
    order = [*range(1, 65536), 0]  # out of order: the check for overlap has to sort
    infos = [mk.string(f"{i:x}") + mk.u32(1) + mk.u64(1) + mk.u32(0) + mk.u64(8 * i) for i in order]
    kvs[-1] = mk.kv("general.alignment", U32, 8)
    head = mk.header(65536, 65536) + b"".join(kvs) + b"".join(infos)
    path.write_bytes(head + bytes(-len(head) % 8) + bytes(8 * 65536))
    assert open_bounded(path) == "opened 65536"


# ---- mutations ----

SMALL = mk.gguf(
    [
        mk.kv("general.name", mk.STR, "small"),
        mk.raw_kv("list", mk.ARR, mk.array(mk.STR, [mk.string("a"), mk.string("bc")])),
        mk.raw_kv("deep", mk.ARR, mk.array(mk.ARR, [mk.array(U8, [b"1"])])),
        mk.kv("flag", mk.BOOL, True),
        mk.kv("general.alignment", U32, 32),
    ],
    [Tensor("a", (32, 2), 8), Tensor("b", (4,))],
)


def open_and_read_all(data: bytes) -> bool:
    """Open; when that works read every value and every byte. False for a typed refusal."""
    try:
        g = _core.gguf_open_bytes(data)
    except (FormatError, UnsupportedError) as e:
        assert str(e).startswith("memory: ")
        return False
    for key, _, value in g.kv(-1):
        assert g.get(key) == value or value != value
    for i, row in enumerate(g.tensors()):
        assert bytes(g.tensor_data(i)) == data[row[4] : row[4] + row[5]]
    return True


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=8))
def test_flipped_bytes(flips: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for at, byte in flips:
        data[at] = byte
    opened = open_and_read_all(bytes(data))
    assert opened or data != SMALL


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    at=st.integers(0, len(SMALL) - 8),
    number=st.one_of(
        st.integers(0, 2**64 - 1),
        st.sampled_from([2**k + d for k in (7, 15, 16, 31, 32, 53, 62, 63) for d in (-1, 0, 1)]),
    ),
    cut=st.integers(0, 64),
)
def test_replaced_numbers(at: int, number: int, cut: int) -> None:
    data = SMALL[:at] + struct.pack("<Q", number) + SMALL[at + 8 :]
    open_and_read_all(data[: len(data) - cut])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_behind_a_header(tail: bytes) -> None:
    open_and_read_all(mk.header(1, 2) + tail)
