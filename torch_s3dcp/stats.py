"""What a load or a save did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True)
class LoadStats:
    """Figures of one rank's load.

    Bytes are bytes of objects, seconds are wall time. Of a load through a file-like reader only
    the metadata, ``bytes_needed``, ``read_seconds``, and what concerns items is known.

    Attributes:
        metadata_requests: GETs of ``.metadata``; 0 on ranks that are told its content.
        data_requests: GETs of ranges of data.
        fallback_requests: GETs of items again: whole, after a surprise in their envelope, or
            because they arrived damaged and had a checksum for all of their data only.
        retries: Requests that failed, or brought damaged bytes, and were made again, besides
            those above.
        bytes_needed: What the load needed, envelopes of items included.
        bytes_read: What it read, the metadata not counted.
        direct_items: Items received into their destination.
        scratch_items: Items copied once.
        fallback_items: Items decoded by ``torch.load`` or the planner.
        verified_items: Items whose bytes were compared with checksums, all that were needed.
        unverified_items: Items for which there were none, or which were not to be verified.
        damaged_chunks: Times that bytes arrived that did not match their checksum.
        peak_scratch: Bytes of memory beside the destinations, at most.
        peak_in_flight: Bytes that the requests in flight asked for, at most.
        concurrency: Requests in flight that the load allowed itself, at most.
        metadata_seconds: Getting and decoding the metadata, the making of a client included.
        plan_seconds: Deciding what to ask for, before the first request.
        read_seconds: From there until the last item was in place.
    """

    metadata_requests: int = 0
    data_requests: int = 0
    fallback_requests: int = 0
    retries: int = 0
    bytes_needed: int = 0
    bytes_read: int = 0
    direct_items: int = 0
    scratch_items: int = 0
    fallback_items: int = 0
    verified_items: int = 0
    unverified_items: int = 0
    damaged_chunks: int = 0
    peak_scratch: int = 0
    peak_in_flight: int = 0
    concurrency: int = 0
    metadata_seconds: float = 0.0
    plan_seconds: float = 0.0
    read_seconds: float = 0.0

    @property
    def requests(self) -> int:
        """All requests."""
        planned = self.metadata_requests + self.data_requests + self.fallback_requests
        return planned + self.retries

    @property
    def bytes_wasted(self) -> int:
        """Bytes that were read and thrown away."""
        return max(0, self.bytes_read - self.bytes_needed)

    @property
    def seconds(self) -> float:
        """All phases together; what happens between them is the planner's and other ranks'."""
        return self.metadata_seconds + self.plan_seconds + self.read_seconds

    def __str__(self) -> str:
        rate = self.bytes_needed / 1e9 / self.read_seconds if self.read_seconds else 0.0
        damaged = f"; {self.damaged_chunks} times damaged, read again" * bool(self.damaged_chunks)
        return (
            f"{self.bytes_needed / 1e6:.1f} MB in {self.seconds:.2f} s ({rate:.2f} GB/s while "
            f"reading), {self.requests} requests ({self.retries} of them again, up to "
            f"{self.concurrency} at once), {self.bytes_wasted / 1e6:.1f} MB wasted, items: "
            f"{self.direct_items} direct, {self.scratch_items} through scratch, "
            f"{self.fallback_items} decoded by torch; {self.verified_items} verified{damaged}"
        )


class Outcome(Enum):
    """How an item came into the state dict."""

    DIRECT = "direct"
    SCRATCH = "scratch"
    FALLBACK = "fallback"


@dataclass
class LoadTally:
    """What :class:`LoadStats` tells of requests and items, counted while the load goes on."""

    requests: int = 0
    retries: int = 0
    bytes_read: int = 0
    damaged: int = 0
    verified: int = 0
    peak_scratch: int = 0
    peak_in_flight: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))

    def add_request(self, received: int, again: int, retries: int, damaged: int) -> None:
        """One request is over.

        Args:
            received: Bytes that it asked for.
            again: Bytes that came more than once.
            retries: Times that it failed.
            damaged: Times that damaged bytes came.
        """
        self.requests += 1
        self.retries += retries + damaged
        self.bytes_read += received + again
        self.damaged += damaged

    def add_item(self, outcome: Outcome, verified: bool) -> None:
        """One item is in place."""
        self.outcomes[outcome] += 1
        self.verified += verified

    def add_peaks(self, scratch: int, in_flight: int) -> None:
        """Bytes that were in use at once, in one round of requests."""
        self.peak_scratch = max(self.peak_scratch, scratch)
        self.peak_in_flight = max(self.peak_in_flight, in_flight)

    def stats(self, items: int, usual_requests: int) -> LoadStats:
        """The figures.

        Args:
            items: How many items there were.
            usual_requests: The requests that were made for the first time.
        """
        return LoadStats(
            data_requests=usual_requests,
            fallback_requests=self.requests - usual_requests,
            retries=self.retries,
            bytes_read=self.bytes_read,
            direct_items=self.outcomes[Outcome.DIRECT],
            scratch_items=self.outcomes[Outcome.SCRATCH],
            fallback_items=self.outcomes[Outcome.FALLBACK],
            verified_items=self.verified,
            unverified_items=items - self.verified,
            damaged_chunks=self.damaged,
            peak_scratch=self.peak_scratch,
            peak_in_flight=self.peak_in_flight,
        )


@dataclass(frozen=True)
class SaveProgress:
    """How far one rank's save is.

    Attributes:
        bytes_done: Bytes that are stored. Fewer than before where a delta save could not copy, and
            begins a file anew.
        bytes_total: Bytes that there will be; a guess until all files are done.
        files_done: Objects that are complete.
        files_total: Objects that there will be.
    """

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int


@dataclass(frozen=True)
class SaveStats:
    """Figures of one rank's save. Bytes are bytes of objects, seconds are wall time.

    Attributes:
        files: Data objects written.
        items: Tensors and other values in them.
        unverifiable_items: Items stored without checksums of their pieces: the transport took
            their data without asking for them.
        copied_items: Items that the store copied from an earlier checkpoint.
        bytes_stored: Size of the data objects.
        bytes_copied: Bytes of them that the store copied.
        data_requests: Requests for them that were answered, without those below.
        retries: Requests for them that were made again.
        upload_seconds: Uploading, looking up tensors included.
        commit_seconds: The commit and what is removed after it; 0 on ranks that don't commit.
    """

    files: int = 0
    items: int = 0
    unverifiable_items: int = 0
    copied_items: int = 0
    bytes_stored: int = 0
    bytes_copied: int = 0
    data_requests: int = 0
    retries: int = 0
    upload_seconds: float = 0.0
    commit_seconds: float = 0.0

    @property
    def bytes_uploaded(self) -> int:
        """Bytes that this rank sent."""
        return self.bytes_stored - self.bytes_copied

    def __str__(self) -> str:
        sent = self.bytes_uploaded
        rate = sent / 1e9 / self.upload_seconds if self.upload_seconds else 0.0
        copied = f"and {self.bytes_copied / 1e6:.1f} MB copied " if self.bytes_copied else ""
        return (
            f"{sent / 1e6:.1f} MB {copied}in {self.upload_seconds:.2f} s ({rate:.2f} GB/s), "
            f"{self.items} items in {self.files} files, {self.data_requests} requests and "
            f"{self.retries} of them again; commit {self.commit_seconds:.2f} s"
        )
