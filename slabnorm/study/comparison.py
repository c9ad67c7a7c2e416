"""compare(): the same network under each norm, at each batch size, over paired seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import nn

from slabnorm.errors import ModelError, SlabError
from slabnorm.extras import extra
from slabnorm.report.study import DataRecord, RunRecord, SchemeRecord, StudyRecord
from slabnorm.report.wording import norm_label, scheme_label
from slabnorm.study import method
from slabnorm.study.data import Dataset
from slabnorm.study.models import NORMS, Build, find_build
from slabnorm.study.options import BATCH_SIZES, SEEDS, Options, as_tuple
from slabnorm.study.read import read_data
from slabnorm.study.scaling import SCHEMES, describe, fit_inputs
from slabnorm.study.statistics import best_rates, cell, curve, edge_notes
from slabnorm.study.train import Bench, Rules
from slabnorm.study.trial import try_model
from slabnorm.study.verdict import inputs_verdict, verdict
from slabnorm.study.workers import do_all
from slabnorm.text import printable


def compare(
    build_model: str | Build = "conv",
    data: Any = "digits",
    *,
    norms: Iterable[str] = NORMS,
    batch_sizes: int | Iterable[int] = BATCH_SIZES,
    seeds: int = SEEDS,
    epochs: int = Rules.epochs,
    scheme: str = "zscore",
    schemes: Iterable[str] = SCHEMES,
    target: float = Rules.target,
    learning_rate: float = Rules.learning_rate,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> StudyRecord:
    """Train one network with each norm and batch size, over paired seeds, and return the results.

    Runs of one seed have the same initial weights and see the samples in the same order, under every norm.
    Input statistics come from the training split only, and test accuracy is measured in eval mode.

    Args:
        build_model: "conv", "mlp", "package.module:build", or a function `build(norm)` that returns a
            network, in which `norm(channels)` makes the norm layers.
        data: "digits", "photos" (patches of two photographs) or "fashion-mnist" (`apt install
            dataset-fashion-mnist`); a pair (x, y); an `.npz` file with the arrays x and y; a folder with one
            folder of images for each class; a folder with the four IDX files of MNIST and its like, whose
            test split is kept; or a torch `Dataset` with a length, of items (x, y).
        norms: "none", "batch", "layer", "instance", "group", or patterns such as "n c ... -> n c".
        batch_sizes: the numbers of samples per step. None may be larger than the training split, 60% of the
            samples.
        seeds: how many times to train with each norm and batch size.
        epochs: the number of passes over the training split, the same for every run.
        scheme: how inputs are scaled while norms are compared: "raw", "fixed", "minmax" or "zscore".
        schemes: the input schemes to compare, without a norm and at the middle batch size; () for none.
        target: the validation accuracy up to which steps are counted, as a share.
        learning_rate: the learning rate at batch size 128; at other sizes in proportion.
        workers: the number of processes. With more than 1, a script needs `if __name__ == "__main__":`.
        progress: a function to call with the number of steps since its last call, and of all steps.

    Raises:
        OptionError: an argument is out of range.
        DataError: the data cannot be read or used.
        ModelError: the model cannot be imported, built or run.
        PatternError: a norm is a malformed pattern.

    >>> import slabnorm as sn
    >>> study = sn.compare("mlp", norms=["none"], batch_sizes=[128], seeds=2, epochs=1, schemes=())
    >>> [cell.runs for cell in study.cells]
    [2]
    """
    for package in ("sklearn.model_selection", "scipy.stats"):  # before hours of training
        extra(package, "compare", "'slabnorm[study]'")
    began = time.perf_counter()
    rules = Rules(epochs=epochs, target=target, learning_rate=learning_rate)
    sizes = (batch_sizes,) if isinstance(batch_sizes, int) else tuple(batch_sizes)
    options = Options(as_tuple(norms), sizes, seeds, scheme, as_tuple(schemes), rules, workers)
    dataset = read_data(data)
    options.check_against(dataset)
    name, build = find_build(build_model, dataset)
    bench, scheme_records, notes = prepare(build, dataset, options)
    parameters, said = try_model(bench, options.norms, options.scheme, options.batch_sizes)
    norm_runs, input_runs = options.plan()
    input_runs = [run for run in input_runs if run.scheme in bench.layers]
    records, apart = do_all(bench, [*norm_runs, *input_runs], options.workers, progress)
    return assemble(
        options=options,
        bench=bench,
        schemes=scheme_records,
        model=name,
        parameters=parameters,
        norm_runs=[records[run] for run in norm_runs],
        input_tries=[records[run] for run in input_runs],
        notes=notes + said,
        processes=apart,
        seconds=time.perf_counter() - began,
    )


def prepare(
    build: Build, data: Dataset, options: Options
) -> tuple[Bench, tuple[SchemeRecord, ...], tuple[str, ...]]:
    """Fit every input scheme on the training split. One that does not fit the data is left out, with a note.

    Raises:
        SlabError: the scheme for the comparison of norms does not fit the data.
    """
    layers: dict[str, nn.Module] = {}
    records, notes = [], []
    for scheme in dict.fromkeys((*options.schemes, options.scheme)):
        try:
            layers[scheme], said = fit_inputs(data, scheme)
        except SlabError as error:
            if scheme == options.scheme:
                raise
            why = printable(error.problem + (f" ({error.got})" if error.got else ""))
            records.append(SchemeRecord(scheme, "left out", why))
            notes.append(f"Inputs, {scheme_label(scheme)}: left out. {why}.")
            continue
        records.append(SchemeRecord(scheme, describe(layers[scheme])))
        notes.extend(f"Inputs, {scheme_label(scheme)}: {printable(text)}." for text in said)
    bench = Bench(build, data, layers, options.rules)
    if {"fixed", "minmax"} <= set(layers) and torch.equal(bench.inputs("fixed"), bench.inputs("minmax")):
        notes.append("Inputs: fixed and min-max are the same here: the training split fills the known range.")
    return bench, tuple(records), tuple(notes)


def assemble(
    *,
    options: Options,
    bench: Bench,
    schemes: tuple[SchemeRecord, ...],
    model: str,
    parameters: int,
    norm_runs: list[RunRecord],
    input_tries: list[RunRecord],
    notes: tuple[str, ...],
    processes: int,
    seconds: float,
) -> StudyRecord:
    """Return the record of a study: its runs, and what follows from them.

    Raises:
        ModelError: every run failed.
    """
    if all(run.status == "failed" for run in norm_runs):
        raise ModelError(f"All {len(norm_runs)} runs failed", norm_runs[0].reason, "mend the model")
    data, samples = bench.data, len(bench.data.split.test)
    words, differences = verdict(norm_runs, samples)
    rates = best_rates(input_tries)
    input_runs = [run for run in input_tries if run.rate == rates[run.scheme]]
    input_words, input_differences = inputs_verdict(input_runs, samples)
    cells, inputs = by_cell(norm_runs), by_cell(input_runs)
    return StudyRecord(
        verdict=words,
        inputs_verdict=input_words,
        data=describe_data(data),
        model=model,
        parameters=parameters,
        norms=options.norms,
        batch_sizes=options.batch_sizes,
        seeds=tuple(range(options.seeds)),
        epochs=options.rules.epochs,
        target=options.rules.target,
        scheme=options.scheme,
        schemes=tuple(replace(scheme, rate=rates.get(scheme.name)) for scheme in schemes),
        inputs_norm=options.inputs_norm,
        inputs_batch_size=options.inputs_batch_size,
        cells=tuple(cell(runs, 1 / samples) for runs in cells),
        inputs=tuple(cell(runs, 1 / samples) for runs in inputs),
        curves=tuple(c for runs in cells if (c := curve(runs)) is not None),
        inputs_curves=tuple(c for runs in inputs if (c := curve(runs)) is not None),
        differences=differences + input_differences,
        method=method.describe(options, data, processes),
        notes=data.notes + notes + tuple(edge_notes(rates)) + run_notes([*norm_runs, *input_runs]),
        runs=tuple(dict.fromkeys([*norm_runs, *input_tries])),
        seconds=seconds,
    )


def describe_data(data: Dataset) -> DataRecord:
    """Return what a report says about a data set."""
    split = data.split
    return DataRecord(
        name=data.name,
        samples=len(data.y),
        shape=tuple(int(size) for size in data.sample_shape),
        classes=data.classes,
        train=len(split.train),
        validation=len(split.validation),
        test=len(split.test),
        axes=data.axes,
        raw_range=(float(data.x.min()), float(data.x.max())),
    )


def by_cell(runs: list[RunRecord]) -> list[list[RunRecord]]:
    """Return runs in lists that differ only in the seed."""
    return [list(group) for _, group in groupby(runs, lambda run: (run.scheme, run.norm, run.batch_size))]


def run_notes(runs: list[RunRecord]) -> tuple[str, ...]:
    """Return notes on the runs: initial weights that differ, failures and warnings."""
    notes: dict[str, None] = {}
    for seed in dict.fromkeys(run.seed for run in runs):
        weights = {run.weights for run in runs if run.seed == seed and run.weights}
        if len(weights) > 1:
            notes["Initial weights differ between norms: build(norm) draws other weights for each."] = None
    for run in runs:
        where = f"{norm_label(run.norm)}, batch size {run.batch_size}, {scheme_label(run.scheme)} inputs"
        where = where[:1].upper() + where[1:]
        if run.status != "done":
            notes[f"{where}: {run.status}. {run.reason}"] = None
        for text in run.notes:
            notes[f"{where}: {text}"] = None
    return tuple(notes)
