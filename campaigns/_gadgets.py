"""Hostile pickles: each leaves a marker behind if it is carried out as plain pickle does."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

# Functions that take one text: a command, code, or a path, by how they leave a marker.
_COMMANDS = (
    *(("os", "system"), ("posix", "system"), ("subprocess", "getoutput")),
    *(("subprocess", "getstatusoutput"), ("os", "popen"), ("commands", "getoutput")),
)
_CODE = (
    *(("builtins", "exec"), ("builtins", "eval"), ("__builtin__", "eval"), ("cProfile", "run")),
    *(("profile", "run"), ("numpy.testing", "runstring")),
)
_PATHS = (
    *(("os", "mkdir"), ("os", "makedirs"), ("posix", "mkdir"), ("torch.serialization", "mkdtemp")),
    *(("shelve", "open"), ("dbm.dumb", "open"), ("sqlite3", "connect"), ("logging", "FileHandler")),
    *(("pathlib", "Path.touch"), ("torch.hub", "download_url_to_file")),
)


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _stacked(module: str, name: str) -> bytes:
    return _short(module) + _short(name) + b"\x93"


def _calls(module: str, name: str, argument: str) -> Iterator[tuple[str, bytes]]:
    """One call through several opcodes."""
    text, label = _text(argument), f"{module}.{name}"
    yield f"{label} REDUCE", b"\x80\x02" + _global(module, name) + text + b"\x85R."
    yield f"{label} STACK_GLOBAL", b"\x80\x04" + _stacked(module, name) + text + b"\x85R."


def _opcodes(command: str) -> Iterator[tuple[str, bytes]]:
    text, system = _text(command), _global("os", "system")
    call = system + text + b"\x85R"
    yield "INST", b"(" + text + b"iposix\nsystem\n."
    yield "OBJ, a command", b"(c" + b"os\nsystem\n" + text + b"o."
    yield "protocol 0", b"cos\nsystem\n(V" + command.encode() + b"\ntR."
    yield "memo", b"\x80\x02" + system + b"q\x00" + text + b"q\x010h\x00h\x01\x85R."
    yield "dropped", b"\x80\x02" + call + b"0}."
    yield "marked", b"\x80\x02(" + call + b"1}."
    yield "in a list", b"\x80\x02]" + call + b"a."
    yield "in a dict", b"\x80\x02}X\x01\x00\x00\x00a" + call + b"s."
    yield "as a key", b"\x80\x02}" + call + b"Ns."
    yield "frame", b"\x80\x04\x95" + struct.pack("<Q", len(call) + 1) + call + b"."
    yield "twice", b"\x80\x02" + call + call + b"\x86."
    yield "two pickles", b"\x80\x02" + call + b".\x80\x02}."
    yield "dotted", b"\x80\x04" + _stacked("os", "path.os.system") + text + b"\x85R."
    yield "dotted through torch", b"\x80\x04" + _stacked("torch", "os.system") + text + b"\x85R."
    yield (
        "dotted through DCP",
        (
            b"\x80\x04"
            + _stacked("torch.distributed.checkpoint.filesystem", "os.system")
            + text
            + b"\x85R."
        ),
    )
    yield (
        "dotted through collections",
        (b"\x80\x04" + _stacked("collections", "_sys.modules") + _text("os") + b"\x85R."),
    )
    yield "setstate", (b"\x80\x02c__main__\nType\n" + text + b"b.")
    # A state with __setstate__: BUILD then calls it.
    bag = _global("argparse", "Namespace") + b")\x81"
    state = b"}" + _text("__setstate__") + system + b"s"
    yield "BUILD of __setstate__", b"\x80\x02" + bag + state + b"b" + text + b"b."
    bag = _global("types", "SimpleNamespace") + b")R"
    yield "BUILD of a SimpleNamespace", b"\x80\x02" + bag + state + b"b" + text + b"b."
    bag = _global("collections", "OrderedDict") + b")R"
    yield "BUILD of an OrderedDict", b"\x80\x02" + bag + state + b"b" + text + b"b."
    metadata = _global("torch.distributed.checkpoint.metadata", "Metadata") + b")\x81"
    yield "BUILD of Metadata", b"\x80\x02" + metadata + state + b"b" + text + b"b."
    index = _global("torch.distributed.checkpoint.metadata", "StorageMeta") + b")\x81"
    yield "BUILD of StorageMeta", b"\x80\x02" + index + state + b"b" + text + b"b."
    # An object whose append, extend, __setitem__ or factory is what runs.
    bag = _global("argparse", "Namespace") + b")\x81"
    append = b"}" + _text("append") + system + b"s"
    yield "APPEND", b"\x80\x02" + bag + append + b"b" + text + b"a."
    extend = b"}" + _text("extend") + _global("os", "system") + b"s"
    yield "APPENDS", b"\x80\x02" + bag + extend + b"b(" + text + b"e."
    partial = _global("functools", "partial") + system + text + b"\x86R"
    yield "partial", b"\x80\x02" + partial + b")R."
    yield (
        "partial, new",
        (b"\x80\x02" + _global("functools", "partial") + system + text + b"\x86\x81)R."),
    )
    yield (
        "map",
        (
            b"\x80\x02"
            + _global("builtins", "list")
            + _global("builtins", "map")
            + system
            + text
            + b"\x85\x86R\x85R."
        ),
    )
    yield (
        "defaultdict",
        (
            b"\x80\x02"
            + _global("collections", "deque")
            + _global("builtins", "map")
            + system
            + text
            + b"\x85\x86R\x85R."
        ),
    )
    yield (
        "reduce",
        (
            b"\x80\x02"
            + _global("builtins", "set")
            + _global("builtins", "map")
            + system
            + text
            + b"\x85\x86R\x85R."
        ),
    )
    yield (
        "getattr",
        (
            b"\x80\x02"
            + _global("builtins", "getattr")
            + _global("builtins", "__import__")
            + _text("os")
            + b"\x85R"
            + _text("system")
            + b"\x86R"
            + text
            + b"\x85R."
        ),
    )
    yield (
        "attrgetter",
        (
            b"\x80\x02"
            + _global("operator", "attrgetter")
            + _text("system")
            + b"\x85R"
            + _global("importlib", "import_module")
            + _text("os")
            + b"\x85R\x85R"
            + text
            + b"\x85R."
        ),
    )
    yield (
        "methodcaller",
        (
            b"\x80\x02"
            + _global("operator", "methodcaller")
            + _text("system")
            + text
            + b"\x86R"
            + _global("importlib", "import_module")
            + _text("os")
            + b"\x85R\x85R."
        ),
    )
    yield (
        "import_utils",
        (
            b"\x80\x02"
            + _global("builtins", "getattr")
            + _global("torch._utils", "_import_dotted_name")
            + _text("os.system")
            + b"\x85R"
            + _text("__call__")
            + b"\x86R"
            + text
            + b"\x85R."
        ),
    )
    yield (
        "loads within",
        (
            b"\x80\x02"
            + _global("pickle", "loads")
            + b"C"
            + bytes([len(call) + 3])
            + b"\x80\x02"
            + call
            + b"."
            + b"\x85R."
        ),
    )
    # Tensors: a rebuild function that calls another, with a state.
    yield (
        "_rebuild_from_type_v2",
        (
            b"\x80\x02"
            + _global("torch._tensor", "_rebuild_from_type_v2")
            + b"("
            + system
            + _global("builtins", "int")
            + text
            + b"\x85}tR."
        ),
    )
    yield (
        "OrderedDict of calls",
        b"\x80\x02" + _global("collections", "OrderedDict") + (b"]" + call + b"Na\x85R."),
    )


def hostile(marker: Path) -> list[tuple[str, bytes]]:
    """Names and pickles. Those that can run make ``marker``, a file or folder."""
    command, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    found = list(_opcodes(command))
    for functions, argument in ((_COMMANDS, command), (_CODE, code), (_PATHS, str(marker))):
        for module, name in functions:
            found += _calls(module, name, argument)
    return found


def archive(pickled: bytes, **records: bytes) -> bytes:
    """What torch.load takes for an archive of torch.save."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/version", b"3\n")
        for name, content in records.items():
            made.writestr(f"archive/{name}", content)
    return output.getvalue()


def wrapped(marker: Path) -> Iterator[tuple[str, bytes]]:
    """The pickles as stored items: in archives, and in all that torch.load can be fed with."""
    for name, data in hostile(marker):
        yield name, archive(data)
    call = b"\x80\x02cos\nsystem\n" + _text(f"touch {marker}") + b"\x85R."
    plain = archive(pickle.dumps({"a": 1}, 2))
    yield "a bare pickle", call
    yield "legacy magic, then a call", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + call
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))
    yield "legacy, a call", head + call + pickle.dumps([], 2)
    yield "pickle before an archive", call + plain
    yield "archive before a pickle", plain + call
    yield "a TorchScript archive", archive(call, **{"constants.pkl": call})
    with_two = io.BytesIO(plain)
    with zipfile.ZipFile(with_two, "a") as made, _quiet():
        made.writestr("archive/data.pkl", call)
    yield "two data.pkl", with_two.getvalue()
    with_other = io.BytesIO(plain)
    with zipfile.ZipFile(with_other, "a") as made:
        made.writestr("other/data.pkl", call)
    yield "another folder", with_other.getvalue()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", call)
        made.writestr("archive/version", b"3\n")
    yield "compressed", packed.getvalue()
    yield "a comment", plain[:-2] + struct.pack("<H", len(call)) + call
    persistent = b"\x80\x02" + call[2:-1] + b"Q."
    yield "a persistent id", archive(persistent)


def _quiet():  # type: ignore[no-untyped-def]
    import warnings

    caught = warnings.catch_warnings()
    warnings.simplefilter("ignore")
    return caught
