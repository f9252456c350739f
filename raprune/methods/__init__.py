"""One file a paper. A new method is a file and a line here."""

from raprune.errors import UsageError
from raprune.methods.activation import Activation
from raprune.methods.apoz import Apoz
from raprune.methods.auto_balanced import AutoBalanced
from raprune.methods.fpgm import Fpgm
from raprune.methods.lasso import Lasso
from raprune.methods.magnitude import L1, L2
from raprune.methods.method import Batches, Bench, Cut, Method, Network, Regularizer, Scores, Step, reestimate_batch_norm
from raprune.methods.random import Random
from raprune.methods.taylor import Taylor
from raprune.methods.thinet import ThiNet

METHODS: dict[str, type[Method]] = {
    "activation": Activation,
    "apoz": Apoz,
    "auto_balanced": AutoBalanced,
    "fpgm": Fpgm,
    "l1": L1,
    "l2": L2,
    "lasso": Lasso,
    "random": Random,
    "taylor": Taylor,
    "thinet": ThiNet,
}


def method_named(name: str) -> type[Method]:
    """The method of this name.

    Raises:
        UsageError: if there is none.
    """
    if name not in METHODS:
        raise UsageError(
            f"--methods {name}: no such method. Valid: {', '.join(sorted(METHODS))}.",
            hint="`raprune methods` says what each one does.",
        )
    return METHODS[name]


__all__ = [
    "METHODS",
    "Batches",
    "Bench",
    "Cut",
    "Method",
    "Network",
    "Regularizer",
    "Scores",
    "Step",
    "method_named",
    "reestimate_batch_norm",
]
