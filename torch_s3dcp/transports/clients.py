"""One boto3 client per process and configuration.

They share their connections, and what is known of credentials; a forked child starts with none,
because connections must not be shared between processes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.httpsession import get_cert_path
from s3transfer.futures import NonThreadedExecutor
from s3transfer.manager import TransferConfig, TransferManager

from .._version import __version__
from ..config import S3ClientConfig, check_secure
from ..exceptions import ConfigurationError
from .connections import Connections
from .errors import translated
from .exchange import BotocoreExchange
from .models import share_models
from .redirects import end_redirects
from .retries import Kind, Limits
from .retrying import RetryingClient
from .signed import SignedRanges
from .uploading import Uploader

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client as Boto3S3Client


@dataclass
class Client:
    """A boto3 client, and how it receives.

    Args:
        boto: Signs and sends; made anew where its credentials have expired.
        limits: How long a request is insisted on.
        ranges: The short way for further ranges of an object, where there is one.
        connections: What bodies come over, where these are ours.
        remake: Makes another ``boto``; None where it is the user's own.
    """

    boto: Boto3S3Client
    limits: Limits
    ranges: SignedRanges | None = None
    connections: Connections | None = None
    remake: Callable[[], Boto3S3Client] | None = field(default=None, repr=False)
    #: Counts the clients so far.
    generation: int = 0
    _accepted: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        #: To be called like ``boto``; tries again what fails.
        self.insisting: Any = RetryingClient(self, self.limits)

    def accepted(self, generation: int) -> None:
        """The server has accepted the credentials of that client."""
        if generation > self._accepted:
            self._accepted = generation

    def renew(self, generation: int) -> bool:
        """Make the client anew instead of that one, once for all who ask.

        Returns:
            False where there is no use in it: the last one that was made was never accepted.
        """
        with self._lock:
            if generation < self.generation:
                return True
            if self.remake is None or self._accepted < generation:
                return False
            self.boto = self.remake()
            if self.ranges is not None:
                self.ranges = self.ranges.signed_by(self.boto)
            self.generation += 1
            return True

    @property
    def in_place(self) -> bool:
        """Whether bodies are received straight into the caller's memory."""
        return self.connections is not None


_lock = threading.Lock()
_clients: dict[tuple[Any, ...], Client] = {}
# By their client and by what else they are made of: a client of the user's own may serve several
# settings.
_uploaders: dict[tuple[Any, ...], TransferManager] = {}
_part_uploaders: dict[tuple[Any, ...], Uploader] = {}
# No job needs as many at once, but one whose settings change, such as keys in its environment,
# would keep them all, with their connections.
_MOST_CLIENTS = 16
# Each with its threads. Those of a client of the user's own know of no end of it.
_MOST_UPLOADERS = 32
# What botocore's own retries leave alone, those of a client of the user's.
_NOT_BOTOCORES = frozenset({Kind.DAMAGED, Kind.CONFLICT})


def _limits(config: S3ClientConfig, kinds: frozenset[Kind] = frozenset(Kind)) -> Limits:
    return Limits(config.max_attempts, config.give_up_after, config.pause_factor, kinds)


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    _clients.clear()
    _uploaders.clear()
    _part_uploaders.clear()


os.register_at_fork(after_in_child=_forget)


def client_for(region: str | None, config: S3ClientConfig, agent: str) -> Client:
    """The process's client for these settings; made at the first call.

    Raises:
        ConfigurationError: boto3 refuses the settings, such as an unknown profile.
    """
    if config.client is not None:
        _check_endpoint(config.client, config)
        return Client(config.client, _limits(config, _NOT_BOTOCORES))
    key = (region, _of_client(config), agent, _environment())
    # Held while a client is made and looks for credentials: whoever waits needs that client,
    # and a second one would cost the same again.
    with _lock:
        client = _clients.get(key)
        if client is None:
            with translated("CreateClient", ""):
                client, complete = _make_client(region, config, agent)
            if complete:
                _clients[key] = client
                _forget_oldest()
        else:
            # The one that was used last is forgotten last.
            _clients[key] = _clients.pop(key)
        return client


def _forget_oldest() -> None:
    """Who uses a client that is forgotten keeps it, until done."""
    while len(_clients) > _MOST_CLIENTS:
        old = _key(_clients.pop(next(iter(_clients))))
        made: dict[tuple[Any, ...], Any]
        for made in (_uploaders, _part_uploaders):
            for known in [known for known in made if known[0] == old]:
                del made[known]


# More threads than this only wait for one another while they hash and sign.
_MOST_UPLOADING = 16

# What boto3 takes from the environment when it makes a client.
_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
)


# What single requests carry. Not the client's business: a save with other tags needs no other
# client, and no customer's key is kept here.
_OF_REQUESTS = frozenset(
    {
        "storage_class",
        "server_side_encryption",
        "sse_kms_key_id",
        "sse_customer_key",
        "checksum_algorithm",
        "tags",
        "acl",
    }
)
_OF_CLIENT = tuple(f.name for f in fields(S3ClientConfig) if f.name not in _OF_REQUESTS)


def _of_client(config: S3ClientConfig) -> tuple[Any, ...]:
    """The settings that make a client another one; with a customer's key it has fewer ways."""
    has_key = config.sse_customer_key is not None
    return (has_key, *(getattr(config, name) for name in _OF_CLIENT))


def _check_endpoint(client: Boto3S3Client, config: S3ClientConfig) -> None:
    """The endpoint may also come from the environment, a profile or the user's own client."""
    if config.sse_customer_key is not None:
        check_secure(client.meta.endpoint_url)


def _environment() -> int:
    """Changes when the environment says something else; secrets are not kept."""
    return hash(tuple(os.environ.get(name) for name in _VARIABLES))


def part_uploader(client: Client, config: S3ClientConfig) -> Uploader:
    """The process's uploader for a client and how much it may have in flight."""
    most = min(config.max_concurrency, _MOST_UPLOADING)
    key = (_key(client), most, config.memory_budget, client.limits)
    return _kept(
        _part_uploaders, key, lambda: Uploader(client.insisting, most, config.memory_budget)
    )


_MadeT = TypeVar("_MadeT")


def _kept(
    made: dict[tuple[Any, ...], _MadeT], key: tuple[Any, ...], make: Callable[[], _MadeT]
) -> _MadeT:
    """What was made for a key, or is now; those that were used last are kept."""
    with _lock:
        found = made.pop(key, None)
        made[key] = found = make() if found is None else found
        while len(made) > _MOST_UPLOADERS:
            del made[next(iter(made))]
        return found


def _key(client: Client) -> int:
    # A client of the user's own is put into a new box each time. What is kept keeps the client.
    return id(client if client.remake else client.boto)


def uploader_for(client: Client, config: S3ClientConfig, part_size: int) -> TransferManager:
    """The process's transfer manager for a client and a part size.

    It holds at most ``config.memory_budget`` bytes in parts, but never less than two parts.
    """
    most = min(config.max_concurrency, _MOST_UPLOADING)
    key = (_key(client), part_size, most, config.memory_budget, client.limits)
    parts = max(2, config.memory_budget // part_size)
    readers = max(1, min(4, parts // 2))
    settings = TransferConfig(
        multipart_threshold=part_size,
        multipart_chunksize=part_size,
        max_request_concurrency=most,
        max_submission_concurrency=readers,
        max_in_memory_upload_chunks=max(1, parts - readers),
    )
    return _kept(_uploaders, key, lambda: TransferManager(client.insisting, settings))


def patient_uploader(client: Client, part_size: int) -> TransferManager:
    """A transfer manager for one stream that may wait for its producer at any point.

    It works in the calling thread, one part at a time. Waiting in a shared manager's thread
    would keep other uploads from starting, for ever if the producer is waiting for one of
    them, and would keep an interpreter from ending that leaves a stream open.
    """
    settings = TransferConfig(multipart_threshold=part_size, multipart_chunksize=part_size)
    return TransferManager(client.insisting, settings, executor_cls=NonThreadedExecutor)


def _make_client(region: str | None, config: S3ClientConfig, agent: str) -> tuple[Client, bool]:
    """A new client, and whether it found credentials: without them it is not worth keeping."""
    about = f"torch_s3dcp/{__version__} {agent}".strip()
    connections = None
    if config.session is None:
        # How a session of the user's own finds its certificates is not to be known from outside.
        core = botocore.session.Session(profile=config.profile)
        connections = Connections(
            config.connect_timeout, config.read_timeout, config.max_concurrency, _authorities(core)
        )
    remake = partial(_make_boto, region, config, about, connections)
    boto, complete = remake()
    ranges = None
    # One attempt is one attempt: this way may need a second. And it carries no header that
    # says who pays, or with which key to decrypt.
    headers = config.requester_pays or config.sse_customer_key is not None
    if connections is not None and config.presigned_reads and not headers:
        ranges = SignedRanges(boto, connections, about) if config.max_attempts > 1 else None
    made = Client(boto, _limits(config), ranges, connections, lambda: remake()[0])
    return made, complete


def _make_boto(
    region: str | None, config: S3ClientConfig, about: str, connections: Connections | None
) -> tuple[Boto3S3Client, bool]:
    """A boto3 client that looks for credentials anew, and whether it found any."""
    options: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    if config.unsigned:
        options["signature_version"] = UNSIGNED
    if config.force_path_style:
        options["s3"] = {"addressing_style": "path"}
    if config.credentials is not None:
        given = config.credentials
        keys = {
            "aws_access_key_id": given.access_key_id,
            "aws_secret_access_key": given.secret_access_key,
            "aws_session_token": given.session_token,
        }
    session = config.session
    if session is None:
        core = botocore.session.Session(profile=config.profile)
        share_models(core)
        session = boto3.Session(botocore_session=core)
    client: Boto3S3Client = session.client(
        "s3",
        region_name=region,
        endpoint_url=config.endpoint_url,
        config=Config(
            # Tried again here, see retries.py. It still follows a bucket to its region.
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=config.max_concurrency,
            connect_timeout=config.connect_timeout,
            read_timeout=config.read_timeout,
            tcp_keepalive=True,
            # A range has no checksum of its own, and servers exist that answer with the
            # whole object's; whole objects ask for validation request by request.
            response_checksum_validation="when_required",
            user_agent_extra=about,
            **options,
        ),
        **keys,
    )
    _check_endpoint(client, config)
    end_redirects(client)
    if connections is not None:
        BotocoreExchange(connections).register(client)
    anonymous = config.unsigned or config.credentials is not None
    return client, anonymous or session.get_credentials() is not None


def _authorities(core: botocore.session.Session) -> str:
    """The file of certificate authorities that botocore would use."""
    named = core.get_config_variable("ca_bundle")
    path = str(get_cert_path(named or True))
    if not os.path.exists(path):
        raise ConfigurationError(
            f"the file of certificate authorities does not exist: {path}; it is named by "
            "AWS_CA_BUNDLE or by ca_bundle of the profile"
        )
    return path
