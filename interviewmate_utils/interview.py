"""Ask the tuned model a question and see its answer beside the retrieved one: `make ask Q="..."`."""

import json
import math
import os
import sys
import warnings
from pathlib import Path

from . import config


def _trained(profile: str) -> Path | None:
    """The folder of those of the profile's trained weights whose validation loss is the lowest."""
    from .training import RECORD

    records = (config.ROOT / "reports" / profile).glob(f"{config.TrainLora.stem}_*/{config.TRAINED}/{RECORD}")
    loss = {
        path.parent: min(row["validation_loss"] or math.inf for row in json.loads(path.read_text())["log"] if row["step"])
        for path in records  # step 0 is the base, the same for all
    }
    return min(loss, key=loss.get, default=None)


def main() -> int:
    """Stream the model's answer to `$Q`, then print the nearest training question's. Exit code 2 says what is missing."""
    profile, question = os.environ.get("PROFILE") or "embedded", os.environ.get("Q", "").strip()
    if not question:
        print('Ask something: make ask Q="Why does dropout reduce overfitting?"', file=sys.stderr)
        return 2
    trained, processed = _trained(profile), config.processed_folder(profile)
    if not trained or not processed.exists():
        print(f"Profile '{profile}' has no trained run yet. Run: make report PROFILE={profile}", file=sys.stderr)
        return 2

    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # peft asks transformers for an old name
    from . import models

    try:
        _answer(profile, question, trained, processed)
    except (models.ModelError, config.ParameterError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _answer(profile: str, question: str, trained: Path, processed: Path) -> None:
    from . import answering, data, lora, models, similarity

    stem = config.EvaluateModels.stem  # the same settings as the answers that the report judges
    settings = config.parameters_cell(config.NOTEBOOKS / f"{stem}.ipynb")
    settings |= config.read_parameters(config.NOTEBOOKS / "params" / "profiles" / f"{profile}.yaml", stem)
    name = settings["model"]
    model, tokenizer = lora.load_trained(name, trained, settings["device"]), models.load_tokenizer(name)
    print(f"Question  {question}\n")
    print(f"Model     {name} trained as in {trained.relative_to(config.ROOT)}, on {model.device}")
    if name == config.EMBEDDED_MODEL:
        print(f"          {config.CAVEAT}")
    print()
    limits = settings["max_new_tokens"], settings["repetition_penalty"]
    for piece in answering.stream_answer(model, tokenizer, question, *limits):
        print(piece, end="", flush=True)
    train = data.load_parts(processed)["train"]
    encoder = similarity.load_encoder(settings["encoder"])
    stored = similarity.embed(encoder, list(train[data.QUESTION]))
    index, cosine = similarity.nearest(similarity.embed(encoder, [question]), stored)
    row = train[int(index[0])]
    print(f"\n\nRetrieved the nearest training question (cosine {cosine[0]:.2f}): {row[data.QUESTION]}\n\n{row[data.ANSWER]}")


if __name__ == "__main__":
    sys.exit(main())
