"""Export to CTranslate2, a library that translates with Transformers fast, on CPUs and GPUs, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from hvd_async.errors import DataError
from hvd_async.system.extras import require
from hvd_async.system.files import new_folder
from hvd_async.tasks.translation.export import ExportedModel
from hvd_async.tasks.translation.model_folder import vocabulary_files
from hvd_async.tasks.translation.transformer import (
    Attention,
    CrossAttention,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    SelfAttention,
    Transformer,
)
from hvd_async.tasks.translation.vocabulary import BOS, EOS, UNK, Vocabulary

_MODEL, _CONFIG = "model.bin", "config.json"
_PIECES = ({"shared_vocabulary.json"}, {"source_vocabulary.json", "target_vocabulary.json"})


def is_export(folder: Path) -> bool:
    """Whether `folder` has the files of an export, and nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    own = {_MODEL, _CONFIG, *(path.name for path in vocabulary_files(folder))}
    return any(names == own | pieces for pieces in _PIECES)


def export_ctranslate2(model: ExportedModel, folder: Path, quantization: str | None) -> None:
    """Write `folder` anew, whole or not at all, replacing an existing one: the model in CTranslate2's format, and its
    SentencePiece model or models, under the names that they have in a model folder.

    `quantization`: how parameters are stored, such as `int8`, by the library's names; None: as they are, in float32. Blocks on
    the disk. Raises `DataError` for a GRU, which the library does not know, and if the file system refuses; `SetupError` if the
    library is not installed.
    """
    require("ctranslate2")
    from ctranslate2.specs import TransformerSpec

    network, config = model.model, model.config.translation.model
    if not isinstance(network, Transformer):
        raise DataError(f"{model.name}: got a model of kind {config.kind}, expected a transformer: CTranslate2 knows no GRU")
    layers = (config.encoder_layers, config.decoder_layers)
    spec = TransformerSpec.from_config(layers, config.heads, pre_norm=config.norm == "pre")
    _fill_encoder(spec.encoder, network)
    _fill_decoder(spec.decoder, network)
    vocabularies = model.vocabularies
    spec.register_source_vocabulary(_pieces(vocabularies.source))
    spec.register_target_vocabulary(_pieces(vocabularies.target))
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = vocabularies.target.pieces([UNK, BOS, EOS])
    spec.config.decoder_start_token = spec.config.bos_token
    spec.config.add_source_eos = True
    spec.config.layer_norm_epsilon = _epsilon(network)
    spec.validate()
    spec.optimize(quantization=quantization)
    with new_folder(folder, replace=True) as temporary:
        spec.save(str(temporary))
        vocabularies.save(temporary)


def _pieces(vocabulary: Vocabulary) -> list[str]:
    return vocabulary.pieces(range(len(vocabulary)))


def _epsilon(network: Transformer) -> float:
    """Return what is added to variances, which is the same in all normalisations."""
    found = {each.eps for each in network.modules() if isinstance(each, nn.LayerNorm)}
    assert len(found) == 1
    return found.pop()


def _fill_encoder(spec: Any, network: Transformer) -> None:
    _fill_embeddings(spec, spec.embeddings[0], network.source_embedding, network.positions)
    _fill_norm(spec, network.encoder_norm)
    for target, each in zip(spec.layer, network.encoder, strict=True):
        layer = cast(EncoderLayer, each)
        _fill_self_attention(target.self_attention, layer.self_attention, layer.norms[0])
        _fill_feed_forward(target.ffn, layer.feed_forward, layer.norms[1])


def _fill_decoder(spec: Any, network: Transformer) -> None:
    _fill_embeddings(spec, spec.embeddings, network.target_embedding, network.positions)
    _fill_norm(spec, network.decoder_norm)
    spec.projection.weight = _numbers(network.output.weight)
    for target, each in zip(spec.layer, network.decoder, strict=True):
        layer = cast(DecoderLayer, each)
        _fill_self_attention(target.self_attention, layer.self_attention, layer.norms[0])
        _fill_cross_attention(target.attention, layer.cross_attention, layer.norms[1])
        _fill_feed_forward(target.ffn, layer.feed_forward, layer.norms[2])


def _fill_embeddings(spec: Any, embeddings: Any, embedding: nn.Embedding, positions: Tensor) -> None:
    embeddings.weight = _numbers(embedding.weight)
    spec.scale_embeddings = True
    spec.position_encodings.encodings = _numbers(positions)


def _fill_norm(spec: Any, norm: nn.Module) -> None:
    """Fill the normalisation of the last layer's sum, which post-norm layers do not have."""
    if isinstance(norm, nn.LayerNorm):
        _fill_layer_norm(spec.layer_norm, norm)


def _fill_self_attention(spec: Any, attention: SelfAttention, norm: nn.Module) -> None:
    _fill_attention(spec, [attention.query_key_value], attention, norm)


def _fill_cross_attention(spec: Any, attention: CrossAttention, norm: nn.Module) -> None:
    _fill_attention(spec, [attention.query, attention.key_value], attention, norm)


def _fill_attention(spec: Any, projections: Sequence[nn.Linear], attention: Attention, norm: nn.Module) -> None:
    for target, linear in zip(spec.linear, [*projections, attention.output], strict=True):
        _fill_linear(target, linear)
    _fill_layer_norm(spec.layer_norm, norm)


def _fill_feed_forward(spec: Any, block: FeedForward, norm: nn.Module) -> None:
    _fill_linear(spec.linear_0, block[0])
    _fill_linear(spec.linear_1, block[2])
    _fill_layer_norm(spec.layer_norm, norm)


def _fill_linear(spec: Any, linear: nn.Module) -> None:
    spec.weight, spec.bias = _numbers(linear.weight), _numbers(linear.bias)


def _fill_layer_norm(spec: Any, norm: nn.Module) -> None:
    spec.gamma, spec.beta = _numbers(norm.weight), _numbers(norm.bias)


def _numbers(tensor: Any) -> Any:
    return tensor.detach().cpu().numpy()
