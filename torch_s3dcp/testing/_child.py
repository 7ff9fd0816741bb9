"""One child process on loopback ports: found, started, awaited, killed.

Knows nothing of S3. `stop()` kills the child; on Linux the kernel does where the parent itself
was killed and could not.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

LOOPBACK = "127.0.0.1"
# Both a port and its partner 10,000 above stay below 32768, where Linux begins to hand out
# ephemeral ports: a connection opened meanwhile can't take them.
_LOWEST_PORT, _HIGHEST_PORT = 10_240, 22_000
_GRPC_OFFSET = 10_000
_LOG_TAIL_LINES = 20

# Runs in the child before the server does: asks the kernel to kill it with its parent
# (PR_SET_PDEATHSIG is 1), then looks whether the parent went away before that.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerStartError(RuntimeError):
    """A local test server did not come up; the message ends with the tail of its log."""


class MissingServerError(ImportError):
    """The package that carries a local test server is not installed; the message names it."""


def free_ports(count: int, *, grpc: bool = False) -> list[int]:
    """Return `count` loopback ports that nothing listens on at this moment.

    With `grpc`, the port 10,000 above each is free too (SeaweedFS opens both). Another process
    may take one before the caller does: the caller must be ready to try again.
    Raises OSError if 1,000 tries don't find enough.
    """
    # Its own generator: a test runner that seeds the global one in several processes would
    # send them all to the same ports.
    choose = random.SystemRandom()
    ports: list[int] = []
    held: list[socket.socket] = []
    try:
        for _ in range(1000):
            port = choose.randrange(_LOWEST_PORT, _HIGHEST_PORT)
            wanted = [port, port + _GRPC_OFFSET] if grpc else [port]
            try:
                for number in wanted:
                    # Bound until all are found, so that no port is chosen twice.
                    probe = socket.socket()
                    held.append(probe)
                    probe.bind((LOOPBACK, number))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    finally:
        for probe in held:
            probe.close()
    raise OSError(f"no {count} free loopback ports between {_LOWEST_PORT} and {_HIGHEST_PORT}")


def find_program(name: str, distribution: str) -> str:
    """Return the path of program `name`, from the installed `distribution` or from PATH.

    Raises MissingServerError, which says what to install, if neither has it.
    """
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.stem == name and os.access(path, os.X_OK) and path.is_file():
            return str(path.resolve())
    found = shutil.which(name)
    if found is None:
        raise MissingServerError(
            f"the program {name!r} is not installed: pip install {distribution}"
        )
    return found


class Child:
    """A server process with its log in a file; killed with SIGKILL, as it is throw-away.

    command: program (absolute path) and arguments.
    directory: existing folder; home, working and temporary folder of the child.
    """

    def __init__(self, command: list[str], directory: Path) -> None:
        self._command = command
        self.directory = directory
        self._log = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: Exception | None = None

    def start(self) -> None:
        """Start the process; raises OSError where the program can't be run."""
        # The kernel's "kill with the parent" means the parent's *thread* that started the
        # child, so a thread is kept for just that: the caller's may end early.
        started = threading.Event()
        keeper = threading.Thread(
            target=self._keep, args=(started,), name="server-keeper", daemon=True
        )
        keeper.start()
        started.wait()
        if self._failure is not None:
            raise self._failure

    def _keep(self, started: threading.Event) -> None:
        command = self._command
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        home = str(self.directory)
        # Nothing else of the environment: SeaweedFS makes an administrator of
        # AWS_ACCESS_KEY_ID, rclone reads RCLONE_*, both look for settings at home.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": home, "TMPDIR": home}
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=home,
                    env=environment,
                )
        except OSError as error:
            self._failure = error
            return
        finally:
            started.set()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The process id; raises RuntimeError before `start()`."""
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process.pid

    def exit_status(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        return None if self._process is None else self._process.poll()

    def log_tail(self) -> str:
        """The last lines that the server wrote."""
        return "\n".join(self._read_log().splitlines()[-_LOG_TAIL_LINES:])

    def lost_its_port(self) -> bool:
        """Whether the process ended because another one had taken a port."""
        # The whole log: a Go program prints all its stacks after the reason.
        return self.exit_status() is not None and "address already in use" in self._read_log()

    def _read_log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def stop(self) -> None:
        """Kill the process and wait until it is gone; nothing on a second call."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
