"""PCA growth of an elastic module that knows nothing of elm_nni, NNI or Lightning.

Two layers learn to copy their input through a bottleneck. One gets inputs of 3 directions, the other of 20: growth
gives its steps to the one whose features need them. Run: python examples/grow_own_module.py
"""

import torch
from torch import nn
from torch.nn import functional

from elm_nni.strategies import PcaGrowth


class ElasticLayer(nn.Module):
    """``widths``, ``active_width`` and ``features`` are all that growth asks for."""

    widths = (4, 8, 12, 16, 20, 24)

    def __init__(self, size: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size, max(self.widths)), nn.Linear(max(self.widths), size)
        self.features = nn.Identity()
        self.active_width = self.widths[0]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        width = self.active_width
        before = self.features(functional.linear(hidden, self.up.weight[:width], self.up.bias[:width]))
        return functional.linear(before, self.down.weight[:, :width], self.down.bias)


def main() -> dict[str, int]:
    """Trains, grows after every epoch, and returns the widths."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({"simple": ElasticLayer(32), "rich": ElasticLayer(32)})
    bases = {"simple": torch.randn(3, 32), "rich": torch.randn(20, 32)}
    growth = PcaGrowth(dict(layers), top_k=1, budget=28, cost=lambda widths: sum(widths.values()), mode="epoch")
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)
    for _ in range(6):
        with growth.watch():
            for _ in range(50):
                loss = torch.zeros(())
                for name, layer in layers.items():
                    inputs = torch.randn(64, len(bases[name])) @ bases[name]
                    loss = loss + functional.mse_loss(layer(inputs), inputs)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        for event in growth.step():
            print(f"{event.cell}: {event.old} -> {event.new} (rank {event.score:.0f})")
    return growth.widths


if __name__ == "__main__":
    print(main())
