"""The ELM search space: a stack of layers, each a choice among blocks with elastic feed-forward networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nni
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.space import current_model
from nni.nas.strategy import Proxyless
from torch import Tensor, nn

from elm_nni.modeling.blocks_elm import BLOCKS, Block, init_weights
from elm_nni.modeling.configuration_elm import ElmConfig
from elm_nni.modeling.encoder_elm import ElmEmbeddings, encode
from elm_nni.search_spaces import architecture as arch
from elm_nni.search_spaces.elastic import ElasticFeedForward, MixedFeedForward
from elm_nni.search_spaces.proxyless import BlockProxylessLayer


class ElmSpace(ModelSpace):
    """Twelve (or ``num_layers``) layers, each an NNI ``LayerChoice`` of blocks (arXiv 2510.27037, section III-A).

    Labels: ``layer{i}`` holds the block, ``layer{i}_{block}_ffn`` the width of that candidate. Head counts are fixed
    while a supernet trains; the CKA step sets them afterwards.

    Args:
        blocks: name to block class; None takes the six of the paper. A class of your own needs the interface of
            :class:`elm_nni.modeling.blocks_elm.Block`.
        **settings: the fields of :class:`~elm_nni.search_spaces.architecture.SpaceSettings`.

    Example::

        space = ElmSpace.preset("nano", vocab_size=1000)
        hidden_BTD = space.freeze(space.random_sample())(torch.tensor([[5, 6, 7]]))
    """

    def __init__(
        self,
        *,
        num_layers: int = 12,
        hidden_size: int = 528,
        num_heads: int = 12,
        bottleneck_size: int = 132,
        ffn_start: int = 132,
        ffn_step: int = 132,
        ffn_max: int = 792,
        embedding_size: int = 128,
        vocab_size: int = 30522,
        max_position_embeddings: int = 512,
        is_causal: bool = False,
        pooling: str = "cls",
        dropout: float = 0.1,
        pad_token_id: int = 0,
        blocks: Mapping[str, type[Block]] | None = None,
    ) -> None:
        super().__init__()
        self.settings = arch.SpaceSettings(
            num_layers=num_layers, hidden_size=hidden_size, num_heads=num_heads, bottleneck_size=bottleneck_size,
            ffn_start=ffn_start, ffn_step=ffn_step, ffn_max=ffn_max, embedding_size=embedding_size,
            vocab_size=vocab_size, max_position_embeddings=max_position_embeddings, is_causal=is_causal,
            pooling=pooling, dropout=dropout, pad_token_id=pad_token_id,
        )  # fmt: skip
        self.blocks = dict(blocks) if blocks is not None else dict(BLOCKS)
        if not self.blocks:
            raise ValueError("blocks must name at least one block class")
        self.config = ElmConfig(layers=None, num_hidden_layers=num_layers, **arch.shared_config(self.settings))
        self.embeddings = ElmEmbeddings(self.config)
        self.layers = nn.ModuleList([self._layer(index) for index in range(num_layers)])
        self.apply(lambda module: init_weights(module, self.config.initializer_range))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ElmSpace:
        """A space by name (``elm-small``, ``elm-tiny``, ``elm-micro``, ``nano``) with some settings replaced."""
        blocks = overrides.pop("blocks", None)
        return cls(**arch.settings_dict(arch.preset_settings(name, **overrides)), blocks=blocks)

    @property
    def heads(self) -> dict[str, tuple[int, int]]:
        """Block name to its (number of heads, head dimension)."""
        return {
            name: (self.settings.num_heads, block.attention_width(self.config) // self.settings.num_heads)
            for name, block in self.blocks.items()
        }

    def canonical(self, sample: Mapping[str, Any]) -> arch.Architecture:
        """The architecture a sample names: labels of chosen candidates only, sorted, heads included."""
        return arch.canonical(sample, self.heads)

    def architecture_config(self, sample: Mapping[str, Any]) -> ElmConfig:
        """The configuration of the plain model that a sample names."""
        return ElmConfig.from_architecture(self.canonical(sample), **arch.shared_config(self.settings))

    def cells(self) -> dict[str, MixedFeedForward]:
        """Each (layer, block) cell's growable network by name; empty before a one-shot strategy mutated the space."""
        found = {m.label.removesuffix("_ffn"): m for m in self.modules() if isinstance(m, MixedFeedForward)}
        return dict(sorted(found.items()))

    def random_sample(
        self, generator: torch.Generator | None = None, widths: Mapping[str, int] | None = None
    ) -> arch.Architecture:
        """A uniformly drawn canonical architecture; ``widths`` (cell name to width) fixes the widths."""
        sample: dict[str, Any] = {}
        names = list(self.blocks)
        for index in range(self.settings.num_layers):
            block = names[int(torch.randint(len(names), (), generator=generator))]
            cell = arch.cell_name(index, block)
            sample[arch.layer_label(index)] = block
            drawn = self.settings.widths[int(torch.randint(len(self.settings.widths), (), generator=generator))]
            sample[f"{cell}_ffn"] = widths[cell] if widths is not None else drawn
        return self.canonical(sample)

    def extra_oneshot_hooks(self, strategy: Any) -> list[Any]:
        """Lets every one-shot strategy of NNI handle the elastic feed-forward network and the blocks' arguments."""
        blocks = [BlockProxylessLayer.mutate] if isinstance(strategy, Proxyless) else []
        return [self._mixed_feed_forward, *blocks]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, T) to the last hidden states (B, T, D); see :class:`elm_nni.modeling.ElmModel`."""
        encoded = encode(
            self.embeddings, self.layers, self.config, input_ids, attention_mask, token_type_ids, document_ids
        )
        return encoded.last_hidden_state

    def _mixed_feed_forward(
        self, module: nn.Module, name: str, memo: dict[str, Any], kwargs: dict[str, Any]
    ) -> MixedFeedForward | None:
        mixed = MixedFeedForward.mutate(module, name, memo, kwargs)
        if mixed is not None:
            # a new module, made after this space was initialized
            mixed.apply(lambda part: init_weights(part, self.config.initializer_range))
        return mixed

    def _layer(self, index: int) -> LayerChoice:
        # inside NNI's model_context only the chosen candidate exists: a canonical sample has no labels of the others
        chosen = (current_model() or {}).get(arch.layer_label(index))
        candidates = {}
        for name, block in self.blocks.items():
            if chosen in self.blocks and chosen != name:
                continue
            num_heads, head_dim = self.heads[name]
            width = nni.choice(f"{arch.cell_name(index, name)}_ffn", self.settings.widths)
            candidates[name] = block(
                self.config, ffn_size=width, num_heads=num_heads, head_dim=head_dim, feed_forward=ElasticFeedForward
            )
        return LayerChoice(candidates, label=arch.layer_label(index))
