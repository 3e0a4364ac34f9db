"""Training steps of JoeyNMT, to be timed beside ours. Run by a Python that has JoeyNMT, and need not have hvd_async.

The first line of standard input is a request in JSON: `model`, `label_smoothing`, `vocabulary_size` and `batches`, a file with
the arrays `source<i>`, [B, S], and `target<i>`, [B, T + 1], of each batch. The answer is a line with the version of JoeyNMT and
the number of its model's parameters. Each further line asks for some batches by number, and is answered by the seconds of CPU
time that their steps took, forward and backward, without an optimizer.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

# JoeyNMT wants the unknown piece before the padding; ours has it after.
_PAD, _UNK, _BOS, _EOS = 1, 0, 2, 3


def main() -> None:
    """Answer the lines of standard input until it ends."""
    from joeynmt.batch import Batch
    from joeynmt.model import build_model
    from joeynmt.vocabulary import Vocabulary

    logging.disable()
    torch.set_num_threads(1)
    request = json.loads(sys.stdin.readline())
    tokens = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    numbers = {"unk_id": _UNK, "pad_id": _PAD, "bos_id": _BOS, "eos_id": _EOS}
    special = SimpleNamespace(**tokens, **numbers, sep_token=None, sep_id=None, lang_tags=[])
    vocabulary = Vocabulary([f"piece{i}" for i in range(len(tokens), request["vocabulary_size"])], special)
    model = build_model(_settings(request["model"]), vocabulary, vocabulary)
    model.loss_function = ("crossentropy", request["label_smoothing"])
    model.train()
    with np.load(request["batches"]) as arrays:
        sides = {name: torch.from_numpy(_with_their_numbers(array)) for name, array in arrays.items()}
    _answer({"version": version("joeynmt"), "parameters": sum(parameter.numel() for parameter in model.parameters())})

    def step(number: int) -> None:
        source, target = sides[f"source{number}"], sides[f"target{number}"]
        lengths, indices = (source != _PAD).sum(dim=1), torch.arange(len(source))
        batch = Batch(source, lengths, None, target, None, indices, torch.device("cpu"), _PAD, _EOS)
        loss = model(return_type="loss", **vars(batch))[0]
        model.zero_grad()
        batch.normalize(loss, "tokens").backward()

    for line in sys.stdin:
        batches = json.loads(line)
        started = time.process_time()
        for number in batches:
            step(number)
        _answer(time.process_time() - started)


def _settings(model: dict[str, Any]) -> dict[str, Any]:
    """Return JoeyNMT's settings of our `task.model`."""
    embeddings = {"embedding_dim": model["width"], "scale": True, "dropout": model["dropout"]}
    side = {
        "type": "transformer",
        "num_heads": model["heads"],
        "hidden_size": model["width"],
        "ff_size": model["feed_forward"],
        "dropout": model["dropout"],
        "layer_norm": model["norm"],
        "embeddings": embeddings,
    }
    return {
        "encoder": {**side, "num_layers": model["encoder_layers"]},
        "decoder": {**side, "num_layers": model["decoder_layers"]},
        "tied_embeddings": model["tie_embeddings"] == "all",
        "tied_softmax": model["tie_embeddings"] != "none",
        "initializer": "xavier_uniform",
        "embed_initializer": "xavier_uniform",
        "bias_initializer": "zeros",
    }


def _with_their_numbers(pieces: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a copy with the numbers of padding and the unknown piece exchanged."""
    return np.where(pieces < 2, 1 - pieces, pieces)


def _answer(answer: object) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
