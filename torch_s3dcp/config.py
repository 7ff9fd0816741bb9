"""How to reach S3: everything that a user may set, validated where it is set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from .exceptions import ConfigurationError
from .tags import Tags

if TYPE_CHECKING:
    import boto3
    from mypy_boto3_s3 import S3Client as Boto3S3Client

_MIB = 1024 * 1024
_CHECKSUMS = ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256")
_ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")
_ACLS = (
    "private",
    "public-read",
    "public-read-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
)
# AES-256 is the only cipher of SSE-C.
_CUSTOMER_KEY = 32


@dataclass(frozen=True)
class S3Credentials:
    """Keys given by hand. They are never shown, and pickling them is refused.

    Prefer the environment, a profile or an instance role: those also reach the worker
    process of ``dcp.async_save(..., async_checkpointer_type=PROCESS)``.
    """

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        keys = (self.access_key_id, self.secret_access_key)
        if not all(key and isinstance(key, str) for key in keys):
            raise ConfigurationError("S3Credentials needs both access_key_id and secret_access_key")

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError(
            "credentials given by hand are not sent to another process; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or use S3ClientConfig(profile=...)"
        )


@dataclass(frozen=True)
class S3ClientConfig:
    """Settings of the S3 client. All are optional; None means: as boto3 would do.

    Args:
        throughput_target_gbps: Accepted for s3torchconnector's sake. Concurrency here is
            set by ``max_concurrency``.
        part_size: Preferred size in bytes of an upload's parts, 5 MiB to 5 GiB; None: 8 to 32 MiB,
            by the object's size. It grows where an object would need more than 10,000 parts.
        unsigned: Send requests without a signature (public buckets).
        force_path_style: Address buckets as ``endpoint/bucket`` rather than by host name.
        max_attempts: How often a request is tried in all, at least 1.
        profile: Profile of the shared AWS configuration to take credentials from.
        requester_pays: Agree to pay for requests to requester-pays buckets.
        endpoint_url: Server to talk to, such as ``http://127.0.0.1:8333``.
        credentials: Keys given by hand.
        session: A boto3 session of your own. Not picklable.
        client: A boto3 S3 client of your own; all settings about the connection are then
            its business. Not picklable.
        initial_concurrency: Requests in flight at once when a load begins. More while that brings
            more bytes per second, fewer when the server asks to slow down.
        max_concurrency: Requests in flight at once at most, for each load and for the uploads of
            a client (of which there are no more than 16).
        memory_budget: Bytes in buffers, for the uploads of a client and beside the destinations of
            a load.
        storage_class: Storage class of what is written, such as ``STANDARD_IA``.
        server_side_encryption: ``AES256``, ``aws:kms`` or ``aws:kms:dsse``.
        sse_kms_key_id: Key for the two KMS modes.
        sse_customer_key: 32 bytes with which S3 encrypts what is written and decrypts what is read
            (SSE-C). S3 does not keep them: who loses them has lost the data. They are never shown,
            go over https only, and pickling is refused.
        tags: Tags of every object that is written: at most 10, keys of 1 to 128 characters,
            values of up to 256.
        acl: Canned ACL of every object that is written, such as ``bucket-owner-full-control``.
        checksum_algorithm: Checksum that the server verifies on uploads; None: CRC64NVME.
        presigned_reads: Ask for further ranges of an object by a URL that was signed once, which
            takes a fraction of the CPU time. Where a server refuses such URLs (some bucket policies
            do), it is asked in the ordinary way.
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for the next byte of an answer, at most. Requests that can be
            made again without harm are waited for in vain less long at first.
        give_up_after: Seconds that a request may take with all its tries and pauses, besides one
            for each 16 KiB that it moves.
        pause_factor: Makes the pauses between tries longer or shorter; 0: none.

    Raises:
        ConfigurationError: A value cannot work; the message names it and says what does.
    """

    throughput_target_gbps: float = 10.0
    part_size: int | None = None
    unsigned: bool = False
    force_path_style: bool = False
    max_attempts: int = 10
    profile: str | None = None
    requester_pays: bool = False
    endpoint_url: str | None = None
    credentials: S3Credentials | None = None
    session: boto3.Session | None = field(default=None, repr=False)
    client: Boto3S3Client | None = field(default=None, repr=False)
    initial_concurrency: int = 16
    max_concurrency: int = 64
    memory_budget: int = 256 * _MIB
    storage_class: str | None = None
    server_side_encryption: str | None = None
    sse_kms_key_id: str | None = None
    checksum_algorithm: str | None = None
    presigned_reads: bool = True
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    sse_customer_key: bytes | None = field(default=None, repr=False)
    tags: Mapping[str, str] | None = None
    acl: str | None = None
    give_up_after: float = 120.0
    pause_factor: float = 1.0

    def __post_init__(self) -> None:
        _of_kind(self, bool, "unsigned", "force_path_style", "requester_pays", "presigned_reads")
        _of_kind(self, (str, type(None)), "profile", "endpoint_url", "storage_class")
        _of_kind(self, (str, type(None)), "sse_kms_key_id")
        _of_kind(self, (S3Credentials, type(None)), "credentials")
        _positive(self, "throughput_target_gbps", "connect_timeout", "read_timeout")
        _positive(self, "give_up_after")
        _not_negative(self, "pause_factor")
        if self.part_size is not None:
            _whole(self, "part_size", 5 * _MIB, 5 * 1024 * _MIB)
        _whole(self, "max_attempts", 1, 1000)
        _whole(self, "initial_concurrency", 1, 10_000)
        _whole(self, "max_concurrency", 1, 10_000)
        _whole(self, "memory_budget", 16 * _MIB, None)
        _one_of(self, "checksum_algorithm", _CHECKSUMS)
        _one_of(self, "server_side_encryption", _ENCRYPTIONS)
        _one_of(self, "acl", _ACLS)
        if self.tags is not None:
            _of_kind(self, Mapping, "tags")
            # A copy: the caller's mapping may change.
            object.__setattr__(self, "tags", Tags(self.tags))
        endpoint = self.endpoint_url
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"endpoint_url must begin with http:// or https://, got {self.endpoint_url!r}"
            )
        if endpoint is not None and "@" in endpoint.split("//", 1)[1].split("/")[0]:
            # Not shown: it holds a password.
            raise ConfigurationError(
                "endpoint_url must not hold a login; give keys as S3ClientConfig(credentials=...)"
            )
        self._check_customer_key()
        if self.sse_kms_key_id and not (self.server_side_encryption or "").startswith("aws:kms"):
            raise ConfigurationError(
                "sse_kms_key_id needs server_side_encryption='aws:kms' or 'aws:kms:dsse'"
            )
        self._check_sources()

    def _check_customer_key(self) -> None:
        key = self.sse_customer_key
        if key is None:
            return
        # Never shown, not even a wrong one.
        if not isinstance(key, bytes):
            raise ConfigurationError(
                f"sse_customer_key must be {_CUSTOMER_KEY} bytes, not a {type(key).__name__}; "
                "decode one that is text, such as base64"
            )
        if len(key) != _CUSTOMER_KEY:
            raise ConfigurationError(
                f"sse_customer_key must be {_CUSTOMER_KEY} bytes (AES-256), got {len(key)}"
            )
        for name in ("server_side_encryption", "sse_kms_key_id"):
            if getattr(self, name) is not None:
                raise ConfigurationError(
                    f"sse_customer_key and {name} contradict each other: each says with which "
                    "key S3 encrypts; give one of them"
                )
        check_secure(self.endpoint_url)

    def _check_sources(self) -> None:
        """At most one place may say which credentials to use."""
        given = [
            name
            for name in ("unsigned", "credentials", "profile", "session", "client")
            if getattr(self, name)
        ]
        if len(given) > 1:
            raise ConfigurationError(
                f"{' and '.join(given)} contradict each other: each says which credentials "
                "to use; give one of them"
            )

    def replace(self, **changes: Any) -> S3ClientConfig:
        """A copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def __reduce__(self) -> tuple[Any, ...]:
        for name in ("session", "client"):
            if getattr(self, name) is not None:
                raise ConfigurationError(
                    f"S3ClientConfig({name}=...) cannot be sent to another process; describe "
                    "the connection with profile, endpoint_url and the environment instead"
                )
        if self.sse_customer_key is not None:
            raise ConfigurationError(
                "S3ClientConfig(sse_customer_key=...) is not sent to another process; use "
                "server_side_encryption='aws:kms' with sse_kms_key_id, or save in this process"
            )
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return _rebuild, (values,)


def check_secure(endpoint: str | None) -> None:
    """Refuse to send a customer's key in the clear; boto3 would send it.

    Raises:
        ConfigurationError: The endpoint is not reached by https.
    """
    if endpoint is not None and not endpoint.lower().startswith("https://"):
        # Not shown: it may hold a login.
        raise ConfigurationError(
            "sse_customer_key goes over https only, as S3 demands, but endpoint_url (or "
            "AWS_ENDPOINT_URL, or the client's own) is http: who listens would have the key; "
            "use an https endpoint"
        )


def check_config(config: S3ClientConfig | None) -> S3ClientConfig:
    """The settings, or the defaults for None.

    Raises:
        ConfigurationError: Something else than settings.
    """
    if config is None:
        return S3ClientConfig()
    if not isinstance(config, S3ClientConfig):
        raise ConfigurationError(
            f"s3client_config must be an S3ClientConfig, not a {type(config).__name__}"
        )
    return config


def _rebuild(values: Mapping[str, Any]) -> S3ClientConfig:
    return S3ClientConfig(**values)


def _of_kind(config: S3ClientConfig, kinds: type | tuple[type, ...], *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, kinds):
            wanted = kinds if isinstance(kinds, type) else kinds[0]
            # Not the value: somebody may have passed a secret.
            raise ConfigurationError(
                f"{name} must be a {wanted.__name__}, not a {type(value).__name__}"
            )


def _positive(config: S3ClientConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ConfigurationError(f"{name} must be a positive number, got {value!r}")


def _not_negative(config: S3ClientConfig, name: str) -> None:
    value = getattr(config, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} must be a number, 0 or more, got {value!r}")


def _whole(config: S3ClientConfig, name: str, least: int, most: int | None) -> None:
    value = getattr(config, name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ConfigurationError(f"{name} must be a whole number {limits}, got {value!r}")


def _one_of(config: S3ClientConfig, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value is not None and value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
