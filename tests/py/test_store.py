"""The store: whose file it is, durability, two processes, locks, a full disk, forks."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import ruvllm
from ruvllm import _core
from ruvllm._errors import (
    ArgumentError,
    FileError,
    FormatError,
    FullError,
    NotFoundError,
    StateError,
    UnsupportedError,
)

ALL = (None, None, None, None, None, -1, 0)
PACKAGE = Path(ruvllm.__file__).parent
# The package itself need not be imported by a child, which makes thirty of them cheap.
PRELUDE = f"""
import sys, types
package = types.ModuleType("ruvllm")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["ruvllm"] = package
from ruvllm import _core
store = _core.Store(sys.argv[1])
"""


def start(script: str, *args: object) -> subprocess.Popen[str]:
    code = PRELUDE + textwrap.dedent(script)
    argv = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> str:
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return out


def n_rows(store: _core.Store) -> int:
    return int(store.query("witness_count", (None,) * 5)[0]["n"])


def test_the_file_is_private_and_ours(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    store = _core.Store(folder)
    assert Path(store.path) == folder / "memory.db"
    store.witness_put({"kind": "chat"}, True)
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("memory.db", "memory.db-wal", "memory.db-shm"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600, name
    store.close()
    assert not (folder / "memory.db-wal").exists()
    db = sqlite3.connect(folder / "memory.db")
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert db.execute("PRAGMA application_id").fetchone() == (0x5256534D,)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("SELECT value FROM meta WHERE key = 'created_at'").fetchone()
    db.close()


def test_a_newer_schema_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    store = _core.Store(tmp_path)
    store.witness_put({}, True)
    store.close()
    file = tmp_path / "memory.db"
    db = sqlite3.connect(file)
    db.execute("PRAGMA user_version = 99")
    db.commit()
    db.close()
    before = file.read_bytes()
    with pytest.raises(UnsupportedError, match=r"version 99, want at most 1") as e:
        _core.Store(tmp_path)
    assert str(file) in str(e.value)
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"hello", b"SQLite format 3\0" + b"\xa5" * 5000, b"\0" * 4096])
def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "memory.db"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=r"memory\.db"):
        _core.Store(tmp_path)
    assert file.read_bytes() == content


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    db = sqlite3.connect(file)
    db.execute("CREATE TABLE witness (mine)")
    db.commit()
    db.close()
    before = file.read_bytes()
    with pytest.raises(FormatError, match="another program"):
        _core.Store(tmp_path)
    assert file.read_bytes() == before


def test_damage_is_an_error_and_never_a_crash(tmp_path: Path) -> None:
    store = _core.Store(tmp_path / "good")
    for i in range(200):
        store.witness_put({"prompt_text": f"{i} " * 100})
    store.close()
    good = (tmp_path / "good" / "memory.db").read_bytes()
    rng = random.Random(7)
    n_refused = 0
    for k in range(60):
        bad = bytearray(good)
        if k % 3 == 0:
            del bad[rng.randrange(200, len(bad)) :]
        else:
            for _ in range(rng.choice([1, 20, 2000])):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
        folder = tmp_path / str(k)
        folder.mkdir()
        (folder / "memory.db").write_bytes(bad)
        try:
            store = _core.Store(folder, 0, 0, 0, 0, 50)
        except (FormatError, UnsupportedError, FileError):
            n_refused += 1
            continue
        try:
            store.query("witness_list", ALL)
            store.witness_put({}, True)
        except (FormatError, FileError):
            n_refused += 1
        with contextlib.suppress(FormatError, FileError):
            store.close()
    assert n_refused >= 20


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    _core.Store(tmp_path).close()
    db = sqlite3.connect(tmp_path / "memory.db")
    db.execute("DROP TABLE model_digest_cache")
    db.commit()
    db.close()
    with pytest.raises(FormatError, match="model_digest_cache"):
        _core.Store(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="file"):
        _core.Store(tmp_path / "file" / "home")
    with pytest.raises(FileError, match="/proc/nowhere"):
        _core.Store("/proc/nowhere")
    with pytest.raises(ArgumentError):
        _core.Store("")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(FileError, match="closed"):
            _core.Store(tmp_path / "closed")


def test_calls_check_their_arguments(tmp_path: Path) -> None:
    store = _core.Store(tmp_path)
    for entry, word in [
        ({"kindness": "chat"}, "kindness"),
        ({1: "chat"}, "1"),
        ({"kind": "sing"}, "sing"),
        ({"prompt_text": b"x"}, "prompt_text"),
        ({"prompt_ids": "x"}, "prompt_ids"),
        ({"n_prompt": 2**63}, "n_prompt"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -1}, "seed"),
        ({"propensity": 2.0}, "propensity"),
        ({"id": "x"}, "UUID"),
    ]:
        with pytest.raises(ArgumentError, match=word):
            store.witness_put(entry)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.witness_put({"total_ms": "soon"})
    with pytest.raises(ArgumentError, match="no query"):
        store.query("everything", ())
    with pytest.raises(ArgumentError, match="arguments"):
        store.query("witness_list", ())
    with pytest.raises(ArgumentError, match="no write"):
        store.write("everything", ())
    with pytest.raises(NotFoundError):
        store.query("witness_get", ("abc",))
    assert store.stats()["queued"] == 0
    store.close()
    for call in (lambda: store.witness_put({}), store.flush, lambda: store.query("meta", ("x",))):
        with pytest.raises(StateError):
            call()
    store.close()


def test_other_rows(tmp_path: Path) -> None:
    store = _core.Store(tmp_path)
    store.write("digest", ("/m.gguf", 5, 6, 7, "sha256:aa"))
    store.write("digest", ("/m.gguf", 5, 6, 8, "sha256:bb"))
    store.write("meta", ("key", "value"))
    store.flush()
    assert store.query("digest", ("/m.gguf", 5, 6, 8)) == [{"digest": "sha256:bb"}]
    assert store.query("digest", ("/m.gguf", 5, 6, 7)) == []
    assert store.query("meta", ("key",)) == [{"value": "value"}]
    store.close()


def test_a_full_queue_is_counted(tmp_path: Path) -> None:
    store = _core.Store(tmp_path, 5, 0, 1000, 3_600_000)
    for _ in range(5):
        store.witness_put({})
    for _ in range(3):
        with pytest.raises(FullError, match="5 rows of 5"):
            store.witness_put({})
    stats = store.stats()
    assert (stats["queued"], stats["dropped"], stats["queue_depth"]) == (5, 3, 5)
    store.close()
    assert store.stats()["written"] == 5


def test_an_entry_is_written_within_max_wait(tmp_path: Path) -> None:
    store = _core.Store(tmp_path, 0, 0, 100, 50)
    store.witness_put({})
    for _ in range(500):
        if n_rows(store):
            break
        time.sleep(0.02)
    assert n_rows(store) == 1 and store.stats()["durable_seq"] == 0
    store.close()


def test_one_bad_row_keeps_its_batch(tmp_path: Path) -> None:
    store = _core.Store(tmp_path, 0, 0, 100, 3_600_000)
    for i in range(50):
        store.witness_put({"tags": "no json" if i == 20 else "[]", "prompt_ids": b"1234"})
    store.witness_put({"prompt_ids": b"123"})
    with pytest.raises(FormatError, match="2 rows refused"):
        store.flush()
    store.flush()
    assert n_rows(store) == 49
    stats = store.stats()
    assert stats["failed"] == 2 and stats["batches"] == 1 and "CHECK" in stats["last_error"]
    with pytest.raises(FormatError, match="tags"):
        store.witness_put({"tags": "no json"}, True)
    store.close()


def test_kill_9_loses_nothing_that_was_promised(tmp_path: Path) -> None:
    home = tmp_path / "home"
    script = """
        import random
        rng = random.Random(int(sys.argv[2]))
        while True:
            ids = [store.witness_put({"prompt_text": "x" * rng.randrange(3000)})
                   for _ in range(rng.randrange(5))]
            if rng.random() < 0.5:
                ids.append(store.witness_put({"kind": "chat"}, True))
            else:
                store.flush()
            print(*ids, flush=True)
    """
    rng = random.Random(1)
    promised: set[str] = set()
    for k in range(30):
        child = start(script, home, k)
        assert child.stdout
        promised.update(child.stdout.readline().split())
        time.sleep(rng.random() * 0.03)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
        promised.update(
            w for line in rest.splitlines(True) if line[-1] == "\n" for w in line.split()
        )
        child.communicate()
        if k % 5 == 4:
            copy = tmp_path / f"copy{k}"
            shutil.copytree(home, copy)
            db = sqlite3.connect(copy / "memory.db")
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            found = {row[0] for row in db.execute("SELECT id FROM witness")}
            db.close()
            assert promised <= found, f"after {k + 1} kills"
    assert len(promised) > 100
    store = _core.Store(home)
    assert promised <= {row["id"] for row in store.query("witness_list", ALL)}
    store.close()


def test_many_processes_make_one_store_at_once(tmp_path: Path) -> None:
    script = """
    import time
    store.close()
    for i in range(40):
        while time.time() < float(sys.argv[2]) + 0.03 * i:
            pass
        _core.Store(sys.argv[1] + f"/{i}").close()
    """
    at = str(time.time() + 1.0)
    for child in [start(script, tmp_path, at) for _ in range(3)]:
        finish(child)


def test_two_processes_write_one_store(tmp_path: Path) -> None:
    script = """
        for i in range(300):
            store.witness_put({"session_id": sys.argv[2]}, i % 30 == 0)
        store.close()
    """
    children = [start(script, tmp_path, name) for name in ("a", "b")]
    store = _core.Store(tmp_path)
    for _ in range(100):
        store.witness_put({"session_id": "c"}, True)
    for child in children:
        finish(child)
    assert n_rows(store) == 700
    for name, n in (("a", 300), ("b", 300), ("c", 100)):
        args = (None, None, name, None, None)
        assert store.query("witness_count", args) == [{"n": n}]
    store.close()


@pytest.mark.skipif(sys.platform != "linux", reason="locks of open files are Linux's")
def test_nobody_in_the_process_can_drop_our_locks(tmp_path: Path) -> None:
    """Opening and closing the file drops a process's POSIX locks on it; then another process that
    opens and closes the database takes itself for the last and removes the log."""
    store = _core.Store(tmp_path)
    if not store.stats()["ofd_locks"]:
        pytest.skip("built with a shared SQLite")
    for _ in range(100):
        store.witness_put({})
    store.flush()
    file = tmp_path / "memory.db"
    log = tmp_path / "memory.db-wal"
    inode = log.stat().st_ino
    file.read_bytes()
    (tmp_path / "memory.db-shm").read_bytes()
    db = sqlite3.connect(file)
    assert db.execute("SELECT count(*) FROM witness").fetchone() == (100,)
    db.close()
    other = "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]);" + (
        "print(d.execute('SELECT count(*) FROM witness').fetchone()[0]); d.close()"
    )
    command = [sys.executable, "-c", other, str(file)]
    assert subprocess.run(command, capture_output=True, check=True).stdout.strip() == b"100"
    assert log.exists() and log.stat().st_ino == inode
    for _ in range(100):
        store.witness_put({})
    store.flush()
    assert n_rows(store) == 200
    store.close()
    assert subprocess.run(command, capture_output=True, check=True).stdout.strip() == b"200"


def test_another_process_sees_the_write_lock(tmp_path: Path) -> None:
    """And we see its lock: a commit waits, fails, is told, and is made good later."""
    store = _core.Store(tmp_path, 0, 0, 100, 10, 50)
    db = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    store.witness_put({"kind": "chat"})
    with pytest.raises(FileError, match="locked"):
        store.flush()
    with pytest.raises(FileError, match="locked"):
        store.witness_put({"kind": "embed"}, True)
    stats = store.stats()
    assert stats["failing"] and stats["queue_depth"] == 1 and stats["dropped"] == 1
    with pytest.raises(StateError, match="1 rows still wait"):
        store.flush(0.0)
    db.execute("COMMIT")
    db.close()
    for _ in range(20):
        try:
            store.flush()
            break
        except FileError:
            continue
    assert n_rows(store) == 1 and not store.stats()["failing"]
    store.close()


def test_a_full_disk_keeps_entries_until_there_is_room(tmp_path: Path) -> None:
    script = """
        import resource, signal
        from ruvllm._errors import FileError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store.witness_put({}, True)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
        for i in range(50):
            store.witness_put({"prompt_text": "x" * 10000})
        try:
            store.flush()
            print("no error")
        except FileError as e:
            print("told")
        s = store.stats()
        assert s["failing"] and s["queue_depth"] == 50 and s["written"] == 1, s
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        for _ in range(20):
            try:
                store.flush()
                break
            except FileError:
                pass
        assert store.stats()["written"] == 51, store.stats()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, hard))
        store.witness_put({"prompt_text": "x" * 10000})
        try:
            store.close()
            print("no error")
        except FileError as e:
            print("lost" if "1 rows are lost" in str(e) else e)
    """
    assert finish(start(script, tmp_path)).split() == ["told", "lost"]
    store = _core.Store(tmp_path)
    assert n_rows(store) == 51
    store.close()


def test_a_fork_must_not_use_the_handle(tmp_path: Path) -> None:
    script = """
        import os
        from ruvllm._errors import StateError
        store.witness_put({})
        pid = os.fork()
        if pid == 0:
            n = 0
            calls = (lambda: store.witness_put({}), store.flush, store.close, store.stats,
                     lambda: store.query("meta", ("x",)), lambda: _core.Store(sys.argv[1]))
            for call in calls:
                try:
                    call()
                except StateError:
                    n += 1
            del store
            os._exit(0 if n == len(calls) else 1)
        assert os.waitpid(pid, 0)[1] == 0
        store.close()
        print(store.stats()["written"])
    """
    assert finish(start(script, tmp_path)) == "1\n"


def test_an_object_dropped_without_close_still_writes(tmp_path: Path) -> None:
    store = _core.Store(tmp_path)
    store.witness_put({})
    del store
    finish(start("store.witness_put({}); del store", tmp_path))
    finish(start("store.witness_put({})", tmp_path))  # at the end of the interpreter
    store = _core.Store(tmp_path)
    assert n_rows(store) >= 2
    store.close()


def test_memory_comes_back(tmp_path: Path) -> None:
    before = _core.live_bytes()
    store = _core.Store(tmp_path)
    for _ in range(100):
        store.witness_put({"prompt_text": "x" * 1000})
    store.query("witness_list", ALL)
    store.close()
    del store
    assert _core.live_bytes() == before
