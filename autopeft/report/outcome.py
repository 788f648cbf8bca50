"""The sections that answer the user's question: verdict, baselines, ranking, what was cut, caveats, what to do next."""

from __future__ import annotations

import shlex
from collections import Counter

from autopeft.report.content import Cell, Code, Section, Stat, Table, facts_table, figures
from autopeft.report.formats import (
    batch_label,
    candidate_label,
    display_name,
    format_interval,
    format_loss,
    format_optional,
    format_rate,
    format_seconds,
    joined,
    target_alias,
    target_label,
)
from autopeft.report.plots import losses_figure, ranking_figure
from autopeft.report.recipe import load_snippet
from autopeft.report.record import RunRecord
from autopeft.specs import Candidate, RankedMethod, Verdict
from autopeft.units import counted


def headline(record: RunRecord) -> str:
    """Returns the verdict in one sentence, or what became of a run that has none."""
    if record.verdict is not None:
        return record.verdict.conclusion
    counts = Counter(trial.status for trial in record.trials)
    if not counts:
        return "This run has no verdict yet: no trial has ended."
    ended = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    if not counts["complete"]:
        return f"This run has no verdict: none of {counted(len(record.trials), 'trial')} completed ({ended})."
    return f"This run has no verdict yet; trials so far: {ended}."


def stats(record: RunRecord) -> tuple[Stat, ...]:
    """Returns the test losses that stand large under the headline; none without a verdict."""
    if record.verdict is None:
        return ()
    to_winner = {entry.right: entry for entry in record.verdict.comparisons if entry.left == "winner"}
    names = sorted(
        record.verdict.losses, key=lambda name: (name != "winner", record.verdict and record.verdict.losses[name])
    )
    return tuple(
        Stat(
            label=display_name(name),
            value=format_loss(record.verdict.losses[name]),
            note=f"winner minus this: {format_interval(to_winner[name])}" if name in to_winner else _own_note(name),
        )
        for name in names
    )


def verdict_section(record: RunRecord) -> Section:
    """Returns the winner, its settings and why it won."""
    verdict = record.verdict
    if verdict is None:
        return Section(
            anchor="verdict",
            title="Verdict",
            paragraphs=("There is no verdict yet. What is known so far follows.",),
            code=(_resume_command(record),),
        )
    return Section(
        anchor="verdict",
        title="Verdict",
        paragraphs=(
            f"Winner: {candidate_label(verdict.winner)} (trial {verdict.winner_trial}). {verdict.winner_reason}",
            _decided(verdict),
        ),
        tables=(_settings_table(record, verdict.winner),),
    )


def baselines_section(record: RunRecord) -> Section:
    """Returns the winner's loss against the untouched base model and the plain recipe."""
    verdict = record.verdict
    title = "Against the baselines"
    if verdict is None or not verdict.losses:
        return Section(anchor="baselines", title=title, paragraphs=("The baselines have not been scored yet.",))
    described = {baseline.name: baseline.description for baseline in record.plan.baselines}
    rows = [
        (Cell(display_name(name)), Cell(format_loss(loss), loss), Cell(described.get(name, "")))
        for name, loss in sorted(verdict.losses.items(), key=lambda item: item[1])
    ]
    losses = Table(caption="Loss on the test split", columns=("model", "loss", "what it is"), rows=tuple(rows))
    return Section(
        anchor="baselines",
        title=title,
        paragraphs=("Loss is the mean negative log-likelihood of a supervised token in nats; lower is better.",),
        figures=figures(losses_figure(record)),
        tables=(losses, _comparisons_table(verdict)),
    )


def ranking_section(record: RunRecord) -> Section:
    """Returns the methods from best to worst."""
    ranking = record.verdict.ranking if record.verdict else ()
    if not ranking:
        return Section(anchor="ranking", title="Methods ranked", paragraphs=("There is no ranking yet.",))
    columns = (
        "rank",
        "method",
        "r",
        "learning rate",
        "loss, choose split",
        "loss, test split",
        "against the first [95 %]",
        "trials",
        "time of the trial",
    )
    rows = tuple(_ranking_row(place, entry, first=place == 1) for place, entry in enumerate(ranking, 1))
    return Section(
        anchor="ranking",
        title="Methods ranked",
        paragraphs=("Each method by its best completed trial of the search, in the order of the choose split.",),
        figures=figures(ranking_figure(record)),
        tables=(Table(caption="The best trial of each method", columns=columns, rows=rows),),
    )


def costs_section(record: RunRecord) -> Section:
    """Returns what the budget cut and where the time went."""
    verdict = record.verdict
    seconds = verdict.seconds if verdict else sum(trial.seconds for trial in record.trials)
    tokens = verdict.tokens_searched if verdict else sum(t.tokens for t in record.trials if t.stage == "search")
    of_what = "the whole run" if verdict else "the trials that have ended"
    facts = [(f"time of {of_what}", format_seconds(seconds)), ("tokens trained on in the search", f"{tokens:,}")]
    facts += [
        (f"time of stage: {phase.phase}", format_seconds(phase.seconds))
        for phase in (verdict.phases if verdict else ())
    ]
    cut = verdict.cut if verdict else ()
    said = "The budget cut the following." if cut else "Nothing is recorded as cut by the budget."
    paragraphs = (said if verdict else "What the budget cuts is known when the run has ended.",)
    return Section(
        anchor="costs", title="Budget and cost", paragraphs=paragraphs, points=cut, tables=(facts_table("Cost", facts),)
    )


def caveats_section(record: RunRecord) -> Section:
    """Returns what the figures do not cover."""
    points = (*(record.verdict.caveats if record.verdict else ()), *record.plan.notes)
    paragraphs = () if points else ("No caveat is recorded: the verdict is not there yet or states none.",)
    return Section(anchor="caveats", title="Caveats", paragraphs=paragraphs, points=points)


def next_section(record: RunRecord) -> Section:
    """Returns the commands to type next."""
    if record.verdict is None:
        return Section(
            anchor="next",
            title="Next commands",
            paragraphs=("Continue this run where it stands; what has finished is kept.",),
            code=(_resume_command(record),),
        )
    return Section(
        anchor="next",
        title="Next commands",
        paragraphs=("Load the winner; search longer from the same plan; see what the winner needs elsewhere.",),
        code=(
            Code(language="python", text=load_snippet(record)),
            Code(language="sh", text=_longer_search(record)),
            Code(language="sh", text=_estimate(record, record.verdict.winner)),
        ),
    )


def _decided(verdict: Verdict) -> str:
    if not any(entry.against_best for entry in verdict.ranking):
        return "The methods were not compared on the test split: see the ranking and what the budget cut."
    differs = "differs" if verdict.significant else "does not differ"
    return (
        f"On the test split, never used for choosing, the winner's method {differs} from the next best beyond chance."
    )


def _own_note(name: str) -> str:
    return "loss on the test split" if name == "winner" else "not compared with the winner"


def _settings_table(record: RunRecord, winner: Candidate) -> Table:
    facts = [
        ("method", winner.method),
        ("r", format_optional(winner.r)),
        ("lora_alpha", format_optional(winner.lora_alpha)),
        ("target_modules", f"{target_label(winner, record.plan.model)}: {joined(winner.target_modules)}"),
        ("quantization", winner.quantization),
        ("dtype", winner.dtype),
        ("learning_rate", format_rate(winner.learning_rate)),
        ("scheduler, warmup_ratio", f"{winner.scheduler}, {winner.warmup_ratio:g}"),
        ("batch x accumulation", f"{batch_label(winner)} = {winner.effective_batch_size}"),
        ("max_length", str(winner.max_length)),
        ("optimizer", winner.optimizer),
        *((name, str(value)) for name, value in sorted(winner.options.items())),
    ]
    return facts_table("The winner's settings", facts)


def _comparisons_table(verdict: Verdict) -> Table:
    rows = tuple(
        (
            Cell(f"{display_name(entry.left)} minus {display_name(entry.right)}"),
            Cell(format_interval(entry), entry.difference),
            Cell("yes" if entry.significant else "no"),
        )
        for entry in verdict.comparisons
    )
    columns = ("comparison", "difference [95 %]", "beyond chance")
    return Table(caption="Paired differences; below zero the first is better", columns=columns, rows=rows)


def _ranking_row(place: int, entry: RankedMethod, *, first: bool) -> tuple[Cell, ...]:
    difference = entry.against_best.difference if entry.against_best else None
    return (
        Cell(str(place), place),
        Cell(entry.method),
        Cell(format_optional(entry.candidate.r), entry.candidate.r),
        Cell(format_rate(entry.candidate.learning_rate), entry.candidate.learning_rate),
        Cell(format_loss(entry.choose_loss), entry.choose_loss),
        Cell(format_loss(entry.test_loss), entry.test_loss),
        Cell("the first", 0.0) if first else Cell(format_interval(entry.against_best), difference),
        Cell(str(entry.trials), entry.trials),
        Cell(format_seconds(entry.seconds), entry.seconds),
    )


def _resume_command(record: RunRecord) -> Code:
    return Code(language="sh", text=f"autopeft run --resume --output {shlex.quote(record.folder)}")


def _longer_search(record: RunRecord) -> str:
    folder = record.folder.rstrip("/")
    plan, output = shlex.quote(f"{folder}/plan.json"), shlex.quote(f"{folder}-longer")
    return f"autopeft run {plan} --time-budget 2h --output {output}"


def _estimate(record: RunRecord, winner: Candidate) -> str:
    words = ["autopeft", "estimate", "--model", record.plan.inputs.model, "--method", winner.method]
    if winner.r is not None and winner.lora_alpha is not None:
        targets = target_alias(winner, record.plan.model) or ",".join(winner.target_modules)
        words += ["--rank", str(winner.r), "--alpha", f"{winner.lora_alpha:g}", "--target-modules", targets]
    words += ["--quantization", winner.quantization, "--dtype", winner.dtype]
    words += ["--batch-size", str(winner.per_device_batch_size), "--sequence-length", str(winner.max_length)]
    words += ["--activation-checkpointing"] if winner.activation_checkpointing else []
    return shlex.join([*words, "--optimizer", winner.optimizer, "--hardware", "a100-80gb"])
