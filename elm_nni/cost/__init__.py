"""What an architecture costs: parameters, operations and milliseconds. Needs no NNI."""

from elm_nni.cost.condition import LatencyCondition
from elm_nni.cost.flops import count_flops
from elm_nni.cost.latency import measure_model, measure_models, measure_table
from elm_nni.cost.latency_table import LatencyTable, cheapest
from elm_nni.cost.parameters import (
    count_parameters,
    extreme_architecture,
    match_size,
    mean_parameters,
    parameters_outside_embeddings,
    uniform_width,
)

__all__ = [
    "LatencyCondition",
    "LatencyTable",
    "cheapest",
    "count_flops",
    "count_parameters",
    "extreme_architecture",
    "match_size",
    "mean_parameters",
    "measure_model",
    "measure_models",
    "measure_table",
    "parameters_outside_embeddings",
    "uniform_width",
]
