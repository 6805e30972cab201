"""PCA growth of elastic modules that know nothing of elm_nni, NNI or Lightning.

    python examples/grow_own_module.py

Two auto-encoders share a budget of hidden units. One sees scikit-learn's digits, the other signals of three directions.
Growth looks at the hidden features after each round and gives its steps to the one whose features need more principal
components. Two controls are trained the same way: widths as at the start, and the budget split evenly.

For your project, change: ``ElasticAutoEncoder`` to your module. All that growth asks of it are three attributes:
``widths`` (allowed, ascending), ``active_width`` (settable; how many units the forward uses) and ``features`` (a
submodule whose output, as wide as the active width, is observed). ``cost`` is any function of all widths, such as a
parameter count, and ``budget`` its bound.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from elm_nni.strategies import PcaGrowth

BUDGET, ROUNDS, STEPS = 28, 12, 40
START, EVEN = {"digits": 4, "signals": 4}, {"digits": 14, "signals": 14}


class ElasticAutoEncoder(nn.Module):
    """Uses the first ``active_width`` hidden units of full-size weights, so growing never touches the optimizer."""

    widths = tuple(range(4, 25, 2))

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size, max(self.widths)), nn.Linear(max(self.widths), size)
        self.features = nn.Identity()
        self.active_width = width

    def forward(self, inputs: Tensor) -> Tensor:
        width = self.active_width
        hidden = self.features(functional.linear(inputs, self.up.weight[:width], self.up.bias[:width]))
        return functional.linear(hidden, self.down.weight[:, :width], self.down.bias)


def data() -> dict[str, Tensor]:
    """Rows of 64 numbers, mean 0 and variance 1 over all."""
    torch.manual_seed(0)
    rows = {"digits": torch.tensor(load_digits().data).float(), "signals": torch.randn(1797, 3) @ torch.randn(3, 64)}
    return {name: (values - values.mean(0)) / values.std() for name, values in rows.items()}


def train(start: dict[str, int], *, grow: bool) -> tuple[dict[str, int], float]:
    """Widths at the end, and the mean squared error over both auto-encoders."""
    rows = data()
    models = nn.ModuleDict({name: ElasticAutoEncoder(64, width) for name, width in start.items()})
    growth = PcaGrowth(dict(models), top_k=1, budget=BUDGET, cost=lambda widths: sum(widths.values()), mode="epoch")
    optimizer = torch.optim.Adam(models.parameters(), lr=5e-3)
    for number in range(ROUNDS):
        with growth.watch():
            for _ in range(STEPS):
                batch = {name: values[torch.randint(len(values), (128,))] for name, values in rows.items()}
                loss = sum(functional.mse_loss(models[name](values), values) for name, values in batch.items())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        if grow:
            events = [f"{one.cell} {one.old} -> {one.new} (rank {one.score:.0f})" for one in growth.step()]
            print(f"round {number}: loss {loss.item():.3f}; {', '.join(events) or 'nothing grows'}")
    with torch.no_grad():
        errors = [functional.mse_loss(models[name](values), values) for name, values in rows.items()]
    return growth.widths, float(sum(errors)) / len(errors)


def main() -> dict[str, int]:
    """Trains with growth and both controls, and returns the grown widths."""
    widths, grown = train(START, grow=True)
    _, small = train(START, grow=False)
    _, even = train(EVEN, grow=False)
    print(f"error with growth {grown:.3f} at {widths}; as at the start {small:.3f}; budget split evenly {even:.3f}")
    assert sum(widths.values()) <= BUDGET
    assert grown < even < small
    return widths


if __name__ == "__main__":
    main()
