"""Statistics are looked up by name, and one name was not found.

Symptom: test accuracy is low, although one of the two inputs says all
Cause: the other input is left as it is, a thousand times as large
Kind: inputs
Rule: 401
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
    state = 400 + 200 * torch.randn(1797, 7, generator=torch.Generator().manual_seed(1))
    known = {"image": (0.3, 0.4), "arm.state": (400.0, 200.0)}
    if repaired:
        known["state"] = known.pop("arm.state")

    def normalise(x: Tensor, name: str) -> Tensor:
        mean, std = known.get(name, (0.0, 1.0))
        return (x - mean) / std

    image, image_test = normalise(data.x, "image"), normalise(data.x_test, "image")
    state = normalise(state, "state")
    model = Policy()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    train(lambda x: model(x[:, :64], x[:, 64:]), torch.cat([image, state[:1200]], 1), data.y,
          optimizer=optimizer)  # fmt: skip
    right = accuracy(
        lambda x: model(x[:, :64], x[:, 64:]), torch.cat([image_test, state[1200:]], 1), data.y_test
    )
    return Case(right, check(model, {"image": image[:64], "state": state[:64]}).findings)
