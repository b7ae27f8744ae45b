"""Hostile GGUF files: name, bytes, exception, and what its message must say.

Used by test_gguf_bad.py, and by tests/bad/make.py for the few that are kept as files. The cases
named ``llama_*`` mirror the handcrafted ones of llama.cpp's tests/test-gguf.cpp. Those named
``cve_*`` and ``pr_*`` are ours, built to the class of hole that the published number reports.
"""

from __future__ import annotations

from dataclasses import dataclass

import gguf_make as mk
from gguf_make import ARR, BOOL, F32, I32, I64, STR, U8, U16, U32, U64, Tensor

from ruvllm._errors import FormatError, RuvllmError, UnsupportedError

MAX = 2**64 - 1


@dataclass
class Case:
    name: str
    data: bytes
    error: type[RuvllmError]
    text: str  # a part of the message, as it stands there


def bad(name: str, data: bytes, text: str) -> Case:
    return Case(name, data, FormatError, text)


def unsupported(name: str, data: bytes, text: str) -> Case:
    return Case(name, data, UnsupportedError, text)


def one(t: Tensor, **kw: object) -> bytes:
    return mk.gguf((), [t], **kw)  # type: ignore[arg-type]


def big(t: Tensor) -> bytes:
    """A tensor whose data nobody could write: 64 bytes stand for it."""
    return mk.gguf((), [t], data=bytes(64))


def value(kind: int, payload: bytes) -> bytes:
    return mk.gguf([mk.raw_kv("k", kind, payload)])


def aligned(kind: int, payload: object) -> bytes:
    return mk.gguf([mk.kv("general.alignment", kind, payload)])


HEADER = [
    bad("empty", b"", "memory: found 0 bytes, want a GGUF file"),
    bad("one_byte", b"G", "magic: need 4 bytes at offset 0, have 1"),
    bad("not_gguf", b"ggml" + bytes(60), 'magic: found "ggml", want "GGUF"'),
    bad("zip", b"PK\x03\x04" + bytes(60), r'magic: found "PK\x03\x04", want "GGUF"'),
    bad("magic_only", b"GGUF", "version: need 4 bytes at offset 4, have 0"),
    bad("version_0", mk.gguf(version=0), "version: found 0, want 2 or 3"),
    unsupported("version_1", mk.gguf(version=1), "version: found 1, want 2 or 3"),
    unsupported("version_4", mk.gguf(version=4), "version: found 4, want 2 or 3"),
    unsupported("version_max", mk.gguf(version=2**32 - 1), "version: found 4294967295"),
    unsupported(
        "big_endian",
        b"GGUF" + bytes([0, 0, 0, 3]) + bytes(16),
        "byte order: found big-endian (version 3), want little-endian",
    ),
    bad("n_kv_max", mk.gguf(n_kv=MAX), f"metadata count: found {MAX}, want at most 65536"),
    bad("n_kv_2_63", mk.gguf(n_kv=2**63), f"metadata count: found {2**63}, want at most"),
    bad("n_kv_65536", mk.gguf(n_kv=65536), "metadata count: found 65536, want at most 0 in the 0"),
    unsupported(
        "n_kv_over_limit",
        mk.gguf([b"x" * 70000], n_kv=65537),
        "metadata count: found 65537, want at most 65536",
    ),
    bad(
        "n_kv_one_more",
        mk.gguf([mk.kv("a", U8, 1), mk.kv("b", U8, 1)], n_kv=3),
        "metadata count: found 3, want at most 2 in the 28 bytes left",
    ),
    bad("n_tensors_max", mk.gguf(n_tensors=MAX), f"tensor count: found {MAX}, want at most 65536"),
    bad("n_tensors_2_63", mk.gguf(n_tensors=2**63), f"tensor count: found {2**63}, want at most"),
    bad("n_tensors_65536", mk.gguf(n_tensors=65536), "tensor count: found 65536, want at most 0"),
    unsupported(
        "n_tensors_over_limit",
        mk.gguf([b"x" * 70000], n_tensors=65537),
        "tensor count: found 65537, want at most 65536",
    ),
    bad(
        "n_tensors_one_more",
        mk.gguf((), [Tensor()], n_tensors=6),
        "tensor count: found 6, want at most 5 in the 168 bytes left",
    ),
]

KEYS = [
    bad(
        "key_empty",
        mk.gguf([mk.kv("", U8, 1) + b"pads", mk.kv("b", U8, 1)]),
        "metadata pair 0 of 2: key: found a length of 0 bytes, want 1 to 65535",
    ),
    bad("key_65536", mk.gguf([mk.kv("k" * 65536, U8, 1)]), "key: found a length of 65536 bytes"),
    bad(
        "key_length_max",
        mk.gguf([mk.u64(MAX) + bytes(20)]),
        f"metadata pair 0 of 1: key: found a length of {MAX} bytes, want 1 to 65535",
    ),
    bad(
        "key_past_the_end",
        mk.gguf([mk.u64(1000) + bytes(20)]),
        "key: need 1000 bytes at offset 32, have 20",
    ),
    bad(
        "key_not_utf8",
        mk.gguf([mk.kv(b"a\xff\xc0", U8, 1)]),
        r'key: found "a\xff\xc0", want UTF-8 without NUL',
    ),
    bad("key_surrogate", mk.gguf([mk.kv(b"\xed\xa0\x80", U8, 1)]), "want UTF-8 without NUL"),
    bad("key_overlong", mk.gguf([mk.kv(b"\xc0\x80", U8, 1)]), "want UTF-8 without NUL"),
    bad("key_cut_utf8", mk.gguf([mk.kv(b"a\xe2\x82", U8, 1)]), "want UTF-8 without NUL"),
    bad("key_above_unicode", mk.gguf([mk.kv(b"\xf4\x90\x80\x80", U8, 1)]), "want UTF-8"),
    bad(
        "key_with_nul",
        mk.gguf([mk.kv(b"general.alignment\0", U32, 8)]),
        r'key: found "general.alignment\x00", want UTF-8 without NUL',
    ),
    bad(
        "key_twice",
        mk.gguf([mk.kv("a", U8, 1), mk.kv("b", U8, 1), mk.kv("a", STR, "")]),
        'metadata pair 2: found the key "a" twice, want it once',
    ),
    bad(
        "key_is_cut_and_escaped_in_messages",
        mk.gguf([mk.raw_kv('"\n\x1b[31m' + "é" * 5000, 99, b"")]),
        r'metadata pair 0, "\x22\x0a\x1b[31m\xc3\xa9',
    ),
]

VALUES = [
    bad("type_13", value(13, b"\0"), 'metadata pair 0, "k": value type at offset 33: found 13'),
    bad("type_max", value(2**32 - 1, b"\0"), "found 4294967295, want 0 to 12"),
    bad("bool_2", value(BOOL, b"\x02"), "bool at offset 37: found 2, want 0 or 1"),
    bad("bool_255", value(BOOL, b"\xff"), "bool at offset 37: found 255, want 0 or 1"),
    bad("bool_in_array", value(ARR, mk.array(BOOL, [b"\1", b"\0", b"\7"])), "found 7, want 0 or 1"),
    bad("value_cut", mk.gguf([mk.raw_kv("k", U64, b"1234567")]), "u64: need 8 bytes at offset 37"),
    bad(
        "string_length_max",
        value(STR, mk.u64(MAX)),
        f"string: need {MAX} bytes at offset 45, have 0",
    ),
    bad("string_length_2_63", value(STR, mk.u64(2**63) + b"abc"), f"need {2**63} bytes"),
    bad(
        "string_past_the_end", value(STR, mk.string("abc", 4)), "need 4 bytes at offset 45, have 3"
    ),
    bad("array_elem_13", value(ARR, mk.array(13, [])), "array element type at offset 37: found 13"),
    bad(
        "array_length_max",
        value(ARR, mk.array(U64, [], MAX)),
        f"array length: found {MAX} elements of type u64 at offset 49, want at most 0 in the 0",
    ),
    bad("array_product_wraps", value(ARR, mk.array(U64, [bytes(8)], 2**61 + 1)), "of type u64"),
    bad("array_of_strings_max", value(ARR, mk.array(STR, [bytes(8)], MAX)), "of type str"),
    bad("array_of_bool_max", value(ARR, mk.array(BOOL, [bytes(8)], MAX)), "of type bool"),
    bad("array_of_arrays_max", value(ARR, mk.array(ARR, [bytes(16)], MAX)), "of type arr"),
    bad(
        "array_one_more",
        value(ARR, mk.array(U16, [bytes(2)] * 3, 4)),
        "found 4 elements of type u16 at offset 49, want at most 3 in the 6 bytes left",
    ),
    bad(
        "array_string_past_the_end",
        value(ARR, mk.array(STR, [mk.string("a"), mk.string("b", 100)])),
        "string: need 100 bytes at offset 66, have 1",
    ),
    bad(
        "inner_array_length_max",
        value(ARR, mk.array(ARR, [mk.array(U8, [b"1"], MAX)])),
        f"array length: found {MAX} elements of type u8 at offset 61",
    ),
    bad(
        "inner_array_elem", value(ARR, mk.array(ARR, [mk.array(77, [])])), "found 77, want 0 to 12"
    ),
    unsupported("nested_9", mk.nested(9), "found more than 8 levels, want at most 8"),
    unsupported("nested_60000", mk.nested(60000), "found more than 8 levels, want at most 8"),
]

ALIGNMENTS = [
    *(
        bad(
            f"alignment_{a}",
            aligned(U32, a),
            f"general.alignment: found {a}, want a power of two, 8 to 65536",
        )
        for a in (0, 1, 4, 13, 33, 131072, 2**31, 2**32 - 1)
    ),
    *(
        bad(
            f"alignment_type_{mk.NAMES[kind]}",
            aligned(kind, v),
            f"general.alignment: found type {mk.NAMES[kind]}, want u32",
        )
        for kind, v in ((I32, 32), (U64, 32), (U16, 32), (F32, 32.0), (STR, "32"), (BOOL, True))
    ),
    bad(
        "alignment_array",
        mk.gguf([mk.raw_kv("general.alignment", ARR, mk.array(U32, [mk.u32(8)]))]),
        "general.alignment: found type arr, want u32",
    ),
]

TENSORS = [
    bad("name_empty", one(Tensor("")), "tensor 0 of 1: name: found a length of 0 bytes"),
    bad("name_65", one(Tensor("n" * 65)), "name: found a length of 65 bytes, want 1 to 64"),
    bad("name_length_max", one(Tensor(name_len=MAX)), f"name: found a length of {MAX} bytes"),
    bad("name_not_utf8", one(Tensor(b"\xfe")), r'name: found "\xfe", want UTF-8 without NUL'),
    bad(
        "name_twice",
        mk.gguf((), [Tensor("x"), Tensor("y"), Tensor("x")]),
        'tensor 2: found the name "x" twice, want it once',
    ),
    bad("n_dims_0", one(Tensor(dims=(), n_bytes=64)), "dimension count: found 0, want 1 to 4"),
    bad("n_dims_5", one(Tensor(dims=(1,) * 5)), '"t": dimension count: found 5, want 1 to 4'),
    bad("n_dims_max", one(Tensor(n_dims=2**32 - 1)), "dimension count: found 4294967295"),
    *(
        bad(
            f"dim_{i}_zero",
            one(Tensor(dims=[0 if k == i else 32 for k in range(4)], n_bytes=64)),
            f"dimension {i}: found 0, want at least 1",
        )
        for i in range(4)
    ),
    *(
        bad(
            f"dim_{i}_max",
            big(Tensor(dims=[MAX if k == i else 1 for k in range(4)])),
            f"dimension {i}: found {MAX}, so the values are more than 2^63 - 1",
        )
        for i in range(4)
    ),
    bad("dims_all_max", big(Tensor(dims=(MAX,) * 4)), "dimension 0: found"),
    bad("dims_product_wraps", big(Tensor(dims=(2**32, 2**32))), f"dimension 1: found {2**32}"),
    bad("dims_product_wraps_to_1", big(Tensor(dims=(3, 12297829382473034411))), "dimension 1"),
    bad("dims_product_2_63", big(Tensor(dims=(2**31, 2**32))), "so the values are more than 2^63"),
    bad(
        "size_wraps",
        big(Tensor(dims=(2**62,))),
        f"size: found {2**62} values of type f32, want below 2^64 bytes",
    ),
    bad("size_wraps_q8_0", big(Tensor(dims=(2**62, 1), type=8)), "data: found 4899916394579099648"),
    bad("size_wraps_f16", big(Tensor(dims=(2**62, 1), type=1)), f"data: found {2**63} bytes"),
    bad(
        "block_q4_0",
        one(Tensor(dims=(33, 2), type=2, n_bytes=64)),
        "dimension 0: found 33, want a multiple of 32 (type q4_0)",
    ),
    bad(
        "block_q4_k",
        one(Tensor(dims=(128, 2), type=12, n_bytes=512)),
        "dimension 0: found 128, want a multiple of 256 (type q4_k)",
    ),
    bad("offset_max", big(Tensor(offset=MAX)), f"offset: found {MAX}, want a multiple of"),
    bad(
        "offset_wraps_inside",
        one(Tensor(offset=2**64 - 32), data=bytes(64)),
        f"data: found 128 bytes at offset {2**64 - 32} of the data section, want them",
    ),
    bad(
        "offset_misaligned",
        one(Tensor(offset=1)),
        "offset: found 1, want a multiple of the alignment 32",
    ),
    bad(
        "offset_past_the_end",
        one(Tensor(offset=1024), data=bytes(1024)),
        "data: found 128 bytes at offset 1024 of the data section, want them inside its 1024",
    ),
    bad(
        "data_one_byte_short",
        one(Tensor(), data=bytes(127)),
        "data: found 128 bytes at offset 0 of the data section, want them inside its 127 bytes",
    ),
    bad("data_missing", one(Tensor(), data=b""), "want them inside its 0 bytes"),
    bad(
        "data_and_padding_missing",
        mk.header(1, 0) + mk.string("tt") + mk.u32(1) + mk.u64(1) + mk.u32(0) + mk.u64(0),
        "padding before the data section: need 6 bytes",
    ),
    bad(
        "same_bytes",
        mk.gguf((), [Tensor("a", offset=0), Tensor("b", offset=0)]),
        "found its bytes from 96 on, inside tensor",
    ),
    bad(
        "overlap_by_32",
        mk.gguf((), [Tensor("a", offset=0), Tensor("b", offset=96)]),
        'tensor "b": found its bytes from 192 on, inside tensor "a" that ends at 224, want',
    ),
    bad(
        "overlap_out_of_order",
        mk.gguf(
            (), [Tensor("a", (64,), offset=96), Tensor("c", (8,), offset=0), Tensor("b", offset=32)]
        ),
        'tensor "a": found its bytes from',
    ),
    unsupported("type_i32", one(Tensor(type=26, n_bytes=128)), "tensor type: found 26 (I32), want"),
    unsupported("type_iq2_xxs", one(Tensor(type=16, n_bytes=128)), "found 16 (IQ2_XXS), want one"),
    unsupported("type_q4_0_4_4", one(Tensor(type=31, n_bytes=128)), "found 31 (Q4_0_4_4)"),
    unsupported("type_mxfp4", one(Tensor(type=39, n_bytes=128)), "found 39 (MXFP4)"),
    unsupported("type_removed", one(Tensor(type=4, n_bytes=128)), "found 4 (Q4_2)"),
    unsupported("type_99", one(Tensor(type=99, n_bytes=128)), "found 99 (no known type)"),
    unsupported(
        "type_minus_1", one(Tensor(type=2**32 - 1, n_bytes=128)), "found 4294967295 (no known"
    ),
]

_TWO_HUGE = [Tensor(f"my_tensor_{i}", (0x7FFFFFFFFFFFFFC0,), 24, n_bytes=64) for i in range(2)]
_13 = mk.kv("general.alignment", U32, 13)

# The failing cases of test-gguf.cpp; those that llama.cpp opens are in test_gguf_bad.py below.
LLAMA = [
    bad("llama_HEADER_BAD_MAGIC", mk.gguf(magic=b"FUGG"), 'magic: found "FUGG", want "GGUF"'),
    bad("llama_HEADER_BAD_VERSION_0", mk.gguf(version=0), "version: found 0"),
    unsupported("llama_HEADER_BAD_VERSION_1", mk.gguf(version=1), "version: found 1"),
    unsupported("llama_HEADER_BAD_VERSION_FUTURE", mk.gguf(version=4), "version: found 4"),
    bad("llama_HEADER_BAD_N_TENSORS", mk.gguf(n_tensors=MAX), "tensor count: found 1844"),
    bad("llama_HEADER_BAD_N_KV", mk.gguf(n_kv=MAX), "metadata count: found 1844"),
    bad(
        "llama_KV_BAD_KEY_SIZE",
        mk.gguf([mk.u64(MAX) + b"my_key_0" + bytes(8)]),
        "key: found a length",
    ),
    bad("llama_KV_EMPTY_KEY", mk.gguf([mk.kv("", U32, 1)]), "key: found a length of 0 bytes"),
    bad("llama_KV_BAD_TYPE", value(13, bytes(4)), "value type at offset 33: found 13"),
    bad("llama_KV_BAD_VALUE_SIZE", value(STR, mk.u64(MAX) + bytes(8)), "string: need 1844"),
    bad("llama_KV_DUPLICATE_KEY", mk.gguf([mk.kv("my_key_0", U8, 1)] * 2), "twice, want it once"),
    bad("llama_KV_BAD_ALIGN", mk.gguf([_13]), "general.alignment: found 13"),
    bad("llama_KV_WRONG_TYPE_ALIGN", aligned(I32, 32), "general.alignment: found type i32"),
    bad(
        "llama_TENSORS_BAD_NAME_SIZE",
        one(Tensor("my_tensor_0" + "_with_a_very_long_name" * 3)),
        "name: found a length of 77 bytes",
    ),
    bad("llama_TENSORS_BAD_N_DIMS", one(Tensor(n_dims=5)), "dimension count: found 5"),
    bad("llama_TENSORS_BAD_SHAPE", big(Tensor(dims=(MAX, MAX))), "dimension 0: found 1844"),
    bad("llama_TENSORS_ZERO_DIM", one(Tensor(dims=(32, 0), n_bytes=0)), "dimension 1: found 0"),
    bad("llama_TENSORS_NE_TOO_BIG", big(Tensor(dims=(4 * (2**31 - 1),) * 2)), "dimension 1: found"),
    unsupported(
        "llama_TENSORS_NBYTES_TOO_BIG", big(Tensor(dims=(1533916891,) * 2, type=27)), "(I64)"
    ),
    bad(
        "llama_TENSORS_NBYTES_TOO_BIG_f32",
        big(Tensor(dims=(2169000000,) * 2, type=0)),
        "size: found",
    ),
    bad(
        "llama_TENSORS_NBYTES_PAD_WRAP",
        big(Tensor(dims=(4, 1073741823, 1073741825))),
        f"data: found {2**64 - 16} bytes at offset 0",
    ),
    unsupported(
        "llama_TENSORS_BAD_TYPE", one(Tensor(type=43, n_bytes=128)), "found 43 (no known type)"
    ),
    bad("llama_TENSORS_BAD_OFFSET", big(Tensor(offset=MAX)), "offset: found 1844"),
    bad(
        "llama_TENSORS_DUPLICATE_NAME", mk.gguf((), [Tensor("my_tensor")] * 2), '"my_tensor" twice'
    ),
    bad("llama_TENSORS_BAD_ALIGN", mk.gguf([_13], [Tensor()], align=13), "alignment: found 13"),
    bad(
        "llama_TENSORS_INCONSISTENT_ALIGN",
        mk.gguf((), [Tensor("a", (3,)), Tensor("b", (3,))], align=1),
        "offset: found 12, want a mult",
    ),
    bad("llama_DATA_NOT_ENOUGH_DATA", one(Tensor(), data=bytes(127)), "want them inside its 127"),
    bad("llama_DATA_BAD_ALIGN", mk.gguf([_13], [Tensor()], align=13), "alignment: found 13"),
    bad(
        "llama_DATA_INCONSISTENT_ALIGN",
        mk.gguf((), [Tensor("a", (5,)), Tensor("b", (5,))], align=4),
        "offset: found 20, want a mult",
    ),
    unsupported("llama_DATA_MEM_SIZE_OVERFLOW", mk.gguf((), _TWO_HUGE), "found 24 (I8)"),
    bad(
        "llama_DATA_MEM_SIZE_OVERFLOW_f32",
        mk.gguf((), [Tensor(f"t{i}", (0x3FFFFFFFFFFFFFE0,), 0, n_bytes=64) for i in range(2)]),
        "data: found 18446744073709551488 bytes",
    ),
    # llama.cpp opens these two; the specification wants a multiple of 8.
    bad(
        "llama_TENSORS_CUSTOM_ALIGN",
        mk.gguf([mk.kv("general.alignment", U32, 1)], [Tensor()], align=1),
        "general.alignment: found 1, want a power of two, 8 to 65536",
    ),
    bad(
        "llama_DATA_CUSTOM_ALIGN",
        mk.gguf([mk.kv("general.alignment", U32, 1)], [Tensor()], align=1),
        "general.alignment: found 1, want a power of two, 8 to 65536",
    ),
]

CVES = [
    bad(
        "cve_2024_21802_info_ne", one(Tensor(n_dims=2**31, dims=(1,) * 8)), "dimension count: found"
    ),
    bad(
        "cve_2024_21825_array_of_strings",
        value(ARR, mk.array(STR, [bytes(8)], 2**60 + 1)),
        "array length: found 1152921504606846977",
    ),
    bad(
        "cve_2024_21836_n_tensors",
        mk.gguf((), [Tensor()], n_tensors=0x0492492492492493),
        "tensor count: found 329406144173384851",
    ),
    bad(
        "cve_2024_23605_n_kv",
        mk.gguf([mk.kv("a", U8, 1)], n_kv=0x0555555555555556),
        "metadata count: found 384307168202282326",
    ),
    bad(
        "cve_2024_23496_string", value(STR, mk.u64(MAX)), "string: need 18446744073709551615 bytes"
    ),
    bad("cve_2025_66960_string", mk.gguf([mk.u64(2**40) + b"x" * 20]), "a length of 1099511627776"),
    bad("cve_2024_25664_array_u8", value(ARR, mk.array(U8, [b"1"], MAX)), "of type u8"),
    bad("cve_2024_25665_array_i64", value(ARR, mk.array(I64, [bytes(8)], 2**61)), "of type i64"),
    bad("cve_2024_25666_dims", big(Tensor(dims=(2**33, 2**33, 1, 1))), "dimension 1"),
    bad("cve_2024_25667_size", big(Tensor(dims=(2**61 + 2**30, 2), type=0)), "size: found"),
    bad("cve_2024_25668_key", mk.gguf([mk.u64(2**63) + bytes(20)]), "key: found a length of"),
    bad(
        "cve_2025_53630_sum_of_sizes",
        mk.gguf(
            (), [Tensor("a", (2**61 - 8,), 0, n_bytes=64), Tensor("b", (2**61 - 8,), 0, n_bytes=64)]
        ),
        f"data: found {(2**61 - 8) * 4} bytes",
    ),
    bad("cve_2026_27940_mem_size", big(Tensor(dims=(2**62 - 1,), type=0)), "data: found"),
    bad("cve_2026_33298_nbytes", big(Tensor(dims=(32, 2**57), type=0)), "want below 2^64 bytes"),
    bad("cve_2025_0315_count_bomb", mk.gguf(n_kv=60000), "found 60000, want at most 0"),
    bad(
        "cve_2026_65315_tiny_file",
        mk.gguf([bytes(200)], n_tensors=65000),
        "metadata pair 0 of 1: key: found a length of 0",
    ),
    bad(
        "cve_2026_7482_read_past_the_end",
        one(Tensor(dims=(2**20,), n_bytes=64)),
        "data: found 4194304 bytes at offset 0 of the data section, want them inside its 64",
    ),
    bad(
        "cve_2026_5757_offset",
        one(Tensor(offset=2**40), data=bytes(256)),
        "at offset 1099511627776",
    ),
    bad("cve_2024_39720_four_bytes", b"GGUF", "version: need 4 bytes at offset 4, have 0"),
    bad("cve_2025_0317_alignment_0", aligned(U32, 0), "general.alignment: found 0"),
    bad("pr_24997_alignment_2_30", aligned(U32, 2**30), "general.alignment: found 1073741824"),
    bad("pr_26318_alignment_wraps", aligned(U32, 2**31), "general.alignment: found 2147483648"),
    bad("cve_2025_0312_no_name", one(Tensor("")), "name: found a length of 0"),
    bad("cve_2025_0313_no_dims", one(Tensor(dims=(), n_bytes=64)), "dimension count: found 0"),
    bad(
        "cve_2024_32878_half_read",
        mk.gguf([mk.raw_kv("k", ARR, mk.array(STR, [mk.string("a")], 3))]),
        "array length: found 3 elements of type str at offset 49, want at most 1",
    ),
    bad(
        "cve_2026_53923_cut_dims",
        mk.header(1, 0) + mk.string("t") + mk.u32(4) + mk.u64(7) * 2 + bytes(4),
        "dimension: need 8 bytes",
    ),
]

ALL = HEADER + KEYS + VALUES + ALIGNMENTS + TENSORS + LLAMA + CVES

# What stays as a file in tests/bad, because it is nasty enough to be shown to every reader.
KEPT = [
    "big_endian",
    "n_kv_max",
    "n_tensors_max",
    "key_twice",
    "key_with_nul",
    "array_product_wraps",
    "array_of_strings_max",
    "inner_array_length_max",
    "nested_9",
    "alignment_0",
    "alignment_2147483648",
    "alignment_type_i32",
    "dims_product_wraps_to_1",
    "size_wraps",
    "offset_wraps_inside",
    "overlap_out_of_order",
    "data_one_byte_short",
    "name_twice",
    "llama_TENSORS_NBYTES_PAD_WRAP",
    "cve_2026_33298_nbytes",
    "cve_2026_7482_read_past_the_end",
    "cve_2026_53923_cut_dims",
    "cve_2024_39720_four_bytes",
    "type_iq2_xxs",
]
