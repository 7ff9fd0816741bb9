"""Stored items to tensors and blobs, and tensors into the memory of a load.

No code of an item runs here, and none takes more memory than its bytes account for.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ._torch import ExtensionRegistry, StreamTransformExtension
from .allowed import SafeGlobal
from .exceptions import InvalidCheckpointError, S3DCPError, SizeMismatchError
from .limits import Allowance, RefusedError
from .pickles import check_sizes
from .records import RecordFile
from .tensors import tensor_names
from .unpickling import TRUSTED, pickle_in, value_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Archives up to this size are read in one piece.
_READ_AT_ONCE = 2**20
# What copying raises that has nothing to do with the tensors. AcceleratorError is new in torch 2.8.
_OF_THE_MACHINE = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", MemoryError))
_NO_MEMORY = "not enough memory"
_MOST_SAID = 300


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
    size = file.seek(0, 2)
    if size <= _READ_AT_ONCE or not hasattr(file, "readinto"):
        file.seek(0)
        file = io.BytesIO(file.read(-1))
    records = RecordFile(file)
    pickled = pickle_in(records)
    check_sizes(pickled)
    return value_of(pickled, records, Allowance(size), safe_globals)


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
    if name in tensor_names():
        return f"{error}; if you trust the checkpoint, {TRUSTED}"
    if name:
        return (
            f"it holds a {name}, and loading that could run code; if you trust it, allow "
            "it with torch.serialization.add_safe_globals"
        )
    return _first_line(error).partition("This file can still be loaded")[0].strip()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0][:_MOST_SAID]


def narrow(tensor: torch.Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    """The part of a tensor that begins at ``offsets`` and has shape ``lengths``; a view.

    Raises:
        SizeMismatchError: The tensor has no such part.
        InvalidCheckpointError: It is of a kind of which torch can take no part.
    """
    try:
        if not _lies_inside(offsets, lengths, tensor.size()):
            raise SizeMismatchError(
                f"the stored part has shape {list(tensor.size())}, the load wants "
                f"{list(lengths)} of it from {list(offsets)} on; give a state dict with the "
                "shapes of the checkpoint"
            )
        for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            if length < tensor.size(dim):
                tensor = tensor.narrow(dim, offset, length)
    except (S3DCPError, MemoryError, *_OF_THE_MACHINE):
        raise
    except Exception as error:
        # Nested tensors have no sizes, compressed ones no parts; classes raise what they like.
        raise InvalidCheckpointError(
            f"the stored tensor is {_kind(tensor)}, of which no part can be taken: "
            f"{_first_line(error)}; load all of it"
        ) from error
    return tensor


def _lies_inside(offsets: Sequence[int], lengths: Sequence[int], size: Sequence[int]) -> bool:
    places = zip(offsets, lengths, size, strict=False)
    return len(offsets) == len(lengths) == len(size) and all(
        0 <= start <= start + length <= end for start, length, end in places
    )


def copy_into(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy, casting and moving between devices as needed; never recorded by autograd.

    Raises:
        SizeMismatchError: The shapes differ.
        InvalidCheckpointError: torch cannot copy the one into the other.
    """
    if target.size() != source.size():
        raise SizeMismatchError(
            f"the stored part has shape {list(source.size())}, the load wants "
            f"{list(target.size())}; give a state dict with the shapes of the checkpoint"
        )
    # A detached quantised tensor has a quantiser of its own: the scale that comes with the
    # values would be lost. Such tensors have no gradient that detaching could protect.
    own = target if target.is_quantized else target.detach()
    if target.is_quantized and source.is_quantized and _is_part(target):
        _check_quantiser(target, source)
    try:
        own.copy_(source)
    except (S3DCPError, MemoryError, *_OF_THE_MACHINE):
        raise
    except Exception as error:
        if _NO_MEMORY in str(error):
            raise
        raise InvalidCheckpointError(
            f"the stored tensor is {_kind(source)}, and cannot be loaded into one that is "
            f"{_kind(target)}: {_first_line(error)}; give a state dict with tensors of the kind "
            "that was saved"
        ) from error


def _check_quantiser(target: torch.Tensor, source: torch.Tensor) -> None:
    """Only what a view says of its scale would change, not what the whole tensor says."""
    if _quantiser(target) != _quantiser(source):
        raise InvalidCheckpointError(
            "what is stored has another scale than the quantised tensor of which it is to become a "
            "part; give a state dict in which the tensor is whole"
        )


def _quantiser(tensor: torch.Tensor) -> tuple[Any, ...]:
    if tensor.qscheme() == torch.per_tensor_affine:
        return tensor.qscheme(), tensor.q_scale(), tensor.q_zero_point()
    scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return tensor.qscheme(), scales.tolist(), zeros.tolist(), tensor.q_per_channel_axis()


def _is_part(tensor: torch.Tensor) -> bool:
    whole = tensor._base
    return whole is not None and whole.numel() > tensor.numel()


def _kind(tensor: torch.Tensor) -> str:
    """What decides into what a tensor can be copied, to be shown."""
    about = [str(tensor.dtype), str(tensor.layout)]
    if tensor.is_quantized:
        about.append(str(tensor.qscheme()))
    if tensor.is_meta:
        about.append("without data, on the meta device")
    return ", ".join(about)
