"""The documented, versioned schema of a store's files. Changing a meaning raises `SCHEMA_VERSION`."""

from typing import Any, NotRequired, TypedDict

SCHEMA_VERSION = 2
"""2: `arm_row` in each result; config keys and options by their new names; FLOPs from shapes."""


class Phase(TypedDict):
    """Cost of one phase of an arm."""

    seconds: float
    flops: int | None  # None where they were not counted


class Cost(TypedDict):
    """What a run cost."""

    phases: dict[str, Phase]  # embed, retrieve, read, optimize, score, train, generate ...
    peak_memory_bytes: int
    seconds: float  # of scoring all items, resumed parts included
    items: int


class ArmRow(TypedDict):
    """What a run copies of its arm's row in its backend's table: all that analysis and report know of it."""

    name: str
    title: str  # what a reader calls it
    role: str  # base, method, baseline, control, ceiling (an arm that sees labels) or repeat (base again)
    about: NotRequired[str]  # what it does, in a line
    control_of: NotRequired[str | None]  # the arm that it is a control of
    change: NotRequired[str]  # of a control: what it does otherwise than that arm, such as "random neighbors"
    not_due_to: NotRequired[
        str
    ]  # of a control: what a gain that it shares is not due to, such as "retrieval"
    place: NotRequired[int]  # of a control: its place among those of its arm, the strictest first
    losses_over: NotRequired[
        str
    ]  # what a row's losses are listed by: "steps" (else) or "shares" of the pathway tried


class Movement(TypedDict):
    """How far a rewiring arm moved pathways: means over its items, lists by layer."""

    layers: list[int]
    total_variation: list[float]  # moved, rows divided by their sums: 0 (not) to 1
    mass_before: list[float]  # total weight of the experts that run
    mass_after: list[float]
    kept: list[float]  # share of the model's own top-k that is still among the k heaviest
    entropy_before: list[float]  # of the rows divided by their sums, in nats
    entropy_after: list[float]
    spread: list[float] | None  # mean total variation between the original pathways of two items of one task
    spread_between_tasks: list[float] | None
    times_spread: float | None  # mean of total_variation by that of spread, else by that between tasks
    loss_first: float | None  # surrogate loss at the original pathway; None of arms that have no such loss
    loss_last: float | None  # where a descent ended (before its last step), or at the pathway that was taken
    similarity: float | None  # of the neighbors


class Tuning(TypedDict):
    """What was chosen for an arm on held-out references, by the right option's probability."""

    arm: str  # for which it was chosen: the arm, or the one whose choice it takes
    chosen: dict[str, Any]
    settings_tried: int
    held_out: int
    p_gold: float  # mean over the held-out references of the chosen setting
    interval: list[float]  # its 95% bounds
    p_gold_of_base: float
    gain: list[float]  # their difference and its bounds
    edges: list[str]  # choices at the edge of what was tried


class Result(TypedDict):
    """result.json: written last and atomically, so its presence means that the run is done."""

    schema_version: int
    run_id: str  # name of the run folder: arm and hash of the config that matters to it
    arm: str
    arm_row: ArmRow
    backend: str
    model: str
    tasks: list[str]  # leaf tasks
    groups: dict[str, list[str]]  # the leaf tasks of each name that was asked for
    comparison_key: str  # runs may be compared item by item only where this is equal
    limit: int | None
    seed: int
    scoring: dict[str, Any]  # rule, num_fewshot, permute_options
    # of the arm ("arm"), the scoring rule and the metrics, by name (`store.versions`); older records have none
    versions: NotRequired[dict[str, int]]
    metrics: dict[str, dict[str, float]]  # task -> metric -> value, with "n"; acc is the headline
    settings: dict[str, Any]  # flat columns of the ablation table: layers, experts, k, kernel, steps, ...
    cost: Cost
    counts: dict[str, int]  # references used, left out as duplicates, leaked, ...
    curves: dict[str, list[float]]  # mean surrogate loss by step, training metrics by step
    notes: list[str]  # what a reader of the numbers should know
    crc: NotRequired[str]  # checksum of all else; a published study has none
    movement: NotRequired[Movement]  # of rewiring arms
    tuning: NotRequired[Tuning]  # with method.tune


class Sample(TypedDict, total=False):
    """One row of samples.jsonl, sorted by task and doc_id."""

    arm: str
    task: str
    doc_id: int
    doc_hash: str  # of the item's document
    prompt_hash: str  # of the rendered contexts and continuations
    # what the model is asked, with examples and chat template; several where options have prompts of their own. In base's
    # rows, and in those of arms that are asked otherwise
    rendered: list[str]
    question: str
    choices: list[str] | None
    gold: int | str | None
    # multiple choice: the choice of the highest (rule's) log-likelihood, whatever `correct` is made of
    prediction: int | str
    correct: float  # of the headline metric, under the task's first filter; 0 or 1 for multiple choice by acc
    filters: dict[str, float]  # the score under each filter, where the task has several (gsm8k)
    # hash of the passage, where questions may share one (BoolQ, RACE): such items are resampled together
    cluster: str
    loglikelihoods: list[float] | None
    # multiple choice: the right choice's probability among the choices, under the task's scoring rule
    p_gold: float
    neighbors: list[dict[str, Any]]  # id, similarity, question, answer
    # surrogate loss by step; kernel regression: the best so far, by share of the original pathway tried
    losses: list[float]
    pathway_layers: list[int]
    pathway_before: list[list[float]]  # [layers, experts]
    pathway_after: list[list[float]]
    pathway_change: float  # Euclidean distance between the two
    # base_again: (token, layer) whose last expert and the next score alike; absent for none
    routing_ties: int
    # of this item, by layer: the measures of `Movement`; and `surrogate_loss`: first, last
    movement: dict[str, list[float]]
    dropped_duplicates: int  # references too like the item to be its neighbors
    # icl, virtual tokens: what a prompt lost behind them, where it was longer than the model reads
    prompt_tokens_cut: int
    votes: list[float]  # knn_vote: each choice's share of the kernel weight
    prompt: str  # feedback: what was asked, with the answers of the arm and of the base model
    response: str
    baseline_response: str
    scope: str  # in, near or out of the feedback's scope
    feedback_id: str
    category: str  # of the prompt
    # how far the answer follows the feedback, signed; null where no judgement could be had
    score: float | None
    rule_score: float  # what the feedback's rules say, where another judge gave the score
    drift: float | None  # from the base model, in nats a token of the base's answer
    similarity: float  # of the two answers' words
    degeneration: dict[str, Any]  # repetition, broken ending, tokens, length ratio
    unparsed_reasoning: bool  # in_context_cot: the answer could not be told from its reasoning


class Provenance(TypedDict):
    """provenance.json: everything needed to trust or repeat the run."""

    code_version: str
    git_commit: str | None
    libraries: dict[str, str]
    model_hash: str
    data_hashes: dict[str, str]
    identity: dict[str, Any]  # what the run folder's hash is made of
    seeds: dict[str, int]
    hardware: NotRequired[dict[str, Any]]  # a published study has none
    remote_code: NotRequired[bool]  # whether code that came with a model was run: it never is
    checksums: NotRequired[dict[str, str]]  # of samples.jsonl, as it was written
    budget: NotRequired[dict[str, Any] | None]  # the time that was given, and the limit that it bought
    command: str
    started: str
    finished: str


class Experiment(TypedDict):
    """experiments/NAME-HASH.json: which runs an experiment compares, base first."""

    name: str
    config: dict[str, Any]
    command: str
    runs: list[str]
    created: str


class SweepRecord(TypedDict):
    """sweep.json of a sweep's folder."""

    name: str
    overrides: list[str]
    cells: int
    code_version: str
    git_commit: str | None
    cwd: str
    created: str
    jobs: list[dict[str, Any]]


class CellState(TypedDict):
    """state/NNNN.json of a sweep's folder: the last that a worker wrote of a cell."""

    status: str  # running, done, failed or stopped
    host: str
    pid: int
    job: str | None
    when: str
    attempt: NotRequired[int]
    runs: NotRequired[list[str]]
    error: NotRequired[str]
