"""botocore's models of S3, read once per process.

Each session would read and parse them anew: 12 MB and 0.06 to 0.2 s of CPU per client, of which
0.5 MB and 0.01 s are left where they are shared (botocore 1.44).
"""

from __future__ import annotations

import os
import threading
from typing import Any

from botocore.session import Session

_lock = threading.Lock()
# By the folders that the configuration names for models.
_loaders: dict[str | None, Any] = {}


def _renew_lock() -> None:
    """Another thread may have held it when the process was forked."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def share_models(session: Session) -> None:
    """Have a session use the models that other sessions of the process have read.

    To be called before a boto3 session is made of it.
    """
    folders: str | None = session.get_config_variable("data_path")
    with _lock:
        loader = _loaders.get(folders)
        if loader is None:
            loader = _loaders[folders] = session.get_component("data_loader")
        # Each boto3 session adds its own folder, once more.
        loader.search_paths[:] = dict.fromkeys(loader.search_paths)
    session.register_component("data_loader", loader)
