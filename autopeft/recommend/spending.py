"""What a training costs, in money and energy, and which limits it breaks."""

from __future__ import annotations

from dataclasses import dataclass

from autopeft.errors import InvalidInputError
from autopeft.specs import HardwareProfile, PlanInputs
from autopeft.units import format_amount, format_duration

SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What time and energy cost on one device.

    Attributes:
        per_hour: of the device, in any currency; None if unknown.
        per_kwh: of energy on top of the hours, in the same currency; None if they include it.
        power_watts: the most that the device draws; None if unknown.
    """

    per_hour: float | None
    per_kwh: float | None
    power_watts: float | None

    @classmethod
    def of(cls, inputs: PlanInputs, hardware: HardwareProfile) -> Prices:
        """Returns the prices that the user gave, else what renting the device costs in US dollars.

        A user who gives a price of energy alone has a device of their own, whose hours cost nothing else.

        Raises:
            InvalidInputError: if a price or a limit is negative, or a limit on cost is given and nothing says what time
                costs.
        """
        rent = hardware.device.price_usd_per_hour if inputs.price_per_kwh is None else None
        prices = cls(
            per_hour=rent if inputs.price_per_hour is None else inputs.price_per_hour,
            per_kwh=inputs.price_per_kwh,
            power_watts=hardware.device.power_watts,
        )
        given = {
            "price_per_hour": inputs.price_per_hour,
            "price_per_kwh": inputs.price_per_kwh,
            "max_cost": inputs.max_cost,
            "max_time": inputs.max_seconds,
        }
        for name, value in given.items():
            if value is not None and value < 0:
                raise InvalidInputError(f"{name} cannot be negative: {value:g}")
        if inputs.max_cost is not None and prices.per_hour is None and not prices._energy_is_priced:
            raise InvalidInputError(
                f"a limit on cost ({inputs.max_cost:g}) needs a price, and {hardware.device.name} has none; "
                "say what an hour of it costs: price_per_hour (--price-per-hour)"
            )
        return prices

    @property
    def _energy_is_priced(self) -> bool:
        return self.per_kwh is not None and self.power_watts is not None

    def energy_kwh(self, seconds: float | None) -> float | None:
        """Returns the most energy that a training takes: the power limit the whole time; None if unknown."""
        if seconds is None or self.power_watts is None:
            return None
        return self.power_watts * seconds / JOULES_PER_KWH

    def cost(self, seconds: float | None) -> float | None:
        """Returns hours x price of an hour + energy x price of a kWh; None if no price or no time is known."""
        energy = self.energy_kwh(seconds)
        if seconds is None or (self.per_hour is None and (self.per_kwh is None or energy is None)):
            return None
        hours = seconds / SECONDS_PER_HOUR
        return hours * (self.per_hour or 0.0) + (energy or 0.0) * (self.per_kwh or 0.0)


def over_limit(inputs: PlanInputs, seconds: float | None, cost: float | None) -> str | None:
    """Returns which limit on time or cost a training breaks, in one clause with numbers; None if it breaks none.

    A time or cost that is unknown breaks none; the plan notes that it was not checked.
    """
    if inputs.max_seconds is not None and seconds is not None and seconds > inputs.max_seconds:
        return (
            f"takes {format_duration(seconds)} ({seconds:.0f} s), --max-time allows "
            f"{format_duration(inputs.max_seconds)} ({inputs.max_seconds:.0f} s)"
        )
    if inputs.max_cost is not None and cost is not None and cost > inputs.max_cost:
        return f"costs {format_amount(cost)}, --max-cost allows {format_amount(inputs.max_cost)}"
    return None


def spending_notes(inputs: PlanInputs, prices: Prices, *, speed_is_known: bool) -> list[str]:
    """Returns what of the prices and limits is unknown and matters to what was asked, one sentence each."""
    notes = []
    asks_for_cost = inputs.objective == "cost" or inputs.max_cost is not None or inputs.price_per_kwh is not None
    if not speed_is_known and (inputs.max_seconds is not None or inputs.max_cost is not None):
        notes.append("the speed of the device is unknown, so that no limit on time or cost was checked")
    if prices.per_hour is not None and inputs.price_per_hour is None:
        notes.append(f"an hour is taken to cost {prices.per_hour:g} US dollars, the rent of such a device")
    if asks_for_cost and prices.per_hour is None and inputs.price_per_kwh is None:
        notes.append("no price of an hour is known, so that cost is ordered by time; give one: --price-per-hour")
    if inputs.price_per_kwh is not None and prices.power_watts is None:
        notes.append("the power of the device is unknown, so that no price of energy was added")
    if prices.power_watts is not None:
        notes.append(f"kWh are an upper estimate: {prices.power_watts:g} W all the time, of this device alone")
    return notes
