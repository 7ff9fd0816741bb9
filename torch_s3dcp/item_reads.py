"""Stored items read whole through a file-like reader, and verified."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from typing import Generic, TypeVar

from .exceptions import IntegrityError, TruncatedObjectError
from .filling import MOST_TRIES, damage
from .integrity import first_damage, is_sound_archive, known_checksums
from .plan import LARGE_ITEM, FilePlan, PlannedItem, check_end
from .segments import RangeView, view_of

T = TypeVar("T")
#: Where an item is damaged, or how it is not all there; None: nothing is wrong.
Found = tuple[int, int] | TruncatedObjectError | None


class ItemReads(Generic[T]):
    """Reads items of one object, one after the other. Used as a context manager.

    Args:
        open_reader: Makes a reader for what a plan wants of the object. All see one version.
        plan: All that is wanted.
        reconnect: Called before an item that arrived damaged is read again.
        size_of: Asks for the size of the object.
    """

    def __init__(
        self,
        open_reader: Callable[[FilePlan[T]], io.BufferedIOBase],
        plan: FilePlan[T],
        reconnect: Callable[[], None],
        size_of: Callable[[], int],
    ) -> None:
        self._open_reader = open_reader
        self._plan = plan
        self._reconnect = reconnect
        self._size_of = size_of
        self._closing = ExitStack()
        #: Times that an item arrived damaged.
        self.damaged = 0
        #: Items that were compared with checksums.
        self.verified = 0

    def __enter__(self) -> ItemReads[T]:
        self._reader = self._closing.enter_context(self._open_reader(self._plan))
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def view(self, planned: PlannedItem[T]) -> RangeView:
        """An item as a file, as it arrives; nothing is verified."""
        span = planned.stored.byte_range
        return RangeView(self._reader, span.start, span.end)

    def read(self, planned: PlannedItem[T]) -> RangeView:
        """An item as a file in memory; verified where it can be.

        Raises:
            IntegrityError: It is damaged each time that it is read.
            ObjectChangedError: The object was replaced meanwhile.
            TruncatedObjectError: The object ends before it does.
        """
        if len(planned.stored.byte_range) > LARGE_ITEM:
            check_end(planned.stored.byte_range.end, self._size_of())
        data = memoryview(bytearray(len(planned.stored.byte_range)))
        found = self._receive(planned, data, self._reader)
        tries = 1
        while found is not None:
            if tries >= MOST_TRIES:
                if isinstance(found, TruncatedObjectError):
                    raise found
                base = planned.stored.byte_range.start
                raise damage(base + found[0], base + found[1])
            found = self._read_again(planned, data)
            tries += 1
        return view_of(data)

    def _damage(self, planned: PlannedItem[T], data: memoryview) -> tuple[int, int] | None:
        """Where an item is damaged; None where it is not, or nobody can know."""
        checksums = known_checksums(planned.stored, "full")
        if checksums is not None:
            found, known = first_damage(data, checksums), True
        else:
            sound = None if planned.stored.transforms else is_sound_archive(data)
            found, known = (0, len(data)) if sound is False else None, sound is not None
        self.damaged += found is not None
        self.verified += known and found is None
        return found

    def _read_again(self, planned: PlannedItem[T], data: memoryview) -> Found:
        self._reconnect()
        with self._open_reader(FilePlan(self._plan.path, (planned,))) as reader:
            return self._receive(planned, data, reader)

    def _receive(
        self, planned: PlannedItem[T], data: memoryview, reader: io.BufferedIOBase
    ) -> Found:
        """Get an item; what is wrong with it."""
        span = planned.stored.byte_range
        try:
            RangeView(reader, span.start, span.end).readinto(data)
        except IntegrityError:
            # The transport compared the whole object: any of its bytes may be damaged.
            self.damaged += 1
            return 0, len(data)
        except TruncatedObjectError as error:
            # The object may be whole, and an answer was cut short.
            return error
        return self._damage(planned, data)
