"""Hints for the writer of an unknown key, which may be one of another section or a word of another tool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hvd_async.config.run import RunConfig
from hvd_async.config.section import Section, sections_in
from hvd_async.config.task import FactoryConfig, TranslationConfig
from hvd_async.system.nearest import meant

# Words for our keys in PyTorch, Hugging Face's Trainer, PyTorch Lightning, fairseq, JoeyNMT and Marian.
_OF_OTHER_TOOLS: Mapping[str, str] = {
    "output": "output_dir save_dir model_dir log_dir run_dir",
    "seed": "random_seed manual_seed",
    "training.epochs": "num_epochs n_epochs max_epochs max_epoch num_train_epochs after_epochs",
    "training.updates": "steps max_steps num_steps train_steps iterations max_iters max_update max_updates after_batches",
    "training.precision": "fp16 bf16 amp half mixed_precision dtype",
    "training.log_every_seconds": "log_every logging_steps log_interval log_freq disp_freq logging_freq",
    "training.checkpoint_every": "save_every save_steps save_interval save_freq checkpoint_freq checkpoint_interval",
    "training.keep_checkpoints": "save_total_limit keep_last keep_best_ckpts",
    "training.trackers": "tracker logger loggers wandb mlflow report_to",
    "validation.every": "eval_every eval_steps eval_interval valid_freq validation_freq validate_interval val_check_interval",
    "validation.patience": "early_stopping early_stopping_patience",
    "validation.score": "metric early_stopping_metric best_checkpoint_metric metric_for_best_model valid_metrics",
    "optimizer.learning_rate": "lr learn_rate base_lr rate",
    "optimizer.kind": "optim optimizer_name optimizer_type",
    "optimizer.betas": "beta1 beta2 adam_betas",
    "optimizer.epsilon": "eps adam_epsilon",
    "optimizer.clip_norm": "grad_clip clip_grad clip_grad_norm clip_gradient max_grad_norm gradient_clip_val",
    "optimizer.average_decay": "ema ema_decay exponential_smoothing",
    "optimizer.schedule": "scheduler lr_scheduler lr_schedule scheduling lr_scheduler_type",
    "optimizer.schedule.warmup": "warmup_steps warmup_updates num_warmup_steps warmup_ratio lr_warmup learning_rate_warmup",
    "strategy.arrivals_per_update": "n arrivals num_arrivals accumulate accumulation update_freq accumulate_grad_batches"
    " gradient_accumulation_steps backward_passes_per_step optimizer_delay",
    "strategy.max_staleness": "staleness max_delay staleness_threshold",
    "push.dtype": "compression compress fp16_allreduce",
    "push.keep": "top_k topk sparsity",
    "task.data.folder": "dir path data_dir data_path",
    "task.data.source": "src source_lang source_language src_lang",
    "task.data.target": "tgt trg target_lang target_language tgt_lang trg_lang",
    "task.vocabulary.size": "vocab vocab_size dim_vocabs voc_limit",
    "task.model.encoder_layers": "layers num_layers n_layers depth enc_depth",
    "task.model.decoder_layers": "dec_depth",
    "task.model.width": "dim d_model hidden_size embed_dim embedding_dim emb_dim dim_emb",
    "task.model.feed_forward": "ff_size ffn_dim d_ff dim_feedforward ffn_embed_dim transformer_dim_ffn",
    "task.model.heads": "num_heads n_heads nhead attention_heads transformer_heads",
    "task.batching.tokens": "batch_size max_tokens train_batch_size per_device_train_batch_size mini_batch mini_batch_words",
    "task.decoding.beam": "beam_size num_beams",
    "task.decoding.length_penalty": "alpha beam_alpha lenpen normalize",
}
_NUMBERS_OF_WORKERS = "workers num_workers n_workers world_size gpus num_gpus n_gpus nproc_per_node np nodes".split()
_TRANSLATION = "task."
_FEW = 2


def hint(word: str, section: type[Section], root: type[Section], is_translation: bool) -> str:
    """Return what the writer of the key `word`, which `section` of a configuration of class `root` has not, may have meant: a key
    of another section, the key that is called so in other tools, one that is spelled almost so, or else the keys that there are.

    `is_translation`: whether the task of the configuration is translation, or may be; others have no such keys.
    """
    if root is RunConfig and word in _NUMBERS_OF_WORKERS:
        return "the number of workers is given to `hvd-async launch --workers`, or as simulation.workers to `simulate`"
    found = (keys_of_other_tools(word) if root is RunConfig else []) or _called(word, root)
    if found := [key for key in found if is_translation or not key.startswith(_TRANSLATION)]:
        return f"write {' or '.join(found)}"
    names = sorted(section.model_fields)
    if section is FactoryConfig:
        return f"expected one of {', '.join(names)}; arguments of the function stand in task.options"
    return meant(word, names) or f"expected one of {', '.join(names)}"


def keys_of_word(word: str) -> Sequence[str]:
    """Return the keys of a run that may be meant by `word` on a command line: a dotted key, its last part, or what other tools
    call it. `-` counts as `_`."""
    word = word.replace("-", "_")
    if word in RunConfig.model_fields and f"{word}.kind" in _keys(RunConfig):  # `--strategy async`
        return [f"{word}.kind"]
    if word in _keys(RunConfig):
        return [word]
    last = word.rpartition(".")[2]
    return keys_of_other_tools(last) or _called(last, RunConfig)


def _called(word: str, root: type[Section]) -> Sequence[str]:
    """Return the keys that are called `word`, unless there are many."""
    found = [key for key in _keys(root) if key.rpartition(".")[2] == word]
    return found if len(found) <= _FEW else []


def keys_of_other_tools(word: str) -> Sequence[str]:
    """Return our keys for what other tools call `word`."""
    word = word.replace("-", "_").lower()
    return [key for key, words in _OF_OTHER_TOOLS.items() if word in words.split()]


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of `section` and of those below it; of tasks, those of translation."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        below = sections_in(field.annotation)
        if TranslationConfig in below:
            below = [TranslationConfig]
        if len(below) == 1 and name != "groups":  # a list of groups repeats the optimizer's keys
            yield from _keys(below[0], f"{prefix}{name}.")
