"""Reader strategies: which requests serve the wanted ranges of one object.

Each module holds one strategy. They do not know one another.
"""

from .contract import (
    GetStream,
    ItemRangeAware,
    ObjectStream,
    ReaderConstructor,
    S3Reader,
)
from .dcp_optimized import DCPOptimizedS3Reader
from .range_based import RangedS3Reader
from .sequential import SequentialS3Reader

__all__ = [
    "DCPOptimizedS3Reader",
    "GetStream",
    "ItemRangeAware",
    "ObjectStream",
    "RangedS3Reader",
    "ReaderConstructor",
    "S3Reader",
    "SequentialS3Reader",
]
