// The functions that a printed cell calls, with the semantics of Rust's trait `Real`.
//
// WGSL's exp, log and tanh may be too inaccurate for a recurrence (tanh may return anything for
// large arguments), so they are computed from sums and products here:
//
//     e^x = 2^n (1 + p)                 n = round(x / ln 2), r = x - n ln 2, |r| <= ln(2) / 2,
//                                       p = e^r - 1 = r + r^2 q(r)
//     tanh x = t / (t + 2)              t = e^(2|x|) - 1 = 2^n p + (2^n - 1), x > 0; nothing
//                                       cancels, so small x keep their accuracy
//     ln(1 + e) = 2 atanh(s)
//               = s (2 + s^2 a(s^2))    s = e / (2 + e) <= 1/3
//
// q and a are Chebyshev interpolants with relative errors of 8e-9 and 2e-8.

// Variables, because a constant expression must be finite.
var<private> inf_bits: u32 = 0x7f800000u;
var<private> nan_bits: u32 = 0x7fc00000u;

fn real_inf() -> f32 { return bitcast<f32>(inf_bits); }
fn real_nan() -> f32 { return bitcast<f32>(nan_bits); }

fn real_abs(x: f32) -> f32 { return abs(x); }
fn real_sqrt(x: f32) -> f32 { return sqrt(x); }

// Tests the bits, because compilers of WGSL may assume that comparisons see no NaN.
fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }

// Returns x if x is NaN. Ignores a bound that is NaN.
fn real_max(x: f32, bound: f32) -> f32 { return select(x, bound, bound > x); }
fn real_min(x: f32, bound: f32) -> f32 { return select(x, bound, x > bound); }

// Clamps x to [-bound, bound]. Returns x if it is NaN.
fn real_clamp(x: f32, bound: f32) -> f32 { return real_min(real_max(x, -bound), bound); }

// a / b. For b above 2^126 WGSL allows any result, and GPUs return 0, because the reciprocal is
// subnormal.
fn real_quotient(a: f32, b: f32) -> f32 {
    let scale = select(1.0f, 0.25f, abs(b) > 8.507059e37f);
    return (a * scale) / (b * scale);
}

// Returns x, hidden from the compiler. WGSL allows compilers to reorder sums, which would change
// which terms cancel.
fn opaque(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ params.zero); }

// 2^n for n in [-126, 127].
fn power_of_two(n: i32) -> f32 { return bitcast<f32>(u32(n + 127) << 23u); }

struct Exponential {
    n: i32,
    p: f32,
}

// n and p of e^x = 2^n (1 + p).
fn exp_parts(x: f32) -> Exponential {
    let n = round(x * 1.4426950408889634f);
    // The product of n and the first part of ln 2 is exact, and so is the difference.
    let r = fma(n, -1.4286068203094172e-6f, opaque(fma(n, -0.693145751953125f, x)));
    var q = 0.0013926183587713495f;
    q = fma(q, r, 0.008363179052722577f);
    q = fma(q, r, 0.041666554617204574f);
    q = fma(q, r, 0.166665769869877f);
    q = fma(q, r, 0.5f);
    return Exponential(i32(n), fma(r * r, q, r));
}

// Below -104 the result is 0, above 89 it is infinity.
fn real_exp(x: f32) -> f32 {
    let e = exp_parts(clamp(x, -104.0f, 89.0f));
    // Multiply by two factors, because 2^n may not be representable.
    let half = e.n / 2;
    let y = (1.0f + e.p) * power_of_two(half) * power_of_two(e.n - half);
    return select(y, x, is_nan(x));
}

fn real_tanh(x: f32) -> f32 {
    // For |x| >= 20 the result is ±1, so 2 |x| can be clamped to 40.
    let e = exp_parts(min(abs(x) + abs(x), 40.0f));
    let power = power_of_two(e.n);
    let t = fma(e.p, power, opaque(power - 1.0f));
    let y = t / (t + 2.0f);
    let signed = bitcast<f32>(bitcast<u32>(y) | (bitcast<u32>(x) & 0x80000000u));
    return select(signed, x, is_nan(x));
}

// ln(1 + exp(-|x|))
fn real_softplus_neg_abs(x: f32) -> f32 {
    let e = real_exp(-abs(x));
    let s = e / (2.0f + e);
    let z = s * s;
    var a = 0.2685149802283715f;
    a = fma(a, z, 0.2823661980531048f);
    a = fma(a, z, 0.40007560644911206f);
    a = fma(a, z, 0.6666664033669924f);
    // The factor is e, not s, because s may be flushed to zero although e is not.
    return e * (fma(z, a, 2.0f) / (2.0f + e));
}

// x = 2^n m with m from sqrt(1/2) to sqrt(2): ln x = n ln 2 + 2 atanh(s), s = (m - 1) / (m + 1).
fn real_ln(x: f32) -> f32 {
    let subnormal = x < 1.17549435e-38f;
    let scaled = select(x, x * 8388608.0f, subnormal);
    let bits = bitcast<u32>(scaled) - 0x3f3504f3u;
    let n = f32(i32(bits) >> 23u) - select(0.0f, 23.0f, subnormal);
    let m = bitcast<f32>((bits & 0x7fffffu) + 0x3f3504f3u);
    let s = (m - 1.0f) / (m + 1.0f);
    let z = s * s;
    var a = 0.2685149802283715f;
    a = fma(a, z, 0.2823661980531048f);
    a = fma(a, z, 0.40007560644911206f);
    a = fma(a, z, 0.6666664033669924f);
    let y = fma(n, 0.693145751953125f, fma(n, 1.4286068203094172e-6f, s * fma(z, a, 2.0f)));
    let negative = select(y, real_nan(), x < 0.0f);
    let zero = select(negative, -real_inf(), x == 0.0f);
    return select(zero, x, is_nan(x) || x == real_inf());
}

fn real_sigmoid(x: f32) -> f32 { return 1.0f / (1.0f + real_exp(-x)); }

// sigmoid(x) (1 - sigmoid(x)) = e / (1 + e)^2, e = exp(-|x|), accurate where sigmoid(x) is near 1.
fn real_sigmoid_slope(x: f32) -> f32 {
    let e = real_exp(-abs(x));
    let r = 1.0f / (1.0f + e);
    return e * r * r;
}

// 1 - tanh(x)^2, accurate where tanh(x) is near 1.
fn real_tanh_slope(x: f32) -> f32 { return 4.0f * real_sigmoid_slope(x + x); }
