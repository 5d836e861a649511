"""Conversion of numbers: exact, or rounded down."""

from __future__ import annotations

import math
from decimal import MAX_PREC, ROUND_FLOOR, Context, Decimal, localcontext
from fractions import Fraction
from typing import Any

_PLACES = 100
"""Decimal places at most, where a number needs more than `like` has."""
_EXACT = Context(prec=MAX_PREC)


def number_below(number: Any, like: Any) -> Any:
    """Return the greatest number in the type of `like`, and with its places, that is not above this one."""
    if isinstance(like, int):
        return math.floor(number)
    if isinstance(like, float):
        nearest = float(number)
        return math.nextafter(nearest, -math.inf) if nearest > number else nearest
    return _decimal_below(Fraction(number), like)


def decimal_of(number: Fraction) -> Decimal:
    """Return a number that has finitely many places, exactly.

    Raises:
        ValueError: it has infinitely many.

    """
    rest, places = number.denominator, 0
    for factor in (2, 5):
        count = 0
        while rest % factor == 0:
            rest, count = rest // factor, count + 1
        places = max(places, count)
    if rest != 1:
        raise ValueError(f"{number} has infinitely many decimal places")
    return Decimal(number.numerator * 10**places // number.denominator).scaleb(-places, _EXACT)


def _decimal_below(number: Fraction, like: Decimal) -> Decimal:
    """Return a Decimal with the places of `like`, more where the number needs and has them."""
    places = -int(like.as_tuple().exponent)
    while places < _PLACES and (number * 10**places).denominator > 1:
        places += 1
    with localcontext() as context:
        context.prec, context.rounding = 4 * _PLACES, ROUND_FLOOR
        return Decimal(math.floor(number * Fraction(10) ** places)).scaleb(-places)
