"""A study record made by hand, for reports to print."""

from slabnorm.report.study import (
    CellRecord,
    CurveRecord,
    DataRecord,
    Interval,
    RunRecord,
    SchemeRecord,
    SearchRecord,
    StudyRecord,
)

EVIL = "<script>alert(1)</script>[bold red]x[/bold red]&\"'"


def cell(norm="batch", size=2, scheme="zscore", mean=0.97, **more):
    fields = {
        "accuracy": Interval(mean, mean - 0.02, mean + 0.01, 3),
        "gap": Interval(-0.012, -0.03, 0.006, 3),
        "steps_to_target": 120.0,
        "reached": 3,
        "seconds_per_step": 0.00123,
        "runs": 3,
        "learning_rate": 0.00625,
    }
    return CellRecord(scheme, norm, size, **{**fields, **more})


def curve(norm="batch", size=2, scheme="zscore"):
    return CurveRecord(scheme, norm, size, (0.5, 1.0), (0.5, 0.97), (0.4, 0.95), (0.6, 1.0))


def searched(norm="batch", size=2, scheme="zscore", **more):
    fields = {
        "rates": (0.0015625, 0.00625, 0.025, 0.1),
        "validation": (0.8, 0.97, 0.96, 0.0),
        "low": (0.8, 0.97, 0.96, 0.0),
        "high": (0.8, 0.97, 0.96, 0.0),
        "chosen": 0.00625,
        "good": (0.00625, 0.025),
        "open_below": False,
        "open_above": False,
        "at_edge": False,
    }
    return SearchRecord(scheme, norm, size, **{**fields, **more})


def study(name="digits", model="conv", classes=("0", "1"), norms=("none", "batch"), **more):
    sizes = (16, 2)
    fields = {
        "verdict": f"The verdict on {name}.",
        "rates_verdict": "Of the learning rates.",
        "inputs_verdict": "Of the inputs.",
        "data": DataRecord(name, 100, (1, 8, 8), tuple(classes), 60, 20, 20, "read as images", (0.0, 16.0)),
        "model": model,
        "parameters": 15338,
        "norms": tuple(norms),
        "batch_sizes": sizes,
        "seeds": (0, 1, 2),
        "search_seeds": (3,),
        "epochs": 5,
        "target": 0.9,
        "scheme": "zscore",
        "schemes": (SchemeRecord("raw", "the values as they are"), SchemeRecord("fixed", "left out", name)),
        "inputs_norm": norms[0],
        "inputs_batch_size": 16,
        "cells": tuple(cell(norm, size) for norm in norms for size in sizes),
        "inputs": (cell(norms[0], 16, "raw", 0.5), cell(norms[0], 16, "zscore")),
        "searches": tuple(searched(norm, size) for norm in norms for size in sizes),
        "curves": tuple(curve(norm, size) for norm in norms for size in sizes),
        "inputs_curves": (curve(norms[0], 16, "raw"), curve(norms[0], 16)),
        "differences": (),
        "method": (("Split", f"of {name}"),),
        "notes": (f"a note on {name}",),
        "runs": (RunRecord("zscore", norms[0], 2, 0, "done", test_accuracy=0.97),),
        "seconds": 12.3,
    }
    return StudyRecord(**{**fields, **more})
