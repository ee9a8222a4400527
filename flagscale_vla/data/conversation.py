"""A sample's segments laid out as EO-1's conversation (EO-1 report, section 3; its dataset.py and chat template).

    <|im_start|>system\n PROMPT <|im_end|>\n
    <|im_start|>user\n <|vision_start|><|image_pad|>*n<|vision_end|> <|state_start|><|state_pad|><|state_end|> TEXT <|vla|> <|im_end|>\n
    <|im_start|>assistant\n <|action_start|><|action_pad|>*H<|action_end|> <|im_end|>\n

Segments keep their order inside a turn. `<|vla|>` ends a user's turn that is answered with an action. Trained on are
the content of every assistant's turn and its `<|im_end|>\n`, but not the action placeholders, which the flow loss covers.
Text of the assistant that is not supervised is context alone, and so is the end of a turn that ends with such text.

A film is laid out as a picture is, with `<|video_pad|>`.

Where a model answers in codes, these stand in place of the placeholders; where it answers with both, before them:

    <|action_start|> CODES <|action_end|>
    <|action_start|> CODES <|action_pad|>*H <|action_end|>
"""  # noqa: E501 - a turn is one line

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.action.vocabulary import Vocabulary
from flagscale_vla.config.data import Answer
from flagscale_vla.data.tokenizer import TextEncoder
from flagscale_vla.records import Action, Image, Segment, Text, Video

UNSUPERVISED = -100


def is_assistants(segment: Segment) -> bool:
    """Whether a segment belongs to the assistant's turn: actions, supervised text, and text that is said to be its."""
    return isinstance(segment, Action) or (isinstance(segment, Text) and (segment.supervised or segment.assistant))


def num_chunks(segments: Sequence[Segment]) -> int:
    """C, the action chunks of a sample."""
    return sum(isinstance(segment, Action) for segment in segments)


def choose_chunk(segments: Sequence[Segment], generator: Callable[[], np.random.Generator]) -> int | None:
    """Which chunk is noised and trained on; None for none of them.

    EO-1's rule for interleaved samples: one of the C chunks or none, all equally likely. A sample with exactly one
    chunk that ends it always trains on it, for so does EO-1 with its robot samples; nothing is drawn then.
    """
    count = num_chunks(segments)
    if count == 0:
        return None
    if count == 1 and isinstance(segments[-1], Action):
        return 0
    drawn = int(generator().integers(count + 1))
    return drawn if drawn < count else None


def cut_after_chunk(segments: Sequence[Segment], chosen: int | None) -> Sequence[Segment]:
    """The segments up to the chosen chunk, so that nothing ever attends to noised actions; all of them for None."""
    if chosen is None:
        return segments
    places = [place for place, segment in enumerate(segments) if isinstance(segment, Action)]
    return segments[: places[chosen] + 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A conversation as token ids, and where its images, states and action steps go."""

    tokens: NDArray[np.int64]
    """i64[T]"""
    labels: NDArray[np.int64]
    """i64[T], shifted by one; -100 where nothing is supervised"""
    image_starts: list[int]
    """first `<|image_pad|>` or `<|video_pad|>` of each picture or film"""
    image_lengths: list[int]
    state_starts: list[int]
    action_starts: list[int]
    """first placeholder of each chunk that has any; its H steps follow"""
    segment_starts: list[int]
    """first token of each segment. A turn's first begins with the turn and its last ends with it; of adjacent texts the
    last has the tokens of all. What comes before the first is the system's turn"""


@dataclass(slots=True)
class _Page:
    """Tokens as they are written, each with whether it is supervised."""

    tokens: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    image_starts: list[int] = field(default_factory=list)
    image_lengths: list[int] = field(default_factory=list)
    state_starts: list[int] = field(default_factory=list)
    action_starts: list[int] = field(default_factory=list)
    segment_starts: list[int] = field(default_factory=list)

    def begin_segment(self) -> None:
        self.segment_starts.append(len(self.tokens))

    def write(self, tokens: Sequence[int], supervised: bool) -> None:
        self.tokens.extend(tokens)
        self.supervised.extend([supervised] * len(tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """How every sample of a run is laid out."""

    vocabulary: Vocabulary
    encoder: TextEncoder
    system_prompt: str
    horizon: int
    answer: Answer

    def lay_out(
        self,
        segments: Sequence[Segment],
        image_tokens: Sequence[int],
        chosen: int | None,
        codes: Sequence[Sequence[int]] | None = None,
    ) -> Layout:
        """Write segments as tokens.

        Args:
            segments: in reading order.
            image_tokens: merged tokens of each picture or film.
            chosen: the chunk that is noised; the others are clean context.
            codes: token ids of each chunk's codes; None where there are none, or none yet. Placeholders then follow the
                beginning at once.
        """
        page = _Page()
        images = iter(image_tokens)
        chunks = self._write_chunks(num_chunks(segments), chosen, codes)
        self._write_system(page)
        turns = [(role, list(turn)) for role, turn in groupby(segments, is_assistants)]
        answers = [turn for _, turn in turns[1:]] + [[]]
        for (assistants, turn), answer in zip(turns, answers, strict=True):
            first, start = len(page.segment_starts), len(page.tokens)
            if assistants:
                self._write_assistant(page, turn, chunks)
            else:
                self._write_user(page, turn, images, wants_action=num_chunks(answer) > 0)
            page.segment_starts[first] = start
        return self._finish(page)

    def _write_system(self, page: _Page) -> None:
        v = self.vocabulary
        self._write(page, [v.turn_start, f"system\n{self.system_prompt}", v.turn_end, "\n"], supervised=False)

    def _write_user(self, page: _Page, turn: list[Segment], images: Iterator[int], *, wants_action: bool) -> None:
        v = self.vocabulary
        text = "user\n"
        page.write([v.turn_start], supervised=False)
        for segment in turn:
            if isinstance(segment, Text):
                page.begin_segment()
                text += segment.text
                continue
            self._write(page, [text], supervised=False)
            page.begin_segment()
            text = ""
            if isinstance(segment, Image | Video):
                self._write_image(page, next(images), v.image_pad if isinstance(segment, Image) else v.video_pad)
            else:
                page.state_starts.append(len(page.tokens) + 1)
                page.write([v.state_start, v.state_pad, v.state_end], supervised=False)
        ask = [v.vla] if wants_action else []
        self._write(page, [text, *ask, v.turn_end, "\n"], supervised=False)

    def _write_image(self, page: _Page, count: int, pad: int) -> None:
        v = self.vocabulary
        page.image_starts.append(len(page.tokens) + 1)
        page.image_lengths.append(count)
        page.write([v.vision_start, *[pad] * count, v.vision_end], supervised=False)

    def _write_chunks(
        self, count: int, chosen: int | None, codes: Sequence[Sequence[int]] | None
    ) -> Iterator[tuple[Sequence[int], list[int]]]:
        """Codes and placeholders of each chunk."""
        v = self.vocabulary
        steps = 0 if self.answer is Answer.codes and codes is not None else self.horizon
        for number in range(count):
            pad = v.action_pad if number == chosen else v.action_pass
            yield codes[number] if codes is not None else (), [pad] * steps

    def _write_assistant(
        self, page: _Page, turn: list[Segment], chunks: Iterator[tuple[Sequence[int], list[int]]]
    ) -> None:
        v = self.vocabulary
        self._write(page, [v.turn_start, "assistant\n"], supervised=False)
        # Adjacent text is encoded as one, as far as it is trained on alike.
        text, supervised = "", True
        for segment in turn:
            if isinstance(segment, Text) and segment.supervised is supervised:
                page.begin_segment()
                text += segment.text
                continue
            self._write(page, [text], supervised=supervised)
            page.begin_segment()
            text, supervised = "", True
            if isinstance(segment, Text):
                text, supervised = segment.text, segment.supervised
            else:
                self._write_action(page, *next(chunks))
        self._write(page, [text, v.turn_end, "\n"], supervised=supervised)

    def _write_action(self, page: _Page, codes: Sequence[int], steps: list[int]) -> None:
        v = self.vocabulary
        page.write([v.action_start, *codes], supervised=True)
        if steps:
            page.action_starts.append(len(page.tokens))
        page.write(steps, supervised=False)
        page.write([v.action_end], supervised=True)

    def _write(self, page: _Page, parts: Sequence[int | str], *, supervised: bool) -> None:
        for part in parts:
            page.write(self.encoder.encode(part) if isinstance(part, str) else [part], supervised)

    def _finish(self, page: _Page) -> Layout:
        tokens = np.asarray(page.tokens, np.int64)
        labels = np.full(len(tokens), UNSUPERVISED, np.int64)
        labels[:-1] = np.where(page.supervised[1:], tokens[1:], UNSUPERVISED)
        return Layout(
            tokens=tokens,
            labels=labels,
            image_starts=page.image_starts,
            image_lengths=page.image_lengths,
            state_starts=page.state_starts,
            action_starts=page.action_starts,
            segment_starts=page.segment_starts,
        )
