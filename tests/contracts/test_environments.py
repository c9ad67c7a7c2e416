"""Environments, normalised: beside VecNormalize of stable-baselines3 and the wrappers of gymnasium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeReward
from gymnasium.wrappers.vector import NormalizeObservation
from safetensors.torch import load_model, save_model
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

import slabnorm as sn
from slabnorm.contracts import environments
from slabnorm.contracts.environments import normalized
from slabnorm.errors import ExtraError, OptionError, ShapeError, StatisticsWarning
from tests.inputs.oracle import mean_var, relative

pytestmark = pytest.mark.usefixtures("in_plain_torch")


class Far(gymnasium.Env):
    """An environment of 12 steps whose observations are the numbers it is given, far from 0."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, seed: int, offset: float = 1e4) -> None:
        self._rng, self._offset, self._step = np.random.default_rng(seed), offset, 0
        self.given: list[np.ndarray] = []

    def _observation(self) -> np.ndarray:
        self.given.append(self._offset + self._rng.normal(size=2))
        return self.given[-1]

    def reset(self, **options: Any) -> Any:
        self._step = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self._step += 1
        return self._observation(), float(self._rng.normal()), self._step == 12, False, {}


class Parts(Far):
    """The same as a dict."""

    observation_space = gymnasium.spaces.Dict(
        {"place": Far.observation_space, "goal": gymnasium.spaces.Discrete(3)}
    )

    def _observation(self) -> Any:
        return {"place": super()._observation(), "goal": 1}


def pendulums() -> DummyVecEnv:
    env = DummyVecEnv([lambda: gymnasium.make("Pendulum-v1", max_episode_steps=50)] * 100)
    env.seed(0)
    return env


def test_as_vec_normalize_does_on_the_same_steps():
    """10,000 steps: equal within 1e-6, as the weight of their first 1e-4 samples has become small."""
    norm, rewards = sn.RunningInputNorm("n c -> c", clip=10), sn.ReturnScale(gamma=0.99, clip=10)
    ours, theirs = normalized(pendulums(), norm, rewards), VecNormalize(pendulums())
    np.testing.assert_allclose(ours.reset(), theirs.reset(), rtol=1e-4, atol=1e-4)
    rng, ends = np.random.default_rng(0), 0
    for step in range(100):
        actions = rng.uniform(-2, 2, (100, 1)).astype(np.float32)
        found, want = ours.step(actions), theirs.step(actions)
        assert (found[2] == want[2]).all()
        ends += found[2].sum()
        if step > 50:
            for a, b in zip(found[:2], want[:2], strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
            for a, b in zip(found[3], want[3], strict=True):
                if "terminal_observation" in b:
                    a, b = a["terminal_observation"], b["terminal_observation"]
                    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert ends == 200
    assert norm.samples == 10_100
    torch.testing.assert_close(rewards.discounted.numpy(), theirs.returns, rtol=1e-12, atol=1e-12)
    # Evaluation counts nothing.
    for module in (norm, rewards):
        module.eval()
    theirs.training = False
    for _ in range(3):
        found, want = ours.step(actions), theirs.step(actions)
        np.testing.assert_allclose(found[0], want[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found[1], want[1], rtol=1e-6, atol=1e-6)
    assert norm.samples == 10_100


def test_exact_where_the_wrapper_of_gymnasium_is_not():
    """It keeps its statistics in float32, as its observations."""
    envs = [[Far(seed) for seed in range(4)] for _ in range(2)]
    ours, theirs = (gymnasium.vector.SyncVectorEnv([lambda e=e: e for e in some]) for some in envs)
    norm, rewards = sn.RunningInputNorm("n c -> c"), sn.ReturnScale(gamma=0.9, clip=None)
    ours, theirs = normalized(ours, norm, rewards), NormalizeObservation(theirs)
    observations, _ = ours.reset()
    theirs.reset()
    returns, all_returns, starts = np.zeros(4), [], np.zeros(4, bool)
    for _ in range(30):
        observations, scaled, terminated, truncated, _ = ours.step(np.zeros((4, 1), np.float32))
        reward = theirs.step(np.zeros((4, 1), np.float32))[1]
        returns = returns * 0.9 + reward
        all_returns.append(returns[~starts])  # the step after an end only resets, and has no reward
        std = np.sqrt(np.concatenate(all_returns).var() + 1e-8)
        np.testing.assert_allclose(scaled, reward / std, rtol=1e-9)
        starts = terminated | truncated
        returns[starts] = 0
    given = np.array([env.given for env in envs[0]]).reshape(-1, 2)
    for feature, values in enumerate(given.T):
        mean, var = mean_var(values)
        assert norm.moments.count[feature] == 4 * 31
        assert relative(norm.moments.mean[feature].item(), mean) <= 1e-15
        assert relative(norm.moments.var()[feature].item(), var) <= 1e-12
        assert relative(theirs.obs_rms.var[feature], var) > 10  # 1e-4 samples of 0 weigh 1e4 squared
    last = np.array([env.given[-1] for env in envs[0]])
    want = (last - given.mean(0)) / np.sqrt(given.var(0) + 1e-8)
    np.testing.assert_allclose(observations, want, rtol=1e-5, atol=1e-6)
    assert ours.observation_space.contains(observations)


def test_a_single_environment():
    norm, rewards = sn.RunningInputNorm("n c -> c", clip=3), sn.ReturnScale(gamma=0.9, clip=None)
    env, bare = normalized(Far(0), norm, rewards), NormalizeReward(Far(0), gamma=0.9)
    observation, _ = env.reset()
    assert observation.tolist() == [0, 0]
    bare.reset()
    for step in range(12):
        observation, reward, terminated, _, _ = env.step(env.action_space.sample())
        _, want, *_ = bare.step(None)
        if (
            5 < step < 11
        ):  # theirs starts with 1e-4 returns, and takes the last step for the start of an episode
            assert reward == pytest.approx(want, rel=1e-4)
    seen = np.array(env.unwrapped.given)
    np.testing.assert_allclose(
        observation, ((seen[-1] - seen.mean(0)) / seen.std(0)).clip(-3, 3), rtol=1e-6, atol=1e-6
    )
    assert terminated
    assert (env.observation_space.low == -3).all()
    assert rewards.returns.samples == 12
    assert type(reward) is float
    norm.eval()
    env.reset()
    assert norm.samples == 13
    assert rewards.discounted.numel() == 0


def test_evaluation_beside_the_training():
    norm = sn.RunningInputNorm("n c -> c")
    normalized(Far(0), norm).reset()
    beside = normalized(Far(1), norm, count=False)
    observation, _ = beside.reset()
    assert norm.samples == 1
    mean = norm.moments.mean.numpy()  # of one sample, which is divided by 1
    np.testing.assert_allclose(observation, beside.unwrapped.given[0] - mean, rtol=1e-6)
    with pytest.raises(OptionError, match="must count them"):
        normalized(Far(1), norm, sn.ReturnScale(), count=False)
    with pytest.raises(OptionError, match="env must be an environment"):
        normalized(nn.Identity(), norm)


def test_some_parts_of_a_dict():
    norm = nn.ModuleDict({"place": sn.RunningInputNorm("n c -> c", clip=10)})
    env = normalized(Parts(0), norm)
    observation, _ = env.reset()
    observation, *_ = env.step(0)
    seen = np.array(env.unwrapped.given)
    want = (seen[-1] - seen.mean(0)) / seen.std(0)
    np.testing.assert_allclose(observation["place"], want, rtol=1e-5)
    assert observation["goal"] == 1
    venv = normalized(
        DummyVecEnv([lambda: Parts(1)] * 2), {"place": sn.RunningInputNorm("n c -> c", clip=10)}
    )
    assert venv.reset()["goal"].tolist() == [1, 1]
    assert venv.observation_space["place"].high.tolist() == [10, 10]
    for wrong in (sn.RunningInputNorm("n c -> c"), {"goal": norm["place"]}, {"place": nn.Identity()}):
        with pytest.raises(OptionError, match="must be a Box"):
            normalized(Parts(0), wrong)


def test_norms_that_an_environment_cannot_have():
    frozen = sn.RunningInputNorm("n c -> c")
    frozen.update(torch.randn(3, 2))
    for wrong in (frozen.freeze(), None):
        with pytest.raises(OptionError, match="norm must be a RunningInputNorm"):
            normalized(Far(0), wrong)
    automatic = sn.RunningInputNorm("n c -> c", automatic=True)  # each observation would count twice
    for make in (lambda: Far(0), lambda: DummyVecEnv([lambda: Far(0)])):
        with pytest.raises(OptionError, match="must not be automatic"):
            normalized(make(), automatic, count=False)


def test_evaluation_within_a_training_does_not_warn():
    """EvalCallback warns of environments that are not of one class; here a warning is an error."""
    norm = sn.RunningInputNorm("n c -> c")
    env, beside = (DummyVecEnv([lambda: Monitor(Far(0))]) for _ in range(2))
    model = PPO("MlpPolicy", normalized(env, norm), n_steps=8, batch_size=8, n_epochs=1)
    evaluation = EvalCallback(normalized(beside, norm, count=False), None, None, 1, 8, verbose=0)
    model.learn(16, callback=evaluation)
    assert norm.samples == 17
    assert evaluation.last_mean_reward != -np.inf


def test_what_ends_an_episode_must_be_seen():
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    env = gymnasium.vector.SyncVectorEnv([lambda: Far(0)], autoreset_mode=mode)
    with pytest.raises(OptionError, match="with the next step"):
        normalized(env, sn.RunningInputNorm("n c -> c"))


def test_without_gymnasium(monkeypatch):
    monkeypatch.setitem(environments.__dict__, "extra", _absent)
    with pytest.raises(ExtraError, match="pip install gymnasium"):
        normalized(Far(0), sn.RunningInputNorm("n c -> c"))


def _absent(package: str, what: str, install: str) -> Any:
    raise ExtraError(f"{what} needs the package {package}", "", f"pip install {install}")


def test_a_policy_saved_and_loaded_gives_the_same_actions(tmp_path: Path):
    """Policy and statistics are one file; without the statistics the actions are others."""

    def agent() -> tuple[PPO, nn.ModuleDict]:
        norm, rewards = sn.RunningInputNorm("n c -> c", clip=10), sn.ReturnScale(gamma=0.99)
        env = normalized(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")] * 4), norm, rewards)
        net = {"net_arch": [8]}
        model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, policy_kwargs=net, seed=0)
        parts = {"policy": model.policy, "observations": norm, "rewards": rewards}
        return model, nn.ModuleDict(parts)

    model, whole = agent()
    model.learn(512)
    assert whole["observations"].samples == 516  # each step once, whatever the epochs, and each reset
    save_model(whole, tmp_path / "agent.safetensors")
    other, loaded = agent()
    load_model(loaded, tmp_path / "agent.safetensors")
    raw = torch.from_numpy(np.random.default_rng(0).normal([0, 0, 2], [0.7, 0.7, 3], (64, 3)).astype("f4"))

    def actions(model: PPO, observations: torch.Tensor) -> np.ndarray:
        return model.predict(observations.detach().numpy(), deterministic=True)[0]

    whole.eval()
    loaded.eval()
    want = actions(model, whole["observations"](raw))
    assert np.array_equal(actions(other, loaded["observations"](raw)), want)
    frozen = whole["observations"].freeze()
    assert np.array_equal(actions(other, frozen(raw)), want)
    assert torch.equal(loaded["rewards"].discounted, whole["rewards"].discounted)
    assert np.abs(actions(other, raw) - want).max() > 0.01


# Rewards by themselves.


def test_returns_are_scaled_as_their_formula_says():
    rng = np.random.default_rng(0)
    scale = sn.ReturnScale(gamma=0.8, clip=1.5, eps=0.01)
    returns, seen = np.zeros(3), []
    for _ in range(20):
        rewards, dones = rng.normal(2, 1, 3), rng.random(3) < 0.2
        returns = returns * 0.8 + rewards
        seen.append(returns)
        want = (rewards / np.sqrt(np.concatenate(seen).var() + 0.01)).clip(-1.5, 1.5)
        found = scale(torch.from_numpy(rewards), torch.from_numpy(dones))
        np.testing.assert_allclose(found, want, rtol=1e-12)
        returns = np.where(dones, 0, returns)
    scale.half()  # statistics and returns stay float64
    np.testing.assert_allclose(scale.discounted, returns, rtol=1e-14)
    again = sn.ReturnScale(gamma=0.8, clip=1.5, eps=0.01)
    again.load_state_dict(scale.state_dict())
    step = torch.tensor([1, 0, 3]), torch.tensor([True, False, False])
    assert torch.equal(again(*step), scale(*step))
    assert torch.equal(again.discounted, scale.discounted)
    with torch.device("meta"):
        later = sn.ReturnScale(gamma=0.8, clip=1.5, eps=0.01)
    later.to_empty(device="cpu").load_state_dict(scale.state_dict())
    assert torch.equal(later(*step), again(*step))
    before = scale.discounted
    assert scale.eval()(*step).dtype == torch.float32
    assert torch.equal(scale.discounted, before)


def test_rewards_that_are_not_finite_or_do_not_fit():
    scale = sn.ReturnScale(gamma=0.5)
    two, no = torch.tensor([1.0, 2.0]), torch.zeros(2, dtype=torch.bool)
    scale(two, no)
    with pytest.warns(StatisticsWarning, match="left out"):
        scale(torch.tensor([1.0, torch.nan]), no)
    assert scale.returns.samples == 2
    assert scale.discounted.tolist() == [1.5, 0]
    with pytest.raises(ShapeError, match="number of environments"):
        scale(torch.ones(3), torch.zeros(3))
    scale.reset()
    scale(torch.ones(3), torch.zeros(3))
    assert scale.discounted.tolist() == [1, 1, 1]
    with pytest.raises(ShapeError, match="one number for each"):
        scale(torch.ones(3), no)
    for wrong in ({"gamma": 1.5}, {"clip": 0}, {"eps": -1}):
        with pytest.raises(OptionError):
            sn.ReturnScale(**wrong)
