"""What must hold of every family: the table finds its routers, and an override is what the definition says."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from c3po_bench.errors import UserError  # noqa: E402
from c3po_bench.models.families import FAMILIES, Family  # noqa: E402
from c3po_bench.models.routing import family_of, mix  # noqa: E402
from c3po_bench.models.tiny import OWN, tiny_model, tiny_tokenizer  # noqa: E402

KINDS = list(FAMILIES)
IDS = torch.tensor([[20, 33, 47, 51, 60, 71, 15, 9, 80, 44], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21]])


@pytest.fixture(scope="module", params=KINDS)
def tiny(request):
    torch.set_num_threads(1)
    return tiny_model(request.param).requires_grad_(False)


def mixed(family: Family, pathway: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`mix` for pathways [tokens, experts] of one layer."""
    weights, indices = mix(family.at([layer]), pathway[:, None])
    return weights[:, 0], indices[:, 0]


def rerouted(model, family: Family, change) -> torch.Tensor:
    """Logits with every router's answer replaced by the mix of `change(layer, its pathway)`."""

    def hook(layer):
        def answer(module, _args, output):
            weights, indices = mixed(family, change(layer, family.pathway(output[0])), layer)
            return output[0], weights.to(output[1].dtype), indices

        return answer

    handles = [family.router_of(model, layer).register_forward_hook(hook(layer)) for layer in family.layers]
    try:
        return model(IDS, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def test_every_family_has_a_tiny_model_and_the_other_way_round():
    assert set(OWN) - {"llama"} == set(FAMILIES)


def test_the_table_finds_layers_and_numbers(tiny):
    family = family_of(tiny)
    blocks = {
        name.split(".layers.")[1].split(".")[0] for name, _ in tiny.named_parameters() if ".experts." in name
    }
    assert family.layers == tuple(sorted(int(number) for number in blocks if "shared" not in number))
    assert len(family.layers) >= 2
    assert family.num_experts == (10 if family.model_type == "longcat_flash" else 8)  # two of them do nothing
    assert family.top_k == (3 if family.model_type in ("qwen2_moe", "deepseek_v2") else 2)


def test_the_original_pathway_changes_nothing(tiny):
    base = tiny(IDS, use_cache=False).logits
    same = rerouted(tiny, family_of(tiny), lambda _, pathway: pathway)
    assert (same - base).abs().max() < 1e-5


def test_mix_gives_the_routers_own_weights(tiny):
    family = family_of(tiny)
    seen = []
    handles = [
        family.router_of(tiny, layer).register_forward_hook(
            lambda _m, _, out, layer=layer: seen.append((layer, out))
        )
        for layer in family.layers
    ]
    tiny(IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(family.layers)
    for layer, output in seen:
        weights, indices = mixed(family, family.pathway(output[0]), layer)
        ours = torch.zeros(len(weights), family.num_experts).scatter(-1, indices, weights)
        theirs = torch.zeros(len(weights), family.num_experts).scatter(-1, output[2], output[1].float())
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_another_pathway_changes_the_logits(tiny):
    base = tiny(IDS, use_cache=False).logits
    other = rerouted(tiny, family_of(tiny), lambda _, pathway: pathway.flip(-1))
    assert (other - base).abs().max() > 1e-2


def test_what_the_head_says_is_what_the_model_says(tiny):
    from c3po_bench.rewiring.engines.layers import target_log_probs

    family, targets = family_of(tiny), IDS.flatten()
    if family.naive_only:
        pytest.skip("the engine naive asks the model itself")
    hidden = family.decoder_of(tiny)(IDS).last_hidden_state.flatten(0, 1)
    logits = tiny(IDS).logits.flatten(0, 1)
    log_probs, hits = target_log_probs(family, tiny, hidden, targets, greedy=True)
    torch.testing.assert_close(log_probs, logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1))
    assert hits.equal(logits.argmax(-1) == targets)
    likeliest = logits.argmax(-1)
    assert target_log_probs(family, tiny, hidden, likeliest, greedy=True)[1].all()


AFTER = {"laguna": 2.5, "beam": 1.5, "cohere2_moe": 0.5}
"""What the block multiplies its routed experts by (with cohere2's shared expert, the average of both)."""
OF_THEIR_OWN = ("aria_text", "gemma4_text", "longcat_flash", "nemotron_h")
"""Families whose experts are of another form than silu(gate) * up: asked one by one."""


def by_hand(model, family: Family, pathway: torch.Tensor, inner: torch.Tensor, layer: int) -> torch.Tensor:
    """The routed experts' output [tokens, width] for `inner` hidden states, expert by expert, from the definition."""
    experts = family.experts_of(model, layer)
    weights, indices = mixed(family, pathway, layer)
    total = torch.zeros_like(inner)
    for expert in range(family.num_experts):
        share = (weights * (indices == expert)).sum(-1, keepdim=True)
        if family.model_type == "gpt_oss":  # interleaved gate and up, clipped, with biases
            both = inner @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
            gate, up = both[:, ::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
            out = ((up + 1) * gate * torch.sigmoid(1.702 * gate)) @ experts.down_proj[expert]
            out = out + experts.down_proj_bias[expert]
        elif family.model_type in OF_THEIR_OWN:
            only = torch.full((len(inner), 2), expert)
            out = experts(inner, only, torch.tensor([1.0, 0.0]).expand(len(inner), 2))
        else:
            gate, up = (inner @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            out = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[expert].T
        total = total + share * out
    return total * AFTER.get(family.model_type, 1.0)


def test_an_override_is_the_hand_written_mixture_and_its_gradient_the_finite_difference(tiny, monkeypatch):
    family = family_of(tiny)
    if family.model_type == "gemma4_text":
        pytest.skip(
            "its router and experts are the layer's, not a block's: the engines' test is of all families"
        )
    layer = family.layers[-1]
    block = family.decoder_of(tiny).layers[layer].get_submodule(family.router.rsplit(".", 1)[0])
    if family.model_type == "axk1":  # it norms what shared and routed experts give together
        monkeypatch.setattr(block, "post_mlp_layernorm", torch.nn.Identity())
    torch.manual_seed(0)
    inner = torch.randn(1, 6, 32)
    pathway = torch.rand(6, family.num_experts).softmax(-1).requires_grad_()

    def routed(p: torch.Tensor) -> torch.Tensor:
        weights, indices = mixed(family, p, layer)
        handle = block.get_submodule(family.router.rsplit(".", 1)[1]).register_forward_hook(
            lambda _m, _a, out: (out[0], weights, indices)
        )
        try:
            output = block(inner)
        finally:
            handle.remove()
        return (output[0] if isinstance(output, tuple) else output)[0]

    # shared experts add a term that routing doesn't touch: compare against a pathway's difference to another
    other = pathway.detach().roll(3, dims=-1)
    got = routed(pathway) - routed(other)
    expected = by_hand(tiny, family, pathway, inner[0], layer) - by_hand(tiny, family, other, inner[0], layer)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)

    probe = torch.randn_like(got)
    (gradient,) = torch.autograd.grad((routed(pathway) * probe).sum(), pathway)
    direction = torch.zeros_like(pathway)
    step = 1e-2 if family.bias is None else 1e-3  # with a bias, the last expert chosen may be a close call
    chosen = mixed(family, pathway, layer)[1]
    for token, expert in ((0, int(chosen[0, 0])), (3, int(chosen[3, 1]))):
        direction.zero_()[token, expert] = step
        with torch.no_grad():
            up, down = routed(pathway + direction), routed(pathway - direction)
        slope = ((up - down) * probe).sum() / (2 * step)
        assert gradient[token, expert] == pytest.approx(slope.item(), rel=0.03, abs=2e-3)


def test_candidates_bound_the_selection():
    family = Family("olmoe", top_k=2)
    pathway = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    _, indices = mix(family, pathway, candidates=torch.tensor([[False, True, False, True]]))
    assert indices.tolist() == [[1, 3]]


def test_renormalising_and_scale():
    pathway = torch.tensor([0.5, 0.3, 0.2])
    plain, _ = mix(Family("x", top_k=2), pathway)
    assert plain.tolist() == pytest.approx([0.5, 0.3])
    whole, _ = mix(Family("x", top_k=2, renormalise=True), pathway)
    assert whole.sum().item() == pytest.approx(1)
    scaled, _ = mix(Family("x", top_k=2, scale=1.5), pathway)
    assert scaled.tolist() == pytest.approx([0.75, 0.45])


def test_group_limited_selection_is_the_models_own():
    groups = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    model = tiny_model("deepseek_v2", **groups).requires_grad_(False)
    family = family_of(model)
    assert (family.groups, family.kept_groups) == (4, 2)
    router = family.router_of(model, 2)
    output = router(torch.randn(50, 32))
    weights, indices = mix(family, family.pathway(output[0]))
    ours = torch.zeros(50, 8).scatter(-1, indices, weights)
    theirs = torch.zeros(50, 8).scatter(-1, output[2], output[1])
    torch.testing.assert_close(ours, theirs)


def test_dense_and_unknown_models_are_refused_in_one_line():
    with pytest.raises(UserError, match="is dense .*model=smolmoe") as refused:
        family_of(tiny_model("llama"))
    assert "\n" not in str(refused.value)
    model = tiny_model("olmoe")
    model.config.model_type = "brand_new_moe"
    with pytest.raises(UserError, match="brand_new_moe"):
        family_of(model)


def test_a_family_that_transformers_has_in_another_form_is_refused(monkeypatch):
    model = tiny_model("granitemoe")
    monkeypatch.setattr("c3po_bench.models.families.version", lambda name: "5.20.2")
    with pytest.raises(UserError, match=r"granitemoe models need transformers>=5\.21, this is 5\.20\.2"):
        family_of(model)
    family_of(tiny_model("olmoe"))


def test_tiny_models_are_the_same_for_the_same_seed():
    before = torch.random.get_rng_state()
    first, second, other = tiny_model("olmoe"), tiny_model("olmoe"), tiny_model("olmoe", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    with pytest.raises(UserError, match="olmoe"):
        tiny_model("olmo")


def test_the_tokenizer_gives_text_back():
    tokenizer = tiny_tokenizer()
    text = 'Question: "a b"\n(c) 1~'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
