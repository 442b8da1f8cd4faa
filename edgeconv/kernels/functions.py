"""Functions of single numbers, the same to the bit on every CPU.

Sigmoid, swish and GELU, which every hidden number goes through, work in float32, of which a vector
holds twice as many, and carry along what roundings lose: they are within 1.8 units in the last
place. The others work in float64, round once, and are within 1. All are polynomials in fused
multiply-adds, as LLVM's and NumPy's own `exp` and the like differ between CPUs; coefficients are
minimax fits, beside which is the largest relative error.
"""

import numpy as np

from edgeconv.kernels import compiled
from edgeconv.kernels.vectors import bits_of, from_bits, fused, power_of_two

_ROUND = 1.5 * 2.0**52  # added to a number, it leaves the nearest integer in the low bits
_ROOT_HALF = int(np.sqrt(0.5).view(np.int64))
_MANTISSA = 52

_ZERO, _HALF, _ONE, _TINY = (np.float32(x) for x in (0, 0.5, 1, 2.0**-64))
# With an integer n added, `power_of_two` makes 2 ** (n - 64), or 2 ** (n + 64), of these.
_SMALLER, _LARGER = np.float32(1.5 * 2.0**23 + 63), np.float32(1.5 * 2.0**23 + 191)
_LOG2_E = np.float32(1.4426950408889634)
_LN_2, _LN_2_REST = np.float32(2839 / 4096), np.float32(3.194618494528623e-05)  # 12 bits, the rest
# e ** r = 1 + r + r * r * (1 / 2 + ...), 2**-28
_EXP = tuple(np.float32(x) for x in (0.166665182, 0.0416662060, 0.00836891867, 0.00139505393))
_SURE, _LEAST = np.float32(43), np.float32(131)  # beyond, a sigmoid is 1, or its product 0
# In `gelu`: q by powers of w less a centre, 2**-27, with the rest of the first, and how steeply
# w * q, as a power of w, rises with it.
_SLOPE, _CENTRE, _FAR = np.float32(0.3), np.float32(0.59375), np.float32(15)
_Q = tuple(
    np.float32(x)
    for x in (
        *(0.256056697, 0.399991363, 0.409516394, 0.225665793, -0.0109795416, -0.0907263383),
        *(-0.00948594324, 0.0441151746, 0.00222934294, -0.0206249394),
    )
)
_Q_REST = np.float32(-7.80297249e-09)
_STEEP, _STEEPER = np.float32(0.829812), np.float32(1.85836)


@compiled
def exp(x):
    """Return e ** x of a float64; beyond what float32 holds, a number that it rounds rightly."""
    x = -110.0 if x < -110.0 else x  # NaN remains
    x = 100.0 if x > 100.0 else x
    shifted = fused(x, 1.4426950408889634, _ROUND)
    r = fused(shifted - _ROUND, -0.6931471805599453, x)
    p = fused(0.00019891080463998843, r, 0.0013933730715792083)  # 2**-32
    p = fused(p, r, 0.008333310844647862)
    p = fused(p, r, 0.04166646419740569)
    p = fused(p, r, 0.16666666681704215)
    p = fused(p, r, 0.500000001353873)
    p = fused(fused(p, r, 1.0), r, 1.0)
    return from_bits(bits_of(p) + (bits_of(shifted) << _MANTISSA))


@compiled
def log(x):
    """Return the natural logarithm of a float64 that holds a float32."""
    exponent = (bits_of(x) - _ROOT_HALF) >> _MANTISSA
    m = from_bits(bits_of(x) - (exponent << _MANTISSA))
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    q = fused(0.19369462304677365, z, 0.22191049440932323)  # 2**-38
    q = fused(q, z, 0.2857176008578298)
    q = fused(q, z, 0.39999998770080447)
    q = fused(q, z, 0.6666666666739516)
    y = fused(exponent * 1.0, 0.6931471805599453, fused(s * z, q, 2.0 * s))
    y = x if x == np.inf else y
    y = -np.inf if x == 0.0 else y
    return np.nan if not x >= 0.0 else y


@compiled
def _exp_parts(x, rest, shift):
    """Return e and p, e * (1 + p) = e ** (x + rest), times 2 ** -64 or 2 ** 64 as `shift` says."""
    shifted = fused(x, _LOG2_E, shift)
    n = shifted - shift
    r = fused(n, -_LN_2, x) + fused(n, -_LN_2_REST, rest)  # the first product is exact
    square = r * r
    q = fused(fused(_EXP[3], square, fused(_EXP[2], r, _EXP[1])), square, fused(_EXP[0], r, _HALF))
    return power_of_two(shifted), fused(square, q, r)


@compiled
def _sigmoid_parts(x):
    """Return r and what it lacks: r * (1 + lost) = 2 ** 64 / (1 + e ** -x), of a float32.

    The divisor is 2 ** -64 times that one, so that it does not overflow, and r is one by it. `rest`
    is what rounding the divisor has lost.
    """
    z = -x
    z = -_SURE if z < -_SURE else z  # NaN remains
    z = _LEAST if z > _LEAST else z
    e, p = _exp_parts(z, _ZERO, _SMALLER)
    base = _TINY + e
    divisor = fused(e, p, base)
    rest = fused(e, p, base - divisor) + (_TINY - (base - e))
    r = _ONE / divisor
    return r, fused(-r, rest, fused(-r, divisor, _ONE))


@compiled
def gated(a, x):
    """Return a * sigmoid(x) = a / (1 + e ** -x), of float32; of an a up to 5e11, if x < -131."""
    r, lost = _sigmoid_parts(x)
    is_large = abs(a) > _ONE
    a = a * _TINY if is_large else a
    rough = a * r
    y = fused(a, r, rough * lost)
    y = rough if (y != y) | (rough == _ZERO) else y  # of an infinite a, or of a zero with its sign
    return y if is_large else y * _TINY


@compiled
def swish(x):
    """Return x * sigmoid(x), of a float32."""
    r, lost = _sigmoid_parts(x)
    a = -_LEAST if x < -_LEAST else x
    y = fused(a, r, a * r * lost) * _TINY
    return x if x > _SURE else y


@compiled
def tanh(x):
    """Return the hyperbolic tangent."""
    t = abs(x)
    z = t * t
    p = fused(-0.000896543880615448, z, 0.0033417792785767337)  # 2**-34
    p = fused(p, z, -0.008804699129387337)
    p = fused(p, z, 0.021862307655426308)
    p = fused(p, z, -0.053967829594430944)
    p = fused(p, z, 0.13333332385724683)
    p = fused(p, z, -0.33333333329857495)
    e = exp(-2.0 * t)
    y = fused(p * z, t, t) if t < 0.6 else (1.0 - e) / (1.0 + e)
    return -y if x < 0.0 else y


@compiled
def gelu(x):
    """Return x times the normal distribution's share below x, of a float32.

    The share below -t is ``w * q * e ** (-t * t / 2)``, with w = 1 / (1 + 0.3 * t) and a polynomial
    q of it. `rest` is what rounding w, q, t * t and the products has lost.
    """
    t = abs(x)
    t = _FAR if t > _FAR else t
    divisor = fused(_SLOPE, t, _ONE)
    v = _ONE / divisor - _CENTRE
    w = v + _CENTRE  # of which v is exact
    lost = fused(-w, fused(_SLOPE, t, _ONE - divisor), fused(-w, divisor, _ONE))
    square = v * v
    q = fused(fused(_Q[9], v, _Q[8]), square, fused(_Q[7], v, _Q[6]))
    q = fused(fused(q, square, fused(_Q[5], v, _Q[4])), square, fused(_Q[3], v, _Q[2]))
    q = fused(q, v, _Q[1])
    last = fused(q, v, _Q[0])
    last_rest = fused(q, v, _Q[0] - last) + _Q_REST
    square = t * t
    e, p = _exp_parts(-_HALF * square, -_HALF * fused(t, t, -square), _LARGER)
    tw = t * w
    y = tw * last
    by_w = y * (lost * fused(_STEEPER, w, _STEEP))
    rest = fused(tw, last, -y) + fused(fused(t, w, -tw), last, fused(tw, last_rest, by_w))
    y = (y + fused(y, p, fused(rest, p, rest))) * e * _TINY
    return x - y if x >= _ZERO else -y
