"""The policies of docs/guide/permissions.md, applied to a server that enforces them."""

from __future__ import annotations

import io
import logging
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from botocore.exceptions import ClientError
from support.dcp import (
    READERS,
    Place,
    assert_same,
    blank,
    failures,
    open_uploads,
    place_on,
    quiet,
    randn,
)
from support.policies import actions_of, json_of, user_with, without
from support.proxy import Fault, FaultProxy, Request
from torch.distributed.checkpoint.api import CheckpointException

from torch_s3dcp import S3ClientConfig, S3Credentials
from torch_s3dcp.exceptions import (
    AccessDeniedError,
    CheckpointExistsError,
    CheckpointNotFoundError,
)
from torch_s3dcp.testing.servers import Identity, MotoServer, SeaweedServer
from torch_s3dcp.transports import BotoTransport

pytestmark = pytest.mark.server

MIB = 2**20
BUCKET = "my-bucket"
STATE = {"large": randn(3 * MIB), "small": randn(5, 7, seed=1), "step": 7}
CHANGED = {**STATE, "small": randn(5, 7, seed=2), "step": 8}
OVERWRITTEN = "could not be removed"
PAGE = json_of("permissions.md")
POLICIES = {title: blocks[0] for title, blocks in PAGE.items() if blocks}
LOAD, SAVE, DELTA, CLEAN = (
    POLICIES[title] for title in ("Load", "Save", "Delta saves", "Clean up")
)
NEVER_REMOVE = POLICIES["Save and never remove"]
LESS = {
    f"{title} less {number} {action}": without(policy, number, action)
    for title, policy in POLICIES.items()
    for number, action in actions_of(policy)
}
#: By name; a server has its users from the beginning on.
USERS = {
    name: user_with(f"user-{number}", policy)
    for number, (name, policy) in enumerate({**POLICIES, **LESS}.items())
}


@pytest.fixture(scope="module")
def server() -> Iterator[SeaweedServer]:
    with SeaweedServer(identities=list(USERS.values())) as running:
        running.create_bucket(BUCKET)
        yield running


@pytest.fixture
def owner(server: SeaweedServer) -> Iterator[Place]:
    """The bucket, empty, with the permission for everything."""
    place = place_on(server, BUCKET, part_size=5 * MIB)
    yield place
    place.transport.delete(BUCKET, place.listing())
    for upload in server.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
        server.client().abort_multipart_upload(
            Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"]
        )


def place_of(user: Identity, owner: Place) -> Place:
    direct: Any = owner.transport
    config: S3ClientConfig = direct.config
    keys = S3Credentials(user.access_key, user.secret_key)
    return owner.over(BotoTransport("us-east-1", config.replace(credentials=keys)))


@pytest.fixture
def user(owner: Place) -> Callable[..., Place]:
    """The place as somebody sees it who has a policy of the page, or one permission less."""

    def find(title: str, less: str = "", statement: int = 0) -> Place:
        name = f"{title} less {statement} {less}" if less else title
        return place_of(USERS[name], owner)

    return find


def refused(action: Callable[[], object], permission: str) -> AccessDeniedError:
    """The error of something for which a permission is missing."""
    with pytest.raises(CheckpointException) as caught:
        action()
    error = failures(caught.value)[0]
    assert isinstance(error, AccessDeniedError), repr(error)
    assert permission in str(error)
    return error


def test_there_is_a_policy_for_each_purpose() -> None:
    assert list(POLICIES) == ["Load", "Save", "Save and never remove", "Delta saves", "Clean up"]
    assert len(LESS) == 2 + 5 + 4 + 6 + 5


# ---- load


@pytest.mark.parametrize("reader", READERS)
def test_load(reader: str, owner: Place, user: Callable[..., Place]) -> None:
    owner.save(STATE, "run/one")
    place = user("Load")
    assert_same(place.load(blank(STATE), "run/one", reader_constructor=reader), STATE)
    with pytest.raises(CheckpointException) as caught:
        place.load(blank(STATE), "run/none", reader_constructor=reader)
    assert isinstance(failures(caught.value)[0], CheckpointNotFoundError)


def test_load_allows_nothing_else(owner: Place, user: Callable[..., Place]) -> None:
    owner.save(STATE, "run/one")
    owner.save(STATE, "base/one")
    before = owner.listing()
    place = user("Load")
    refused(lambda: place.save(STATE, "run/two"), "s3:PutObject")
    refused(lambda: place.save(STATE, "run/one"), "s3:PutObject")
    refused(lambda: place.load(blank(STATE), "base/one"), "s3:GetObject")
    with pytest.raises(AccessDeniedError, match="s3:DeleteObject"):
        place.transport.delete(BUCKET, before)
    with pytest.raises(AccessDeniedError, match="s3:DeleteObject"):
        place.transport.delete(BUCKET, before[:1])
    assert owner.listing() == before


def test_load_less(owner: Place, user: Callable[..., Place]) -> None:
    owner.save(STATE, "run/one")
    refused(lambda: user("Load", "s3:GetObject").load(blank(STATE), "run/one"), "s3:GetObject")
    blind = user("Load", "s3:ListBucket", 1)
    assert_same(blind.load(blank(STATE), "run/one"), STATE)
    with pytest.raises(AccessDeniedError, match="s3:ListBucket"):
        list(blind.transport.list(BUCKET, "run/"))


class Strict:
    """Has a proxy answer as S3 does who may not list: "denied" of what is missing."""

    def __init__(self, owner: Place) -> None:
        self._owner = owner

    def __call__(self, request: Request) -> Fault | None:
        asks = request.operation in ("HeadObject", "GetObject")
        key = urllib.parse.unquote(request.key)
        return Fault.DENY if asks and key not in self._owner.listing() else None


def test_without_listing_missing_is_denied(server: SeaweedServer, owner: Place) -> None:
    """SeaweedFS says 404 to everybody; S3 does not."""
    owner.save(STATE, "run/one")
    with FaultProxy(server.endpoint_url) as proxy:
        proxy.judge = Strict(owner)
        place = proxy.before(owner)
        assert_same(place.load(blank(STATE), "run/one"), STATE)
        place.save(CHANGED, "run/one")
        before = owner.listing()
        refused(lambda: place.load(blank(STATE), "run/none"), "s3:ListBucket")
        refused(lambda: place.save(STATE, "run/first"), "s3:ListBucket")
    assert owner.listing() == before
    assert_same(owner.load(blank(STATE), "run/one"), CHANGED)


# ---- save


@pytest.mark.parametrize("title", ["Save", "Delta saves"])
def test_save(title: str, owner: Place, user: Callable[..., Place]) -> None:
    place = user(title)
    place.save(STATE, "run/one")
    first = owner.listing()
    place.save(CHANGED, "run/one", thread_count=2)
    assert_same(owner.load(blank(STATE), "run/one"), CHANGED)
    assert set(owner.listing()) & set(first) == {"run/one/.metadata"}
    with pytest.raises(CheckpointException) as caught:
        place.save(STATE, "run/one", overwrite=False)
    assert isinstance(failures(caught.value)[0], CheckpointExistsError)
    refused(lambda: place.save(STATE, "else/where"), "s3:GetObject")


def failing_upload(place: Place, caplog: pytest.LogCaptureFixture) -> str:
    """What the log says of an upload whose source fails after the second part."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 10 * MIB:
                raise OSError("no more")
            return super().read(size)

    caplog.clear()
    stream = Failing(bytes(12 * MIB))
    with caplog.at_level(logging.ERROR, "torch_s3dcp"), pytest.raises(OSError, match="no more"):
        place.transport.upload(BUCKET, "run/broken", stream, expected_size=12 * MIB)
    return caplog.text


def test_a_failed_save_removes_what_it_wrote(
    owner: Place, user: Callable[..., Place], caplog: pytest.LogCaptureFixture
) -> None:
    assert failing_upload(user("Save"), caplog) == ""
    assert open_uploads(owner) == set()


def test_save_without_abort(
    owner: Place, user: Callable[..., Place], caplog: pytest.LogCaptureFixture
) -> None:
    place = user("Save", "s3:AbortMultipartUpload")
    place.save(STATE, "run/one")
    assert_same(owner.load(blank(STATE), "run/one"), STATE)
    said = failing_upload(place, caplog)
    assert "stay behind at s3://my-bucket/run/broken" in said
    assert "s3:AbortMultipartUpload" in said
    assert len(open_uploads(owner)) == 1


@pytest.mark.parametrize("permission", ["s3:PutObject", "s3:GetObject"])
def test_save_less(permission: str, owner: Place, user: Callable[..., Place]) -> None:
    owner.save(STATE, "run/one")
    before = owner.listing()
    place = user("Save", permission)
    refused(lambda: place.save(CHANGED, "run/one"), permission)
    refused(lambda: place.save(CHANGED, "run/two"), permission)
    assert owner.listing() == before
    assert_same(owner.load(blank(STATE), "run/one"), STATE)


def test_save_without_listing(owner: Place, user: Callable[..., Place]) -> None:
    """Here SeaweedFS is kinder than S3, see `test_without_listing_missing_is_denied`."""
    user("Save", "s3:ListBucket", 1).save(STATE, "run/one")
    assert_same(owner.load(blank(STATE), "run/one"), STATE)


@pytest.mark.parametrize("which", ["less", "never"])
def test_save_without_delete(which: str, owner: Place, user: Callable[..., Place]) -> None:
    place = user("Save", "s3:DeleteObject") if which == "less" else user("Save and never remove")
    place.save(STATE, "run/one")
    before = owner.listing()
    with pytest.warns(UserWarning, match=OVERWRITTEN) as warned:
        place.save(CHANGED, "run/one")
    assert any("s3:DeleteObject" in str(one.message) for one in warned)
    assert set(before) < set(owner.listing())
    assert_same(owner.load(blank(STATE), "run/one"), CHANGED)


def test_never_remove_removes_nothing(
    owner: Place, user: Callable[..., Place], caplog: pytest.LogCaptureFixture
) -> None:
    place = user("Save and never remove")
    place.save(STATE, "run/one")
    with pytest.raises(AccessDeniedError, match="s3:DeleteObject"):
        place.transport.delete(BUCKET, owner.listing())
    assert failing_upload(place, caplog) == ""
    assert_same(owner.load(blank(STATE), "run/one"), STATE)


# ---- delta saves


def test_delta(owner: Place, user: Callable[..., Place]) -> None:
    owner.save(STATE, "base/one")
    place = user("Delta saves")
    writer = place.writer("run/one", delta_from=place.url("base/one"))
    with quiet():
        dcp.save(CHANGED, storage_writer=writer)
    assert writer.stats is not None
    assert writer.stats.bytes_copied > 10 * MIB
    assert_same(owner.load(blank(STATE), "run/one"), CHANGED)
    refused(lambda: place.save(STATE, "base/one"), "s3:PutObject")


def test_delta_without_reading_the_base(owner: Place, user: Callable[..., Place]) -> None:
    owner.save(STATE, "base/one")
    place = user("Delta saves", "s3:GetObject", 1)
    with pytest.warns(UserWarning, match=r"everything is uploaded.*s3:GetObject"):
        place.save(CHANGED, "run/one", delta_from=place.url("base/one"))
    assert_same(owner.load(blank(STATE), "run/one"), CHANGED)


# ---- clean up


def clean(place: Place) -> None:
    """Remove what no metadata names, and open uploads: the example of the page on saving."""
    metadata = place.reader("run/one").read_metadata()
    owned = {f"run/one/{info.relative_path}" for info in metadata.storage_data.values()}
    stored = {
        info.key
        for page in place.transport.list(BUCKET, "run/one/")
        for info in page.object_info
        if info.key.endswith(".distcp")
    }
    place.transport.delete(BUCKET, sorted(stored - owned))
    client = place.transport.client  # type: ignore[attr-defined]
    for upload in client.list_multipart_uploads(Bucket=BUCKET, Prefix="run/").get("Uploads", []):
        client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])


def leave(owner: Place) -> None:
    """A checkpoint, with leftovers beside it."""
    owner.save(STATE, "run/one")
    owner.transport.put(BUCKET, "run/one/__0_0_left.distcp", b"data")
    client = owner.transport.client  # type: ignore[attr-defined]
    client.create_multipart_upload(Bucket=BUCKET, Key="run/one/__0_1_left.distcp")


def test_clean_up(owner: Place, user: Callable[..., Place]) -> None:
    leave(owner)
    clean(user("Clean up"))
    assert len(owner.listing()) == 2
    assert open_uploads(owner) == set()
    assert_same(owner.load(blank(STATE), "run/one"), STATE)
    refused(lambda: user("Clean up").save(STATE, "run/two"), "s3:PutObject")


@pytest.mark.parametrize(("statement", "permission"), actions_of(CLEAN))
def test_clean_up_less(
    statement: int, permission: str, owner: Place, user: Callable[..., Place]
) -> None:
    leave(owner)
    with pytest.raises((AccessDeniedError, ClientError), match=r"denied|Denied"):
        clean(user("Clean up", permission, statement))
    assert_same(owner.load(blank(STATE), "run/one"), STATE)


# ---- lifecycle rules


@pytest.mark.parametrize("kind", ["seaweed", "moto"])
@pytest.mark.parametrize("title", ["Leftovers", "Object Lock, versioning and lifecycle"])
def test_lifecycle_rules_are_accepted(
    kind: str, title: str, server: SeaweedServer, moto_server: MotoServer, moto_bucket: str
) -> None:
    (rules,) = json_of("saving.md")[title]
    client, bucket = (
        (server.client(), BUCKET) if kind == "seaweed" else (moto_server.client(), moto_bucket)
    )
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    try:
        (stored,) = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    finally:
        client.delete_bucket_lifecycle(Bucket=bucket)
    (asked,) = rules["Rules"]
    for name in ("ID", "Status", "AbortIncompleteMultipartUpload", "Expiration"):
        assert stored.get(name) == asked.get(name), name


def test_the_state_has_several_parts_and_is_no_accident() -> None:
    assert STATE["large"].nbytes > 2 * 5 * MIB  # type: ignore[attr-defined]
    assert not torch.equal(STATE["small"], CHANGED["small"])  # type: ignore[arg-type]
