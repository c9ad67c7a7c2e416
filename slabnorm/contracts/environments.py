"""Environments whose observations and rewards are normalised: of gymnasium, and of stable-baselines3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slabnorm.contracts.return_scale import ReturnScale
from slabnorm.contracts.running import RunningInputNorm
from slabnorm.errors import OptionError
from slabnorm.extras import extra

Norms = RunningInputNorm | Mapping[str, RunningInputNorm] | nn.ModuleDict


def normalized(env: Any, norm: Norms, rewards: ReturnScale | None = None, *, count: bool = True) -> Any:
    """Return an environment that gives normalised observations and, if asked for, scaled rewards.

    What the environment gives is counted first, by `norm` and `rewards` if they are in train mode, and then
    normalised; `norm.eval()` and `rewards.eval()` are for evaluation. They stay the caller's: store their
    state_dict in the same file as that of the policy.

    Observations are those of a single space, or a dict of such with norms for some of its keys. They come out
    as float32. The first axis of a batch counts environments, so that observations of 17 numbers go through
    `RunningInputNorm("n c -> c")`.

    Args:
        env: an environment or a vector environment of gymnasium, or a VecEnv of stable-baselines3, whose
            observations before the end of an episode (`terminal_observation`) are normalised, too.
        norm: the norm of observations; of a dict of observations a dict of norms, or an nn.ModuleDict.
        rewards: the scale of rewards; None to leave them as they are.
        count: False for evaluation beside a training that uses the same norm: nothing that this environment
            gives is counted, and its rewards stay as they are.

    Raises:
        OptionError: env is no environment; norms do not fit the observations, or are automatic; rewards are
            given that are not to count; or a vector environment of gymnasium resets within a step or leaves
            that to its user, so that what ends an episode is not among its observations.
        ExtraError: gymnasium or stable-baselines3 is not installed.

    As `VecNormalize` of stable-baselines3, and `NormalizeObservation` and `NormalizeReward` of gymnasium.

    >>> import gymnasium, slabnorm as sn
    >>> from slabnorm.contracts.environments import normalized
    >>> norm = sn.RunningInputNorm("n c -> c", clip=10)
    >>> env = normalized(gymnasium.make("CartPole-v1"), norm, sn.ReturnScale(gamma=0.99))
    >>> observation, _ = env.reset(seed=0)
    >>> observation, reward, *_ = env.step(0)
    >>> norm.samples, observation.dtype
    (2, dtype('float32'))
    """
    if rewards is not None and not count:
        problem = "An environment whose rewards are scaled must count them"
        raise OptionError(
            problem, "rewards and count=False", "leave rewards out, to evaluate by what they are"
        )
    if any(kind.__module__.startswith("stable_baselines3.") for kind in type(env).__mro__):
        return _of_stable_baselines()(env, norm, rewards, count)
    gymnasium = extra("gymnasium", "normalising an environment", "gymnasium")
    if isinstance(env, gymnasium.vector.VectorEnv):
        return _vector()(env, norm, rewards, count)
    if not isinstance(env, gymnasium.Env):
        fix = "give an environment of gymnasium, or a VecEnv of stable-baselines3"
        raise OptionError("env must be an environment", type(env).__name__, fix)
    return _single()(env, norm, rewards, count)


# The classes are made once, when they are first used, as gymnasium and stable-baselines3 are extras.


@cache
def _single() -> Any:
    gymnasium: Any = extra("gymnasium", "normalising an environment", "gymnasium")

    class Normalized(gymnasium.Wrapper):
        def __init__(self, env: Any, norm: Norms, rewards: ReturnScale | None, count: bool) -> None:
            super().__init__(env)
            self.norm, self.rewards, self._counts = norm, rewards, count
            self.observation_space = _space(gymnasium, env.observation_space, norm)

        def reset(self, **options: Any) -> Any:
            observation, info = self.env.reset(**options)
            if self.rewards is not None:
                self.rewards.reset()
            return self._one(observation), info

        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = self.env.step(action)
            done = np.array([terminated or truncated])
            if self.rewards is not None:
                reward = float(_scaled(self.rewards, np.array([reward], float), done)[0])
            return self._one(observation), reward, terminated, truncated, info

        def _one(self, observation: Any) -> Any:
            batch = _map(lambda x: np.asarray(x)[None], observation)
            return _map(lambda x: x[0], _observed(self.norm, self._counts, batch))

    return Normalized


@cache
def _vector() -> Any:
    gymnasium: Any = extra("gymnasium", "normalising an environment", "gymnasium")

    class Normalized(gymnasium.vector.VectorWrapper):
        def __init__(self, env: Any, norm: Norms, rewards: ReturnScale | None, count: bool) -> None:
            _check_reset(env)
            super().__init__(env)
            self.norm, self.rewards, self._counts = norm, rewards, count
            self.single_observation_space = _space(gymnasium, env.single_observation_space, norm)
            self.observation_space = gymnasium.vector.utils.batch_space(
                self.single_observation_space, env.num_envs
            )
            self._starts = np.zeros(env.num_envs, bool)  # whose next step starts an episode

        def reset(self, **options: Any) -> Any:
            observations, info = self.env.reset(**options)
            self._starts[:] = False
            if self.rewards is not None:
                self.rewards.reset()
            return _observed(self.norm, self._counts, observations), info

        def step(self, actions: Any) -> Any:
            observations, reward, terminated, truncated, info = self.env.step(actions)
            done = terminated | truncated
            if self.rewards is not None:
                reward = _scaled(self.rewards, reward, done, ~self._starts)
            self._starts = done
            return _observed(self.norm, self._counts, observations), reward, terminated, truncated, info

    return Normalized


@cache
def _of_stable_baselines() -> Any:
    vec_env: Any = extra("stable_baselines3.common.vec_env", "normalising a VecEnv", "stable-baselines3")
    gymnasium = extra("gymnasium", "normalising a VecEnv", "gymnasium")

    class Normalized(vec_env.VecEnvWrapper):
        def __init__(self, env: Any, norm: Norms, rewards: ReturnScale | None, count: bool) -> None:
            super().__init__(env, _space(gymnasium, env.observation_space, norm))
            self.norm, self.rewards, self._counts = norm, rewards, count

        def reset(self) -> Any:
            observations = self.venv.reset()
            if self.rewards is not None:
                self.rewards.reset()
            return _observed(self.norm, self._counts, observations)

        def step_wait(self) -> Any:
            observations, reward, dones, infos = self.venv.step_wait()
            observations = _observed(self.norm, self._counts, observations)
            if self.rewards is not None:
                reward = _scaled(self.rewards, reward, dones)
            for info in infos:
                if "terminal_observation" in info:
                    batch = _map(lambda x: np.asarray(x)[None], info["terminal_observation"])
                    info["terminal_observation"] = _map(lambda x: x[0], _applied(self.norm, batch))
            return observations, reward, dones, infos

    return Normalized


def _check_reset(env: Any) -> None:
    """Raise OptionError for a vector environment of gymnasium that does not reset with the next step."""
    mode = env.metadata.get("autoreset_mode")
    if getattr(mode, "name", "NEXT_STEP") != "NEXT_STEP":  # gymnasium 1.0 has no other, and no names
        raise OptionError(
            "A vector environment must reset its environments with the next step to be normalised",
            f"autoreset_mode={mode}",
            "make it with autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP, which is the default",
        )


def _observed(norm: Norms, count: bool, batch: Any) -> Any:
    """Count a batch of observations, unless the norm is in eval mode, and return it normalised."""
    parts = _parts(batch)
    for key, one in _norms(norm).items():
        if count and one.training:
            one.update(_tensor(parts[key], one))
    return _applied(norm, batch)


def _applied(norm: Norms, batch: Any) -> Any:
    """Return a batch of observations, normalised."""
    found = dict(_parts(batch))
    with torch.no_grad():
        for key, one in _norms(norm).items():
            found[key] = one(_tensor(found[key], one)).float().cpu().numpy()
    return found if isinstance(batch, dict) else found[""]


def _scaled(scale: ReturnScale, rewards: Any, dones: Any, counts: Any = None) -> Any:
    """Return rewards of one step, scaled, as float32 or what they were."""
    every = torch.ones(len(rewards), dtype=torch.bool) if counts is None else counts
    given = (torch.as_tensor(t, device=scale.discounted.device) for t in (rewards, dones, every))
    found: Tensor = scale(*given)
    return found.cpu().numpy()


def _tensor(values: Any, norm: RunningInputNorm) -> Tensor:
    return torch.as_tensor(np.asarray(values), device=norm.shift.device)


def _norms(norm: Norms) -> dict[str, RunningInputNorm]:
    """Return the norms of parts of an observation; the only one has no name."""
    return {"": norm} if isinstance(norm, RunningInputNorm) else dict(norm.items())  # type: ignore[arg-type]


def _parts(batch: Any) -> dict[str, Any]:
    """Return the parts of observations; the only one has no name."""
    return batch if isinstance(batch, dict) else {"": batch}


def _map(function: Callable[[Any], Any], batch: Any) -> Any:
    """Return what a function makes of observations, part by part."""
    return (
        {key: function(values) for key, values in batch.items()}
        if isinstance(batch, dict)
        else function(batch)
    )


def _space(gymnasium: Any, space: Any, norm: Norms) -> Any:
    """Return the space of normalised observations, or raise OptionError if the norms do not fit it."""
    if not isinstance(norm, RunningInputNorm | Mapping | nn.ModuleDict):
        fix = "give a RunningInputNorm; in eval mode it counts nothing"
        raise OptionError("norm must be a RunningInputNorm, or a dict of them", type(norm).__name__, fix)
    whole = isinstance(space, gymnasium.spaces.Dict)
    norms, parts = _norms(norm), dict(space.spaces) if whole else {"": space}
    for key, one in norms.items():
        box = parts.get(key)
        if not isinstance(one, RunningInputNorm) or not isinstance(box, gymnasium.spaces.Box):
            raise OptionError(
                "Each part of the observations with a norm must be a Box, and its norm a RunningInputNorm",
                f"{type(one).__name__} for {repr(key) + ' of ' if key else ''}{space}",
                "give a norm for a Box, and for a dict of observations a dict of norms for some of its keys",
            )
        if one.automatic:
            problem = "The norm of an environment must not be automatic, or observations would count twice"
            raise OptionError(problem, repr(one), "leave automatic out: the environment calls update()")
        most = np.inf if one.scheme.clip is None else one.scheme.clip[1]
        parts[key] = gymnasium.spaces.Box(-most, most, box.shape, np.float32)
    return gymnasium.spaces.Dict(parts) if whole else parts[""]
