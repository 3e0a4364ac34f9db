"""Models in CTranslate2's format: the library computes the probabilities and finds the translations that we do."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import sentencepiece
import torch

from hvd_async.__main__ import main
from hvd_async.tasks.translation.corpus import prepare
from hvd_async.tasks.translation.ctranslate2_model import export_ctranslate2
from hvd_async.tasks.translation.export import load_model
from hvd_async.tasks.translation.translator import Translator
from hvd_async.tasks.translation.vocabulary import BOS, PAD
from tests.translation.models import write_model
from tests.translation.settings import make_config

ctranslate2: Any = pytest.importorskip("ctranslate2", reason="the package ctranslate2 is not installed")
LINES = ["The dog sees the cat.", "We sleep.", "The cat sees the old dog and the small cat sleeps."]
REFERENCES = ["Der Hund sieht die Katze.", "Wir schlafen.", "Die Katze sieht den alten Hund."]
SEPARATE = {"vocabulary": {"shared": False, "size": 150}}


def exported(folder: pathlib.Path, root: pathlib.Path, **changes: Any) -> tuple[Translator, pathlib.Path]:
    """Return the translator of a random model whose configuration has `changes`, and the folder of its export."""
    config = make_config(folder, **changes)
    model = load_model(write_model(root / "model", config, prepare(config), seed=3))
    with torch.no_grad():
        model.model.output.weight.mul_(2.0)  # predictions far from uniform, so that no two are nearly alike
    export_ctranslate2(model, root / "exported", None)
    return Translator(model, threads=1), root / "exported"


def pieces_of(folder: pathlib.Path, side: str) -> sentencepiece.SentencePieceProcessor:
    own = folder / f"vocabulary.{side}.model"
    return sentencepiece.SentencePieceProcessor(model_file=str(own if own.exists() else folder / "vocabulary.model"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"norm": "post"}},
        {"model": {"tie_embeddings": "none", "encoder_layers": 2, "decoder_layers": 3}},
        {"model": {"tie_embeddings": "decoder"}, **SEPARATE},
    ],
    ids=["pre", "post", "deep", "separate"],
)
def test_probabilities_and_translations_are_ours(
    folder: pathlib.Path, tmp_path: pathlib.Path, changes: dict[str, Any]
) -> None:
    ours, place = exported(folder, tmp_path, **changes)
    theirs = ctranslate2.Translator(str(place), device="cpu", compute_type="float32", intra_threads=1)
    source, target = (pieces_of(place, side) for side in ("source", "target"))
    sources, references = source.encode(LINES, out_type=str), target.encode(REFERENCES, out_type=str)
    found = theirs.score_batch(sources, references)
    for one, expected in zip(found, ours.likelihoods(LINES, REFERENCES), strict=True):
        assert one.log_probs == pytest.approx(expected.log_probabilities, abs=2e-4)
    # Greedy: beams end by other rules, which random models show. They would also choose what we never do.
    never = [[target.id_to_piece(number)] for number in (PAD, BOS)]
    mine = Translator(*ours.models, threads=1, settings={"beam": 1, "max_length_ratio": 1.0}).translate(LINES)
    for pieces, text in zip(sources, mine, strict=True):
        [result] = theirs.translate_batch(
            [pieces], beam_size=1, max_decoding_length=10 + len(pieces), disable_unk=True, suppress_sequences=never
        )
        assert target.decode(result.hypotheses[0]) == text


def test_the_verb_writes_a_folder_once(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(folder)
    model, output = write_model(tmp_path / "model", config, prepare(config), seed=3), tmp_path / "new" / "exported"
    arguments = ["export", str(model), "--output", str(output)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"{output}: {model} for CTranslate2, float32, ")
    assert {"model.bin", "config.json", "vocabulary.model"} < {path.name for path in output.iterdir()}
    size = (output / "model.bin").stat().st_size
    assert main(arguments) == 2
    assert "exists already; replace it with --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--quantization", "int8"]) == 0
    separate = make_config(folder, model={"tie_embeddings": "decoder"}, **SEPARATE)
    other, apart = write_model(tmp_path / "two", separate, prepare(separate), seed=3), tmp_path / "apart"
    assert main(["export", str(other), "--output", str(apart)]) == 0
    assert main(["export", str(other), "--output", str(apart), "--overwrite"]) == 0
    assert (output / "model.bin").stat().st_size < 0.8 * size
    assert [path.name for path in output.parent.iterdir()] == ["exported"]
    (output / "thesis.txt").write_text("mine")
    assert main([*arguments, "--overwrite"]) == 2
    assert "which is no export, or has other files too; expected one" in capsys.readouterr().err
    assert main(["translate", str(output)]) == 3
    assert f"{output}: got an export for CTranslate2, expected the model folder" in capsys.readouterr().err
    assert (output / "thesis.txt").read_text() == "mine" and (output / "model.bin").exists()


def test_what_cannot_be_exported_is_one_line(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(folder, model={"kind": "gru"})
    model = write_model(tmp_path / "model", config, prepare(config), seed=3)
    assert main(["export", str(model), "--output", str(tmp_path / "out")]) == 3
    expected = f"hvd-async: {model}: got a model of kind gru, expected a transformer: CTranslate2 knows no GRU\n"
    assert capsys.readouterr().err == expected and not (tmp_path / "out").exists()
    assert main(["export", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 3
    assert (
        f"{tmp_path / 'none'}: no such folder; expected a trained model, such as runs/NAME/models/best"
        in capsys.readouterr().err
    )
