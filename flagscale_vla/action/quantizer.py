"""Residual quantisation: each layer's codebook takes up what the layers before it have left (Zeghidour et al., 2021).

A codebook is the moving average of what its codes were chosen for (van den Oord et al., 2017, appendix A.1): that is
the codes' way to the encoder. The encoder's way to the codes is the commitment in the fitter's loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from flagscale_vla.action.keys import SumRanks, draw_rows, mix

ROWS = 512
"""Rows compared with a codebook at once: the scores then stay in the processor's caches."""
BLOCK = 32
"""Codes of which the best is found first, where their number can be divided so."""
FRESH = 0.5
"""Weight that a code drawn anew begins with, as a share of the mean."""


class ResidualQuantizer:
    """Codebooks of L layers with K codes each, in a space of d numbers.

    Args:
        books: f32[L, K, d].
    """

    def __init__(self, books: Tensor) -> None:
        self.books = books

    @property
    def books(self) -> Tensor:
        """f32[L, K, d]."""
        return self._books

    @books.setter
    def books(self, books: Tensor) -> None:
        self._books = books
        # |x - c|^2 is smallest where x c - |c|^2 / 2 is largest; one product of (x, 1) gives both terms.
        halves = -books.square().sum(dim=2, keepdim=True) / 2
        self._directions = torch.cat([books, halves], dim=2).transpose(1, 2).contiguous()
        self._taken = pad(books, (0, 1))

    @property
    def layers(self) -> int:
        """L."""
        return len(self._books)

    def encode(self, latents: Tensor, layers: int, beam: int = 1) -> Tensor:
        """Codes of the first `layers` layers, i64[n, layers], of latents f32[n, d].

        With `beam` 1 each layer takes its nearest code. With more, that many of the best beginnings are kept from layer
        to layer, and what is nearest in the end wins.
        """
        if beam == 1:
            return torch.cat([self._nearest(part, layers) for part in latents.split(ROWS)])
        return self.candidates(latents, layers, beam, 1)[:, 0]

    def candidates(self, latents: Tensor, layers: int, beam: int, endings: int) -> Tensor:
        """The `endings` best strings that a search with `beam` comes to, i64[n, m, layers], nearest first.

        There are fewer, m, where there are not that many strings.
        """
        if not len(latents):
            return torch.zeros(0, endings, layers, dtype=torch.int64)
        # Memory that is asked for anew costs as much as the search itself where the allocator gave it back in between.
        count = max(1, ROWS // beam)
        room = latents.new_empty(count * beam, self._books.shape[1])
        return torch.cat([self._search(part, layers, beam, endings, room) for part in latents.split(count)])

    def _nearest(self, latents: Tensor, layers: int) -> Tensor:
        rest, codes = pad(latents, (0, 1), value=1.0), torch.empty(len(latents), layers, dtype=torch.int64)
        for layer in range(layers):
            codes[:, layer] = (rest @ self._directions[layer]).max(dim=1).indices
            rest -= self._taken[layer].index_select(0, codes[:, layer])
        return codes

    def _search(self, latents: Tensor, layers: int, beam: int, endings: int, room: Tensor) -> Tensor:
        """Beam search. Scores are halves of what the squared distance has fallen by; `room` is for them."""
        rest, gains = pad(latents, (0, 1), value=1.0), latents.new_zeros(len(latents), 1)
        codes = torch.zeros(len(latents), 0, dtype=torch.int64)
        for layer in range(layers):
            last = layer + 1 == layers
            scores = torch.mm(rest, self._directions[layer], out=room[: len(rest)])
            gains, owner, chosen = _best(scores, gains, endings if last else beam)
            codes = torch.cat([codes.index_select(0, owner), chosen[:, None]], dim=1)
            if not last:
                rest = rest.index_select(0, owner) - self._taken[layer].index_select(0, chosen)
        return codes.view(len(latents), -1, layers)

    def chosen(self, codes: Tensor) -> Tensor:
        """What each code stands for, f32[layers, n, d], of codes i64[n, layers] from the first layer on."""
        return torch.stack([book[code] for book, code in zip(self._books, codes.T, strict=False)])

    def decode(self, codes: Tensor) -> Tensor:
        """The sum of what codes i64[n, layers] stand for, f32[n, d]; any number of layers from the first on."""
        total = self._books[0].index_select(0, codes[:, 0])
        for layer in range(1, codes.shape[1]):
            total += self._books[layer].index_select(0, codes[:, layer])
        return total


def _best(scores: Tensor, gains: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best ways on from strings, m = `wanted` of each row or all that there are, best first.

    The m best are within the m blocks of codes with the best peaks, and peaks are found much faster than places.

    Args:
        scores: f32[n * b, K], of each code behind each string.
        gains: f32[n, b], of the strings.

    Returns:
        Gains f32[n, m], and for each of them the row of `scores`, i64[n * m], and the code, i64[n * m].
    """
    count, strings = gains.shape
    block = math.gcd(scores.shape[1], BLOCK)
    blocks = scores.view(-1, block)
    each = len(blocks) // count
    peaks = (blocks.amax(dim=1).view(count, strings, -1) + gains[..., None]).view(count, each)
    best = _largest(peaks, min(wanted, each))[1] + torch.arange(0, len(blocks), each)[:, None]
    owners = best // (each // strings)
    ways = blocks.index_select(0, best.flatten()).view(count, -1, block) + gains.flatten()[owners][..., None]
    found, place = _largest(ways.flatten(1), min(wanted, ways.shape[1] * block))
    within = place // block
    chosen = best.gather(1, within) % (each // strings) * block + place % block
    return found, owners.gather(1, within).flatten(), chosen.flatten()


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of f32[n, K], descending, and their places; `scores` is spoilt.

    For a few of many this is faster than `topk`.
    """
    values, places = [], []
    for _ in range(count):
        value, place = scores.max(dim=1, keepdim=True)
        scores.scatter_(1, place, -torch.inf)
        values.append(value)
        places.append(place)
    return torch.cat(values, dim=1), torch.cat(places, dim=1)


class Averages:
    """The moving averages behind codebooks: how often each code is chosen, f32[L, K], and the sum of what for.

    How often by chunks as they are, not turned, is counted apart: a code that no such chunk has is dead too.
    """

    def __init__(self, quantizer: ResidualQuantizer, decay: float) -> None:
        self.quantizer, self.decay = quantizer, decay
        self.counts = torch.zeros(quantizer.books.shape[:2])
        self.sums = torch.zeros_like(quantizer.books)
        self.plain = torch.zeros_like(self.counts)

    def begin(self, latents: Tensor, weights: Tensor, *, rounds: int, seed: int) -> None:
        """Start every layer by k-means on what the layers before it leave of f32[n, d]."""
        rest, books, counts = latents.clone(), self.quantizer.books.clone(), []
        for layer in range(len(books)):
            generator = torch.Generator().manual_seed(seed * 1009 + layer)
            books[layer], count = kmeans(rest, weights, books.shape[1], rounds, generator)
            counts.append(count / weights.sum())
            rest -= books[layer][nearest(rest, books[layer])]
        self.counts, self.plain = torch.stack(counts), torch.stack(counts)
        self.sums = books * self.counts[..., None]
        self.quantizer.books = books

    def tally(self, latents: Tensor, codes: Tensor, chosen: Tensor, weights: Tensor, plain: Tensor) -> Tensor:
        """What a batch adds, f32[L, K, d + 2]: the weighted sum of what each code was chosen for, and the weights, of
        all and of the plain.

        Args:
            latents: f32[n, d].
            codes: i64[n, L].
            chosen: what the codes stand for, f32[L, n, d].
            weights: f32[n].
            plain: bool[n], false for chunks that are turned.
        """
        layers, size, width = self.sums.shape
        added = torch.zeros(layers, size, width + 2)
        for layer, rest in enumerate(rests(latents, chosen)):
            rows = torch.cat([rest, torch.ones(len(rest), 1), plain[:, None]], dim=1) * weights[:, None]
            added[layer].index_add_(0, codes[:, layer], rows)
        return added

    def update(self, added: Tensor, weight: Tensor) -> None:
        """Move on by what `tally` gave, summed over ranks, with `weight` the sum of all chunks' weights."""
        added = added / weight.clamp(min=1e-12)
        self.sums.lerp_(added[..., :-2], 1 - self.decay)
        self.counts.lerp_(added[..., -2], 1 - self.decay)
        self.plain.lerp_(added[..., -1], 1 - self.decay)
        self._set_books()

    def _set_books(self) -> None:
        counts = self.counts[..., None]
        # A code that is hardly ever chosen stays where it is until it is drawn anew.
        self.quantizer.books = torch.where(counts > 1e-8, self.sums / counts.clamp(min=1e-8), self.quantizer.books)

    def dead(self, share: float) -> Tensor:
        """Codes chosen less often than `share` of the mean, by all chunks or by the plain, bool[L, K]."""
        return (self.counts < share * self.counts.mean(dim=1, keepdim=True)) | (
            self.plain < share * self.plain.mean(dim=1, keepdim=True)
        )

    def revive(self, latents: Tensor, chosen: Tensor, keys: Tensor, dead_share: float, sum_ranks: SumRanks) -> int:
        """Draw dead codes anew, out of a batch.

        Args:
            latents: f32[n, d], of plain chunks.
            chosen: f32[L, n, d].
            keys: i64[n], mixed for this step.
            dead_share: see `dead`.
            sum_ranks: adds up over ranks.

        Returns:
            How many codes were dead.
        """
        mean, dead = self.counts.mean(dim=1), self.dead(dead_share)
        plain = self.plain.mean(dim=1)
        for layer, rest in enumerate(rests(latents, chosen)):
            places = dead[layer].nonzero()[:, 0]
            if not len(places):
                continue
            rows, found = draw_rows(rest, mix(keys, layer), len(places), sum_ranks)
            self.counts[layer, places[found]] = FRESH * mean[layer]
            self.plain[layer, places[found]] = FRESH * plain[layer]
            self.sums[layer, places[found]] = FRESH * mean[layer] * rows[found]
        self._set_books()
        return int(dead.sum())


def rests(latents: Tensor, chosen: Tensor) -> list[Tensor]:
    """What each layer has to quantise, f32[n, d] each: the latents less what the layers before it chose."""
    found = [latents]
    for values in chosen[:-1]:
        found.append(found[-1] - values)
    return found


def nearest(rows: Tensor, book: Tensor) -> Tensor:
    """The code i64[n] of f32[K, d] that is nearest to each row of f32[n, d]."""
    return ResidualQuantizer(book[None]).encode(rows, 1)[:, 0]


def kmeans(rows: Tensor, weights: Tensor, size: int, rounds: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from rows drawn at random; a code that nothing is nearest to is drawn again.

    Returns:
        Codes f32[size, d], and the weight of the rows nearest to each, f32[size].
    """
    codes = rows[torch.randint(len(rows), (size,), generator=generator)]
    codes[: len(rows)] = rows[torch.randperm(len(rows), generator=generator)[:size]]
    total = torch.zeros(size)
    for _ in range(rounds):
        chosen = nearest(rows, codes)
        total = torch.zeros(size).index_add_(0, chosen, weights)
        sums = torch.zeros_like(codes).index_add_(0, chosen, rows * weights[:, None])
        fresh = rows[torch.randint(len(rows), (size,), generator=generator)]
        codes = torch.where(total[:, None] > 0, sums / total.clamp(min=1e-12)[:, None], fresh)
    return codes, total
