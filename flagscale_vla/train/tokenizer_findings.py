"""Everything that is measured of a fitted tokenizer, gathered for its report."""

from __future__ import annotations

import logging

from flagscale_vla.action.omnisat import OmniSat
from flagscale_vla.action.tokenizer import ActionTokenizer
from flagscale_vla.config.tokenizer_run import TokenizerRun
from flagscale_vla.train.tokenizer_codes import books_of
from flagscale_vla.train.tokenizer_data import FitData
from flagscale_vla.train.tokenizer_errors import measure
from flagscale_vla.train.tokenizer_latency import measure_latency
from flagscale_vla.train.tokenizer_peers import Curve, Peers, make_curve
from flagscale_vla.train.tokenizer_report import Findings

logger = logging.getLogger(__name__)


def find(run: TokenizerRun, data: FitData, tokenizer: ActionTokenizer) -> Findings:
    """Measure on held-out chunks, beside the other tokenizers at the same rate; code use is of training chunks."""
    errors = measure(tokenizer, data.heldout)
    logger.info("held out: %.4f at %.2f tokens a chunk", errors.mae, errors.tokens_per_chunk)
    peers = Peers(run, data)
    found = peers.at(errors.tokens_per_chunk)
    return Findings(
        tokenizer=tokenizer,
        errors=errors,
        left_out=measure(tokenizer, data.left_out),
        curve=own_curve(run, data, tokenizer, peers),
        peers=found,
        books=books_of(tokenizer, data.train) if isinstance(tokenizer, OmniSat) else (),
        latency=measure_latency(tokenizer, data.heldout),
        peer_latency={peer.name: measure_latency(peer.tokenizer, data.heldout).both for peer in found},
    )


def own_curve(run: TokenizerRun, data: FitData, tokenizer: ActionTokenizer, peers: Peers) -> Curve:
    """Error by rate: of OmniSAT with its first layers alone, of others at the settings that are asked for."""
    if not isinstance(tokenizer, OmniSat):
        return peers.curve(run.kind)
    most = max(tokenizer.layers(kind) for kind in tokenizer.kinds)
    errors = {count: measure(tokenizer.with_layers(count), data.heldout) for count in range(1, most + 1)}
    settings = {f"{count} layer{'s' if count > 1 else ''}": found for count, found in errors.items()}
    return make_curve(tokenizer.kind, settings)
