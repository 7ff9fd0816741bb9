"""How large the parts of a multipart upload must be. Pure arithmetic.

Limits: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

from .exceptions import ConfigurationError

MIB = 1024 * 1024
MIN_PART_SIZE = 5 * MIB
MAX_PART_SIZE = 5 * 1024 * MIB
MAX_PARTS = 10_000

# An object's size is estimated from the plan before a byte is serialised; a tensor may
# turn out larger (another dtype than planned). Half of the allowed parts stay in reserve.
_PLANNED_PARTS = MAX_PARTS // 2


# Each request costs CPU time; but many connections are to have something to do.
_SMALLEST = 8 * MIB
_LARGEST = 32 * MIB
_SHARES = 16


def preferred_part_size(expected_size: int) -> int:
    """Part size in bytes that suits an object of about ``expected_size`` bytes: 8 to 32 MiB."""
    share = -(-expected_size // _SHARES)
    return min(max(-(-share // MIB) * MIB, _SMALLEST), _LARGEST)


def part_size_for(expected_size: int, preferred: int | None = None) -> int:
    """Part size in bytes with which an object of about ``expected_size`` bytes fits.

    The preferred size (None: one that suits) wherever it suffices, else the smallest multiple
    of a MiB with which twice the expected size still needs at most 10,000 parts. Beyond 24.4 TiB
    even the largest parts leave a smaller reserve.

    Raises:
        ConfigurationError: The object is larger than 10,000 parts of 5 GiB (48.8 TiB).
    """
    if expected_size > MAX_PARTS * MAX_PART_SIZE:
        raise ConfigurationError(
            f"an object of {expected_size} bytes is too large for S3; save with a larger "
            "thread_count so that it is cut into more files"
        )
    if preferred is None:
        preferred = preferred_part_size(expected_size)
    if expected_size <= preferred * _PLANNED_PARTS:
        return preferred
    needed = -(-expected_size // _PLANNED_PARTS)
    size = -(-needed // MIB) * MIB
    return max(min(size, MAX_PART_SIZE), preferred)
