import math

import pytest

from elm_nni.distillation.layer_map import layer_map


@pytest.mark.parametrize("num_student_layers", range(1, 14))
@pytest.mark.parametrize("num_teacher_layers", [1, 5, 6, 12, 24])
def test_formula(num_student_layers, num_teacher_layers):
    expected = [
        math.ceil((layer + 1) * num_teacher_layers / num_student_layers) - 1 for layer in range(num_student_layers)
    ]
    ours = layer_map(num_student_layers, num_teacher_layers)
    assert ours == expected
    assert ours[-1] == num_teacher_layers - 1
    assert min(ours) >= 0


def test_known_values():
    assert layer_map(12, 12) == list(range(12))
    assert layer_map(6, 12) == [1, 3, 5, 7, 9, 11]
    assert layer_map(4, 2) == [0, 0, 1, 1]


def test_bad_input():
    with pytest.raises(ValueError, match="num_teacher_layers=0"):
        layer_map(3, 0)
