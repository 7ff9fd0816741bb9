"""Readers, constructors, prefixes and settings beside s3torchconnector's, case by case.

Each case is a few expressions, evaluated by the same program in both environments with only the
import lines changed. Results are equal, or the difference is listed with its reason. The tables
here are the source of the parity table in docs/reference.
"""

from __future__ import annotations

import fnmatch
import json
import sys
from itertools import zip_longest
from typing import Any

import peer_main
import pytest

pytestmark = pytest.mark.peers

# Readers are built over 4000 bytes of text, "000000010002...", served by a stream of 100-byte
# chunks (`peer_main.run_case`).
PROGRAM = """
import array, json, pickle, sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace as Entry
import peer_main
from s3torchconnector import S3ClientConfig as config, S3ReaderConstructor as make
from s3torchconnector.s3reader import DCPOptimizedS3Reader, ItemRange
from s3torchconnector.s3reader import RangedS3Reader, SequentialS3Reader
from s3torchconnector.dcp import BinaryPrefixStrategy as Binary, HexPrefixStrategy as Hex
from s3torchconnector.dcp import DefaultPrefixStrategy, NumericPrefixStrategy, S3PrefixStrategyBase
from s3torchconnector.dcp import S3FileSystem, S3StorageReader, S3StorageWriter
from s3torchconnector.dcp.s3_prefix_strategy import RoundRobinPrefixStrategy as Robin

opt, region, path = make.dcp_optimized, "us-east-1", "s3://bkt/k"
two, three, inf = [(0, 8), (16, 24)], [(0, 8), (16, 24), (32, 40)], float("inf")
far = [(0, 8), (3000, 3008)]

def announced(constructor, *paths, base="s3://bkt/run"):
    # Files of three items each.
    places = [(path, offset) for path in paths for offset in (0, 8, 40)]
    stored = {(p, o): Entry(relative_path=p, offset=o, length=8) for p, o in places}
    constructor.set_item_ranges_by_file([Entry(storage_index=i) for i in stored], stored, base)
    return constructor

def attempt(action, *arguments):
    try:
        return action(*arguments)
    except Exception as error:
        return error

def valid(*ids):
    kinds = (S3FileSystem, S3StorageReader, S3StorageWriter)
    return [kind.validate_checkpoint_id(name) for kind in kinds for name in ids]

again = lambda value: pickle.loads(pickle.dumps(value))
each = lambda strategy, count: [strategy(rank) for rank in range(count)]
items = lambda ranges: [ItemRange(start, end) for start, end in ranges]
kinds = lambda *constructors: [make.get_reader_type_string(c) for c in constructors]
last = lambda kind, *counts: [kind(None, 1, count)(count - 1) for count in counts]
reads = lambda reader: [type(reader).__name__, reader.read(8), reader.bucket, reader.key]

# What every case begins with: readers by short names.
PRELUDE = (
    "sequential = lambda **o: build(SequentialS3Reader, **o); "
    "ranged = lambda size=None, **o: build(RangedS3Reader, buffer_size=size, **o); "
    "dcp = lambda ranges, gap=32 * 2**20, **o: "
    "build(DCPOptimizedS3Reader, item_ranges=items(ranges), max_gap_size=gap, **o); "
)
cases = json.loads(sys.argv[1])
results = {name: peer_main.run_case(PRELUDE + case, globals()) for name, case in cases.items()}
print(json.dumps({"package": SequentialS3Reader.__module__.split(".")[0], "results": results}))
"""

# A name and a few expressions; a line that begins with a space goes on with the one before.
_ANY = """
names                      | r.bucket; r.key; r.readable(); r.seekable(); r.writable()
read all                   | r.read(); r.tell(); r.read(); r.read(5); log
read None                  | r.read(None); log
read negative              | r.read(-7); log
read nothing               | r.read(0); r.tell()
read in parts              | r.read(4); r.read(6); r.tell(); log
read far                   | r.seek(2000); r.read(8); log
read past the end          | r.seek(3990); r.read(100); r.tell(); r.read(1)
size is text               | r.read('4')
size is a float            | r.read(4.0)
back                       | r.read(300); r.seek(4); r.read(4); r.tell(); log
seek beyond                | r.seek(9999); r.tell(); r.read(1); log
seek from here             | r.seek(8); r.seek(4, 1); r.read(4)
seek from the end          | r.seek(-8, 2); r.read(4); r.read(); log
seek to the end            | r.seek(0, 2); r.tell(); r.read(1); log
seek after the end         | r.seek(9, 2); r.tell()
seek negative              | r.seek(4); r.seek(-1); r.tell(); r.seek(-9, 1); r.tell()
seek negative from the end | r.seek(-9999, 2); r.tell()
whence unknown             | r.seek(0, 7)
whence is text             | r.seek(0, 'end')
offset is text             | r.seek('0')
readinto                   | b = bytearray(8); r.seek(4); r.readinto(b); b; r.tell()
readinto short             | b = bytearray(8); r.seek(3996); r.readinto(b); b; r.readinto(b)
readinto nothing           | r.readinto(bytearray(0)); r.tell(); log
readinto read-only         | r.readinto(b'12345678')
readinto view              | b = bytearray(8); r.readinto(memoryview(b)[2:6]); b
readinto ints              | b = array.array('i', [0, 0]); r.readinto(b); b.tobytes(); r.tell()
read1                      | r.read1(4)
write                      | r.write(b'x')
closed                     | r.closed; r.close(); r.closed; r.close()
read after close           | r.read(4); r.close(); r.read(4)
seek after close           | r.close(); r.seek(0)
tell after close           | r.close(); r.tell()
readinto after close       | r.close(); r.readinto(bytearray(4))
short body                 | r = new(missing=50); r.read(); r.tell()
short body, size           | r = new(missing=50); r.seek(3900); r.read(100)
no bucket                  | new(bucket='')
no key                     | new(key='')
"""
_RANGED = """
buffer serves              | r = ranged(16); r.read(4); r.read(4); r.read(8); log
large reads bypass         | r = ranged(16); r.read(16); r.read(40); log
forward overlap            | r = ranged(16); r.read(4); r.read(16); r.tell(); log
overlap, large rest        | r = ranged(16); r.read(4); r.read(60); r.tell(); log
buffer at the end          | r = ranged(16); r.seek(3992); r.read(4); r.read(9); log
buffer exhausted           | r = ranged(16); r.read(8); r.read(8); r.read(8); log
size negative              | ranged(-1)
size is text               | ranged('16')
size is a float            | ranged(16.0)
"""
_DCP = """
in order                   | r = dcp(two); r.read(8); r.seek(16); r.read(8); r.tell(); log
gap inclusive              | r = dcp(two, 8); r.read(8); r.seek(16); r.read(8); log
gap too large              | r = dcp(two, 7); r.read(8); r.seek(16); r.read(8); log
gap 0, touching            | r = dcp([(0, 8), (8, 16)], 0); r.read(8); r.read(8); log
gap inf                    | r = dcp(far, inf); r.read(8); r.seek(3000); r.read(8); log
gap default                | r = build(DCPOptimizedS3Reader, item_ranges=items(far)); r.read(8);
    r.seek(3000); r.read(8); log
gap of many chunks         | r = dcp([(4, 8), (350, 1000)]); r.seek(4); r.read(4); r.seek(350);
    r.read(650); log
no request before reading  | r = dcp(two); r.seek(4); r.tell(); log
gap negative               | dcp(two, -1)
gap is text                | dcp(two, '8')
gap is None                | dcp(two, None)
gap is nan                 | dcp(two, float('nan'))
back inside the item       | r = dcp(two); r.read(8); r.seek(2); r.read(3); r.tell(); log
back to an earlier item    | r = dcp(two); r.read(8); r.seek(16); r.read(8); r.seek(0); r.read(4)
item left half read        | r = dcp(two); r.read(3); r.seek(16); r.read(8); log
an item skipped            | r = dcp(three); r.read(8); r.seek(32); r.read(8); log
first item skipped         | r = dcp(two); r.seek(16); r.read(8); log
read beyond the item       | r = dcp(two); r.read(9); r.read(8)
read across items          | r = dcp([(0, 8), (8, 16)]); r.read(16)
read in a gap              | r = dcp(two); r.seek(9); r.read(2)
read after the last item   | r = dcp(two); r.read(8); r.seek(16); r.read(8); r.read(1)
read past the end          | r = dcp([(3992, 4000)]); r.seek(3992); r.read(9)
read all                   | r = dcp(two); r.read(); r.read(None); r.read(-1); log
read nothing               | r = dcp(two); r.read(0); r.tell(); log
size is text               | r = dcp(two); r.read('4')
readinto                   | r = dcp(two); b = bytearray(4); r.seek(2); r.readinto(b); b; r.tell()
readinto beyond the item   | r = dcp(two); r.seek(6); r.readinto(bytearray(4))
readinto nothing           | r = dcp(two); r.readinto(bytearray(0)); log
readinto read-only         | r = dcp(two); r.readinto(b'1234')
readinto ints              | r = dcp(two); b = array.array('i', [0]); r.readinto(b); b.tobytes();
    r.tell()
seek from here             | r = dcp(two); r.seek(2); r.seek(2, 1); r.read(2)
seek from the end          | r = dcp(two); r.seek(-4, 2); r.tell()
seek beyond                | r = dcp(two); r.seek(9999); r.tell()
seek negative              | r = dcp(two); r.seek(4); r.seek(-1); r.tell()
seek is text               | r = dcp(two); r.seek('1')
whence unknown             | r = dcp(two); r.seek(0, 7)
names                      | r = dcp(two); [r.bucket, r.key, r.readable(), r.seekable()]
closed                     | r = dcp(two); r.closed; r.close(); r.closed; r.close()
read after close           | r = dcp(two); r.read(4); r.close(); r.read(4)
seek after close           | r = dcp(two); r.close(); r.seek(0)
tell after close           | r = dcp(two); r.close(); r.tell()
short body in an item      | r = dcp(two, missing=4); r.read(8); r.seek(16); r.read(8)
short body in a gap        | r = dcp([(0, 8), (900, 908)], missing=200); r.read(8); r.seek(900);
    r.read(8)
ranges twice               | r = dcp([(0, 8), (0, 8)]); r.read(8)
ranges overlap             | r = dcp([(0, 8), (4, 12)]); r.read(8); r.seek(4); r.read(8); log
ranges unsorted            | r = dcp([(16, 24), (0, 8)]); r.read(8)
ranges empty among others  | r = dcp([(0, 0), (0, 8), (8, 8)]); r.read(8); log
no ranges                  | dcp([])
only empty ranges          | dcp([(4, 4)])
range reversed             | dcp([(8, 4)])
range negative             | dcp([(-4, 4)])
no bucket                  | dcp(two, bucket='')
no key                     | dcp(two, key='')
"""
_CONSTRUCTOR = """
type strings               | kinds(make.sequential(), make.range_based(), make.range_based(0))
type strings, defaults     | kinds(opt(), make.default(), None)
type string of others      | kinds(print, partial(print))
type string of a class     | kinds(SequentialS3Reader)
builds sequential          | type(build(make.sequential())).__name__; log
builds range_based         | r = build(make.range_based(5)); type(r).__name__; r.read(2); log
gap negative               | opt(-1)
gap is text                | opt('8')
gap is nan                 | opt(float('nan'))
gap inf                    | type(opt(inf)).__name__
buffer negative            | make.range_based(-1)
buffer is text             | make.range_based('8')
metadata                   | reads(build(opt(), key='run/.metadata')); log
metadata of a rank         | reads(build(opt(), key='run/__3.metadata')); log
announced                  | c = announced(opt(), 'f', 'g'); reads(build(c)); log
announced, second file     | c = announced(opt(), 'f', 'g'); reads(build(c, key='run/g')); log
gap reaches the reader     | c = announced(opt(0), 'f'); reads(build(c)); log
not announced              | c = announced(opt(), 'f'); build(c, key='run/g')
other bucket               | c = announced(opt(), 'f'); build(c, bucket='other')
never announced            | build(opt())
error names the object     | 's3://bkt/run/f' in str(attempt(build, opt()))
error names the way out    | 'S3ReaderConstructor' in str(attempt(build, opt()))
announcing replaces        | c = announced(opt(), 'f'); c = announced(c, 'g'); build(c)
empty plan                 | c = announced(opt(), 'f'); c.set_item_ranges_by_file([], {}, path);
    build(c)
no storage data            | opt().set_item_ranges_by_file([Entry(storage_index=1)], {}, path)
base with a slash          | reads(build(announced(opt(), 'f', base='s3://bkt/run/')))
base is a bucket           | reads(build(announced(opt(), 'f', base='s3://bkt'), key='f'))
sub-folder                 | reads(build(announced(opt(), 'x/y/f'), key='run/x/y/f'))
pickles                    | kinds(again(make.sequential()), again(make.range_based(3)),
    again(opt()))
pickles with ranges        | reads(build(again(announced(opt(), 'f'))))
"""
_PREFIX = """
default                    | each(DefaultPrefixStrategy(), 12)
binary, count 5            | each(Binary(min_prefix_length=3, prefix_count=5), 7)
binary, epoch              | each(Binary(epoch_num=3, prefix_count=2), 3)
binary, epoch 0            | Binary(epoch_num=0)(0)
binary, positional         | Binary(1, 4, 2)(1)
binary, length grows       | last(Binary, 1, 2, 3, 4, 5, 8, 9, 16, 17)
hex                        | each(Hex(min_prefix_length=2, prefix_count=20), 21)
hex, length grows          | last(Hex, 1, 16, 17, 256, 257)
no process group           | Hex()(5); Binary()(5)
round robin                | each(Robin(['a', 'b/c']), 3)
round robin, epoch         | each(Robin(user_prefixes=['a'], epoch_num=2), 2)
round robin, epoch 0       | Robin(['a'], 0)(1)
round robin, none          | Robin([])
round robin, text          | Robin('ab')(0)
round robin, bad epoch     | Robin(['a'], '2')(0)
round robin, leads out     | Robin(['../a'])(0)
generate_prefix            | DefaultPrefixStrategy().generate_prefix(3); Hex().generate_prefix(3)
length 0                   | Binary(min_prefix_length=0)
count 0                    | Binary(prefix_count=0)
count is a float           | Binary(prefix_count=2.0)
epoch is text              | Binary(epoch_num='1')
documented wrong name      | Binary(min_prefix_len=10)
base class is abstract     | S3PrefixStrategyBase()
numeric by itself          | NumericPrefixStrategy(8, prefix_count=9, min_prefix_length=2)(8)
pickles                    | again(Hex(1, 2, 3))(2)
"""
_CONFIG = """
defaults of speed          | [config().throughput_target_gbps, config().part_size]
defaults of access         | [config().unsigned, config().force_path_style, config().profile]
default of attempts        | config().max_attempts
positional                 | config(5.0, 16777216, True, True, 3).max_attempts
frozen                     | setattr(config(), 'part_size', 8)
equal and hashable         | len({config(part_size=9000000), config(part_size=9000000)})
pickles                    | again(config(max_attempts=3)) == config(max_attempts=3)
part too small             | config(part_size=1024).part_size
no attempts                | config(max_attempts=0).max_attempts
requester pays             | config(requester_pays=True).requester_pays
"""
_STORAGE = """
good checkpoint ids        | valid(path, path + '/', 's3://bkt')
bad checkpoint ids         | valid('s3://', 's3:/bkt/k', '/tmp/x', 'https://bkt/k', '')
checkpoint id is a Path    | S3FileSystem.validate_checkpoint_id(Path(path))
concat_path                | S3FileSystem(region).concat_path(path, 'x')
concat_path, slash         | S3FileSystem(region).concat_path(path + '/', 'x/y')
init_path                  | S3FileSystem(region).init_path(path)
init_path, slash           | S3FileSystem(region).init_path(path + '/')
stream, mode               | S3FileSystem(region).create_stream(path, 'ab').__enter__()
stream, not S3             | S3FileSystem(region).create_stream('/tmp/x', 'rb').__enter__()
exists, not S3             | S3FileSystem(region).exists('/tmp/x')
mkdir                      | S3FileSystem(region).mkdir(path)
rename between buckets     | S3FileSystem(region).rename(path, 's3://other/k')
reader, keywords           | S3StorageReader(region=region, path=path).path
reader, positional         | S3StorageReader(region, path, config(), make.default()).checkpoint_id
reader, not S3             | S3StorageReader(region, '/tmp/x').path
reader, reset              | r = S3StorageReader(region, path); r.reset(path + '2'); r.path
reader pickles             | again(S3StorageReader(region, path)).path
writer, keywords           | S3StorageWriter(region=region, path=path, thread_count=2).thread_count
writer, torch's keywords   | S3StorageWriter(region, path, overwrite=False,
    single_file_per_rank=False).path
writer, positional         | S3StorageWriter(region, path, None, Hex(), 3).prefix_strategy(2)
writer, sync_files         | S3StorageWriter(region, path, sync_files=False).path
writer, unknown option     | S3StorageWriter(region, path, no_such=1)
writer, not S3             | S3StorageWriter(region, '/tmp/torch-s3dcp-absent').path
writer pickles             | again(S3StorageWriter(region, path)).path
"""

# Case (`*` for any text) | the first result that differs: the reference's | ours | why so.
_DIFFERENCES = """
*: [st]e* after close | 0 | "ValueError" | a closed file is refused, as io does
*: read after close | "0001" | "ValueError" | as above; the reference still returns data
*: readinto after close | 4 | "ValueError" | as above
*: whence is text | "TypeError" | "ValueError" |
    one error for every whence that is not known, as in the reference's dcp_optimized
config: defaults of speed | [10.0, 8388608] | [10.0, null] |
    parts of 8 to 32 MiB by the object's size, where nobody says otherwise
*: read1 | "OSError" | "0000" | part of io.BufferedIOBase, which both claim to be
sequential: no key | "SequentialS3Reader" | "ValueError" |
    refused for all readers; the reference checks it in dcp_optimized alone
range_based*: no key | "RangedS3Reader" | "ValueError" | as above
sequential: short body | "00000001..3950..85098609" | "EOFError" |
    a truncated body raises; the reference takes its end for the object's end
sequential: short body, size | "09750976..50..85098609" | "EOFError" | as above
range_based*: short body | "00000001..4000..~~~~~~~~" | "EOFError" |
    a truncated body raises; the reference reads zeros
range_based*: short body, size | "09750976..100..~~~~~~~~" | "EOFError" | as above
range_based*: readinto ints | "ValueError" | 8 |
    a buffer's size is counted in bytes, not in elements
dcp_optimized: readinto ints | "ValueError" | 4 |
    a buffer's size is counted in bytes, not in elements
sequential: seek to the end | ["HEAD"] | ["HEAD", "GET"] |
    a read at the end, after nothing but a HEAD, asks once; harmless
range_based buffer: size negative | "RangedS3Reader" | "ValueError" |
    refused where it is set; the reference takes it for 0
dcp_optimized: gap is nan | "DCPOptimizedS3Reader" | "ValueError" | nan means nothing
dcp_optimized: an item skipped | "ValueError" | "00080009" |
    more is allowed: a planner may leave items out
dcp_optimized: first item skipped | "ValueError" | "00040005" |
    more is allowed: a planner may leave items out
dcp_optimized: readinto nothing | ["GET 0-24"] | [] | no request for no bytes
dcp_optimized: readinto read-only | "AssertionError" | "TypeError" |
    the same error as of the other readers
dcp_optimized: seek negative | -1 | 4 | a refused seek leaves the position alone
dcp_optimized: short body in * | "ValueError" | "EOFError" |
    truncation has one error for all readers, with bucket, key and range
dcp_optimized: ranges twice | "ValueError" | "00000001" |
    one stored chunk may serve several ReadItems
dcp_optimized: ranges overlap | "ValueError" | "00000001" | as above
dcp_optimized: ranges unsorted | "ValueError" | "00000001" | the reader sorts
constructor: type string of a class | ["unknown"] | ["sequential"] |
    a bare class is what the registry knows by that name
constructor: gap is nan | "DCPOptimizedConstructor" | "ValueError" | nan means nothing
constructor: buffer negative | "partial" | "ValueError" |
    refused where it is set, not at the first read
constructor: buffer is text | "partial" | "TypeError" |
    refused where it is set, not at the first read
prefix: round robin, text | "a/__0_" | "ValueError" | a string is not a list of prefixes
prefix: round robin, bad epoch | "a/epoch_2/__0_" | "ValueError" |
    checked as in the numeric strategies
prefix: round robin, leads out | "../a/__0_" | "ValueError" | data must lie below the checkpoint
prefix: numeric by itself | "TypeError" | "01/__8_" |
    any base from 2 to 16; abstract in the reference
config: part too small | 1024 | "ValueError" | refused where it is set, not at the first request
config: no attempts | 0 | "ValueError" | refused where it is set
config: requester pays | "TypeError" | true | not in the reference's 1.5.0
storage: checkpoint id is a Path | true | false |
    a Path turns s3:// into s3:/; the reference accepts it and fails later
storage: init_path, slash | "s3://bkt/k/" | "s3://bkt/k" | one form for one place
storage: reader, not S3 | "/tmp/x" | "ValueError" |
    refused where it is set, not at the first request
storage: writer, not S3 | "/tmp/torch-s3dcp-absent" | "ValueError" | refused where it is set
storage: writer, sync_files | "TypeError" | "s3://bkt/k" |
    torch's option is accepted and means nothing
"""


def table(group: str, text: str) -> dict[str, str]:
    """The cases of one table by their full names."""
    lines = text.replace("\n    ", " ").strip().splitlines()
    pairs = [line.split(" | ", 1) for line in lines]
    return {f"{group}: {name.strip()}": case for name, case in pairs}


READERS = {
    "sequential": "new = sequential",
    "range_based": "new = ranged",
    "range_based 16": "new = partial(ranged, 16)",
    "range_based 0": "new = partial(ranged, 0)",
}
CASES = {
    **{
        name: f"{make}; {'' if 'new' in case else 'r = new(); '}{case}"
        for reader, make in READERS.items()
        for name, case in table(reader, _ANY).items()
    },
    **table("range_based buffer", _RANGED),
    **table("dcp_optimized", _DCP),
    **table("constructor", _CONSTRUCTOR),
    **table("prefix", _PREFIX),
    **table("config", _CONFIG),
    **table("storage", _STORAGE),
}


def differences() -> dict[str, tuple[Any, Any]]:
    """Case: what the reference gives, what is given here."""
    rows: dict[str, tuple[Any, Any]] = {}
    for line in _DIFFERENCES.replace("\n    ", " ").strip().splitlines():
        pattern, theirs, here, reason = line.split(" | ")
        assert reason
        matching = fnmatch.filter(CASES, pattern)
        assert matching, f"no case is called {pattern}"
        rows |= dict.fromkeys(matching, (json.loads(theirs), json.loads(here)))
    return rows


DIFFERENCES = differences()


@pytest.fixture(scope="module")
def outcomes() -> tuple[dict[str, Any], dict[str, Any]]:
    """Results of all cases: the reference's, and those here."""
    arguments = ["-W", "ignore", "-c"]
    cases = json.dumps(CASES)
    there = peer_main.run_python(peer_main.peers_python(), [*arguments, PROGRAM, cases])
    here = peer_main.run_python(sys.executable, [*arguments, peer_main.ported(PROGRAM), cases])
    assert (there["package"], here["package"]) == ("s3torchconnector", "torch_s3dcp")
    return there["results"], here["results"]


@pytest.mark.parametrize("case", CASES)
def test_same_as_the_reference_or_different_on_purpose(
    case: str, outcomes: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    theirs, here = outcomes[0][case], outcomes[1][case]
    assert theirs or here
    if case not in DIFFERENCES:
        assert here == theirs, CASES[case]
    else:
        pairs = zip_longest(theirs, here, fillvalue="nothing")
        first = next((pair for pair in pairs if pair[0] != pair[1]), None)
        assert first == DIFFERENCES[case], CASES[case]
