"""Prefix strategies against int(): a pattern read backwards is its number."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
import torch.distributed
from hypothesis import given
from hypothesis import strategies as st

from torch_s3dcp import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
)
from torch_s3dcp.exceptions import ConfigurationError
from torch_s3dcp.uri import parse_uri


def patterns(strategy: NumericPrefixStrategy, count: int) -> list[str]:
    """The first folder of the prefixes of ranks 0 to count."""
    return [strategy(rank).split("/")[0] for rank in range(count)]


def test_the_example_of_the_contract() -> None:
    strategy = BinaryPrefixStrategy(min_prefix_length=3, prefix_count=5)
    assert patterns(strategy, 5) == ["000", "100", "010", "110", "001"]
    assert strategy(4) == "001/__4_"
    assert strategy(5) == "000/__5_"


@pytest.mark.parametrize(
    ("strategy", "rank", "prefix"),
    [
        (DefaultPrefixStrategy(), 0, "__0_"),
        (DefaultPrefixStrategy(), 1023, "__1023_"),
        (BinaryPrefixStrategy(prefix_count=4), 1, "1000000000/__1_"),
        (BinaryPrefixStrategy(7, 2, 4), 3, "11/epoch_7/__3_"),
        (BinaryPrefixStrategy(0, 1, 2), 1, "1/epoch_0/__1_"),
        (HexPrefixStrategy(prefix_count=300), 0x12B, "b210000000/__299_"),
        (HexPrefixStrategy(3, 2, 0x101), 0x100, "001/epoch_3/__256_"),
        (NumericPrefixStrategy(10, None, 3, 200), 123, "321/__123_"),
        (NumericPrefixStrategy(10, None, 1, 10), 13, "3/__13_"),
        (RoundRobinPrefixStrategy(["a", "b/c"]), 0, "a/__0_"),
        (RoundRobinPrefixStrategy(["a", "b/c"]), 3, "b/c/__3_"),
        (RoundRobinPrefixStrategy(("é ?#",), 12), 5, "é ?#/epoch_12/__5_"),
    ],
)
def test_examples(strategy: S3PrefixStrategyBase, rank: int, prefix: str) -> None:
    assert strategy(rank) == prefix
    assert strategy.generate_prefix(rank) == prefix


BASES = st.integers(2, 16)
COUNTS = st.integers(1, 600)
LENGTHS = st.integers(1, 12)
EPOCHS = st.one_of(st.none(), st.integers(0, 10**6))


@given(BASES, EPOCHS, LENGTHS, COUNTS)
def test_patterns_are_the_numbers_backwards(
    base: int, epoch: int | None, length: int, count: int
) -> None:
    found = patterns(NumericPrefixStrategy(base, epoch, length, count), count)
    assert [int(pattern[::-1], base) for pattern in found] == list(range(count))
    assert len(set(found)) == count
    (width,) = {len(pattern) for pattern in found}
    assert width >= length
    assert width == length or base ** (width - 1) < count, "longer than needed"
    assert all(pattern == pattern.lower() for pattern in found)


@given(BASES, EPOCHS, LENGTHS, COUNTS, st.integers(0, 10**6))
def test_ranks_take_the_patterns_in_turn(
    base: int, epoch: int | None, length: int, count: int, rank: int
) -> None:
    strategy = NumericPrefixStrategy(base, epoch, length, count)
    folder = "" if epoch is None else f"epoch_{epoch}/"
    assert strategy(rank) == strategy(rank % count).split("/")[0] + f"/{folder}__{rank}_"


@given(EPOCHS, LENGTHS, COUNTS, st.integers(0, 5000))
def test_the_named_bases(epoch: int | None, length: int, count: int, rank: int) -> None:
    pairs = [(BinaryPrefixStrategy, 2), (HexPrefixStrategy, 16)]
    for cls, base in pairs:
        same = NumericPrefixStrategy(base, epoch, length, count)
        assert cls(epoch, length, count)(rank) == same(rank)


NAMES = st.text(alphabet="abc/._é", min_size=1, max_size=8).filter(
    lambda name: not name.startswith("/") and ".." not in name.split("/")
)


@given(st.lists(NAMES, min_size=1, max_size=6), EPOCHS, st.integers(0, 100))
def test_round_robin_goes_round(names: list[str], epoch: int | None, rank: int) -> None:
    strategy = RoundRobinPrefixStrategy(names, epoch)
    folder = "" if epoch is None else f"epoch_{epoch}/"
    assert strategy(rank) == f"{names[rank % len(names)]}/{folder}__{rank}_"


def test_the_users_list_is_not_kept() -> None:
    names = ["a", "b"]
    strategy = RoundRobinPrefixStrategy(names)
    names.clear()
    assert [strategy(rank) for rank in range(3)] == ["a/__0_", "b/__1_", "a/__2_"]


STRATEGIES = [
    DefaultPrefixStrategy(),
    NumericPrefixStrategy(7, prefix_count=9),
    BinaryPrefixStrategy(4, 2, 6),
    HexPrefixStrategy(prefix_count=70),
    RoundRobinPrefixStrategy(["x", "y", "z"], 3),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_no_two_ranks_share_a_prefix(strategy: S3PrefixStrategyBase) -> None:
    prefixes = [strategy(rank) for rank in range(500)]
    assert len(set(prefixes)) == 500
    # A file's number follows: __1_1 of rank 1 must not be __11 of another.
    ordered = sorted(prefixes)
    assert not any(b.startswith(a) for a, b in pairwise(ordered))
    assert all(prefix == parse_uri(f"s3://bucket/{prefix}").key for prefix in prefixes)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_strategies_reach_other_processes(strategy: S3PrefixStrategyBase) -> None:
    for twin in (pickle.loads(pickle.dumps(strategy)), copy.deepcopy(strategy)):
        assert type(twin) is type(strategy)
        assert [twin(rank) for rank in range(100)] == [strategy(rank) for rank in range(100)]


def test_there_are_as_many_patterns_as_ranks_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(patterns(BinaryPrefixStrategy(), 20))) == 1
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 5)
    assert len(set(patterns(BinaryPrefixStrategy(), 20))) == 5
    assert len(set(patterns(BinaryPrefixStrategy(prefix_count=3), 20))) == 3


@pytest.mark.parametrize("base", [0, 1, 17, -2, 2.5, True, "2", None])
def test_bad_bases(base: int) -> None:
    with pytest.raises(ConfigurationError, match="base must be between 2 and 16"):
        NumericPrefixStrategy(base, prefix_count=3)


@pytest.mark.parametrize("cls", [BinaryPrefixStrategy, HexPrefixStrategy])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, False])
@pytest.mark.parametrize("name", ["min_prefix_length", "prefix_count"])
def test_bad_counts_and_lengths(cls: type, name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name}.*{value!r}"):
        cls(**{"prefix_count": 4, name: value})


@pytest.mark.parametrize("epoch", ["3", 1.0, True, [1]])
def test_bad_epochs(epoch: int) -> None:
    with pytest.raises(ConfigurationError, match="epoch_num"):
        BinaryPrefixStrategy(epoch, prefix_count=2)
    with pytest.raises(ValueError, match="epoch_num"):
        RoundRobinPrefixStrategy(["a"], epoch)


@pytest.mark.parametrize("names", [[], (), "abc", ""])
def test_bad_lists_of_prefixes(names: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="list of at least one"):
        RoundRobinPrefixStrategy(names)


@pytest.mark.parametrize("name", ["", "/a", "..", "a/../b", "s3://other/x", 5, None, b"a"])
def test_a_prefix_that_no_load_would_accept(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"below the checkpoint"):
        RoundRobinPrefixStrategy(["fine", name])


def test_a_strategy_of_ones_own() -> None:
    class ByParity(S3PrefixStrategyBase):
        def generate_prefix(self, rank: int) -> str:
            return f"{'odd' if rank % 2 else 'even'}/{rank}_"

    assert ByParity()(3) == "odd/3_"
    with pytest.raises(TypeError, match="abstract"):
        S3PrefixStrategyBase()  # type: ignore[abstract]
