"""Padding and packing of what the C++ kernels read."""

from __future__ import annotations

import pytest
import torch

from ponita_ff.kernels.layout import Widths, pack, pad, round_up


@pytest.mark.parametrize(("number", "multiple", "expected"), [(1, 8, 8), (8, 8, 8), (9, 8, 16), (13, 1, 13), (0, 4, 0)])
def test_round_up(number: int, multiple: int, expected: int) -> None:
    assert round_up(number, multiple) == expected


def test_widths_are_whole_vectors() -> None:
    assert Widths.of(channels=13, widening=3, num_ori=20, width=8) == Widths(stride=16, hidden=48, ori_stride=24)
    assert Widths.of(channels=64, widening=4, num_ori=32, width=16) == Widths(64, 256, 32)


def test_pad() -> None:
    matrix = torch.arange(1.0, 7.0).view(2, 3)
    padded = pad(matrix, 4, 3)
    assert padded.tolist() == [[1, 2, 3, 0], [4, 5, 6, 0], [0, 0, 0, 0]]
    assert pad(matrix, 3) is matrix
    assert pad(matrix[0], 5).tolist() == [1, 2, 3, 0, 0]


def test_pack_puts_columns_of_two_vectors_together() -> None:
    width, depth, columns = 2, 3, 8
    matrix = torch.arange(float(depth * columns)).view(depth, columns)
    packed = pack(matrix, width)
    assert packed.shape == (2, 3, 4)
    assert packed.is_contiguous()
    for row in range(depth):
        for column in range(columns):
            assert packed[column // 4, row, column % 4] == matrix[row, column]
    assert torch.equal(pack(torch.stack((matrix, -matrix)), width), torch.stack((packed, -packed)))
