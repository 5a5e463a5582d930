"""LLVM code for the compiled back-end: tiles of vector registers, atomic flags, the bits of a float.

Numba alone keeps the sums of a matrix-vector product in memory. Here they stay in registers, so that the product is as
fast as the weights can be read.
"""

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import float32, int32, int64, intp, njit, types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

# Calls of an intrinsic leave out its first argument, Numba's typing context, which type checkers do not know.
intrinsic: Any = _intrinsic

LANES = 16  # floats in one AVX-512 register; a narrower machine splits it
# Registers that one tile of sums takes: AVX2 has half of the registers, and each is half as wide.
WIDEST = 8 if llvm.get_host_cpu_features().get("avx512f") else 4
TILES = [t for t in (8, 4, 2, 1) if t <= WIDEST]

_F32, _I64 = ir.FloatType(), ir.IntType(64)
_VEC = ir.VectorType(_F32, LANES)


def _tile(vectors: int, streams: int):
    """out[s, :16*vectors] += x[s, :n] @ w for `streams` streams; all addresses are byte addresses."""

    @intrinsic
    def tile(typingctx, out, w, x, n, out_stride, x_stride):
        def codegen(context, builder, signature, args):
            out, w, x, n, out_stride, x_stride = args
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VEC, [_VEC] * 3), "llvm.fma.v16f32")
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
            places = [
                builder.inttoptr(
                    builder.add(out, builder.add(builder.mul(out_stride, _I64(s)), _I64(4 * LANES * v))),
                    _VEC.as_pointer(),
                )
                for s in range(streams)
                for v in range(vectors)
            ]
            firsts = [builder.load(place, align=4) for place in places]
            entry = builder.block
            builder.branch(head)
            builder.position_at_end(head)
            i = builder.phi(_I64)
            sums = [builder.phi(_VEC) for _ in places]
            i.add_incoming(_I64(0), entry)
            for total, first in zip(sums, firsts, strict=True):
                total.add_incoming(first, entry)
            builder.cbranch(builder.icmp_signed("<", i, n), body, done)
            builder.position_at_end(body)
            row = builder.add(w, builder.mul(i, _I64(4 * LANES * vectors)))
            weights = [
                builder.load(builder.inttoptr(builder.add(row, _I64(4 * LANES * v)), _VEC.as_pointer()), align=4)
                for v in range(vectors)
            ]
            news = []
            for s in range(streams):
                place = builder.add(x, builder.add(builder.mul(x_stride, _I64(s)), builder.mul(i, _I64(4))))
                value = builder.load(builder.inttoptr(place, _F32.as_pointer()), align=4)
                one = builder.insert_element(ir.Constant(_VEC, ir.Undefined), value, ir.IntType(32)(0))
                all_lanes = builder.shuffle_vector(one, ir.Constant(_VEC, ir.Undefined), zeros)
                news += [builder.call(fma, [weights[v], all_lanes, sums[s * vectors + v]]) for v in range(vectors)]
            i.add_incoming(builder.add(i, _I64(1)), body)
            for total, new in zip(sums, news, strict=True):
                total.add_incoming(new, body)
            builder.branch(head)
            builder.position_at_end(done)
            for place, total in zip(places, sums, strict=True):
                builder.store(total, place, align=4)
            return context.get_dummy_value()

        return types.void(intp, intp, intp, intp, intp, intp), codegen

    return tile


_one8, _one4, _one2, _one1 = (_tile(v, 1) for v in (8, 4, 2, 1))
_two8, _two4, _two2, _two1 = (_tile(v, 2) for v in (8, 4, 2, 1))


@njit(inline="never", cache=True, nogil=True)
def multiply(out, out_stride, w, x, x_stride, n_in, n_out, streams):
    """out[s, :n_out] += x[s, :n_in] @ w with w packed by `compiled._pack`.

    Addresses and strides are in bytes, n_out is a multiple of LANES.
    """
    s = 0
    while s < streams:
        left, tile_out, tile_w = n_out, out, w
        if streams - s >= 2:
            while left >= 8 * LANES and WIDEST >= 8:
                _two8(tile_out, tile_w, x, n_in, out_stride, x_stride)
                left, tile_out, tile_w = left - 8 * LANES, tile_out + 32 * LANES, tile_w + 32 * LANES * n_in
            while left >= 4 * LANES:
                _two4(tile_out, tile_w, x, n_in, out_stride, x_stride)
                left, tile_out, tile_w = left - 4 * LANES, tile_out + 16 * LANES, tile_w + 16 * LANES * n_in
            while left >= 2 * LANES:
                _two2(tile_out, tile_w, x, n_in, out_stride, x_stride)
                left, tile_out, tile_w = left - 2 * LANES, tile_out + 8 * LANES, tile_w + 8 * LANES * n_in
            if left:
                _two1(tile_out, tile_w, x, n_in, out_stride, x_stride)
            s, out, x = s + 2, out + 2 * out_stride, x + 2 * x_stride
        else:
            while left >= 8 * LANES and WIDEST >= 8:
                _one8(tile_out, tile_w, x, n_in, out_stride, x_stride)
                left, tile_out, tile_w = left - 8 * LANES, tile_out + 32 * LANES, tile_w + 32 * LANES * n_in
            while left >= 4 * LANES:
                _one4(tile_out, tile_w, x, n_in, out_stride, x_stride)
                left, tile_out, tile_w = left - 4 * LANES, tile_out + 16 * LANES, tile_w + 16 * LANES * n_in
            while left >= 2 * LANES:
                _one2(tile_out, tile_w, x, n_in, out_stride, x_stride)
                left, tile_out, tile_w = left - 2 * LANES, tile_out + 8 * LANES, tile_w + 8 * LANES * n_in
            if left:
                _one1(tile_out, tile_w, x, n_in, out_stride, x_stride)
            s, out, x = s + 1, out + out_stride, x + x_stride


@intrinsic
def _load_flag(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), "acquire", 8)

    return int64(intp), codegen


@intrinsic
def _store_flag(typingctx, address, value):
    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], _I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(intp, int64), codegen


@intrinsic
def nearest(typingctx, x):
    """x rounded to an integer, as float32."""

    def codegen(context, builder, signature, args):
        rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_F32, [_F32]), "llvm.rint.f32")
        return builder.call(rint, args)

    return float32(float32), codegen


@intrinsic
def power_of_two(typingctx, n):
    """2^n for a whole n in -126..127, put together from its bits."""

    def codegen(context, builder, signature, args):
        i32 = ir.IntType(32)
        exponent = builder.add(builder.fptosi(args[0], i32), i32(127))
        return builder.bitcast(builder.shl(exponent, i32(23)), _F32)

    return float32(float32), codegen


@intrinsic
def clamp(typingctx, x, limit):
    """x clipped to -limit..limit, as a select: `min` and `max` branch on NaN and stop a loop from vectorising."""

    def codegen(context, builder, signature, args):
        x, limit = args
        x = builder.select(builder.fcmp_ordered("<", x, limit), x, limit)
        low = builder.fneg(limit)
        return builder.select(builder.fcmp_ordered(">", x, low), x, low)

    return float32(float32, float32), codegen


_yield_core = types.ExternalFunction("sched_yield", int32())


@njit(cache=True, nogil=True)
def publish(flags, index, value):
    """Set the flag after everything written so far is visible to the other thread."""
    _store_flag(flags.ctypes.data + 8 * index, value)


@njit(cache=True, nogil=True)
def reached(flags, index, value):
    """Whether the other thread has set this flag to at least `value`."""
    return _load_flag(flags.ctypes.data + 8 * index) >= value


@njit(cache=True, nogil=True)
def wait(flags, index, value):
    """Spin until the flag is reached; yield the core to other processes every few microseconds."""
    spins = 0
    while not reached(flags, index, value):
        spins += 1
        if spins > 3000:
            _yield_core()
            spins = 0
