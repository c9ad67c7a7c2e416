"""An audit record made by hand, for reports to print."""

from slabnorm.report.audit import AuditRecord, FeatureAudit, Finding, Overlap, Part

PART = Part(100, 0, 5.0, 2.0, 0.0, 10.0)
MOVED = Part(50, 2, 9.0, 3.0, -1.0, 16.0)
NOTHING = Part(0, 50, float("nan"), float("nan"), float("nan"), float("nan"))


def feature(name, new=PART, shift=0.01, **more):
    fields = {"train": PART, "new": new, "shift": shift, "error": 0.1, "spread": 1.0, "outside": 0.0}
    return FeatureAudit(name, **{**fields, **more})


def finding(kind="shift", severity="warning", name="b", **more):
    return Finding(kind, severity, f"the mean of feature {name} moved", f"look at {name}", (name,), **more)


def audited(name="b", data="test.npy", **more):
    fields = {
        "data": data, "scheme": "ZScore", "pattern": "n c -> c", "split": "train", "train_samples": 100,
        "samples": 52, "train_dtype": "float64", "dtype": "float64",
        "overlap": Overlap(40, 2, 0.05, 0.006, 0.169, 52, False),
        "findings": (finding("overlap", "error", name), finding(name=name)),
        "notes": (f"a note on {name}",),
        "features": (feature("a"), feature(name, MOVED, 2.0, spread=1.5, outside=0.2)),
    }  # fmt: skip
    return AuditRecord(**{**fields, **more})
