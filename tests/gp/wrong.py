"""Changes of smoke results that a claim must notice, for each claim of each experiment.

WRONG[experiment][beginning of a statement] = metric, (where, change), ...
"""

from tests.changes import above_all, NAN, plus, times


OUTAGES, WEEKS = ({"pattern": pattern} for pattern in ("outages", "weeks"))

LEAST, WHOLE, GAPS, NOISY_GAPS = (
    {"percent": percent, "level": level} for percent in (0, 30) for level in (0, 1)
)

SCATTERED, SLAB, BLOCK = (
    {"pattern": pattern, "noise": 1e-2} for pattern in ("scattered", "slab", "block")
)

PROCESS = {"method": 0}  # of experiments that compare methods

POLICY, TRACED, PLAIN, PRODUCT = ({"arithmetic": i, "noise": 1e-4} for i in range(4))

WRONG = {
    "co2": {
        "outages: error over climatology": (
            "rmse",
            NAN,
            (OUTAGES | PROCESS, times(3)),
        ),
        "outages: error over seasonal": ("rmse", NAN, (OUTAGES | PROCESS, times(3))),
        "outages: error over interpolation": (
            "rmse",
            NAN,
            (OUTAGES | PROCESS, times(3)),
        ),
        "weeks: error over interpolation": (
            "rmse",
            NAN,
            (WEEKS | PROCESS, times(1.5)),
        ),
        "intervals of 80 %": ("coverage", NAN, (WEEKS, plus(-0.2)), (WEEKS, plus(0.2))),
    },
    "exactness": {
        "whole grid, noise >= 1e-2: error of the likelihood": (
            "likelihood_error",
            NAN,
            (WHOLE, plus(1e-12)),
        ),
        "whole grid, noise >= 1e-2: error of the gradient": (
            "gradient_error",
            NAN,
            (WHOLE, plus(1e-11)),
        ),
        "whole grid, noise 1e-6: error of the likelihood": (
            "likelihood_error",
            NAN,
            (LEAST, plus(1e-9)),
        ),
        "whole grid, noise 1e-6: error of the gradient": (
            "gradient_error",
            NAN,
            (LEAST, plus(1e-9)),
        ),
        "gaps, noise >= 1e-2: error of the likelihood": (
            "likelihood_error",
            NAN,
            (NOISY_GAPS, plus(1e-10)),
        ),
        "gaps, noise >= 1e-2: error of the solve": (
            "solve_error",
            NAN,
            (NOISY_GAPS, plus(1e-10)),
        ),
        "gaps, any noise: error of the logdet": (
            "logdet_error",
            NAN,
            (GAPS, plus(1e-12)),
        ),
    },
    "partial_grids": {
        "every cell: true residual": ("residual", NAN, (BLOCK, plus(1e-6))),
        "every cell: the status": ("has_converged", NAN, (BLOCK, times(0))),
        "scattered, 20 %, noise 1e-2, long: steps": (
            "num_steps",
            NAN,
            (SCATTERED, plus(15)),
            (SCATTERED, times(0)),
        ),
        "scattered, 20 %, noise 1e-2, long: steps of": (
            "masked_steps",
            NAN,
            (SCATTERED, times(0.1)),
        ),
        "slab: steps": ("num_steps", NAN, (SLAB, plus(1))),
        "block, 20 %: steps over": ("num_steps", NAN, (BLOCK, times(0.1))),
        "block, 20 %, long: steps of": (
            "masked_steps",
            NAN,
            (BLOCK, times(0.1)),
        ),
    },
    "photograph": {
        "error over that of the nearest": ("rmse", NAN, (PROCESS, times(1.5))),
        "error over that of the mean": ("rmse", NAN, (PROCESS, times(10))),
        "error over that of linear": ("rmse", NAN, (PROCESS, times(1.5))),
        "intervals of 90 %": ("coverage", NAN, ({}, plus(-0.1)), ({}, plus(0.1))),
        "intervals of 50 %": ("coverage", NAN, ({}, plus(-0.3))),
        "error of the widest": ("spread", NAN, ({}, times(0.5))),
    },
    "precision": {
        "policy: error of the mean": ("mean_error", NAN, (POLICY, plus(1e-6))),
        "policy: error of the likelihood": (
            "likelihood_error",
            NAN,
            (POLICY, plus(1e-6)),
        ),
        "policy and traced": ("is_finite", NAN, (TRACED, times(0))),
        "traced, noise 1e-4": ("mean_error", NAN, (TRACED, times(1e-3))),
        "plain, noise 1e-4": ("mean_error", NAN, (PLAIN, times(1e-3))),
        "product, noise 1e-4": ("mean_error", NAN, (PRODUCT, times(0.1))),
    },
    "restarts": {
        "best of all starts: likelihood": ("final", NAN, ({"seed": 1}, plus(-20))),
        "best of all starts: period": ("period", NAN, ({"seed": 1}, times(1.1))),
        "one start": ("final", NAN, ({}, times(0))),
        "eight starts": ("final", NAN, ({"seed": 1, "start": 0}, above_all(50))),
        "median start": ("final", NAN, ({}, times(0))),
    },
}
