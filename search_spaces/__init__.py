"""Search spaces. ``ElmSpace`` needs NNI; the architecture's own functions do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elm_nni.search_spaces.architecture import PRESETS, SpaceSettings, architecture_digest, canonical, preset_settings

if TYPE_CHECKING:
    from elm_nni.search_spaces.elastic import ElasticFeedForward, MixedFeedForward
    from elm_nni.search_spaces.space import ElmSpace

__all__ = [
    "PRESETS",
    "ElasticFeedForward",
    "ElmSpace",
    "MixedFeedForward",
    "SpaceSettings",
    "architecture_digest",
    "canonical",
    "preset_settings",
]


def __getattr__(name: str) -> Any:
    if name == "ElmSpace":
        from elm_nni.search_spaces.space import ElmSpace

        return ElmSpace
    if name in ("ElasticFeedForward", "MixedFeedForward"):
        from elm_nni.search_spaces import elastic

        return getattr(elastic, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
