"""What a fitted action tokenizer is worth: figures for `summary.json`, and the page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flagscale_vla.action.tokenizer import ActionTokenizer
from flagscale_vla.config.tokenizer_run import TokenizerRun
from flagscale_vla.data.actions import Chunks
from flagscale_vla.reports.outputs import SUMMARY, settings_yaml, write_summary
from flagscale_vla.reports.pages import REPORT, figure_uri, write_report
from flagscale_vla.train.report import METRICS
from flagscale_vla.train.tokenizer_codes import BookUse, least_used
from flagscale_vla.train.tokenizer_data import FitData
from flagscale_vla.train.tokenizer_errors import Errors, RobotErrors
from flagscale_vla.train.tokenizer_latency import Latency
from flagscale_vla.train.tokenizer_metrics import read_fit_lines
from flagscale_vla.train.tokenizer_peers import Curve, Peer
from flagscale_vla.train.tokenizer_pictures import draw_fit, draw_overlay, draw_rates, draw_robots, draw_use

logger = logging.getLogger(__name__)

FOLDER = "action_tokenizer"
"""Where in a run's output the tokenizer lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that was measured of one tokenizer."""

    tokenizer: ActionTokenizer
    errors: Errors
    """on held-out chunks of the robots it was fitted on"""
    left_out: Errors
    """on held-out chunks of the others"""
    curve: Curve
    peers: tuple[Peer, ...]
    books: tuple[BookUse, ...]
    """of training chunks; none where there are no codebooks"""
    latency: Latency
    peer_latency: Mapping[str, float]
    """microseconds there and back; none of a peer whose settings take turns"""


def summarize(run: TokenizerRun, data: FitData, found: Findings, seconds: float) -> dict[str, Any]:
    """The figures of `summary.json`; `per_robot` and `left_out` are nested, the rest is flat."""
    errors = found.errors
    same = {f"{kind}_{peer.name.lower()}_same_tokens": value for peer in found.peers for kind, value in _rates(peer)}
    robots = {name: _robot_figures(name, robot, found.peers) for name, robot in errors.robots.items()}
    return {
        "kind": found.tokenizer.kind,
        "steps": run.fit.steps if found.books else 0,
        "compression": errors.compression,
        "tokens_per_chunk": errors.tokens_per_chunk,
        "mae_normalized": errors.mae,
        **same,
        "codes_used_min": least_used(found.books),
        "codes_perplexity": {f"{book.kind}_{book.layer}": round(book.perplexity, 2) for book in found.books},
        "num_codes": found.tokenizer.num_codes,
        "token_entropy_bits": errors.entropy,
        "encode_decode_us": found.latency.both,
        "encode_us": found.latency.encode,
        "decode_us": found.latency.decode,
        "horizon": run.horizon,
        "chunks": len(data.train),
        "heldout_chunks": len(data.heldout),
        "quarantined": data.quarantined,
        "invalid": data.invalid,
        "seconds": round(seconds, 1),
        "processes": run.parallel.data,
        "mae_left_out": found.left_out.mae if found.left_out.robots else None,
        "per_robot": robots,
        "left_out": {name: _robot_figures(name, robot, ()) for name, robot in found.left_out.robots.items()},
    }


def _rates(peer: Peer) -> list[tuple[str, float]]:
    return [("mae", peer.mae), ("tokens", peer.tokens)]


def _robot_figures(name: str, robot: RobotErrors, peers: Sequence[Peer]) -> dict[str, Any]:
    return {
        "chunks": robot.chunks,
        "tokens_per_chunk": robot.tokens_per_chunk,
        "compression": robot.values / robot.tokens,
        "mae_normalized": robot.mae,
        **{f"mae_{peer.name.lower()}_same_tokens": peer.by_robot[name].mae for peer in peers},
        **{f"tokens_{peer.name.lower()}_same_tokens": peer.by_robot[name].tokens for peer in peers},
        **{f"mae_{peer.name.lower()}_own_tokens": own_rate(peer, name, robot) for peer in peers},
        **robot.real,
    }


def own_rate(peer: Peer, name: str, robot: RobotErrors) -> float | None:
    """A peer's error on a robot at as many tokens as this robot's strings have; None where its curve does not say."""
    return peer.curve.error_at(name, robot.tokens_per_chunk)


def conclude(run: TokenizerRun, data: FitData, found: Findings, seconds: float) -> None:
    """Write the page and then the summary, which says that the run is finished."""
    output = Path(run.output)
    summary = summarize(run, data, found, seconds)
    write_report(output, "tokenizer.html.j2", page_values(run, data, found, summary))
    write_summary(output, summary, device=f"cpu, {run.parallel.data} processes")
    log_table(found)
    tell_paths(output)


def tell_paths(output: Path) -> None:
    """Log where a run's results are."""
    for name, path in (("tokenizer", FOLDER), ("report", REPORT), ("summary", SUMMARY)):
        logger.info("%-10s %s", name, output / path)


def log_table(found: Findings) -> None:
    """Print the comparison."""
    errors = found.errors
    logger.info("%-10s %8s %8s %8s  %s", "", "tokens", "error", "ratio", "setting")
    logger.info("%-10s %8.2f %8.4f", found.tokenizer.kind, errors.tokens_per_chunk, errors.mae)
    for peer in found.peers:
        ratio = errors.mae / peer.mae
        logger.info("%-10s %8.2f %8.4f %8.2f  %s", peer.name, peer.tokens, peer.mae, ratio, peer.setting)
    for name, robot in errors.robots.items():
        real = in_words(robot)
        logger.info("%-20s %6.2f tokens, error %.4f, %s", name, robot.tokens_per_chunk, robot.mae, real)


def in_words(robot: RobotErrors) -> str:
    """Errors in real units, for a reader."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in robot.real.items())


def page_values(run: TokenizerRun, data: FitData, found: Findings, summary: Mapping[str, Any]) -> dict[str, object]:
    """What the template shows."""
    lines = read_fit_lines(Path(run.output) / METRICS)
    by_robot = {name: robot.mae for name, robot in found.errors.robots.items()}
    bars = {found.tokenizer.kind: by_robot} | {
        peer.name: {name: at.mae for name, at in peer.by_robot.items()} for peer in found.peers
    }
    return {
        "title": f"Action tokenizer {found.tokenizer.kind}",
        "horizon": run.horizon,
        "summary": summary,
        "remarks": remarks(data, found),
        "peers": [_own_row(found), *(_peer_row(peer, found) for peer in found.peers)],
        "peer_names": [peer.name for peer in found.peers],
        "rates": figure_uri(draw_rates([found.curve, *(peer.curve for peer in found.peers)])),
        "robots_picture": figure_uri(draw_robots(bars)),
        "robots": robot_rows(found.errors, found.peers),
        "left_out": robot_rows(found.left_out, ()),
        "books": found.books,
        "use": figure_uri(draw_use(found.books)) if found.books else "",
        "fit": figure_uri(draw_fit(lines)) if lines else "",
        "overlays": [*overlays(run, found, data.heldout), *overlays(run, found, data.left_out)],
        "config": settings_yaml(run),
    }


def remarks(data: FitData, found: Findings) -> list[str]:
    """Sentences about what a reader must know of the figures."""
    lines = [
        f"{peer.name} at this rate: {peer.setting}; it takes {peer.tokens:.2f} tokens a chunk." for peer in found.peers
    ]
    if data.quarantined:
        lines.append(f"{data.quarantined} samples were quarantined, {data.invalid} of them with invalid chunks.")
    return lines


def _own_row(found: Findings) -> dict[str, object]:
    errors = found.errors
    return {
        "name": found.tokenizer.kind,
        "tokens": errors.tokens_per_chunk,
        "mae": errors.mae,
        "ratio": 1.0,
        "entropy": errors.entropy,
        "microseconds": found.latency.both,
        "setting": "",
    }


def _peer_row(peer: Peer, found: Findings) -> dict[str, object]:
    return {
        "name": peer.name,
        "tokens": peer.tokens,
        "mae": peer.mae,
        "ratio": found.errors.mae / peer.mae,
        "entropy": peer.entropy,
        "microseconds": found.peer_latency.get(peer.name),
        "setting": peer.setting,
    }


def robot_rows(errors: Errors, peers: Sequence[Peer]) -> list[dict[str, object]]:
    """A row for each robot of the table."""
    return [
        {
            "name": name,
            "chunks": robot.chunks,
            "tokens": robot.tokens_per_chunk,
            "mae": robot.mae,
            "peers": {peer.name: peer.by_robot[name] for peer in peers},
            "own": {peer.name: own_rate(peer, name, robot) for peer in peers},
            "real": in_words(robot),
        }
        for name, robot in errors.robots.items()
    ]


def overlays(run: TokenizerRun, found: Findings, chunks: Chunks) -> list[dict[str, object]]:
    """Pictures of a few chunks of each robot: of those with the most steps, the ones with the smallest hashes."""
    entries = []
    for name, robot in chunks.robots.items():
        order = np.lexsort([robot.ranks, -robot.valid.sum(axis=1)])
        shown = robot.take(order[: run.report.overlays])
        codes = found.tokenizer.encode(name, np.asarray(shown.values), shown.starts)
        decoded = found.tokenizer.decode(name, codes, run.horizon, shown.starts)
        names = found.tokenizer.embodiments[name].action
        for key, given, back, valid, string in zip(shown.keys, shown.values, decoded, shown.valid, codes, strict=True):
            picture = figure_uri(draw_overlay(given, back, valid, names))
            entries.append({"robot": name, "key": key, "tokens": len(string), "picture": picture})
    return entries
