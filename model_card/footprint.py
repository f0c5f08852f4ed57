"""Energy and emissions of a training run: device hours x power x overhead x carbon intensity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Footprint:
    """What a training run cost.

    Attributes:
        device_hours: hours of all devices together.
        kwh: energy of the devices, with the overhead of the building.
        co2_kg: carbon dioxide equivalent.
    """

    device_hours: float
    kwh: float
    co2_kg: float


def footprint(training: Mapping[str, Any], facts: Mapping[str, Any]) -> Footprint:
    """Computes energy and emissions.

    energy = devices x hours x power per device x PUE; emissions = energy x carbon intensity (Lacoste et al. 2019,
    arXiv:1910.09700). Power that was not measured is the board's limit, an upper bound: the facts say which.

    >>> footprint({"world_size": 8, "seconds": 36_000.0},
    ...           {"power_w": 700.0, "pue": 1.1, "carbon_g_per_kwh": 400.0})
    Footprint(device_hours=80.0, kwh=61.6, co2_kg=24.64)
    """
    hours = training["world_size"] * training["seconds"] / 3600
    kwh = hours * facts["power_w"] / 1000 * facts["pue"]
    return Footprint(hours, round(kwh, 6), round(kwh * facts["carbon_g_per_kwh"] / 1000, 6))
