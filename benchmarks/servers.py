"""The servers that are measured against, and the environment that reaches them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from torch_s3dcp.testing.servers import SeaweedServer

BUCKET = "bench"
PREFIX = "model"
SERVERS = ("seaweed", "static", "https")


@contextlib.contextmanager
def serve(
    server: str, folder: Path, delay: float = 0.0, bandwidth: float = 0.0
) -> Iterator[dict[str, str]]:
    """One of ``SERVERS`` with what lies in ``folder``; gives the environment to reach it."""
    if server == "seaweed":
        with seaweed_server(folder) as environment:
            yield environment
    else:
        with static_server(folder, delay, server == "https", bandwidth) as environment:
            yield environment


@contextlib.contextmanager
def static_server(
    folder: Path, delay: float = 0.0, tls: bool = False, bandwidth: float = 0.0
) -> Iterator[dict[str, str]]:
    """The static range server in a process of its own."""
    arguments = ["benchmarks.static_server", str(folder)]
    arguments += ["--delay", str(delay), "--bandwidth", str(bandwidth)]
    with _own_server(arguments, folder if tls else None) as environment:
        yield environment


@contextlib.contextmanager
def sink_server(folder: Path, tls: bool = False) -> Iterator[dict[str, str]]:
    """The sink in a process of its own; the folder is for the certificate."""
    with _own_server(["benchmarks.sink_server"], folder if tls else None) as environment:
        yield environment


@contextlib.contextmanager
def _own_server(arguments: list[str], certified: Path | None) -> Iterator[dict[str, str]]:
    """A module that serves, with TLS if there is a folder for a certificate."""
    command = [sys.executable, "-m", *arguments]
    environment = {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if certified:
        certificate, key = make_certificate(certified)
        command += ["--tls", str(certificate), str(key)]
        environment |= {"AWS_CA_BUNDLE": str(certificate), "SSL_CERT_FILE": str(certificate)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            yield environment | {"AWS_ENDPOINT_URL": process.stdout.readline().strip()}
        finally:
            process.kill()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} "
        "-days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key


@contextlib.contextmanager
def seaweed_server(folder: Path) -> Iterator[dict[str, str]]:
    """SeaweedFS with the checkpoint on it."""
    with SeaweedServer() as server:
        server.create_bucket(BUCKET)
        client = server.client()
        for file in sorted((folder / BUCKET / PREFIX).iterdir()):
            client.upload_file(str(file), BUCKET, f"{PREFIX}/{file.name}")
        yield server.environment()
