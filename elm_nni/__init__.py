"""Elastic architecture search for compact language models, as parts for NNI and Optuna (ELM, arXiv 2510.27037).

Nothing heavy is imported here: take the part you need from its own module, for example
``from elm_nni.strategies import PcaGrowth``.
"""

__version__ = "0.1.0"
