"""IAM policies as the documentation prints them, and users of a server who have them."""

from __future__ import annotations

import copy
import json
import re
import secrets
from pathlib import Path
from typing import Any

from torch_s3dcp.testing import SECRET_MARK
from torch_s3dcp.testing.servers import Identity

DOCS = Path(__file__).resolve().parents[2] / "docs" / "guide"
_SECTION = re.compile(r"^## (.+?)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_JSON = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def json_of(page: str) -> dict[str, list[Any]]:
    """The JSON blocks of a page of the guide, by the title of their section."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return {
        title: [json.loads(block) for block in _JSON.findall(body)]
        for title, body in _SECTION.findall(text)
    }


def actions_of(policy: dict[str, Any]) -> list[tuple[int, str]]:
    """All that a policy allows: number of the statement, and action."""
    return [
        (number, action)
        for number, statement in enumerate(policy["Statement"])
        for action in _listed(statement["Action"])
    ]


def without(policy: dict[str, Any], number: int, action: str) -> dict[str, Any]:
    """The policy without one permission, which is denied too.

    To S3 what is not allowed is denied; SeaweedFS has an abort come with ``s3:PutObject``.
    """
    less = copy.deepcopy(policy)
    statement = less["Statement"][number]
    denied = {"Effect": "Deny", "Action": action, "Resource": statement["Resource"]}
    less["Statement"].append(denied)
    statement["Action"] = [one for one in _listed(statement["Action"]) if one != action]
    if not statement["Action"]:
        less["Statement"].remove(statement)
    return less


def user_with(name: str, policy: dict[str, Any]) -> Identity:
    """A user to whom nothing but a policy allows anything."""
    access_key = "AKIA" + secrets.token_hex(8).upper()
    secret_key = SECRET_MARK + secrets.token_hex(8)
    return Identity(name, access_key, secret_key, actions=(), policies=(json.dumps(policy),))


def _listed(actions: str | list[str]) -> list[str]:
    return [actions] if isinstance(actions, str) else actions
