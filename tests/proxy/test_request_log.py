"""What the proxy notes: every request, no secret, and the mutations in the server's order."""

from __future__ import annotations

import re
import threading
import time

from support.origin import Answer, Origin, ask, connect

from torch_s3dcp.testing import FaultProxy, faults


def test_the_log_tells_what_happened_without_secrets(proxy: FaultProxy) -> None:
    target = "/b/k?versionId=1&X-Amz-Signature=f00&X-Amz-Credential=c00"
    names = ("Authorization", "X-Amz-Security-Token", "Cookie", "X-Amz-Meta-Note")
    key = "X-Amz-Server-Side-Encryption-Customer-Key"
    headers = dict.fromkeys((*names[:3], key), "hidden-word") | {names[3]: "shown"}
    proxy.add(faults.Truncate(10), operation="GetObject")
    ask(proxy, target=target, headers=headers)
    (entry,) = proxy.log.entries("GetObject")
    assert (entry.number, entry.key, entry.status, entry.received) == (0, "k", 200, 10)
    assert entry.fault == faults.Truncate(10)
    assert entry.end is not None
    assert entry.begin <= entry.end
    assert entry.headers["x-amz-meta-note"] == "shown"
    shown = f"{entry} {entry.headers} {entry.request}"
    assert not re.search("hidden-word|f00|c00", shown)


def test_mutations_are_in_the_order_of_the_server(proxy: FaultProxy) -> None:
    proxy.add(faults.Delay(0.3), key="first", count=1)
    proxy.add(faults.Reply(500), key="refused")
    begun = threading.Thread(target=lambda: ask_put(proxy, "/b/first"))
    begun.start()
    while not len(proxy.log):
        time.sleep(0.01)
    ask_put(proxy, "/b/second")
    ask_put(proxy, "/b/refused")
    begun.join()
    ask(proxy, "POST", "/b/large?uploads")
    ask(proxy, "PUT", "/b/large?uploadId=u-1&partNumber=4", body=b"part")
    ask(proxy, "PUT", "/b/k", body=b"x", headers={"If-None-Match": "*"})
    ask(proxy, "HEAD")
    second, first, created, part, last = proxy.log.mutations()
    assert (second.key, first.key, first.body) == ("second", "first", b"body")
    assert second.end <= first.begin
    assert not second.overlaps(first)
    assert (created.operation, created.upload_id) == ("CreateMultipartUpload", "u-1")
    assert (part.operation, part.upload_id, part.part, part.body) == (
        "UploadPart",
        "u-1",
        4,
        b"part",
    )
    assert last.conditions == {"if-none-match": "*"}


def ask_put(proxy: FaultProxy, target: str) -> None:
    client = connect(proxy)
    client.request("PUT", target, body=b"body")
    Answer(client)
    client.close()


def test_bodies_are_kept_only_if_asked(server: Origin) -> None:
    with FaultProxy(server) as proxy:
        ask(proxy, "PUT", body=b"abc")
        assert [m.body for m in proxy.log.mutations()] == [b""]
