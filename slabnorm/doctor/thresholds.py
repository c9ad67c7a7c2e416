"""From which size on something is a finding, and where the number comes from; else it is chosen."""

from __future__ import annotations

# Modes and statistics.
Z_ERRORS = 6.0  # standard errors: chance alone passes them once in 10^9 channels
SHIFT = 0.5  # standard deviations between running and batch mean: a fifth of a ReLU's inputs change sides
RATIO = 3.0  # of variances
GAP = 0.5  # of the outputs' size
SETTLING = 20  # batches: at the usual momentum of 0.1, 12% of running statistics is still initial then
MATES = 1e-3  # of the output's size: rounding in another order moves float32 by 1e-6
MOMENTUM = 0.9  # the weight of the new batch; the other convention's usual values are 0.9, 0.99 and 0.999
FEW_SAMPLES = 8  # of a batch: the noise of a mean is then 35% of a standard deviation
FEW_ELEMENTS = 8  # of a slab within a sample, for the same reason
ERASED = 2  # elements: one is always mapped to the bias

# Structure and signal.
RAW = 10.0  # the root mean square of inputs; layers are initialised for 1
TWICE = 0.02  # the largest input: 8-bit pixels that were divided by 255 twice end at 0.004
FAINT = 0.01  # the standard deviation of inputs within channels
RESCALED = 10.0  # of the spread of the training data: from there on a change of scale is no other range of 1
FLAT_SHARE = 0.5  # of an activation's values; 96% with raw pixels in the claim `saturate`
DEAD_SHARE = 0.25  # of channels
GROWTH = 1e3  # between the first and the last layer, with a steady trend
DEPTH = 5  # layers, below which a trend is none
GAMMA_DEAD, GAMMA_HUGE = 1e-4, 100.0  # of 1, where weights start

# Numerics.
CANCELLED = 0.05  # of a standard deviation: what rounding takes from x - mean

# Over time.
# Running standard deviations between batch and running mean, beyond a batch's noise. On the digits, a lag of
# 0.2 costs no accuracy in eval mode, 0.5 to 0.8 costs 11 points of 92, and 2 costs 24 of 87.
LAG = 0.5
LOOKS = 5  # at a training, below which it is only beginning
