"""audit: what is wrong is found, what is not is passed over in silence, and intervals hold what they say."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_sample_images, load_wine
from torch.utils.data import TensorDataset

import slabnorm as sn
from slabnorm.errors import ArtifactError, DataError, OptionError, ShapeError, StatisticsError
from slabnorm.inputs.audit import audit, find_names
from slabnorm.inputs.audit.counts import AuditCounts
from slabnorm.inputs.audit.findings import interval, overlap_of
from slabnorm.inputs.sketch import SIZE, Sketch
from slabnorm.inputs.sources.base import Schema
from tests.inputs.chunking import small

ALL = 1 << 64
pytestmark = pytest.mark.filterwarnings("ignore::slabnorm.errors.DataWarning")  # of constant features
WINE = load_wine().data


def halves(data, seed=0):
    order = np.random.default_rng(seed).permutation(len(data))
    return data[order[: len(data) // 2]], data[order[len(data) // 2 :]]


def kinds(record):
    return [finding.kind for finding in record.findings]


def normal(rows, columns=4, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def patches(seed=0):
    """Patches of a photo whose channels differ: uint8, channels first."""
    photo = load_sample_images().images[1][:416, :640]
    parts = photo.reshape(26, 16, 40, 16, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 16, 16)
    return halves(parts, seed)


def fitted(data, pattern="n c h w -> c"):
    return sn.fit(data, "zscore", pattern, split="train")


@pytest.mark.parametrize("rows", [20_000, 100_000, 1_000_000])
def test_planted_rows_are_found_and_others_are_not(rows):
    inside = 0
    for seed in range(4):
        train, test = normal(rows, 2, seed), normal(10_000, 2, 100 + seed)
        norm = sn.fit(train, split="train")
        record = audit(norm, test)
        assert record.clean
        assert record.overlap.low == 0 < record.overlap.high < 0.04
        test[:500] = train[np.random.default_rng(seed).choice(rows, 500, replace=False)]
        record = audit(norm, test)
        assert kinds(record) == ["overlap"]
        assert record.findings[0].severity == "error"
        assert not record.overlap.exact
        inside += record.overlap.low <= 0.05 <= record.overlap.high
    assert inside >= 3  # of 4, each with 95%


def test_intervals_hold_the_truth_as_often_as_they_say():
    # Hashes are uniform: 200 data sets at the price of random numbers.
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        train = rng.integers(0, ALL, 100_000, np.uint64)
        share = rng.choice([0.001, 0.01, 0.05, 0.5])
        test = rng.integers(0, ALL, 10_000, np.uint64)
        leaked = int(share * 10_000)
        test[:leaked] = train[:leaked]
        sketch = Sketch(np.sort(np.partition(train, SIZE)[:SIZE]))
        told = np.unique(test[test < np.uint64(sketch.bound)])
        overlap = overlap_of(sketch, counts_of(told), 10_000)
        inside += overlap.low <= share <= overlap.high
    assert inside >= 185  # 95% is 190, at least; 185 has a chance of 4% at 95% sharp


def counts_of(hashes, size=1 << 20):
    none = torch.zeros(1, dtype=torch.int64)
    return AuditCounts(none, none, len(hashes), Sketch(size=size).add(hashes))


def test_an_interval_is_clopper_and_pearsons():
    # Table values; and by definition, the tails at the ends are 2.5%.
    assert interval(0, 10) == (0.0, pytest.approx(0.30850, abs=1e-5))
    assert interval(5, 10) == (pytest.approx(0.18709, abs=1e-5), pytest.approx(0.81291, abs=1e-5))
    assert interval(10, 10) == (pytest.approx(0.69150, abs=1e-5), 1.0)
    assert interval(0, 0) == (0.0, 1.0)


def test_more_hashes_than_are_kept_are_a_fair_sample_still():
    rng = np.random.default_rng(0)
    train = rng.integers(0, ALL, 9000, np.uint64)
    test = np.concatenate([train[:1000], rng.integers(0, ALL, 4000, np.uint64)])
    overlap = overlap_of(Sketch().add(train), counts_of(test, 1024), 5000)
    assert overlap.told == 1024
    assert not overlap.exact
    assert overlap.low <= 0.2 <= overlap.high
    assert overlap.distinct == pytest.approx(5000, rel=0.1)


@pytest.mark.parametrize("kind", ["array", "npy", "batches", "dataset", "shards", "float64", "Fortran"])
def test_overlap_is_of_values_however_they_come(kind, tmp_path):
    train, test = normal(5000), normal(800, seed=1)
    test[100:150] = train[:50]
    test[700:] = test[0]
    given = {"array": test, "float64": test.astype(np.float64), "Fortran": np.asfortranarray(test),
             "batches": [test[i : i + 64] for i in range(0, 800, 64)], "shards": small(test, 64),
             "dataset": TensorDataset(torch.from_numpy(test))}.get(kind)  # fmt: skip
    if kind == "npy":
        given = tmp_path / "test.npy"
        np.save(given, test)
    norm = sn.fit(train, split="train")
    overlap = audit(norm, given, workers=2 if kind == "shards" else None).overlap
    assert (overlap.found, overlap.told, overlap.exact) == (50, 700, True)


@pytest.mark.parametrize("load", [load_wine, load_breast_cancer, load_digits])
@pytest.mark.parametrize("seed", range(3))
def test_held_out_halves_of_real_tables_are_silent(load, seed):
    train, test = halves(load().data, seed)
    record = audit(sn.fit(train, split="train"), test)
    assert record.findings == ()
    assert record.overlap.exact


@pytest.mark.parametrize("rows", [1, 2, 5, 20])
@pytest.mark.parametrize("load", [load_wine, load_breast_cancer, load_digits])
def test_small_data_sets_do_not_alarm(rows, load):
    for seed in range(10):
        train, test = halves(load().data, seed)
        assert audit(sn.fit(train, split="train"), test[:rows]).findings == ()


def test_iris_has_the_same_flower_twice():
    data = load_iris().data
    twins = [i for i in range(150) if (data == data[i]).all(1).sum() > 1]
    rest = [i for i in range(150) if i not in twins]
    record = audit(sn.fit(data[[*rest[::2], twins[0]]], split="train"), data[[*rest[1::2], twins[1]]])
    assert (record.overlap.found, record.overlap.exact) == (1, True)
    assert "1 of 75 distinct samples (1.33%) are identical to training samples" in record.findings[0].text
    assert "remove duplicates" in record.findings[0].advice


@pytest.mark.parametrize(("most", "columns"), [(3, 8), (5, 8), (2, 3)])
def test_small_integers_repeat_by_nature(most, columns):
    data = np.random.default_rng(0).integers(0, most, (40_000, columns))
    record = audit(sn.fit(data[:30_000], split="train"), data[30_000:])
    assert kinds(record) == ["duplicates"]
    assert record.findings[0].severity == "warning"
    assert "remove duplicates" in record.findings[0].advice


def test_constant_rows_are_identical_rows():
    train, test = normal(3000), normal(500, seed=1)
    train[:300] = test[:50] = 0
    record = audit(sn.fit(train, split="train"), test)
    assert (record.overlap.found, record.overlap.told) == (1, 451)
    assert kinds(record) == ["duplicates"]


def test_drift_is_found_where_it_is():
    train, test = normal(5000, 6), normal(2000, 6, 1)
    test[:, 1] += 1
    test[:, 2] *= 2
    test[:, 4] += np.where(np.arange(2000) % 20 == 0, 9, 0)
    record = audit(sn.fit(train, split="train"), test)
    found = {finding.kind: finding for finding in record.findings}
    assert set(found) == {"shift", "spread", "range"}
    assert found["shift"].features[0] == "1"
    assert set(found["spread"].features) == {"2", "4"}
    assert "4" in found["range"].features
    assert "0" not in {name for finding in record.findings for name in finding.features}
    one = record.features[1]
    assert one.shift == pytest.approx((test[:, 1].mean() - train[:, 1].mean()) / train[:, 1].std(), rel=1e-5)
    assert one.error == pytest.approx((1 / 5000 + max(1, one.spread) ** 2 / 2000) ** 0.5)
    for i, feature in enumerate(record.features):
        outside = (test[:, i] < train[:, i].min()) | (test[:, i] > train[:, i].max())
        assert feature.outside == outside.mean()


def test_pixels_of_an_image_are_not_independent():
    # A mean off by 0.3 sd over 20 images of 256 pixels: far beyond errors of pixels, not of images.
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2000, 3, 1, 1)) + 0.1 * rng.normal(size=(2000, 3, 16, 16))
    norm = fitted(images[:1000])
    for start in range(1000, 2000, 20):
        assert audit(norm, images[start : start + 20]).clean


@pytest.mark.parametrize("pattern", ["n c h w -> c", "n c h w -> h c", "n c ... -> c", "n c h w ->"])
def test_the_share_out_of_range_is_counted_for_every_pattern(pattern):
    train, test = (part.astype(np.float32) for part in patches())
    test[:, 1, 3] += 200
    norm = fitted(train, pattern)
    low, high = norm.moments.min, norm.moments.max
    axes = {"n c h w -> c": (1,), "n c h w -> h c": (2, 1), "n c ... -> c": (1,), "n c h w ->": ()}[pattern]
    moved = np.transpose(test, [*axes, *(axis for axis in range(4) if axis not in axes)])
    moved = moved.reshape(*moved.shape[: len(axes)], -1)
    expected = (moved < low.numpy()[..., None]) | (moved > high.numpy()[..., None])
    record = audit(norm, test)
    shares = [feature.outside for feature in record.features]
    assert shares == pytest.approx(expected.mean(-1).reshape(-1).tolist(), abs=1e-15)
    assert max(shares) > 0


def test_a_limit_of_float64_rounds_like_float32_data():
    train = np.array([[0.1], [0.2], [0.7]] * 100)
    record = audit(sn.fit(train, split="train"), train.astype(np.float32))
    assert record.features[0].outside == 0
    assert "round differently" in record.notes[0]


@pytest.mark.parametrize("scheme", ["zscore", "minmax"])
def test_data_that_are_normalised_already(scheme):
    train, test = halves(WINE)
    norm = sn.fit(train, scheme, split="train")
    record = audit(norm, norm(torch.from_numpy(test)))
    assert kinds(record) == ["scale"]
    assert "normalised already" in record.findings[0].text


def test_photos_on_another_scale_or_in_another_order():
    train, test = patches()
    norm = fitted(train)
    assert audit(norm, test).clean
    record = audit(norm, test[:, ::-1])
    assert kinds(record) == ["order"]
    assert record.findings[0].features == ("0", "2")
    assert "2, 1, 0, as BGR for RGB" in record.findings[0].text
    divided = (test / 255).astype(np.float32)
    record = audit(norm, divided)
    assert kinds(record) == ["scale"]
    assert (
        "scaled to 0..1, but in training they had 0..255 (uint8 in training, float32 now)"
        in record.findings[0].text
    )
    assert kinds(audit(norm, divided[:, ::-1])) == ["scale", "order"]
    assert "\N{MINUS SIGN}1..1" in audit(norm, divided * 2 - 1).findings[0].text
    assert "0..65535" in audit(norm, test.astype(np.uint16) * 257).findings[0].text
    assert (
        "0..255, but in training they had 0..1"
        in audit(fitted((train / 255).astype(np.float32)), test).verdict
    )
    assert kinds(audit(norm, norm(torch.from_numpy(test)))) == ["scale"]
    assert kinds(audit(norm, test.astype(np.float32))) == ["dtype"]


def test_two_photos_are_too_few_to_tell_an_order():
    train, test = patches()
    assert audit(fitted(train), test[:2, ::-1]).clean


def test_statistics_that_have_seen_the_new_data():
    data = normal(2000)
    train, test = data[:1500], data[1500:]
    own = audit(sn.fit(train, split="train"), test, train=train)
    assert own.clean
    assert own.notes == ("The statistics are those of the training split alone.",)
    both = audit(sn.fit(data, split="train"), test, train=train[::-1])  # in any order
    assert kinds(both) == ["leak", "overlap"]
    assert "training split and array together" in both.findings[0].text
    assert both.overlap.share == 1
    itself = audit(sn.fit(test, split="train"), test[::-1])
    assert kinds(itself) == ["leak", "overlap"]
    other = audit(sn.fit(train[:1400], split="train"), test, train=train)
    assert kinds(other) == ["source"]
    assert dict(other.findings[0].numbers) == {"fitted": 1400, "train": 1500, "both": 2000}


def test_statistics_are_matched_by_their_numbers_where_hashes_are_unknown():
    data = normal(2000)
    norm = sn.fit(data, split="train")
    norm.record = dataclasses.replace(norm.record, content="")
    assert kinds(audit(norm, data[1500:][::-1], train=data[:1500][::-1]))[0] == "leak"
    data[7, 2] += 1e-3
    assert "source" in kinds(audit(norm, data[1500:], train=data[:1500]))


def test_missing_values_and_constants():
    train, test = normal(1000), normal(400, seed=1)
    train[:, 1] = 7
    test[:, 1] = np.where(np.arange(400) < 40, 8, 7)
    test[:, 2] = 0.25
    test[:3, 3] = np.nan
    found = audit(sn.fit(train, split="train"), test).findings
    by = {(finding.kind, finding.features): finding.text for finding in found}
    assert by["constant", ("1",)].endswith("one value in training, 7, and now has others: 7 to 8")
    assert by["constant", ("2",)].endswith("varied in training and now has one value, 0.25")
    assert by["missing", ("3",)].startswith(
        "0.75% of the values of feature 3 are missing, but 0% in training"
    )
    assert len(found) == 3
    train[::10, 3] = np.nan
    assert "missing" not in kinds(audit(sn.fit(train, split="train", nan="omit"), normal(20)))
    test[:, 3] = np.nan
    record = audit(sn.fit(train, split="train", nan="omit"), test)
    assert "100% of the values of feature 3 are missing, but 10% in training" in record.findings[-1].text
    assert record.as_dict()["features"][3]["new"]["mean"] is None


def test_rare_values_do_not_make_a_feature_stuck():
    train = np.zeros((5000, 1))
    train[:10] = 1
    assert audit(sn.fit(train, split="train"), np.zeros((500, 1))).findings[0].kind == "duplicates"
    assert len(audit(sn.fit(train, split="train"), np.zeros((500, 1))).findings) == 1


def test_names_of_columns():
    norm = sn.fit(normal(10, 2), split="train")
    norm.record = dataclasses.replace(norm.record, names=("age", "pay"))
    assert find_names(norm, Schema((2,), "float32", ("age", "pay"))) == []
    assert find_names(norm, Schema((2,), "float32")) == []
    (moved,) = find_names(norm, Schema((2,), "float32", ("pay", "age")))
    assert "another order" in moved.text
    (other,) = find_names(norm, Schema((2,), "float32", ("age", "wage")))
    assert other.features == ("pay",)


def test_statistics_without_a_sketch():
    train, test = halves(WINE)
    norm = sn.InputNorm.from_state_dict(sn.fit(train, split="train").state_dict())
    record = audit(norm, test)
    assert record.overlap is None
    assert "keep no hashes" in record.notes[0]


def test_a_path_and_a_record_that_travels(tmp_path):
    train, test = halves(WINE)
    sn.save(sn.fit(train, split="train"), tmp_path / "w.safetensors")
    seen = []
    record = sn.audit(tmp_path / "w.safetensors", test, train=train, progress=lambda *at: seen.append(at))
    assert record.clean
    assert pickle.loads(pickle.dumps(record)) == record
    assert sum(done for done, _ in seen) == seen[0][1] > 0


@pytest.mark.parametrize(
    ("against", "options", "error"),
    [
        (WINE[:, :5], {}, ShapeError),
        (WINE[0], {}, ShapeError),
        (WINE[:0], {}, DataError),
        (np.full((3, 13), np.inf), {}, DataError),
        ("nothing.npy", {}, DataError),
        (WINE, {"train": WINE[:, :2]}, ShapeError),
        (WINE, {"workers": 0}, OptionError),
        (WINE, {"key": "x"}, OptionError),
    ],
)
def test_mistakes(against, options, error):
    with pytest.raises(error):
        audit(sn.fit(WINE, split="train"), against, **options)


def test_no_statistics():
    with pytest.raises(ArtifactError):
        audit("nothing.safetensors", WINE)
    with pytest.raises(StatisticsError):
        audit(sn.fit(WINE, split="train").to("meta"), WINE)


def test_a_table_with_more_columns_than_were_fitted(tmp_path):
    table = load_wine(as_frame=True).data
    table.iloc[::2].assign(w=1.5).to_parquet(tmp_path / "a.parquet")
    table.iloc[1::2].assign(w=0.5, label=0).to_parquet(tmp_path / "b.parquet")
    columns = ["ash", "alcohol", "proline"]
    for options in ({"columns": columns}, {"columns": columns, "weights": "w"}):
        norm = sn.fit(tmp_path / "a.parquet", split="train", **options)
        record = audit(norm, tmp_path / "b.parquet", train=tmp_path / "a.parquet")
        assert record.clean
        assert [feature.name for feature in record.features] == columns


def test_data_of_two_kinds_take_each_their_own_options(tmp_path):
    table = pytest.importorskip("pandas").DataFrame({"a": np.arange(40.0), "b": np.arange(40.0) ** 2})
    table.to_parquet(tmp_path / "train.parquet")
    table[:20].to_csv(tmp_path / "new.csv", sep=";", index=False)
    norm = sn.fit(tmp_path / "train.parquet", split="train")
    both = {"train": tmp_path / "train.parquet"}
    assert audit(norm, tmp_path / "new.csv", delimiter=";", **both).overlap.distinct == 20
    with pytest.raises(OptionError, match="convert= is no option"):
        audit(norm, tmp_path / "new.csv", delimiter=";", convert="RGB", **both)
    (tmp_path / "folder").mkdir()
    table.to_parquet(tmp_path / "folder" / "a.parquet")
    with pytest.raises(OptionError, match="no CSV file"):
        sn.fit(tmp_path / "folder", split="train", delimiter=";")
