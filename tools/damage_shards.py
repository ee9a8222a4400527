"""Eight kinds of damage done to good shards, and the exact list of what a reader has to find.

    python tools/damage_shards.py SHARDS OUTPUT [--share 0.01]

OUTPUT becomes a copy of SHARDS in which that share of the training samples cannot be used, an eighth of it in each way:
a truncated tar, a bad JPEG, a decompression bomb, NaN in an action, an action of another shape, a missing member, the
members of two samples interleaved; and beside them an empty shard. OUTPUT/damage.json lists shard, member and words of
the reason of every fault.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

BOMB_SIDE = 60_000
"""Pixels along each side of a picture that would take 10 GB decoded."""
BASELINE = b"\xff\xc0"
"""Begins the header of a frame in a plain JPEG."""
KEPT_OF_PICTURE = 0.6
"""What a bad JPEG still has of its bytes."""
LIST = "damage.json"

Members = dict[str, bytes]
"""Of one sample, by name after the key."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One fault to be found."""

    kind: str
    shard: str
    member: str
    reason: str
    """words that the reason has"""


def bad_jpeg(shard: str, key: str, members: Members) -> Damage:
    """Cut the first picture short behind its header."""
    name = first_picture(members)
    members[name] = members[name][: int(len(members[name]) * KEPT_OF_PICTURE)]
    return Damage("bad JPEG", shard, f"{key}.{name}", "cannot be decoded")


def bomb(shard: str, key: str, members: Members) -> Damage:
    """Let the first picture's header claim billions of pixels (ITU-T T.81, B.2.2)."""
    name = first_picture(members)
    content = members[name]
    at = content.index(BASELINE)
    members[name] = content[: at + 5] + struct.pack(">HH", BOMB_SIDE, BOMB_SIDE) + content[at + 9 :]
    return Damage("decompression bomb", shard, f"{key}.{name}", "decompression bomb")


def nan_action(shard: str, key: str, members: Members) -> Damage:
    """One number of the action is none."""
    values = np.load(io.BytesIO(members["action.npy"]))
    values[0, 0] = np.nan
    members["action.npy"] = array_bytes(values)
    return Damage("NaN action", shard, key, "its action holds NaN or infinity")


def wrong_shape(shard: str, key: str, members: Members) -> Damage:
    """The action has one dim too many."""
    values = np.load(io.BytesIO(members["action.npy"]))
    members["action.npy"] = array_bytes(np.pad(values, [(0, 0), (0, 1)]))
    return Damage("wrong shape", shard, key, f"its action has {values.shape[1] + 1} dims")


def missing_key(shard: str, key: str, members: Members) -> Damage:
    """The state that the JSON names is not there."""
    del members["state.npy"]
    return Damage("missing key", shard, f"{key}.state.npy", "is missing")


IN_SAMPLES: Sequence[Callable[[str, str, Members], Damage]] = (bad_jpeg, bomb, nan_action, wrong_shape, missing_key)
KINDS = len(IN_SAMPLES) + 2
"""Those in samples, interleaved keys and samples lost behind a cut."""


def damage_folder(source: Path, output: Path, share: float) -> list[Damage]:
    """Copy shards with damage done to `share` of their training samples; what is to be found.

    Raises:
        ValueError: there are too few samples or shards for every kind.
    """
    shards = sorted(source.glob("train-*.tar"))
    counts = [len(keys_of(shard)) for shard in shards]
    each = round(sum(counts) * share / KINDS)
    if len(shards) < 2 or each < 1:
        raise ValueError(
            f"{source}: {sum(counts)} samples in {len(shards)} shards are too few for {share} of each kind"
        )
    shutil.copytree(source, output, ignore=shutil.ignore_patterns(".index", "train-*.tar"))
    # The last shard is cut; the others share the rest of the damage.
    places = spread(counts[:-1], (len(IN_SAMPLES) + 1) * each)
    found = []
    for shard, own in zip(shards[:-1], places, strict=True):
        found += damage_shard(shard, output / shard.name, own)
    found.append(truncate(shards[-1], output / shards[-1].name, each))
    empty = output / f"train-{int(shards[-1].stem[6:]) + 1:06d}.tar"
    empty.touch()
    found.append(Damage("empty shard", empty.name, "(first member)", "the tar is empty: 0 bytes"))
    (output / LIST).write_text(json.dumps([asdict(damage) for damage in found], indent=1) + "\n")
    return found


def spread(counts: Sequence[int], total: int) -> Iterator[dict[int, int]]:
    """By shard, which samples are damaged and how: the number of the sample to that of the damage.

    Two neighbours are interleaved, so damage keeps a distance of four samples.
    """
    step = sum(counts) // total
    begin = given = 0
    for count in counts:
        own = {}
        while given < total and given * step < begin + count - 2:
            own[given * step - begin] = given
            given += 1
        yield {max(0, place): number for place, number in own.items()}
        begin += count


def damage_shard(source: Path, output: Path, places: dict[int, int]) -> list[Damage]:
    """Write one shard anew with damage at some samples."""
    samples = list(read_samples(source))
    found: list[Damage] = []
    members: list[tuple[str, bytes]] = []
    number = 0
    while number < len(samples):
        key, own = samples[number]
        kind = places.get(number, -1) % (len(IN_SAMPLES) + 1) if number in places else -1
        if kind == len(IN_SAMPLES):
            pair = samples[number : number + 2]
            members += interleaved(pair)
            found += [Damage("interleaved keys", output.name, key, "do not lie together") for key, _ in pair]
            number += 2
            continue
        if kind >= 0:
            found.append(IN_SAMPLES[kind](output.name, key, own))
        members += [(f"{key}.{name}", content) for name, content in own.items()]
        number += 1
    write_tar(output, members)
    return found


def truncate(source: Path, output: Path, lost: int) -> Damage:
    """Copy a shard without the last `lost` samples, cut in the middle of the first of their pictures."""
    with tarfile.open(source) as tar:
        infos = tar.getmembers()
    first = keys_of(source)[-lost]
    cut = next(info for info in infos if info.name.startswith(f"{first}.") and info.size > tarfile.BLOCKSIZE)
    output.write_bytes(source.read_bytes()[: cut.offset_data + cut.size // 2])
    return Damage("truncated tar", output.name, cut.name, f"the file ends {cut.size - cut.size // 2} bytes early")


def interleaved(samples: Sequence[tuple[str, Members]]) -> list[tuple[str, bytes]]:
    """Members of several samples in turns."""
    rows = [[(f"{key}.{name}", content) for name, content in members.items()] for key, members in samples]
    return [member for member in chain(*zip_longest(*rows)) if member is not None]


def first_picture(members: Members) -> str:
    """Name of the first picture of a sample."""
    return next(name for name in members if name.endswith((".jpg", ".png")))


def array_bytes(values: np.ndarray) -> bytes:
    """An array as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def keys_of(shard: Path) -> list[str]:
    """Keys of the samples, in order."""
    with tarfile.open(shard) as tar:
        return list(dict.fromkeys(name.partition(".")[0] for name in tar.getnames()))


def read_samples(shard: Path) -> Iterator[tuple[str, Members]]:
    """Key and members of each sample."""
    samples: dict[str, Members] = {}
    with tarfile.open(shard) as tar:
        for info in tar:
            key, _, name = info.name.partition(".")
            content = tar.extractfile(info)
            assert content is not None, info.name
            samples.setdefault(key, {})[name] = content.read()
    yield from samples.items()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """A plain tar of these members."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def main() -> None:
    """Damage a folder and count what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--share", type=float, default=0.01)
    options = parser.parse_args()
    found = damage_folder(options.shards, options.output, options.share)
    for kind in dict.fromkeys(damage.kind for damage in found):
        print(f"{sum(damage.kind == kind for damage in found):6d} {kind}")


if __name__ == "__main__":
    main()
