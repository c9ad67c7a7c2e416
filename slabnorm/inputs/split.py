"""The split guard: `fit` takes statistics from the training split only, and asks which split it is given.

Two things are looked at: the name that the caller gives, and what the source says about itself (a file called
test.npy, a torchvision data set with train=False). The name of a file is read word by word: "x_test" and
"valSet" hold the words test and val, "latest" and "contest" do not. The name of a folder counts as a whole.
The nearest name that says anything decides: test/train/x.npy is training data.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from slabnorm.errors import DataWarning, LeakageError, OptionError
from slabnorm.text import printable

_VALIDATION = ("validation", "validate", "valid", "val", "dev", "devel", "development")
_TEST = ("test", "tests", "testing", "eval", "evaluate", "evaluation", "predict", "prediction")
_MNIST = "t10k"  # its 10,000 test images, and those of its like
HELD_OUT = frozenset((*_VALIDATION, *_TEST, _MNIST, "holdout", "heldout", "unseen"))
# A split that holds all samples holds the test split too. In the name of a file these words say nothing.
EVERYTHING = frozenset(("all", "full", "whole", "everything"))
# Programs are developed and tested in such folders: their names count only for data directly in them.
WORKSHOPS = frozenset(("dev", "devel", "development", "tests", "testing"))
NEAR = 3  # folders above a path that are read: higher ones are named after a user or a project

_TRAIN, _END = "train(?:ing)?", "(?:sets?|data|splits?)?"  # as in "testset"; "val2017" also has a year
_SAYS_TRAIN = re.compile(rf"{_TRAIN}{_END}(?:\d{{4}})?")


def _reader(names: frozenset[str]) -> re.Pattern[str]:
    # "trainval" is not training data alone, and neither is "devtest".
    word = "|".join(sorted(names, key=len, reverse=True))
    return re.compile(rf"(?:{_TRAIN})?(?:{word})+(?:{_TRAIN})?{_END}(?:\d{{4}})?")


_IN_DATA, _IN_SPLIT = _reader(HELD_OUT), _reader(HELD_OUT | EVERYTHING)


@dataclass(frozen=True)
class Hint:
    """Something in a source that names a held-out split: where it stands, and by which word."""

    where: str
    word: str


def guard(split: str | None, hints: Iterable[Hint], leak: bool) -> str:
    """Return the name of the split if statistics may come from it.

    Raises:
        LeakageError: no split is named, or the name or a hint says that it is held out and `leak` is False.
        OptionError: `split` is not a name, or `leak` is not a bool.

    Warns:
        DataWarning: statistics come from held-out data because `leak` is True.
    """
    if split is None:
        raise LeakageError(
            "The split is not named",
            "",
            'fit the training samples only, and say that they are: split="train"',
        )
    if not isinstance(split, str) or not _words(split):
        raise OptionError("split must be the name of a split", repr(split), 'as in split="train"')
    if not isinstance(leak, bool):
        raise OptionError("leak must be True or False", repr(leak))
    word = _first(_words(split), _IN_SPLIT)
    found = [f"split={split!r}"] if word else []
    found += [f"{hint.where} (the word {hint.word!r})" for hint in hints if hint.word]
    if not found:
        return split
    if not leak:
        raise LeakageError(
            "Statistics would be fitted on held-out data",
            "; ".join([*found, *([] if word else [f"although split={split!r}"])]),
            "fit the training split, and apply its statistics here; or give leak=True if you mean it",
        )
    warnings.warn(f"The statistics come from held-out data: {'; '.join(found)}", DataWarning, stacklevel=3)
    return split


def held_out(text: str) -> str:
    """Return the first word of a text that names a held-out split; "" if there is none.

    >>> held_out("x_test"), held_out("HoldOut"), held_out("trainval"), held_out("latest")
    ('test', 'holdout', 'trainval', '')
    """
    return _first(_words(text), _IN_DATA)


def says_train(text: str) -> bool:
    """Whether a word of a text says that it is training data.

    >>> says_train("train-images"), says_train("strain")
    (True, False)
    """
    return any(map(_SAYS_TRAIN.fullmatch, _words(text)))


def path_hints(paths: Iterable[str | os.PathLike[str]], base: str = "") -> tuple[Hint, ...]:
    """Return what paths and URLs say about their split, one hint for each word.

    The name of a file is read word by word. Folders key=value are read anywhere. Of other folders the names
    count as a whole: those of the nearest three above, and of all within the folder `base`. Local paths are
    read as they are given and as they resolve, because a link may be called other than its target.

    Args:
        paths: the paths of files; one that ends in "/" is a folder, whose name counts only as a whole.
        base: the folder in which these were found; by default each was given by the user itself.
    """
    found: dict[str, Hint] = {}
    real: dict[str, str] = {}  # resolved folders: resolving every file of a large data set would take long
    bases = [_parts(place) for place in _places(base, {})] if base else []
    for path in (os.fspath(path) for path in paths):
        places = _places(path, real)
        for number, place in enumerate(places):
            if number and place == places[0]:
                continue
            parts = _parts(place)
            top = bases[number] if bases else parts
            # A link inside may lead elsewhere; then the folders of its target count.
            inside = parts[: len(top) - 1] == top[:-1]
            first = (len(top) if inside else len(parts)) - 1 - NEAR
            part, word = _nearest(parts, max(first, _home(parts)))
            if word:
                named = f"the file {printable(path, 4096)}"
                which = "" if part == parts[-1] else f"the folder {printable(part)} of "
                leads = "" if place == places[0] else f", which leads to {printable(place, 4096)}"
                found.setdefault(word, Hint(f"{which}{named}{leads}", word))
    return tuple(found[word] for word in sorted(found))


def inner_hints(names: Iterable[str]) -> tuple[Hint, ...]:
    """Return what the folders within an archive say about the split of its members."""
    found: dict[str, Hint] = {}
    for folder in sorted({name.replace("\\", "/").rpartition("/")[0] for name in names}):
        _, word = _nearest([*folder.split("/"), ""], 0)
        if word:
            found.setdefault(word, Hint(f"the folder {printable(folder, 4096)}", word))
    return tuple(found[word] for word in sorted(found))


def _nearest(parts: Sequence[str], first: int) -> tuple[str, str]:
    """Return the nearest name in a path that says it is held out, and by which word; "" twice if none does.

    Args:
        parts: the names in the path; the last is that of the file, which is read word by word.
        first: from which of these on the names of folders count, except for folders key=value.
    """
    for at in range(len(parts) - 1, -1, -1):
        part = parts[at]
        _, is_pair, value = part.partition("=")
        if at == len(parts) - 1 or part.lower().endswith(
            (".zarr", ".zip")
        ):  # archives: files that hold files
            words = _words(part)
        elif is_pair:
            words = _words(value)
        elif at >= first and (at == len(parts) - 2 or part.lower() not in WORKSHOPS):
            words = [re.sub(r"[\W_]+", "", part).lower()]
        else:
            continue
        word = _first(words, _IN_DATA)
        if word:
            return part, word
        if any(map(_SAYS_TRAIN.fullmatch, words)):
            break
    return "", ""


def _places(path: str, real: dict[str, str]) -> list[str]:
    """Return a URL as it is, or a local path in full and resolved; a "/" at the end stays.

    Args:
        path: a path or a URL.
        real: what folders resolve to, as far as it is known; new ones are added.
    """
    if path.lower().startswith("file://") and "::" not in path:
        path = url2pathname(urlsplit(path).path)
    if "://" in path:
        return [path]
    folder, name = os.path.split(os.path.join(os.getcwd(), path))
    if name in (".", ".."):
        folder, name = os.path.split(os.path.abspath(path))
    if folder not in real:
        real[folder] = os.path.realpath(folder)
    full = os.path.join(os.path.normpath(folder), name)
    target = os.path.realpath(full) if name and os.path.islink(full) else os.path.join(real[folder], name)
    return [full, target]


def _parts(place: str) -> list[str]:
    """Return the names in a path or URL, that of the file last; it is "" for a path that ends in "/"."""
    if "://" not in place:
        return [*Path(place).parts, *([""] if place.endswith(("/", os.sep)) else [])]
    # In zip://inner::s3://outer, the inner path comes first and is the nearest.
    pieces = [piece for piece in place.split("::") if "/" in piece]
    if place.lower().startswith(("http://", "https://")):
        pieces = [re.split("[?#]", piece)[0] for piece in pieces]
    names = "/".join(unquote(piece.partition("://")[2] or piece) for piece in reversed(pieces))
    return [name for name in names.split("/")[:-1] if name] + [names.rpartition("/")[2]]


def _home(parts: Sequence[str]) -> int:
    # In /home/test/, test is the name of a user.
    return 3 if parts[1:2] in (["home"], ["Users"]) and os.path.isabs(parts[0]) else 0


def _first(words: list[str], reader: re.Pattern[str]) -> str:
    pairs = [first + second for first, second in pairwise(words)]
    return next((word for word in words + pairs if reader.fullmatch(word)), "")


def _words(text: str) -> list[str]:
    """Return the words of a name in lower case, cut at everything but letters, and as in camelCase."""
    words = r"[tT]10[kK](?![a-zA-Z])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+"  # "t10k" is one, too
    return [word.lower() for word in re.findall(words, text)]
