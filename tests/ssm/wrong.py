"""Changes of smoke results that a claim must notice, for each claim of each experiment.

WRONG[experiment][beginning of a statement] = metric, (where, change), ...
"""

from tests.changes import NAN, plus, times


FIRST, SECOND = ({"seed": seed, "n": n} for seed, n in ((0, 16), (1, 64)))

WRONG = {
    "convergence": {
        "S4D: gap": ("spikes", NAN, (FIRST, plus(2e-5)), (FIRST, plus(-2e-5))),
        "S4D: kernel's": ("distance", NAN, (FIRST, plus(2e-5)), (FIRST, plus(-2e-5))),
        "rank-one PTD: condition": ("condition", NAN, (FIRST, plus(2e-5))),
        "S4D: spikes": ("spikes", NAN, (SECOND, times(1.02)), (SECOND, times(0.99))),
        "rank-one PTD: largest gap": ("ptd_gap", NAN, (SECOND, times(1.5))),
        "rank-one PTD: its distance": ("ptd_distance", NAN, (FIRST, times(2))),
        "error of the identity": ("identity_error", NAN, (SECOND, plus(2e-11))),
        "error of the equation": ("frequency_error", NAN, (SECOND, plus(2e-11))),
        "error of Legendre": ("legendre_error", NAN, (SECOND, plus(2e-12))),
    },
    "digits": {
        "legs": ("accuracy", NAN, ({"start": "legs"}, times(0.96))),
        "real": (
            "accuracy",
            NAN,
            ({"start": "real"}, plus(0.2)),
            ({"start": "legs"}, plus(-0.2)),
        ),
    },
    "precision": {
        "n <= 64": ("error", NAN, ({"n": 64}, plus(1e-5))),
        "n = 256": ("error", NAN, ({"n": 256}, plus(4e-5))),
    },
}
