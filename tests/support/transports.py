"""A transport that notes what is asked of it and lets a test interfere."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch_s3dcp.transports import ListPage, ObjectBody, ObjectInfo, Uploaded

MUTATIONS = ("put", "upload", "copy", "delete")


@dataclass(frozen=True)
class Call:
    """One request: its operation, its keys, its byte range, its conditions."""

    operation: str
    keys: tuple[str, ...]
    span: tuple[int, int | None] | None = None
    if_match: str | None = None
    if_none_match: bool = False
    expected_size: int | None = None

    @property
    def key(self) -> str:
        return self.keys[0]


Hook = Callable[[Call], None]


class Tap:
    """Passes everything on to another transport.

    ``before`` and ``after`` are called with each request and may raise or wait.
    """

    def __init__(
        self, inner: Any, *, before: Hook | None = None, after: Hook | None = None
    ) -> None:
        self.inner = inner
        self.before = before
        self.after = after
        self.calls: list[Call] = []
        self._lock = threading.Lock()

    def of(self, *operations: str) -> list[Call]:
        """The calls of these operations, in their order."""
        return [call for call in self.calls if call.operation in operations]

    def _do(self, call: Call, request: Callable[[], Any]) -> Any:
        with self._lock:
            self.calls.append(call)
        if self.before is not None:
            self.before(call)
        answer = request()
        if self.after is not None:
            self.after(call)
        return answer

    def head(self, bucket: str, key: str) -> ObjectInfo:
        return self._do(Call("head", (key,)), lambda: self.inner.head(bucket, key))

    def get(
        self,
        bucket: str,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        if_match: str | None = None,
    ) -> ObjectBody:
        return self._do(
            Call("get", (key,), (start, end), if_match),
            lambda: self.inner.get(bucket, key, start, end, if_match=if_match),
        )

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        conditions: dict[str, Any] = {"if_match": if_match, "if_none_match": if_none_match}
        return self._do(
            Call("put", (key,), None, if_match, if_none_match, len(data)),
            lambda: self.inner.put(bucket, key, data, **conditions, metadata=metadata),
        )

    def upload(
        self, bucket: str, key: str, stream: io.RawIOBase, *, expected_size: int
    ) -> Uploaded:
        return self._do(
            Call("upload", (key,), expected_size=expected_size),
            lambda: self.inner.upload(bucket, key, stream, expected_size=expected_size),
        )

    def check_compose(self) -> None:
        self.inner.check_compose()

    def compose(self, bucket: str, key: str, *args: Any, **options: Any) -> Uploaded:
        return self._do(
            Call("compose", (key,)), lambda: self.inner.compose(bucket, key, *args, **options)
        )

    def copy(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str) -> None:
        self._do(
            Call("copy", (src_key, dst_key)),
            lambda: self.inner.copy(src_bucket, src_key, dst_bucket, dst_key),
        )

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        names = tuple(keys)
        self._do(Call("delete", names), lambda: self.inner.delete(bucket, names))

    def list(
        self,
        bucket: str,
        prefix: str = "",
        *,
        delimiter: str = "",
        page_size: int = 1000,
    ) -> Iterator[ListPage]:
        return self._do(
            Call("list", (prefix,)),
            lambda: self.inner.list(bucket, prefix, delimiter=delimiter, page_size=page_size),
        )


def raise_on(
    operation: str, ending: str, error: BaseException, *, times: int | None = None
) -> Hook:
    """A hook that raises for an operation on keys with an ending, always or a few times."""
    left = [times]

    def hook(call: Call) -> None:
        if call.operation != operation or not call.key.endswith(ending):
            return
        if left[0] is not None:
            if left[0] == 0:
                return
            left[0] -= 1
        raise error

    return hook
