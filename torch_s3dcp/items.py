"""One item of a save: a tensor or a blob to stock bytes.

Stock bytes are those of ``torch.save`` for tensors and the planner's own bytes for the
rest, passed through the extensions, exactly as torch's ``FileSystemWriter`` lays them out.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch.utils.serialization import config

from ._torch import StreamTransformExtension
from .envelopes import Envelope
from .segments import SegmentSink

if TYPE_CHECKING:
    from typing_extensions import Buffer


# Archives of 4 GiB and more are laid out in another way.
_ZIP64 = 2**32 - 2**20
_MOST_ENVELOPES = 4096
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
