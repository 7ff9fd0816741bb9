"""The storage reader: plans a load and delegates each object to a reader strategy."""

from __future__ import annotations

import io
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import IO, Any, cast

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from ._torch import ExtensionRegistry, agent_for
from .allowed import SafeGlobal, check_safe_globals
from .checkpoint_metadata import stored_item
from .client import S3Client
from .collector import CollectorPause
from .concurrency import ConcurrencyLimit
from .config import S3ClientConfig
from .direct_load import DirectLoad, FillsMemory
from .exceptions import ConfigurationError, InvalidCheckpointError, S3DCPError
from .integrity import check_level
from .item_reads import ItemReads
from .link import LinkEstimate
from .metadata_reads import MetadataReads, UnreadableMetadata
from .pinned import PinnedObject
from .plan import FilePlan, PlannedItem, StoredItem, plan_files
from .readers.contract import ItemRangeAware, ReaderConstructor
from .registry import resolve_reader
from .serving import Serving
from .stats import LoadStats
from .transports import Transport
from .transports.contract import reconnect
from .uri import S3URI, is_uri, order_location, parse_uri

_log = logging.getLogger(__name__)

DEFAULT_READER = "direct"


class S3StorageReader(StorageReader):
    """Loads a checkpoint from S3: ``dcp.load(state_dict, storage_reader=S3StorageReader(...))``.

    Args:
        path: The checkpoint, ``s3://bucket/prefix``. s3torchconnector's order
            ``(region, path)`` is accepted too.
        region: Region of the bucket; None: as boto3 finds it.
        s3client_config: Settings of the connection.
        reader_constructor: How objects are read: a registered name or a constructor from
            ``S3ReaderConstructor``. Default: ``"direct"``.
        transport: Does the requests; by default boto3 with the settings above.
        trust_checkpoint: True: what is stored may run code. By default nothing may, and what
            could is refused.
        safe_globals: Classes and functions that stored items which are not tensors may name,
            beyond the usual ones and ``torch.serialization.add_safe_globals``. As there, an entry
            may be ``(class or function, "module.name")``. What it lists may be called with any
            arguments.
        integrity: How far a load verifies what arrives. ``"full"``: all bytes, by the checksums
            that the save stored, or those of PyTorch's archives; damaged ones are asked for
            again. ``"headers"``: archives must describe themselves as the metadata does.
            ``"off"``: only what it takes to place the bytes.
        _extension_registry: Extensions that decode items, as in torch's reader.

    Raises:
        InvalidURIError: ``path`` is not an S3 location.
        ReaderRegistryError: There is no reader of that name.
        ConfigurationError: Another argument cannot work.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        region: str | os.PathLike[str] | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: ReaderConstructor | str | None = None,
        *,
        transport: Transport | None = None,
        trust_checkpoint: bool = False,
        safe_globals: Sequence[SafeGlobal] = (),
        integrity: str = "full",
        _extension_registry: ExtensionRegistry | None = None,
    ) -> None:
        super().__init__()
        address, self.region = order_location(path, region)
        self._uri = parse_uri(address)
        self.integrity = check_level(integrity)
        self.reader_constructor = resolve_reader(reader_constructor, DEFAULT_READER)
        self._client = S3Client(
            self.region,
            s3client_config=s3client_config,
            user_agent=agent_for(self.reader_constructor),
            transport=transport,
        )
        if not isinstance(trust_checkpoint, bool):
            raise ConfigurationError(f"trust_checkpoint is True or False, not {trust_checkpoint!r}")
        self._serving = Serving(
            _extension_registry or ExtensionRegistry(),
            trust_checkpoint,
            check_safe_globals(safe_globals),
        )
        self._metadata = MetadataReads(self._client, trust_checkpoint)
        self.load_id = str(uuid.uuid4())
        self.storage_data: dict[Any, Any] = {}
        #: What the last load did.
        self.stats: LoadStats | None = None
        self._described: dict[str, Any] = {}

    @property
    def path(self) -> str:
        """Address of the checkpoint."""
        return str(self._uri)

    @property
    def checkpoint_id(self) -> str:
        """Address of the checkpoint, under the name that DCP uses."""
        return self.path

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a new load, of another checkpoint if one is given."""
        if checkpoint_id:
            self._uri = parse_uri(checkpoint_id)
        self.load_id = str(uuid.uuid4())
        self.storage_data = {}
        self.stats = None
        self._metadata.forget_failure()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is an S3 location."""
        return is_uri(checkpoint_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The checkpoint's metadata, or with ``rank=`` the one that this rank wrote alone.

        torch swallows what the first call raises and then asks with ``rank=`` (2.8 to 2.15).
        What went wrong is therefore kept, and raised by ``set_up_storage_reader``.

        Raises:
            CheckpointNotFoundError: There is nothing at this address.
            CheckpointIncompleteError: There is data, but the save never finished.
            InvalidCheckpointError: The metadata is damaged or not allowed.
            IntegrityError: It does not match its checksum, however often it is fetched.
            StorageError: The request failed.
        """
        rank: int | None = kwargs.get("rank")
        if rank is not None:
            return self._metadata.read_of_rank(self._uri, self.load_id, rank)
        return self._metadata.read(self._uri, self.load_id)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Take over where each item lies. Raises what ``read_metadata`` ran into."""
        if isinstance(metadata, UnreadableMetadata):
            raise metadata.error
        if metadata.storage_data is None:
            raise InvalidCheckpointError(
                "the checkpoint's metadata does not say where items lie",
                bucket=self._uri.bucket,
                key=self._uri.key,
            )
        self.storage_data = metadata.storage_data
        self._described = metadata.state_dict_metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to do: ranges are planned from the final plan, in ``read_data``."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to do: each rank plans its own reads."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read everything in the plan into what the planner offers.

        Raises:
            S3DCPError: Something is missing, damaged or unreachable; it names bucket, key,
                range and item.
        """
        self.stats = None
        with CollectorPause():
            files = plan_files(self._wanted(plan))
        if isinstance(self.reader_constructor, FillsMemory):
            stats = self._fill(self.reader_constructor, files, planner)
        else:
            stats = self._read_files(files, planner)
        self.stats = replace(
            stats,
            metadata_requests=self._metadata.stats.metadata_requests,
            metadata_seconds=self._metadata.stats.metadata_seconds,
        )
        _log.info("loaded from %s: %s", self._uri, self.stats)
        if self.integrity == "full" and stats.unverified_items:
            _log.warning(
                "%d of %d items from %s could not be verified: what was read of them has no "
                "checksum",
                stats.unverified_items,
                stats.unverified_items + stats.verified_items,
                self._uri,
            )
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _fill(
        self, strategy: FillsMemory, files: tuple[FilePlan[ReadItem], ...], planner: LoadPlanner
    ) -> LoadStats:
        """Let a strategy that fills memory load all objects together."""
        places = {file.path: self._uri.join(file.path) for file in files}
        pinned = {path: self._client.pin(uri.bucket, uri.key) for path, uri in places.items()}

        def serve(planned: PlannedItem[ReadItem], data: memoryview) -> None:
            self._serving.serve(planned, io.BytesIO(data), planner, self._described)

        config = self._client.s3client_config
        limit = ConcurrencyLimit(config.initial_concurrency, config.max_concurrency)
        load = DirectLoad(
            strategy,
            lambda path, start, end: pinned[path].stream(start, end),
            serve,
            planner,
            self._described,
            self._uri,
            limit=limit,
            memory_budget=config.memory_budget,
            link=LinkEstimate(self._metadata.seconds_per_request),
            level=self.integrity,
            reconnect=self._reconnect,
            size_of=lambda path: pinned[path].info().size,
        )
        return load.run(files)

    def _reconnect(self) -> None:
        reconnect(self._client.transport)

    def _wanted(self, plan: LoadPlan) -> Iterator[tuple[StoredItem, ReadItem]]:
        for request in plan.items:
            info = self.storage_data.get(request.storage_index)
            if info is None:
                raise InvalidCheckpointError(
                    "the checkpoint's metadata does not say where this item lies",
                    bucket=self._uri.bucket,
                    key=self._uri.key,
                    tensor=request.storage_index.fqn,
                )
            yield stored_item(info), request

    def _read_files(self, files: tuple[FilePlan[ReadItem], ...], planner: LoadPlanner) -> LoadStats:
        """Read one object after the other, by file-like readers."""
        begin = time.perf_counter()
        read = [self._read_file(file_plan, planner) for file_plan in files]
        items = sum(len(file_plan.items) for file_plan in files)
        verified = sum(reads.verified for reads in read)
        return LoadStats(
            bytes_needed=sum(file_plan.needed_bytes for file_plan in files),
            fallback_items=items,
            verified_items=verified,
            unverified_items=items - verified,
            damaged_chunks=sum(reads.damaged for reads in read),
            read_seconds=time.perf_counter() - begin,
        )

    def _read_file(
        self, file_plan: FilePlan[ReadItem], planner: LoadPlanner
    ) -> ItemReads[ReadItem]:
        uri = self._uri.join(file_plan.path)
        # What is read again is of the same version.
        pinned = self._client.pin(uri.bucket, uri.key)
        reads = ItemReads(
            lambda plan: self._open(uri, pinned, plan),
            file_plan,
            self._reconnect,
            lambda: pinned.info().size,
        )
        with reads:
            for planned in file_plan.items:
                span = planned.stored.byte_range
                try:
                    full = self.integrity == "full"
                    view = reads.read(planned) if full else reads.view(planned)
                    serve = self._serving.serve
                    serve(planned, cast("IO[bytes]", view), planner, self._described)
                except S3DCPError as error:
                    raise error.locate(
                        bucket=uri.bucket,
                        key=uri.key,
                        byte_range=(span.start, span.end),
                        tensor=planned.requests[0].storage_index.fqn,
                    ) from error
        return reads

    def _open(
        self, uri: S3URI, pinned: PinnedObject, file_plan: FilePlan[ReadItem]
    ) -> io.BufferedIOBase:
        if not file_plan.needed_bytes:
            return io.BytesIO()
        constructor = self.reader_constructor
        if isinstance(constructor, ItemRangeAware):
            constructor = constructor.with_item_ranges(file_plan.item_ranges)
        return constructor(uri.bucket, uri.key, pinned.info, pinned.stream)
