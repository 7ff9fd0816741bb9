"""PyTorch Distributed Checkpoint straight to and from S3.

::

    import torch.distributed.checkpoint as dcp
    from torch_s3dcp import S3StorageReader, S3StorageWriter

    dcp.save(state_dict, storage_writer=S3StorageWriter("s3://bucket/run/step-100"))
    dcp.load(state_dict, storage_reader=S3StorageReader("s3://bucket/run/step-100"))
"""

from ._version import __version__
from .client import S3Client
from .config import S3ClientConfig, S3Credentials
from .constructors import DCPOptimizedConstructor, S3ReaderConstructor
from .exceptions import S3DCPError
from .filesystem import S3FileSystem
from .object_writer import S3Writer
from .prefixes import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
)
from .ranges import ItemRange, RangeGroup
from .readers import (
    DCPOptimizedS3Reader,
    RangedS3Reader,
    ReaderConstructor,
    S3Reader,
    SequentialS3Reader,
)
from .registry import available_readers, get_reader, register_reader, unregister_reader
from .storage_reader import S3StorageReader
from .storage_writer import S3StorageWriter

__all__ = [
    "BinaryPrefixStrategy",
    "DCPOptimizedConstructor",
    "DCPOptimizedS3Reader",
    "DefaultPrefixStrategy",
    "HexPrefixStrategy",
    "ItemRange",
    "NumericPrefixStrategy",
    "RangeGroup",
    "RangedS3Reader",
    "ReaderConstructor",
    "RoundRobinPrefixStrategy",
    "S3Client",
    "S3ClientConfig",
    "S3Credentials",
    "S3DCPError",
    "S3FileSystem",
    "S3PrefixStrategyBase",
    "S3Reader",
    "S3ReaderConstructor",
    "S3StorageReader",
    "S3StorageWriter",
    "S3Writer",
    "SequentialS3Reader",
    "__version__",
    "available_readers",
    "get_reader",
    "register_reader",
    "unregister_reader",
]
