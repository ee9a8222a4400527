"""Where the members of an uncompressed tar lie, trusting nothing in it.

Reads the ustar headers (POSIX.1-1988) straight from the bytes: some ten times faster than `tarfile`, which matters for
the first look at millions of samples, and it says where a broken file breaks.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

BLOCK = 512
REGULAR = (b"0", b"\0")
FOLDER = b"5"
PAX = (b"x", b"g")
PAX_OVERRIDES = (b" path=", b" size=")
LAST_MEMBER = "json"
CHECKSUM_FIELD = slice(148, 156)
BLANK = b" " * 8
"""What stands in that field while the sum is taken."""
ADLER_BASE = 65521


class Buffer(Protocol):
    """Bytes that can be cut, as those of a string or of a mapped file."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


class BrokenTarError(ValueError):
    """A tar that cannot be read past the byte `offset`; `member` is the last name that could be read."""

    def __init__(self, member: str, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.member, self.offset = member, offset


class Member(NamedTuple):
    """One file inside a tar."""

    name: str
    header: int
    """byte its header begins at"""
    start: int
    """byte its content begins at"""
    size: int

    @property
    def end(self) -> int:
        """Byte the next header begins at."""
        return self.start + -(-self.size // BLOCK) * BLOCK


def walk_tar(buffer: Buffer, *, whole: bool) -> Iterator[Member]:
    """The regular files of a tar in order; folders are passed over.

    Args:
        buffer: the bytes.
        whole: whether the end mark of a whole tar must follow, as it does not in a cut-out sample.

    Raises:
        BrokenTarError: truncated, damaged, or of a kind that is not read.
    """
    offset, name = 0, "(first member)"
    while offset + BLOCK <= len(buffer):
        header = buffer[offset : offset + BLOCK]
        if not header.strip(b"\0"):
            return
        member, kind = read_header(header, offset, name)
        name = member.name
        lacking = member.start + member.size - len(buffer)
        if lacking > 0:
            raise BrokenTarError(name, offset, f"truncated: the file ends {lacking} bytes early")
        if kind in REGULAR:
            yield member
        elif kind in PAX:
            _check_pax(buffer[member.start : member.start + member.size], member)
        elif kind != FOLDER:
            raise BrokenTarError(name, offset, f"tar entries of type {kind!r} are not read; write plain ustar files")
        offset = member.end
    if whole or offset != len(buffer):
        raise BrokenTarError(name, offset, "truncated: the tar's end mark is missing")


def read_header(header: bytes, offset: int, previous: str) -> tuple[Member, bytes]:
    """One header block, and the entry's type flag.

    Raises:
        BrokenTarError: its checksum or its size is wrong.
    """
    try:
        checksum = int(header[CHECKSUM_FIELD].strip(b" \0"), 8)
        size = int(header[124:136].strip(b" \0") or b"0", 8)
        name = header[:100].split(b"\0", 1)[0].decode()
        # Long names alone have one.
        prefix = header[345:500].split(b"\0", 1)[0].decode() if header[345] else ""
    except ValueError as error:
        raise BrokenTarError(previous, offset, f"damaged: no tar header at byte {offset}, after this member") from error
    blank = header[: CHECKSUM_FIELD.start] + BLANK + header[CHECKSUM_FIELD.stop :]
    # Adler-32 counts the bytes' sum from 1 on in its low half (RFC 1950, section 8): many times as fast as sum().
    if (zlib.adler32(blank) & 0xFFFF) != (1 + checksum) % ADLER_BASE:
        raise BrokenTarError(previous, offset, f"damaged: wrong header checksum at byte {offset}, after this member")
    path = f"{prefix}/{name}" if prefix and header[257:262] == b"ustar" else name
    return Member(name=path, header=offset, start=offset + BLOCK, size=size), header[156:157]


def _check_pax(content: bytes, header: Member) -> None:
    if any(override in content for override in PAX_OVERRIDES):
        raise BrokenTarError(
            header.name, header.header, "a pax header gives a name or size; write plain ustar files with shorter names"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Adjacent members of one key: where a sample lies."""

    key: str
    start: int
    end: int
    members: dict[str, Member]
    """by name after the key's dot"""


def split_name(name: str) -> tuple[str, str]:
    """(key, rest): cut at the first dot of the last path part, as webdataset does; the rest is empty without a dot."""
    folder, slash, base = name.rpartition("/")
    key, _, rest = base.partition(".")
    return folder + slash + key, rest


def group_members(members: Iterator[Member]) -> Iterator[Group]:
    """Samples of a tar in order: a group ends where the key changes or a name comes again.

    Raises:
        BrokenTarError: where the members break; the group that was being gathered is given up unless it has its
            `json`, which is the last member of a sample.
    """
    key = ""
    gathered: dict[str, Member] = {}
    try:
        for member in members:
            found, rest = split_name(member.name)
            if gathered and (found != key or rest in gathered):
                yield _close_group(key, gathered)
                gathered = {}
            key = found
            gathered[rest] = member
    except BrokenTarError:
        if LAST_MEMBER in gathered:
            yield _close_group(key, gathered)
        raise
    if gathered:
        yield _close_group(key, gathered)


def _close_group(key: str, members: dict[str, Member]) -> Group:
    places = list(members.values())
    return Group(key=key, start=places[0].header, end=max(place.end for place in places), members=members)
