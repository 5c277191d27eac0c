"""What can be tuned in the feedback backend: dataclasses only, so that composing a config loads no torch.

Defaults are the ones of "RLVF: Learning from Verbal Feedback without Overgeneralization" (arXiv 2402.10893,
section 5 and appendix B) where the paper gives one, except for the sizes, which are what an embedded model
can do on two cores; the paper's sizes are in ``conf/feedback/paper.yaml``.
"""

from dataclasses import dataclass, field

from c3po_bench.options import A_DAY, option


@dataclass
class ChatConfig:
    """Who writes text for a stage of the synthesis: prompts, critiques, judgements.

    `kind` is a name in `feedback.generators.GENERATORS`: ``template`` (embedded and deterministic),
    ``openai`` (any OpenAI-compatible endpoint: vLLM, llama.cpp, ``transformers serve``, hosted) or
    ``transformers`` (a local model).
    """

    kind: str = option("template", "template, openai or transformers")
    model: str | None = option(
        None,
        "the endpoint's model name, or a local folder / hub id; null = the model being tuned",
    )
    base_url: str | None = option(None, "http://host:port/v1")
    api_key_env: str = option(
        "OPENAI_API_KEY",
        "the environment variable that holds the key; the key itself is never stored",
    )
    temperature: float = option(0.7, "appendix A", least=0)
    top_p: float = option(0.7, "nucleus sampling", above=0, most=1)
    max_tokens: int = option(1024, "most tokens of one call", least=1, most=10**7)
    timeout: float = option(60.0, "seconds for one call", above=0, most=A_DAY)
    retries: int = option(5, "attempts after the first one", least=0, most=1000)
    concurrency: int = option(8, "calls in flight", least=1, most=10000)


@dataclass
class ReviserConfig:
    """How a baseline answer becomes a revised one.

    ``rules`` rewrites, ``critique`` asks a model to criticize and revise.

    ``auto`` takes the rules where the piece has them and the critique elsewhere.
    """

    kind: str = option("auto", "rules, critique, or auto: rules where the piece has them")
    filter: bool = option(True, "leave out (and count) revisions that do not satisfy the piece's rules")
    writer: ChatConfig = field(default_factory=lambda: ChatConfig(kind="transformers", max_tokens=600))


@dataclass
class JudgeConfig:
    """What scores an answer against the base model's: ``rule`` or ``openai`` (both orders, averaged).

    ``auto`` takes the rule where the piece has one and ``openai`` elsewhere (a user error without a
    `base_url`).
    """

    kind: str = option("auto", "rule, openai, or auto: the rule where the piece has one")
    labels: str | None = option(
        None,
        "file of people's scores: JSON lines of feedback_id, prompt, response, score; corrects a judge's",
    )
    chat: ChatConfig = field(
        default_factory=lambda: ChatConfig(kind="openai", temperature=0.0, top_p=1.0, max_tokens=400)
    )


@dataclass
class LoraConfig:
    """The adapter (appendix B). `targets` is ``all-linear`` or module names.

    On MoE models see `routers`, `experts`.
    """

    rank: int = option(64, "LoRA rank (paper: 64)", least=1, most=65536)
    alpha: int = option(128, "LoRA alpha (paper: 128)", above=0)
    dropout: float = option(0.0, "paper: 0.05; must be 0 where routers or fused experts are adapted")
    targets: list[str] = option(["all-linear"], "all-linear, or names of modules")
    routers: bool = option(False, "MoE only: adapt the router's gate too")
    experts: bool = option(False, "MoE only: adapt the fused expert weights too")


@dataclass
class TrainConfig:
    """The optimizer (section 5, appendix B)."""

    lr: float = option(5e-5, "first learning rate (paper: 5e-5)", least=0)
    scheduler: str = option("cosine", "linear, cosine, constant, constant_with_warmup, ... (paper: cosine)")
    warmup_ratio: float = option(0.05, "share of the steps", least=0)
    steps: int = option(30, "optimizer steps; 0 = `epochs` passes over the in-scope pairs", least=0)
    epochs: float = option(1.0, "passes over the pairs where steps=0 (paper: 1)", above=0)
    batch_size: int = option(4, "in-scope pairs of one forward", least=1)
    constraint_batch_size: int = option(
        4,
        "near-scope and out-of-scope rows of one forward, each; sets need not be equal in size",
        least=1,
    )
    gradient_accumulation_steps: int = option(1, "forwards of one optimizer step", least=1)
    max_length: int = option(512, "tokens of prompt + answer", least=1, most=10**7)
    gradient_checkpointing: bool = option(False, "less memory, more time")
    precision: str = option(
        "auto",
        "float32 | bfloat16 (autocast) | auto: bfloat16 where the processor computes in it",
    )
    eval_every: int = option(
        0, "steps between evaluations on the validation split; 0 = at the end only", least=0
    )
    sft_lr: float = option(5e-5, "SCD arms and the warm start", least=0)
    sft_steps: int = option(
        30, "optimizer steps of the SCD arms and the warm start; 0 = `epochs` passes", least=0
    )


@dataclass
class GenerationConfig:
    """How the model being tuned answers, in the synthesis and in the evaluation."""

    max_new_tokens: int = option(64, "most tokens of an answer", least=1, most=10**7)
    temperature: float = option(
        0.0,
        "0 = greedy, so that baseline and tuned answers differ by the tuning only (paper: 0.7)",
        least=0,
    )
    top_p: float = option(1.0, "nucleus sampling", above=0, most=1)
    batch_size: int = option(16, "rows of one forward", least=1)


@dataclass
class FeedbackConfig:
    """The section ``feedback`` of the config.

    ``arm_options.<name>`` may override numbers of an arm's training.
    """

    pieces: list[str] = option(["jared_greeting"], "ids in the library, or paths of YAML files")
    library: list[str] = option([], "further folders or files with pieces of your own")
    generator: ChatConfig = field(default_factory=ChatConfig)
    reviser: ReviserConfig = field(default_factory=ReviserConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    answers: GenerationConfig = field(default_factory=GenerationConfig)

    n_categories: int = option(8, "paper: 32", least=1)
    n_in: int = option(48, "in-scope prompts, all splits together (paper: 960)", least=1)
    n_near: int = option(48, "near-scope prompts, all splits together (paper: 960)", least=1)
    n_out: int = option(48, "out-of-scope prompts, all splits together (paper: 960)", least=1)
    out_of_scope: str = option(
        "builtin",
        "builtin (the embedded general set), a text file, or a hub data set as 'org/name:split:column'",
    )
    test_share: float = option(0.25, "of the prompts within each category; paper: 0.2")
    validation_share: float = option(0.05, "of the rest; paper: 0.05")

    beta: float = option(0.1, "DPO's beta (paper: 0.1)", above=0)
    loss_type: list[str] = option(["sigmoid"], "TRL's names: sigmoid, ipo, apo_zero, sft, ...")
    lambda_out: float = option(0.2, "the paper's lambda_1", least=0)
    lambda_near: float = option(0.1, "the paper's lambda_2", least=0)
    constraint: str = option("nll", "nll | kl, both a mean over tokens")

    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cache_dir: str | None = option(None, "journals and adapters; null = <user cache>/feedback")
