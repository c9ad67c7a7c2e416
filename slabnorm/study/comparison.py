"""compare(): the same network under each norm, at each batch size, over paired seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
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
from slabnorm.study.rates import RATES, best_rates, describe, edge_notes, search
from slabnorm.study.read import read_data
from slabnorm.study.scaling import SCHEMES, fit_inputs
from slabnorm.study.scaling import describe as in_words
from slabnorm.study.statistics import cell, curve
from slabnorm.study.train import Bench, Rules
from slabnorm.study.trial import try_model
from slabnorm.study.verdict import inputs_verdict, rates_verdict, verdict
from slabnorm.study.workers import team
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
        data: "digits", a pair (x, y), an `.npz` file with the arrays x and y, or a folder with one folder of
            images for each class.
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
    of_norms, of_inputs = options.settings(scheme for scheme in options.schemes if scheme in bench.layers)
    settings = list(dict.fromkeys([*of_norms, *of_inputs]))
    with team(bench, workers, progress=progress) as together:
        # The final runs take as many steps at any rate.
        finals = [run for setting in settings for run in setting.runs(range(seeds), (1.0,))]
        together.expect([run for s in settings for run in s.runs(options.search_seeds, RATES)] + finals)
        tried = search(settings, options.search_seeds, together.do)
        best = best_rates(tried)
        chosen = {setting: setting.runs(range(seeds), (best[setting],)) for setting in settings}
        records = together.do([run for runs in chosen.values() for run in runs])
    return assemble(
        options=options,
        bench=bench,
        schemes=scheme_records,
        model=name,
        parameters=parameters,
        tried=tried,
        norm_runs=[[records[run] for run in chosen[setting]] for setting in of_norms],
        input_runs=[[records[run] for run in chosen[setting]] for setting in of_inputs],
        notes=notes + said,
        processes=together.processes,
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
        records.append(SchemeRecord(scheme, in_words(layers[scheme])))
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
    tried: list[RunRecord],
    norm_runs: list[list[RunRecord]],
    input_runs: list[list[RunRecord]],
    notes: tuple[str, ...],
    processes: int,
    seconds: float,
) -> StudyRecord:
    """Return the record of a study: its runs, and what follows from them.

    Args:
        options, bench, schemes: what was compared.
        model, parameters: its name, and how many parameters it has with the first norm.
        tried: the runs that chose the learning rates.
        norm_runs, input_runs: the runs of each setting, over all seeds.
        notes: what is known before.
        processes, seconds: how it was computed.

    Raises:
        ModelError: every run failed.
    """
    final = [run for runs in norm_runs for run in runs]
    if all(run.status == "failed" for run in final):
        raise ModelError(f"All {len(final)} runs failed", final[0].reason, "mend the model")
    data, rules, samples = bench.data, bench.rules, len(bench.data.split.test)
    words, differences = verdict(norm_runs, samples)
    input_words, input_differences = inputs_verdict(input_runs, samples)
    searches = describe(tried, rules)
    every = list(dict.fromkeys(run for runs in norm_runs + input_runs for run in runs))
    return StudyRecord(
        verdict=words,
        rates_verdict=rates_verdict([found for found in searches if found.scheme == options.scheme]),
        inputs_verdict=input_words,
        data=describe_data(data),
        model=model,
        parameters=parameters,
        norms=options.norms,
        batch_sizes=options.batch_sizes,
        seeds=tuple(range(options.seeds)),
        search_seeds=tuple(options.search_seeds),
        epochs=rules.epochs,
        target=rules.target,
        scheme=options.scheme,
        schemes=schemes,
        inputs_norm=options.inputs_norm,
        inputs_batch_size=options.inputs_batch_size,
        cells=tuple(cell(runs, 1 / samples, rules) for runs in norm_runs),
        inputs=tuple(cell(runs, 1 / samples, rules) for runs in input_runs),
        searches=searches,
        curves=tuple(c for runs in norm_runs if (c := curve(runs)) is not None),
        inputs_curves=tuple(c for runs in input_runs if (c := curve(runs)) is not None),
        differences=differences + input_differences,
        method=method.describe(options, data, processes),
        notes=data.notes + notes + tuple(edge_notes(searches, options.scheme)) + run_notes(every),
        runs=(*every, *tried),
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
