"""Checkpoints that can be trusted: sealed with checksums, resumed from only when whole, of the same run alone."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import config

if TYPE_CHECKING:
    from transformers import Trainer

_CHECKSUMS = "checksums.json"  # in a checkpoint, written last: what its files must be


def newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1]))


def seal(checkpoint: Path) -> None:
    """Say what the files of a finished checkpoint are; one without this was not written to its end."""
    sums = {file.name: config.digest(file) for file in sorted(checkpoint.iterdir()) if file.name != _CHECKSUMS}
    (checkpoint / ".sums").write_text(json.dumps(sums))
    (checkpoint / ".sums").rename(checkpoint / _CHECKSUMS)


def damage(checkpoint: Path) -> str:
    """Why a checkpoint cannot be used; empty for a whole one."""
    try:
        sums = json.loads((checkpoint / _CHECKSUMS).read_text())
    except (OSError, ValueError):
        return "it was not written to its end"
    bad = [name for name, expected in sums.items() if config.digest(checkpoint / name) != expected]
    return f"{', '.join(bad)} {'is' if len(bad) == 1 else 'are'} damaged" if bad else ""


def kept(folder: Path) -> str:
    """What a stopped training can go on from, in a sentence."""
    found = [path.name for path in newest_first(folder) if not damage(path)]
    return f"The last good checkpoint, {found[0]}, is kept." if found else "No checkpoint had been written yet."


def _resume_from(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, and whose best one so far is; others are named and removed."""
    for path in newest_first(folder):
        problem = damage(path)
        if not problem:
            best = json.loads((path / "trainer_state.json").read_text())["best_global_step"]
            if best and damage(folder / f"checkpoint-{best}"):
                problem = f"the best one before it, checkpoint-{best}, is damaged"
        if not problem:
            return path
        print(f"  {path.name} is skipped: {problem}", flush=True)
        shutil.rmtree(path)
    return None


def fit(trainer: "Trainer", identity: dict[str, Any]) -> int:
    """Train, going on from the last whole checkpoint of an interrupted run of the same `identity`.

    Returns the number of input tokens that had been read before, 0 for a run from its start. Checkpoints of a run with other
    parameters, data or model are removed first: resuming from them would mix two runs. Raises TrainingError.
    """
    from transformers import TrainerState

    folder = Path(trainer.args.output_dir)
    marker, wanted = folder / "identity.json", json.dumps(identity, sort_keys=True, default=str)
    with trainer.accelerator.main_process_first():
        if trainer.is_world_process_zero():
            if folder.exists() and (not marker.exists() or marker.read_text() != wanted):
                shutil.rmtree(folder)
            if not marker.exists():
                folder.mkdir(parents=True, exist_ok=True)
                marker.write_text(wanted)
        last = _resume_from(folder)
    state = TrainerState.load_from_json(str(last / "trainer_state.json")) if last else None
    if state and state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
        # killed after the last step: the Trainer would train on beyond an early stop
        trainer.state = state
        state.best_model_checkpoint = str(folder / f"checkpoint-{state.best_global_step}")
        trainer._load_best_model()
    else:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return int(state.num_input_tokens_seen) if state else 0
