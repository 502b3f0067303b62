"""What tokens cost on a machine that is paid by the hour."""

from __future__ import annotations


def cost_per_million_tokens(tokens_per_second: float, price_per_hour: float) -> float:
    """The price of a million real tokens, in the currency of `price_per_hour`.

    Args:
        tokens_per_second: real tokens; the machine is busy for the whole hour.
        price_per_hour: of the whole machine.

    Raises:
        ValueError: the rate is not above 0, or the price is below 0.
    """
    if not tokens_per_second > 0:
        raise ValueError(f"tokens_per_second: got {tokens_per_second}; more than 0 is allowed")
    if not price_per_hour >= 0:
        raise ValueError(f"price_per_hour: got {price_per_hour}; 0 and more is allowed")
    return price_per_hour / 3600 / tokens_per_second * 1e6
