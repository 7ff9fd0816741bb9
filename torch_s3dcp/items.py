"""One item: a tensor or a blob to stock bytes and back.

Stock bytes are those of ``torch.save`` for tensors and the planner's own bytes for the
rest, passed through the extensions, exactly as torch's ``FileSystemWriter`` lays them out.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.utils.serialization import config

from ._torch import ExtensionRegistry, StreamTransformExtension
from .allowed import SafeGlobal, allowed_names
from .envelopes import Envelope
from .exceptions import InvalidCheckpointError, S3DCPError, SizeMismatchError
from .interpreter import Interpreter, RefusedError
from .pickles import check_sizes
from .records import PICKLE, RecordFile
from .segments import SegmentSink
from .tensors import Storages

if TYPE_CHECKING:
    from typing_extensions import Buffer


# Archives of 4 GiB and more are laid out in another way.
_ZIP64 = 2**32 - 2**20
_MOST_ENVELOPES = 4096
# Archives up to this size are read in one piece.
_READ_AT_ONCE = 2**20
_ENVELOPES: dict[tuple[Any, ...], Envelope] = {}


def storage_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of the storage behind a CPU tensor, without a copy."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return memoryview(b"")
    flat = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    return memoryview(cast("Buffer", flat.numpy()))


def to_stored_form(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as torch's writer stores it: on the CPU, with a storage of its own size.

    A view into a larger storage would drag all of that storage into the checkpoint.
    """
    tensor = tensor.detach().cpu()
    if tensor.layout is not torch.strided:
        return tensor
    size = tensor.numel() * tensor.element_size()
    if tensor.untyped_storage().nbytes() == size:
        return tensor
    flagged = tensor.is_conj() or tensor.is_neg()
    if not size or flagged or not tensor.is_contiguous() or not _is_plain(tensor):
        return tensor.clone()
    # The same memory as a storage of its own: shards are often views of one large tensor.
    begin = tensor.storage_offset() * tensor.element_size()
    memory = storage_view(tensor)[begin : begin + size]
    own = torch.frombuffer(memory, dtype=torch.uint8).view(tensor.dtype)
    return own.as_strided(tensor.size(), tensor.stride())


def serialize(
    data: torch.Tensor | io.BytesIO, extensions: Sequence[StreamTransformExtension] = ()
) -> list[memoryview]:
    """Stock bytes of what a planner gives for an item, as blocks."""
    if isinstance(data, torch.Tensor):
        return serialize_tensor(to_stored_form(data), extensions)
    return serialize_bytes(data.getbuffer(), extensions)


def serialize_tensor(
    tensor: torch.Tensor, extensions: Sequence[StreamTransformExtension] = ()
) -> list[memoryview]:
    """Stock bytes of a tensor, as blocks.

    The block with the tensor's data is its own memory, not a copy: the tensor must not
    change before the blocks are used. The blocks keep it alive.

    Args:
        tensor: On the CPU, as :func:`to_stored_form` gives it.
        extensions: Transformations to apply, the last one first, as torch does.
    """
    if not extensions and _is_mouldable(tensor):
        return _in_envelope(tensor)
    sink = SegmentSink(_stable_memory(tensor) if not extensions else None)
    output = _transformed(sink, extensions)
    torch.save(tensor, output)
    _finish(output, sink)
    return sink.segments


def envelope_of(tensor: torch.Tensor) -> Envelope | None:
    """What surrounds a dense tensor's data, on whatever device it is; None where nobody knows.

    Learned from memory that is never written, which takes none.
    """
    alignment = getattr(config.save, "storage_alignment", None)
    kind = (tensor.dtype, tensor.size(), tensor.stride(), alignment)
    if kind not in _ENVELOPES:
        size = tensor.numel() * tensor.element_size()
        full = len(_ENVELOPES) >= _MOST_ENVELOPES
        if full or size >= _ZIP64 or not torch.serialization.get_crc32_options():
            return None
        like = torch.empty(0, dtype=tensor.dtype, device="cpu")
        # torch.empty_strided would write to it, if it is to be deterministic.
        untouched = torch.UntypedStorage(size)  # type: ignore[no-untyped-call]
        like.set_(untouched, 0, tensor.size(), tensor.stride())
        _in_envelope(like)
    return _ENVELOPES.get(kind)


def _in_envelope(tensor: torch.Tensor) -> list[memoryview]:
    """The bytes of ``torch.save``, which runs for the first tensor of a kind only."""
    alignment = getattr(config.save, "storage_alignment", None)
    kind = (tensor.dtype, tensor.size(), tensor.stride(), alignment)
    data = storage_view(tensor)
    envelope = _ENVELOPES.get(kind)
    if envelope is not None:
        trailer = envelope.trailer_for(zlib.crc32(data))
        return [memoryview(envelope.header), data, memoryview(trailer)]
    sink = SegmentSink(data)
    torch.save(tensor, cast("IO[bytes]", sink))
    blocks = sink.segments
    places = [n for n, block in enumerate(blocks) if block.obj is data.obj]
    if len(places) != 1 or len(blocks[places[0]]) != len(data):
        return blocks
    header, trailer = b"".join(blocks[: places[0]]), b"".join(blocks[places[0] + 1 :])
    learned = Envelope.around(header, trailer, len(data))
    if learned is not None and len(_ENVELOPES) < _MOST_ENVELOPES:
        _ENVELOPES[kind] = learned
    return [memoryview(header), data, memoryview(trailer)]


def _is_mouldable(tensor: torch.Tensor) -> bool:
    """Whether what surrounds its data in an archive depends on dtype, shape and strides alone."""
    size = tensor.numel() * tensor.element_size()
    return (
        type(tensor) is torch.Tensor
        and torch.serialization.get_crc32_options()
        and _is_plain(tensor)
        and not (tensor.requires_grad or tensor.is_conj() or tensor.is_neg() or vars(tensor))
        and 0 < size == tensor.untyped_storage().nbytes() < _ZIP64
    )


def serialize_bytes(
    data: Buffer, extensions: Sequence[StreamTransformExtension] = ()
) -> list[memoryview]:
    """Stock bytes of a blob, as blocks."""
    if not extensions:
        return [memoryview(data).cast("B")]
    sink = SegmentSink()
    output = _transformed(sink, extensions)
    output.write(data)
    _finish(output, sink)
    return sink.segments


def descriptors_of(extensions: Sequence[StreamTransformExtension]) -> list[str] | None:
    """What the metadata says about transformations; None where there are none.

    In the order in which readers, torch's among them, undo them. torch's writer (2.7 to 2.13)
    notes the reverse, so that of its own checkpoints nothing reads more than one extension.
    """
    return [extension.get_descriptor() for extension in extensions] or None


def open_item(
    view: IO[bytes],
    descriptors: Iterable[str],
    registry: ExtensionRegistry,
    limit: int | None = None,
) -> IO[bytes]:
    """Undo the transformations that an item was stored with.

    Args:
        limit: Bytes that it may decode to, see :func:`most_bytes`; None: as many as it likes.

    Raises:
        InvalidCheckpointError: An extension is unknown here, or not installed. From reading: it
            decodes to more.
    """
    names = list(descriptors)
    try:
        extensions = registry.from_descriptor_list(names)
    except ValueError as error:
        raise InvalidCheckpointError(
            f"the item was stored through an extension of {names} that is not available: {error}; "
            "install it, or pass an extension registry that knows it"
        ) from error
    for extension in extensions:
        if isinstance(extension, StreamTransformExtension):
            view = extension.transform_from(view)
            if limit is not None:
                view = cast("IO[bytes]", _Limited(view, limit))
    return view


def load_tensor(
    item: IO[bytes], safe_globals: Sequence[SafeGlobal] = (), *, trusted: bool = False
) -> torch.Tensor:
    """Decode a stored tensor onto the CPU. Runs no code from the item.

    Args:
        safe_globals: What it may name beyond ``allowed``.
        trusted: ``torch.load(weights_only=True)`` decodes it, which believes sizes.

    Raises:
        InvalidCheckpointError: The bytes are not a stored tensor, or name what is not allowed.
    """
    with _decoding("tensor"):
        file = item if item.seekable() else io.BytesIO(item.read(-1))
        if trusted:
            value = torch.load(file, map_location="cpu", weights_only=True)
        else:
            value = _decoded(file, safe_globals)
    if not isinstance(value, torch.Tensor):
        raise InvalidCheckpointError(f"the item holds a {type(value).__name__}, not a tensor")
    return value


def _decoded(file: IO[bytes], safe_globals: Sequence[SafeGlobal]) -> Any:
    """The value in an archive; its storages take no more memory than the archive has bytes."""
    if file.seek(0, 2) <= _READ_AT_ONCE:
        file.seek(0)
        file = io.BytesIO(file.read(-1))
    records = RecordFile(file)
    if "constants.pkl" in records:
        raise RefusedError("it is a TorchScript archive, which holds code")
    pickled = bytes(records[PICKLE])
    check_sizes(pickled)
    names = allowed_names(safe_globals)
    return Interpreter(names, Storages(records)).load(pickled)


class _Limited(io.RawIOBase):
    """What an extension decodes, as long as it is no more than a number of bytes."""

    def __init__(self, source: IO[bytes], limit: int) -> None:
        self._source = source
        self._left = self._limit = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        target = memoryview(buffer).cast("B")
        data = self._source.read(min(len(target), self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise InvalidCheckpointError(
                f"the stored item decodes to more than the {self._limit} bytes that the metadata "
                "accounts for"
            )
        target[: len(data)] = data
        return len(data)


def most_bytes(about: Any) -> int | None:
    """Bytes that a stored part of a tensor can take at most; None: nobody can know.

    Args:
        about: What the metadata's ``state_dict_metadata`` says of it.
    """
    if not isinstance(about, TensorStorageMetadata):
        return None
    numbers = max((chunk.sizes.numel() for chunk in about.chunks), default=0)
    # Room for a class of its own, which may keep more than one value for each.
    each = 2 * about.properties.dtype.itemsize + 16
    if about.properties.layout is not torch.strided:
        each += 8 * (len(about.size) + 1)
    return numbers * each + _READ_AT_ONCE


def read_blob(item: IO[bytes]) -> bytes:
    """All bytes of an item that is not a tensor.

    Raises:
        InvalidCheckpointError: An extension cannot decode them.
    """
    with _decoding("item"):
        return item.read(-1)


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    """Damaged bytes may raise nearly anything, from torch or from an extension."""
    try:
        yield
    except (S3DCPError, OSError):
        raise
    except Exception as error:
        raise InvalidCheckpointError(
            f"the stored {what} cannot be decoded: {type(error).__name__}: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """What an error says, without torch's advice to load with ``weights_only=False``."""
    refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    name = error.name if isinstance(error, RefusedError) else refused and refused[1]
    if name:
        return (
            f"it holds a {name}, and loading that could run code; if you trust it, allow "
            "it with torch.serialization.add_safe_globals"
        )
    return str(error).partition("\n")[0].partition("This file can still be loaded")[0].strip()


def narrow(tensor: torch.Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    """The part of a tensor that begins at ``offsets`` and has shape ``lengths``; a view.

    Raises:
        SizeMismatchError: The tensor has no such part.
    """
    places = zip(offsets, lengths, tensor.size(), strict=False)
    alike = len(offsets) == len(lengths) == tensor.dim()
    if not alike or any(not 0 <= start <= start + size <= end for start, size, end in places):
        raise SizeMismatchError(
            f"the stored part has shape {list(tensor.size())}, the load wants {list(lengths)} of "
            f"it from {list(offsets)} on; give a state dict with the shapes of the checkpoint"
        )
    for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        if length < tensor.size(dim):
            tensor = tensor.narrow(dim, offset, length)
    return tensor


def copy_into(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy, casting and moving between devices as needed; never recorded by autograd.

    Raises:
        SizeMismatchError: The shapes differ.
    """
    if target.size() != source.size():
        raise SizeMismatchError(
            f"the stored part has shape {list(source.size())}, the load wants "
            f"{list(target.size())}; give a state dict with the shapes of the checkpoint"
        )
    # A detached quantised tensor has a quantiser of its own: the scale that comes with the
    # values would be lost. Such tensors have no gradient that detaching could protect.
    (target if target.is_quantized else target.detach()).copy_(source)


def _stable_memory(tensor: torch.Tensor) -> Buffer | None:
    """The memory that torch.save will hand out unchanged, where there is such memory."""
    return storage_view(tensor) if _is_plain(tensor) else None


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is strided, on the CPU, and of no special kind."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
    )


class _KeepOpen(io.RawIOBase):
    """Lets an extension close its output without closing ours."""

    def __init__(self, sink: SegmentSink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._sink.tell()

    def write(self, block: Buffer, /) -> int:
        return self._sink.write(block)


def _transformed(sink: SegmentSink, extensions: Sequence[StreamTransformExtension]) -> IO[bytes]:
    output = cast("IO[bytes]", _KeepOpen(sink) if extensions else sink)
    for extension in extensions:
        output = extension.transform_to(output)
    return output


def _finish(output: Any, sink: SegmentSink) -> None:
    if output is not sink:
        output.close()
