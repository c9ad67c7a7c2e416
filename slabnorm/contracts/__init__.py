"""The statistics of many keys as one object; and norms of streams and series, which are not fitted once."""

from slabnorm.contracts.contract import Contract
from slabnorm.contracts.fit import fit_contract
from slabnorm.contracts.key import Key
from slabnorm.contracts.read import contract
from slabnorm.contracts.statistics import GivenNorm, Statistics

__all__ = ["Contract", "GivenNorm", "Key", "Statistics", "contract", "fit_contract"]
