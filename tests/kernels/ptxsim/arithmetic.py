"""The arithmetic of PTX that is no single NumPy function, and the names that generated code calls.

Every function takes and returns arrays with one value a thread. `flush`, where there is one, is PTX's `.ftz`: denormal
results become zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

Array = np.ndarray[Any, np.dtype[Any]]

# What a stretch of generated code returns instead of the number of the next one.
EXIT = -1
BARRIER = -2
DIVERGED = -3


# Floating point


def flushed(values: Array) -> Array:
    zero = values.dtype.type(0)
    return np.where(np.absolute(values) < np.finfo(values.dtype).tiny, np.copysign(zero, values), values)


def fma32(left: Array, right: Array, addend: Array, flush: bool = False) -> Array:
    """left * right + addend, rounded twice: the last bit may differ where float64 falls on a tie of float32."""
    result = (left.astype(np.float64) * right.astype(np.float64) + addend).astype(np.float32)
    return flushed(result) if flush else result


def halves(values: Array) -> tuple[Array, Array]:
    """The upper and the lower bits of each float64 as two, of which products are exact (Veltkamp)."""
    scaled = values * (2.0**27 + 1)
    upper = scaled - (scaled - values)
    return upper, values - upper


def fma64(left: Array, right: Array, addend: Array) -> Array:
    """left * right + addend with the rounding errors of both (Dekker, Knuth): right but for rare ties."""
    product = left * right
    left_upper, left_lower = halves(left)
    right_upper, right_lower = halves(right)
    error = left_upper * right_upper - product
    error = (error + left_upper * right_lower + left_lower * right_upper) + left_lower * right_lower

    total = product + addend
    kept = total - product
    sum_error = (product - (total - kept)) + (addend - kept)
    exact = total + (error + sum_error)
    return np.where(np.isfinite(exact), exact, total)


APPROXIMATED = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda values: 1 / np.sqrt(values),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


def approximate(name: str, values: Array, exact: bool) -> Array:
    """A function of one operand, as exactly as NumPy can; `exact` if PTX asks for it, too."""
    if name == "rcp" and values.dtype == np.float64 and not exact:
        # PTX gives 20 bits of the fraction: the lower half of the result is zero.
        result = flushed(1 / flushed(values))
        return (result.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
    return APPROXIMATED[name](values.astype(np.float64)).astype(values.dtype)


def atomic_sum(values: Array, added: Array) -> Array:
    """What atomics on global memory make of two numbers. Denormal float32 are zero, though no `.ftz` says so."""
    if values.dtype == np.float32:
        return flushed(flushed(values) + flushed(added))
    return values + added


# Integers


def integer_quotient(dividend: Array, divisor: Array) -> Array:
    """Rounded toward zero. By zero it is undefined; here it is as by one."""
    by = np.where(divisor == 0, divisor.dtype.type(1), divisor)
    if dividend.dtype.kind == "u":
        return dividend // by
    # In 64 bits, the lowest number of 32 has a negative one.
    wide = dividend.astype(np.int64)
    quotient = np.absolute(wide) // np.absolute(by.astype(np.int64))
    return np.where((wide < 0) != (by < 0), -quotient, quotient).astype(dividend.dtype)


def integer_remainder(dividend: Array, divisor: Array) -> Array:
    return dividend - integer_quotient(dividend, divisor) * divisor


def upper_product(left: Array, right: Array) -> Array:
    """The upper half of a product of twice the width."""
    if left.dtype.itemsize == 4:
        wide = np.int64 if left.dtype.kind == "i" else np.uint64
        return ((left.astype(wide) * right.astype(wide)) >> wide(32)).astype(left.dtype)
    # Python's integers have any width.
    products = np.atleast_1d(left.astype(object) * right.astype(object))
    return np.array([int(product) >> 64 for product in products]).astype(left.dtype)


def shift_left(values: Array, by: Array, width: int) -> Array:
    """PTX shifts by more than the width as by the width, NumPy does not say."""
    shifted = values << np.minimum(by, width - 1).astype(values.dtype)
    return np.where(by < width, shifted, 0).astype(values.dtype)


def shift_right(values: Array, by: Array, width: int) -> Array:
    """Of signed values, the sign fills what becomes free."""
    shifted = values >> np.minimum(by, width - 1).astype(values.dtype)
    if values.dtype.kind == "i":
        return shifted
    return np.where(by < width, shifted, 0).astype(values.dtype)


# Bits


def low_bits(count: Array) -> Array:
    """That many ones, at most 32."""
    return (np.int64(1) << np.minimum(count, 32)) - 1


def extract_field(values: Array, position: Array, length: Array) -> Array:
    """`bfe`: a field of bits of 32-bit values; of signed ones, the field's highest bit is its sign."""
    position = position.astype(np.int64) & 255
    length = length.astype(np.int64) & 255
    wide = values.astype(np.int64) & 0xFFFFFFFF
    field = (wide >> np.minimum(position, 63)) & low_bits(length)
    if values.dtype.kind == "i":
        highest = (wide >> np.minimum(position + length - 1, 31)) & 1
        negative = (length > 0) & (length < 32) & (highest == 1)
        field = np.where(negative, field - (np.int64(1) << np.minimum(length, 32)), field)
    return field.astype(values.dtype)


def insert_field(field: Array, values: Array, position: Array, length: Array) -> Array:
    """`bfi`: 32-bit values with `length` bits from `position` on replaced by the lowest ones of `field`."""
    position = np.minimum(position.astype(np.int64) & 255, 32)
    mask = low_bits(length.astype(np.int64) & 255) << position
    kept = values.astype(np.int64) & ~mask
    return (kept | ((field.astype(np.int64) << position) & mask)).astype(np.uint32)


def count_ones(values: Array) -> Array:
    """`popc`."""
    return np.bitwise_count(values).astype(np.uint32)


def pick_bytes(low: Array, high: Array, selector: Array) -> Array:
    """`prmt`: each byte of the result is one of the eight of two operands, or filled with that one's sign."""
    byte = np.uint32(255)
    pool = np.stack([(word >> np.uint32(8 * place)) & byte for word in (low, high) for place in range(4)])
    result = np.zeros(low.shape, np.uint32)
    for place in range(4):
        chosen = ((selector >> np.uint32(4 * place)) & np.uint32(15)).astype(np.int64)
        picked = pool[chosen & 7, np.arange(len(low))]
        sign = np.where(picked & 128, 255, 0)
        result |= np.where(chosen & 8, sign, picked).astype(np.uint32) << np.uint32(8 * place)
    return result


# Conversions

ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def float_to_integer(values: Array, dtype: DTypeLike, rounding: str) -> Array:
    """Values outside of what the integer can hold become the nearest that it can, and NaN becomes zero."""
    limits = np.iinfo(dtype)
    lowest, highest = float(limits.min), float(limits.max)
    rounded = ROUNDINGS[rounding](values.astype(np.float64))
    rounded = np.where(np.isnan(rounded), 0, np.clip(rounded, lowest, highest))

    # The limits of 64 bits are no float64, so that NumPy's conversion of them is undefined.
    inside = (lowest < rounded) & (rounded < highest)
    nearest = np.where(rounded >= highest, limits.max, limits.min).astype(dtype)
    return np.where(inside, np.where(inside, rounded, 0).astype(dtype), nearest)


def lower_half(bits: Array) -> Array:
    """32 bits to the lower 16 of them."""
    return bits.astype(np.uint16)


def upper_half(bits: Array) -> Array:
    """32 bits to the upper 16 of them."""
    return (bits >> np.uint32(16)).astype(np.uint16)


def half_to_float(bits: Array) -> Array:
    """float16 in 16 bits to float32."""
    return bits.view(np.float16).astype(np.float32)


def float_to_half(values: Array) -> Array:
    return values.astype(np.float16).view(np.uint16)


def brain_to_float(bits: Array) -> Array:
    """bfloat16 in 16 bits to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_brain(values: Array) -> Array:
    """Rounded to the nearest, ties to the even one."""
    bits = values.astype(np.float32).view(np.uint32)
    last = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + last) >> np.uint32(16)
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def on_halves(function: np.ufunc, *bits: Array) -> Array:
    """A function of float16 operands, each in 16 bits."""
    return function(*(operand.view(np.float16) for operand in bits)).view(np.uint16)


# What generated code calls: NumPy's functions and types by their own names, and those above.
FROM_NUMPY = """
    absolute add bitwise_and bitwise_or bitwise_xor ceil clip copysign copyto count_nonzero divide equal floor fmax fmin
    greater greater_equal invert isnan left_shift less less_equal maximum minimum multiply negative not_equal
    right_shift rint subtract trunc where
    float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64
"""
NAMES: dict[str, Any] = {name: getattr(np, name) for name in FROM_NUMPY.split()}
NAMES |= {
    function.__name__: function
    for function in (
        approximate,
        brain_to_float,
        count_ones,
        extract_field,
        float_to_brain,
        float_to_half,
        float_to_integer,
        flushed,
        fma32,
        fma64,
        half_to_float,
        insert_field,
        integer_quotient,
        integer_remainder,
        lower_half,
        on_halves,
        pick_bytes,
        shift_left,
        shift_right,
        upper_half,
        upper_product,
    )
}
NAMES |= {"EXIT": EXIT, "BARRIER": BARRIER, "DIVERGED": DIVERGED}
