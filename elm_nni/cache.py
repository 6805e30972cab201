"""Where results are kept that can be built again."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def default_store() -> Path:
    """``ELM_NNI_STORE``, else a folder of the user's cache."""
    return Path(os.environ.get("ELM_NNI_STORE") or user_cache_path("elm_nni") / "stages")
