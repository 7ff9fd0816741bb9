"""AWS signature version 4 for a GET, with the standard library alone."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field

_UNSIGNED = "UNSIGNED-PAYLOAD"
_SIGNED_URL = re.compile(
    r"X-Amz-(Algorithm|Credential|Date|Expires|SignedHeaders|Signature|Security)"
)


def without_signature(target: str) -> str:
    """A target less what a presigned URL adds; the rest is as it was."""
    path, _, query = target.partition("?")
    pairs = [pair for pair in query.split("&") if pair and not _SIGNED_URL.match(pair)]
    return f"{path}?{'&'.join(pairs)}" if pairs else path


@dataclass(frozen=True)
class Keys:
    """With them the proxy asks for other bytes than the client did."""

    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"

    def sign(self, method: str, target: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Headers of a request without a body, signed anew.

        Args:
            headers: Names in lower case, ``host`` among them; signatures in it are dropped.
        """
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        dropped = ("authorization", "x-amz-security-token")
        made = {name: text for name, text in headers.items() if name not in dropped}
        made |= {"x-amz-date": now, "x-amz-content-sha256": _UNSIGNED}
        signed = sorted(name for name in made if name == "host" or name.startswith("x-amz-"))
        url = urllib.parse.urlsplit(target)
        pairs = urllib.parse.parse_qsl(url.query, keep_blank_values=True)
        quoted = sorted(tuple(urllib.parse.quote(text, safe="-_.~") for text in p) for p in pairs)
        lines = [
            method,
            url.path,
            "&".join("=".join(pair) for pair in quoted),
            *(f"{name}:{' '.join(made[name].split())}" for name in signed),
            "",
            ";".join(signed),
            _UNSIGNED,
        ]
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}"
        key = b"AWS4" + self.secret_key.encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        made["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, "
            f"SignedHeaders={';'.join(signed)}, Signature={signature}"
        )
        return made
