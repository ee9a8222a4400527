"""Job `convert_reasoner`: Embodied-Reasoner's trajectories become shards (arXiv 2503.21696, section 4).

A row is `{"messages": [{"role", "content"}, ...], "images": [...]}`. Each answer is a thought and a decision; a user's
turn shows what the decision led to, or tells with `<|feedback|>` that it was wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flagscale_vla.config.convert_reasoner import ConvertReasonerRun, MaskRule
from flagscale_vla.data.convert.conversations import RowConverter
from flagscale_vla.data.convert.dialogue import Dialogues, Mask, answer_text, train_on_all
from flagscale_vla.data.convert.job import convert
from flagscale_vla.data.convert.pictures import PictureRule
from flagscale_vla.data.convert.turns import LOOSE, Role, RowError, Turn
from flagscale_vla.records import Text

DECISION = re.compile(r"<DecisionMaking>.*?</DecisionMaking>", re.DOTALL)


def run(run: ConvertReasonerRun) -> None:
    """Convert all files of trajectories that the settings name.

    Raises:
        ConfigError: a sampling strategy that is none.
        ValueError: a file is missing or of another kind, or too many rows are refused.
    """
    dialogues = Dialogues(
        base=Path(run.base),
        pictures=PictureRule.of(run),
        film=None,
        rescaling=None,
        system=run.system,
        marks=LOOSE,
        mask=mask_of(run.mask, run.feedback, one_decision=run.one_decision),
    )
    convert(RowConverter(run, dialogues), run)


def mask_of(rule: MaskRule, feedback: str, *, one_decision: bool) -> Mask:
    """How answers are trained on; it also refuses those without a decision, where that is wanted."""
    masks: dict[MaskRule, Mask] = {
        MaskRule.all: train_on_all,
        MaskRule.after_feedback: partial(train_after_feedback, feedback),
        MaskRule.per_turn: partial(train_on_right_turns, feedback),
    }
    return partial(decided, masks[rule]) if one_decision else masks[rule]


def decided(mask: Mask, turns: Sequence[Turn]) -> list[list[Text]]:
    """The answers as `mask` takes them.

    Raises:
        RowError: one does not hold exactly one decision.
    """
    for number, turn in enumerate(turns, 1):
        found = len(DECISION.findall(turn.text))
        if turn.role is Role.assistant and found != 1:
            raise RowError(f"not one decision: turn {number} holds {found} of <DecisionMaking>...</DecisionMaking>")
    return mask(turns)


def train_after_feedback(feedback: str, turns: Sequence[Turn]) -> list[list[Text]]:
    """Nothing up to and with the first feedback is trained on, everything behind it is.

    The stage-3 rule of its authors' collator: `labels[:k + 1] = -100`, k being the place of the first feedback. Without
    any, all is trained on. A row's own `loss` goes before it.
    """
    heard = not any(feedback in turn.text for turn in turns)
    answers = []
    for turn in turns:
        if turn.role is not Role.assistant:
            heard = heard or feedback in turn.text
        elif turn.loss is not None or heard or feedback not in turn.text:
            answers.append([answer_text(turn.text, heard if turn.loss is None else turn.loss)])
        else:
            before, mark, after = turn.text.partition(feedback)
            answers.append([answer_text(before + mark, False), *([answer_text(after, True)] if after else [])])
            heard = True
    return answers


def train_on_right_turns(feedback: str, turns: Sequence[Turn]) -> list[list[Text]]:
    """Every answer is trained on that no feedback follows at once. A row's own `loss` goes before it."""
    following = [turn.text for turn in turns[2::2]] + [""]
    answers = [turn for turn in turns if turn.role is Role.assistant]
    return [
        [answer_text(turn.text, feedback not in reply if turn.loss is None else turn.loss)]
        for turn, reply in zip(answers, following, strict=True)
    ]
