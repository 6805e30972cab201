"""The growable feed-forward network."""

import pytest
import torch

from elm_nni.search_spaces import ElmSpace, MixedFeedForward
from elm_nni.strategies import set_path, to_supernet
from elm_nni.strategies.growth import Growable


@pytest.fixture
def cell(space: ElmSpace) -> MixedFeedForward:
    return to_supernet(space).cells()["layer0_bert"]


def test_every_cell_is_growable_and_starts_at_its_first_width(space: ElmSpace) -> None:
    assert space.cells() == {}
    cells = to_supernet(space).cells()
    assert len(cells) == 12
    assert all(isinstance(cell, Growable) for cell in cells.values())
    assert all((cell.active_width, cell.widths) == (8, [8, 16, 24]) for cell in cells.values())


def test_an_unknown_width_is_refused(cell: MixedFeedForward) -> None:
    with pytest.raises(ValueError, match=r"layer0_bert_ffn.*\[8, 16, 24\].*12"):
        cell.active_width = 12


def test_the_active_width_is_what_a_path_without_widths_takes(space: ElmSpace) -> None:
    supernet = to_supernet(space)
    supernet.cells()["layer0_bert"].active_width = 16
    path = set_path(supernet, {"layer0": "bert", "layer1": "mobile"})
    assert path["layer0_bert_ffn"] == 16
    assert path["layer1_mobile_ffn"] == 8
    seen: list[torch.Size] = []
    handle = supernet.cells()["layer0_bert"].features.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    supernet(torch.ones(1, 4, dtype=torch.long))
    set_path(supernet, {"layer0": "bert", "layer1": "mobile", "layer0_bert_ffn": 24})
    supernet(torch.ones(1, 4, dtype=torch.long))
    handle.remove()
    assert seen == [(1, 4, 16), (1, 4, 24)]


def test_the_active_width_travels_in_the_state_dict(space: ElmSpace, tiny: dict[str, int]) -> None:
    supernet = to_supernet(space)
    supernet.cells()["layer1_mobile"].active_width = 24
    other = to_supernet(ElmSpace(**tiny))
    other.load_state_dict(supernet.state_dict())
    assert other.cells()["layer1_mobile"].active_width == 24
