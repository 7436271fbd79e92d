"""Gaussian processes on grids: exact by Kronecker products, with gaps and any noise."""

from jaxlr.gp.coregionalization import Coregionalization as Coregionalization
from jaxlr.gp.grid import Evidence as Evidence, GridGP as GridGP, GridInfo as GridInfo
from jaxlr.gp.posterior import Posterior as Posterior, Prediction as Prediction
