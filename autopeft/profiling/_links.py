"""What carries data to and between devices, and how much of it."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.resources import read_record, resource_folder
from autopeft.specs import Link, LinkKind


@dataclass(frozen=True, kw_only=True)
class LinkSpeed:
    """What one lane or link of a generation carries in one direction."""

    generation: str
    bytes_per_second: float


@dataclass(frozen=True, kw_only=True)
class LinkSpeeds:
    """The content of ``profiles/links.yaml``."""

    pcie: list[LinkSpeed]
    nvlink: list[LinkSpeed]
    source: str
    checked: datetime.date


@functools.cache
def link_speeds() -> LinkSpeeds:
    """Returns the table of ``profiles/links.yaml``."""
    return read_record(resource_folder("profiles") / "links.yaml", LinkSpeeds)


def link_of(kind: LinkKind, generation: str, count: int) -> Link:
    """Returns a link with its bandwidth; None for that of a generation that is not listed.

    Args:
        kind: "pcie" or "nvlink".
        generation: such as "4.0".
        count: lanes of PCIe, links of NVLink.
    """
    speeds: list[LinkSpeed] = getattr(link_speeds(), kind)
    each = next((speed.bytes_per_second for speed in speeds if speed.generation == generation), None)
    return Link(kind=kind, generation=generation, count=count, bytes_per_second=each and each * count)


def narrowest(links: Sequence[Link | None]) -> Link | None:
    """Returns the link that limits an exchange between all devices; None if one of them is not known."""
    if not links or None in links:
        return None
    return min((link for link in links if link), key=lambda link: link.bytes_per_second or 0.0)


def describe_link(link: Link) -> str:
    """Returns a link for people: ``NVLink 4.0 x18``."""
    return f"{'PCIe' if link.kind == 'pcie' else 'NVLink'} {link.generation} x{link.count}"
