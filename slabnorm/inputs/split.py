"""The split guard: statistics belong to the training split, and `fit` wants to hear so.

Two things speak: the name the caller gives, and what the source says of itself (a file called
test.npy, a torchvision data set with train=False). Both are read word by word: "x_test" and "valSet"
hold the words test and val, "latest" and "contest" do not.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from slabnorm.errors import DataWarning, LeakageError, OptionError

HELD_OUT = frozenset((
    "validation", "validate", "valid", "val", "dev", "devel", "development", "test", "tests", "testing",
    "eval", "evaluate", "evaluation", "holdout", "heldout", "unseen", "predict", "prediction",
))  # fmt: skip
# A split that holds everything holds the test split too. As part of a file's name these say nothing.
EVERYTHING = frozenset(("all", "full", "whole", "everything"))


@dataclass(frozen=True)
class Hint:
    """What a source says about its split: where it says it, and that it is held out."""

    where: str
    word: str


def guard(split: str | None, hints: Iterable[Hint], leak: bool) -> str:
    """Return the split's name, if statistics may come from it.

    Raises:
        LeakageError: no split is named, or the name or a hint says that it is held out and `leak` is False.
        OptionError: `split` is not a name, or `leak` not a bool.

    Warns:
        DataWarning: statistics come from held-out data because `leak` is True.
    """
    if split is None:
        raise LeakageError(
            "statistics belong to the training split: fit wants the split named",
            "no split",
            'give the training samples only, and say so: split="train"',
        )
    if not isinstance(split, str) or not _words(split):
        raise OptionError("split is the name of a split", repr(split), 'as split="train"')
    if not isinstance(leak, bool):
        raise OptionError("leak is True or False", repr(leak))
    word = held_out(split, HELD_OUT | EVERYTHING)
    found = [f"split={split!r}"] if word else []
    found += [f"{hint.where} (the word {hint.word!r})" for hint in hints if hint.word]
    if not found:
        return split
    if not leak:
        raise LeakageError(
            "statistics belong to the training split; held-out data must not see itself in them",
            "; ".join([*found, *([] if word else [f"named split={split!r}"])]),
            "fit on the training split, and apply the result here; leak=True if you mean it",
        )
    warnings.warn(f"statistics come from held-out data: {'; '.join(found)}", DataWarning, stacklevel=3)
    return split


def held_out(text: str, names: frozenset[str] = HELD_OUT) -> str:
    """Return the first word of a text that names a held-out split, or "".

    >>> held_out("x_test"), held_out("HoldOut"), held_out("latest")
    ('test', 'holdout', '')
    """
    words = _words(text)
    pairs = [first + second for first, second in pairwise(words)]
    return next((word for word in words + pairs if word in names), "")


def file_hints(path: Path) -> tuple[Hint, ...]:
    """Return what a file's name says: its stem word by word, its folder only as a whole."""
    # A whole path would blame train.npy for lying in /home/me/test-project.
    word = held_out(path.stem)
    folder = path.parent.name.lower()
    if not word and folder in HELD_OUT:
        word = folder
    return (Hint(f"the file {path}", word),) if word else ()


def _words(text: str) -> list[str]:
    """Split a name into lower-case words at anything that is no letter, and where camelCase does."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+", text)]
