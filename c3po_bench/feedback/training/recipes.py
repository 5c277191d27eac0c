"""The tuned arms as data: what each one trains on, by which numbers, and what these may be.

A new one is one line of `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any, get_args, get_origin, get_type_hints

from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback.config import FeedbackConfig, LoraConfig, TrainConfig
from c3po_bench.options import check_bounds

LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)
"""TRL's names of the in-scope loss."""
CONSTRAINTS = ("nll", "kl")
PRECISIONS = ("auto", "float32", "bfloat16")
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
"""Transformers' schedules that need no further number and no evaluation."""

_SHARES = ("test_share", "validation_share", "lora.dropout")
_WORDS = {
    float: ("a number", "numbers"),
    int: ("a whole number", "whole numbers"),
    str: ("a name", "names"),
    bool: ("true or false",),
}


@dataclass(frozen=True)
class Recipe:
    """A way of training.

    `objective` is ``pairs`` (a preference loss) or ``answers`` (the likelihood of the revised answers:
    distillation).
    `near`, `out`: whether the model's own answers there are trained on too. `start`: the recipe whose adapter
    it goes on from.
    """

    objective: str
    near: bool = False
    out: bool = False
    loss_type: tuple[str, ...] | None = None
    constraint: str | None = None
    start: str | None = None
    source: str = ""


RECIPES: dict[str, Recipe] = {
    "scd": Recipe("answers", source="supervised context distillation, RLVF section 5"),
    "scd_negatives": Recipe("answers", near=True, out=True, source="SCD + Negatives, RLVF section 5"),
    "dpo": Recipe("pairs", source="arXiv 2305.18290 on in-scope pairs"),
    "dpo_nll": Recipe("pairs", loss_type=("sigmoid", "sft"), source="iterative RPO, arXiv 2404.19733"),
    "c3po": Recipe("pairs", near=True, out=True, source="RLVF eq. 5"),
    "c3po_kl": Recipe(
        "pairs", near=True, out=True, constraint="kl", source="RLVF figure 8, at matched scale"
    ),
    "c3po_no_near": Recipe("pairs", out=True, source="RLVF eq. 5 with lambda_2 = 0"),
    "c3po_no_out": Recipe("pairs", near=True, source="RLVF eq. 5 with lambda_1 = 0"),
    "c3po_from_sft": Recipe(
        "pairs", near=True, out=True, start="scd_negatives", source="the released adapters"
    ),
}

_TRAIN = (
    "lr",
    "steps",
    "epochs",
    "batch_size",
    "constraint_batch_size",
    "gradient_accumulation_steps",
    "sft_lr",
    "sft_steps",
    "precision",
)
_TOP = ("beta", "loss_type", "lambda_out", "lambda_near", "constraint")
_LORA = ("rank", "alpha", "dropout", "targets", "routers", "experts")
OPTIONS = (*_TOP, *_TRAIN, *_LORA)


@dataclass(frozen=True)
class Plan:
    """A recipe with every number that it trains by."""

    name: str
    recipe: Recipe
    cfg: FeedbackConfig
    seed: int | None = None  # of the training; None: the experiment's, by which the data are drawn, too

    @property
    def lambda_near(self) -> float:
        """The near-scope weight, 0 where the recipe leaves the scope out."""
        return self.cfg.lambda_near if self.recipe.near else 0.0

    @property
    def lambda_out(self) -> float:
        """The out-of-scope weight, 0 where the recipe leaves the scope out."""
        return self.cfg.lambda_out if self.recipe.out else 0.0

    @property
    def loss_type(self) -> list[str]:
        """TRL's names of the in-scope loss."""
        return list(self.recipe.loss_type or self.cfg.loss_type)

    @property
    def constraint(self) -> str:
        """The constraint: nll or kl."""
        return self.recipe.constraint or self.cfg.constraint

    @property
    def start(self) -> Plan | None:
        """The plan of the adapter that training goes on from; None = from the base model."""
        start = self.recipe.start
        return Plan(start, RECIPES[start], self.cfg, self.seed) if start else None

    def training_seed(self, seed: int) -> int:
        """The seed that the training draws by, in an experiment of this `seed`."""
        return seed if self.seed is None else self.seed

    def identity(self) -> dict[str, Any]:
        """Everything that can change the adapter, flat: also the columns of the ablation table."""
        cfg, recipe = self.cfg, self.recipe
        lora = asdict(cfg.lora)
        common = {
            "objective": recipe.objective,
            "rank": lora["rank"],
            "alpha": lora["alpha"],
            "dropout": lora["dropout"],
            "targets": ",".join(lora["targets"]),
            "routers_trained": lora["routers"],
            "experts_trained": lora["experts"],
            "batch_size": cfg.train.batch_size,
            "gradient_accumulation_steps": cfg.train.gradient_accumulation_steps,
            "scheduler": cfg.train.scheduler,
            "warmup_ratio": cfg.train.warmup_ratio,
            "max_length": cfg.train.max_length,
            "precision": cfg.train.precision,
            "constraint_batch_size": cfg.train.constraint_batch_size,
        }
        if cfg.lora.dropout:
            common["eval_every"] = cfg.train.eval_every  # an evaluation draws random numbers, too
        if recipe.objective == "answers":
            more = {
                "lr": cfg.train.sft_lr,
                "steps": cfg.train.sft_steps,
                "near": recipe.near,
                "out": recipe.out,
            }
            return common | more | ({} if cfg.train.sft_steps else {"epochs": cfg.train.epochs})
        start = self.start.identity() if self.start else {}
        return (
            common
            | {f"start_{key}": value for key, value in start.items()}
            | {
                "lr": cfg.train.lr,
                "steps": cfg.train.steps,
                "epochs": cfg.train.epochs if not cfg.train.steps else None,
                "beta": cfg.beta,
                "loss_type": ",".join(self.loss_type),
                "lambda_near": self.lambda_near,
                "lambda_out": self.lambda_out,
                "constraint": self.constraint,
                "start": recipe.start,
            }
        )


def make_plan(name: str, cfg: FeedbackConfig, options: Mapping[str, Any] | None = None) -> Plan:
    """The plan of a recipe, with the arm's own options (`OPTIONS`) put over the section's."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    values = dict(options or {})
    for key in values:
        if key not in OPTIONS:
            raise unknown(f"option of arm {name}", key, OPTIONS)

    def chosen(keys: tuple[str, ...]) -> dict[str, Any]:
        return {key: values[key] for key in keys if key in values}

    check_types(name, values)
    changed = replace(
        cfg,
        **chosen(_TOP),
        train=replace(cfg.train, **chosen(_TRAIN)),
        lora=replace(cfg.lora, **chosen(_LORA)),
    )
    check_values(changed)
    plan = Plan(name, RECIPES[name], changed)
    if unread := sorted(values.keys() & _unread(plan)):
        raise UserError(
            f"arm {name}: option {unread[0]} would change nothing: the arm fixes it or does not read it"
        )
    return plan


def _unread(plan: Plan) -> set[str]:
    """The options that change nothing about a plan."""
    recipe, train = plan.recipe, plan.cfg.train
    if recipe.objective == "answers":
        return {*_TOP, "lr", "steps", "constraint_batch_size"} | ({"epochs"} if train.sft_steps else set())
    kept = recipe.near or recipe.out
    unread = {
        "loss_type": recipe.loss_type is not None,
        "constraint": recipe.constraint is not None or not kept,
        "lambda_near": not recipe.near,
        "lambda_out": not recipe.out,
        "constraint_batch_size": not kept,
        "sft_lr": recipe.start is None,
        "sft_steps": recipe.start is None,
        "epochs": train.steps and (recipe.start is None or train.sft_steps),
    }
    return {key for key, so in unread.items() if so}


def check_values(cfg: FeedbackConfig) -> None:
    """`UserError` for choices and numbers that no training can use."""
    for loss in cfg.loss_type:
        if loss not in LOSSES:
            raise unknown("feedback.loss_type", loss, LOSSES)
    for name, value, choices in (
        ("constraint", cfg.constraint, CONSTRAINTS),
        ("train.precision", cfg.train.precision, PRECISIONS),
        ("train.scheduler", cfg.train.scheduler, SCHEDULERS),
    ):
        if value not in choices:
            raise unknown(f"feedback.{name}", value, choices)
    check_bounds(cfg, "feedback.")
    for name in _SHARES:
        if not 0 <= (value := attrgetter(name)(cfg)) < 1:
            raise UserError(f"feedback.{name}={value}: a share is at least 0 and below 1")


def check_types(arm: str, options: Mapping[str, Any]) -> None:
    """`UserError` for an arm's option that is no value of its kind: Hydra looks at those of sections only."""
    hints = {
        name: hint
        for kind in (FeedbackConfig, TrainConfig, LoraConfig)
        for name, hint in get_type_hints(kind).items()
    }
    for key, value in options.items():
        several = get_origin(hints[key]) is list
        kind = get_args(hints[key])[0] if several else hints[key]
        listed = isinstance(value, list | tuple)
        if listed != several or not all(_is(v, kind) for v in (value if listed else [value])):
            words = (
                f"a list of {_WORDS[kind][1]}, such as [{value}]"
                if several and not listed
                else _WORDS[kind][several]
            )
            raise UserError(f"arm_options.{arm}.{key}={value}: must be {words}")


def _is(value: Any, kind: type) -> bool:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return numeric if kind is float else isinstance(value, kind) and (numeric or kind is not int)


def precision(name: str, device: str) -> str:
    """``auto`` is bfloat16 where the processor computes in it, float32 elsewhere."""
    import torch  # slow to import, and not needed to check a config

    if name != "auto":
        return name
    able = (
        torch.cuda.is_bf16_supported()
        if device == "cuda"
        else device == "cpu" and torch.cpu._is_avx512_bf16_supported()
    )
    return "bfloat16" if able else "float32"
