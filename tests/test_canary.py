"""The plugin that fails tests in which a secret shows up does so, and names no secret itself."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import canary
from support.ranks import RankError, run_ranks

from torch_s3dcp.exceptions import StorageError
from torch_s3dcp.testing import SECRET_MARK, TOKEN_MARK, MotoServer

TESTS = Path(__file__).parent
SECRET = SECRET_MARK + "0123"
TOKEN = TOKEN_MARK + "4567"
# Body of a test, and whether it is to fail.
CASES = {
    "our log": (f"logging.getLogger('torch_s3dcp.x').debug('key %s', {SECRET!r})", True),
    "another's log": (f"logging.getLogger('other').debug('key %s', {SECRET!r})", True),
    "a token in our log": (f"logging.getLogger('torch_s3dcp').info({TOKEN!r})", True),
    "a token in another's log": (f"logging.getLogger('botocore.auth').debug({TOKEN!r})", False),
    "a signed URL in our log": (
        "logging.getLogger('torch_s3dcp.x').debug('%s', 'http://h/k?X-Amz-Signature=ab')",
        True,
    ),
    "a signed URL in another's log": (
        "logging.getLogger('urllib3').debug('http://h/k?X-Amz-Signature=ab')",
        False,
    ),
    "a customer's key": (f"StorageError({canary.CUSTOMER_KEY!r}.decode())", True),
    "a customer's key, encoded": (
        f"StorageError(base64.b64encode({canary.CUSTOMER_KEY!r}).decode())",
        True,
    ),
    "a traceback": (
        f"""try:
        raise OSError({TOKEN!r})
    except OSError:
        logging.getLogger('torch_s3dcp').debug('it failed', exc_info=True)""",
        True,
    ),
    "a cause in a traceback": (
        f"""try:
        try:
            raise OSError({TOKEN!r})
        except OSError as error:
            raise ValueError('plain') from error
    except ValueError:
        logging.getLogger('torch_s3dcp').exception('it failed')""",
        True,
    ),
    "an error": (
        f"""with pytest.raises(StorageError):
        raise StorageError('refused', key={TOKEN!r})""",
        True,
    ),
    "a cause of an error": (
        f"""with pytest.raises(StorageError):
        try:
            raise OSError({TOKEN!r})
        except OSError as error:
            raise StorageError('refused') from error""",
        True,
    ),
    "a context of a cause": (
        f"""with pytest.raises(StorageError):
        try:
            try:
                raise OSError({SECRET!r})
            except OSError:
                raise ValueError('plain')
        except ValueError as error:
            raise StorageError('refused') from None""",
        True,
    ),
    "a logger of ours that keeps to itself": (
        f"""logger = logging.getLogger('torch_s3dcp.private')
    logger.propagate = False
    logger.info({TOKEN!r})""",
        True,
    ),
    "a child of another's that keeps to itself": (
        f"""logging.getLogger('private').propagate = False
    logging.getLogger('private.child').debug({SECRET!r})""",
        True,
    ),
    "a token of another's that keeps to itself": (
        f"""logging.getLogger('hidden').propagate = False
    logging.getLogger('hidden.child').debug({TOKEN!r})""",
        False,
    ),
    "a warning": (
        f"""with pytest.warns(UserWarning):
        warnings.warn({SECRET!r}, UserWarning)""",
        True,
    ),
    "a child's output": (
        f"subprocess.run([sys.executable, '-c', \"print({SECRET!r})\"], check=True)",
        True,
    ),
    "nothing": ("logging.getLogger('torch_s3dcp').debug('all is well')", False),
}
HEAD = """import base64, logging, subprocess, sys, warnings
import pytest
from torch_s3dcp.exceptions import StorageError
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_it_fails_the_tests_that_leak_and_no_others(
    workers: tuple[str, ...], tmp_path: Path
) -> None:
    lines = [HEAD]
    for number, (body, _) in enumerate(CASES.values()):
        lines.append(f"\ndef test_{number}():\n    {body}\n")
    (tmp_path / "test_leaks.py").write_text("\n".join(lines))
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "support.canary", "-rA", "test_leaks.py", *workers],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=250,
    )
    summary = dict(
        reversed(line.split()[:2]) for line in re.findall(r"^(?:PASS|FAIL)ED .*", done.stdout, re.M)
    )
    assert summary, f"{done.stdout}{done.stderr}"
    found = {
        name: summary[f"test_leaks.py::test_{number}"] == "FAILED"
        for number, name in enumerate(CASES)
    }
    assert found == {name: leaks for name, (_, leaks) in CASES.items()}


def test_what_it_says_names_the_place_and_not_the_secret() -> None:
    assert canary.leaks() == []
    StorageError(f"refused: {TOKEN}")
    assert canary.leaks()[0] == f"StorageError shows {TOKEN_MARK}"
    assert canary.leaks() == []


def _leak_on_one_rank() -> int:
    import torch.distributed as dist

    if dist.get_rank() == 1:
        logging.getLogger("torch_s3dcp").debug(TOKEN)
    return dist.get_rank()


@pytest.mark.multirank
def test_ranks_are_watched_too() -> None:
    well, leaking = run_ranks(_leak_on_one_rank, 2)
    assert well.get() == 0
    with pytest.raises(RankError, match=f"rank 1: .*logger torch_s3dcp shows {TOKEN_MARK}"):
        leaking.get()


def test_the_secrets_of_the_suite_carry_the_marks(moto_server: MotoServer) -> None:
    """A canary without a voice would tell nothing."""
    assert os.environ["AWS_SECRET_ACCESS_KEY"].startswith(SECRET_MARK)
    given = moto_server.environment()
    assert given["AWS_SECRET_ACCESS_KEY"].startswith(SECRET_MARK)
    assert given["AWS_SESSION_TOKEN"].startswith(TOKEN_MARK)
    assert len(canary.CUSTOMER_KEY) == 32
