"""The English text: its characters, its pieces, and what is refused."""

import sys
from pydoc_data.topics import topics
from types import ModuleType

import pytest
import torch

from slabnorm.errors import DataError, OptionError
from slabnorm.study.text import english


def test_all_topics_are_there_character_by_character():
    text = english()
    assert len(text.codes) > 400_000
    assert text.codes.dtype == torch.int64
    assert text.decode(text.codes) == "\n".join(topics[name] for name in sorted(topics))
    assert list(text.alphabet) == sorted(set(text.alphabet))
    assert torch.unique(text.codes).tolist() == list(range(len(text.alphabet)))


def test_pieces_follow_one_another():
    text = english(12_345)
    pieces = [text.train, text.validation, text.test]
    assert torch.equal(torch.cat(pieces), text.codes)
    assert [len(piece) for piece in pieces] == [9876, 1234, 1235]
    assert text.decode(text.codes) == english().decode(english().codes[:12_345])


@pytest.mark.parametrize("characters", [0, 999, -5, 2000.0, True, "all"])
def test_a_length_that_cannot_be(characters):
    with pytest.raises(OptionError, match="characters must be an integer, 1000 or more"):
        english(characters)


def test_more_than_there_is():
    with pytest.raises(
        DataError, match=r"shorter than that\n  got: .* characters, and 1,000,000,000 are wanted"
    ):
        english(10**9)


def test_python_without_its_topics(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="comes without its help topics"):
        english()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", ModuleType("topics"))
    with pytest.raises(DataError, match="comes without its help topics"):
        english()
    empty = ModuleType("topics")
    empty.topics = {"a": "b"}
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", empty)
    with pytest.raises(DataError, match=r"shorter than that\n  got: 1 characters.*\n  fix: use a Python"):
        english()
