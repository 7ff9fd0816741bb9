"""The storage writer: plans a save, uploads it, and commits it with one request.

The order of things is the promise: data first, under keys that no other save uses; then
one conditional PUT of ``.metadata``, which makes the new checkpoint appear whole; then,
and only then, removal of what the checkpoint that it replaced consisted of.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from ._torch import StreamTransformExtension, agent_for, global_rank
from .checkpoint_metadata import METADATA_NAME, metadata_name
from .collector import CollectorPause
from .commit import Commit, begin_commit
from .config import S3ClientConfig, check_config
from .delta import Earlier
from .exceptions import CheckpointExistsError, ConfigurationError, S3DCPError
from .files import cut_into_files
from .items import descriptors_of
from .prefixes import DefaultPrefixStrategy, S3PrefixStrategyBase
from .stats import SaveProgress, SaveStats
from .transports import BotoTransport, Composes, Transport
from .uploads import Uploads
from .uri import S3URI, is_uri, order_location, parse_uri
from .written import storage_data_of

_log = logging.getLogger(__name__)

_FORMAT_VERSION = "1.0.0"

#: ``delta_from``: what this writer saved last.
PREVIOUS = "previous"


@dataclass
class _Run:
    """One save, from ``reset`` to ``finish``."""

    uri: S3URI
    save_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    rank: int = 0
    alone: bool = False
    begun: bool = False
    commit: Commit | None = None
    stats: SaveStats = field(default_factory=SaveStats)
    # From planning to the end most of what is made lives as long as the save. Looking through it
    # took 0.2 s and more for 10,000 tensors, in which no other thread runs.
    pause: CollectorPause = field(default_factory=CollectorPause)


class S3StorageWriter(StorageWriter):
    """Saves to S3: ``dcp.save(state_dict, storage_writer=S3StorageWriter(...))``.

    Args:
        path: Where to save, ``s3://bucket/prefix``. s3torchconnector's order
            ``(region, path)`` is accepted too.
        region: Region of the bucket; None: as boto3 finds it.
        s3client_config: Settings of the connection. Beside a ``transport`` only ``memory_budget``
            counts, for blocks that tensors on devices are copied to.
        prefix_strategy: How data keys spread over prefixes; default ``__{rank}_``.
        thread_count: Files per rank, written at the same time. More, one after another, where
            they would be larger than 64 GiB.
        transport: Does the requests; by default boto3 with the settings above.
        single_file_per_rank: False: a file for each item.
        sync_files: Accepted as in torch's writer. S3 has nothing to sync.
        per_thread_copy_ahead: Accepted as in torch's writer. What waits in memory is
            bounded by ``S3ClientConfig.memory_budget``.
        cache_staged_state_dict: Accepted as in torch's writer. Staging for ``async_save``
            is torch's ``DefaultStager``, which has options of its own.
        overwrite: False: refuse to replace a checkpoint.
        progress: Told how far this rank's save is, in a thread of its own. It gets the newest state
            as often as it is ready for one, and the last one in any case. What it raises fails the
            save. For ``async_save`` in a process it must be picklable, and is called there.
        delta_from: An earlier checkpoint: items whose bytes it holds are copied by the store, not
            uploaded. Its address, or ``"previous"``: what this writer saved last. Where it cannot
            be read, everything is uploaded, with a warning.
        _extensions: Transformations of the stored bytes, as in torch's writer.
        serialization_format: Only ``TORCH_SAVE``.

    Raises:
        InvalidURIError: ``path`` is not an S3 location.
        ConfigurationError: Another argument cannot work.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        region: str | os.PathLike[str] | None = None,
        s3client_config: S3ClientConfig | None = None,
        prefix_strategy: S3PrefixStrategyBase | None = None,
        thread_count: int = 1,
        *,
        transport: Transport | None = None,
        single_file_per_rank: bool = True,
        sync_files: bool = False,
        per_thread_copy_ahead: int = 10_000_000,
        cache_staged_state_dict: bool = False,
        overwrite: bool = True,
        progress: Callable[[SaveProgress], None] | None = None,
        delta_from: str | os.PathLike[str] | None = None,
        _extensions: Sequence[StreamTransformExtension] | None = None,
        serialization_format: SerializationFormat = SerializationFormat.TORCH_SAVE,
    ) -> None:
        super().__init__()
        if isinstance(thread_count, bool) or not isinstance(thread_count, int) or thread_count < 1:
            raise ConfigurationError(f"thread_count must be at least 1, got {thread_count!r}")
        if serialization_format is not SerializationFormat.TORCH_SAVE:
            raise ConfigurationError(
                f"serialization_format {serialization_format} cannot be loaded through DCP's "
                "stock readers; use SerializationFormat.TORCH_SAVE"
            )
        address, self.region = order_location(path, region)
        self._uri = parse_uri(address)
        config = check_config(s3client_config)
        self._memory_budget = config.memory_budget
        self.transport = transport or BotoTransport(self.region, config, agent_for())
        self.prefix_strategy = prefix_strategy or DefaultPrefixStrategy()
        self.thread_count = thread_count
        self.single_file_per_rank = single_file_per_rank
        self.sync_files = sync_files
        self.per_thread_copy_ahead = per_thread_copy_ahead
        self.cache_staged_state_dict = cache_staged_state_dict
        self.overwrite = overwrite
        self.progress = progress
        self.delta_from = _check_delta(delta_from, self.transport)
        #: What this rank's last save did; None before the first.
        self.stats: SaveStats | None = None
        self.extensions = tuple(_extensions or ())
        self._previous: S3URI | None = None
        self._last_save_id = str(uuid.uuid4())
        self._here = threading.local()

    # DCP calls all steps of one save from one thread. Keeping a save's state by thread makes
    # overlapping saves through one writer (dcp.async_save) independent of one another.
    @property
    def _run(self) -> _Run | None:
        """The save that is under way in this thread."""
        run: _Run | None = getattr(self._here, "run", None)
        return run

    @property
    def path(self) -> str:
        """Address of the checkpoint: of the save under way in this thread, else of the next."""
        return str(self._run.uri if self._run else self._uri)

    @property
    def checkpoint_id(self) -> str:
        """Address of the checkpoint, under the name that DCP uses."""
        return self.path

    @property
    def save_id(self) -> str:
        """Names a save in its checkpoint's metadata: the one under way, else the last."""
        return self._run.save_id if self._run else self._last_save_id

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_here"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._here = threading.local()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a new save, to another place if one is given."""
        uri = parse_uri(checkpoint_id) if checkpoint_id else self._uri
        self._uri = uri
        self._here.run = _Run(uri)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is an S3 location."""
        return is_uri(checkpoint_id)

    def storage_meta(self) -> StorageMeta | None:
        """Address and save id, for the metadata."""
        return StorageMeta(checkpoint_id=self.path, save_id=self.save_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Look at what is there already.

        Raises:
            CheckpointExistsError: There is a checkpoint and it must not be replaced.
        """
        run = self._run
        if run is None or run.begun:
            # A save without reset(): to where the writer points now.
            run = self._here.run = _Run(self._uri)
        run.begun = True
        self._last_save_id = run.save_id
        rank = kwargs.get("rank")
        run.rank = global_rank() if rank is None else rank
        run.alone = not kwargs.get("use_collectives", True)
        if run.alone:
            self._refuse_shadowed(run)
        if run.alone or is_coordinator:
            name = metadata_name(run.rank if run.alone else None)
            run.commit = begin_commit(self.transport, run.uri, name)
            if run.commit.replaces and not self.overwrite:
                raise CheckpointExistsError(
                    "there is a checkpoint here already and overwrite=False; save to another "
                    "path or pass overwrite=True",
                    bucket=run.uri.bucket,
                    key=run.uri.join(name).key,
                )
        run.pause.begin()

    def _refuse_shadowed(self, run: _Run) -> None:
        """A load prefers ``.metadata``: it would never see the ranks' own metadata beside it."""
        if begin_commit(self.transport, run.uri, METADATA_NAME).replaces:
            raise CheckpointExistsError(
                "there is a checkpoint here that was saved with collectives; one saved with "
                "use_collectives=False beside it would never be loaded: save to another path",
                bucket=run.uri.bucket,
                key=run.uri.join(METADATA_NAME).key,
            )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to do; and nothing of this save may enter a plan, since plans are cached."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Nothing to do: each rank names its own files."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Upload the plan's items. On failure nothing of this call stays behind.

        Raises:
            S3DCPError: An upload failed.
            BaseException: Whatever the planner raised.
        """
        run = self._under_way("write_data")
        try:
            results, run.stats = self._upload(run, plan, planner)
        except BaseException:
            run.pause.end()
            raise
        if run.commit is None:
            # Another rank commits: this one's part is done.
            self._here.run = None
            self._previous, self.stats = run.uri, run.stats
            run.pause.end()
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def _upload(
        self, run: _Run, plan: SavePlan, planner: SavePlanner
    ) -> tuple[list[WriteResult], SaveStats]:
        uploads = Uploads(
            self.transport,
            run.uri,
            planner,
            self.extensions,
            self.thread_count,
            self.progress,
            self._earlier(run),
            memory_budget=self._memory_budget,
        )
        count = self.thread_count if self.single_file_per_rank else None
        return uploads.run(cut_into_files(plan.items, self.prefix_strategy(run.rank), count))

    def _earlier(self, run: _Run) -> Earlier | None:
        """The checkpoint whose bytes this save may use again."""
        base = self._previous if self.delta_from == PREVIOUS else self.delta_from
        if base is None:
            return None
        base = parse_uri(str(base))
        name = metadata_name(run.rank if run.alone else None)
        try:
            return Earlier.load(self.transport, base, name, descriptors_of(self.extensions))
        except S3DCPError as error:
            warnings.warn(
                f"everything is uploaded, since {base} cannot be used again: {error}", stacklevel=2
            )
            return None

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit: the checkpoint exists when this returns, and not before.

        Raises:
            CommitConflictError: Another save got there first. Nothing of it was touched.
            CommitUnknownError: The server did not say whether the commit landed.
            ConfigurationError: The ranks saved to different places, or this step came too early.
            InvalidCheckpointError: Two ranks wrote one item, or none did, or the metadata holds
                something that a load would refuse.
            StorageError: The commit was refused; the previous checkpoint is untouched.
        """
        run = self._under_way("finish")
        if run.commit is None:
            raise ConfigurationError("finish() is for the coordinator")
        self._here.run = None
        try:
            self._commit(run, run.commit, metadata, results)
        finally:
            run.pause.end()

    def _commit(
        self, run: _Run, commit: Commit, metadata: Metadata, results: list[list[WriteResult]]
    ) -> None:
        try:
            storage_data = storage_data_of(results, metadata, run.uri)
        except BaseException:
            commit.give_up(results)
            raise
        # With cached plans torch gives one object to all saves, overlapping ones among them.
        ours = copy.copy(metadata)
        ours.storage_data = storage_data
        ours.storage_meta = StorageMeta(checkpoint_id=str(run.uri), save_id=run.save_id)
        ours.version = _FORMAT_VERSION
        begin = time.perf_counter()
        leftovers = commit.land(ours)
        vars(metadata).update(vars(ours))  # for the caller of dcp.save
        self._previous = run.uri
        self.stats = replace(run.stats, commit_seconds=time.perf_counter() - begin)
        _log.info("saved to %s: %s", run.uri, self.stats)
        if leftovers:
            warnings.warn(
                f"the checkpoint at {run.uri} is complete, but objects of the one that it "
                f"replaced could not be removed: {leftovers}",
                stacklevel=3,
            )

    def _under_way(self, step: str) -> _Run:
        run = self._run
        if run is None or not run.begun:
            raise ConfigurationError(f"{step}() was called before set_up_storage_writer()")
        return run


def _check_delta(base: str | os.PathLike[str] | None, transport: Transport) -> str | None:
    found = base if base is None or base == PREVIOUS else str(parse_uri(base))
    if found is None:
        return None
    if not isinstance(transport, Composes):
        raise ConfigurationError(
            f"delta_from needs a transport that copies on the server; {type(transport).__name__} "
            "does not"
        )
    transport.check_compose()
    return str(found)
