"""Errors without what a request was signed by. Servers exist that repeat it in their answers."""

from __future__ import annotations

import re
from typing import Any

from ..exceptions import with_causes

_LOGIN = re.compile(r"//[^/@\s]*@")
_GRANTS = re.compile(
    r"((?:signature|credential|awsaccesskeyid|security-token|customer-key(?:-md5)?)"
    r"['\"]?\s*[=:]\s*['\"]?)[^\s&,;'\"<]+",
    re.IGNORECASE,
)


def clean(error: object) -> str:
    """The text of an error without a login in an address, a signature or a token."""
    return _GRANTS.sub(r"\1***", _LOGIN.sub("//***@", str(error)))


def scrub(error: BaseException) -> None:
    """Clean an error itself, with its causes: tracebacks show them below ours."""
    for one in with_causes(error):
        cleaned = tuple(clean(part) if isinstance(part, str) else part for part in one.args)
        if cleaned != one.args:
            one.args = cleaned
        # What botocore's errors keep of the server's answer.
        answer: Any = getattr(one, "response", None)
        details = answer.get("Error") if isinstance(answer, dict) else None
        if isinstance(details, dict):
            details.update({k: clean(v) for k, v in details.items() if isinstance(v, str)})
