"""The closed formula against torch's own counter of FLOPs: every family, phase and way of training."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from c3po_bench.errors import UserError
from c3po_bench.models.families import FAMILIES
from c3po_bench.models.flops import UNKNOWN, counting, shape_of, trained_part
from c3po_bench.models.routing import family_of
from c3po_bench.models.tiny import tiny_model
from c3po_bench.rewiring.baselines.prefix_tuning import Prefix
from c3po_bench.rewiring.baselines.router_tuning import Routers
from c3po_bench.rewiring.baselines.sft import Lora
from c3po_bench.rewiring.baselines.soft_prompt import SoftPrompt
from c3po_bench.rewiring.engines import experts, load_engine
from c3po_bench.rewiring.pathway import Mixer, core_experts
from c3po_bench.rewiring.states import Prompt

torch.set_num_threads(1)
WITHIN = 0.02
PROMPTS = [Prompt(tuple(range(5 + n, 26 + n)), ((7, 8, 9 + n), (6, 7, 8))) for n in range(3)]


def attention(query, key, value, *_, out_shape=None, **__) -> int:
    """Scores and their sum."""
    return 2 * math.prod(query[:-1]) * key[-2] * (key[-1] + value[-1])


def weighted_sums(
    table, chosen, _starts, _scale=False, _mode=0, _sparse=False, weights=None, *_, **__
) -> int:
    """Sums of rows of a table, each times its weight; those without weights multiply nothing."""
    return 0 if weights is None else 2 * math.prod(chosen) * table[-1]


def grouped(left, right, *_, **__) -> int:
    """Each row of `left` meets one matrix of `right`."""
    return 2 * math.prod(left) * right[-1]


def linear(rows, weight, *_, **__) -> int:
    """Rows meet a packed weight."""
    return 2 * math.prod(rows) * weight[0]


def counter() -> FlopCounterMode:
    """Torch's counter, with formulas for what a CPU runs and it has none for."""
    import transformers.integrations.moe  # noqa: F401  registers its product

    aten = torch.ops.aten
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._embedding_bag: weighted_sums,
        aten._embedding_bag_forward_only: weighted_sums,
        aten._grouped_mm: grouped,
        torch.ops.transformers.grouped_mm_fallback: grouped,
    }
    if torch.backends.mkldnn.is_available():
        formulas[torch.ops.mkldnn._linear_pointwise] = linear
    return FlopCounterMode(display=False, custom_mapping=formulas)


TRAINED = ["olmoe", "qwen2_moe", "qwen3_moe", "mixtral", "gpt_oss", "granitemoe", "deepseek_v2"]
NOT_COUNTED = {name for name, family in FAMILIES.items() if "recurrent" in family.naive_only}
NOT_COUNTED |= {"hy_v4", "gemma4_text", "longcat_flash"}


def test_only_these_families_have_no_flops():
    assert {name for name in FAMILIES if shape_of(tiny_model(name)) is UNKNOWN} == NOT_COUNTED


def counted(work) -> tuple[int, object]:
    with counter() as mode:
        result = work()
    return mode.get_total_flops(), result


@pytest.fixture(
    params=[
        name if name in TRAINED else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
        if name not in NOT_COUNTED
    ]
)
def model(request):
    made = tiny_model(request.param)
    made.requires_grad_(False)
    return made


def mixture_of(engine, states, requires_grad, mixing):
    own = engine.original_pathways(states)
    pathway = own.clone().requires_grad_(requires_grad)
    top_k = engine.family.top_k
    core = core_experts(own, f"top:{2 * top_k}", top_k)
    return pathway, Mixer(engine.family)(pathway, own, core, mixing)


@pytest.mark.parametrize("kind", ["suffix", "naive"])
def test_reading(model, kind):
    engine = load_engine(kind, model, list(family_of(model).layers)[-2:])
    found, states = counted(lambda: engine.read_new(PROMPTS))
    assert sum(state.flops for state in states) == pytest.approx(found, rel=WITHIN)


@pytest.mark.parametrize("position", ["last", "continuation"])
@pytest.mark.parametrize("kind", ["suffix", "naive"])
def test_scoring_and_descending(model, kind, position, monkeypatch):
    """The model's own routing, a mixture, and steps with a gradient (the first prepares what later ones use)."""
    monkeypatch.setattr(experts, "asks_most", lambda *_: False)  # it multiplies experts of weight 0
    if kind == "naive" or family_of(model).naive_only:
        model.set_attn_implementation("eager")  # the fused backward pass computes the scores anew
    engine = load_engine(kind, model, list(family_of(model).layers)[-3:], position)
    states = engine.read(PROMPTS)
    rows = [(i, c) for i in range(len(PROMPTS)) for c in range(2)]
    owner = torch.tensor([i for i, _ in rows])
    batch = engine.batch(states, rows)

    def descend():
        pathway, mixture = mixture_of(engine, states, True, "dense")
        return torch.autograd.grad(batch.score(mixture, owner)[0].sum(), pathway)

    hard = mixture_of(engine, states, False, "hard")[1]
    for work in (lambda: batch.score(None), lambda: batch.score(hard, owner), descend, descend):
        before = batch.flops
        found, _ = counted(work)
        assert batch.flops - before == pytest.approx(found, rel=WITHIN)


def test_a_step_that_asks_all_experts_counts_those_that_are_mixed(monkeypatch):
    """SmolMoE's way on a CPU: the experts of weight 0 are multiplied, too, but are no cost of the method."""
    model = tiny_model("olmoe").requires_grad_(False)
    flops = []
    for at_once in (True, False):
        monkeypatch.setattr(experts, "asks_most", lambda *_, at_once=at_once: at_once)
        engine = load_engine("suffix", model, [3, 4])
        batch = engine.batch(engine.read(PROMPTS[:1]), [(0, 0)])
        batch.score(None)
        flops.append(batch.flops)
    assert flops[0] == flops[1]


def adapters(backend):
    return {
        "router_tuning": lambda: Routers(backend),
        "sft": lambda: Lora(backend, 4),
        "soft_prompt": lambda: SoftPrompt(backend, 4),
        "prefix_tuning": lambda: Prefix(backend, 4),
    }


@pytest.mark.parametrize("arm", ["router_tuning", "sft", "soft_prompt", "prefix_tuning"])
@pytest.mark.parametrize("kind", TRAINED)
def test_training(kind, arm):
    """Keys and values of a prefix do not fit every family's cache: those are refused."""
    model = tiny_model(kind).requires_grad_(False)
    model.set_attn_implementation("eager")
    encode = SimpleNamespace(lm=SimpleNamespace(tok_encode=lambda _: [5, 6, 7, 8]), max_length=64)
    layers = list(family_of(model).layers)[-2:]
    backend = SimpleNamespace(loaded=SimpleNamespace(model=model), layers=layers, tokenizer=encode)
    ids = torch.arange(5, 37).view(2, 16)
    if arm == "prefix_tuning" and model.config.model_type == "deepseek_v2":
        with pytest.raises(UserError, match="prefix_tuning"):
            Prefix(backend, 4).wrapped()
        return
    with adapters(backend)[arm]().opened(0) as opened:

        def step():
            opened.call(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -8:].sum().backward()

        trained = trained_part(opened.parameters, model.config.hidden_size)
        with counting(model, shape_of(model), trained) as flops:
            found, _ = counted(step)
        assert sum(flops) == pytest.approx(found, rel=WITHIN)


def test_training_that_computes_layers_again_in_the_backward_pass():
    """Gradient checkpointing: the second time is one more pass, and no second gradient."""
    model = tiny_model("llama").requires_grad_(False)
    model.set_attn_implementation("eager")
    with Lora(SimpleNamespace(loaded=SimpleNamespace(model=model)), 4).opened(0) as opened:
        trained = trained_part(opened.parameters, model.config.hidden_size)
        ids, costs = torch.arange(5, 37).view(2, 16), []
        for repeated in (False, True):
            if repeated:
                model.train().activation_checkpointing_enable({"use_reentrant": False})
            with counting(model, shape_of(model), trained) as flops:
                found, _ = counted(lambda: opened.call(input_ids=ids).logits[:, -8:].sum().backward())
            assert sum(flops) == pytest.approx(found, rel=WITHIN)
            costs.append(sum(flops))
        assert costs[1] - costs[0] == shape_of(model).forward(shape_of(model).span, 2, 16, 16)


def test_only_the_adapter_that_answers_is_counted():
    model = tiny_model("llama").requires_grad_(False)
    plain = shape_of(model)
    with Lora(SimpleNamespace(loaded=SimpleNamespace(model=model)), 4).opened(0):
        assert shape_of(model, None) == shape_of(model, "another") == plain
        assert shape_of(model).layers[0].dense > plain.layers[0].dense


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_a_pass_costs_the_same_in_every_implementation_of_experts(implementation):
    model = tiny_model("olmoe").requires_grad_(False)
    model.set_experts_implementation(implementation)
    ids, shape = torch.arange(5, 29).view(2, 12), shape_of(model)
    found, _ = counted(lambda: model(input_ids=ids, use_cache=False))
    assert shape.score(shape.span, (2, 12, 12), 24) == found


def test_a_layer_by_hand():
    """Projections, attention with fewer key than query heads, router, and the experts of the top-k."""
    config = tiny_model("olmoe").config
    width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    projections = 2 * width * head * (config.num_attention_heads + config.num_key_value_heads)
    attention = 2 * 12 * head * config.num_attention_heads
    experts = config.num_experts_per_tok * 3 * width * config.intermediate_size
    expected = 2 * 10 * (projections + attention + width * config.num_experts + experts)
    assert shape_of(tiny_model("olmoe")).forward(range(1), 2, 5, 12) == expected


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_dense_decoders_and_encoders_are_covered(kind):
    """What `model=smollm` and the embedder `minilm` are."""
    if kind == "bert":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
        encoder = BertModel(BertConfig(vocab_size=99, **sizes), add_pooling_layer=False).eval()
    else:
        encoder = tiny_model("llama").model
    shape = shape_of(encoder)
    ids = torch.arange(5, 29).view(2, 12)
    with torch.no_grad(), counting(encoder, shape) as flops:
        found, _ = counted(lambda: encoder(input_ids=ids))
    assert flops == [shape.forward(shape.span, 2, 12, 12)] == [found]


def test_passes_see_what_a_cache_holds():
    """And that only the last token of the prompt is asked of the head."""
    model = tiny_model("olmoe")
    shape = shape_of(model)
    with torch.no_grad(), counting(model, shape) as flops:
        model.generate(torch.arange(5, 10)[None], max_new_tokens=3, do_sample=False, eos_token_id=-1)
    passes = [shape.forward(shape.span, 1, *size) + shape.logits(1) for size in ((5, 5), (1, 6), (1, 7))]
    assert sum(flops) == pytest.approx(sum(passes))


def test_what_is_not_covered_is_unknown():
    """A state-space layer has parameters that no token meets as a product."""
    model = tiny_model("olmoe")
    model.model.layers[2].mixer = torch.nn.Conv1d(32, 32, 4)
    assert shape_of(model) is UNKNOWN
    for cost in (
        UNKNOWN.forward(range(2), 1, 2, 3),
        UNKNOWN.gradient(range(2), 1, 2, 3),
        UNKNOWN.mixing([1], 2),
        UNKNOWN.logits(3),
        UNKNOWN.training(1, 2, 3, 0, 0),
    ):
        assert math.isnan(cost)
