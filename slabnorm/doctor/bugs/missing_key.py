"""Statistics are looked up by name, and one name was not found.

Symptom: test accuracy is low, although one of the two inputs says all
Cause: the other input is left as it is, a thousand times as large
Kind: inputs
Rule: 401
Healed: by the printed `sn.fit(x_train, "zscore", split="train")`, which the tests run
Thread: https://github.com/huggingface/lerobot/issues/4415
"""

import torch
from torch import Tensor, nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.5, 0.8


class Policy(nn.Module):
    """A network of an image and the state of a robot."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network(nn.Identity, inputs=71)

    def forward(self, image: Tensor, state: Tensor) -> Tensor:
        """Return logits."""
        return self.body(torch.cat([image, state], 1))


def run(repaired: bool) -> Case:
    """Train with a state whose statistics are stored under another name."""
    data = digits()
    states = 400 + 200 * torch.randn(1797, 7, generator=torch.Generator().manual_seed(1))
    known = {"image": (0.3, 0.4), "arm.state": (400.0, 200.0)}
    if repaired:
        known["state"] = known.pop("arm.state")

    def normalise(x: Tensor, name: str) -> Tensor:
        mean, std = known.get(name, (0.0, 1.0))
        return (x - mean) / std

    def act(x: Tensor) -> Tensor:
        return model(normalise(x[:, :64], "image"), normalise(x[:, 64:], "state"))

    model = Policy()
    x, test = (torch.cat(pair, 1) for pair in ((data.x, states[:1200]), (data.x_test, states[1200:])))
    train(act, x, data.y, optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))
    batch = {"image": normalise(x[:64, :64], "image"), "state": normalise(x[:64, 64:], "state")}
    return Case(accuracy(act, test, data.y_test), check(model, batch).findings)
