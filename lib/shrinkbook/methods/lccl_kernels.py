"""Compiled loops of the skipping convolution (Dong et al. 2017, inference), on NHWC pixels, one thread each.

A *position* is the number of an output position in the order (image, row, column). Nothing is kept on disk between
processes: compiling takes about a second a loop, and an installed package may not be writable.
"""

import numba
import numpy as np

SUMS = {"contract", "nsz", "reassoc"}  # additions in any order; NaN stays NaN


@numba.njit(nogil=True)
def gather(pixels, positions, patches, height, width, kh, kw, sh, sw, ph, pw):  # type: ignore[no-untyped-def]
    """Write the k k C numbers under the kernel at each position to a row of ``patches``."""
    rows, columns, channels = pixels.shape[1:]
    for p in range(len(positions)):
        image, rest = divmod(positions[p], height * width)
        top, left = rest // width * sh - ph, rest % width * sw - pw
        inside = top >= 0 and left >= 0 and top + kh <= rows and left + kw <= columns
        for a in range(kh):
            for b in range(kw):
                start = (a * kw + b) * channels
                y, x = top + a, left + b
                if inside or (0 <= y < rows and 0 <= x < columns):
                    for c in range(channels):
                        patches[p, start + c] = pixels[image, y, x, c]
                else:
                    for c in range(channels):
                        patches[p, start + c] = 0


@numba.njit(nogil=True)
def scatter(product, bias, gate, positions, relu, output):  # type: ignore[no-untyped-def]
    """output[position] = (product + bias) gate, row by row."""
    for p in range(len(positions)):
        row, factor = output[positions[p]], gate[p]
        for t in range(len(bias)):
            value = product[p, t] + bias[t]
            if relu:
                value = max(value, 0 * value)
            row[t] = value * factor


@numba.njit(nogil=True, fastmath=SUMS)
def dot(patches, matrix, bias, gate, positions, relu, output):  # type: ignore[no-untyped-def]
    """The same where every output has its own gate: a scalar product for each row and column that is open.

    Args:
        matrix: (T, k k C).
        gate: (N H' W', T).

    Returns:
        How many products.
    """
    rows = np.empty(len(positions), np.int64)
    sums = np.empty(len(positions), matrix.dtype)
    done = 0
    for t in range(len(matrix)):
        column = matrix[t]
        kept = 0
        for p in range(len(positions)):
            if gate[positions[p], t] != 0:
                rows[kept] = p
                kept += 1
        fours = kept // 4 * 4
        for p in range(0, fours, 4):  # a weight once loaded serves four rows
            row0, row1 = patches[rows[p]], patches[rows[p + 1]]
            row2, row3 = patches[rows[p + 2]], patches[rows[p + 3]]
            sum0 = sum1 = sum2 = sum3 = matrix.dtype.type(0)
            for j in range(len(column)):
                weight = column[j]
                sum0 += weight * row0[j]
                sum1 += weight * row1[j]
                sum2 += weight * row2[j]
                sum3 += weight * row3[j]
            sums[p], sums[p + 1], sums[p + 2], sums[p + 3] = sum0, sum1, sum2, sum3
        for p in range(fours, kept):
            row, total = patches[rows[p]], matrix.dtype.type(0)
            for j in range(len(column)):
                total += column[j] * row[j]
            sums[p] = total
        for p in range(kept):
            position = positions[rows[p]]
            value = sums[p] + bias[t]
            if relu:
                value = max(value, 0 * value)
            output[position, t] = value * gate[position, t]
        done += kept
    return done


@numba.njit(nogil=True, fastmath=SUMS)
def open_positions(pixels, weight, scale, shift, positions, values, height, width, sh, sw, ph, pw):  # type: ignore[no-untyped-def]
    """Write the positions where ReLU(scale (w * x) + shift) is above 0 and its values; returns how many.

    -1 if a value is NaN or infinite.
    """
    images, rows, columns, channels = pixels.shape
    kh, kw = weight.shape[:2]
    kept = 0
    for image in range(images):
        for i in range(height):
            top = i * sh - ph
            for j in range(width):
                left = j * sw - pw
                total = weight.dtype.type(0)
                for a in range(max(0, -top), min(kh, rows - top)):
                    for b in range(max(0, -left), min(kw, columns - left)):
                        for c in range(channels):
                            total += weight[a, b, c] * pixels[image, top + a, left + b, c]
                value = total * scale + shift
                if value > 0:
                    positions[kept] = (image * height + i) * width + j
                    values[kept] = value
                    kept += 1
                if value != value or value == np.inf:
                    return -1
    return kept
