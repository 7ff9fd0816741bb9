"""A pytest plugin that fails the test in which a secret shows up. The tests' conftest registers it.

All secrets of the suite carry a mark. Looked at are log records of all libraries at level DEBUG,
of loggers that don't propagate too, warnings, the text and pickle of each error of this package
that is made, the errors that are handled then, which become its cause or context, and what a test
and its children print.

Our own loggers may show none of the secrets, no signature and no signed URL. Others log headers as
they see fit: botocore shows tokens and customers' keys at DEBUG. They must not show a secret key.
"""

from __future__ import annotations

import base64
import functools
import logging
import pickle
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from torch_s3dcp import S3DCPError
from torch_s3dcp.exceptions import with_causes
from torch_s3dcp.testing import SECRET_MARK, TOKEN_MARK

OURS = "torch_s3dcp"
#: Begins every customer's key of the suite; what follows are 8 bytes of the test's own.
CUSTOMER_MARK = "customer-key-of-canaries"
#: For tests that need one key.
CUSTOMER_KEY = CUSTOMER_MARK.encode() + b"00000000"

# In base64, 24 bytes are 32 characters that don't depend on the rest.
_SENT = (TOKEN_MARK, CUSTOMER_MARK, base64.b64encode(CUSTOMER_MARK.encode()).decode())
_SIGNED = re.compile(r"(?:signature|x-amz-credential|awsaccesskeyid)=(?!\*\*\*)", re.IGNORECASE)
_ALL_SECRETS = (SECRET_MARK, *_SENT)

_found: list[str] = []
_formatter = logging.Formatter()
_watching = False


def leaks() -> list[str]:
    """What showed up since the last call: where, without the secret itself."""
    taken = _found[:]
    del _found[: len(taken)]
    return taken


def watch() -> None:
    """Look at all that this process logs, warns of and raises from now on."""
    global _watching
    if _watching:
        return
    _watching = True
    root = logging.getLogger()
    root.addHandler(_Watcher())
    root.setLevel(logging.DEBUG)
    _watch_loggers()
    _watch_warnings()
    _watch_errors()


def _check(where: str, text: str, *, signatures: bool = False) -> None:
    shown = [mark for mark in _ALL_SECRETS if mark in text]
    if signatures and _SIGNED.search(text):
        shown.append("a signature or a signed URL")
    if shown:
        _found.append(f"{where} shows {', '.join(shown)}")


class _Watcher(logging.Handler):
    """Looks at every record, with its arguments, its traceback and its stack."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == OURS:
            _check(f"logger {record.name}", _formatter.format(record), signatures=True)
        elif SECRET_MARK in _formatter.format(record):
            _found.append(f"logger {record.name} shows {SECRET_MARK}")


def _watch_loggers() -> None:
    """Records of loggers that keep them from the root, and of those that have a level."""
    call = logging.Logger.callHandlers
    watcher = _Watcher()

    @functools.wraps(call)
    def watched(self: logging.Logger, record: logging.LogRecord) -> None:
        one: logging.Logger | None = self
        while one is not None and one.propagate:
            one = one.parent
        if one is not None:
            watcher.emit(record)
        call(self, record)

    logging.Logger.callHandlers = watched  # type: ignore[method-assign]


def _watch_warnings() -> None:
    warn = warnings.warn

    @functools.wraps(warn)
    def watched(message: Any, category: Any = None, stacklevel: int = 1, *more: Any, **rest: Any):  # type: ignore[no-untyped-def]
        _check("a warning", str(message), signatures=True)
        return warn(message, category, stacklevel + 1, *more, **rest)

    warnings.warn = watched


def _watch_errors() -> None:
    make = S3DCPError.__init__

    @functools.wraps(make)
    def watched(self: S3DCPError, *args: Any, **context: Any) -> None:
        make(self, *args, **context)
        _check(type(self).__name__, f"{self}\n{self!r}\n{self.context}", signatures=True)
        _check(f"a pickle of {type(self).__name__}", pickle.dumps(self.context).decode("latin-1"))
        for cause in with_causes(sys.exc_info()[1]):
            where = f"{type(cause).__name__} behind {type(self).__name__}"
            _check(where, f"{cause}\n{cause!r}", signatures=True)

    S3DCPError.__init__ = watched  # type: ignore[method-assign]


def pytest_configure() -> None:
    """Before anything of a test is imported."""
    watch()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Fail the phase of a test in which a secret showed up."""
    report = yield
    for title, text in report.sections:
        # Such as what child processes print. The log was looked at, each library by its measure.
        if title.startswith("Captured std"):
            _check(title, text)
    shown = leaks()
    if shown:
        report.outcome = "failed"
        report.longrepr = "\n".join(["secrets show up:", *sorted(set(shown))])
    return report
