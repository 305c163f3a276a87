"""Predict the speed of a step on many devices from measured numbers.

Example: ``python -m tools.simulate_scaling --step-s 0.089 --elements 11173962 --encode-s 0.017``.

The model: a step takes its own time and that of the exchange of gradients, of which backward hides a part. A ring moves
2 (n - 1) / n of the bytes over each link in 2 (n - 1) messages; a tree moves twice the bytes in 2 log2(n) messages.
Codes of 4 bits are an eighth of the bytes, and take time to make on each device. Where a selection keeps a part of the
channels (``--kept``), each device sends this part to all others in n - 1 messages while that is less than a ring sends.
What is printed is efficiency: the speed with n devices on n times the batch, divided by n times that of one.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

DEVICES = (2, 8, 32, 128, 512, 1000)
ENOUGH = 0.5
"""Efficiency below which more devices are said to stop paying."""


@dataclass(frozen=True)
class Link:
    """A connection between two devices.

    Attributes:
        name: its name.
        bytes_s: bytes in a second, in each direction.
        latency_s: seconds until the first byte arrives.
    """

    name: str
    bytes_s: float
    latency_s: float


LINKS = (
    Link("Ethernet 1 Gb/s", 0.117e9, 100e-6),
    Link("Ethernet 25 Gb/s", 2.9e9, 30e-6),
    Link("NVLink 4", 400e9, 3e-6),
)
"""Data sheets' rates less the overhead of their protocols; ``--bandwidth`` and ``--latency`` add what was measured."""


@dataclass(frozen=True)
class Step:
    """One training step on one device.

    Attributes:
        seconds: seconds of the step without exchange.
        elements: number of elements of all gradients.
        overlap: share of the step in which gradients are computed, and exchanged meanwhile.
        encode_s: seconds to make and read the codes of all gradients.
        kept: share of the gradients' rows that a selection of channels keeps.
    """

    seconds: float
    elements: int
    overlap: float
    encode_s: float
    kept: float = 1.0


@dataclass(frozen=True)
class Exchange:
    """A way to exchange gradients.

    Attributes:
        shape: ``ring``, ``tree`` or ``rows``, the kept ones.
        bits: bits of an element on the wire: 32 or 4.
    """

    shape: str
    bits: int

    def seconds(self, step: Step, link: Link, devices: int) -> tuple[float, float]:
        """Seconds that ``devices`` devices need to exchange all gradients: for the bytes, and for the messages."""
        if devices == 1:
            return 0.0, 0.0
        size = step.elements * self.bits / 8
        if self.shape == "rows" and step.kept * devices < 2:
            return (devices - 1) * step.kept * size / link.bytes_s, (devices - 1) * link.latency_s
        if self.shape != "tree":
            return 2 * (devices - 1) / devices * size / link.bytes_s, 2 * (devices - 1) * link.latency_s
        return 2 * size / link.bytes_s, 2 * math.ceil(math.log2(devices)) * link.latency_s


EXCHANGES = tuple(Exchange(shape, bits) for shape in ("ring", "tree") for bits in (32, 4))
ROWS = (Exchange("rows", 32),)
"""What there is besides where a part of the rows is kept."""


def efficiency(step: Step, exchange: Exchange, link: Link, devices: int) -> float:
    """The speed of ``devices`` devices divided by as many times that of one."""
    if devices == 1:
        return 1.0
    moved, waited = exchange.seconds(step, link, devices)
    codes = step.encode_s if exchange.bits == 4 else 0.0
    left = max(0.0, moved + waited - step.overlap * step.seconds)
    return step.seconds / (step.seconds + codes + left)


def limit(step: Step, exchange: Exchange, link: Link) -> tuple[int | None, str]:
    """The largest number of devices up to a million that still pays, and what ends it; None if nothing does."""
    devices = 1
    while devices < 10**6:
        if efficiency(step, exchange, link, devices * 2) < ENOUGH:
            break
        devices *= 2
    else:
        return None, ""
    moved, waited = exchange.seconds(step, link, devices * 2)
    codes = step.encode_s if exchange.bits == 4 else 0.0
    return devices, max((moved, "bandwidth"), (waited, "latency"), (codes, "making codes"))[1]


def table(step: Step, links: tuple[Link, ...]) -> str:
    """The predicted efficiencies as Markdown."""
    rows = [
        "| link | exchange | " + " | ".join(map(str, DEVICES)) + " | pays up to | ended by |",
        "|---|---|" + "---|" * (len(DEVICES) + 2),
    ]
    for link in links:
        for exchange in EXCHANGES + ROWS * (step.kept < 1):
            values = " | ".join(f"{efficiency(step, exchange, link, n):.2f}" for n in DEVICES)
            most, why = limit(step, exchange, link)
            shown = "over a million" if most is None else str(most)
            rows.append(f"| {link.name} | {exchange.shape}, {exchange.bits} bits | {values} | {shown} | {why} |")
    return "\n".join(rows)


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-s", type=float, required=True, help="seconds of a step on one device")
    parser.add_argument("--elements", type=int, required=True, help="elements of all gradients")
    parser.add_argument("--overlap", type=float, default=0.5, help="share of the step that hides an exchange")
    parser.add_argument("--encode-s", type=float, default=0.0, help="seconds to make and read 4-bit codes")
    parser.add_argument("--kept", type=float, default=1.0, help="share of the channels that a selection keeps")
    parser.add_argument("--bandwidth", type=float, help="measured bytes in a second of a link")
    parser.add_argument("--latency", type=float, help="measured seconds of a message over it")
    given = parser.parse_args()
    links: tuple[Link, ...] = LINKS
    if given.bandwidth is not None and given.latency is not None:
        links = (Link("measured", given.bandwidth, given.latency), *LINKS)
    print(table(Step(given.step_s, given.elements, given.overlap, given.encode_s, given.kept), links))


if __name__ == "__main__":
    main()
