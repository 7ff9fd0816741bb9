"""Prefix strategies: how the keys of a save spread over S3's partitions.

S3 serves 3,500 writes and 5,500 reads per second for each partitioned prefix
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html), so
many ranks do better with keys that differ early.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ._torch import world_size
from .exceptions import ConfigurationError


class S3PrefixStrategyBase(ABC):
    """Maps a rank to the prefix of its data keys, relative to the checkpoint."""

    def __call__(self, rank: int) -> str:
        return self.generate_prefix(rank)

    @abstractmethod
    def generate_prefix(self, rank: int) -> str:
        """The prefix of a rank's data keys. It may contain slashes."""


class DefaultPrefixStrategy(S3PrefixStrategyBase):
    """``__{rank}_``, as torch names its files."""

    def generate_prefix(self, rank: int) -> str:
        """``__{rank}_``."""
        return f"__{rank}_"


class NumericPrefixStrategy(S3PrefixStrategyBase):
    """``{pattern}/[epoch_{e}/]__{rank}_`` where the pattern is a number written backwards.

    Backwards, because the lowest digit changes most from rank to rank and S3 splits
    partitions by the first characters.

    Args:
        base: Base of the numbers, 2 to 16.
        epoch_num: Epoch to name in the prefix; None: none.
        min_prefix_length: Digits at least.
        prefix_count: Number of different patterns; None: the world size.

    Raises:
        ConfigurationError: A value is out of range (a ValueError).
    """

    def __init__(
        self,
        base: int,
        epoch_num: int | None = None,
        min_prefix_length: int = 10,
        prefix_count: int | None = None,
    ) -> None:
        if not _is_whole(base) or not 2 <= base <= 16:
            raise ConfigurationError(f"base must be between 2 and 16, got {base!r}")
        check_epoch(epoch_num)
        if not _is_whole(min_prefix_length) or min_prefix_length < 1:
            raise ConfigurationError(f"min_prefix_length must be positive: {min_prefix_length!r}")
        if prefix_count is not None and (not _is_whole(prefix_count) or prefix_count < 1):
            raise ConfigurationError(f"prefix_count must be a positive number: {prefix_count!r}")
        self.base = base
        self.epoch_num = epoch_num
        self.min_prefix_len = min_prefix_length
        self.prefix_count = world_size() if prefix_count is None else prefix_count
        length = max(min_prefix_length, len(_digits(self.prefix_count - 1, base)))
        self.prefix_map = [
            _digits(number, base).zfill(length)[::-1] for number in range(self.prefix_count)
        ]

    def generate_prefix(self, rank: int) -> str:
        """The pattern of ``rank % prefix_count``, the epoch, the rank."""
        pattern = self.prefix_map[rank % self.prefix_count]
        return f"{pattern}/{_epoch_folder(self.epoch_num)}__{rank}_"


class BinaryPrefixStrategy(NumericPrefixStrategy):
    """Patterns of 0 and 1."""

    def __init__(
        self,
        epoch_num: int | None = None,
        min_prefix_length: int = 10,
        prefix_count: int | None = None,
    ) -> None:
        super().__init__(2, epoch_num, min_prefix_length, prefix_count)


class HexPrefixStrategy(NumericPrefixStrategy):
    """Patterns of hexadecimal digits."""

    def __init__(
        self,
        epoch_num: int | None = None,
        min_prefix_length: int = 10,
        prefix_count: int | None = None,
    ) -> None:
        super().__init__(16, epoch_num, min_prefix_length, prefix_count)


class RoundRobinPrefixStrategy(S3PrefixStrategyBase):
    """Prefixes of your own, in turn: ``{user_prefixes[rank % n]}/[epoch_{e}/]__{rank}_``.

    Raises:
        ConfigurationError: No prefixes, or one that leads out of the checkpoint (a
            ValueError).
    """

    def __init__(self, user_prefixes: Sequence[str], epoch_num: int | None = None) -> None:
        if isinstance(user_prefixes, str) or not user_prefixes:
            raise ConfigurationError("user_prefixes must be a list of at least one prefix")
        for prefix in user_prefixes:
            _check_prefix(prefix)
        check_epoch(epoch_num)
        self.user_prefixes = list(user_prefixes)
        self.epoch_num = epoch_num

    def generate_prefix(self, rank: int) -> str:
        """The user's prefix for the rank, the epoch, the rank."""
        prefix = self.user_prefixes[rank % len(self.user_prefixes)]
        return f"{prefix}/{_epoch_folder(self.epoch_num)}__{rank}_"


def check_epoch(epoch_num: int | None) -> None:
    """Reject what is not None or a whole number."""
    if epoch_num is not None and not _is_whole(epoch_num):
        raise ConfigurationError(f"epoch_num must be None or a whole number, got {epoch_num!r}")


def _check_prefix(prefix: object) -> None:
    # A load refuses data that lies elsewhere than below the checkpoint.
    inside = isinstance(prefix, str) and prefix and not prefix.startswith("/")
    if not inside or ".." in str(prefix).split("/") or "://" in str(prefix):
        raise ConfigurationError(
            "a prefix must be a string below the checkpoint, without '/' at its start and "
            f"without '..', got {prefix!r}"
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _epoch_folder(epoch_num: int | None) -> str:
    return "" if epoch_num is None else f"epoch_{epoch_num}/"


def _digits(number: int, base: int) -> str:
    text = "" if number else "0"
    while number:
        number, digit = divmod(number, base)
        text = "0123456789abcdef"[digit] + text
    return text
