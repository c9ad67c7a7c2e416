"""What goes into the network: statistics fitted once, on the training split, and frozen.

source -> blocks -> chunks -> Moments -> merge in a tree -> scheme -> InputNorm -> artifact
"""

from slabnorm.inputs.artifact import load, save
from slabnorm.inputs.fit import fit
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.schemes import FixedScale, MinMax, QuantileRange, Robust, ZScore

__all__ = ["FixedScale", "InputNorm", "MinMax", "QuantileRange", "Robust", "ZScore", "fit", "load", "save"]
