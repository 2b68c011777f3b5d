"""What prepare leaves in a program for convert."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from refquant.fx.custom_config import PrepareCustomConfig
from refquant.fx.node_qconfigs import QConfigAny
from refquant.ir.program import Program
from refquant.qconfig_mapping import QConfigMapping


@dataclass
class Observed:
    """What convert has to know of prepare.

    Attributes
    ----------
    node_name_to_qconfig : dict
        The QConfig of every call of the program before observers were inserted.
    qconfig_mapping : QConfigMapping
        As used, with the entries of fused and training classes.
    observed : set of str
        Names of the calls whose inputs and outputs are observed.
    """

    node_name_to_qconfig: dict[str, QConfigAny]
    equalization: dict[str, Any]
    qconfig_mapping: QConfigMapping
    custom: PrepareCustomConfig
    is_qat: bool
    observed: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, program: Program) -> Observed | None:
        """Return what prepare left in a program, ours or torch's; None if it was not prepared."""
        found = program.meta.get("observed")
        return cls(**found) if isinstance(found, dict) else found
