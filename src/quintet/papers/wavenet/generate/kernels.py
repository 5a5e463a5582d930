"""Compiled loops over time: `solo`, one thread for some streams; `lead` and `follow`, two threads for one stream.

All widths are padded to multiples of LANES with zeros. Shapes: b stream, k block, g = [filter | gate], z gate channels.
"""

import numpy as np
from numba import njit

from quintet.papers.wavenet.generate.vector import clamp, multiply, nearest, power_of_two, publish, reached, wait

# No reassociation and no value-changing flags: sums keep their order, so that back-ends draw the same samples.
_FAST = {"contract", "nsz", "arcp", "nnan", "ninf"}
# Indices of the flags, one cache line apart.
BLOCKS_DONE, PAST_READY, HEAD_LEAD, HEAD_FOLLOW = 0, 16, 32, 48


@njit(fastmath=_FAST, error_model="numpy", cache=True, nogil=True, inline="always")
def _exp(x):
    """e^x in float32 for |x| <= 87, relative error 2e-7; free of branches, so that loops over it vectorize."""
    n = nearest(x * np.float32(1.4426950408889634))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * power_of_two(n)


@njit(fastmath=_FAST, error_model="numpy", cache=True, nogil=True)
def gate(a_g, z_z):
    """`layers.gated_activation` with one division; absolute error below 1e-6."""
    width = z_z.size
    filter_z, gate_z = a_g[:width], a_g[width:]
    for i in range(width):
        f = _exp(np.float32(2) * clamp(filter_z[i], np.float32(15)))
        g = _exp(-clamp(gate_z[i], np.float32(30)))
        z_z[i] = (f - np.float32(1)) / ((f + np.float32(1)) * (np.float32(1) + g))


@njit(fastmath=_FAST, error_model="numpy", cache=True, nogil=True)
def draw(logits_q, uniform, temperature, weights_q):
    """As `eager.draw`."""
    top = np.argmax(logits_q)
    if temperature == 0:
        return top
    highest, scale, total = logits_q[top], np.float32(1 / temperature), 0.0
    for q in range(logits_q.size):
        weights_q[q] = _exp(clamp((logits_q[q] - highest) * scale, np.float32(87)))
    for q in range(logits_q.size):
        total += weights_q[q]
    target, total, q = total * uniform, 0.0, 0
    while q < logits_q.size - 1:
        total += weights_q[q]
        if total > target:
            break
        q += 1
    return q


@njit(error_model="numpy", cache=True, nogil=True)
def copy(out, x):
    """out[:] = x without Numba's costly check for overlap."""
    for i in range(out.size):
        out[i] = x[i]


@njit(error_model="numpy", cache=True, nogil=True)
def add(out, x):
    for i in range(out.size):
        out[i] += x[i]


@njit(error_model="numpy", cache=True, nogil=True)
def embed(front_jqr, classes_t, time, x_r):
    """The front convolution: one column of weights per tap."""
    taps = front_jqr.shape[0]
    copy(x_r, front_jqr[0, classes_t[time - taps + 1]])
    for j in range(1, taps):
        add(x_r, front_jqr[j, classes_t[time - taps + 1 + j]])


@njit(error_model="numpy", cache=True, nogil=True)
def add_past(net, k, time, a_g, queue, streams):
    """a[s] += the delayed taps of block k at `time`."""
    length, row, base = net.lengths[k], 4 * queue.shape[2], net.bases[k]
    width, g = queue.shape[2], net.past.shape[2] // queue.shape[2]
    for j in range(net.taps):
        slot = base + (time - (net.taps - j) * net.dilations[k]) % length
        w, x = net.past.ctypes.data + net.past.strides[0] * k + net.past.strides[1] * j, queue.ctypes.data + row * slot
        multiply(a_g.ctypes.data, 4 * g, w, x, queue.strides[0], width, g, streams)


@njit(error_model="numpy", cache=True, nogil=True)
def product(out_bo, packed, x_bi):
    """out[b] += x[b] @ w."""
    n_in, n_out = x_bi.shape[1], out_bo.shape[1]
    multiply(
        out_bo.ctypes.data,
        out_bo.strides[0],
        packed.ctypes.data,
        x_bi.ctypes.data,
        x_bi.strides[0],
        n_in,
        n_out,
        out_bo.shape[0],
    )


@njit(fastmath=_FAST, error_model="numpy", cache=True, nogil=True)
def relu(x):
    for i in range(x.size):
        x[i] = max(x[i], np.float32(0))


@njit(fastmath=_FAST, error_model="numpy", cache=True, nogil=True)
def rescale(x, scale):
    if scale != np.float32(1):
        for i in range(x.size):
            x[i] *= scale


@njit(error_model="numpy", cache=True, nogil=True)
def solo(net, queue, classes_bt, start, stop, bias_btkg, uniforms_bn, temperature, logits_bnq):
    """Input times [start, stop) of all given streams on this thread; two streams share each read of the weights."""
    streams, blocks, width = classes_bt.shape[0], net.now.shape[0], queue.shape[2]
    x_br = np.zeros((streams, width), np.float32)
    a_bg = np.zeros((streams, bias_btkg.shape[3]), np.float32)
    z_bz = np.zeros((streams, bias_btkg.shape[3] // 2), np.float32)
    skip_bs = np.zeros((streams, net.skip_bias.size), np.float32)
    hidden_bh = np.zeros((streams, net.head_bias.size), np.float32)
    logits_bq = np.zeros((streams, net.out_bias.size), np.float32)
    weights_q = np.zeros(net.classes, np.float32)
    for time in range(start, stop):
        n = time - start
        row = min(n, bias_btkg.shape[1] - 1)
        for b in range(streams):
            embed(net.front, classes_bt[b], time, x_br[b])
            copy(skip_bs[b], net.skip_bias)
            copy(hidden_bh[b], net.head_bias)
            copy(logits_bq[b], net.out_bias)
        for k in range(blocks):
            for b in range(streams):
                copy(a_bg[b], bias_btkg[b, row, k])
            add_past(net, k, time, a_bg, queue, streams)
            product(a_bg, net.now[k], x_br)
            slot = net.bases[k] + time % net.lengths[k]
            for b in range(streams):
                copy(queue[b, slot], x_br[b])
                gate(a_bg[b], z_bz[b])
            product(skip_bs[:, : net.split], net.skip_lead[k], z_bz)
            product(skip_bs[:, net.split :], net.skip_follow[k], z_bz)
            if k < blocks - 1:
                for b in range(streams):
                    add(x_br[b], net.residual_bias[k])
                product(x_br, net.residual[k], z_bz)
                for b in range(streams):
                    rescale(x_br[b], net.scale)
        for b in range(streams):
            relu(skip_bs[b])
        for half in range(2):
            columns = slice(0, net.head_split) if half == 0 else slice(net.head_split, hidden_bh.shape[1])
            product(hidden_bh[:, columns], net.head_lead if half == 0 else net.head_follow, skip_bs)
        for b in range(streams):
            relu(hidden_bh[b])
        for half in range(2):
            columns = slice(0, net.out_split) if half == 0 else slice(net.out_split, logits_bq.shape[1])
            product(logits_bq[:, columns], net.out_lead if half == 0 else net.out_follow, hidden_bh)
        for b in range(streams):
            drawn = draw(logits_bq[b, : net.classes], uniforms_bn[b, n], temperature, weights_q)
            classes_bt[b, time + 1] = drawn
            if logits_bnq.shape[1]:
                logits_bnq[b, n] = logits_bq[b, : net.classes]


@njit(error_model="numpy", cache=True, nogil=True)
def lead(net, shared, flags, queue, classes_bt, start, stop, bias_btkg, uniforms_bn, temperature, logits_bnq):
    """The sequential part: newest taps, gates, residuals and the draw; and a part of the skips and the head."""
    blocks = net.now.shape[0]
    x_br = np.zeros((1, queue.shape[2]), np.float32)
    weights_q = np.zeros(net.classes, np.float32)
    skip_bs, hidden_bh, logits_bq = shared.skip[:, : net.split], shared.hidden[:, : net.head_split], shared.logits
    for time in range(start, stop):
        n = time - start
        embed(net.front, classes_bt[0], time, x_br[0])
        copy(skip_bs[0], net.skip_bias[: net.split])
        for k in range(blocks):
            wait(flags, PAST_READY, n * blocks + k + 1)
            a_bg, z_bz = shared.past[k], shared.z[k]
            product(a_bg, net.now[k], x_br)
            copy(queue[0, net.bases[k] + time % net.lengths[k]], x_br[0])
            gate(a_bg[0], z_bz[0])
            publish(flags, BLOCKS_DONE, n * blocks + k + 1)
            if k < blocks - 1:
                add(x_br[0], net.residual_bias[k])
                product(x_br, net.residual[k], z_bz)
                rescale(x_br[0], net.scale)
            product(skip_bs, net.skip_lead[k], z_bz)
        relu(skip_bs[0])
        publish(flags, HEAD_LEAD, 2 * n + 1)
        copy(hidden_bh[0], net.head_bias[: net.head_split])
        wait(flags, HEAD_FOLLOW, 3 * n + 1)
        product(hidden_bh, net.head_lead, shared.skip)
        relu(hidden_bh[0])
        publish(flags, HEAD_LEAD, 2 * n + 2)
        copy(logits_bq[0, : net.out_split], net.out_bias[: net.out_split])
        wait(flags, HEAD_FOLLOW, 3 * n + 2)
        product(logits_bq[:, : net.out_split], net.out_lead, shared.hidden)
        wait(flags, HEAD_FOLLOW, 3 * n + 3)
        drawn = draw(logits_bq[0, : net.classes], uniforms_bn[0, n], temperature, weights_q)
        classes_bt[0, time + 1] = drawn
        if logits_bnq.shape[1]:
            logits_bnq[0, n] = logits_bq[0, : net.classes]


@njit(error_model="numpy", cache=True, nogil=True)
def past_of(net, shared, flags, queue, time, start, k, bias_btkg):
    """Compute the delayed taps of block k for `time` before the leading thread needs them."""
    n = time - start
    copy(shared.past[k, 0], bias_btkg[0, min(n, bias_btkg.shape[1] - 1), k])
    add_past(net, k, time, shared.past[k], queue, 1)
    publish(flags, PAST_READY, n * net.now.shape[0] + k + 1)


@njit(error_model="numpy", cache=True, nogil=True)
def follow(net, shared, flags, queue, start, stop, bias_btkg):
    """The rest: the other skips and half of the head, and the delayed taps of the next time step."""
    blocks = net.now.shape[0]
    skip_bs, hidden_bh = shared.skip[:, net.split :], shared.hidden[:, net.head_split :]
    logits_bq = shared.logits[:, net.out_split :]
    for k in range(blocks):
        past_of(net, shared, flags, queue, start, start, k, bias_btkg)
    for time in range(start, stop):
        n, ready, last = time - start, 0, time + 1 == stop
        copy(skip_bs[0], net.skip_bias[net.split :])
        for k in range(blocks):
            # Work ahead until block k is done; the input of block `ready` is already in the queue.
            while not last and ready < k and not reached(flags, BLOCKS_DONE, n * blocks + k + 1):
                past_of(net, shared, flags, queue, time + 1, start, ready, bias_btkg)
                ready += 1
            wait(flags, BLOCKS_DONE, n * blocks + k + 1)
            product(skip_bs, net.skip_follow[k], shared.z[k])
        relu(skip_bs[0])
        publish(flags, HEAD_FOLLOW, 3 * n + 1)
        copy(hidden_bh[0], net.head_bias[net.head_split :])
        wait(flags, HEAD_LEAD, 2 * n + 1)
        product(hidden_bh, net.head_follow, shared.skip)
        relu(hidden_bh[0])
        publish(flags, HEAD_FOLLOW, 3 * n + 2)
        copy(logits_bq[0], net.out_bias[net.out_split :])
        wait(flags, HEAD_LEAD, 2 * n + 2)
        product(logits_bq, net.out_follow, shared.hidden)
        publish(flags, HEAD_FOLLOW, 3 * n + 3)
        while not last and ready < blocks:
            past_of(net, shared, flags, queue, time + 1, start, ready, bias_btkg)
            ready += 1
