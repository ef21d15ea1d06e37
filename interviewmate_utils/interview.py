"""Ask the tuned model a question and see its answer beside the retrieved one: `make ask Q="..."`."""

import os
import sys
from pathlib import Path

from . import config


def _adapter(profile: str) -> Path | None:
    """The profile's newest trained adapter."""
    found = (config.ROOT / "reports" / profile).glob("04_train_lora_*/adapter/adapter_model.safetensors")
    return max((path.parent for path in found), key=lambda p: p.stat().st_mtime, default=None)


def main() -> int:
    """Stream the model's answer to `$Q`, then print the nearest training question's. Exit code 2 says what is missing."""
    profile, question = os.environ.get("PROFILE", "embedded"), os.environ.get("Q", "").strip()
    if not question:
        print('Ask something: make ask Q="Why does dropout reduce overfitting?"', file=sys.stderr)
        return 2
    adapter, processed = _adapter(profile), config.ROOT / "data" / "processed" / profile
    if not adapter or not processed.exists():
        print(f"Profile '{profile}' has no trained run yet. Run: make report PROFILE={profile}", file=sys.stderr)
        return 2

    import json

    from . import data, models

    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    settings = config.read_parameters(config.NOTEBOOKS / "params" / "profiles" / f"{profile}.yaml", config.EvaluateModels.stem)
    model = models.load_adapted(settings.get("model", base), adapter)
    tokenizer = models.load_tokenizer(settings.get("model", base))
    print(f"Question  {question}\n")
    print(f"Model     {settings.get('model', base)} with adapter {adapter.relative_to(config.ROOT)}, on {model.device}")
    if settings.get("model") == config.EMBEDDED_MODEL:
        print("          A model this small shows the method, not a coach: do not learn from what it says.")
    print()
    penalty = settings.get("repetition_penalty", 1.2)
    for piece in models.stream_answer(model, tokenizer, question, settings.get("max_new_tokens", 200), penalty):
        print(piece, end="", flush=True)
    train = data.load_parts(processed)["train"]
    encoder = data.load_encoder("embedded-minilm")
    index, cosine = data.nearest(data.embed(encoder, [question]), data.embed(encoder, list(train[data.QUESTION])))
    row = train[int(index[0])]
    print(
        f"\n\nRetrieved the nearest training question (cosine {cosine[0]:.2f}): {row[data.QUESTION]}\n\n{row[data.ANSWER]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
