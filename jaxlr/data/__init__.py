"""Data sets: bundled with other libraries, generated, or read from official files.

Digits, photographs and a record of the air; ListOps by the rules of the Long Range
Arena and mixtures of Fourier modes; readers of sCIFAR and of the Long Range Arena's
other tasks. What is read or split lives on the host (NumPy); what is drawn from a key
is pure JAX.
"""

from jaxlr.data._carbon_dioxide import (
    carbon_dioxide as carbon_dioxide,
    WeeklyRecord as WeeklyRecord,
)
from jaxlr.data._digits import (
    Digits as Digits,
    digits as digits,
    sequential_digits as sequential_digits,
    SequentialDigits as SequentialDigits,
)
from jaxlr.data._files import (
    read_cifar as read_cifar,
    read_listops as read_listops,
    read_pathfinder as read_pathfinder,
    read_retrieval as read_retrieval,
    read_text as read_text,
    Signals as Signals,
)
from jaxlr.data._fourier import (
    fourier_modes as fourier_modes,
    fourier_noise as fourier_noise,
    FourierModes as FourierModes,
)
from jaxlr.data._listops import (
    listops as listops,
    listops_value as listops_value,
    LISTOPS_VOCABULARY as LISTOPS_VOCABULARY,
    ListOpsSplits as ListOpsSplits,
    root_operator_accuracy as root_operator_accuracy,
    Tokens as Tokens,
)
from jaxlr.data._photographs import (
    photograph as photograph,
    PHOTOGRAPHS as PHOTOGRAPHS,
)
