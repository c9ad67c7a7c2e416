"""Statistics of weather models: NetCDF of GraphCast, NumPy of FourCastNet, Zarr of anemoi."""

from __future__ import annotations

import json
import sys

import h5py
import numpy as np
import pytest
import torch
import zarr
from scipy.io import netcdf_file

import slabnorm as sn
from slabnorm.errors import DataError, ExtraError

RNG = np.random.default_rng(0)
LEVELS = np.array([50, 500, 1000], dtype=np.int32)
UNITS = {"temperature": "K", "2m_temperature": "K", "geopotential": "m**2 s**-2"}
MEANS = {
    "temperature": np.array([210.0, 253.0, 281.0], dtype=np.float32),
    "geopotential": np.array([2e5, 5.4e4, 740.0], dtype=np.float32),
    "2m_temperature": np.float32(278.4),
}
DEVIATIONS = {
    "temperature": np.array([9.0, 12.0, 17.0], dtype=np.float32),
    "geopotential": np.array([5889.0, 3349.0, 1072.0], dtype=np.float32),
    "2m_temperature": np.float32(21.2),
}


def classic(path, variables, attributes=()):
    """Write a file as NetCDF 3."""
    with netcdf_file(path, "w") as file:
        file.createDimension("level", 3)
        file.createVariable("level", "i4", ("level",))[:] = LEVELS
        for name, values in variables.items():
            made = file.createVariable(name, "f4", ("level",) if np.ndim(values) else ())
            made.data[...] = values
            made.units = UNITS.get(name, "")
            for key, value in attributes:
                setattr(made, key, value)


def hdf(path, variables, attributes=()):
    """Write a file as NetCDF 4."""
    with h5py.File(path, "w") as file:
        file["level"] = LEVELS
        file["level"].make_scale("level")
        for name, values in variables.items():
            file[name] = values
            if np.ndim(values):
                file[name].dims[0].attach_scale(file["level"])
            file[name].attrs["units"] = np.bytes_(UNITS.get(name, ""))
            for key, value in attributes:
                file[name].attrs[key] = value


WRITERS = {"classic": classic, "hdf": hdf}


@pytest.fixture(params=WRITERS)
def writer(request):
    return WRITERS[request.param]


def pair(folder, writer, means=MEANS, deviations=DEVIATIONS, prefix=""):
    writer(folder / f"{prefix}mean_by_level.nc", means)
    writer(folder / f"{prefix}stddev_by_level.nc", deviations)
    return folder


def test_graphcast(writer, tmp_path):
    pair(tmp_path, writer)
    contract = sn.contract(tmp_path)
    assert sorted(contract) == sorted(MEANS)
    for name in MEANS:
        norm, key = contract[name], contract.key(name)
        assert norm.statistics.known().keys() == {"mean", "std"}
        assert norm.statistics.mean.tolist() == MEANS[name].tolist()
        assert norm.statistics.std.tolist() == DEVIATIONS[name].tolist()
        assert (norm.split, norm.samples) == ("", None)
        assert (key.unit, key.role) == (UNITS[name], "input")
    assert contract.key("temperature").names == ("50", "500", "1000")
    assert contract.key("2m_temperature").names == ()
    x = {
        "temperature": torch.from_numpy(RNG.normal(250, 20, (2, 1, 3, 4, 8))),  # batch, time, level, lat, lon
        "geopotential": torch.from_numpy(RNG.normal(5e4, 2e4, (2, 3, 4, 8))),
        "2m_temperature": torch.from_numpy(RNG.normal(280, 20, (2, 1, 4, 8))),
    }
    found = contract(x)
    for name, values in x.items():
        mean, std = (np.float64(part[name])[..., None, None] for part in (MEANS, DEVIATIONS))
        if name == "2m_temperature":
            mean, std = mean[0, 0], std[0, 0]
        np.testing.assert_allclose(found[name], (values.numpy() - mean) / std, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["stats_mean_by_level.nc", "stats_stddev_by_level.nc"])
def test_either_file_names_the_pair(name, tmp_path):
    pair(tmp_path, classic, prefix="stats_")
    assert sorted(sn.contract(tmp_path / name)) == sorted(MEANS)


def test_what_xarray_writes(tmp_path):
    xarray = pytest.importorskip("xarray")
    for name, values in (("mean", MEANS), ("stddev", DEVIATIONS)):
        variables = {n: (("level",) if np.ndim(v) else (), v, {"units": UNITS[n]}) for n, v in values.items()}
        file = xarray.Dataset(variables, coords={"level": LEVELS})
        file.to_netcdf(tmp_path / f"{name}_by_level.nc", engine="scipy")
    contract = sn.contract(tmp_path)
    assert contract["geopotential"].statistics.mean.tolist() == MEANS["geopotential"].tolist()
    assert contract.key("geopotential").unit == UNITS["geopotential"]


def test_a_missing_file_of_the_pair_is_named(tmp_path):
    pair(tmp_path, classic)
    (tmp_path / "stddev_by_level.nc").unlink()
    with pytest.raises(DataError, match=r"stddev_by_level\.nc"):
        sn.contract(tmp_path)


def test_a_variable_of_one_file_alone_is_named(writer, tmp_path):
    pair(tmp_path, writer, deviations={k: v for k, v in DEVIATIONS.items() if k != "temperature"})
    with pytest.raises(DataError, match=r"mean_by_level.nc and stddev_by_level.nc(.|\n)*'temperature'"):
        sn.contract(tmp_path)


BROKEN = {
    "NaN": np.array([np.nan, 1.0, 1.0], dtype=np.float32),
    "negative": np.array([-1.0, 1.0, 1.0], dtype=np.float32),
    "other axes": np.float32(1.0),
}


@pytest.mark.parametrize("case", BROKEN)
def test_numbers_that_no_data_have(case, writer, tmp_path):
    pair(tmp_path, writer, deviations=DEVIATIONS | {"temperature": BROKEN[case]})
    with pytest.raises(DataError, match=r"'temperature'.*mean_by_level.nc"):
        sn.contract(tmp_path)


def test_packed_numbers_are_refused(writer, tmp_path):
    pair(tmp_path, writer)
    writer(tmp_path / "mean_by_level.nc", MEANS, attributes=[("scale_factor", 0.1)])
    with pytest.raises(DataError, match=r"(.|\n)*scale_factor"):
        sn.contract(tmp_path)


@pytest.mark.parametrize("kept", [4, 40, 0.5, 0.9])
def test_torn_netcdf(kept, writer, tmp_path):
    pair(tmp_path, writer)
    path = tmp_path / "mean_by_level.nc"
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
    with pytest.raises(DataError, match=r"mean_by_level\.nc"):
        sn.contract(tmp_path)


def error_of(path):
    """Return what reading raises, if it is a DataError; and where the file can be read, its name."""
    try:
        sn.contract(path)
    except DataError as error:
        return str(error)
    return "mean_by_level.nc"


def test_flipped_bytes_of_netcdf_raise_nothing_else(writer, tmp_path):
    pair(tmp_path, writer)
    path = tmp_path / "mean_by_level.nc"
    content = path.read_bytes()
    step = max(1, len(content) // 60)
    for place in range(4, len(content), step):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        assert "by_level.nc" in error_of(tmp_path)


def test_no_netcdf(tmp_path):
    pair(tmp_path, classic)
    (tmp_path / "mean_by_level.nc").write_bytes(b"CDF\x05 is not read")
    with pytest.raises(DataError, match="Not a NetCDF file"):
        sn.contract(tmp_path)


def test_numbers_that_were_never_written_are_counted_before_they_are_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    for name in ("mean_by_level.nc", "stddev_by_level.nc"):
        with h5py.File(tmp_path / name, "w") as file:
            for number in range(20):
                file.create_dataset(f"v{number}", shape=(1 << 19,), dtype="u1", chunks=(1 << 19,))
    with pytest.raises(DataError, match="there are more than 67,108,864 bytes"):
        sn.contract(tmp_path)


def test_netcdf_3_of_the_same_bytes_again_and_again_is_too_large(tmp_path):
    for name in ("mean_by_level.nc", "stddev_by_level.nc"):
        (tmp_path / name).write_bytes(b"CDF\x01" + bytes(1 << 20))
    with pytest.raises(DataError, match=r"(?s)Too large.*more than 1,048,576"):
        sn.contract(tmp_path)


def test_links_to_other_files_are_not_followed(tmp_path):
    pair(tmp_path, hdf)
    with h5py.File(tmp_path / "mean_by_level.nc", "a") as file:
        file["humidity"] = h5py.ExternalLink("stddev_by_level.nc", "temperature")
    assert sorted(sn.contract(tmp_path)) == sorted(MEANS)
    (tmp_path / "secret").write_bytes(bytes(12))
    with h5py.File(tmp_path / "mean_by_level.nc", "a") as file:
        del file["humidity"]
        file.create_dataset("humidity", (3,), "f4", external=[(str(tmp_path / "secret"), 0, 12)])
    with pytest.raises(DataError, match=r"(.|\n)*lies in another file"):
        sn.contract(tmp_path)


@pytest.mark.parametrize(("kind", "package"), [("classic", "scipy.io"), ("hdf", "h5py")])
def test_packages_that_are_not_installed_are_named(kind, package, tmp_path, monkeypatch):
    pair(tmp_path, WRITERS[kind])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraError, match=package):
        sn.contract(tmp_path)


# FourCastNet


def arrays(folder, means, deviations):
    np.save(folder / "global_means.npy", means)
    np.save(folder / "global_stds.npy", deviations)
    return folder


@pytest.mark.parametrize("source", ["", "global_means.npy", "global_stds.npy"])
def test_fourcastnet(source, tmp_path):
    means, deviations = RNG.normal(0, 100, (1, 5, 1, 1)), RNG.uniform(1, 9, (1, 5, 1, 1))
    arrays(tmp_path, means, deviations)
    contract = sn.contract(tmp_path / source)
    norm = contract["x"]
    assert norm.statistics.known().keys() == {"mean", "std"}
    assert (norm.split, norm.samples, contract.key("x").names) == ("", None, ())
    x = RNG.normal(0, 100, (2, 5, 4, 8))
    z = norm(torch.from_numpy(x))
    np.testing.assert_allclose(z, (x - means) / deviations, rtol=1e-12, atol=1e-12)
    assert torch.equal(norm(torch.from_numpy(x[:, None]))[:, 0], z)  # with a time


FOURCASTNET_ERRORS = {
    "another shape": (np.zeros((1, 5, 1, 1)), np.ones((1, 4, 1, 1))),
    "an image": (np.zeros((1, 5, 2, 2)), np.ones((1, 5, 1, 1))),
    "NaN": (np.full((1, 5, 1, 1), np.nan), np.ones((1, 5, 1, 1))),
    "objects": (np.array([print], dtype=object), np.ones((1, 1, 1, 1))),
}


@pytest.mark.parametrize("case", FOURCASTNET_ERRORS)
def test_damaged_fourcastnet(case, tmp_path):
    arrays(tmp_path, *FOURCASTNET_ERRORS[case])
    with pytest.raises(DataError, match=str(tmp_path)):
        sn.contract(tmp_path)


def test_half_of_fourcastnet(tmp_path):
    arrays(tmp_path, np.zeros(3), np.ones(3))
    (tmp_path / "global_stds.npy").unlink()
    with pytest.raises(DataError, match=r"global_stds\.npy"):
        sn.contract(tmp_path)


# anemoi

VARIABLES = ["10u", "2t", "z_500"]
ARRAYS = {
    "mean": np.array([0.1, 287.8, 5.4e4]),
    "stdev": np.array([5.5, 16.1, 3349.0]),
    "minimum": np.array([-30.0, 195.4, 4.6e4]),
    "maximum": np.array([31.0, 325.8, 5.9e4]),
}


def store(path, arrays=ARRAYS, **attributes):
    dates = {"statistics_start_date": "1979-01-01", "statistics_end_date": "2018-12-31"}
    group = zarr.open_group(
        path, mode="w", zarr_format=2, attributes={"variables": VARIABLES} | dates | attributes
    )
    for name, values in arrays.items():
        group.create_array(name, data=values)
    group.create_array(
        "data", data=RNG.normal(size=(2, 3, 1, 7)).astype("f4")
    )  # dates, variables, ensemble, cells
    return path


def test_anemoi(tmp_path):
    contract = sn.contract(store(tmp_path / "era5.zarr"))
    norm, key = contract["data"], contract.key("data")
    assert key.names == tuple(VARIABLES)
    assert (norm.split, norm.samples) == ("1979-01-01 to 2018-12-31", None)
    found = norm.statistics
    assert found.count is None
    expected = {"mean": "mean", "std": "stdev", "min": "minimum", "max": "maximum"}
    assert {part: v.tolist() for part, v in found.known().items()} == {
        part: ARRAYS[name].tolist() for part, name in expected.items()
    }
    x = RNG.normal(ARRAYS["mean"], ARRAYS["stdev"], (2, 1, 1, 7, 3))
    np.testing.assert_allclose(
        norm(torch.from_numpy(x)), (x - ARRAYS["mean"]) / ARRAYS["stdev"], rtol=1e-12, atol=1e-12
    )


def test_anemoi_without_names_and_dates(tmp_path):
    dates = dict.fromkeys(("statistics_start_date", "statistics_end_date"))
    contract = sn.contract(store(tmp_path / "a.zarr", variables=["a"], **dates))
    assert contract.key("data").names == ()
    assert contract["data"].split == ""


def test_damaged_anemoi(tmp_path):
    cases = {
        "min above max": ARRAYS | {"minimum": ARRAYS["maximum"] + 1},
        "NaN": ARRAYS | {"stdev": ARRAYS["stdev"] * np.nan},
        "another shape": ARRAYS | {"mean": np.zeros(4)},
        "two axes": ARRAYS | {"mean": np.zeros((3, 1))},
    }
    for name, arrays in cases.items():
        path = store(tmp_path / f"{name}.zarr", arrays)
        with pytest.raises(DataError, match=rf"{name}\.zarr"):
            sn.contract(path)


def test_a_missing_chunk_is_not_zero(tmp_path):
    path = store(tmp_path / "a.zarr")
    (path / "mean/0").unlink()
    with pytest.raises(DataError, match=r"chunk is missing: .*a\.zarr"):
        sn.contract(path)


def test_a_codec_that_unpickles_is_refused(tmp_path):
    path = store(tmp_path / "a.zarr")
    metadata = json.loads((path / "mean/.zarray").read_text())
    (path / "mean/.zarray").write_text(json.dumps(metadata | {"filters": [{"id": "pickle"}]}))
    with pytest.raises(DataError):
        sn.contract(path)
