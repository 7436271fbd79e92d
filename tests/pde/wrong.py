"""Changes of smoke results that a claim must notice, for each claim of each experiment.

WRONG[experiment][beginning of a statement] = metric, (where, change), ...
"""

from tests.changes import NAN, plus, times


SIN, ALLEN_CAHN = (
    {"problem": name, "component": "gaussian"}
    for name in ("poisson_1d_sin", "allen_cahn_1d_sin_cos")
)

WRONG = {
    "collocation": {
        "Poisson, sin(100 x): error": ("error", NAN, (SIN, plus(1e-6))),
        "every problem: error": (
            "error",
            NAN,
            (SIN, plus(1e-4)),
            (ALLEN_CAHN, plus(1e-4)),
        ),
        "every kernel: converged": ("has_converged", NAN, (SIN, times(0))),
        "Allen-Cahn: steps": (
            "num_steps",
            NAN,
            (ALLEN_CAHN, times(0)),
            (ALLEN_CAHN, plus(10)),
        ),
        "sin(100 x): weight": ("weight", NAN, (SIN, times(0.5))),
    },
    "gp_hm": {
        "error at the end": ("error", NAN, ({"problem": "poisson_1d_sin"}, plus(1))),
        "error off the grid": (
            "error_off_grid",
            NAN,
            ({"problem": "poisson_1d_sin"}, plus(1)),
        ),
        "gain of the log": ("gain", NAN, ({"problem": "poisson_1d_sin"}, times(-1))),
    },
}
