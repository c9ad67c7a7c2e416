"""Two processes train on few samples each, and neither statistics nor buffers are shared.

Symptom: one checkpoint evaluates differently on each rank
Cause: each process has running statistics of its own samples
Kind: modes
Rule: 207
Healed: not tested, the printed fix needs two processes
Thread: https://github.com/pytorch/pytorch/issues/30718
"""

from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits, network

BAD, GOOD = 0.05, 0.0


def run(repaired: bool) -> Case:
    """Have two processes, of which this is one, see eight samples of a batch each."""
    x = digits().x[:16]
    norm: type[nn.Module] = nn.BatchNorm1d
    if repaired:
        norm = nn.LayerNorm
    here, there = network(norm), network(norm)
    for _ in range(30):
        here(x[:8]), there(x[8:])
    a, b = (model.eval()(x).detach() for model in (here, there))
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        findings = check(network(norm), x[:8]).findings
    finally:
        distributed.destroy_process_group()
    return Case(float((a - b).norm() / b.norm()), findings)
