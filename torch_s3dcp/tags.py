"""Tags of objects: a value, checked against S3's limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .exceptions import ConfigurationError

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
_MOST_TAGS = 10
_LONGEST_TAG = {"key": 128, "value": 256}


class Tags(Mapping[str, str]):
    """Tags that nobody can change any more: hashable, equal to any mapping of the same tags.

    Raises:
        ConfigurationError: S3 would not take them.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = dict(tags)
        if len(self._tags) > _MOST_TAGS:
            raise ConfigurationError(
                f"tags: S3 takes at most {_MOST_TAGS} for an object, got {len(self._tags)}"
            )
        for key, value in self._tags.items():
            _check_tag("key", key)
            _check_tag("value", value)
            if not key or key.lower().startswith("aws:"):
                raise ConfigurationError(
                    f"tags: a key must not be empty nor begin with 'aws:', got {key!r}"
                )

    def __getitem__(self, key: str) -> str:
        return self._tags[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tags)

    def __len__(self) -> int:
        return len(self._tags)

    def __hash__(self) -> int:
        return hash(frozenset(self._tags.items()))

    def __repr__(self) -> str:
        return repr(self._tags)


def _check_tag(role: str, text: str) -> None:
    if not isinstance(text, str):
        raise ConfigurationError(f"tags: a {role} must be a str, not a {type(text).__name__}")
    try:
        # S3 counts as UTF-16 does.
        length = len(text.encode("utf-16-le")) // 2
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"tags: the {role} {text!r} is no valid Unicode") from error
    if length > _LONGEST_TAG[role]:
        raise ConfigurationError(
            f"tags: a {role} has at most {_LONGEST_TAG[role]} characters in UTF-16, got {length}: "
            f"{text[:32]!r}..."
        )
