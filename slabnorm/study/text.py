"""English text as a sequence of characters: the help topics that Python itself ships."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from numbers import Integral

import torch
from torch import Tensor

from slabnorm.errors import DataError, OptionError

SHARES = (0.8, 0.1, 0.1)  # of training, validation and test, in the order of the text
LEAST = 1000  # characters, so that every piece holds some sentences


@dataclass(frozen=True, eq=False)
class Text:
    """A text, character by character.

    Args:
        codes: the numbers of the characters, int64, in the order of the text.
        alphabet: the characters, in the order of their numbers.
        train, validation, test: the pieces of `codes`, one after the other. They are cut, not drawn:
            neighbouring sequences share their words, and a random split would test on what was trained on.
    """

    codes: Tensor
    alphabet: str
    train: Tensor
    validation: Tensor
    test: Tensor

    def decode(self, codes: Tensor) -> str:
        """Return the characters of some numbers."""
        return "".join(self.alphabet[code] for code in codes.tolist())


def english(characters: int | None = None) -> Text:
    """Return the help topics that Python ships (`pydoc_data.topics`), in English, about 460,000 characters.

    The text depends on the version of Python, and on nothing else.

    Args:
        characters: how many to take, from the first on; by default all.

    Raises:
        DataError: this Python comes without the topics, or they are too short.
        OptionError: `characters` is no number of 1000 or more.

    >>> from slabnorm.study.text import english
    >>> text = english(10_000)
    >>> len(text.train), len(text.validation), len(text.test), text.codes.dtype
    (8000, 1000, 1000, torch.int64)
    """
    whole = isinstance(characters, Integral) and not isinstance(characters, bool)
    if characters is not None and (not whole or characters < LEAST):
        raise OptionError(f"characters must be an integer, {LEAST} or more", repr(characters))
    text = _topics()
    held = len(text)
    if held < (characters or LEAST):
        raise DataError(
            "Python's help topics are shorter than that",
            f"{held:,} characters, and {characters or LEAST:,} are wanted",
            "take fewer" if held >= LEAST else "use a Python that comes with them",
        )
    text = text[:characters]
    alphabet = "".join(sorted(set(text)))
    number = {character: code for code, character in enumerate(alphabet)}
    codes = torch.tensor([number[character] for character in text])
    first, second = round(SHARES[0] * len(text)), round((SHARES[0] + SHARES[1]) * len(text))
    return Text(codes, alphabet, codes[:first], codes[first:second], codes[second:])


def _topics() -> str:
    """Return all help topics as one text, in the order of their names."""
    try:
        topics = import_module("pydoc_data.topics").topics
        return "\n".join(topics[name] for name in sorted(topics))
    except (ImportError, AttributeError, TypeError) as error:
        raise DataError(
            "This Python comes without its help topics",
            f"pydoc_data.topics: {error}",
            "use a Python with its whole standard library, as a distribution's full package has it",
        ) from error
