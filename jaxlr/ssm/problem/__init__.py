"""Data of sequences: generated, from scikit-learn, or from the official files.

ListOps by LRA's rules, digits pixel by pixel, Fourier modes, and readers of sCIFAR and
the other tasks of the Long Range Arena. What is read or split lives on the host
(NumPy); what is drawn from a key is pure JAX.
"""

from jaxlr.ssm.problem._files import (
    read_cifar as read_cifar,
    read_listops as read_listops,
    read_pathfinder as read_pathfinder,
    read_retrieval as read_retrieval,
    read_text as read_text,
)
from jaxlr.ssm.problem._listops import (
    listops as listops,
    listops_value as listops_value,
    LISTOPS_VOCABULARY as LISTOPS_VOCABULARY,
    ListOpsSplits as ListOpsSplits,
    root_operator_accuracy as root_operator_accuracy,
    Tokens as Tokens,
)
from jaxlr.ssm.problem._signals import (
    Digits as Digits,
    fourier_modes as fourier_modes,
    fourier_noise as fourier_noise,
    FourierModes as FourierModes,
    sequential_digits as sequential_digits,
    Signals as Signals,
)
