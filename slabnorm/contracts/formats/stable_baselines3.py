"""stable-baselines3: `VecNormalize`, from the object or from the file that its `save` writes.

Documented by stable-baselines3: y = clip((x - mean) / sqrt(var + epsilon), -clip_obs, clip_obs), in float32.
The file is a pickle. It is taken apart, never run, and so the package need not be installed.

One space of observations is the key "observation". Of a Dict space each entry is a key of its name, and those
that `norm_obs_keys` leaves out pass unchanged. What the counts say stands in `gymnasium.py`. The statistics
of returns, by which rewards are divided, are no key: rewards are not centred, which no scheme does.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from slabnorm.contracts.formats.found import Found
from slabnorm.contracts.formats.gymnasium import KEY, running_key
from slabnorm.contracts.formats.inert_pickle import Made, array, take_apart
from slabnorm.contracts.formats.json_file import MOST_KEYS, begins, in_file, read_bytes
from slabnorm.contracts.formats.objects import class_of, numbers, unusable
from slabnorm.contracts.key import KEEP, Key
from slabnorm.contracts.statistics import Provenance
from slabnorm.errors import DataError
from slabnorm.text import printable

TITLE = "stable-baselines3's VecNormalize"
FORM = "stable-baselines3"
MODULE = "stable_baselines3.common.vec_env.vec_normalize"
RUNNING = "stable_baselines3.common.running_mean_std.RunningMeanStd"
# What files of VecNormalize import: the space of observations, its random generator, and arrays.
EXPECTED = re.compile(
    rf"""{re.escape(MODULE)}\.VecNormalize | {re.escape(RUNNING)}
    | gym(nasium)?\.spaces\.(box\.Box | dict\.Dict | discrete\.Discrete | multi_discrete\.MultiDiscrete
        | multi_binary\.MultiBinary | tuple\.Tuple | text\.Text | sequence\.Sequence | graph\.Graph)
    | gym\.utils\.seeding\.RandomNumberGenerator(\._generator_ctor)?
    | numpy\.(dtype | ndarray) | numpy\._?core\.multiarray\.(_reconstruct | scalar)
    | numpy\._?core\.numeric\._frombuffer
    | numpy\.random\._pickle\.__(generator | bit_generator | randomstate)_ctor
    | numpy\.random\._(pcg64\.PCG64 | mt19937\.MT19937)
    | numpy\.random\.bit_generator\.(SeedSequence | __pyx_unpickle_SeedSequence)
    | collections\.OrderedDict | copyreg\._reconstructor | _codecs\.encode | builtins\.(object | bytes)""",
    re.VERBOSE,
)


def recognises(source: Any) -> bool:
    """Whether a source is a VecNormalize, or a file in whose first bytes its class is named."""
    if isinstance(source, Path):
        return MODULE.encode() in begins(source)
    return class_of(source) == f"{MODULE}.VecNormalize"


def read(source: Any) -> dict[str, Found]:
    """Return the keys of a VecNormalize.

    Raises:
        DataError: the file is no pickle of a VecNormalize, is damaged, or would execute something; or
            observations are not normalised, or their numbers cannot be used.
    """
    if not isinstance(source, Path):
        if not recognises(source):
            raise unusable(KEY, f"a {class_of(source)}", "give the VecNormalize itself, or its file")
        return _keys(vars(source))
    where = printable(source)
    whole = take_apart(read_bytes(source), lambda name: EXPECTED.fullmatch(name) is not None, where)
    if not isinstance(whole, Made) or whole.name != f"{MODULE}.VecNormalize" or type(whole.state) is not dict:
        raise DataError(f"No VecNormalize in {where}", "a pickle of something else", "check the file")
    with in_file(where):
        return _keys(whole.state)


def _keys(state: dict[str, Any]) -> dict[str, Found]:
    """Return the keys of the attributes of a VecNormalize, alive or taken apart."""
    running = state.get("obs_rms")
    if state.get("norm_obs") is not True or running is None:
        raise unusable(KEY, "this VecNormalize does not normalise observations")
    epsilon, clip = _plain(state.get("epsilon"), KEY), _clip(_plain(state.get("clip_obs"), KEY))
    each = running if isinstance(running, dict) else {KEY: running}
    others = _spaces(state.get("observation_space")) if isinstance(running, dict) else []
    if len(each) + len(others) > MOST_KEYS:
        raise unusable(KEY, f"it has {len(each) + len(others):,} keys, more than {MOST_KEYS:,}")
    if not all(isinstance(name, str) for name in each):
        raise unusable(KEY, "the name of a key is no text")
    keys = {name: running_key(name, _parts(one, name), epsilon, clip, FORM) for name, one in each.items()}
    return keys | {name: Found(Key(KEEP), None, (), Provenance(FORM)) for name in others if name not in keys}


def _clip(most: Any) -> tuple[float, float] | None:
    """Return the ends at which observations are cut off; None for an infinite clip_obs."""
    if isinstance(most, float) and math.isinf(most):
        return None
    found = numbers(most, "clip_obs", KEY)
    if found.numel() != 1 or found.item() <= 0:
        raise unusable(KEY, "its clip_obs is no number above 0")
    return -found.item(), found.item()


def _parts(running: Any, key: str) -> dict[str, Any]:
    """Return mean, var and count of a RunningMeanStd, alive or taken apart."""
    state = _attributes(running)
    if (running.name if isinstance(running, Made) else class_of(running)) != RUNNING:
        raise unusable(key, "its statistics are no RunningMeanStd of stable-baselines3")
    missing = [name for name in ("mean", "var", "count") if name not in state]
    if missing:
        raise unusable(key, f"its statistics have no {', '.join(missing)}")
    return {name: _plain(state[name], key) for name in ("mean", "var", "count")}


def _spaces(space: Any) -> list[str]:
    """Return the names of the entries of a Dict space."""
    spaces = _attributes(space).get("spaces", {})
    entries = spaces.entries if isinstance(spaces, Made) else spaces
    return [name for name in entries if isinstance(name, str)] if isinstance(entries, dict) else []


def _attributes(found: Any) -> dict[str, Any]:
    state = found.state if isinstance(found, Made) else getattr(found, "__dict__", None)
    return state if type(state) is dict else {}


def _plain(value: Any, key: str) -> Any:
    """Return the number or the array that a part of a pickle stands for; one that is alive as it is."""
    if isinstance(value, list | tuple | dict):
        # No VecNormalize has them; and of lists in lists, each twice in the next, an array takes all memory.
        raise unusable(key, f"a {type(value).__name__}, where a number or an array belongs")
    if not isinstance(value, Made):
        return value
    try:
        return array(value)
    except ValueError as error:
        raise unusable(key, f"{error}") from error
