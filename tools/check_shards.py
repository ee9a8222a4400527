"""Hold every sample of a folder of shards against every rule, and print what does not hold.

    python tools/check_shards.py DIR [--processes 2] [--json FILE] [--headers] [--cache runs/cache]

DIR may be a URL. Prints a line for each rule: how many samples (shards, episodes) it was held against, how many faults
were found, and the first places. Ranges are those of `statistics.json` beside the shards, or of the training shards
themselves. Ends with 1 where anything is wrong, and with 2 where nothing could be checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from flagscale_vla.config.data import CacheConfig
from flagscale_vla.data.check import WORDS, Check, check_folder
from flagscale_vla.data.store import open_store

SHOWN = 3
"""Places of each rule."""
CACHE_BYTES = 8 << 30


def main() -> None:
    """Read the command line, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write everything that was found into this file")
    parser.add_argument(
        "--headers", action="store_true", help="read only the headers of pictures: several times faster"
    )
    parser.add_argument("--cache", default="runs/cache", help="folder for blocks of remote shards")
    arguments = parser.parse_args()
    try:
        store = open_store(arguments.folder, CacheConfig(folder=arguments.cache, max_bytes=CACHE_BYTES))
        check = check_folder(store, processes=arguments.processes, decode=not arguments.headers)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    if arguments.json:
        arguments.json.write_text(json.dumps(check.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(table(check)))
    sys.exit(1 if check.findings else 0)


def table(check: Check) -> list[str]:
    """Lines for people."""
    lines = [f"{check.samples} samples in {check.shards} shards of {check.url}", ""]
    lines.append(f"{'rule':<12}{'checked':>10}{'faults':>10}   what it says")
    for rule, words in WORDS.items():
        faults = [finding.fault for finding in check.findings if finding.rule == rule]
        lines.append(f"{rule:<12}{check.checked.get(rule, 0):>10}{len(faults):>10}   {words}")
        lines += [f"{'':<35}{fault}" for fault in faults[:SHOWN]]
        if len(faults) > SHOWN:
            lines.append(f"{'':<35}and {len(faults) - SHOWN} more")
    return [*lines, "", "clean" if not check.findings else f"{len(check.findings)} faults"]


if __name__ == "__main__":
    main()
