"""Changes of smoke results that a claim must notice, for each claim of each experiment.

WRONG[experiment][beginning of a statement] = metric, (where, change), ...
"""

from tests.changes import NAN, plus, times


ONE, THREE = ({"seed": 1, "bound": bound} for bound in (1.0, 3.0))

BUILT, BLUNT = ({"seed": 1, "num_positions": 64, "sharpness": c} for c in (1.0, 0.01))

EQUAL = {"num_features": 4, "degree": 2}

CUBIC, LINEAR, MASKED = (
    {"num_positions": 65536, "implementation": name, "mask": mask}
    for name, mask in (
        ("xla", "none"),
        ("polynomial", "none"),
        ("polynomial", "causal"),
    )
)

EXACTLY, TAYLOR = ({"kind": kind} for kind in ("bounded", "polynomial"))

TENSOR, MATRIX = ({"architecture": name} for name in ("tensor", "matrix"))

WRONG = {
    "bounded_entries": {
        "B = 1: largest error at degree 2": ("error", NAN, (ONE, plus(3e-5))),
        "B = 1: largest error at degree 4": ("error", NAN, (ONE, plus(3e-7))),
        "B = 1: largest error at degree 6": ("error", NAN, (ONE, plus(3e-9))),
        "B = 1: error of degree 0": ("error", NAN, (ONE, plus(1e-3))),
        "error over certificate": ("certificate", NAN, (ONE, times(1e-8))),
        "B = 3: error": ("error", NAN, (THREE, times(0.1))),
    },
    "crossover": {
        "length of equal flops over n*": (
            "crossover",
            NAN,
            (EQUAL, times(0.9)),
            (EQUAL, times(1.2)),
        ),
        "largest error": ("error", NAN, (EQUAL, plus(1e-4))),
    },
    "digits": {
        "test accuracy": ("accuracy", NAN, (EXACTLY, times(0.9))),
        "polynomial: test": (
            "accuracy",
            NAN,
            (EXACTLY, plus(0.02)),
            (EXACTLY, plus(-0.02)),
        ),
        "polynomial: share": ("changed", NAN, (TAYLOR, plus(0.02))),
    },
    "match3": {
        "accuracy": ("accuracy", NAN, (BUILT, plus(-1e-3))),
        "distance": ("margin", NAN, (BUILT, plus(-0.02))),
        "share": ("matching", NAN, (BUILT, times(0.0)), (BUILT, plus(1))),
        "a hundredth": ("accuracy", NAN, (BLUNT, plus(0.9))),
    },
    "match3_learned": {
        "parameters": ("num_parameters", NAN, (MATRIX, times(0.99))),
        "tensor: accuracy": ("accuracy", NAN, (TENSOR, plus(-0.3))),
        "tensor above matrix": (
            "auc",
            NAN,
            (TENSOR, plus(-0.1)),
            (MATRIX, plus(0.1)),
        ),
    },
    "scaling": {
        "polynomial, value: slope": (
            "flops",
            NAN,
            (LINEAR, times(0.9)),
            (LINEAR, times(1.1)),
        ),
        "polynomial with masks, value: slope": (
            "flops",
            NAN,
            (MASKED, times(0.9)),
            (MASKED, times(1.1)),
        ),
        "polynomial with masks, value: flops": ("flops", NAN, (MASKED, times(1.3))),
        "polynomial with masks, value and gradient: slope": (
            "gradient_flops",
            NAN,
            (MASKED, times(0.9)),
            (MASKED, times(1.1)),
        ),
        "exact, value: slope": (
            "flops",
            NAN,
            (CUBIC, times(0.8)),
            (CUBIC, times(1.2)),
        ),
        "all forms, value: slope": ("memory", NAN, (LINEAR, times(16))),
        "exact, value: memory": ("memory", NAN, (CUBIC, plus(4e6))),
        "polynomial, value and gradient: slope": (
            "gradient_flops",
            NAN,
            (LINEAR, times(0.9)),
            (LINEAR, times(1.1)),
        ),
        "exact, value and gradient: slope": (
            "gradient_flops",
            NAN,
            (CUBIC, times(0.8)),
            (CUBIC, times(1.2)),
        ),
        "all forms, value and gradient: slope": (
            "gradient_memory",
            NAN,
            (LINEAR, times(16)),
        ),
        "exact, value and gradient: memory": (
            "gradient_memory",
            NAN,
            (CUBIC, plus(4e6)),
        ),
        "all forms, value: flops": (
            "flops",
            NAN,
            (LINEAR, times(0.9)),
            (CUBIC, times(1.1)),
        ),
        "all forms: flops": ("gradient_flops", NAN, (CUBIC, times(1.15))),
        "all forms, n = 64": ("error", NAN, (LINEAR, plus(1e-4))),
    },
}
