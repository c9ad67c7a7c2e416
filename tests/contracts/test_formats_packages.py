"""Statistics of other packages as contracts: the same numbers and results, nothing made up or executed."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import slabnorm as sn
from slabnorm.contracts import Statistics
from slabnorm.contracts.formats import FORMATS, inert_pickle, stable_baselines3
from slabnorm.contracts.read import write
from slabnorm.errors import ContractError, DataError, DataWarning, SlabError

# Keras's variables have an __array__ of before NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PIXELS = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) * 2 % 256


def unknown(contract: sn.Contract, name: str, *but: str) -> None:
    """Assert that a key says nothing of what no file can have said, but of what is named."""
    key, norm = contract.key(name), contract[name]
    said = {
        "unit": key.unit, "names": key.names, "valid": key.valid, "split": norm.split or None,
        "samples": norm.samples, **dict.fromkeys(("mean", "std", "min", "max", "count")),
        **norm.statistics.known(),
    }  # fmt: skip
    assert {name for name, value in said.items() if value not in (None, "", ())} == set(but)


def like(kind: str, **attributes: Any) -> Any:
    """Return an object of a class of this name, with these attributes."""
    module, _, name = kind.rpartition(".")
    made = type(name, (), {"__module__": module})()
    vars(made).update(attributes)
    return made


# stable-baselines3 and gymnasium


class Walk:
    """An environment of gymnasium, with observations that are drawn beforehand."""

    def __new__(cls, space: Any) -> Any:
        import gymnasium

        class Env(gymnasium.Env):
            observation_space, action_space = space, gymnasium.spaces.Discrete(2)

            def reset(self, **kwargs: Any) -> Any:
                return self.observation_space.sample(), {}

            def step(self, action: Any) -> Any:
                return self.observation_space.sample(), 1.0, False, False, {}

        return Env()


@pytest.fixture(scope="module")
def spaces() -> Any:
    return pytest.importorskip("gymnasium").spaces


def vec_normalize(space: Any, steps: int = 3, **options: Any) -> Any:
    vec = pytest.importorskip("stable_baselines3.common.vec_env")
    env = vec.VecNormalize(vec.DummyVecEnv([lambda: Walk(space)] * 2), **options)
    space.seed(1)
    if steps:
        env.reset()
    for _ in range(steps):
        env.step([0, 0])
    return env


@pytest.fixture(scope="module")
def box(spaces: Any) -> Any:
    return vec_normalize(spaces.Box(-3, 7, (3,)))


@pytest.fixture(scope="module")
def entries(spaces: Any) -> Any:
    """Of a Dict space, of which one entry is not normalised."""
    whole = spaces.Dict(
        {
            "state": spaces.Box(-1, 1, (3,)),
            "image": spaces.Box(0, 255, (2, 2, 1), np.uint8),
            "task": spaces.Discrete(3),
        }
    )
    return vec_normalize(whole, norm_obs_keys=["state", "image"], clip_obs=0.5, epsilon=1e-3)


def test_vec_normalize_alive_gives_what_it_gives(box: Any) -> None:
    contract = sn.contract(box)
    x = np.float32([[1, 2, 3], [90, -90, 0]])
    found = contract({"observation": torch.from_numpy(x)})["observation"].numpy()
    np.testing.assert_allclose(found, box.normalize_obs(x), rtol=1e-6, atol=1e-6)
    found = contract["observation"].statistics
    assert found.mean.tolist() == box.obs_rms.mean.tolist()
    assert found.std.tolist() == np.sqrt(box.obs_rms.var).tolist()
    assert contract.key("observation").scheme == sn.ZScore(eps=1e-8, clip=(-10, 10))
    assert box.obs_rms.count == 8.0001
    assert contract["observation"].samples == 8  # of which no single value's count is said
    unknown(contract, "observation", "mean", "std", "samples")


def test_what_passes_unchanged_has_no_statistics(entries: Any) -> None:
    with pytest.raises(ContractError, match="Key 'task': It passes unchanged"):
        sn.contract(entries, {"task": "n ->"})
    assert sn.contract(entries, {"state": "keep"}).names() == ["image"]


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_any_protocol_says_what_its_object_says(
    entries: Any, tmp_path: Path, protocol: int
) -> None:
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(pickle.dumps(entries, protocol=protocol))
    contract = sn.contract(path)
    assert list(contract) == ["state", "image", "task"]
    assert contract.key("task").keep
    for name in ("state", "image"):
        assert contract[name].statistics.mean.tolist() == entries.obs_rms[name].mean.tolist()
        assert contract[name].statistics.std.tolist() == np.sqrt(entries.obs_rms[name].var).tolist()
        unknown(contract, name, "mean", "std", "samples")
    batch = {
        "state": np.float32([[0.1, -0.2, 9], [0, 0, 0]]),
        "image": np.uint8([[[[7]], [[9]]], [[[255]], [[0]]]]).reshape(1, 2, 2, 1).repeat(2, 0),
        "task": np.array([1, 2]),
    }
    found = contract({name: torch.from_numpy(value) for name, value in batch.items()})
    for name, value in entries.normalize_obs(batch).items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-6, atol=1e-7)
    assert found["state"].max() == 0.5  # clip_obs


def test_a_saved_vec_normalize_is_kept_whole_by_a_contract(box: Any, tmp_path: Path) -> None:
    box.save(tmp_path / "vecnormalize.pkl")
    sn.contract(tmp_path / "vecnormalize.pkl").save(tmp_path / "contract.safetensors")
    again = sn.contract(tmp_path / "contract.safetensors")
    assert again["observation"].source.format == "stable-baselines3"
    assert again["observation"].statistics.mean.tolist() == box.obs_rms.mean.tolist()
    assert again["observation"].scheme == sn.ZScore(eps=1e-8, clip=(-10, 10))


def test_a_variance_of_0_divides_by_the_root_of_epsilon(spaces: Any) -> None:
    env = vec_normalize(spaces.Box(-1, 1, (2,)))
    env.obs_rms.var = np.array([0.0, 1e-30])
    x = np.float32(env.obs_rms.mean + np.array([[1e-5, -2e-4]]))
    found = sn.contract(env)["observation"](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, env.normalize_obs(x), rtol=1e-6)
    assert abs(found).max() > 1  # by 1 it would be 2e-4


@pytest.mark.parametrize(("limit", "clip"), [(np.inf, None), (2, (-2, 2)), (0, ""), (-1.0, ""), ("x", "")])
def test_where_observations_are_cut_off(spaces: Any, limit: Any, clip: Any) -> None:
    env = vec_normalize(spaces.Box(-1, 1, (2,)))
    env.clip_obs = limit
    if clip == "":
        with pytest.raises(DataError, match="clip_obs"):
            sn.contract(env)
    else:
        assert sn.contract(env).key("observation").scheme == sn.ZScore(eps=1e-8, clip=clip)


def test_what_counted_no_observation_has_no_statistics(spaces: Any) -> None:
    with pytest.raises(DataError, match="no observation was counted"):
        sn.contract(vec_normalize(spaces.Box(-1, 1, (2,)), steps=0))
    with pytest.raises(DataError, match="does not normalise observations"):
        sn.contract(vec_normalize(spaces.Box(-1, 1, (2,)), norm_obs=False))


def test_damaged_running_statistics_name_their_key(entries: Any) -> None:
    for attribute, value, why in (
        ("var", np.array([1.0, -1.0, 1.0]), "its variance is negative at feature 1"),
        ("mean", np.array([1.0, np.nan, 1.0]), "its mean is not finite at feature 1"),
        ("mean", np.zeros(2), "differ in shape"),
        ("mean", np.array(["a", "b", "c"]), "dtype <U1"),
        ("count", np.inf, "count is not finite"),
    ):
        whole = pickle.loads(pickle.dumps(entries))
        setattr(whole.obs_rms["state"], attribute, value)
        with pytest.raises(DataError, match="key 'state'") as caught:
            sn.contract(whole)
        assert why in str(caught.value)


def test_a_file_with_wrong_numbers_is_named_with_its_key(entries: Any, tmp_path: Path) -> None:
    path = tmp_path / "vecnormalize.pkl"
    for attribute, value, why in (
        ("var", np.array([1.0, -1.0, 1.0]), "its variance is negative at feature 1"),
        ("mean", np.array([1.0, np.nan, 1.0]), "its mean is not finite at feature 1"),
        ("mean", np.array(["a", "b", "c"]), "an array of something else than numbers"),
        ("mean", np.zeros(3, complex), "an array of something else than numbers"),
        ("mean", np.array([1.0, 2.0]), "differ in shape"),
        ("mean", [1.0, 2.0], "a list, where a number or an array belongs"),
        ("mean", {}, "a dict, where a number or an array belongs"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(entries.obs_rms["state"], attribute, value)
            entries.save(path)
        with pytest.raises(DataError, match="key 'state'") as caught:
            sn.contract(path)
        assert why in str(caught.value)
        assert str(path) in str(caught.value)


def test_gymnasium_alone_and_in_a_vector(spaces: Any) -> None:
    import gymnasium
    from gymnasium.wrappers import NormalizeObservation
    from gymnasium.wrappers.vector import NormalizeObservation as Vector

    space = spaces.Box(-3, 7, (2, 3))
    vector = gymnasium.vector.SyncVectorEnv([lambda: Walk(space)] * 2)
    for env in (NormalizeObservation(Walk(space), epsilon=0.1), Vector(vector)):
        env.reset(seed=1)
        for _ in range(4):
            env.step(env.action_space.sample())
        env.update_running_mean = False
        contract = sn.contract(env)
        x = space.sample()[None].repeat(2, 0)
        want = env.observation(x[0])[None] if hasattr(env, "observation") else env.observations(x)
        found = contract["observation"](torch.from_numpy(x[: len(want)])).numpy()
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)
        assert contract["observation"].statistics.mean.tolist() == env.obs_rms.mean.tolist()
        assert contract["observation"].samples == round(float(env.obs_rms.count))
        unknown(contract, "observation", "mean", "std", "samples")
    with pytest.raises(DataError, match="no observation was counted"):
        sn.contract(NormalizeObservation(Walk(space)))
    with pytest.raises(DataError, match="No known format"):
        sn.contract(gymnasium.wrappers.NormalizeReward(Walk(space)))


# Pickles that would do something


class Calls:
    """What a pickle makes a call of."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = function, arguments, state

    def __reduce__(self) -> Any:
        return self.call


def hostile(marker: Path) -> dict[str, bytes]:
    """Return pickles that would make a file, or take memory and time without end."""
    import os
    from collections import OrderedDict

    command = f"touch {marker}"
    inside = "stable_baselines3.common.vec_env.vec_normalize VecNormalize".replace(" ", "\n")
    head = f"c{inside}\n)\x81}}(Vobs_rms\n".encode("latin1")
    calls = {f"system, protocol {p}": pickle.dumps(Calls(os.system, command), p) for p in range(6)}
    python = f"__import__('os').system({command!r})"
    evil = pickle.dumps(Calls(os.system, command), 0)[:-1]
    doubled = b")" + b"2\x86" * 60  # a tuple of 2^60 tuples
    running = stable_baselines3.RUNNING.replace(".RunningMeanStd", "\nRunningMeanStd").encode()
    inner = head[:-10] + b"(Vnorm_obs\n\x88Vepsilon\nG>\x00\x00\x00\x00\x00\x00\x00Vclip_obs\nK\x05Vobs_rms\n"
    statistics = b"c%b\n)\x81}(Vvar\nK\x01Vcount\nK\x05Vmean\n" % running
    huge = b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20)
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
    return calls | {
        "eval": pickle.dumps(Calls(eval, python)),
        "exec in an allowed call": pickle.dumps(Calls(OrderedDict, [("a", Calls(exec, python))])),
        "reconstructed": pickle.dumps(Calls(np.ndarray, Calls(os.system, command)), 2),
        "as a state": pickle.dumps(Calls(OrderedDict, state={"x": Calls(os.system, command)}), 4),
        "inside a VecNormalize": head + evil + b"ub.",
        "call of a call": b"ccollections\nOrderedDict\n)R(Vx\ntR.",
        "call of a text": b"Vos.system\n(V%b\ntR." % command.encode(),
        "getattr of a class": b"\x80\x04\x8c\x14gymnasium.spaces.box\x8c\x17Box.__init__.__globals__\x93.",
        "a module below an allowed one": b"cnumpy.testing._private.utils\nrunstring\n)R.",
        "an old instance": b"(V%b\nios\nsystem\n." % command.encode(),
        "an old object": b"(cos\nsystem\nV%b\no." % command.encode(),
        "an escape in a name": b"co\\Xs\nsystem\n)R.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent name": b"Psomething\n.",
        "a buffer from outside": b"\x80\x05\x97.",
        "protocol 6": b"\x80\x06N.",
        "a key of tuples": head + b"}" + doubled + b"Nsub.",
        "lists without end": head + b"](" + b"](" * 1000 + b"e" * 1001 + b"ub.",
        "long": b"(" + b"N" * (inert_pickle.MOST + 5) + b"t.",
        "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
        "a far place of the memo": b"Nr\xff\xff\xff\xff.",
        "no such place of the memo": b"h\x07.",
        "an empty stack": b"R.",
        "no mark": b"t.",
        "no end": b"N",
        "nothing": b"",
        "more after its end": b"N.N.",
        "a number of a million digits": b"I" + b"9" * 10**6 + b"\n.",
        "unknown": b"\xff.",
        "a mean of tuples": inner + statistics + doubled + b"ubub.",
        "an epsilon of tuples": head[:-10] + b"(Vnorm_obs\n\x88Vepsilon\n" + doubled + b"Vobs_rms\nVx\nub.",
        "a key that is a number": inner + b"}K\x01" + statistics + b"K\x01ubsub.",
        "a key that takes long to hash": b"}" + huge + b"q\x050" + b"h\x05Ns" * 30_000 + b".",
        "bytes again and again": b"c_codecs\nencode\nq\x00"
        + text
        + b"Vlatin1\n\x86q\x01"
        + b"h\x00h\x01R" * 100_000
        + b".",
    }


NAMES = list(hostile(Path("made")))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_pickle_is_executed(name: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "made", tmp_path / "vecnormalize.pkl"
    path.write_bytes(hostile(marker)[name])
    with pytest.raises(DataError) as caught:
        sn.contract(path, format="stable-baselines3")
    assert str(path) in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a mean of tuples", "a tuple, where a number or an array belongs"),
        ("an epsilon of tuples", "a tuple, where a number or an array belongs"),
        ("a key that is a number", "the name of a key is no text"),
        ("a key that takes long to hash", "a number of more than 4,096 bits"),
        ("bytes again and again", "it makes more bytes than it has"),
    ],
)
def test_what_would_take_all_memory_or_time_is_said(name: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(hostile(tmp_path / "made")[name])
    with pytest.raises(DataError, match=why):
        sn.contract(path, format="stable-baselines3")


def test_entries_that_pass_are_keys_too(entries: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stable_baselines3, "MOST_KEYS", 4)
    with pytest.raises(DataError, match="it has 5 keys, more than 4"):
        sn.contract(entries)


def test_what_would_be_called_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(hostile(tmp_path / "made")["inside a VecNormalize"])
    assert stable_baselines3.recognises(path)
    with pytest.raises(DataError, match=r"would import posix\.system"):
        sn.contract(path)


def test_the_hostile_pickles_would_do_it(tmp_path: Path) -> None:
    marker = tmp_path / "made"
    for name in ("system, protocol 4", "eval", "exec in an allowed call", "as a state"):
        pickle.loads(hostile(marker)[name])
        assert marker.exists(), name
        marker.unlink()


def test_mutants_of_a_pickle_are_read_or_refused(box: Any, tmp_path: Path) -> None:
    content, path = pickle.dumps(box), tmp_path / "vecnormalize.pkl"
    rng = np.random.default_rng(5)
    refused = 0
    for at in rng.integers(0, len(content), 300):
        mutant = bytearray(content)
        mutant[at] ^= 1 << rng.integers(8)
        path.write_bytes(mutant if at % 3 else content[:at])
        try:
            assert list(sn.contract(path, format="stable-baselines3")) == ["observation"]
        except DataError:
            refused += 1
    assert refused > 100


def test_a_huge_or_deep_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vecnormalize.pkl"
    with path.open("wb") as file:
        file.truncate(1 << 33)  # without a byte on the disk
    for format in ("stable-baselines3", "huggingface", "timm"):
        with pytest.raises(DataError, match="Too large"):
            sn.contract(path, format=format)
    path.write_bytes(b"]" * 200_000 + b"a" * 199_999 + b".")
    with pytest.raises(DataError, match="No VecNormalize"):
        sn.contract(path, format="stable-baselines3")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i2", "|u1"])
def test_arrays_are_read_as_numpy_reads_them(protocol: int, dtype: str) -> None:
    values = np.arange(6).reshape(2, 3).astype(dtype)
    for array in (values, np.asfortranarray(values), values[0, 2], values[:0]):
        content = pickle.dumps(array, protocol)
        whole = inert_pickle.take_apart(
            content, lambda name: stable_baselines3.EXPECTED.fullmatch(name) is not None, "here"
        )
        found = inert_pickle.array(whole)
        assert found.shape == array.shape
        assert found.tolist() == array.tolist()
        assert not any(
            code.name == "STOP" for code, _, _ in list(pickletools.genops(io.BytesIO(content)))[:-1]
        )


# scikit-learn


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    return np.random.default_rng(7).normal([5, -100, 0.1], [1, 30, 1e-3], (50, 3))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("StandardScaler", {}),
        ("MinMaxScaler", {}),
        ("MinMaxScaler", {"feature_range": (-2, 3), "clip": True}),
    ],
    ids=["standard", "min-max", "min-max-clipped"],
)
def test_a_scaler_gives_what_it_gives(table: np.ndarray, name: str, options: dict[str, Any]) -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    scaler = getattr(preprocessing, name)(**options).fit(table)
    contract = sn.contract(scaler)
    x = table[:7] * 1.5 - 1
    found = contract["x"](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, scaler.transform(x), rtol=1e-12, atol=1e-12)
    if not options.get("clip"):
        np.testing.assert_allclose(contract["x"].inverse(torch.from_numpy(found)).numpy(), x, rtol=1e-12)
    assert contract["x"].samples == 50
    if name == "StandardScaler":
        assert contract["x"].statistics.count.tolist() == [50, 50, 50]
        unknown(contract, "x", "mean", "std", "count", "samples")
    else:
        assert contract["x"].statistics.min.tolist() == table.min(0).tolist()
        unknown(contract, "x", "min", "max", "samples")


def test_scalers_by_key_with_missing_values_and_constant_columns() -> None:
    pandas, preprocessing = pytest.importorskip("pandas"), pytest.importorskip("sklearn.preprocessing")
    frame = pandas.DataFrame({"a": [1.0, 2, np.nan, 4], "b": [0.1] * 4, "c": [3.0, 0, 3, 0]})
    scalers = {
        "state": preprocessing.StandardScaler().fit(frame), "action": preprocessing.MinMaxScaler().fit(frame)
    }  # fmt: skip
    contract = sn.contract(scalers, {"action": sn.Key("n c -> c", sn.MinMax(), role="output", unit="rad")})
    assert contract.key("state").names == ("a", "b", "c")
    assert contract["state"].statistics.count.tolist() == [3, 4, 4]
    assert contract["state"].samples is None  # each column says its own
    assert contract["action"].samples == 4
    assert contract["action"].statistics.count is None
    x = np.array([[1.5, 0.1, 0], [7, 0.3, 1]])
    for name, scaler in scalers.items():
        want = scaler.transform(pandas.DataFrame(x, columns=list("abc")))
        np.testing.assert_allclose(contract[name](torch.from_numpy(x)).numpy(), want, rtol=1e-12, atol=1e-12)


def test_weights_leave_the_count_open(table: np.ndarray) -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    scaler = preprocessing.StandardScaler().fit(table, sample_weight=np.linspace(0.1, 1, 50))
    contract = sn.contract(scaler)
    unknown(contract, "x", "mean", "std")
    assert contract["x"].statistics.mean.tolist() == scaler.mean_.tolist()


def test_what_no_scheme_says_is_refused_with_the_reason(table: np.ndarray) -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline

    standard = preprocessing.StandardScaler
    changed = standard().fit(table)
    changed.scale_ = changed.scale_ * 2
    short = standard().fit(table)
    short.scale_ = short.scale_[:2]
    columns = ColumnTransformer([("a", standard(), [0]), ("b", standard(), [1])]).fit(table)
    for scaler, why in (
        (standard(with_mean=False).fit(table), "divides without centring"),
        (standard(with_std=False).fit(table), "only centres"),
        (preprocessing.MaxAbsScaler().fit(table), "divides without centring"),
        (preprocessing.RobustScaler().fit(table), "keeps the range between two quantiles"),
        (make_pipeline(standard()).fit(table), "computes more than its scalers"),
        (columns, "computes more than its scalers"),
        (standard(), "fit the StandardScaler first"),
        (changed, "at features 0, 1, 2, and ZScore(ddof=0, eps=0.0) by"),
        (short, "shape"),
    ):
        with pytest.raises(DataError) as caught:
            sn.contract(scaler)
        assert why in str(caught.value)
    scalers = {name: each for name, each, _ in columns.transformers_ if name != "remainder"}
    assert list(sn.contract(scalers)) == ["a", "b"]


# Keras


@pytest.fixture(scope="module")
def keras() -> Iterator[Any]:
    """Keras on top of NumPy, which compiles nothing; its import takes 3 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "numpy")
        yield pytest.importorskip("keras")


@pytest.mark.parametrize("axis", [-1, None, (1, 3), 2], ids=["last", "none", "two", "second"])
@pytest.mark.parametrize("invert", [False, True], ids=["forward", "inverse"])
def test_a_layer_of_keras_gives_what_it_gives(keras: Any, axis: Any, invert: bool) -> None:
    x = np.random.default_rng(3).normal(3, 5, (6, 2, 4, 3)).astype(np.float32)
    layer = keras.layers.Normalization(axis=axis, invert=invert)
    layer.adapt(x)
    contract = sn.contract(layer)
    apply = contract.inverse if invert else contract
    found = apply({"x": torch.from_numpy(x)})["x"].numpy()
    np.testing.assert_allclose(found, np.asarray(layer(x)), rtol=2e-6, atol=1e-6)
    assert contract.key("x").role == ("output" if invert else "input")
    means = np.asarray(layer.mean, np.float64).reshape(contract["x"].features.shape)
    assert contract["x"].statistics.mean.tolist() == means.tolist()
    unknown(contract, "x", "mean", "std")


def test_a_layer_of_keras_with_given_numbers(keras: Any) -> None:
    layer = keras.layers.Normalization(mean=[1.0, 2.0], variance=[4.0, 9.0])
    layer.build((None, 2))
    found = sn.contract(layer)["x"](torch.tensor([[3.0, 5.0]]))
    assert found.tolist() == [[1.0, 1.0]]
    with pytest.raises(DataError, match="adapt"):
        sn.contract(keras.layers.Normalization())
    fresh = keras.layers.Normalization()
    fresh.build((None, 2))
    with pytest.raises(DataError, match=r"before adapt\(\)"):
        sn.contract(fresh)
    samples = keras.layers.Normalization(axis=0)
    samples.adapt(np.float32([[1, 2], [3, 4]]))
    with pytest.raises(DataError, match="along the samples"):
        sn.contract(samples)
    constant = keras.layers.Normalization()
    constant.adapt(np.float32([[1, 2], [1, 4]]))
    with pytest.warns(DataWarning, match="Keras divides by 1e-07 where the spread is below it, at feature 0"):
        contract = sn.contract(constant)
    x = np.float32([[1, 7]])
    assert contract["x"](torch.from_numpy(x)).tolist() == np.asarray(constant(x)).tolist()


# torchvision and timm: neither is installed here, and so objects of the documented attributes stand in.

V1, V2 = "torchvision.transforms.transforms", "torchvision.transforms.v2"
NORMALIZE = like(f"{V1}.Normalize", mean=IMAGENET[0], std=IMAGENET[1], inplace=False)


def composed(*transforms: Any, kind: str = f"{V1}.Compose") -> Any:
    return like(kind, transforms=list(transforms))


def test_normalize_divides_each_channel() -> None:
    newer = like(f"{V2}._misc.Normalize", mean=torch.tensor([0.5]), std=(0.25,), inplace=True)
    for source, count in ((NORMALIZE, 3), (newer, 1)):
        contract = sn.contract(source)
        x = torch.rand(2, count, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        mean, std = (
            torch.as_tensor(part, dtype=torch.float64)[:, None, None] for part in (source.mean, source.std)
        )
        assert torch.equal(contract({"image": x})["image"], (x - mean) / std)
        unknown(contract, "image", "mean", "std")  # nor which values pixels have


@pytest.mark.parametrize(
    ("before", "valid"),
    [
        (like(f"{V1}.ToTensor"), (0, 1)),
        (like(f"{V1}.ConvertImageDtype", dtype=torch.float32), (0, 1)),
        (like(f"{V2}._misc.ToDtype", dtype=torch.float32, scale=True), (0, 1)),
        (like(f"{V2}._misc.ToDtype", dtype=torch.float32, scale=False), None),
        (like(f"{V1}.ConvertImageDtype", dtype=torch.uint8), None),
        (like(f"{V1}.Lambda"), None),
    ],
    ids=["to-tensor", "convert", "to-dtype", "to-dtype-unscaled", "to-bytes", "lambda"],
)
def test_what_stands_before_normalize_says_which_values_come(before: Any, valid: Any) -> None:
    contract = sn.contract(composed(like(f"{V1}.Resize", size=224), before, NORMALIZE))
    assert contract.key("image").valid == valid
    assert contract["image"].statistics.mean.tolist() == IMAGENET[0]


def test_a_preset_says_that_images_are_scaled() -> None:
    kind = "torchvision.transforms._presets.ImageClassification"
    contract = sn.contract(like(kind, mean=IMAGENET[0], std=IMAGENET[1], crop_size=[224], resize_size=[256]))
    assert contract.key("image").valid == (0, 1)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (composed(like(f"{V1}.ToTensor")), "0 transforms that are a Normalize"),
        (composed(NORMALIZE, NORMALIZE), "2 transforms"),
        (like(f"{V1}.Normalize", mean=[0.5], std=[0.5, 0.0]), "its std is not above 0 at feature 1"),
        (like(f"{V1}.Normalize", mean=[0.5], std=[-0.5]), "not above 0"),
        (like(f"{V1}.Normalize", mean=[0.5, 0.5], std=[0.5] * 3), "there are 3 channels"),
        (like(f"{V1}.Normalize", mean=[float("nan")], std=[0.5]), "mean is not finite"),
        (like(f"{V1}.Normalize", mean="0.5", std=[0.5]), "dtype <U3"),
        (like(f"{V1}.Normalize", mean=[True], std=[0.5]), "dtype bool"),
        (like(f"{V1}.Normalize", std=[0.5]), "has no mean"),
        (like(f"{V1}.Normalize", mean=[], std=[]), "0 values"),
    ],
    ids=range(10),
)
def test_a_normalize_that_cannot_be_used(source: Any, why: str) -> None:
    with pytest.raises(DataError, match="key 'image'") as caught:
        sn.contract(source)
    assert why in str(caught.value)


CONFIG = {"mean": IMAGENET[0], "std": IMAGENET[1], "input_size": [3, 224, 224], "crop_pct": 0.875}


def test_timm_as_dict_object_and_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": CONFIG}))
    for source in (CONFIG, like("timm.models._pretrained.PretrainedCfg", **CONFIG), path, tmp_path):
        contract = sn.contract(source)
        assert contract.key("image").valid == (0, 1)  # as its loader scales images
        x = torch.rand(1, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        mean, std = (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in IMAGENET)
        assert torch.equal(contract["image"](x), (x - mean) / std)
        unknown(contract, "image", "mean", "std", "valid")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (json.dumps({"pretrained_cfg": {**CONFIG, "std": [0.1]}, "x": 1}), ""),
        (json.dumps({"pretrained_cfg": {**CONFIG, "input_size": [1, 2, 2]}}), "3 means"),
        (json.dumps({"pretrained_cfg": {**CONFIG, "input_size": [[3], 2, 2]}}), "(channels, height, width)"),
        (json.dumps({"pretrained_cfg": {**CONFIG, "mean": ["a", 1, 1]}}), "its mean has 3 values of dtype"),
        (json.dumps({"pretrained_cfg": {**CONFIG, "mean": [1, [2]]}}), "no array"),
        (json.dumps({"pretrained_cfg": {**CONFIG, "mean": [10**400] * 3}}), "of dtype object"),
        (json.dumps({"pretrained_cfg": {**CONFIG, "mean": [float("nan")] * 3}}), "not finite"),
        (
            '{"pretrained_cfg": {"mean": [1e999, 1, 1], "std": [1, 1, 1], "input_size": [3, 2, 2]}}',
            "not finite",
        ),
        ('{"pretrained_cfg": {"mean": [1], "mean": [2]}}', "twice"),
        ('{"pretrained_cfg": ' + "[" * 100_000, "Damaged JSON"),
        ('{"pretrained_cfg": [1]}', "no JSON object"),
        ('{"pretrained_cfg": {"mean": ' + "[" * 200 + "]" * 200 + "}}", "has no std"),
        ('["pretrained_cfg"', "Damaged JSON"),
    ],
    ids=range(13),
)
def test_hostile_configs_are_refused(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    if not why:
        assert sn.contract(path)["image"].statistics.std.tolist() == [0.1] * 3
        return
    with pytest.raises(DataError) as caught:
        sn.contract(path, format="timm")
    assert why in str(caught.value)
    assert str(path) in str(caught.value)


# transformers


@pytest.fixture(scope="module")
def processors() -> Any:
    """Processors that need no torchvision."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    return SimpleNamespace(
        clip=transformers.CLIPImageProcessorPil(do_resize=False, do_center_crop=False, do_convert_rgb=False),
        vit=transformers.ViTImageProcessorPil(
            do_resize=False, rescale_factor=1 / 127.5, image_mean=[1.0] * 3
        ),
        unscaled=transformers.ViTImageProcessorPil(do_resize=False, do_rescale=False),
        efficient=transformers.EfficientNetImageProcessorPil(do_resize=False),
        pix2struct=transformers.Pix2StructImageProcessorPil(),
        mobile=transformers.MobileViTImageProcessorPil(),
        vivit=transformers.VivitImageProcessor(),
        wav2vec2=transformers.Wav2Vec2FeatureExtractor(),
    )


@pytest.mark.parametrize("name", ["clip", "vit", "unscaled"])
@pytest.mark.parametrize("kind", ["alive", "file", "folder", "nested"])
def test_a_processor_gives_what_it_gives(processors: Any, name: str, kind: str, tmp_path: Path) -> None:
    source = processor = getattr(processors, name)
    if kind != "alive":
        processor.save_pretrained(tmp_path)
        source = path = tmp_path / "preprocessor_config.json"
        if kind == "folder":
            source = tmp_path
        if kind == "nested":
            source = tmp_path / "processor_config.json"
            source.write_text(
                f'{{"image_processor": {path.read_text()}, "processor_class": "CLIPProcessor"}}'
            )
    contract = sn.contract(source)
    pixels = PIXELS.to(torch.uint8)
    images = [image.permute(1, 2, 0).numpy() for image in pixels]
    want = processor(images, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    found = contract({"pixel_values": pixels})["pixel_values"].numpy()
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    assert contract["pixel_values"].statistics.mean.tolist() == [
        mean / factor for mean in processor.image_mean
    ]
    said = {"mean", "std"} | ({"valid"} if processor.do_rescale else set())
    unknown(contract, "pixel_values", *said)
    assert contract.key("pixel_values").valid == ((0, 255) if processor.do_rescale else None)


def test_a_processor_of_images_and_texts_is_looked_into(processors: Any) -> None:
    kind = "transformers.processing_utils.ProcessorMixin"
    contract = sn.contract(like(kind, image_processor=processors.clip, tokenizer=None))
    assert contract["pixel_values"].statistics.mean.tolist() == [
        mean / processors.clip.rescale_factor for mean in processors.clip.image_mean
    ]
    with pytest.raises(DataError, match="recordings by their own statistics"):
        sn.contract(like(kind, feature_extractor=processors.wav2vec2, tokenizer=None))


def test_an_old_file_has_the_documented_defaults(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    half = [0.5, 0.5, 0.5]
    path.write_text(json.dumps({"do_normalize": True, "image_mean": half, "image_std": half, "size": 224}))
    found = sn.contract(path)["pixel_values"](PIXELS)
    torch.testing.assert_close(found, (PIXELS / 255 - 0.5) / 0.5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("efficient", "include_top"),
        ("pix2struct", "has no image_mean"),
        ("mobile", "do_normalize"),
        ("vivit", "offset"),
        ("wav2vec2", "recordings by their own statistics"),
    ],
)
def test_a_processor_that_computes_something_else_is_refused(
    processors: Any, name: str, why: str, tmp_path: Path
) -> None:
    getattr(processors, name).save_pretrained(tmp_path)
    for source in (getattr(processors, name), tmp_path):
        with pytest.raises(DataError) as caught:
            sn.contract(source)
        assert why in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"image_std": [0.5, 0.5, 0.0]},
        {"image_std": [0.5, 0.5, -0.5]},
        {"image_mean": [float("inf")] * 3},
        {"image_mean": {"r": 1}},
        {"image_mean": [0.5, 0.5]},
        {"rescale_factor": 0},
        {"rescale_factor": -1},
        {"rescale_factor": [1, 2]},
        {"rescale_factor": "1/255"},
        {"do_rescale": "yes"},
        {"do_normalize": 1},
    ],
    ids=range(11),
)
def test_a_damaged_file_names_itself(change: dict[str, Any], tmp_path: Path) -> None:
    half = [0.5, 0.5, 0.5]
    plain = {
        "do_normalize": True,
        "image_mean": half,
        "image_std": half,
        "image_processor_type": "X",
        **change,
    }
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(DataError, match="key 'pixel_values'") as caught:
        sn.contract(path)
    assert str(path) in str(caught.value)


def test_a_written_file_is_read_by_transformers(processors: Any, tmp_path: Path) -> None:
    x = PIXELS.to(torch.uint8).numpy()
    contract = sn.fit_contract({"pixels": x}, {"pixels": "n c h w -> c"}, split="train")
    path = tmp_path / "preprocessor_config.json"
    processors.clip.save_pretrained(tmp_path)
    write(contract, path, "huggingface")
    plain = json.loads(path.read_text())
    assert (plain["image_processor_type"], plain["resample"]) == ("CLIPImageProcessor", 3)  # as before
    again = type(processors.clip).from_pretrained(tmp_path)
    images = [image.transpose(1, 2, 0) for image in x]
    want = again(images, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    found = contract["pixels"](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)
    read = sn.contract(path)["pixel_values"].statistics
    whole = Statistics.of(contract["pixels"])
    torch.testing.assert_close(read.mean, whole.mean, rtol=1e-15, atol=0)
    torch.testing.assert_close(read.std, whole.std, rtol=1e-15, atol=0)


def test_statistics_of_scaled_pixels_are_written_with_the_factor(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    write(sn.contract(composed(like(f"{V1}.ToTensor"), NORMALIZE)), path, "huggingface")
    plain = json.loads(path.read_text())
    assert (plain["image_mean"], plain["image_std"]) == IMAGENET
    assert plain["rescale_factor"] == 1 / 255
    assert plain["do_rescale"] is plain["do_normalize"] is True


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"image": sn.Key("n c h w -> c")}, "nobody says whether pixels go from 0 to 255"),
        ({"image": sn.Key("n c h w -> c", "minmax", valid=(0, 1))}, "take ZScore()"),
        ({"image": sn.Key("n c h w -> c", sn.ZScore(eps=0.1), valid=(0, 1))}, "take ZScore()"),
        ({"image": sn.Key("n c h w -> w", valid=(0, 1))}, "are not the channels"),
        ({"image": sn.Key("n c h w -> c", role="output", valid=(0, 1))}, "are not the channels"),
        ({"image": "n c h w -> c", "other": "n c -> c"}, "the contract has 2"),
    ],
    ids=["unknown", "min-max", "eps", "columns", "output", "two"],
)
def test_what_a_file_of_transformers_cannot_hold(keys: dict[str, Any], why: str, tmp_path: Path) -> None:
    data = {"image": PIXELS / 255, "other": torch.rand(2, 3, generator=torch.Generator().manual_seed(4))}
    contract = sn.fit_contract({name: data[name] for name in keys}, keys, split="train")
    with pytest.raises(ContractError) as caught:
        write(contract, tmp_path / "preprocessor_config.json", "huggingface")
    assert why in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_says_more_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text('{"rescale_offset": true}')
    contract = sn.contract(composed(like(f"{V1}.ToTensor"), NORMALIZE))
    with pytest.raises(DataError, match="rescale_offset"):
        write(contract, path, "huggingface")
    assert path.read_text() == '{"rescale_offset": true}'


# All of them

PACKAGES = ("stable-baselines3", "gymnasium", "sklearn", "keras", "torchvision", "timm", "huggingface")


class Evil(dict):
    """A dict that raises whatever is asked of it."""

    def _no(self, *arguments: Any) -> Any:
        raise RuntimeError("asked")

    __getattr__ = __getitem__ = __contains__ = __iter__ = __len__ = __bool__ = keys = get = items = _no


@pytest.mark.parametrize("format", PACKAGES)
def test_other_things_are_not_recognised_and_raise_typed_errors(format: str, tmp_path: Path) -> None:
    form = next(form for form in FORMATS if form.name == format)
    (tmp_path / "other.bin").write_bytes(bytes(range(256)))
    paths = [tmp_path, tmp_path / "other.bin", Path("/dev/null")]
    others: list[Any] = [None, 5, "x", {}, {"mean": 1}, [1], object(), like("a.B"), Evil(), Evil(a=1), *paths]
    for other in others:
        assert not form.recognises(other), other
        with pytest.raises(SlabError):
            form.read(other)


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        ("stable-baselines3", "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"),
        ("gymnasium", "gymnasium.wrappers.stateful_observation.NormalizeObservation"),
        ("gymnasium", "gymnasium.wrappers.vector.stateful_observation.NormalizeObservation"),
        ("gymnasium", "gym.wrappers.normalize.NormalizeObservation"),
        ("sklearn", "sklearn.preprocessing._data.MinMaxScaler"),
        ("keras", "keras.src.layers.preprocessing.normalization.Normalization"),
        ("timm", "timm.models._pretrained.PretrainedCfg"),
        ("torchvision", "torchvision.transforms.v2._container.Compose"),
    ],
)
def test_recognising_needs_no_package(format: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, kind.partition(".")[0], None)  # which cannot be imported now
    assert [form.name for form in FORMATS if form.recognises(like(kind))] == [format]
    with pytest.raises(DataError, match=f"{kind.rpartition('.')[2]} (has no|does not)"):
        sn.contract(like(kind))


@pytest.mark.parametrize("format", [form.name for form in FORMATS])
def test_an_object_of_another_kind_is_no_file(format: str) -> None:
    with pytest.raises(DataError, match=r"a builtins\.dict"):
        sn.contract({"state": {"mean": [1.0], "std": [2.0]}}, format=format)


def test_a_number_of_channels_beyond_any_float_is_refused() -> None:
    with pytest.raises(DataError, match="it has 3 means"):
        sn.contract({**CONFIG, "input_size": [10**400, 2, 2]})
