"""Changes of smoke results that a claim must notice, for each claim of each experiment.

WRONG[experiment][beginning of a statement] = metric, (where, change), ...
"""

from tests.changes import NAN, plus, times


ONE, THREE = ({"seed": 1, "bound": bound} for bound in (1.0, 3.0))

BUILT, WITHOUT = (
    {"seed": 1, "num_positions": 64, "has_blank": b} for b in (True, False)
)

WRONG = {
    "bounded_entries": {
        "B = 1: largest error at degree 2": ("error", NAN, (ONE, plus(3e-5))),
        "B = 1: largest error at degree 4": ("error", NAN, (ONE, plus(3e-7))),
        "B = 1: largest error at degree 6": ("error", NAN, (ONE, plus(3e-9))),
        "B = 1: error of degree 0": ("error", NAN, (ONE, plus(1e-3))),
        "error over certificate": ("certificate", NAN, (ONE, times(1e-8))),
        "B = 3: error": ("error", NAN, (THREE, times(0.1))),
    },
    "match3": {
        "accuracy": ("accuracy", NAN, (BUILT, plus(-1e-3))),
        "distance": ("margin", NAN, (BUILT, plus(-0.02))),
        "share": ("matching", NAN, (BUILT, times(0.0)), (BUILT, plus(1))),
        "without": ("accuracy", NAN, (WITHOUT, plus(1e-3)), (WITHOUT, plus(-1e-3))),
    },
}
