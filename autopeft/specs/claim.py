"""One sentence of advice, with what it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Basis = Literal["measured", "interpolated", "extrapolated", "computed", "asked", "judgement"]
"""What a claim rests on, from the firmest to the loosest:

- measured: somebody measured this very thing, this model or this method under the stated conditions;
- computed: follows by arithmetic from the model, the data, the device and a stated formula;
- asked: the user decided it;
- interpolated: a fit to measurements, asked within the range that they cover;
- extrapolated: the same fit, asked outside that range;
- judgement: a habit of the field, or ours; no measurement settles it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One sentence that says why a choice is what it is.

    Attributes:
        about: the setting that it speaks of, by its name in the glossary: "learning_rate", "r".
        text: the sentence, without a full stop.
        basis: how firm it is.
        source: where the measurement, fit or formula can be read; None for what has none (asked, judgement) or
            follows from the user's own data and device.
    """

    about: str
    text: str
    basis: Basis
    source: str | None = None

    def __str__(self) -> str:
        """Returns the sentence with its label and source, as people read it."""
        return f"{self.text} [{self.basis}{f': {self.source}' if self.source else ''}]"
