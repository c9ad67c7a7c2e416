"""The service subtracts the mean while the pixels are still bytes.

Symptom: accuracy in service is low
Cause: bytes have no negative values: what is darker than the mean becomes the brightest
Kind: inputs
Rule: 408
Healed: not tested, the printed words say only where to look
Thread: no public thread known
"""

import torch

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, convolutions, digits, images, train

BAD, GOOD = 0.5, 0.9
MEAN, SCALE = 77, 96


def run(repaired: bool) -> Case:
    """Serve bytes."""
    data = digits()
    pixels, served = ((255 * images(x)).to(torch.uint8) for x in (data.x, data.x_test))
    x = (pixels.float() - MEAN) / SCALE
    ready = (served - torch.tensor(MEAN, dtype=torch.uint8)) / SCALE
    if repaired:
        ready = (served.float() - MEAN) / SCALE
    model = convolutions()
    train(model, x, data.y)
    model.eval()
    return Case(accuracy(model, ready, data.y_test), check(model, ready[:128], reference=x).findings)
