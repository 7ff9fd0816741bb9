"""Hostile pickles that leave no file behind: they import, hang, crash or allocate."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator

from ._gadgets import _global, _stacked, _text, archive

#: Modules of the standard library that nothing else here imports, and that do no harm.
LURES = ("stringprep", "imaplib", "tabnanny", "nturl2path", "rlcompleter", "pyclbr", "this")

# More than there is room for.
_HUGE = 2**38
_Sample = tuple[str, str, bytes]


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return _global(module, name) + b"(" + b"".join(arguments) + b"tR"


def _number(value: int) -> bytes:
    raw = pickle.encode_long(value)
    return b"\x8a" + bytes([len(raw)]) + raw


def _imports() -> Iterator[tuple[str, bytes]]:
    yield "GLOBAL", _global("stringprep", "c22_specials")
    yield "GLOBAL of a number", _global("imaplib", "Debug")
    yield "STACK_GLOBAL", _stacked("tabnanny", "check")
    yield "GLOBAL, a name that is not there", _global("pyclbr", "nothing")
    yield "GLOBAL, dropped", _global("nturl2path", "url2pathname") + b"0}"
    yield "INST", b"(iimaplib\nDebug\n"
    yield "__import__", _call("builtins", "__import__", _text("this"))
    yield "import_module", _call("importlib", "import_module", _text("tabnanny"))
    yield "resolve_name", _call("pkgutil", "resolve_name", _text("imaplib:Debug"))
    yield "a dotted name of torch", _call("torch._utils", "_import_dotted_name", _text("tabnanny"))
    yield "as a key", b"}" + _global("stringprep", "c22_specials") + b"Ns"
    yield "a persistent id", _global("imaplib", "Debug") + b"0" + _text("x")


def _hangs() -> Iterator[tuple[str, bytes]]:
    endless = _call("itertools", "count")
    yield "sum of a range", _call("builtins", "sum", _call("builtins", "range", _number(2**60)))
    yield "sleep", _call("time", "sleep", _number(10_000))
    yield "a deque of no length", _call("collections", "deque", endless, b"K\0")
    yield "any", _call("builtins", "any", _call("itertools", "repeat", b"K\0"))
    yield "a regular expression", _call("re", "match", _text("(a+)+$"), _text("a" * 60 + "b"))
    yield "a power", _call("builtins", "pow", b"K\x03", _number(2**34))
    yield "a pause", _call("signal", "pause")
    yield "a lock", _call("threading", "Barrier", b"K\x02") + b"0" + _call("signal", "pause")


def _crashes() -> Iterator[tuple[str, bytes]]:
    yield "abort", _call("os", "abort")
    yield "exit", _call("os", "_exit", b"K\x01")
    yield "a signal", _call("signal", "raise_signal", b"K\x0b")
    yield "_sigsegv", _call("faulthandler", "_sigsegv")
    yield "ctypes", _call("ctypes", "string_at", b"K\x08")
    yield "kill", _call("os", "kill", _call("os", "getpid"), b"K\x06")


def _allocates() -> Iterator[tuple[str, bytes]]:
    huge = _number(_HUGE)
    yield "a bytearray", _call("builtins", "bytearray", huge)
    yield "bytes", _call("builtins", "bytes", huge)
    yield "a memo", b"]r\xff\xff\xff\x7f"
    yield "a repeated text", _call("operator", "mul", _text("x"), huge)
    yield "a list of a range", _call("builtins", "list", _call("builtins", "range", huge))
    yield "a set of a range", _call("builtins", "set", _call("builtins", "range", huge))
    yield "zeros of numpy", _call("numpy", "zeros", huge)
    yield "an array of numpy", _call("numpy", "ndarray", huge + b"\x85")
    yield "zeros of torch", _call("torch", "zeros", huge)
    yield "a tensor", _call("torch", "FloatTensor", huge)
    yield "a storage", _call("torch", "UntypedStorage", huge)
    yield "a deque", _call("collections", "deque", _call("itertools", "repeat", b"K\0"))
    yield "a counter", _call("collections", "Counter", _call("itertools", "count"))
    yield "a shifted number", _call("operator", "lshift", b"K\x01", _number(2**41))
    yield "text of no end", _call("builtins", "format", b"K\x01", _text(str(_HUGE)))


def _both() -> Iterator[_Sample]:
    found = {"imports": _imports, "hangs": _hangs, "crashes": _crashes, "allocates": _allocates}
    for effect, samples in found.items():
        for name, data in samples():
            yield effect, name, b"\x80\x04" + data + b"."


def unmarked() -> list[_Sample]:
    """What each is to do, its name, and a pickle."""
    alike = b"\x80\x04" + alike_numbers(120_000) + b"."
    return [*_both(), ("hangs", "numbers that hash alike", alike)]


def _endless_keys() -> Iterator[tuple[str, bytes]]:
    """Keys that take for ever to hash, or whose hashes are all alike: in control they hang."""
    wide = b")" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(45))
    yield "a key of 2**45 parts", b"}" + wide + b"Ns"
    yield "a set of such", _call("builtins", "set", b"]" + wide + b"a")
    yield "numbers that hash alike", alike_numbers(120_000)
    yield "tuples that hash alike", alike_tuples(17)


def alike_numbers(count: int) -> bytes:
    """A dict whose keys are multiples of the modulus of Python's hash."""
    step = 2**61 - 1
    return b"}(" + b"".join(_number(step * n) + b"N" for n in range(1, count)) + b"u"


def alike_tuples(length: int) -> bytes:
    """A dict of all tuples of -1 and -2, which hash alike, of a length."""
    parts = (b"J\xff\xff\xff\xff", b"J\xfe\xff\xff\xff")
    items = []
    for number in range(2**length):
        inside = b"".join(parts[number >> place & 1] for place in range(length))
        items.append(b"(" + inside + b"tN")
    return b"}(" + b"".join(items) + b"u"


def _recursion() -> Iterator[tuple[str, bytes]]:
    deep = b")" + b"\x85" * 1_000_000
    yield "a key nested without end", b"}" + deep + b"Ns"
    yield "a set nested without end", _call("builtins", "frozenset", b"]" + deep + b"a")


def _tensor_call(size: int, stride: int, name: str = "_rebuild_tensor_v2") -> bytes:
    """A tensor of one float's memory that says it is larger."""
    pid = b"(" + _text("storage") + _global("torch", "FloatStorage") + _text("0") + _text("cpu")
    memory = pid + b"K\x01tQ"
    empty = _global("collections", "OrderedDict") + b")R"
    shape, steps = _number(size) + b"\x85", _number(stride) + b"\x85"
    return _call("torch._utils", name, memory, b"K\0", shape, steps, b"\x89", empty)


def packed(pickled: bytes, **records: bytes) -> bytes:
    """An archive whose records are compressed."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/version", b"3\n")
        for name, content in records.items():
            made.writestr(f"archive/{name}", content)
    return output.getvalue()


def archives_that_allocate() -> Iterator[tuple[str, bytes]]:
    """Archives, of tensors or else, that take memory which they do not hold."""
    floats = {"data/0": b"\0" * 4}
    head, end = b"\x80\x02", b"."
    parameter = _call("torch", "FloatTensor", _number(_HUGE))
    yield "a tensor of a size", archive(head + parameter + end, **floats)
    zeros = b"\0" * 2**30
    size = len(zeros) // 4
    whole = _tensor_call(size, 1).replace(b"K\x01tQ", _number(size) + b"tQ")
    yield "a compressed record", packed(head + whole + end, **{"data/0": zeros})
    yield "a compressed pickle", packed(head + b"B" + struct.pack("<I", 2**30) + zeros + end)
    yield "legacy, a storage", _legacy(_HUGE)


def _legacy(count: int) -> bytes:
    """The form before archives: a storage whose size stands in the pickle."""
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))
    pid = b"(" + _text("storage") + _global("torch", "FloatStorage") + _text("0") + _text("cpu")
    return head + b"\x80\x02" + pid + _number(count) + b"NtQ." + pickle.dumps(["0"], 2)


def unmarked_items() -> Iterator[_Sample]:
    """The same in archives, and what only stored items can do."""
    for effect, name, data in _both():
        yield effect, name, archive(data)
    for name, data in _endless_keys():
        yield "hangs", name, archive(b"\x80\x04" + data + b".")
    for name, data in _recursion():
        yield "crashes", name, archive(b"\x80\x04" + data + b".")
    for name, data in archives_that_allocate():
        yield "allocates", name, data
    yield "imports", "STACK_GLOBAL in a frame", archive(_framed(_stacked("pyclbr", "readmodule")))


def _framed(data: bytes) -> bytes:
    return b"\x80\x04\x95" + struct.pack("<Q", len(data) + 1) + data + b"."
