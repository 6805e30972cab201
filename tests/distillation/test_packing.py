import torch

from elm_nni.distillation.packing import Unpacked, block_diagonal_mask, document_positions

DOCUMENTS = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 3], [0, 0, 0, 0, 0, 0]])


def test_positions():
    assert document_positions(DOCUMENTS).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5]]


def test_mask():
    mask = block_diagonal_mask(DOCUMENTS, torch.float32)
    assert mask.shape == (3, 1, 6, 6)
    for row, documents in enumerate(DOCUMENTS.tolist()):
        for i, j in torch.cartesian_prod(torch.arange(6), torch.arange(6)).tolist():
            assert (mask[row, 0, i, j] == 0) == (documents[i] == documents[j])
    assert mask.min() == torch.finfo(torch.float32).min


def test_split_and_join():
    tokens = torch.arange(18).view(3, 6)
    rows = Unpacked.of(DOCUMENTS)
    assert rows.split(tokens, -1).tolist() == [
        [0, 1, 2, -1],
        [3, 4, -1, -1],
        [6, -1, -1, -1],
        [7, 8, 9, 10],
        [11, -1, -1, -1],
    ]
    joined = rows.join(rows.split(tokens, -1).unsqueeze(-1), (3, 6)).squeeze(-1)
    assert torch.equal(joined, tokens.masked_fill(DOCUMENTS == 0, 0))
