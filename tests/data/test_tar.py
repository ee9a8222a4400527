"""Tars read without trusting them."""

from __future__ import annotations

import io
import tarfile

import pytest

from flagscale_vla.data.tar import BrokenTarError, group_members, walk_tar

CONTENTS = {"a.json": b"{}", "folder/b.front.jpg": b"x" * 700, "folder/b.json": b"", "c.d.e": b"y" * 512}


def make_tar(form: int = tarfile.USTAR_FORMAT, contents: dict[str, bytes] = CONTENTS) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            # A fraction of a second makes the pax format write an extra header.
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 0
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(form: int) -> None:
    content = make_tar(form)
    found = {
        member.name: content[member.start : member.start + member.size] for member in walk_tar(content, whole=True)
    }
    assert found == CONTENTS


def test_adjacent_members_of_a_key_are_one_sample() -> None:
    groups = list(group_members(walk_tar(make_tar(), whole=True)))
    assert [(group.key, list(group.members)) for group in groups] == [
        ("a", ["json"]),
        ("folder/b", ["front.jpg", "json"]),
        ("c", ["d.e"]),
    ]


def test_a_cut_out_sample_can_be_read_alone() -> None:
    content = make_tar()
    group = list(group_members(walk_tar(content, whole=True)))[1]
    alone = list(group_members(walk_tar(content[group.start : group.end], whole=False)))
    assert [list(found.members) for found in alone] == [["front.jpg", "json"]]


def test_a_truncated_tar_gives_whole_samples_then_says_so() -> None:
    content = make_tar()
    end = list(walk_tar(content, whole=True))[-1].end
    for length in (100, 600, 1024, 1025, 1536, 2000, 3072, end - 1, end, end + 511):
        keys: list[str] = []
        groups = group_members(walk_tar(content[:length], whole=True))
        with pytest.raises(BrokenTarError, match=r"truncated: "):
            keys.extend(group.key for group in groups)
        assert keys == ["a", "folder/b"][: len(keys)]


def test_a_flipped_bit_in_a_header_is_found() -> None:
    content = bytearray(make_tar())
    content[512 + 10] ^= 1
    with pytest.raises(BrokenTarError, match="wrong header checksum at byte 512"):
        list(walk_tar(bytes(content), whole=True))


def test_a_name_too_long_for_ustar_is_refused() -> None:
    with pytest.raises(BrokenTarError, match="shorter names"):
        list(walk_tar(make_tar(tarfile.PAX_FORMAT, {"n" * 300: b""}), whole=True))
    with pytest.raises(BrokenTarError, match="not read"):
        list(walk_tar(make_tar(tarfile.GNU_FORMAT, {"n" * 300: b""}), whole=True))


def test_what_is_no_tar_is_refused() -> None:
    with pytest.raises(BrokenTarError, match="damaged: no tar header at byte 0"):
        list(walk_tar(b"not a tar" * 100, whole=True))
