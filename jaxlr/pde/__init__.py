"""Differential equations of high frequency, solved by Gaussian processes."""

from jaxlr.pde.collocation import (
    Collocation as Collocation,
    collocation_solve as collocation_solve,
    newton_collocation as newton_collocation,
)
from jaxlr.pde.gp_hm import (
    gp_hm_init as gp_hm_init,
    gp_hm_log_joint as gp_hm_log_joint,
    gp_hm_predict as gp_hm_predict,
    GPHM as GPHM,
)
from jaxlr.pde.problem import (
    Benchmark as Benchmark,
    BENCHMARKS as BENCHMARKS,
    Equation as Equation,
    Face as Face,
    manufactured as manufactured,
    Problem as Problem,
    Unknown as Unknown,
)
