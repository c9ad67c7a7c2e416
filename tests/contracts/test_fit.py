"""fit_contract: for every kind of source the statistics of NumPy, and those of `fit` bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from tensordict import TensorDict
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

import slabnorm as sn
from slabnorm.errors import (
    ContractError,
    DataError,
    DataWarning,
    LeakageError,
    OptionError,
    PatternError,
    SlabError,
)

RNG = np.random.default_rng(0)
N = 60
STATE = np.random.default_rng(1).normal(100, 2, (N, 3))
ACTION = np.random.default_rng(2).normal(0, 1e-3, (N, 2)).astype("f4")
KEYS: dict[str, str | sn.Key] = {
    "state": sn.Key("n c -> c", unit="rad"),
    "action": sn.Key("n c -> c", "minmax", role="output"),
    "index": "keep",
}


class Items(Dataset):
    """A map-style data set that counts how often an item is asked for."""

    def __init__(self) -> None:
        self.read = 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Any]:
        self.read += 1
        return {"state": torch.from_numpy(STATE[i]), "action": ACTION[i], "index": i}


class Flow(IterableDataset):
    def __iter__(self) -> Any:
        return iter(Items()[i] for i in range(N))


def lists(values: np.ndarray, fixed: bool) -> pa.Array:
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.array(values.tolist(), pa.list_(kind, values.shape[1]) if fixed else pa.list_(kind))


def table(fixed: bool) -> pa.Table:
    return pa.table({"state": lists(STATE, fixed), "action": lists(ACTION, fixed), "index": np.arange(N)})


def parquet(folder: Path, fixed: bool) -> Path:
    where = folder / "data" / "chunk-000"
    where.mkdir(parents=True)
    for part in range(3):
        pq.write_table(table(fixed).slice(20 * part, 20), where / f"episode_{part:06}.parquet")
    return folder / "data"


def npz(folder: Path) -> Path:
    np.savez(folder / "train.npz", state=STATE, action=ACTION, index=np.arange(N))
    return folder / "train.npz"


def group(folder: Path) -> Path:
    found = zarr.open_group(folder / "train.zarr", mode="w")
    found.create_array("state", data=STATE, chunks=(16, 3))
    found.create_array("action", data=ACTION, chunks=(16, 2))
    return folder / "train.zarr"


ARRAYS = {"state": STATE, "action": ACTION, "index": np.arange(N)}
SOURCES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "dict": (lambda _: ARRAYS, "key"),
    "npz": (npz, "key"),
    "zarr": (group, "key"),
    "parquet of lists": (lambda folder: parquet(folder, False), "columns"),
    "parquet of fixed-size lists": (lambda folder: parquet(folder, True), "columns"),
    "arrow table": (lambda _: table(True), "columns"),
    "polars": (lambda _: polars.from_arrow(table(False)), "columns"),
    "items": (lambda _: Items(), "key"),
    "subset": (lambda _: Subset(Items(), range(N)), "key"),
    "iterable": (lambda _: Flow(), "key"),
    "loader": (lambda _: DataLoader(Items(), batch_size=7), "key"),
    "batches": (lambda _: ({n: v[i : i + 9] for n, v in ARRAYS.items()} for i in range(0, N, 9)), "key"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_statistics_are_those_of_fit_bit_for_bit(name: str, tmp_path: Path) -> None:
    make, option = SOURCES[name]
    source = make(tmp_path)
    contract = sn.fit_contract(source, KEYS, split="train")
    assert list(contract) == ["state", "action", "index"]
    assert np.abs(contract["state"].moments.mean.numpy() / STATE.mean(0) - 1).max() < 1e-13
    assert np.abs(contract["state"].moments.std().numpy() / STATE.std(0) - 1).max() < 1e-12
    assert np.array_equal(contract["action"].moments.min.numpy(), ACTION.min(0))
    assert np.array_equal(contract["action"].moments.max.numpy(), ACTION.max(0))
    for key, scheme in (("state", "zscore"), ("action", "minmax")):
        if name == "batches":
            source = make(tmp_path)
        alone = sn.fit(
            source, scheme, "n c -> c", split="train", **{option: [key] if option == "columns" else key}
        )
        found = contract[key]
        assert found.record == alone.record
        assert np.array_equal(found.sketch.hashes, alone.sketch.hashes)
        for label, value in alone.state_dict().items():
            assert torch.equal(value, found.state_dict()[label]), (key, label)


def test_columns_of_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"state": STATE[:, 0], "action": ACTION[:, 0]})
    keys: dict[str, str | sn.Key] = {"state": "n c -> c", "action": "n c -> c"}
    frame.to_csv(tmp_path / "train.csv", index=False, float_format="%.17g")
    for source in (frame, tmp_path / "train.csv"):
        contract = sn.fit_contract(source, keys, split="train")
        assert np.abs(contract["state"].moments.mean.numpy() / STATE[:, 0].mean() - 1).max() < 1e-13
        assert np.abs(contract["action"].moments.mean.numpy() - ACTION[:, 0].astype("f8").mean()) < 1e-12


@pytest.mark.parametrize("kind", ["dict", "TensorDict", "items", "batches"])
def test_entries_in_one_another(kind: str) -> None:
    state = torch.from_numpy(STATE)
    whole = {"observation": {"state": state, "deep": {"x": state[:, :1]}}, "action": torch.from_numpy(ACTION)}
    source: Any = whole
    if kind == "TensorDict":
        source = TensorDict(whole, [N])
    if kind == "batches":
        source = [whole]
    if kind == "items":
        source = [TensorDict(whole, [N])[i].to_dict() for i in range(N)]

        class Listed(Dataset):
            def __len__(self) -> int:
                return N

            def __getitem__(self, i: int) -> Any:
                return whole_items[i]

        whole_items, source = source, Listed()
    keys: dict[str, str | sn.Key] = {
        "observation.state": "n c -> c",
        "observation.deep.x": "n c -> c",
        "action": "n c -> c",
    }
    contract = sn.fit_contract(source, keys, split="train")
    assert np.abs(contract["observation.state"].moments.mean.numpy() / STATE.mean(0) - 1).max() < 1e-13
    y = contract(whole)["observation"]["deep"]["x"]
    assert np.abs(y.numpy()[:, 0] - (STATE - STATE.mean(0))[:, 0] / STATE[:, 0].std()).max() < 1e-10


def test_a_data_set_is_gone_through_once() -> None:
    items = Items()
    sn.fit_contract(items, KEYS, split="train")
    assert items.read == N


def test_keys_that_pass_are_not_read() -> None:
    batches = [{"state": STATE, "task": object()}]
    contract = sn.fit_contract(batches, {"state": "n c -> c", "task": "keep"}, split="train")
    assert contract.key("task").keep


def test_progress_and_origin(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    sn.fit_contract(Items(), KEYS, split="train", progress=lambda done, every: told.append((done, every)))
    assert sum(done for done, _ in told) == STATE.nbytes + ACTION.nbytes
    path = npz(tmp_path)
    contract = sn.fit_contract(path, KEYS, split="train")
    with pytest.raises(OptionError, match=r"train\.npz"):
        contract.save(path)


KIND = {"state": "n c -> c"}
MISTAKES: dict[str, tuple[Any, Any, type[SlabError], str]] = {
    "no such entry": (ARRAYS, {"sate": "n c -> c"}, DataError, "(?s)'sate'.*'?state"),
    "no entry like it": (ARRAYS, {"zzz": "n c -> c"}, DataError, "fix: name the key as the data do"),
    "no column like it": (table(True), {"zzz": "n c -> c"}, DataError, "fix: name the key as the data do"),
    "no entry of an item": (Items(), {"sate": "n c -> c"}, DataError, "(?s)'sate'.*did you mean 'state'"),
    "no such column": (table(True), {"sate": "n c -> c"}, DataError, "(?s)'sate'.*'?state"),
    "no dict": ([STATE], KIND, DataError, "(?s)batch 0 of list is no dict"),
    "an array": (STATE, KIND, DataError, "(?s)no keys.*ndarray.*fit"),
    "no keys": (ARRAYS, {}, OptionError, "keys must be a dict"),
    "a list of keys": (ARRAYS, ["state"], OptionError, "(?s)keys must be a dict.*list"),
    "all keep": (ARRAYS, {"state": "keep"}, OptionError, "No key is to be normalised"),
    "no pattern": (ARRAYS, {"state": None}, OptionError, "'state' is must be said by a pattern"),
    "a pattern with a typo": (ARRAYS, {"state": "n c -> C"}, PatternError, "C"),
    "a name that is no text": (ARRAYS, {("a", "b"): "n c -> c"}, ContractError, "must be text"),
    "a pattern that does not fit": (ARRAYS, {"state": "n c h w -> c"}, SlabError, "Key 'state': "),
    "the same of items": (Items(), {"state": "n c h w -> c"}, SlabError, "Key 'state': "),
    "a range nobody knows": (Items(), {"state": sn.Key("n c -> c", "fixed")}, OptionError, "Key 'state': "),
    "too few names": (ARRAYS, {"state": sn.Key("n c -> c", names=("a",))}, ContractError, "1 names for 3"),
    "no samples": ({"state": STATE[:0]}, KIND, DataError, "Key 'state': No samples"),
    "no batches": ([], KIND, DataError, "No samples"),
    "numbers": ([{"state": 1.0}], KIND, DataError, "(?s)'state'.*single number"),
    "text": ([{"state": "x"}], KIND, DataError, "'state' of batch 0 of list"),
    "another width": ([{"state": STATE}, {"state": STATE[:, :2]}], KIND, DataError, "Key 'state': .*batch 1"),
    "another dtype": ([{"state": STATE}, {"state": ACTION}], KIND, DataError, "Key 'state': .*batch 1"),
    "an entry that is missing later": ([{"state": STATE}, {}], KIND, DataError, "'state' in batch 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_the_key_and_the_fix(name: str) -> None:
    source, keys, kind, said = MISTAKES[name]
    with pytest.raises(kind, match=said):
        sn.fit_contract(source, keys, split="train")


@pytest.mark.parametrize(
    "source", [ARRAYS, Items(), [ARRAYS], table(True)], ids=["dict", "items", "list", "table"]
)
def test_held_out_data_are_refused(source: Any) -> None:
    for split in (None, "test", "validation"):
        with pytest.raises(LeakageError):
            sn.fit_contract(source, KEYS, split=split)


def test_what_a_data_set_says_of_its_split_is_heard(tmp_path: Path) -> None:
    items = Items()
    items.train = False  # type: ignore[attr-defined]
    for source in (items, DataLoader(items, batch_size=7)):
        with pytest.raises(LeakageError):
            sn.fit_contract(source, KEYS, split="train")
    with pytest.warns(DataWarning, match="leak|held-out"):
        contract = sn.fit_contract(items, KEYS, split="train", leak=True)
    assert contract["state"].record.leak
    np.savez(tmp_path / "test.npz", **ARRAYS)
    with pytest.raises(LeakageError, match=r"test\.npz"):
        sn.fit_contract(tmp_path / "test.npz", KEYS, split="train")


def test_nan_is_refused_or_counted() -> None:
    state = STATE.copy()
    state[3, 1] = np.nan
    for source in ({"state": state}, [{"state": state[:5]}, {"state": state[5:]}]):
        with pytest.raises(DataError, match="state"):
            sn.fit_contract(source, KIND, split="train")
        contract = sn.fit_contract(source, KIND, split="train", nan="omit")
        assert contract["state"].nan_count.tolist() == [0, 1, 0]
        right = np.nanmean(state, 0)
        assert np.abs(contract["state"].moments.mean.numpy() / right - 1).max() < 1e-13
    with pytest.raises(OptionError, match="nan"):
        sn.fit_contract(ARRAYS, KEYS, split="train", nan="ignore")
    state[3, 1] = np.inf
    with pytest.raises(DataError, match="state"):
        sn.fit_contract([{"state": state}], KIND, split="train", nan="omit")


def test_warnings_carry_the_name_of_the_key() -> None:
    flat = {"state": np.ones((5, 2)), "action": np.arange(10.0).reshape(5, 2)}
    keys = {"state": "n c -> c", "action": "n c -> c"}
    for source in (flat, [flat]):
        with pytest.warns(DataWarning, match=r"^key 'state': 2 of 2 features are constant") as caught:
            sn.fit_contract(source, keys, split="train")
        assert len(caught) == 1
    with pytest.warns(DataWarning, match="^key 'state': .*bool"):
        sn.fit_contract([{"state": STATE > 100}], KIND, split="train")
    with pytest.warns(DataWarning, match="drops its last batch: 4 of 60"):
        sn.fit_contract(DataLoader(Items(), batch_size=7, drop_last=True), KEYS, split="train")


def test_workers_are_for_files() -> None:
    with pytest.raises(OptionError, match="workers"):
        sn.fit_contract(Items(), KEYS, split="train", workers=2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16])
def test_values_of_any_type(dtype: torch.dtype) -> None:
    x = torch.from_numpy(RNG.integers(0, 50, (3, N))).T.to(dtype)  # not contiguous
    if dtype.is_floating_point:
        x.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contract = sn.fit_contract([{"x": x[:7]}, {"x": x[7:]}], {"x": "n c -> c"}, split="train")
    right = x.detach().double().numpy()
    assert np.abs(contract["x"].moments.mean.numpy() - right.mean(0)).max() < 1e-12
    y = contract({"x": x})["x"]
    close = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-6)
    assert np.abs(y.detach().double().numpy() - (right - right.mean(0)) / right.std(0)).max() < close


def test_one_sample() -> None:
    with pytest.warns(DataWarning, match="key 'x': 2 of 2 features are constant"):
        contract = sn.fit_contract({"x": torch.tensor([[1.0, 2.0]])}, {"x": "n c -> c"}, split="train")
    assert contract({"x": torch.tensor([[3.0, 2.0]])})["x"].tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("kind", ["dict", "batches"])
def test_a_missing_split_is_no_fault_of_a_key(kind: str) -> None:
    data = {"x": torch.randn(6, 2)}
    with pytest.raises(LeakageError) as caught:
        sn.fit_contract(data if kind == "dict" else [data], {"x": "n c -> c"})
    assert not caught.value.problem.startswith("Key")


@pytest.mark.parametrize("kind", ["dict", "batches"])
def test_what_is_found_at_the_end_names_its_key(kind: str) -> None:
    data = {"x": torch.full((6, 2), torch.nan), "y": torch.randn(6, 1)}
    with pytest.raises(DataError, match=r"^Key 'x': .*"):
        sn.fit_contract(
            data if kind == "dict" else [data], {"y": "n c -> c", "x": "n c -> c"}, split="train", nan="omit"
        )
